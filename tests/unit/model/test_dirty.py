"""Dirty pages, asked of the model directly: what logs and rings hold, and what they may hold."""

import errno
from typing import Literal

import msgspec
import pytest

from tests.ideal import FEATURES
from tests.modelled import outcome
from vmm.model.model import Model
from vmm.scenario.features import Features
from vmm.scenario.history import (
    DirtyPages,
    Done,
    Refused,
    RingPages,
    RingsReset,
    Stopped,
)
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    AnyOperation,
    CapName,
    ClearDirtyLog,
    EnableCap,
    GetDirtyLog,
    HarvestDirtyRing,
    Inspect,
    Mapping,
    Place,
    ResetDirtyRings,
    SetUserMemoryRegion,
    Touch,
)

READS_MAP_WRITABLE = msgspec.structs.replace(FEATURES, reads_make_dirty=True)
MANUAL = EnableCap("MANUAL_DIRTY_LOG_PROTECT2", 1)
RING = EnableCap("DIRTY_LOG_RING", 4096)
PAGES = 130
WORDS = 3
LOGGED = SetUserMemoryRegion(3, 0x100000, PAGES * 4096, Place("a"), LOG_DIRTY_PAGES)
LOG = GetDirtyLog(3)
HARVEST = HarvestDirtyRing()
RESET = ResetDirtyRings()


def write(page: int, vcpu: int = 0) -> Touch:
    return Touch(0x100000 + page * 4096, "write", value=page, vcpu=vcpu)


def read(page: int, vcpu: int = 0) -> Touch:
    return Touch(0x100000 + page * 4096, vcpu=vcpu)


def after(*operations: AnyOperation, features: Features = FEATURES) -> Model:
    """Return a model in which these operations have come to what is allowed first."""
    model = Model((Mapping("a", PAGES),), features)
    for operation in operations:
        model.allowed(operation)[0].adopt()
    return model


def log(pages: tuple[int, ...]) -> DirtyPages:
    """Return what the log of the slot says: all of its bits, and none beyond them."""
    return DirtyPages(pages, words=WORDS)


def test_without_manual_protection_reading_clears() -> None:
    model = after(LOGGED, write(1), write(64))
    assert outcome(model, LOG) == log((1, 64))
    assert outcome(model, LOG) == log(())


def test_log_is_written_as_far_as_the_slot_goes_also_where_nothing_is_dirty() -> None:
    (choice,) = after(LOGGED).allowed(LOG)
    assert choice.outcome.admits(DirtyPages((), words=WORDS))
    assert choice.outcome.admits(DirtyPages(()))  # of a history that does not say
    assert not choice.outcome.admits(DirtyPages((), words=0))
    assert not choice.outcome.admits(DirtyPages((), words=WORDS + 1))


def test_with_manual_protection_clearing_clears_what_it_names() -> None:
    model = after(MANUAL, LOGGED, write(1), write(2), write(64), write(129))
    assert outcome(model, LOG) == log((1, 2, 64, 129))
    assert outcome(model, ClearDirtyLog(3, 0, 64, (2, 3))) == Done()
    assert outcome(model, ClearDirtyLog(3, 128, 2)) == Done()
    assert outcome(model, LOG) == log((1, 64))


@pytest.mark.parametrize(
    ("first", "count", "number", "rule"),
    [
        (0, 0, 0, "clear"),
        (0, 64, 0, "clear"),
        (0, 130, 0, "clear"),
        (64, 66, 0, "clear"),
        (128, 2, 0, "clear"),
        (0, 63, errno.EINVAL, "clear-range"),
        (0, 129, errno.EINVAL, "clear-range"),
        (0, 131, errno.EINVAL, "clear-range"),
        (128, 1, errno.EINVAL, "clear-range"),
        (128, 64, errno.EINVAL, "clear-range"),
        (192, 0, errno.EINVAL, "clear-range"),
        (1, 64, errno.EINVAL, "clear-first-page"),
        (63, 67, errno.EINVAL, "clear-first-page"),
    ],
)
def test_what_may_be_cleared(first: int, count: int, number: int, rule: str) -> None:
    (choice,) = after(LOGGED).allowed(ClearDirtyLog(3, first, count))
    assert choice.rule.name == rule
    assert choice.outcome == (Refused(number) if number else Done())


