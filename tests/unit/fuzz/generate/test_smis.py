"""Random system management interrupts."""

from collections.abc import Sequence

import msgspec
import pytest

from tests.ideal import ideal_history
from tests.searched import composed, composed_from, of_subject
from vmm.fuzz.generate.pools import SMRAM_GFNS
from vmm.scenario.history import Mmio, Touched
from vmm.scenario.operations import SMM, Scenario, SetUserMemoryRegion, Start
from vmm.scenario.slots import as_id_of
from vmm.scenario.validate import validate
from vmm.verdict.ideal import EVERYTHING
from vmm.verdict.judge import Status, judge


@pytest.fixture(scope="module")
def of_smis() -> Sequence[Scenario]:
    made = of_subject("smis", 5, 60, EVERYTHING)
    return [each for each in made if any(map(_is_smi, each.operations))]


def _is_smi(op: object) -> bool:
    return isinstance(op, Start) and op.smi


def test_the_model_knows_what_comes_of_each(of_smis: Sequence[Scenario]) -> None:
    """KVM gives up a VM whose vCPU finds no memory for its state."""
    assert len(of_smis) > 20
    met: set[str] = set()
    for scenario in of_smis:
        validate(scenario)
        history = ideal_history(scenario, EVERYTHING)
        assert judge(history).status is Status.PASSED
        for event in history.events:
            if _is_smi(event.operation):
                assert isinstance(event.outcome, Touched)
                met.add("exits" if event.outcome.mmio else "stays in memory")
                assert all(isinstance(each, Mmio) and each.write for each in event.outcome.mmio)
    assert met == {"exits", "stays in memory"}


def test_slots_of_smm_change_under_them(of_smis: Sequence[Scenario]) -> None:
    sizes: set[int] = set()
    for scenario in of_smis:
        calls = [op for op in scenario.operations if isinstance(op, SetUserMemoryRegion)]
        assert not any(call.fail_nth for call in calls)
        inside = [call for call in calls if as_id_of(call.slot) == SMM]
        sizes |= {call.memory_size // 4096 for call in inside}
    assert {0, 1, len(SMRAM_GFNS)} <= sizes


def test_a_kernel_without_smm_gets_none() -> None:
    without = msgspec.structs.replace(EVERYTHING, smm=False, address_spaces=1)
    with_some = [n for n, s in enumerate(composed(400)) if any(map(_is_smi, s.operations))]
    assert len(with_some) > 5
    there = [composed_from(number, without) for number in with_some]
    assert not any(any(map(_is_smi, each.operations)) for each in there)
