"""What the kernel's trees of memslots must be after a region operation (Linux 5.17 and later).

The entries must be the model's slots. That the trees and the table are consistent, and that both
copies are equal, is checked on the kernel's data alone. Internal slots, whose ids are above the
user's last one, are not in the model, and get only these checks.
"""

from itertools import pairwise

import msgspec

from vmm.model.array import Change
from vmm.model.heldslots import HeldSlots
from vmm.model.regions import Memslot
from vmm.model.rule import Rule, source
from vmm.model.trees import interval_flaw, tree_flaw
from vmm.scenario.kernelslots import NONE, KernelSlots, KernelTrees, SlotSet
from vmm.scenario.operations import PAGE_SIZE_BYTES

KERNEL_TREES = source(
    "kernel-trees",
    "both copies of the kernel's memslots hold exactly the slots that exist, by gfn in a red-black "
    "tree, by hva in an interval tree, and by id in a hash table",
    "a54d806688fe; kvm_replace_memslot",
)
KERNEL_GENERATION = source(
    "kernel-generation",
    "the generation of memslots grows by the number of address spaces when a slot is created or "
    "its flags change, by twice as much when one is deleted or moved, and else not at all",
    "361209e054a2; kvm_swap_active_memslots",
)
KERNEL_PAGE_COUNT = source(
    "kernel-page-count",
    "the kernel counts as many pages in slots as there are, in all address spaces together: a "
    "creation adds a slot's, a deletion takes them away, nothing else changes the count",
    "kvm_commit_memory_region: nr_memslot_pages",
)

UPDATE_IN_PROGRESS = 1 << 63
_GOLDEN_RATIO_32 = 0x61C88647
_BUCKET_BITS = 7


class KernelFlaw(msgspec.Struct, frozen=True):
    """What is wrong with the kernel's own slots: the rule, what they should be, what they are."""

    rule: Rule
    expected: str
    observed: str


def change_of(old: Memslot | None, new: Memslot | None) -> Change | None:
    """Return which change leads from one state of a slot to another; None if none does."""
    if old is None:
        return None if new is None else Change.CREATE
    if new is None:
        return Change.DELETE
    if new.base_gfn != old.base_gfn:
        return Change.MOVE
    return Change.FLAGS_ONLY if new.flags != old.flags else None


def generation_flaw(
    kernel: KernelSlots, change: Change | None, spaces: int, is_undone: bool
) -> KernelFlaw | None:
    """Return what is wrong with the generation after a change among ``spaces`` address spaces.

    ``is_undone`` says that a refusal may have come after the kernel had removed the slot, so that
    it was put back: that is two changes, too.
    """
    now = kernel.generation
    if now & UPDATE_IN_PROGRESS:
        return KernelFlaw(KERNEL_GENERATION, "no update in progress", f"generation {now:#x}")
    match change:
        case None:
            allowed = (0, 2 * spaces) if is_undone else (0,)
        case Change.CREATE | Change.FLAGS_ONLY:
            allowed = (spaces,)
        case Change.DELETE | Change.MOVE:
            allowed = (2 * spaces,)
    grown = now - kernel.before
    if grown in allowed:
        return None
    wanted = " or ".join(f"{kernel.before + each}" for each in allowed)
    return KernelFlaw(KERNEL_GENERATION, f"generation {wanted}", f"generation {now}")


def page_count_flaw(kernel: KernelTrees, pages: int) -> KernelFlaw | None:
    """Return what is wrong with the number of pages that the kernel counts in all slots."""
    if kernel.pages in (None, pages):
        return None
    return KernelFlaw(KERNEL_PAGE_COUNT, f"{pages} pages in all slots", f"{kernel.pages}")


