"""Holes in guest_memfds: what the model allows, and that a wrong answer is found."""

import errno
from dataclasses import dataclass

import msgspec
import pytest

from tests.ideal import FEATURES, ideal_history
from vmm.catalogue.holes import SCENARIOS
from vmm.model.model import Model
from vmm.scenario import words
from vmm.scenario.content import page_bytes
from vmm.scenario.history import (
    AnyOutcome,
    Done,
    HostChange,
    Inspected,
    PreFaulted,
    Refused,
    Swept,
    Touched,
)
from vmm.scenario.operations import (
    GUEST_MEMFD,
    MEMFD_INIT_SHARED,
    MEMFD_MMAP,
    UNSHARE_RANGE,
    ZERO_RANGE,
    AnyOperation,
    CloseGuestMemfd,
    CreateGuestMemfd,
    Inspect,
    MapGuestMemfd,
    Mapping,
    NewVm,
    Place,
    PunchGuestMemfd,
    Scenario,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Touch,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate
from vmm.verdict.judge import Status, judge

PAGE = 4096
GPA = 0x10000
HOST = (Mapping("a", 2), Mapping("shown", 4, "guest_memfd"))
MADE = CreateGuestMemfd("g", 8 * PAGE, MEMFD_MMAP | MEMFD_INIT_SHARED)
SHOW = MapGuestMemfd("g", "shown")
BOUND = SetUserMemoryRegion2(1, GPA, 4 * PAGE, Place("shown"), GUEST_MEMFD, guest_memfd="g")
PLAIN = SetUserMemoryRegion(1, GPA, 4 * PAGE, Place("shown"))
HOLE = PunchGuestMemfd("g", PAGE, PAGE)
LARGEST = (1 << 63) - PAGE
KEPT = Touched(int.from_bytes(page_bytes(1, 1)[:4], "little"))
GONE = Touched(0)


@dataclass(frozen=True, slots=True)
class After:
    """A model in which these operations have succeeded."""

    operations: tuple[AnyOperation, ...]

    def allows(self, operation: AnyOperation) -> list[AnyOutcome]:
        model = Model(HOST, FEATURES)
        for each in self.operations:
            (choice,) = model.allowed(each)
            assert choice.outcome == Done()
            choice.adopt()
        return [choice.outcome for choice in model.allowed(operation)]


@pytest.mark.parametrize(
    ("hole", "outcome"),
    [
        (HOLE, Done()),
        (PunchGuestMemfd("g", 8 * PAGE, PAGE), Done()),
        (PunchGuestMemfd("g", 0, LARGEST), Done()),
        (PunchGuestMemfd("g", PAGE, LARGEST), Refused(errno.EFBIG)),
        (PunchGuestMemfd("g", LARGEST, PAGE + 1), Refused(errno.EFBIG)),
        (PunchGuestMemfd("g", 1 << 63, PAGE), Refused(errno.EINVAL)),
        (PunchGuestMemfd("g", 0, 1 << 63), Refused(errno.EINVAL)),
        (PunchGuestMemfd("g", 0, 0), Refused(errno.EINVAL)),
        (PunchGuestMemfd("g", 0, 0, keep_size=False), Refused(errno.EINVAL)),
        (PunchGuestMemfd("g", 1, PAGE), Refused(errno.EINVAL)),
        (PunchGuestMemfd("g", 0, 1), Refused(errno.EINVAL)),
        (PunchGuestMemfd("g", 1, PAGE, keep_size=False), Refused(errno.EOPNOTSUPP)),
        (PunchGuestMemfd("g", LARGEST, PAGE, keep_size=False), Refused(errno.EOPNOTSUPP)),
        (PunchGuestMemfd("g", 0, PAGE, punch=False), Done()),
        (PunchGuestMemfd("g", 7 * PAGE, PAGE, punch=False), Done()),
        (PunchGuestMemfd("g", 7 * PAGE, 2 * PAGE, punch=False), Refused(errno.EINVAL)),
        (PunchGuestMemfd("g", 8 * PAGE, PAGE, punch=False), Refused(errno.EINVAL)),
        (PunchGuestMemfd("g", 0, 1, punch=False), Refused(errno.EINVAL)),
        (PunchGuestMemfd("g", LARGEST, PAGE, False, False), Refused(errno.EFBIG)),
        (PunchGuestMemfd("g", 8 * PAGE, PAGE, False, False), Refused(errno.EOPNOTSUPP)),
        (PunchGuestMemfd("g", 0, PAGE, True, False, ZERO_RANGE), Refused(errno.EOPNOTSUPP)),
        (PunchGuestMemfd("g", 1, PAGE, True, False, UNSHARE_RANGE), Refused(errno.EOPNOTSUPP)),
        (PunchGuestMemfd("g", 0, 0, True, False, ZERO_RANGE), Refused(errno.EINVAL)),
    ],
)
def test_hole_is_refused_as_the_kernel_looks_at_it(
    hole: PunchGuestMemfd, outcome: AnyOutcome
) -> None:
    assert After((MADE,)).allows(hole) == [outcome]
    assert After((MADE, CloseGuestMemfd("g"))).allows(hole) == [Refused(errno.EBADF)]


def test_modes_that_exclude_each_other_are_refused_with_one_errno_or_another() -> None:
    both = PunchGuestMemfd("g", 0, PAGE, others=ZERO_RANGE)
    assert set(After((MADE,)).allows(both)) == {Refused(errno.EOPNOTSUPP), Refused(errno.EINVAL)}
    too_far = PunchGuestMemfd("g", LARGEST, PAGE, True, False, ZERO_RANGE)
    assert set(After((MADE,)).allows(too_far)) == {Refused(errno.EOPNOTSUPP), Refused(errno.EFBIG)}


@pytest.mark.parametrize(
    ("before", "found"),
    [
        ((MADE, SHOW, BOUND), KEPT),
        ((MADE, SHOW, BOUND, HOLE), GONE),
        ((MADE, SHOW, BOUND, PunchGuestMemfd("g", 0, 8 * PAGE, punch=False)), KEPT),
        ((MADE, SHOW, HOLE, BOUND), GONE),
        ((MADE, SHOW, BOUND, PunchGuestMemfd("g", 0, LARGEST)), GONE),
        ((MADE, SHOW, BOUND, PunchGuestMemfd("g", 0, PAGE)), KEPT),
        ((MADE, SHOW, BOUND, PunchGuestMemfd("g", 2 * PAGE, LARGEST - 2 * PAGE)), KEPT),
        ((MADE, HOLE, SHOW, BOUND), KEPT),
        ((MADE, SHOW, BOUND, NewVm(), PLAIN, HOLE), GONE),
    ],
)
def test_guest_reads_zeros_where_the_hole_is(
    before: tuple[AnyOperation, ...], found: AnyOutcome
) -> None:
    assert After(before).allows(Touch(GPA + PAGE)) == [found]


def test_host_sees_the_hole_as_far_as_its_mapping_reaches() -> None:
    (looked,) = After((MADE, SHOW, PunchGuestMemfd("g", 3 * PAGE, 4 * PAGE))).allows(Inspect())
    assert isinstance(looked, Inspected)
    assert all(isinstance(each, HostChange) for each in looked.changes)
    assert all(each.offset >= 3 * PAGE and not any(each.data) for each in looked.changes)
    assert sum(len(each.data) for each in looked.changes) > PAGE // 2


def test_hole_is_put_into_words() -> None:
    text = words.operation(HOLE)
    assert text == "fallocate(g, PUNCH_HOLE|KEEP_SIZE, offset=0x1000, len=0x1000)"
    grown = words.operation(msgspec.structs.replace(HOLE, keep_size=False))
    assert grown == "fallocate(g, PUNCH_HOLE, offset=0x1000, len=0x1000)"


@pytest.mark.parametrize(
    ("hole", "complaint"),
    [
        (PunchGuestMemfd("never", 0, PAGE), ".name: no operation creates 'never'"),
        (PunchGuestMemfd("g", -PAGE, PAGE), ".offset: an unsigned 64-bit number"),
        (PunchGuestMemfd("g", 0, 1 << 64), ".size: an unsigned 64-bit number"),
        (PunchGuestMemfd("g", 0, PAGE, others=2), ".others: bits of an int other than"),
        (PunchGuestMemfd("g", 0, PAGE, others=1 << 31), ".others: bits of an int other than"),
    ],
)
def test_unsafe_hole_is_refused(hole: PunchGuestMemfd, complaint: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        validate(Scenario("unsafe", (MADE, hole), HOST))
    assert complaint in str(caught.value)


def _altered(outcome: AnyOutcome) -> AnyOutcome | None:
    """Return what a wrong kernel may answer instead; None where nothing is made of it here."""
    match outcome:
        case Touched(value):
            return Touched(value ^ 1)
        case Swept(((value, times), *rest)):
            return Swept(((value ^ 1, times), *rest))
        case Inspected(changes) if changes:
            return Inspected(changes[1:])
        case Refused():
            return Done()
        case PreFaulted(gpa, size):
            return PreFaulted(gpa, size + PAGE)
        case _:
            return None


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_wrong_answer_behind_a_hole_is_found(scenario: Scenario) -> None:
    history = ideal_history(scenario)
    assert judge(history).status is Status.PASSED
    first = next(
        i for i, e in enumerate(history.events) if isinstance(e.operation, PunchGuestMemfd)
    )
    altered = 0
    for index, event in enumerate(history.events[first:], first):
        outcome = _altered(event.outcome)
        if outcome is None:
            continue
        events = list(history.events)
        events[index] = msgspec.structs.replace(event, outcome=outcome)
        wrong = judge(msgspec.structs.replace(history, events=tuple(events)))
        assert wrong.status is Status.DIFFERS
        altered += 1
    assert altered
