"""Files that once went wrong, where no kernel is needed to say what is right."""

import errno
import time
from pathlib import Path

import pytest

from tests.ideal import ideal_history
from tests.played import played, vmm
from vmm.scenario.codec import read_scenario
from vmm.scenario.history import Refused
from vmm.verdict.ideal import EVERYTHING
from vmm.verdict.judge import Status, judge

CASES = Path(__file__).parents[2] / "cases"


def test_guests_of_a_private_vm_in_the_second_address_space_are_skipped_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = played(monkeypatch)
    kernel.features = EVERYTHING
    result = vmm("run", CASES / "private-vm-with-smm.json")
    assert result.stdout.startswith(
        "SKIPPED      private-vm-with-smm: needs KVM_CAP_X86_SMM, and KVM_CAP_MULTI_ADDRESS_SPACE "
        "of 2 in a VM of type KVM_X86_SW_PROTECTED_VM\n"
    )
    assert (result.exit_code, kernel.ran) == (4, [])


def test_the_second_address_space_of_a_private_vm_is_refused_and_the_first_is_not() -> None:
    scenario = read_scenario(CASES / "private-vm-has-one-address-space.json")
    other, own, _ = scenario.operations
    outcomes = {e.operation: e.outcome for e in ideal_history(scenario, EVERYTHING).events}
    assert outcomes[other] == Refused(errno.EINVAL)
    assert not isinstance(outcomes[own], Refused)


def test_pages_that_were_dropped_are_judged_in_a_time_in_proportion_to_them() -> None:
    """64 MiB of them, from 212 bytes: it took minutes when it grew with their square."""
    history = ideal_history(read_scenario(CASES / "drop-16384-pages.json"), EVERYTHING)
    begun = time.process_time()
    assert judge(history).status is Status.PASSED
    assert time.process_time() - begun < 20
