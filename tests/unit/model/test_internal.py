"""The model of internal slots: what is in their way, in whose way they are, and when they come."""

import errno
from collections.abc import Iterator

import msgspec
import pytest

from tests.ideal import FEATURES
from vmm.model.model import Model
from vmm.scenario.features import Features
from vmm.scenario.history import AnyOutcome, Closed, Done, Inspected, Mmio, Ran, Refused, Touched
from vmm.scenario.operations import (
    AnyOperation,
    CloseVm,
    CreateIrqchip,
    CreateVcpu,
    Inspect,
    Instruction,
    Mapping,
    NewVm,
    Place,
    Scenario,
    SetApicBase,
    SetIdentityMapAddr,
    SetTssAddr,
    SetUserMemoryRegion,
    Sweep,
    Touch,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate

TSS = 0xFFF0_0000
IDENTITY_MAP = 0xFFFB_C000
APIC = 0xFEE0_0000
NONE = Features(address_spaces=2)
EEXIST, EINVAL = Refused(errno.EEXIST), Refused(errno.EINVAL)


def slot(gpa: int, pages: int = 1, number: int = 1) -> SetUserMemoryRegion:
    return SetUserMemoryRegion(number, gpa, pages * 4096, Place("a"))


def play(*operations: AnyOperation, features: Features = FEATURES) -> AnyOutcome:
    """Return what the last of some operations comes to; what each comes to is adopted."""
    model = Model((Mapping("a", 8),), features)
    for operation in operations:
        (choice,) = model.allowed(operation)
        choice.adopt()
    return choice.outcome


@pytest.mark.parametrize("gpa", [TSS, TSS + 0x1000, TSS + 0x2000])
def test_a_slot_over_the_tss_is_refused_where_there_is_one(gpa: int) -> None:
    assert play(SetTssAddr(TSS), slot(gpa)) == EEXIST
    assert play(SetTssAddr(TSS), slot(gpa), features=NONE) == Done()


@pytest.mark.parametrize("gpa", [TSS - 0x1000, TSS + 0x3000])
def test_a_slot_next_to_the_tss_is_not(gpa: int) -> None:
    assert play(SetTssAddr(TSS), slot(gpa)) == Done()


def test_a_move_onto_the_tss_is_refused() -> None:
    assert play(SetTssAddr(TSS), slot(0x1000), slot(TSS)) == EEXIST


def test_internal_slots_are_in_every_address_space() -> None:
    features = msgspec.structs.replace(FEATURES, address_spaces=2)
    assert play(SetTssAddr(TSS), slot(TSS, number=1 << 16 | 1), features=features) == EEXIST
    assert play(slot(TSS, number=1 << 16 | 1), SetTssAddr(TSS), features=features) == EEXIST


def test_the_tss_needs_three_free_pages_below_4_gib_and_comes_once() -> None:
    assert play(slot(TSS + 0x2000), SetTssAddr(TSS)) == EEXIST
    assert play(slot(TSS + 0x3000), SetTssAddr(TSS)) == Done()
    assert play(slot(TSS), SetTssAddr(TSS), SetUserMemoryRegion(1), SetTssAddr(TSS)) == Done()
    assert play(SetTssAddr(0xFFFF_D000)) == Done()
    assert play(SetTssAddr(0xFFFF_D001)) == EINVAL
    assert play(SetTssAddr(TSS + 1)) == EINVAL
    assert play(SetTssAddr(TSS), SetTssAddr(0x1000)) == EEXIST
    assert play(SetTssAddr(TSS), SetTssAddr(0x1000), features=NONE) == Done()
    assert play(SetTssAddr(TSS), NewVm(), slot(TSS)) == Done()


def test_the_identity_map_comes_with_the_first_vcpu() -> None:
    assert play(SetIdentityMapAddr(0x5000), slot(0x5000)) == Done()
    assert play(SetIdentityMapAddr(0x5000), CreateVcpu(), slot(0x5000)) == EEXIST
    assert play(SetIdentityMapAddr(0x5000), Touch(0x1000), slot(0x5000)) == EEXIST
    assert play(CreateVcpu(), slot(IDENTITY_MAP)) == EEXIST
    assert play(SetIdentityMapAddr(0x5000), SetIdentityMapAddr(0), CreateVcpu(), slot(0x5000)) == (
        Done()
    )
    assert play(CreateVcpu(), slot(IDENTITY_MAP), features=NONE) == Done()


@pytest.mark.parametrize("features", [FEATURES, NONE], ids=["internal", "none"])
def test_the_identity_map_is_not_placed_after_a_vcpu(features: Features) -> None:
    assert play(CreateVcpu(), SetIdentityMapAddr(0), features=features) == EINVAL
    assert play(Touch(0x1000), SetIdentityMapAddr(0), features=features) == EINVAL


def test_a_vcpu_whose_pages_have_no_room_is_refused() -> None:
    assert play(slot(IDENTITY_MAP), CreateVcpu()) == EEXIST
    assert play(slot(IDENTITY_MAP), CreateVcpu(), SetIdentityMapAddr(0x5000), CreateVcpu()) == (
        Done()
    )
    assert play(slot(IDENTITY_MAP), CreateVcpu(), features=NONE) == Done()
    assert play(SetIdentityMapAddr(1), CreateVcpu()) == EINVAL


def test_the_apics_page_comes_before_the_identity_map() -> None:
    assert play(CreateIrqchip(), CreateVcpu(), slot(APIC)) == EEXIST
    assert play(CreateVcpu(), slot(APIC)) == Done()
    assert play(slot(APIC), CreateIrqchip(), CreateVcpu()) == EEXIST
    # The identity map is in the way of nothing then, but the APIC's page was made.
    refused = (slot(IDENTITY_MAP), CreateIrqchip(), CreateVcpu())
    assert play(*refused) == EEXIST
    assert play(*refused, slot(APIC, number=2)) == EEXIST


def test_interrupt_controllers_come_once_and_before_any_vcpu() -> None:
    assert play(CreateIrqchip(), CreateIrqchip()) == EEXIST
    assert play(CreateVcpu(), CreateIrqchip()) == EINVAL
    without = msgspec.structs.replace(FEATURES, irqchip=False)
    assert play(CreateIrqchip(), features=without) == Refused(errno.ENOTTY)


def test_a_vcpu_is_made_once() -> None:
    assert play(CreateVcpu(), CreateVcpu(1)) == Done()
    assert play(CreateVcpu(1), CreateVcpu(1)) == EEXIST
    assert play(Touch(0x1000), CreateVcpu()) == EEXIST
    assert play(CreateVcpu(), NewVm(), CreateVcpu()) == Done()


def test_what_an_internal_slot_holds_is_unknown() -> None:
    model = Model((Mapping("a", 8),), FEATURES)
    for operation in (SetTssAddr(TSS), slot(TSS - 0x1000)):
        (choice,) = model.allowed(operation)
        choice.adopt()
    assert model.allowed(Touch(TSS)) == ()
    assert model.allowed(Touch(TSS - 2)) == ()
    assert model.allowed(Touch(TSS - 4)) != ()
    assert model.allowed(Touch(TSS + 0x3000)) != ()


def test_nothing_is_left_behind_after_a_failed_creation_too() -> None:
    assert play(slot(TSS), SetTssAddr(TSS), CloseVm()) == Closed()


def test_an_emulated_access_does_not_reach_a_slot_at_the_apics_page() -> None:
    model = Model((Mapping("a", 8),), NONE)
    model.allowed(slot(APIC - 0x1000, 3))[0].adopt()
    read, write = Touch(APIC - 2), Touch(APIC, "write", value=5)
    assert [(c.rule.name, "mmio=()" in repr(c.outcome)) for c in model.allowed(read)] == [
        ("reach", True),
        ("apic-page", False),
    ]
    in_memory, emulated = model.allowed(write)
    for choice, changes in ((emulated, 0), (in_memory, 1)):
        choice.adopt()
        (look,) = model.allowed(Inspect())
        assert isinstance(look.outcome, Inspected)
        assert len(look.outcome.changes) == changes
    for outside in (Touch(APIC - 4), Touch(APIC + 0x1000)):
        assert [choice.rule.name for choice in model.allowed(outside)] == ["reach"]


@pytest.mark.parametrize(
    ("instruction", "exits"),
    [
        (Instruction("movs", APIC, source=0x20_0000), [(0x20_0000, False), (APIC, True)]),
        (Instruction("movs", 0x20_0000, source=APIC), [(APIC, False), (0x20_0000, True)]),
        (Instruction("movs", APIC - 4, source=0x20_0000), [(0x20_0000, False)]),
        (Instruction("store", APIC, forced=True), [(APIC, True)]),
        (Instruction("lock-xadd", APIC - 2, forced=True), [(APIC, False), (APIC, True)]),
    ],
)
def test_an_instruction_that_is_surely_emulated_exits_at_the_apics_page(
    instruction: Instruction, exits: list[tuple[int, bool]]
) -> None:
    model = Model((Mapping("a", 8),), NONE)
    model.allowed(slot(APIC - 0x1000, 3))[0].adopt()
    (choice,) = model.allowed(instruction)
    assert isinstance(choice.outcome, Ran)
    assert [(each.gpa, each.write) for each in choice.outcome.mmio] == exits
    assert (choice.rule.name == "apic-page") == (APIC in [gpa for gpa, _ in exits])


def test_whether_another_instruction_at_the_apics_page_is_emulated_is_unknown() -> None:
    model = Model((Mapping("a", 8),), NONE)
    model.allowed(slot(APIC, 1))[0].adopt()
    assert model.allowed(Instruction("store", APIC)) == ()
    assert model.allowed(Instruction("movs", APIC, source=APIC + 8)) == ()


def test_what_an_apic_answers_is_unknown() -> None:
    model = Model((Mapping("a", 8),), NONE)
    for operation in (CreateIrqchip(), slot(APIC)):
        model.allowed(operation)[0].adopt()
    assert model.allowed(Touch(APIC)) == ()
    assert model.allowed(Instruction("store", APIC, forced=True)) == ()


def with_an_apic_at(*bases: int) -> Model:
    model = Model((Mapping("a", 8),), NONE)
    moves: Iterator[AnyOperation] = map(SetApicBase, bases)
    for operation in (CreateIrqchip(), slot(0x1000), *moves):
        (choice,) = model.allowed(operation)
        assert choice.outcome == Done()
        choice.adopt()
    return model


@pytest.mark.parametrize("offset", [0, 0x32, 0xFFC])
def test_the_registers_of_an_apic_are_where_its_base_says(offset: int) -> None:
    (choice,) = with_an_apic_at(0x20_0000).allowed(Touch(0x20_0000 + offset))
    assert choice.rule.name == "apic-base"
    assert choice.outcome.admits(Touched(0x50014))
    assert not choice.outcome.admits(Touched(0, (Mmio(0x20_0000 + offset, False, b"1234"),)))


@pytest.mark.parametrize("gpa", [APIC, APIC + 0x30, 0x20_0000, 0x20_0030])
def test_where_an_apic_was_is_a_hole_again(gpa: int) -> None:
    made = with_an_apic_at(0x20_0000, 0x30_0000)
    assert [choice.rule.name for choice in made.allowed(Touch(gpa))] == ["hole"]


@pytest.mark.parametrize(
    "met",
    [
        *(Touch(0x20_0080, "write"), Touch(0x1F_FFFE), Touch(0x20_0FFE)),
        *(Sweep(0x20_0000, 4), Instruction("store", 0x20_0080)),
    ],
    ids=lambda op: type(op).__name__,
)
def test_what_else_meets_a_moved_apic_is_unknown(met: AnyOperation) -> None:
    assert with_an_apic_at(0x20_0000).allowed(met) == ()


def test_what_an_apic_over_a_slot_answers_is_unknown() -> None:
    assert with_an_apic_at(0x1000).allowed(Touch(0x1030)) == ()


@pytest.mark.parametrize("gpa", [0x1001, 1 << 32, -0x1000, 0xFFFF_0000])
def test_where_no_apic_may_be_is_named(gpa: int) -> None:
    with pytest.raises(ScenarioError, match=r"\$\.operations\[0\]\.gpa: "):
        validate(Scenario("apic", (SetApicBase(gpa),)))
