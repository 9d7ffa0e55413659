"""The kernel's own memslots for tests: correct ones, which tests can corrupt, and their memory."""

from collections.abc import Iterable
from struct import pack_into

from vmm.model.kernelslots import bucket_of
from vmm.scenario.kernelslots import (
    NONE,
    Interval,
    KernelArray,
    KernelSlot,
    KernelTrees,
    Node,
    SlotSet,
)
from vmm.whitebox.layout import ArrayLayout, TreeLayout

PAGE = 4096

VM_LIST = 0x1000

LAYOUT = TreeLayout(
    kvm_vm_list=16,
    kvm_userspace_pid=40,
    kvm_sets=64,
    kvm_slot_pages=8464,
    kvm_memslots=8192,
    spaces=2,
    set_size=1072,
    set_generation=0,
    set_last_used=8,
    set_hva_tree=16,
    set_hva_leftmost=24,
    set_gfn_tree=32,
    set_id_hash=40,
    set_buckets=128,
    set_node_idx=1064,
    slot_size=296,
    slot_id_node=0,
    slot_hva_node=32,
    hva_node_size=48,
    hva_node_start=24,
    slot_gfn_node=128,
    rb_node_size=24,
    hlist_node_size=16,
    slot_base_gfn=176,
    slot_npages=184,
    slot_userspace_addr=248,
    slot_flags=256,
    slot_id=260,
    slot_as_id=262,
    slot_dirty_bitmap=192,
    slot_lpage_info=224,
    slot_rmap=200,
    kvm_indirect_shadow_pages=8500,
)


ARRAY_LAYOUT = ArrayLayout(
    kvm_vm_list=16,
    kvm_userspace_pid=40,
    kvm_memslots=64,
    spaces=2,
    set_generation=0,
    set_id_to_index=8,
    set_ids=512,
    set_lru_slot=1032,
    set_used_slots=1036,
    set_entries=1040,
    slot_size=136,
    slot_base_gfn=0,
    slot_npages=8,
    slot_userspace_addr=112,
    slot_flags=120,
    slot_id=124,
    slot_as_id=126,
    slot_dirty_bitmap=16,
    slot_lpage_info=48,
    slot_rmap=24,
    kvm_indirect_shadow_pages=8500,
)


def held_array(
    slots: Iterable[KernelSlot], before: int, generation: int, lru_slot: int = 0
) -> KernelArray:
    """Return what a correct kernel with an array holds for some slots."""
    every = tuple(sorted(slots, key=lambda slot: -slot.base_gfn))
    indexes = tuple(sorted((slot.slot_id, index) for index, slot in enumerate(every)))
    return KernelArray(before, 0, every, generation, len(every), lru_slot, indexes)


def balanced(order: list[int]) -> tuple[int, tuple[Node, ...]]:
    """Return a red-black tree of slots in order, with red nodes on an incomplete deepest level."""
    nodes: dict[int, Node] = {}
    full = (len(order) + 1).bit_length() - 1

    def grow(low: int, high: int, parent: int, depth: int) -> int:
        if low == high:
            return NONE
        middle = (low + high) // 2
        slot = order[middle]
        left = grow(low, middle, slot, depth + 1)
        right = grow(middle + 1, high, slot, depth + 1)
        nodes[slot] = Node(slot, parent, left, right, depth < full)
        return slot

    root = grow(0, len(order), NONE, 0)
    return root, tuple(nodes[slot] for slot in order)


def intervals_of(
    nodes: tuple[Node, ...], root: int, slots: tuple[KernelSlot, ...]
) -> tuple[Interval, ...]:
    """Return the intervals of a tree by hva."""
    by_slot = {node.slot: node for node in nodes}
    found: dict[int, Interval] = {}

    def visit(slot: int) -> int:
        if slot == NONE:
            return -1
        start = slots[slot].userspace_addr
        last = start + slots[slot].npages * PAGE - 1
        most = max(last, visit(by_slot[slot].left), visit(by_slot[slot].right))
        found[slot] = Interval(start, last, most)
        return most

    visit(root)
    return tuple(found[node.slot] for node in nodes)