def test_clear_is_unknown_to_an_old_kernel() -> None:
    model = after(LOGGED, features=Features())
    assert outcome(model, ClearDirtyLog(3, 0, 64)) == Refused(errno.ENOTTY)
    assert outcome(model, MANUAL) == Refused(errno.EINVAL)
    assert outcome(model, RING) == Refused(errno.EINVAL)


def test_initially_set_is_for_logs_that_begin() -> None:
    every_page = tuple(range(PAGES))
    both = EnableCap("MANUAL_DIRTY_LOG_PROTECT2", 3)
    assert outcome(after(both, LOGGED), LOG) == log(every_page)
    assert outcome(after(LOGGED, both), LOG) == log(())
    moved = msgspec.structs.replace(LOGGED, guest_phys_addr=0x300000)
    cleared = ClearDirtyLog(3, 0, PAGES)
    assert outcome(after(both, LOGGED, cleared, moved), LOG) == log(())


@pytest.mark.parametrize("options", [2, 4, 5, 1 << 32 | 1])
def test_unknown_options_are_refused(options: int) -> None:
    operation = EnableCap("MANUAL_DIRTY_LOG_PROTECT2", options)
    assert outcome(after(), operation) == Refused(errno.EINVAL)


@pytest.mark.parametrize("flags", [1, 1 << 31])
def test_a_capability_has_no_flags(flags: int) -> None:
    others = (
        EnableCap("MANUAL_DIRTY_LOG_PROTECT2", 1, flags),
        EnableCap("DISABLE_QUIRKS2", 0, flags),
    )
    assert {outcome(after(), each) for each in others} == {Refused(errno.EINVAL)}
    outcomes = [each.outcome for each in after().allowed(EnableCap("DIRTY_LOG_RING", 4096, flags))]
    assert outcomes == [Refused(errno.EINVAL), Done()]  # Its handler ignores them.


def test_page_that_was_read_may_be_logged_where_reads_map_it_writable() -> None:
    model = after(LOGGED, read(1), write(2), features=READS_MAP_WRITABLE)
    allowed = outcome(model, LOG)
    assert allowed == DirtyPages((2,), (1,), WORDS)
    assert allowed.admits(DirtyPages((1, 2)))
    assert not allowed.admits(DirtyPages((1,)))
    assert not allowed.admits(DirtyPages((2, 3)))
    assert outcome(model, LOG) == log(())


@pytest.mark.parametrize(
    ("size_bytes", "number"),
    [
        (0, errno.EINVAL),
        (2048, errno.EINVAL),
        (12288, errno.EINVAL),
        (1 << 21, errno.E2BIG),
        (1 << 32, errno.EINVAL),
        (1 << 32 | 4096, 0),
        (1 << 20, 0),
    ],
)
@pytest.mark.parametrize("cap", ["DIRTY_LOG_RING", "DIRTY_LOG_RING_ACQ_REL"])
def test_sizes_of_rings(cap: CapName, size_bytes: int, number: int) -> None:
    expected = Refused(number) if number else Done()
    assert outcome(after(), EnableCap(cap, size_bytes)) == expected


def test_ring_comes_before_vcpus_and_once() -> None:
    assert outcome(after(read(0)), RING) == Refused(errno.EINVAL)
    assert outcome(after(HARVEST), RING) == Refused(errno.EINVAL)
    assert outcome(after(RING), RING) == Refused(errno.EINVAL)


def test_ring_takes_the_place_of_the_log() -> None:
    model = after(RING, LOGGED)
    assert outcome(model, LOG) == Refused(errno.ENXIO)
    assert outcome(model, ClearDirtyLog(9, 1, 1)) == Refused(errno.ENXIO)
    assert outcome(after(LOGGED), RESET) == Refused(errno.EINVAL)


