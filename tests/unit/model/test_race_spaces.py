"""Races over two address spaces: each access is judged by what its own space showed."""

import time

import msgspec
import pytest

from tests.ideal import ideal_history
from vmm.scenario.content import identity
from vmm.scenario.history import (
    AnyOutcome,
    Call,
    DirtyPages,
    Done,
    HostChange,
    Met,
    Mmio,
    Raced,
    Refused,
    Touched,
    Window,
)
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    SMM,
    AsId,
    GetDirtyLog,
    GuestThread,
    HostAction,
    HostThread,
    Mapping,
    Place,
    Race,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate
from vmm.verdict.ideal import EVERYTHING
from vmm.verdict.judge import Status, judge

GPA = 0x10_0000
MAPPINGS = (Mapping("a", 2), Mapping("b", 2))
TWIN = SMM << 16 | 1
OUTSIDE = SetUserMemoryRegion(1, GPA, 0x2000, Place("a"), LOG_DIRTY_PAGES)
INSIDE = SetUserMemoryRegion(TWIN, GPA, 0x2000, Place("b"), LOG_DIRTY_PAGES)
OF_A, OF_B = Touched(identity(0, 0)), Touched(identity(1, 0))
GONE = Touched(0xFFFF_FFFF, (Mmio(GPA, False, b"\xff" * 4),))
WROTE = (HostChange("b", 0, b"\x07\0\0\0"),)


def verdict_on(
    call: HostAction,
    came: Call,
    touch: Touch,
    window: tuple[int, int, Met],
    changes: tuple[HostChange, ...] = (),
) -> Status:
    """Judge one call, and one window of one vCPU, where both address spaces have a slot."""
    race = Race((HostThread((call,)),), (GuestThread((touch,)),))
    scenario = Scenario("s", (OUTSIDE, INSIDE, race), MAPPINGS, needs=("smm",), survey="none")
    validate(scenario)
    history = ideal_history(scenario, EVERYTHING)
    outcome: AnyOutcome = Raced(
        ((came,),), ((Window(*window[:2], 0),),), (((window[2],),),), changes
    )
    events = tuple(
        msgspec.structs.replace(each, outcome=outcome) if isinstance(each.operation, Race) else each
        for each in history.events
    )
    return judge(msgspec.structs.replace(history, events=events)).status


@pytest.mark.parametrize(
    ("deleted", "as_id", "found", "status"),
    [
        (1, SMM, OF_B, Status.PASSED),
        (1, SMM, GONE, Status.DIFFERS),
        (1, SMM, OF_A, Status.DIFFERS),
        (1, 0, GONE, Status.PASSED),
        (1, 0, OF_A, Status.DIFFERS),
        (TWIN, SMM, GONE, Status.PASSED),
        (TWIN, SMM, OF_B, Status.DIFFERS),
        (TWIN, 0, OF_A, Status.PASSED),
        (TWIN, 0, GONE, Status.DIFFERS),
    ],
)
def test_a_read_finds_what_its_own_space_shows(
    deleted: int, as_id: AsId, found: Touched, status: Status
) -> None:
    touch, call = Touch(GPA, as_id=as_id), SetUserMemoryRegion(deleted)
    assert verdict_on(call, Call(10, 20, Done()), touch, (21, 22, found)) is status


@pytest.mark.parametrize(
    ("slot", "pages", "status"),
    [
        (TWIN, (0,), Status.PASSED),
        (TWIN, (), Status.DIFFERS),
        (1, (), Status.PASSED),
        (1, (0,), Status.DIFFERS),
    ],
)
def test_a_write_is_in_the_log_of_the_slot_it_went_through(
    slot: int, pages: tuple[int, ...], status: Status
) -> None:
    touch = Touch(GPA, "write", value=7, as_id=SMM)
    call = Call(10, 20, DirtyPages(pages))
    assert verdict_on(GetDirtyLog(slot), call, touch, (1, 2, Touched(0)), WROTE) is status


def test_slots_of_two_spaces_meet_each_other_never() -> None:
    moved = msgspec.structs.replace(INSIDE, guest_phys_addr=GPA + 0x1000)
    touch = Touch(GPA, as_id=SMM)
    assert verdict_on(moved, Call(10, 20, Done()), touch, (21, 22, GONE)) is Status.PASSED
    refused = Call(10, 20, Refused(17))
    assert verdict_on(moved, refused, touch, (21, 22, OF_B)) is Status.DIFFERS


def test_two_threads_may_change_the_same_gpas_of_two_spaces_and_not_of_one() -> None:
    def made(one: int, other: int) -> Scenario:
        calls = (msgspec.structs.replace(OUTSIDE, slot=slot) for slot in (one, other))
        race = Race(tuple(HostThread((op,)) for op in calls), (GuestThread((Touch(GPA),)),))
        return Scenario("s", (race,), MAPPINGS, needs=("smm",), survey="none")

    validate(made(1, SMM << 16 | 2))
    for one, other in ((1, 2), (TWIN, SMM << 16 | 2)):
        with pytest.raises(ScenarioError, match="another thread changes gfn"):
            validate(made(one, other))


def test_a_race_on_a_slot_that_stood_anywhere_is_checked_in_a_second() -> None:
    anywhere = (
        SetUserMemoryRegion(1, GPA + 0x1000 * page, 0x1000, Place("a")) for page in range(20_000)
    )
    race = Race((HostThread((OUTSIDE,) * 1000, 1),), (GuestThread((Touch(GPA),)),))
    scenario = Scenario("s", (*anywhere, race), MAPPINGS, survey="none")
    start = time.process_time()
    validate(scenario)
    assert time.process_time() - start < 5
