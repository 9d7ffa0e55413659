"""The page of the local APIC: the instruction emulator treats it as MMIO even if a slot has it."""

import msgspec

from kvm_abi.uapi import APIC_GPA
from vmm.model.allowed import Allowed
from vmm.model.array import MemslotArray
from vmm.model.backing import Backing, Piece
from vmm.model.regions import Memslot
from vmm.model.rule import source
from vmm.scenario.operations import PAGE_SIZE_BYTES

APIC_PAGE = source(
    "apic-page",
    "the instruction emulator treats the APIC's page, 0xfee00000, as MMIO even if a slot lies "
    "there",
    "vcpu_is_mmio_gpa",
)


def is_apic_page(gpa: int, end: int, base: int = APIC_GPA) -> bool:
    """Whether a range of gpas overlaps the APIC's page."""
    return gpa < base + PAGE_SIZE_BYTES and end > base


class AsEmulated:
    """The pieces of an emulated access, for which the APIC's page is a hole."""

    def __init__(self, backing: Backing) -> None:
        self._backing = backing

    def pieces(
        self, slots: MemslotArray[Memslot], gpa: int, length: int, emulated: bool = False
    ) -> tuple[Piece, ...]:
        """Return what ``Backing.pieces`` does, except for that page."""
        return tuple(
            Piece(piece.gpa, piece.length, "hole")
            if is_apic_page(piece.gpa, piece.gpa + 1)
            else piece
            for piece in self._backing.pieces(slots, gpa, length, emulated)
        )


def either(usual: tuple[Allowed, ...], emulated: tuple[Allowed, ...]) -> tuple[Allowed, ...]:
    """Return the outcomes of an access that is either emulated or executed by the processor."""
    known = {choice.outcome for choice in usual}
    others = (msgspec.structs.replace(choice, rule=APIC_PAGE) for choice in emulated)
    return (*usual, *(choice for choice in others if choice.outcome not in known))


def by_the_emulator(allowed: tuple[Allowed, ...]) -> tuple[Allowed, ...]:
    """Return the outcomes of an instruction that KVM is sure to emulate."""
    return tuple(msgspec.structs.replace(choice, rule=APIC_PAGE) for choice in allowed)