def held(
    slots: Iterable[KernelSlot], before: int, generation: int, node_idx: int = 0
) -> KernelTrees:
    """Return what a correct kernel holds for some slots."""
    every = tuple(slots)
    numbers = range(len(every))
    gfn_root, gfn_tree = balanced(sorted(numbers, key=lambda each: every[each].base_gfn))
    hva_root, hva_tree = balanced(sorted(numbers, key=lambda each: every[each].userspace_addr))

    def copy(generation: int, index: int) -> SlotSet:
        return SlotSet(
            generation,
            index,
            gfn_root,
            gfn_tree,
            hva_root,
            hva_tree[0].slot if hva_tree else NONE,
            hva_tree,
            intervals_of(hva_tree, hva_root, every),
            tuple((bucket_of(slot.slot_id), number) for number, slot in enumerate(every)),
            last_used=gfn_root,
        )

    active, inactive = copy(generation, node_idx), copy(max(generation - 2, 0), 1 - node_idx)
    return KernelTrees(before, 0, every, active, inactive)


class Memory:
    """A kernel's memory with one VM, made from what the kernel is to hold."""

    vm = 0x10000
    pid = 77

    def __init__(self, kernel: KernelTrees) -> None:
        self.data = bytearray(1 << 19)
        self._addresses = [0x20000 + 512 * number for number in range(len(kernel.slots))]
        self.word(VM_LIST, self.vm + LAYOUT.kvm_vm_list)
        self.word(self.vm + LAYOUT.kvm_vm_list, VM_LIST)
        pack_into("<i", self.data, self.vm + LAYOUT.kvm_userspace_pid, self.pid)
        for number, slot in enumerate(kernel.slots):
            self._slot(self._addresses[number], slot)
        for each in (kernel.active, kernel.inactive):
            self._set(self.set_address(each.node_idx), each)
        self.word(self.vm + LAYOUT.kvm_memslots, self.set_address(kernel.active.node_idx))

    def read(self, address: int, size: int) -> bytes:
        """Return some bytes. Raises OSError."""
        if address < 0x1000 or address + size > len(self.data):
            raise OSError(f"the kernel has no memory at {address:#x}")
        return bytes(self.data[address : address + size])

    def word(self, address: int, value: int) -> None:
        """Write 64 bits."""
        pack_into("<Q", self.data, address, value)

    def set_address(self, index: int) -> int:
        """Return the address of the copy with a node_idx."""
        return self.vm + LAYOUT.kvm_sets + index * LAYOUT.set_size

    def slot_address(self, number: int) -> int:
        """Return the address of a slot."""
        return self._addresses[number]

    def _slot(self, at: int, slot: KernelSlot) -> None:
        self.word(at + LAYOUT.slot_base_gfn, slot.base_gfn)
        self.word(at + LAYOUT.slot_npages, slot.npages)
        self.word(at + LAYOUT.slot_userspace_addr, slot.userspace_addr)
        pack_into("<I", self.data, at + LAYOUT.slot_flags, slot.flags)
        pack_into("<hH", self.data, at + LAYOUT.slot_id, slot.slot_id, slot.as_id)

    def _set(self, at: int, each: SlotSet) -> None:
        gfn = LAYOUT.slot_gfn_node + each.node_idx * LAYOUT.rb_node_size
        hva = LAYOUT.slot_hva_node + each.node_idx * LAYOUT.hva_node_size
        self.word(at + LAYOUT.set_generation, each.generation)
        pack_into("<i", self.data, at + LAYOUT.set_node_idx, each.node_idx)
        self.word(at + LAYOUT.set_gfn_tree, self._to(each.gfn_root, gfn))
        self.word(at + LAYOUT.set_hva_tree, self._to(each.hva_root, hva))
        self.word(at + LAYOUT.set_hva_leftmost, self._to(each.hva_leftmost, hva))
        self.word(at + LAYOUT.set_last_used, self._to(each.last_used, 0))
        for node in each.gfn_tree:
            self._node(node, gfn)
        for node, interval in zip(each.hva_tree, each.intervals, strict=True):
            self._node(node, hva)
            slot = self._addresses[node.slot] + hva
            self.word(slot + LAYOUT.hva_node_start, interval.start)
            self.word(slot + LAYOUT.hva_node_start + 8, interval.last)
            self.word(slot + LAYOUT.hva_node_start + 16, interval.subtree_last)
        entry = LAYOUT.slot_id_node + each.node_idx * LAYOUT.hlist_node_size
        for bucket, number in reversed(each.id_hash):
            head = at + LAYOUT.set_id_hash + 8 * bucket
            at_entry = self._addresses[number] + entry
            self.data[at_entry : at_entry + 8] = self.data[head : head + 8]
            self.word(head, at_entry)

    def _node(self, node: Node, member: int) -> None:
        at = self._addresses[node.slot] + member
        self.word(at, self._to(node.parent, member) | node.black)
        self.word(at + 8, self._to(node.right, member))
        self.word(at + 16, self._to(node.left, member))

    def _to(self, number: int, member: int) -> int:
        return 0 if number == NONE else self._addresses[number] + member
