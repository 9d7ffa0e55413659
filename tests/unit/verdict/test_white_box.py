"""Histories with what the kernel held: judged, written, and judged again from the file."""

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from tests.ideal import ideal_history
from tests.kernelheld import held
from vmm.catalogue import catalogue
from vmm.cli.main import main
from vmm.model.array import Change
from vmm.model.kernelslots import change_of
from vmm.model.model import Model
from vmm.model.regions import Memslot
from vmm.scenario.codec import history_lines
from vmm.scenario.features import Features
from vmm.scenario.history import History
from vmm.scenario.kernelslots import KernelSlot, KernelTrees
from vmm.scenario.operations import Scenario, SetUserMemoryRegion
from vmm.scenario.slots import as_id_of, id_of
from vmm.verdict.judge import Status, judge

NAMES = ("move-up", "create-upward", "delete-the-middle", "flags-on-and-off-again")
BASES: dict[str, int] = {}
GROWTH = {None: 0, Change.CREATE: 1, Change.FLAGS_ONLY: 1, Change.DELETE: 2, Change.MOVE: 2}
"""For each address space."""


def scenario_named(name: str) -> Scenario:
    return next(each for each in catalogue(Features()) if each.name == name)


def address(slot: Memslot) -> int:
    hva = slot.userspace_addr
    if isinstance(hva, int):
        return hva
    return 0x7F00_0000_0000 + (BASES.setdefault(hva.mapping, len(BASES) + 1) << 32) + hva.offset


def looked_at(history: History) -> History:
    """Return a history with what a right kernel holds after each region operation."""
    model = Model.of(history.header)
    generation, events = 0, []
    for event in history.events:
        op = event.operation
        if not isinstance(op, SetUserMemoryRegion):
            model.follow(event)
            events.append(event)
            continue
        space = model.spaces[as_id_of(op.slot)]
        old = space.get(id_of(op.slot))
        model.follow(event)
        before = generation
        change = change_of(old, space.get(id_of(op.slot)))
        generation += GROWTH[change] * len(model.spaces)
        slots = [
            KernelSlot(s.slot_id, s.as_id, s.base_gfn, s.npages, address(s), s.flags) for s in space
        ]
        kernel = held(slots, before, generation)
        pages = sum(slot.npages for space in model.spaces for slot in space)
        kernel = msgspec.structs.replace(kernel, pages=pages)
        events.append(msgspec.structs.replace(event, kernel=kernel))
    return msgspec.structs.replace(history, events=tuple(events))


def with_kernel(history: History, index: int, kernel: KernelTrees) -> History:
    events = list(history.events)
    events[index] = msgspec.structs.replace(events[index], kernel=kernel)
    return msgspec.structs.replace(history, events=tuple(events))


def region_events(history: History) -> list[tuple[int, KernelTrees]]:
    kernels = ((number, event.kernel) for number, event in enumerate(history.events))
    return [(number, kernel) for number, kernel in kernels if isinstance(kernel, KernelTrees)]


@pytest.mark.parametrize("name", NAMES)
def test_a_right_kernel_passes_and_its_rules_have_decided(name: str) -> None:
    history = looked_at(ideal_history(scenario_named(name)))
    assert region_events(history)
    verdict = judge(history)
    assert verdict.status is Status.PASSED, verdict
    assert {"kernel-trees", "kernel-generation"} <= set(verdict.rules)