def test_kernel_without_rings_may_not_know_of_resetting_them() -> None:
    features = msgspec.structs.replace(FEATURES, dirty_ring_bytes=0)
    allowed = after(LOGGED, features=features).allowed(RESET)
    assert [each.outcome for each in allowed] == [Refused(errno.EINVAL), Refused(errno.ENOTTY)]
    assert {each.rule.name for each in allowed} == {"ring-absent"}


def test_ring_holds_what_was_written_until_it_is_harvested() -> None:
    model = after(RING, LOGGED, write(2), write(1), read(5))
    assert outcome(model, HARVEST) == RingPages(((3, 1), (3, 2)))
    assert outcome(model, HARVEST) == RingPages()


def test_page_need_not_be_named_again_before_the_reset() -> None:
    model = after(RING, LOGGED, write(1), HARVEST, write(1), write(2))
    assert outcome(model, HARVEST) == RingPages(((3, 2),), perhaps=((3, 1),))
    model = after(RING, LOGGED, write(1), HARVEST, RESET, write(1))
    assert outcome(model, HARVEST) == RingPages(((3, 1),))


def test_vcpu_may_stop_at_a_ring_that_is_not_reset() -> None:
    pages = [write(page) for page in range(64)]
    filled: list[AnyOperation] = [*pages, HARVEST, RESET, *pages, *pages, *pages]
    model = after(RING, LOGGED, *filled, HARVEST)
    assert outcome(after(RING, LOGGED, *pages, HARVEST), HARVEST) == RingPages()
    assert outcome(model, HARVEST) == RingPages(may_be_full=True)
    model = after(RING, LOGGED, *filled, HARVEST, RESET)
    assert outcome(model, HARVEST) == RingPages(may_be_full=True)
    model = after(RING, LOGGED, *filled, HARVEST, RESET, HARVEST)
    assert outcome(model, HARVEST) == RingPages()


def test_ring_need_not_notice_what_initially_set_left_unprotected() -> None:
    both = EnableCap("MANUAL_DIRTY_LOG_PROTECT2", 3)
    plain = msgspec.structs.replace(LOGGED, flags=0)
    moved = msgspec.structs.replace(LOGGED, guest_phys_addr=0x80_0000)
    assert outcome(after(RING, both, LOGGED, write(1)), HARVEST) == RingPages(((3, 1),))
    unnoticed = RingPages(perhaps=((3, 1),))
    assert outcome(after(RING, both, plain, LOGGED, write(1)), HARVEST) == unnoticed
    again = (write(1), HARVEST, RESET, write(1))
    assert outcome(after(RING, both, plain, LOGGED, *again), HARVEST) == unnoticed
    model = after(RING, plain, LOGGED, write(1))
    assert outcome(model, HARVEST) == RingPages(((3, 1),))
    model = after(RING, both, plain, LOGGED, moved)
    outcome(model, msgspec.structs.replace(write(1), gpa=0x80_1000))
    assert outcome(model, HARVEST) == RingPages(((3, 1),))


def test_reset_leaves_what_was_not_harvested() -> None:
    model = after(RING, LOGGED, write(1), RESET, write(1, vcpu=1))
    assert outcome(model, HarvestDirtyRing(1)) == RingPages(perhaps=((3, 1),))
    assert outcome(model, HARVEST) == RingPages(((3, 1),))


def test_slot_made_anew_is_tracked_from_its_first_write() -> None:
    delete = SetUserMemoryRegion(3)
    model = after(RING, LOGGED, write(1), HARVEST, delete, LOGGED, write(1))
    assert outcome(model, HARVEST) == RingPages(((3, 1),))


def test_page_that_was_read_may_be_in_the_ring() -> None:
    model = after(RING, LOGGED, read(1), read(2), write(2), features=READS_MAP_WRITABLE)
    assert outcome(model, HARVEST) == RingPages(((3, 2),), perhaps=((3, 1),))
    # Reported when it was read: the write itself may go unnoticed.
    model = after(RING, LOGGED, read(1), HARVEST, write(1), features=READS_MAP_WRITABLE)
    assert outcome(model, HARVEST) == RingPages(perhaps=((3, 1),))


