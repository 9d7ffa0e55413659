"""Clocks that KVM writes: where they may and must change memory, and what is logged."""

import pytest

from tests.modelled import after, look, slot
from vmm.scenario.features import Features
from vmm.scenario.history import (
    DirtyPages,
    Done,
    HostChange,
    Inspected,
    MsrsSet,
    Refused,
    RingPages,
    Touched,
)
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    SMM,
    AnyOperation,
    ChangeHostMemory,
    Clock,
    CloseVm,
    EnableCap,
    Execute,
    GetDirtyLog,
    HarvestDirtyRing,
    HostWrite,
    Inspect,
    KvmclockCtrl,
    Mapping,
    Place,
    SetClockMsr,
    SetUserMemoryRegion,
    Sweep,
    Touch,
)

GPA = 0x10_1400
OFFSET = GPA % PAGE_SIZE_BYTES
IDLE = Touch(0x30_0000)
RING = Features(dirty_ring_bytes=4096)
VERSION_AT: dict[Clock, int] = {"system_time": 0, "steal_time": 8, "wall_clock": 0}


def due(looked: Inspected) -> list[tuple[str, int]]:
    return [(each.mapping, each.offset) for each in looked.due]


def seen(offset: int, data: bytes, mapping: str = "a") -> Inspected:
    return Inspected((HostChange(mapping, offset, data),))


@pytest.mark.parametrize("clock", ["system_time", "steal_time"])
def test_a_clock_is_written_when_its_vcpu_runs_and_not_before(clock: Clock) -> None:
    started = (slot(), SetClockMsr(clock, GPA))
    assert due(look(*started)) == []
    assert bool(look(*started).room) is (clock == "system_time"), "it may be told of as unstable"
    looked = look(*started, IDLE)
    assert due(looked) == [("a", 0x1000 + OFFSET)]
    version = 0x1000 + OFFSET + VERSION_AT[clock]
    assert looked.admits(seen(version, b"\2"))
    assert looked.admits(seen(version - VERSION_AT[clock], bytes(8) + b"\4\2"))
    assert not looked.admits(Inspected()), "it was not written"
    assert not looked.admits(seen(version, b"\3")), "an odd version"
    assert not looked.admits(seen(version + 4, b"\2")), "no new version"
    assert not looked.admits(Inspected((*seen(0, b"x").changes, *seen(version, b"\2").changes)))
    assert due(look(*started, Inspect(), Touch(0x30_0000, vcpu=1))) == []


def test_of_the_steal_time_three_fields_are_written() -> None:
    looked = look(slot(), SetClockMsr("steal_time", GPA), IDLE)
    start = 0x1000 + OFFSET
    assert looked.room == (("a", start, 12), ("a", start + 16, 1))
    assert looked.admits(seen(start + 8, b"\2\0\0\0"))
    assert not looked.admits(seen(start + 8, b"\2\0\0\0x"))


def test_unknown_bytes_that_the_host_drops_may_have_been_zeros_before() -> None:
    drop = ChangeHostMemory(Place("a", PAGE_SIZE_BYTES))
    looked = look(slot(), SetClockMsr("steal_time", GPA), IDLE, Inspect(), drop)
    start = 0x1000 + OFFSET
    assert looked.room == (("a", start, 12), ("a", start + 16, 1))
    changed = {each.offset + index for each in looked.changes for index in range(len(each.data))}
    assert changed
    assert not changed & {*range(start, start + 12), start + 16}


def test_the_system_time_is_due_when_it_was_asked_for_and_tells_of_a_pause() -> None:
    started = (slot(), SetClockMsr("system_time", GPA), IDLE, Inspect())
    again = look(*started, IDLE)
    assert due(again) == []
    assert again.admits(Inspected())
    assert again.admits(seen(0x1000 + OFFSET, b"\2"))
    paused = look(*started, KvmclockCtrl(), IDLE)
    start = 0x1000 + OFFSET
    assert [each.stopped for each in paused.due] == [True]
    assert paused.admits(seen(start, bytes((2, *bytes(28), 3))))
    assert not paused.admits(seen(start, bytes((2, *bytes(28), 1))))