def test_nothing_is_said_of_a_kernel_that_nobody_looked_into() -> None:
    assert not any(
        "kernel-" in rule for rule in judge(ideal_history(scenario_named("move-up"))).rules
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_generation_is_named_at_its_ioctl(name: str) -> None:
    history = looked_at(ideal_history(scenario_named(name)))
    for index, kernel in region_events(history):
        active = msgspec.structs.replace(kernel.active, generation=kernel.active.generation + 1)
        found = judge(with_kernel(history, index, msgspec.structs.replace(kernel, active=active)))
        assert found.status is Status.DIFFERS
        assert found.difference is not None
        assert found.difference.event == index
        assert [each.rule for each in found.difference.expected] == ["kernel-generation"]


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_number_of_pages_is_named_at_its_ioctl(name: str) -> None:
    history = looked_at(ideal_history(scenario_named(name)))
    for index, kernel in region_events(history):
        assert kernel.pages is not None
        for pages in (kernel.pages - 1, kernel.pages + 1):
            wrong = msgspec.structs.replace(kernel, pages=pages)
            found = judge(with_kernel(history, index, wrong))
            assert found.difference is not None
            assert found.difference.event == index
            assert found.difference.identity.rules == ("kernel-page-count",)
        unknown = msgspec.structs.replace(kernel, pages=None)
        assert judge(with_kernel(history, index, unknown)).status is Status.PASSED


def test_internal_slots_count_in_each_address_space() -> None:
    history = looked_at(ideal_history(scenario_named("move-up")))
    spaces = len(Model.of(history.header).spaces)
    index, kernel = region_events(history)[-1]
    internal = KernelSlot(0x7FFF, 0, 0xFEE00, 3, 0x7F00_0000_0000, 0)
    now = kernel.active.generation
    right = held([*kernel.slots, internal], kernel.before, now)
    assert kernel.pages is not None
    for more, status in ((3 * spaces, Status.PASSED), (0, Status.DIFFERS)):
        counted = msgspec.structs.replace(right, pages=kernel.pages + more)
        assert judge(with_kernel(history, index, counted)).status is status


@pytest.mark.parametrize("name", NAMES)
def test_a_slot_missing_from_the_table_of_ids_is_named_at_its_ioctl(name: str) -> None:
    history = looked_at(ideal_history(scenario_named(name)))
    for index, kernel in region_events(history):
        if not kernel.slots:
            continue
        other = msgspec.structs.replace(kernel.inactive, id_hash=kernel.inactive.id_hash[1:])
        found = judge(with_kernel(history, index, msgspec.structs.replace(kernel, inactive=other)))
        assert found.difference is not None
        assert found.difference.event == index
        assert found.difference.identity.rules == ("kernel-trees",)
        assert "in the other copy, id_hash: slot" in found.difference.observed


def test_a_file_is_judged_again_as_it_was(tmp_path: Path) -> None:
    history = looked_at(ideal_history(scenario_named("move-up")))
    right, wrong = tmp_path / "right.jsonl", tmp_path / "wrong.jsonl"
    right.write_bytes(b"".join(history_lines(history)))
    index, kernel = region_events(history)[-1]
    active = msgspec.structs.replace(kernel.active, hva_leftmost=-1)
    kernel = msgspec.structs.replace(kernel, active=active)
    wrong.write_bytes(b"".join(history_lines(with_kernel(history, index, kernel))))
    assert CliRunner().invoke(main, ["judge", str(right)]).exit_code == 0
    told = CliRunner().invoke(main, ["judge", str(wrong)])
    assert told.exit_code == 1
    assert "kernel-trees" in told.output
    assert "hva_tree: its leftmost is none" in told.output


def test_what_a_stranger_says_of_a_kernel_is_no_trap() -> None:
    history = looked_at(ideal_history(scenario_named("move-up")))
    index, kernel = region_events(history)[-1]
    strange = (
        msgspec.structs.replace(kernel, slots=()),
        msgspec.structs.replace(
            kernel, active=msgspec.structs.replace(kernel.active, id_hash=((0, 99),))
        ),
        msgspec.structs.replace(
            kernel, active=msgspec.structs.replace(kernel.active, intervals=())
        ),
    )
    for each in strange:
        assert judge(with_kernel(history, index, each)).status is Status.DIFFERS


def test_a_file_with_what_the_kernel_held_of_something_else_is_refused(tmp_path: Path) -> None:
    history = looked_at(ideal_history(scenario_named("move-up")))
    index, kernel = region_events(history)[-1]
    other = next(n for n, each in enumerate(history.events) if each.kernel is None)
    wrong = {
        "$.kernel: of as_id 1, and the slot's is 0": with_kernel(
            history, index, msgspec.structs.replace(kernel, as_id=1)
        ),
        "$.kernel: only a region operation has it": with_kernel(history, other, kernel),
    }
    for told, each in wrong.items():
        file = tmp_path / "wrong.jsonl"
        file.write_bytes(b"".join(history_lines(each)))
        result = CliRunner().invoke(main, ["judge", str(file)])
        assert result.exit_code == 2
        assert told in result.output