class TreeRules:
    """Compares the kernel's trees with the model, over one history."""

    def __init__(self, held: HeldSlots) -> None:
        self._held = held

    def flaw(self, kernel: KernelTrees, wanted: list[Memslot]) -> KernelFlaw | None:
        """Return the first thing that is wrong; ``wanted`` are the slots from the highest gfn."""
        for name, each in (("copy in use", kernel.active), ("other copy", kernel.inactive)):
            observed = self._set_flaw(kernel, each, wanted)
            if observed:
                slots = ", ".join(f"{slot.slot_id}" for slot in reversed(wanted)) or "none"
                expected = f"both copies hold, by gfn, the slots: {slots}"
                return KernelFlaw(KERNEL_TREES, expected, f"in the {name}, {observed}")
        if kernel.active.node_idx == kernel.inactive.node_idx:
            index = kernel.active.node_idx
            return KernelFlaw(
                KERNEL_TREES, "each copy has a node_idx of its own", f"node_idx {index} twice"
            )
        return None

    def _set_flaw(self, kernel: KernelTrees, each: SlotSet, wanted: list[Memslot]) -> str:
        if each.cut:
            return each.cut
        if each.node_idx not in (0, 1):
            return f"node_idx is {each.node_idx}"
        trees = (
            ("gfn_tree", each.gfn_tree, each.gfn_root),
            ("hva_tree", each.hva_tree, each.hva_root),
        )
        for name, nodes, root in trees:
            if any(node.slot not in range(len(kernel.slots)) for node in nodes):
                return f"{name}: a node is no slot"
            flaw = tree_flaw(nodes, root)
            if flaw:
                return f"{name}: {flaw}"
        return (
            self._gfns_flaw(kernel, each, wanted)
            or self._hvas_flaw(kernel, each)
            or _hash_flaw(kernel, each)
            or _last_used_flaw(each)
        )

    def _gfns_flaw(self, kernel: KernelTrees, each: SlotSet, wanted: list[Memslot]) -> str:
        """Check the tree by gfn: its order, and each slot against the model."""
        found = [kernel.slots[node.slot] for node in each.gfn_tree]
        for one, other in pairwise(found):
            if one.base_gfn + one.npages > other.base_gfn:
                return (
                    f"gfn_tree: slot {other.slot_id} at gfn {other.base_gfn:#x} comes after slot "
                    f"{one.slot_id} at gfn {one.base_gfn:#x} with {one.npages} pages"
                )
        users = self._held.users(found)
        ids = [slot.slot_id for slot in users]
        if ids != [slot.slot_id for slot in reversed(wanted)]:
            return f"gfn_tree: the slots are {', '.join(map(str, ids)) or 'none'}"
        for slot, expected in zip(users, reversed(wanted), strict=True):
            flaw = self._held.flaw(kernel.as_id, slot, expected)
            if flaw:
                return f"slot {slot.slot_id}: {flaw}"
        return ""

    def _hvas_flaw(self, kernel: KernelTrees, each: SlotSet) -> str:
        if {node.slot for node in each.hva_tree} != {node.slot for node in each.gfn_tree}:
            return "hva_tree: the slots are not those of gfn_tree"
        flaw = interval_flaw(each.hva_tree, each.intervals, each.hva_leftmost)
        if flaw:
            return f"hva_tree: {flaw}"
        for node, interval in zip(each.hva_tree, each.intervals, strict=True):
            slot = kernel.slots[node.slot]
            last = slot.userspace_addr + slot.npages * PAGE_SIZE_BYTES - 1
            if (interval.start, interval.last) != (slot.userspace_addr, last):
                return (
                    f"hva_tree: slot {slot.slot_id} has {interval.start:#x} to {interval.last:#x}, "
                    f"not {slot.userspace_addr:#x} to {last:#x}"
                )
        return ""


def _hash_flaw(kernel: KernelTrees, each: SlotSet) -> str:
    entries = [entry for _, entry in each.id_hash]
    missing = {node.slot for node in each.gfn_tree}.difference(entries)
    if missing:
        return f"id_hash: slot {kernel.slots[min(missing)].slot_id} is missing"
    if len(entries) != len(each.gfn_tree):
        return f"id_hash: {len(entries)} entries for {len(each.gfn_tree)} slots"
    for bucket, entry in each.id_hash:
        slot_id = kernel.slots[entry].slot_id
        if bucket != bucket_of(slot_id):
            return f"id_hash: slot {slot_id} is in bucket {bucket}, not in {bucket_of(slot_id)}"
    return ""


def _last_used_flaw(each: SlotSet) -> str:
    """Check that the slot where a search begins is in the tree, or none."""
    if each.last_used == NONE or any(node.slot == each.last_used for node in each.gfn_tree):
        return ""
    return "last_used_slot is none of its slots"


def bucket_of(slot_id: int) -> int:
    """Return the bucket of an id in a table of 128 (hash_32 of include/linux/hash.h)."""
    return (slot_id * _GOLDEN_RATIO_32 & 0xFFFF_FFFF) >> (32 - _BUCKET_BITS)
