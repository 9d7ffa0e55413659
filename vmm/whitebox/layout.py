"""The offsets of fields in the kernel's structures, in bytes.

`dwarf` or `btf` gives the offsets of a structure's members; everything else follows from them, even
the lengths of arrays: an array ends where the next member begins.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

_NODE = 48
"""struct interval_tree_node: an rb_node (24 bytes), start, last, __subtree_last."""
_RB_NODE = 24
_HLIST_NODE = 16


@dataclass(frozen=True, slots=True)
class Structure:
    """The size of a structure, and the offsets of its members."""

    size: int
    offsets: Mapping[str, int]

    def at(self, *names: str) -> int:
        """Return a member's offset, by the first of its names that exists. Raises KeyError."""
        for name in names:
            if name in self.offsets:
                return self.offsets[name]
        raise KeyError(names[0])

    def room(self, name: str) -> int:
        """Return how many bytes there are from a member to the next one."""
        start = self.at(name)
        return min((each for each in self.offsets.values() if each > start), default=self.size) - (
            start
        )


class _Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Common to all kernels: offsets of fields, named STRUCTURE_FIELD, and sizes."""

    kvm_vm_list: int
    kvm_userspace_pid: int
    kvm_memslots: int
    spaces: int
    set_generation: int
    slot_size: int
    slot_base_gfn: int
    slot_npages: int
    slot_userspace_addr: int
    slot_flags: int
    slot_id: int
    slot_as_id: int
    slot_dirty_bitmap: int
    slot_lpage_info: int
    slot_rmap: int
    kvm_indirect_shadow_pages: int


class TreeLayout(_Layout, frozen=True, tag="trees"):
    """Linux 5.17 and later: offsets of fields, named STRUCTURE_FIELD, and sizes."""

    kvm_sets: int
    kvm_slot_pages: int
    set_size: int
    set_hva_tree: int
    set_hva_leftmost: int
    set_gfn_tree: int
    set_id_hash: int
    set_buckets: int
    set_node_idx: int
    set_last_used: int
    slot_id_node: int
    slot_hva_node: int
    hva_node_size: int
    hva_node_start: int
    slot_gfn_node: int
    rb_node_size: int
    hlist_node_size: int


class ArrayLayout(_Layout, frozen=True, tag="array"):
    """Linux 5.7 to 5.16: offsets of fields, named STRUCTURE_FIELD, and sizes.

    ``set_ids`` is the length of id_to_index.
    """

    set_id_to_index: int
    set_ids: int
    set_lru_slot: int
    set_used_slots: int
    set_entries: int


Layout: TypeAlias = TreeLayout | ArrayLayout


def layout_of(structure: Callable[[str], Structure]) -> Layout:
    """Return the layout of a kernel's structures.

    ``structure`` finds one by its name. Raises LookupError if one or a member is missing, and
    ValueError for memslots that are neither trees nor an array with used_slots.
    """
    kvm, sets, slot = map(structure, ("kvm", "kvm_memslots", "kvm_memory_slot"))
    if "gfn_tree" in sets.offsets:
        return _trees(kvm, sets, slot, _shared(structure))
    if "id_to_index" in sets.offsets and "used_slots" in sets.offsets:
        return _array(sets, _shared(structure))
    raise ValueError("this kernel's memslots are neither trees nor an array of used_slots")


def _shared(structure: Callable[[str], Structure]) -> dict[str, int]:
    """Return the fields of `_Layout`."""
    kvm, sets, slot = map(structure, ("kvm", "kvm_memslots", "kvm_memory_slot"))
    of_kvm, of_slot = map(structure, ("kvm_arch", "kvm_arch_memory_slot"))
    return {
        "kvm_vm_list": kvm.at("vm_list"),
        "kvm_userspace_pid": kvm.at("userspace_pid"),
        "kvm_memslots": kvm.at("memslots"),
        "spaces": kvm.room("memslots") // 8,
        "set_generation": sets.at("generation"),
        "slot_size": slot.size,
        "slot_base_gfn": slot.at("base_gfn"),
        "slot_npages": slot.at("npages"),
        "slot_userspace_addr": slot.at("userspace_addr"),
        "slot_flags": slot.at("flags"),
        "slot_id": slot.at("id"),
        "slot_as_id": slot.at("as_id"),
        "slot_dirty_bitmap": slot.at("dirty_bitmap"),
        "slot_lpage_info": slot.at("arch") + of_slot.at("lpage_info"),
        "slot_rmap": slot.at("arch") + of_slot.at("rmap"),
        "kvm_indirect_shadow_pages": kvm.at("arch") + of_kvm.at("indirect_shadow_pages"),
    }


def _trees(kvm: Structure, sets: Structure, slot: Structure, shared: dict[str, int]) -> TreeLayout:
    rooms = {"id_node": _HLIST_NODE, "hva_node": _NODE, "gfn_node": _RB_NODE}
    for name, size in rooms.items():
        if slot.room(name) != 2 * size:
            raise ValueError(f"kvm_memory_slot.{name} has a layout that is not known here")
    hva_tree = sets.at("hva_tree")
    return TreeLayout(
        **shared,
        kvm_sets=kvm.at("__memslots"),
        kvm_slot_pages=kvm.at("nr_memslot_pages"),
        set_size=sets.size,
        set_hva_tree=hva_tree,
        set_hva_leftmost=hva_tree + 8,
        set_gfn_tree=sets.at("gfn_tree"),
        set_id_hash=sets.at("id_hash"),
        set_buckets=sets.room("id_hash") // 8,
        set_node_idx=sets.at("node_idx"),
        set_last_used=sets.at("last_used_slot"),
        slot_id_node=slot.at("id_node"),
        slot_hva_node=slot.at("hva_node"),
        hva_node_size=_NODE,
        hva_node_start=24,
        slot_gfn_node=slot.at("gfn_node"),
        rb_node_size=_RB_NODE,
        hlist_node_size=_HLIST_NODE,
    )


def _array(sets: Structure, shared: dict[str, int]) -> ArrayLayout:
    # 87689270b10f renamed it.
    lru_slot = sets.at("lru_slot", "last_used_slot")
    return ArrayLayout(
        **shared,
        set_id_to_index=sets.at("id_to_index"),
        # There are at most SHRT_MAX ids; padding may follow.
        set_ids=min(sets.room("id_to_index") // 2, 0x7FFF),
        set_lru_slot=lru_slot,
        set_used_slots=sets.at("used_slots"),
        set_entries=sets.at("memslots"),
    )