@pytest.mark.parametrize(
    ("writes", "least", "may_be"), [(191, 0, False), (192, 0, True), (257, 1, True)]
)
def test_ring_is_full_when_it_can_be(writes: int, least: int, may_be: bool) -> None:
    whole = msgspec.structs.replace(LOGGED, memory_size=257 * 4096)
    model = Model((Mapping("a", 257),), FEATURES)
    operations: list[AnyOperation] = [RING, whole, *(write(page) for page in range(writes))]
    for operation in operations:
        model.allowed(operation)[0].adopt()
    expected = outcome(model, HARVEST)
    assert isinstance(expected, RingPages)
    assert (expected.full, expected.may_be_full) == (least, may_be)
    observed = RingPages(expected.pages, full=1)
    assert expected.admits(observed) is may_be
    assert expected.admits(RingPages(expected.pages)) is (least == 0)


@pytest.mark.parametrize(("writes", "rests", "least"), [(192, 1, 1), (191, 1, 0), (192, 0, 0)])
def test_vcpu_stops_when_it_enters_with_the_reserve_left(
    writes: int, rests: int, least: int
) -> None:
    whole = msgspec.structs.replace(LOGGED, memory_size=257 * 4096)
    model = Model((Mapping("a", 257),), FEATURES)
    pages = [write(page) for page in range(writes)]
    rest: list[AnyOperation] = [Inspect()] * rests
    for operation in (RING, whole, *pages, *rest, write(writes)):
        model.allowed(operation)[0].adopt()
    expected = outcome(model, HARVEST)
    assert isinstance(expected, RingPages)
    assert expected.full == least
    for operation in (HARVEST, write(writes)):
        model.allowed(operation)[0].adopt()
    again = outcome(model, HARVEST)
    assert isinstance(again, RingPages)
    assert again.full == 0


def test_processor_log_leaves_less_room_in_the_ring() -> None:
    with_pml = msgspec.structs.replace(FEATURES, dirty_ring_bytes=16384)
    ring = EnableCap("DIRTY_LOG_RING", 16384)
    for writes, may_be in ((447, False), (448, True)):
        touches = (write(page % PAGES) for page in range(writes))
        expected = outcome(after(ring, LOGGED, *touches, features=with_pml), HARVEST)
        assert isinstance(expected, RingPages)
        assert expected.may_be_full is may_be


def test_reset_counts_what_was_harvested() -> None:
    allowed = outcome(after(RING, LOGGED, write(1), HARVEST), RESET)
    assert allowed.admits(RingsReset(3, 3))
    assert not allowed.admits(RingsReset(2, 3))
    assert not allowed.admits(Done())


@pytest.mark.parametrize(
    ("access", "features"), [("read", READS_MAP_WRITABLE), ("write", FEATURES)]
)
def test_what_a_stopped_vcpu_reached_may_be_logged(
    access: Literal["read", "write"], features: Features
) -> None:
    """It stops at a page without host memory, after the one before it was mapped."""
    absent = SetUserMemoryRegion(4, 0x101000, 4096, Place("none"))
    one = SetUserMemoryRegion(3, 0x100000, 4096, Place("a"), LOG_DIRTY_PAGES)
    model = Model((Mapping("a", 1), Mapping("none", 1, "unmapped")), features)
    for operation in (one, absent):
        model.allowed(operation)[0].adopt()
    (_, stopped) = model.allowed(Touch(0x100FFE, access, value=7))
    assert isinstance(stopped.outcome, Stopped)
    stopped.adopt()
    (choice,) = model.allowed(LOG)
    for pages in ((), (0,)):
        assert choice.outcome.admits(DirtyPages(pages, words=1))
    assert not choice.outcome.admits(DirtyPages((1,), words=1))


@pytest.mark.parametrize("other", [read(1), write(1)])
def test_page_that_another_vcpu_reached_may_be_in_its_ring_alone(other: Touch) -> None:
    rings = (RING, LOGGED, read(1, vcpu=1), other, write(1, vcpu=1))
    model = after(*rings, features=READS_MAP_WRITABLE)
    assert outcome(model, HarvestDirtyRing(1)) == RingPages(perhaps=((3, 1),))