def test_it_goes_where_the_slot_is_now() -> None:
    clock = SetClockMsr("steal_time", GPA)
    moved = (slot(), clock, IDLE, Inspect(), slot(gpa=0xFF000), IDLE)
    assert due(look(*moved)) == [("a", 0x2000 + OFFSET)]
    gone = (slot(), clock, IDLE, Inspect(), SetUserMemoryRegion(1), IDLE)
    assert look(*gone) == Inspected()
    assert due(look(*gone, slot("b"), IDLE)) == [("b", 0x1000 + OFFSET)]
    inside = Touch(0x30_0000, as_id=SMM)
    spaces = Features(smm=True, address_spaces=2)
    model = after((slot(), slot("b", number=SMM << 16 | 1), clock, inside), spaces)
    (choice,) = model.allowed(Inspect())
    assert isinstance(choice.outcome, Inspected)
    assert due(choice.outcome) == [("a", 0x1000 + OFFSET)]


@pytest.mark.parametrize(
    "obstacle",
    [
        (slot(flags=READONLY),),
        (slot(), ChangeHostMemory(Place("a", 0x1000), 1, "unmap")),
        (slot(), ChangeHostMemory(Place("a", 0x1000), 1, "write_protect")),
        (slot(gpa=0x200000),),
    ],
    ids=("readonly", "unmapped", "protected", "hole"),
)
def test_what_cannot_be_written_is_not(obstacle: tuple[AnyOperation, ...]) -> None:
    assert look(*obstacle, SetClockMsr("steal_time", GPA), IDLE) == Inspected()


def test_what_else_changes_the_same_bytes_leaves_nothing_due() -> None:
    started = (slot(), SetClockMsr("steal_time", GPA), IDLE, Inspect())
    write = HostWrite(Place("a", 0x1000 + OFFSET + 8), 7)
    assert due(look(*started, write, IDLE)) == []
    beside = HostWrite(Place("a", 0x1000 + OFFSET + 12), 7)
    looked = look(*started, beside, IDLE)
    assert due(looked) == [("a", 0x1000 + OFFSET)]
    assert looked.changes == (HostChange("a", 0x1000 + OFFSET + 12, b"\7\0\0\0"),)
    dropped = look(*started, ChangeHostMemory(Place("a", 0x1000), 1, "drop"), IDLE)
    assert due(dropped) == []
    assert dropped.room


def test_of_two_clocks_in_one_place_nothing_is_due() -> None:
    both = (slot(), SetClockMsr("system_time", GPA), SetClockMsr("wall_clock", GPA))
    assert due(look(*both)) == [("a", 0x1000 + OFFSET)]
    assert due(look(*both, IDLE)) == []
    assert due(look(*both, IDLE, Inspect(), IDLE)) == []
    again = look(*both, IDLE, Inspect(), SetClockMsr("wall_clock", GPA), Touch(0x30_0000))
    assert due(again) == [], "the system time may have come after it"


def test_what_a_guest_reads_of_a_clock_nobody_knows() -> None:
    model = after((slot(), SetClockMsr("steal_time", GPA)))
    (read,) = model.allowed(Touch(GPA - 2))
    assert isinstance(read.outcome, Touched)
    assert read.outcome.unknown == 0xFFFF_0000
    assert model.allowed(Sweep(GPA - 0x40, 32)) == ()
    assert model.allowed(Execute(GPA - OFFSET)) == ()
    (write,) = model.allowed(Touch(GPA, "write", value=1))
    assert write.outcome == Touched(0)


def test_it_is_seen_wherever_the_memory_is_shown() -> None:
    mappings = (Mapping("file", 4, "memfd"), Mapping("again", 4, "memfd", of="file"))
    clock = SetClockMsr("wall_clock", GPA)
    looked = look(slot("file"), clock, mappings=mappings)
    start = 0x1000 + OFFSET
    assert looked.room == (("file", start, 12), ("again", start, 12))


