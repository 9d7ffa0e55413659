"""Clocks that KVM writes in a race: in which bytes, into which logs, and what nobody can judge."""

import msgspec
import pytest

from tests.ideal import ideal_history
from vmm.scenario.history import (
    AnyOutcome,
    Call,
    DirtyPages,
    History,
    HostChange,
    Inspected,
    Raced,
)
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    AnyOperation,
    Clock,
    GetDirtyLog,
    GuestThread,
    HostThread,
    Mapping,
    Place,
    Race,
    Scenario,
    SetClockMsr,
    SetUserMemoryRegion,
    Touch,
)
from vmm.verdict.judge import Status, Verdict, judge

GPA = 0x10_1400
OFFSET = PAGE_SIZE_BYTES + 0x400


def slot(gpa: int = 0x100000, flags: int = LOG_DIRTY_PAGES) -> SetUserMemoryRegion:
    return SetUserMemoryRegion(1, gpa, 2 * PAGE_SIZE_BYTES, Place("a"), flags)


def history(
    *calls: SetUserMemoryRegion | GetDirtyLog,
    clock: Clock = "steal_time",
    read_at: int = 0x300000,
) -> History:
    race = Race((HostThread(calls),), (GuestThread((Touch(read_at),)),))
    before: tuple[AnyOperation, ...] = (slot(), SetClockMsr(clock, GPA))
    scenario = Scenario("race", (*before, race), (Mapping("a", 2),), survey="none")
    return ideal_history(scenario)


def verdict(made: History, **fields: object) -> Verdict:
    """Judge a history whose race came to something else."""
    outcome = msgspec.structs.replace(raced(made), **fields)
    events = (
        msgspec.structs.replace(event, outcome=_after(event.outcome, outcome))
        for event in made.events
    )
    return judge(msgspec.structs.replace(made, events=tuple(events)))


def _after(came: AnyOutcome, outcome: Raced) -> AnyOutcome:
    """Return what came in the place of an outcome: nothing changes after the race."""
    match came:
        case Raced():
            return outcome
        case Inspected():
            return Inspected()
        case _:
            return came


def raced(made: History) -> Raced:
    return next(event.outcome for event in made.events if isinstance(event.outcome, Raced))


def named(made: History, *pages: int) -> dict[str, object]:
    """Return the calls of a race whose last log names other pages."""
    calls = raced(made).calls[0]
    last = calls[-1]
    return {"calls": ((*calls[:-1], Call(last.begin, last.end, DirtyPages(pages, words=1))),)}


def changed(offset: int, data: bytes) -> dict[str, object]:
    return {"changes": (HostChange("a", offset, data),)}


@pytest.mark.parametrize("clock", ["steal_time", "system_time"])
def test_kvm_writes_its_own_bytes_and_no_others(clock: Clock) -> None:
    made = history(slot(0xFF000), slot(), clock=clock)
    assert judge(made).status is Status.PASSED
    assert verdict(made, **changed(OFFSET, b"\1\2")).status is Status.PASSED
    moved = OFFSET - PAGE_SIZE_BYTES
    assert verdict(made, **changed(moved, b"\1\2")).status is Status.DIFFERS, "never mapped there"
    assert verdict(made, **changed(OFFSET - 4, b"\1")).status is Status.DIFFERS
    past = OFFSET + {"steal_time": 64, "system_time": 32}[clock]
    assert verdict(made, **changed(past, b"\1")).status is Status.DIFFERS


def test_where_a_clock_was_mapped_meanwhile_it_may_have_been_written() -> None:
    made = history(slot(0x101000), slot())
    assert verdict(made, **changed(0x400, b"\1\2")).status is Status.PASSED


def test_the_steal_time_is_in_the_log_and_the_system_time_may_be() -> None:
    made = history(slot(), slot(), GetDirtyLog(1), GetDirtyLog(1))
    assert verdict(made, **named(made, 1)).status is Status.PASSED
    lost = verdict(made, **named(made))
    assert lost.difference is not None
    assert {each.rule for each in lost.difference.expected} == {"race-dirty"}
    assert verdict(made, **named(made, 0, 1)).status is Status.DIFFERS
    made = history(slot(), slot(), GetDirtyLog(1), GetDirtyLog(1), clock="system_time")
    assert verdict(made, **named(made)).status is Status.PASSED
    assert verdict(made, **named(made, 1)).status is Status.PASSED


def test_what_a_guest_reads_there_nobody_knows() -> None:
    made = history(slot(), slot(), read_at=GPA + 4)
    assert verdict(made).status is Status.INCONCLUSIVE
