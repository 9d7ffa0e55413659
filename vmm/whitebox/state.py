"""Reads the metadata of one slot: dirty bitmap, counts of large pages, rmaps."""

from collections.abc import Iterator
from struct import Struct, calcsize

from vmm.scenario.kernelslots import KernelSlot, SlotState
from vmm.whitebox.layout import Layout
from vmm.whitebox.reading import S32, U32, U64, Read, slot_from

MOST_DIRTY_PAGES = 1 << 15
"""The dirty bitmap of a slot with more pages is not read."""

_LEVELS = (9, 18)
"""Shifts from a gfn to a page of 2 MiB, and of 1 GiB."""

_ENDS = 16
"""How many entries are read at each end of a slot."""

_MIXED = 1 << 31
"""KVM_LPAGE_MIXED_FLAG: shared and private pages; it is not part of the count."""


def read_state(read: Read, layout: Layout, vm: int, slot: bytes) -> SlotState:
    """Return the metadata of the slot with these bytes. Raises OSError."""
    fields = slot_from(slot, layout)
    bitmap = int(U64.unpack_from(slot, layout.slot_dirty_bitmap)[0])
    dirty: tuple[int, ...] | None = ()
    if bitmap:
        fits = fields.npages <= MOST_DIRTY_PAGES
        dirty = tuple(_bits(read(bitmap, -(-fields.npages // 64) * 8))) if fits else None
    large = []
    for number, shift in enumerate(_LEVELS):
        info = int(U64.unpack_from(slot, layout.slot_lpage_info + 8 * number)[0])
        large.append(tuple(_counts(read, info, _entries(fields, shift))))
    shadows = read(vm + layout.kvm_indirect_shadow_pages, 4)
    is_shadowing = bool(U32.unpack(shadows)[0])
    rmaps = []
    for number, shift in enumerate((0, *_LEVELS)):
        heads = int(U64.unpack_from(slot, layout.slot_rmap + 8 * number)[0])
        rmaps.append(_mapped(read, heads, _entries(fields, shift)) if heads else None)
    return SlotState(fields.slot_id, bool(bitmap), dirty, tuple(large), is_shadowing, tuple(rmaps))


def _entries(fields: KernelSlot, shift: int) -> int:
    """Return how many entries a slot's array has with one for each page of a size."""
    last = fields.base_gfn + fields.npages - 1
    return (last >> shift) - (fields.base_gfn >> shift) + 1


def _bits(data: bytes) -> Iterator[int]:
    """Yield the numbers of the bits that are set."""
    bits = int.from_bytes(data, "little")
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def _counts(read: Read, info: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield (index, count) at both ends of an array of struct kvm_lpage_info."""
    if info:
        for index, value in _at_both_ends(read, info, count, "I"):
            yield index, S32.unpack(U32.pack(value & ~_MIXED))[0]


def _mapped(read: Read, heads: int, count: int) -> tuple[int, ...]:
    """Return the indexes of non-empty entries at both ends of an array of struct kvm_rmap_head."""
    return tuple(index for index, value in _at_both_ends(read, heads, count, "Q") if value)


def _at_both_ends(read: Read, array: int, count: int, kind: str) -> Iterator[tuple[int, int]]:
    """Yield (index, value) at both ends of an array of numbers in `struct` format ``kind``."""
    size = calcsize(kind)
    for indexes in (range(min(count, _ENDS)), range(max(count - _ENDS, _ENDS), count)):
        if len(indexes):
            data = read(array + size * indexes[0], size * len(indexes))
            values = Struct(f"<{len(indexes)}{kind}").unpack(data)
            yield from zip(indexes, values, strict=True)