def test_it_is_logged_where_it_goes() -> None:
    logged = slot(flags=LOG_DIRTY_PAGES)
    model = after((logged, SetClockMsr("steal_time", GPA), IDLE))
    (log,) = model.allowed(GetDirtyLog(1))
    assert log.outcome == DirtyPages((1,), (), 1)
    log.adopt()
    asked = after((logged, SetClockMsr("system_time", GPA), IDLE, GetDirtyLog(1), IDLE))
    (log,) = asked.allowed(GetDirtyLog(1))
    assert log.outcome == DirtyPages((), (1,), 1), "it may be brought up to date at any time"
    ring = (EnableCap("DIRTY_LOG_RING", 4096), logged, SetClockMsr("steal_time", GPA), IDLE)
    (harvest,) = after(ring, RING).allowed(HarvestDirtyRing())
    assert harvest.outcome == RingPages(((1, 1),), may_be_full=True)


def test_a_wall_clock_across_pages_goes_on_in_the_next_one() -> None:
    across = SetClockMsr("wall_clock", 0x10_1FF8)
    one = slot(flags=LOG_DIRTY_PAGES)
    looked = look(one, across)
    assert (looked.room, due(looked)) == ((("a", 0x1FF8, 8), ("a", 0x2000, 4)), [("a", 0x1FF8)])
    (log,) = after((one, across)).allowed(GetDirtyLog(1))
    assert log.outcome == DirtyPages((1, 2), (), 1)
    two = SetUserMemoryRegion(1, 0x10_0000, 0x2000, Place("a"), LOG_DIRTY_PAGES)
    elsewhere = SetUserMemoryRegion(2, 0x10_2000, 0x2000, Place("b", 0x1000))
    for more in ((), (elsewhere,)):
        looked = look(two, *more, across)
        assert not due(looked)
        assert ("a", 0x1FF8, 8) in looked.room
        assert (("b", 0x1000, 4) in looked.room) is bool(more)


def test_a_system_time_that_reaches_into_a_hole_is_written_nowhere() -> None:
    beyond = SetClockMsr("system_time", 0x10_3FF0)
    looked = look(slot(), beyond, KvmclockCtrl(), IDLE)
    assert (looked.room, due(looked)) == ((), [])
    (refused,) = after((slot(), beyond)).allowed(KvmclockCtrl())
    assert refused.outcome == Refused(22)
    more = SetUserMemoryRegion(2, 0x10_4000, 0x1000, Place("b"))
    assert after((slot(), more)).allowed(beyond) == ()
    assert after((slot(), SetClockMsr("system_time", GPA))).allowed(beyond) == ()


def test_msrs_and_pauses_that_are_refused() -> None:
    model = after((slot(),))
    set_ = [each.outcome for each in model.allowed(SetClockMsr("steal_time", GPA + 4))]
    assert set_ == [MsrsSet(0)]
    hole = [each.outcome for each in model.allowed(SetClockMsr("steal_time", 0x200000))]
    assert hole == [MsrsSet(1), MsrsSet(0)]
    assert [each.outcome for each in model.allowed(KvmclockCtrl())] == [Refused(22)]
    model = after((slot(), SetClockMsr("system_time", GPA)))
    assert [each.outcome for each in model.allowed(KvmclockCtrl())] == [Done()]
    model = after((SetClockMsr("system_time", GPA), slot()))
    assert [each.outcome for each in model.allowed(KvmclockCtrl())] == [Done(), Refused(22)]


def test_when_the_vm_is_closed_a_vcpu_may_be_marked_as_interrupted_once_more() -> None:
    started = (slot(), SetClockMsr("steal_time", GPA), IDLE, Inspect())
    closed = look(*started, CloseVm())
    assert closed.admits(seen(0x1000 + OFFSET + 16, b"\1"))
    assert not closed.admits(seen(0x1000 + OFFSET + 17, b"\1"))
    assert look(*started, CloseVm(), Inspect()) == Inspected()
