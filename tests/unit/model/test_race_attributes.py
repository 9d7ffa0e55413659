"""Races over memory attributes: what a vCPU finds while gpas become private, and shared again."""

import msgspec
import pytest

from tests.ideal import ideal_history
from vmm.scenario.content import identity
from vmm.scenario.history import (
    Call,
    Done,
    Event,
    Met,
    Mmio,
    Raced,
    Stopped,
    Touched,
    Window,
    private_fault as fault,
)
from vmm.scenario.operations import (
    ATTRIBUTE_PRIVATE,
    GUEST_MEMFD,
    PAGE_SIZE_BYTES,
    CreateGuestMemfd,
    Execute,
    GuestThread,
    HostAction,
    HostThread,
    Mapping,
    Place,
    PunchGuestMemfd,
    Race,
    Scenario,
    SetMemoryAttributes,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Touch,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate
from vmm.verdict.ideal import EVERYTHING
from vmm.verdict.judge import Status, judge

GPA = 0x10_0000
FILE = CreateGuestMemfd("file0", PAGE_SIZE_BYTES)
BOUND = SetUserMemoryRegion2(1, GPA, PAGE_SIZE_BYTES, Place("a"), GUEST_MEMFD, guest_memfd="file0")
PLAIN = SetUserMemoryRegion(1, GPA, PAGE_SIZE_BYTES, Place("a"))
TO_PRIVATE = SetMemoryAttributes(GPA, PAGE_SIZE_BYTES, ATTRIBUTE_PRIVATE)
TO_SHARED = SetMemoryAttributes(GPA, PAGE_SIZE_BYTES)
READ = Touch(GPA)
WRITE = Touch(GPA, "write", value=0x1000)

SHARED, ZEROS = Touched(identity(0, 0)), Touched(0)
FAULT, RETRY = fault(GPA, PAGE_SIZE_BYTES), Stopped("EFAULT")
HOLE = Touched(0xFFFF_FFFF, (Mmio(GPA, False, b"\xff" * 4),))


def scenario(*operations: HostAction, slot: HostAction = BOUND, step: object = READ) -> Scenario:
    assert isinstance(step, Touch | Execute)
    race = Race((HostThread(operations),), (GuestThread((step,)),))
    assert isinstance(slot, SetUserMemoryRegion)
    return Scenario(
        "race",
        (FILE, slot, race),
        (Mapping("a", 1),),
        needs=("sw_protected",),
        survey="none",
        vm_type=1,
    )


def played(made: Scenario, *windows: tuple[int, int, Met]) -> Status:
    """Return the verdict where the calls lasted from 10 to 20, from 30 to 40, and so on."""
    validate(made)
    history = ideal_history(made, EVERYTHING)
    race = made.operations[-1]
    assert isinstance(race, Race)
    calls = tuple(
        Call(20 * n + 10, 20 * n + 20, Done()) for n in range(len(race.hosts[0].operations))
    )
    outcome = Raced(
        (calls,),
        (tuple(Window(begin, end, n) for n, (begin, end, _) in enumerate(windows)),),
        (tuple((met,) for *_, met in windows),),
        (),
    )
    events = tuple(
        Event(event.origin, race, outcome) if isinstance(event.operation, Race) else event
        for event in history.events
    )
    return judge(msgspec.structs.replace(history, events=events)).status


@pytest.mark.parametrize(
    ("window", "found", "status"),
    [
        ((1, 2), SHARED, Status.PASSED),
        ((1, 2), ZEROS, Status.DIFFERS),
        ((5, 15), SHARED, Status.PASSED),
        ((5, 15), ZEROS, Status.PASSED),
        ((5, 15), RETRY, Status.PASSED),
        ((5, 15), FAULT, Status.PASSED),
        ((5, 15), HOLE, Status.DIFFERS),
        ((21, 22), ZEROS, Status.PASSED),
        ((21, 22), SHARED, Status.DIFFERS),
        ((21, 22), RETRY, Status.DIFFERS),
        ((41, 42), SHARED, Status.PASSED),
        ((41, 42), ZEROS, Status.DIFFERS),
    ],
)
def test_a_read_finds_what_is_private_or_shared_at_some_moment_of_it(
    window: tuple[int, int], found: Met, status: Status
) -> None:
    assert played(scenario(TO_PRIVATE, TO_SHARED), (*window, found)) is status


@pytest.mark.parametrize(
    ("window", "found", "status"),
    [
        ((21, 22), FAULT, Status.PASSED),
        ((21, 22), SHARED, Status.DIFFERS),
        ((21, 22), HOLE, Status.DIFFERS),
        ((15, 16), SHARED, Status.PASSED),
        ((41, 42), FAULT, Status.PASSED),
        # A vCPU may have cached a gpa without a slot as MMIO, as outside of races.
        ((41, 42), HOLE, Status.PASSED),
        ((41, 42), SHARED, Status.DIFFERS),
    ],
)
def test_what_is_private_without_a_guest_memfd_stops_the_vcpu(
    window: tuple[int, int], found: Met, status: Status
) -> None:
    made = scenario(TO_PRIVATE, SetUserMemoryRegion(1), slot=PLAIN)
    assert played(made, (*window, found)) is status


def test_what_was_written_to_private_memory_stays_there_until_a_hole_is_punched() -> None:
    punch = PunchGuestMemfd("file0", 0, PAGE_SIZE_BYTES)
    made = scenario(TO_PRIVATE, TO_SHARED, TO_PRIVATE, punch, step=WRITE)
    written = ((21, 22, Touched(0)),)
    assert played(made, *written) is Status.PASSED
    read = scenario(TO_PRIVATE, TO_SHARED, TO_PRIVATE, punch)
    assert played(read, (61, 62, ZEROS)) is Status.PASSED
    assert played(read, (61, 62, SHARED)) is Status.DIFFERS


def test_no_vcpu_of_a_private_vm_executes_in_a_race() -> None:
    with pytest.raises(ScenarioError, match=r"zeros could be executed"):
        validate(scenario(TO_PRIVATE, step=Execute(GPA)))
