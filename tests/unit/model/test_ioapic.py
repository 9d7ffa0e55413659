"""The I/O APIC of KVM_CREATE_IRQCHIP: its registers are answered in the kernel."""

from typing import Literal

import pytest

from kvm_abi.uapi import APIC_GPA, IOAPIC_GPA, IOAPIC_SIZE_BYTES
from vmm.model.model import Model
from vmm.scenario.features import Features
from vmm.scenario.history import AnyOutcome, Done, Event, Mmio, Raced, Touched
from vmm.scenario.operations import (
    READONLY,
    CoalesceMmio,
    CreateIrqchip,
    GuestThread,
    IoEventFd,
    Mapping,
    NewVm,
    Place,
    Race,
    SetUserMemoryRegion,
    Sweep,
    Touch,
)

END = IOAPIC_GPA + IOAPIC_SIZE_BYTES
SLOT = SetUserMemoryRegion(1, IOAPIC_GPA, 0x1000, Place("a"))


def model() -> Model:
    """Return the model of a VM with an I/O APIC."""
    made = Model((Mapping("a", 1),), Features())
    made.prefer(CreateIrqchip())
    return made


def outcome_of(touch: Touch, made: Model | None = None) -> Touched:
    (choice,) = (made or model()).allowed(touch)
    assert isinstance(choice.outcome, Touched)
    return choice.outcome


@pytest.mark.parametrize("gpa", [IOAPIC_GPA, IOAPIC_GPA + 0x10, IOAPIC_GPA + 3, END - 4])
def test_a_register_may_hold_anything_and_no_exit_shows(gpa: int) -> None:
    (choice,) = model().allowed(Touch(gpa))
    assert choice.rule.name == "ioapic"
    for value in (0, 0x170011, 0xFFFFFFFF):
        assert choice.outcome.admits(Touched(value))
        assert not choice.outcome.admits(Touched(value, (Mmio(gpa, False, b"\xff" * 4),)))


@pytest.mark.parametrize(("width", "unknown"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFFFFFF)])
def test_only_what_was_read_may_be_anything(width: Literal[1, 2, 4], unknown: int) -> None:
    outcome = outcome_of(Touch(IOAPIC_GPA, width=width))
    assert outcome.unknown == unknown
    assert not outcome.admits(Touched(unknown + 1))


def test_a_write_is_taken_without_an_exit() -> None:
    assert outcome_of(Touch(IOAPIC_GPA, "write", value=5)) == Touched(0)


@pytest.mark.parametrize("gpa", [IOAPIC_GPA - 4, END - 1, END, IOAPIC_GPA + 0xFF8])
def test_what_is_not_within_the_registers_as_a_whole_is_a_hole(gpa: int) -> None:
    assert outcome_of(Touch(gpa)).mmio == (Mmio(gpa, False, b"\xff" * 4),)
    assert outcome_of(Touch(gpa, "write", value=1)).mmio == (Mmio(gpa, True, b"\1\0\0\0"),)


WHOLE = CoalesceMmio(IOAPIC_GPA, IOAPIC_SIZE_BYTES)
PART = IoEventFd("bell", IOAPIC_GPA + 0x10, 4)


@pytest.mark.parametrize("devices", [(WHOLE,), (WHOLE, WHOLE), (PART,), (WHOLE, PART)])
def test_what_lies_over_a_part_of_the_registers_may_hide_them(
    devices: tuple[CoalesceMmio | IoEventFd, ...],
) -> None:
    made = Model((Mapping("a", 1),), Features(coalesced_mmio=True, ioeventfd=True))
    for device in (*devices, CreateIrqchip()):
        made.prefer(device)
    assert made.allowed(Touch(IOAPIC_GPA, "write")) == ()
    assert made.allowed(Sweep(IOAPIC_GPA, 2)) == ()
    assert outcome_of(Touch(IOAPIC_GPA - 4), made).mmio
    if PART in devices:
        assert made.allowed(Touch(IOAPIC_GPA)) == ()
    else:
        assert outcome_of(Touch(IOAPIC_GPA), made).unknown


def test_an_access_from_the_page_before_is_split_between_both() -> None:
    read = outcome_of(Touch(IOAPIC_GPA - 1))
    assert read.mmio == (Mmio(IOAPIC_GPA - 1, False, b"\xff"),)
    assert (read.value, read.unknown) == (0xFF, 0xFFFFFF00)
    assert read.admits(Touched(0x123456FF, read.mmio))
    assert not read.admits(Touched(0x12345600, read.mmio))
    written = outcome_of(Touch(IOAPIC_GPA - 1, "write", value=0x04030201))
    assert written == Touched(0, (Mmio(IOAPIC_GPA - 1, True, b"\1"),))


def test_a_slot_over_the_registers_is_memory_but_for_writes_to_a_readonly_one() -> None:
    made = model()
    made.prefer(SLOT)
    assert not outcome_of(Touch(IOAPIC_GPA), made).unknown
    made = model()
    made.prefer(SetUserMemoryRegion(1, IOAPIC_GPA, 0x1000, Place("a"), READONLY))
    assert not outcome_of(Touch(IOAPIC_GPA), made).unknown
    assert outcome_of(Touch(IOAPIC_GPA, "write", value=1), made) == Touched(0)
    assert len(outcome_of(Touch(END, "write", value=1), made).mmio) == 1


def test_without_an_irqchip_and_in_the_next_vm_it_is_a_hole() -> None:
    assert outcome_of(Touch(IOAPIC_GPA), Model((), Features())).mmio
    made = model()
    made.prefer(NewVm())
    assert outcome_of(Touch(IOAPIC_GPA), made).mmio


def test_string_instructions_and_races_over_it_are_not_known() -> None:
    assert model().allowed(Sweep(IOAPIC_GPA - 4, 4, "read")) == ()
    for gpa in (IOAPIC_GPA, APIC_GPA):
        race = Race((), (GuestThread((Touch(gpa),), 1),))
        assert model().follow(Event(0, race, Raced((), ((),), ((),)))).unknown


def test_a_touch_without_unknown_bits_admits_itself_alone() -> None:
    outcomes: tuple[AnyOutcome, ...] = (Touched(2), Touched(1, (Mmio(0, False, b"\1"),)), Done())
    assert Touched(1).admits(Touched(1))
    assert not any(Touched(1).admits(each) for each in outcomes)
    assert not Touched(0, unknown=0xFF).admits(Done())
