"""Accesses of every width across the borders of slots, string instructions, and two vCPUs."""

from collections.abc import Iterator
from typing import Literal

from vmm.catalogue._area import Area
from vmm.catalogue._build import API, API_MMIO, Slot, at, creates, read
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    HostWrite,
    Place,
    Sweep,
    Touch,
)

_LOW = Slot(1, 0x100, at("a"))
_HIGH = Slot(2, 0x101, at("b"))
_BORDER = 0x101 * PAGE_SIZE_BYTES
_SPLIT = "api.rst 5, KVM_EXIT_MMIO; emulator_read_write"


_WIDTHS: tuple[Literal[1, 2, 4], ...] = (1, 2, 4)


def _straddles(border: int) -> Iterator[Touch]:
    """Yield a write and a read for each position across a border, or just beside it."""
    for width in _WIDTHS:
        for before in range(width + 1):
            yield Touch(border - before, "write", width, 0xF1E2D3C4 ^ (width << 4 | before))
            yield Touch(border - before, width=width)


_access = Area(tags=("access",), source=API)


_STRADDLES = (
    _access(
        "straddle-two-pages-of-a-slot",
        "An access across a page border inside a slot reaches both pages.",
        Slot(1, 0x100, at("a"), pages=2).create(),
        *_straddles(_BORDER),
        tags=("straddle",),
    ),
    _access(
        "straddle-two-slots",
        "An access across the border of two slots reaches memory of both, and does not exit.",
        *creates(_LOW, _HIGH),
        *_straddles(_BORDER),
        tags=("straddle",),
    ),
    _access(
        "straddle-two-slots-against-the-order-of-hvas",
        "The second part of an access is looked up by its gpa, not where the first part ended.",
        *creates(Slot(1, 0x100, at("a", 5)), Slot(2, 0x101, at("a", 2))),
        *_straddles(_BORDER),
        tags=("straddle",),
    ),
    _access(
        "straddle-slot-and-hole",
        "If an access crosses the end of a slot, only the part outside exits.",
        _LOW.create(),
        *_straddles(_BORDER),
        source=_SPLIT,
        tags=("straddle",),
    ),
    _access(
        "straddle-hole-and-slot",
        "If an access crosses the start of a slot, only the part outside exits.",
        _HIGH.create(),
        *_straddles(_BORDER),
        source=_SPLIT,
        tags=("straddle",),
    ),
    _access(
        "straddle-a-border-that-a-deletion-made",
        "Deleting one of two adjacent slots makes a border, and creating it again removes the "
        "border.",
        *creates(_LOW, _HIGH),
        Touch(_BORDER - 2),
        _HIGH.delete(),
        *_straddles(_BORDER),
        _LOW.delete(),
        Touch(_BORDER - 2),
        source=_SPLIT,
        tags=("straddle",),
    ),
    _access(
        "straddle-a-border-that-a-move-made",
        "A slot that moves one page away leaves a hole of one page.",
        *creates(_LOW, _HIGH),
        _HIGH.move(0x102),
        Touch(_BORDER - 1, "write", 2, 0xBEEF),
        Touch(_BORDER + PAGE_SIZE_BYTES - 3, "write", 4, 0xCAFEBABE),
        Touch(_BORDER - 1, width=2),
        Touch(_BORDER + PAGE_SIZE_BYTES - 3),
        source=_SPLIT,
        tags=("straddle",),
    ),
)

_THREE = Slot(3, 0x102, at("a", 1))

_SWEEPS = (
    _access(
        "sweep-over-many-pages",
        "A string instruction reads page after page, each with its own content.",
        Slot(1, 0x100, at("a"), pages=4).create(),
        Sweep(0x100 * PAGE_SIZE_BYTES, 4096),
        Sweep(0x100 * PAGE_SIZE_BYTES + 0x400, 3072, "write", 4, 0x0DDBA115),
        Sweep(0x100 * PAGE_SIZE_BYTES, 4096),
        tags=("sweep",),
    ),
    _access(
        "sweep-over-two-slots",
        "A string instruction continues in the next slot.",
        *creates(_LOW, _HIGH),
        Sweep(_BORDER - 64, 128, "write", 1, 0x7E),
        Sweep(_BORDER - 64, 32),
        # The elements do not line up with the border: one of them straddles it.
        Sweep(_BORDER - 63, 31, "write", 4, 0x1B2B3B4B),
        Sweep(_BORDER - 63, 63, width=2),
        tags=("sweep",),
    ),
    _access(
        "sweep-from-a-slot-into-a-hole",
        "The elements outside exit one by one; those inside are in memory.",
        _LOW.create(),
        Sweep(_BORDER - 32, 16, "write", 4, 0x31415926),
        Sweep(_BORDER - 32, 16),
        Sweep(_BORDER - 30, 16, "write", 4, 0x27182818),
        source=_SPLIT,
        tags=("sweep",),
    ),
    _access(
        "sweep-from-a-hole-into-a-slot",
        "After exits the instruction continues in memory.",
        _HIGH.create(),
        Sweep(_BORDER - 32, 16, "write", 4, 0x31415926),
        Sweep(_BORDER - 32, 16),
        Sweep(_BORDER - 30, 32, width=2),
        source=_SPLIT,
        tags=("sweep",),
    ),
    _access(
        "sweep-over-a-hole-in-the-middle",
        "A string instruction exits for a hole of one page between two slots.",
        *creates(_LOW, _HIGH, _THREE),
        _HIGH.delete(),
        Sweep(_BORDER - 16, 1032),
        Sweep(_BORDER - 16, 1032, "write", 4, 0x50505050),
        source=_SPLIT,
        tags=("sweep",),
    ),
)

_MMIO = (
    _access(
        "mmio-without-any-slot",
        "A gpa that no slot covers exits for reads and writes of every width.",
        *(Touch(0x100000 + width, width=width) for width in _WIDTHS),
        *(Touch(0x100000 + width, "write", width, 0x89ABCDEF) for width in _WIDTHS),
        Touch(0),
        Touch(0xFFFEFFFC),
        source=API_MMIO,
        tags=("mmio",),
    ),
    _access(
        "mmio-then-memory-then-mmio",
        "A gpa that is cached as MMIO is forgotten at every change of the slots.",
        read(0x100),
        _LOW.create(),
        read(0x100),
        _LOW.delete(),
        read(0x100),
        _LOW.create(),
        read(0x100),
        source="152482580a1b, ddfd1730fd82",
        tags=("mmio",),
    ),
    _access(
        "host-writes-are-seen",
        "The guest reads what the host writes to the mapping of a slot.",
        _LOW.create(),
        read(0x100, 0x200),
        HostWrite(Place("a", 0x200), 0x0A0B0C0D),
        read(0x100, 0x200),
        HostWrite(Place("a", 0xFFE), 0x01020304),
        Touch(_BORDER - 2),
        tags=("content",),
    ),
)

SCENARIOS = (*_MMIO, *_STRADDLES, *_SWEEPS)
"""All scenarios about how an access is split."""
