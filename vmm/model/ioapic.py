"""The I/O APIC of KVM_CREATE_IRQCHIP, whose registers the kernel answers.

KVM tries it where an access finds no memory: at a gpa without a slot, and for a write to a READONLY
slot. A device answers an access, or the part of it in one page, that lies entirely within its
registers (``kvm_io_bus_cmp``). The PIC and the PIT, which that call creates, too, only have ports.
"""

from collections.abc import Iterable

from kvm_abi.uapi import IOAPIC_GPA, IOAPIC_SIZE_BYTES
from vmm.model.backing import Piece
from vmm.model.rule import documented

IOAPIC = documented(
    "ioapic",
    "the I/O APIC of KVM_CREATE_IRQCHIP answers at 0xfec00000 to 0xfec000ff in the kernel: no exit",
    "api.rst 4.24; ioapic_mmio_read, ioapic_mmio_write, kvm_io_bus_cmp",
)

REGISTERS = (IOAPIC_GPA, IOAPIC_SIZE_BYTES)
"""The gpa and the size of its registers."""

_END = IOAPIC_GPA + IOAPIC_SIZE_BYTES


def answers(piece: Piece) -> bool:
    """Whether the I/O APIC answers an access to gpas where there is no memory."""
    return piece.gpa >= IOAPIC_GPA and piece.gpa + piece.length <= _END


def may_answer(gpa: int, end: int) -> bool:
    """Whether a range of gpas overlaps the registers."""
    return gpa < _END and end > IOAPIC_GPA


def unknown_bits(gpa: int, pieces: Iterable[Piece]) -> int:
    """Return the bits that some pieces contribute to a value read from ``gpa`` on."""
    mask = 0
    for piece in pieces:
        mask |= ((1 << 8 * piece.length) - 1) << 8 * (piece.gpa - gpa)
    return mask
