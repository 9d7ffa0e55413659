"""Two address spaces: what the model, surveys and plans make of system management mode."""

import itertools

import msgspec
import pytest

from tests.ideal import ideal_history
from vmm.model.model import Model
from vmm.scenario import words
from vmm.scenario.features import Features
from vmm.scenario.history import AnyOutcome, DirtyPages, Mmio, RingPages, Touched
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    AnyOperation,
    EnableCap,
    Execute,
    GetDirtyLog,
    GuestThread,
    HarvestDirtyRing,
    HostThread,
    Mapping,
    Place,
    Race,
    Scenario,
    SetUserMemoryRegion,
    Sweep,
    Touch,
)
from vmm.scenario.plan import batches, guest_slots, steps
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate
from vmm.verdict.ideal import EVERYTHING
from vmm.verdict.judge import Status, judge

SMM = 1 << 16
LIMIT = 1 << 32
MAPPINGS = (Mapping("a", 2), Mapping("b", 2))


def slot(number: int, name: str, gpa: int = 0x100000, flags: int = 0) -> SetUserMemoryRegion:
    return SetUserMemoryRegion(number, gpa, 0x2000, Place(name), flags)


def scenario(*operations: AnyOperation, **fields: object) -> Scenario:
    made = Scenario("s", operations, MAPPINGS, needs=("smm",))
    return msgspec.structs.replace(made, **fields)


def play(*operations: AnyOperation, features: Features = EVERYTHING) -> tuple[AnyOutcome, str]:
    """Return what the last of some operations comes to, and by which rule."""
    model = Model(MAPPINGS, features)
    for operation in operations:
        choice = model.allowed(operation)[0]
        choice.adopt()
    return choice.outcome, choice.rule.name


def test_each_address_space_shows_its_own_memory() -> None:
    both = slot(1, "a"), slot(SMM | 1, "b")
    outside, _ = play(*both, Touch(0x100000))
    inside, rule = play(*both, Touch(0x100000, as_id=1))
    assert isinstance(outside, Touched)
    assert isinstance(inside, Touched)
    assert outside.value != inside.value
    assert inside == play(slot(1, "b"), Touch(0x100000))[0]
    assert rule == "smm"


def test_a_slot_of_one_address_space_is_a_hole_in_the_other() -> None:
    hole = Touched(0xFFFFFFFF, (Mmio(0x100000, False, b"\xff" * 4),))
    assert play(slot(1, "a"), Touch(0x100000, as_id=1)) == (hole, "smm")
    assert play(slot(SMM | 1, "a"), Touch(0x100000)) == (hole, "hole")


@pytest.mark.parametrize("access", [Sweep(0x100000, 1, as_id=1), Execute(0x100000, as_id=1)])
def test_sweeps_and_executions_look_at_as_id_1(access: Sweep | Execute) -> None:
    assert play(slot(SMM | 1, "a"), access)[1] == "smm"
    assert play(slot(1, "a"), access)[1] != "reach"


def test_a_write_is_logged_in_the_address_space_that_it_was_made_in() -> None:
    slots = slot(1, "a", flags=LOG_DIRTY_PAGES), slot(SMM | 1, "a", flags=LOG_DIRTY_PAGES)
    write = Touch(0x101000, "write", as_id=1)
    assert play(*slots, write, GetDirtyLog(1))[0] == DirtyPages((), words=1)
    assert play(*slots, write, GetDirtyLog(SMM | 1))[0] == DirtyPages((1,), words=1)


def test_a_ring_names_the_address_space() -> None:
    ring = EnableCap("DIRTY_LOG_RING", 4096)
    slots = slot(1, "a", flags=LOG_DIRTY_PAGES), slot(SMM | 1, "a", flags=LOG_DIRTY_PAGES)
    write = Touch(0x101000, "write", as_id=1)
    assert play(ring, *slots, write, HarvestDirtyRing())[0] == RingPages(((SMM | 1, 1),))


