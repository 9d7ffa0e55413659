"""Memory attributes and private memory: what the model allows, and what must not run."""

import errno

import msgspec
import pytest

from tests.ideal import FEATURES, ideal_history
from vmm.catalogue.private import SCENARIOS
from vmm.model.model import Model
from vmm.scenario.content import identity
from vmm.scenario.features import Features
from vmm.scenario.history import (
    AnyOutcome,
    Done,
    Inspected,
    Mmio,
    Refused,
    Stopped,
    Touched,
    private_fault,
)
from vmm.scenario.operations import (
    ATTRIBUTE_PRIVATE,
    GUEST_MEMFD,
    AnyOperation,
    CloseGuestMemfd,
    CreateGuestMemfd,
    Execute,
    Inspect,
    Instruction,
    Mapping,
    NewVm,
    Place,
    PunchGuestMemfd,
    Scenario,
    SetMemoryAttributes,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Sweep,
    Touch,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate
from vmm.verdict.judge import Status, judge

PAGE = 4096
GPA = 0x10000
HOST = (Mapping("a", 4),)
MADE = CreateGuestMemfd("g", 4 * PAGE)
BOUND = SetUserMemoryRegion2(1, GPA, 2 * PAGE, Place("a"), GUEST_MEMFD, guest_memfd="g")
UNBOUND = SetUserMemoryRegion(1)
PLAIN = SetUserMemoryRegion(1, GPA, 2 * PAGE, Place("a"))
PRIVATE = SetMemoryAttributes(GPA, PAGE, ATTRIBUTE_PRIVATE)
SHARED = SetMemoryAttributes(GPA, PAGE)
WRITE = Touch(GPA, "write", value=7)

OF_HOST = Touched(identity(0, 0))
FAULT = private_fault(GPA, PAGE)
GONE = Touched(0xFFFF_FFFF, (Mmio(GPA, False, b"\xff" * 4),))


def outcomes(
    operation: AnyOperation,
    *before: AnyOperation,
    vm_type: int = 1,
    features: Features = FEATURES,
) -> list[AnyOutcome]:
    """Return what the model allows after operations that came to their first outcome."""
    model = Model(HOST, features, vm_type)
    for each in before:
        model.allowed(each)[0].adopt()
    return [choice.outcome for choice in model.allowed(operation)]


@pytest.mark.parametrize(
    ("before", "found"),
    [
        ((MADE, BOUND), [OF_HOST]),
        ((MADE, BOUND, PRIVATE), [Touched(0)]),
        ((MADE, BOUND, PRIVATE, WRITE), [Touched(7)]),
        ((MADE, BOUND, PRIVATE, WRITE, SHARED), [OF_HOST]),
        ((MADE, BOUND, PRIVATE, WRITE, SHARED, PRIVATE), [Touched(7)]),
        ((MADE, BOUND, WRITE, PRIVATE), [Touched(0)]),
        ((PRIVATE, MADE, BOUND, WRITE, UNBOUND, BOUND), [Touched(7)]),
        ((MADE, BOUND, PRIVATE, WRITE, CloseGuestMemfd("g")), [FAULT]),
        ((PLAIN, PRIVATE), [FAULT]),
        ((PLAIN, PRIVATE, NewVm(), PLAIN), [OF_HOST]),
        ((PRIVATE,), [FAULT, GONE]),
    ],
)
def test_read_reaches_what_the_attribute_says(
    before: tuple[AnyOperation, ...], found: list[AnyOutcome]
) -> None:
    assert outcomes(Touch(GPA), *before) == found


def test_host_does_not_see_what_is_written_to_private_memory() -> None:
    assert outcomes(Inspect(), MADE, BOUND, PRIVATE, WRITE) == [Inspected()]


def test_access_that_private_memory_and_mmio_share_is_unknown() -> None:
    last = SetMemoryAttributes(GPA + PAGE, PAGE, ATTRIBUTE_PRIVATE)
    assert outcomes(Touch(GPA + 2 * PAGE - 2), MADE, BOUND, last) == []
    assert outcomes(Touch(GPA + PAGE - 2), MADE, BOUND, last) != []


@pytest.mark.parametrize(
    ("operation", "vm_type", "number"),
    [
        (PRIVATE, 1, 0),
        (SHARED, 0, 0),
        (PRIVATE, 0, errno.EINVAL),
        (SetMemoryAttributes(GPA, PAGE, 1), 1, errno.EINVAL),
        (SetMemoryAttributes(GPA, PAGE, 0, 1), 1, errno.EINVAL),
        (SetMemoryAttributes(GPA, 0), 1, errno.EINVAL),
        (SetMemoryAttributes(GPA + 1, PAGE), 1, errno.EINVAL),
        (SetMemoryAttributes((1 << 64) - PAGE, PAGE), 1, errno.EINVAL),
    ],
)
def test_call_takes_what_the_vm_supports(
    operation: SetMemoryAttributes, vm_type: int, number: int
) -> None:
    right = Refused(number) if number else Done()
    assert outcomes(operation, vm_type=vm_type) == [right]


def test_kernel_without_attributes_does_not_know_the_call() -> None:
    features = msgspec.structs.replace(FEATURES, memory_attributes=0)
    assert outcomes(PRIVATE, vm_type=0, features=features) == [Refused(errno.ENOTTY)]


@pytest.mark.parametrize("needs", [(), ("sw_protected",)])
def test_unsafe_scenario_is_refused(needs: tuple[str, ...]) -> None:
    with pytest.raises(ScenarioError):
        validate(Scenario("unsafe", (Execute(GPA),), HOST, needs=needs, vm_type=1))


def test_attributes_of_endless_ranges_are_not_set() -> None:
    with pytest.raises(ScenarioError, match=r"\.size"):
        validate(Scenario("unsafe", (SetMemoryAttributes(0, 1 << 50),), HOST))


def wrong(outcome: AnyOutcome) -> AnyOutcome:
    """Return another outcome of a touch, or of a call."""
    match outcome:
        case Touched(value, mmio):
            return Touched(value ^ 1, mmio)
        case Stopped():
            return private_fault(0, PAGE)
        case Done():
            return Refused(errno.EINVAL)
        case _:
            return Done()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_scenario_fails_where_one_answer_is_wrong(scenario: Scenario) -> None:
    history = ideal_history(scenario)
    assert judge(history).status is Status.PASSED
    for index, event in enumerate(history.events):
        if isinstance(event.operation, Touch | SetMemoryAttributes):
            events = list(history.events)
            events[index] = msgspec.structs.replace(event, outcome=wrong(event.outcome))
            verdict = judge(msgspec.structs.replace(history, events=tuple(events)))
            assert verdict.difference is not None
            assert verdict.difference.event == index


@pytest.mark.parametrize(
    ("hole", "found"),
    [
        (PunchGuestMemfd("g", 0, PAGE), [Touched(0)]),
        (PunchGuestMemfd("g", 0, (1 << 63) - PAGE), [Touched(0)]),
        (PunchGuestMemfd("g", PAGE, PAGE), [Touched(7)]),
        (PunchGuestMemfd("g", 0, PAGE, keep_size=False), [Touched(7)]),
        (PunchGuestMemfd("g", 0, PAGE + 1), [Touched(7)]),
    ],
)
@pytest.mark.parametrize("between", [(), (SHARED,), (UNBOUND,)])
def test_hole_takes_the_private_memory_and_nothing_else(
    hole: PunchGuestMemfd, found: list[AnyOutcome], between: tuple[AnyOperation, ...]
) -> None:
    rebound = (BOUND,) if UNBOUND in between else ()
    before = (MADE, BOUND, PRIVATE, WRITE, *between, hole, *rebound, PRIVATE)
    assert outcomes(Touch(GPA), *before) == found
    assert outcomes(Touch(GPA), *before, SHARED) == [OF_HOST]


EMULATING = msgspec.structs.replace(FEATURES, emulates_real_mode=True)
BEYOND = 1 << 32
BOUND_BEYOND = msgspec.structs.replace(BOUND, guest_phys_addr=BEYOND)
PRIVATE_BEYOND = msgspec.structs.replace(PRIVATE, address=BEYOND)


@pytest.mark.parametrize(
    ("gpa", "before", "found"),
    [
        (GPA, (MADE, BOUND, PRIVATE), OF_HOST),
        (GPA, (PLAIN, PRIVATE), OF_HOST),
        (GPA, (PRIVATE,), GONE),
        (BEYOND, (MADE, BOUND_BEYOND, PRIVATE_BEYOND), Touched(0)),
    ],
)
def test_where_real_mode_is_emulated_it_reaches_shared_memory(
    gpa: int, before: tuple[AnyOperation, ...], found: AnyOutcome
) -> None:
    assert outcomes(Touch(gpa), *before, features=EMULATING) == [found]


@pytest.mark.parametrize(
    "op", [Sweep(GPA, count=4, access="write", value=7), Instruction("lock-xadd", GPA, value=7)]
)
def test_so_do_all_that_writes_in_real_mode(op: AnyOperation) -> None:
    (look,) = outcomes(Inspect(), MADE, BOUND, PRIVATE, op, features=EMULATING)
    assert look != Inspected()
