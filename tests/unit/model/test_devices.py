"""A write of 16 bytes where devices take a part of it."""

import errno

import pytest

from tests.modelled import only
from vmm.model.model import Model
from vmm.scenario.features import Features
from vmm.scenario.history import Done, Mmio, MmioKept, Ran, Refused
from vmm.scenario.operations import (
    AnyOperation,
    CoalesceMmio,
    CollectMmio,
    Instruction,
    IoEventFd,
    Mapping,
)

LOW, HIGH = bytes(range(1, 9)), bytes(range(9, 17))
STORE = Instruction(
    "store-vector",
    0x100100,
    16,
    int.from_bytes(LOW, "little"),
    value_high=int.from_bytes(HIGH, "little"),
    mode="long",
)
FIRST, SECOND = Mmio(0x100100, True, LOW), Mmio(0x100108, True, HIGH)


FEATURES = Features(coalesced_mmio=True, coalesced_pio=True, ioeventfd=True)


def after(*operations: AnyOperation) -> tuple[tuple[Mmio, ...], MmioKept]:
    """Return the exits of the store after some operations, and what was kept."""
    made = Model((Mapping("a", 1),), FEATURES)
    for operation in operations:
        only(made, operation)
    usual = made.allowed(STORE)[0]
    assert isinstance(usual.outcome, Ran)
    usual.adopt()
    kept = only(made, CollectMmio()).outcome
    assert isinstance(kept, MmioKept)
    return usual.outcome.mmio, kept


def test_each_half_is_offered_by_itself() -> None:
    assert after(CoalesceMmio(0x100100, 16)) == ((), MmioKept((FIRST, SECOND)))


def test_what_follows_the_half_that_is_kept_exits() -> None:
    assert after(CoalesceMmio(0x100100, 8)) == ((SECOND,), MmioKept((FIRST,)))
    event = IoEventFd("bell", 0x100100, 8, int.from_bytes(LOW, "little"))
    assert after(event) == ((SECOND,), MmioKept((), (("bell", 1),)))


@pytest.mark.parametrize("gpa", [0x100108, 0x100104, 0xFF000])
def test_what_follows_a_half_that_exits_is_not_kept(gpa: int) -> None:
    whole = Mmio(0x100100, True, LOW + HIGH)
    assert after(CoalesceMmio(gpa, 8)) == ((whole,), MmioKept(()))


def test_a_range_of_ports_begins_and_ends_alone() -> None:
    range_, ports = CoalesceMmio(0x100100, 16), CoalesceMmio(0x100100, 16, pio=True)
    no_ports = CoalesceMmio(0x100100, 16, on=False, pio=True)
    exits, kept = (
        ((Mmio(0x100100, True, LOW + HIGH),), MmioKept(())),
        ((), MmioKept((FIRST, SECOND))),
    )
    assert after(ports) == exits
    assert after(range_, ports, no_ports) == after(range_, no_ports) == kept
    assert after(range_, ports, CoalesceMmio(0x100100, 16, on=False)) == exits


def test_what_an_older_kernel_makes_of_a_range_of_ports_is_not_known() -> None:
    made = Model((Mapping("a", 1),), Features(coalesced_mmio=True))
    assert made.allowed(CoalesceMmio(0x100100, 16, pio=True)) == ()


@pytest.mark.parametrize("on", [True, False])
def test_a_coalesced_range_is_of_gpas_or_of_ports(on: bool) -> None:
    made = Model((Mapping("a", 1),), FEATURES)
    allowed = only(made, CoalesceMmio(0x100100, 16, on, pio=2))
    assert allowed.outcome == Refused(errno.EINVAL)
    made = Model((Mapping("a", 1),), FEATURES)
    allowed = only(made, CoalesceMmio(0x100100, 16, on, pio=1))
    assert allowed.outcome == Done()


def test_a_vm_has_room_for_a_thousand_ranges_and_any_number_of_eventfds() -> None:
    made = Model((Mapping("a", 1),), FEATURES)
    for number in range(1001):
        only(made, IoEventFd("bell", 0x200000 + 8 * number))
    for number in range(1000):
        assert only(made, CoalesceMmio(0x100000 + 8 * number, 4)).outcome == Done()
    assert only(made, CoalesceMmio(0x180000, 4)).outcome == Refused(errno.ENOSPC)
    only(made, CoalesceMmio(0x100000, 4, on=False))
    assert only(made, CoalesceMmio(0x180000, 4)).outcome == Done()


def test_an_instruction_that_writes_more_than_once_is_not_known() -> None:
    made = Model((Mapping("a", 1),), Features(coalesced_mmio=True, ioeventfd=True))
    only(made, CoalesceMmio(0x100100, 16))
    assert made.allowed(Instruction("stos", 0x100100, 4, mode="long")) == ()
