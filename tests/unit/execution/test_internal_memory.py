"""The memory of internal slots: found as what is new, taken away, and not lost sight of.

Shared memory of the test's own stands for it: to the process, both look the same.
"""

from pathlib import Path

import msgspec
import pytest

from kvm_abi import mman
from kvm_abi.uapi import MapFlag, Protection
from tests.ideal import ideal_history
from vmm.catalogue import catalogue
from vmm.execution.leftovers import InternalMemory, Leftovers
from vmm.kvm.memory import HostMapping
from vmm.model.allowed import Allowed
from vmm.model.model import Model
from vmm.repro.emit import program_of
from vmm.scenario.history import Closed, Event, Unmapped
from vmm.scenario.operations import (
    AnyOperation,
    CloseVm,
    CreateIrqchip,
    CreateVcpu,
    NewVm,
    SetTssAddr,
    Touch,
    UnmapInternalSlots,
)
from vmm.verdict.ideal import EVERYTHING
from vmm.verdict.judge import Status, judge

PAGE = 4096
BOTH = Protection.READ | Protection.WRITE
SHARED = MapFlag.SHARED | MapFlag.ANONYMOUS
TSS = SetTssAddr(0xFFF00000)


@pytest.fixture
def kernel_made() -> int:
    """The address of three pages as the kernel maps them, made when asked for."""
    return mman.map_memory(0, 3 * PAGE, BOTH, SHARED)


def protection_at(address: int) -> str:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return next((line.split()[1] for line in lines if line.startswith(f"{address:x}-")), "")


def test_what_is_new_loses_its_memory_and_keeps_its_place() -> None:
    internal = InternalMemory()
    address = mman.map_memory(0, 3 * PAGE, BOTH, SHARED)
    try:
        assert internal.unmap() == 1
        assert protection_at(address) == "---s"
        assert internal.unmap() == 0
    finally:
        mman.unmap_memory(address, 3 * PAGE)


def test_what_was_there_before_stays_even_in_pieces(kernel_made: int) -> None:
    internal = InternalMemory()
    mman.protect_memory(kernel_made + PAGE, PAGE, Protection.READ)
    try:
        assert internal.unmap() == 0
        assert protection_at(kernel_made) == "rw-s"
    finally:
        mman.unmap_memory(kernel_made, 3 * PAGE)


def test_other_memory_that_is_new_stays() -> None:
    internal = InternalMemory()
    with HostMapping.anonymous(PAGE) as mapping:
        assert internal.unmap() == 0
        mapping.write(0, b"here")


def test_what_the_kernel_leaves_of_it_is_a_leftover() -> None:
    internal, leftovers = InternalMemory(), Leftovers()
    address = mman.map_memory(0, 3 * PAGE, BOTH, SHARED)
    internal.unmap()
    (left,) = leftovers.found()
    mman.unmap_memory(address, 3 * PAGE)
    assert left.startswith(f"mapping {address:x}-")
    assert leftovers.found() == ()


def test_a_vm_that_a_guest_memfd_holds_keeps_its_internal_slots() -> None:
    leftovers = Leftovers()
    address = mman.map_memory(0, 3 * PAGE, BOTH, SHARED)
    assert leftovers.found() != ()
    assert leftovers.found(held=True) == ()
    mman.unmap_memory(address, 3 * PAGE)


def allowed(*operations: AnyOperation) -> tuple[Allowed, ...]:
    model = Model((), EVERYTHING)
    for operation in operations:
        choices = model.allowed(operation)
        if choices:
            choices[0].adopt()
    return choices


@pytest.mark.parametrize(
    ("before", "number"),
    [
        ((), 0),
        ((TSS,), 1),
        ((TSS, CreateIrqchip(), CreateVcpu()), 3),
        ((TSS, UnmapInternalSlots()), 0),
        ((TSS, UnmapInternalSlots(), CreateVcpu()), 1),
        ((TSS, UnmapInternalSlots(), NewVm(), TSS), 1),
    ],
)
def test_each_internal_slot_has_one_mapping(before: tuple[AnyOperation, ...], number: int) -> None:
    (choice,) = allowed(*before, UnmapInternalSlots())
    assert choice.outcome == Unmapped(number)
    assert choice.rule.name == ("internal-memory" if number else "harness")


def test_what_a_guest_does_without_that_memory_is_not_known() -> None:
    assert allowed(TSS, UnmapInternalSlots(), Touch(0x1000)) == ()
    assert allowed(UnmapInternalSlots(), Touch(0x1000)) != ()


def test_a_kernel_that_leaves_it_behind_differs() -> None:
    scenario = next(s for s in catalogue(EVERYTHING) if s.name == "tss-without-its-memory")
    history = ideal_history(scenario, EVERYTHING)
    assert judge(history).status is Status.PASSED
    *before, last, look = history.events
    assert isinstance(last.operation, CloseVm)
    bad = Event(last.origin, last.operation, Closed(("mapping 7f00-7f03 /dev/zero (deleted)",)))
    verdict = judge(msgspec.structs.replace(history, events=(*before, bad, look)))
    assert verdict.difference is not None
    assert verdict.difference.expected[0].rule == "vm-gone"


def test_the_program_in_c_counts_them_too() -> None:
    scenario = next(s for s in catalogue(EVERYTHING) if s.name == "tss-without-its-memory")
    text = program_of(scenario, EVERYTHING)
    assert "\texpect(unmap_internal_slots() - 1, 0);" in text
    assert "\texpect(unmap_internal_slots() - 0, 0);" in text