def test_a_change_in_one_address_space_protects_no_page_of_the_other() -> None:
    ring = EnableCap("DIRTY_LOG_RING", 4096)
    logged = slot(SMM | 1, "a", flags=LOG_DIRTY_PAGES)
    write, change = Touch(0x101000, "write", as_id=1), slot(1, "b")
    again = play(ring, logged, write, HarvestDirtyRing(), change, write, HarvestDirtyRing())[0]
    assert again == RingPages(perhaps=((SMM | 1, 1),))


def test_the_guest_lives_in_each_address_space_that_it_looks_at() -> None:
    assert [op.slot for op in guest_slots(scenario())] == [400, SMM | 400]
    assert [op.slot for op in guest_slots(scenario(needs=()))] == [400]


def test_a_survey_makes_the_same_touches_in_both() -> None:
    touches = [
        step.operation
        for step in steps(scenario(slot(1, "a")), LIMIT)
        if isinstance(step.operation, Touch)
    ]
    inside = [msgspec.structs.replace(t, as_id=0, value=0) for t in touches if t.as_id]
    outside = [msgspec.structs.replace(t, value=0) for t in touches if not t.as_id]
    assert inside
    assert inside == outside


def test_no_run_of_touches_spans_two_address_spaces() -> None:
    plan = batches(steps(scenario(slot(1, "a")), LIMIT))
    spaces = [
        {step.operation.as_id for step in batch if isinstance(step.operation, Touch)}
        for batch in plan
    ]
    assert {1} in spaces
    assert max(map(len, spaces)) == 1


def test_an_ideal_kernel_passes_and_one_that_mixes_them_up_differs() -> None:
    history = ideal_history(scenario(slot(1, "a"), slot(SMM | 1, "b")), EVERYTHING)
    assert judge(history).status is Status.PASSED
    assert "smm" in judge(history).rules
    events = list(history.events)
    last = max(
        index for index, event in enumerate(events) if event.operation == Touch(0x100040, as_id=1)
    )
    outside = next(e for e in reversed(events[:last]) if e.operation == Touch(0x100040))
    events[last] = msgspec.structs.replace(events[last], outcome=outside.outcome)
    verdict = judge(msgspec.structs.replace(history, events=tuple(events)))
    assert verdict.difference is not None
    assert verdict.difference.expected[0].rule == "smm"
    assert verdict.difference.operation.endswith("at gpa 0x100040 in SMM")
    assert any("slot 1 of as_id 1:" in line for line in verdict.difference.slot_map)


@pytest.mark.parametrize(
    ("made", "place"),
    [
        (scenario(Touch(0x1000, as_id=1), needs=()), r"\$.operations\[0\].as_id"),
        (scenario(slot(SMM | 400, "a")), r"\$.operations\[0\].slot"),
        (
            scenario(
                Race((HostThread((slot(SMM | 1, "a"),)),), (GuestThread((Touch(0x1000),)),)),
                needs=(),
            ),
            r"hosts\[0\].operations\[0\].slot",
        ),
        (
            scenario(Race((), (GuestThread((Touch(0x1000, as_id=1),)),)), needs=()),
            r"guests\[0\].program\[0\].as_id",
        ),
    ],
)
def test_what_is_not_to_be_run_is_refused_with_its_place(made: Scenario, place: str) -> None:
    with pytest.raises(ScenarioError, match=place):
        validate(made)


def test_a_slot_of_as_id_1_may_have_the_guests_id_where_the_guest_is_not() -> None:
    validate(scenario(slot(SMM | 400, "a"), needs=()))


def test_outside_of_smm_nothing_is_said_of_it() -> None:
    assert all(
        ("in SMM" in words.operation(access)) is bool(as_id)
        for kind, as_id in itertools.product((Touch, Execute), (0, 1))
        for access in (kind(0x1000, as_id=as_id),)
    )
    assert "in SMM" in words.operation(Sweep(0x1000, 1, as_id=1))
