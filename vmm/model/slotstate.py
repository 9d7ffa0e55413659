"""What the metadata of a slot must be after a region operation (white box)."""

from collections.abc import Iterator

from vmm.model.kernelslots import KernelFlaw
from vmm.model.regions import Memslot
from vmm.model.rule import source
from vmm.scenario.kernelslots import KernelSlot, SlotState
from vmm.scenario.operations import GUEST_MEMFD, PAGE_SIZE_BYTES

KERNEL_DIRTY = source(
    "kernel-dirty-bitmap",
    "a slot has a dirty bitmap while its flags have LOG_DIRTY_PAGES, and no ring is in its place; "
    "the bits in it are those that KVM_GET_DIRTY_LOG would tell",
    "kvm_prepare_memory_region; kvm_alloc_dirty_bitmap",
)
KERNEL_LARGE_PAGES = source(
    "kernel-large-pages",
    "no large page is mapped where a slot begins or ends within one, and none in a slot whose gpa "
    "and hva lie differently in theirs; else one may be",
    "kvm_alloc_memslot_metadata; edd4fa37baa6",
)

KERNEL_RMAPS = source(
    "kernel-rmaps",
    "a slot that was created or moved just now has rmaps of its own, in which nothing is mapped, "
    "or none of any size",
    "kvm_alloc_memslot_metadata; memslot_rmap_alloc",
)

_LEVELS = ((9, "2 MiB"), (18, "1 GiB"))


def state_flaw(
    state: SlotState, held: KernelSlot, wanted: Memslot, has_ring: bool, is_new: bool
) -> KernelFlaw | None:
    """Return what is wrong with the metadata of a slot, which the kernel holds as ``held``.

    ``is_new`` says that it was just created or moved.
    """
    return (
        _dirty_flaw(state, wanted, has_ring)
        or _large_flaw(state, held)
        or _rmap_flaw(state, is_new)
    )


def _dirty_flaw(state: SlotState, wanted: Memslot, has_ring: bool) -> KernelFlaw | None:
    dirty = None if has_ring else wanted.dirty
    if state.has_bitmap != (dirty is not None):
        words = ("no dirty bitmap", "a dirty bitmap")
        return KernelFlaw(KERNEL_DIRTY, words[dirty is not None], words[state.has_bitmap])
    if dirty is None or state.dirty is None:
        return None
    found = set(state.dirty)
    wrong = (dirty - found) | (found - dirty - wanted.perhaps)
    if not wrong:
        return None
    page = min(wrong)
    words = ("clear", "set")
    return KernelFlaw(
        KERNEL_DIRTY,
        f"the bit of page {page} is {words[page in dirty]}",
        f"it is {words[page in found]}",
    )


def _large_flaw(state: SlotState, held: KernelSlot) -> KernelFlaw | None:
    if held.flags & GUEST_MEMFD:
        return None
    for (shift, name), counts in zip(_LEVELS, state.large, strict=False):
        barred = set(_barred(held, shift, [index for index, _ in counts]))
        for index, count in counts:
            # Shadowed page tables are the only other thing that counts.
            is_wrong = count < 1 if index in barred else count and not state.is_shadowing
            if is_wrong:
                expected = "at least 1" if index in barred else "0"
                return KernelFlaw(
                    KERNEL_LARGE_PAGES,
                    f"lpage_info of {name}, entry {index}: disallow_lpage {expected}",
                    f"disallow_lpage {count}",
                )
    return None


def _barred(held: KernelSlot, shift: int, indexes: list[int]) -> Iterator[int]:
    """Yield the indexes at which no page of a size may be mapped."""
    mask = (1 << shift) - 1
    if (held.base_gfn ^ held.userspace_addr // PAGE_SIZE_BYTES) & mask:
        yield from indexes
        return
    end = held.base_gfn + held.npages
    if held.base_gfn & mask:
        yield 0
    if end & mask:
        yield (end - 1 >> shift) - (held.base_gfn >> shift)


def _rmap_flaw(state: SlotState, is_new: bool) -> KernelFlaw | None:
    names = ("4 KiB", *(name for _, name in _LEVELS))
    sizes = [name for name, rmaps in zip(names, state.rmaps, strict=False) if rmaps is not None]
    if len(sizes) not in (0, len(state.rmaps)):
        return KernelFlaw(
            KERNEL_RMAPS, "rmaps of all sizes of pages, or of none", f"those of {', '.join(sizes)}"
        )
    for name, rmaps in zip(names, state.rmaps, strict=False):
        if is_new and rmaps:
            expected = f"no page of {name} is mapped in a slot that is new"
            return KernelFlaw(KERNEL_RMAPS, expected, f"rmap of entry {rmaps[0]} is not empty")
    return None
