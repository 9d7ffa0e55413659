"""A write of 16 bytes where devices take a part of it."""

import errno

import pytest

from tests.modelled import only
from vmm.model.devices import RING_ENTRIES
from vmm.model.model import Model
from vmm.scenario.features import Features
from vmm.scenario.history import Done, Event, Mmio, MmioKept, Raced, Ran, Refused
from vmm.scenario.instructions import DATA_PORT
from vmm.scenario.operations import (
    AnyOperation,
    CoalesceMmio,
    CollectMmio,
    GuestThread,
    Instruction,
    IoEventFd,
    Mapping,
    Place,
    Race,
    SetCoalescedRing,
    SetUserMemoryRegion,
    Touch,
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
    ran, kept = executed(STORE, *operations)
    return ran.mmio, kept


def executed(instruction: Instruction, *operations: AnyOperation) -> tuple[Ran, MmioKept]:
    """Return what an instruction does after some operations, and what was kept."""
    made = Model((Mapping("a", 1),), FEATURES)
    for operation in operations:
        only(made, operation)
    usual = made.allowed(instruction)[0]
    assert isinstance(usual.outcome, Ran)
    usual.adopt()
    kept = only(made, CollectMmio()).outcome
    assert isinstance(kept, MmioKept)
    return usual.outcome, kept


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


OUTS = Instruction("outs", 0x1000, 2)
DATA = CoalesceMmio(DATA_PORT, 4, pio=True)


def out(*operations: AnyOperation, instruction: Instruction = OUTS) -> tuple[bytes, MmioKept]:
    """Return what is sent to a port after some operations, and what was kept."""
    slot = SetUserMemoryRegion(1, 0x1000, 0x1000, Place("a"))
    ran, kept = executed(instruction, slot, *operations)
    return ran.sent, kept


def test_what_goes_to_a_coalesced_port_is_kept_as_such() -> None:
    word = out()[0]
    write = Mmio(DATA_PORT, True, word)
    assert len(word) == 2
    assert out(DATA) == (b"", MmioKept((write,), ports=(0,)))
    assert out(DATA, DATA, OUTS) == (b"", MmioKept((write, write), ports=(0, 1)))
    mmio = Touch(0x100100, "write", 4, value=1)
    kept = Mmio(0x100100, True, bytes((1, 0, 0, 0)))
    assert out(DATA, CoalesceMmio(0x100100, 8), mmio)[1] == MmioKept((kept, write), ports=(1,))


@pytest.mark.parametrize(
    "devices",
    [
        (CoalesceMmio(DATA_PORT, 1, pio=True),),
        (CoalesceMmio(DATA_PORT, 4),),
        (DATA, CoalesceMmio(DATA_PORT, 4, on=False, pio=True)),
        (DATA, CoalesceMmio(DATA_PORT + 1, 1, on=False, pio=True)),
    ],
)
def test_what_goes_to_another_port_exits(devices: tuple[CoalesceMmio, ...]) -> None:
    assert out(*devices) == (out()[0], MmioKept())


def test_where_ranges_of_ports_overlap_nothing_is_known() -> None:
    made = Model((Mapping("a", 1),), FEATURES)
    for each in (
        *(SetUserMemoryRegion(1, 0x1000, 0x1000, Place("a")), DATA),
        CoalesceMmio(DATA_PORT, 2, pio=True),
    ):
        only(made, each)
    assert made.allowed(OUTS) == ()


def test_a_port_exits_once_the_ring_is_full() -> None:
    many = Instruction("rep-outs", 0x1000, 1, count=RING_ENTRIES + 3)
    sent, kept = out(DATA, instruction=many)
    assert (len(sent), len(kept.ports)) == (3, RING_ENTRIES)


@pytest.mark.parametrize(
    ("index", "kept"), [(0, True), (169, True), (170, False), (0xFFFF_FFFF, False)]
)
def test_the_kernel_goes_on_where_the_host_says_unless_that_is_beyond_the_ring(
    index: int, kept: bool
) -> None:
    ring = (CoalesceMmio(0x100100, 16), CoalesceMmio(DATA_PORT, 4, pio=True))
    lost = (Touch(0x100100, "write", 4, 7), SetCoalescedRing(index))
    stored = ((), MmioKept((FIRST, SECOND)))
    exits = ((Mmio(0x100100, True, LOW + HIGH),), MmioKept())
    assert after(*ring, *lost) == (stored if kept else exits)
    assert after(*ring, SetCoalescedRing(0xFFFF_FFFF), SetCoalescedRing(3)) == stored


@pytest.mark.parametrize("device", [CoalesceMmio(0x100100, 16), IoEventFd("bell", 0x100104, 4)])
@pytest.mark.parametrize(
    ("touch", "is_unknown"),
    [
        (Touch(0x100102, "write"), True),
        (Touch(0x100102), False),
        (Touch(0x100200, "write"), False),
    ],
)
def test_what_devices_take_of_a_race_is_not_known(
    device: CoalesceMmio | IoEventFd, touch: Touch, is_unknown: bool
) -> None:
    made = Model((Mapping("a", 1),), FEATURES)
    only(made, device)
    race = Race((), (GuestThread((touch,), 1),))
    assert made.follow(Event(0, race, Raced((), ((),), ((),)))).unknown is is_unknown
