"""The kernel's own memslots of an address space, as data.

Nothing here is checked: a wrong kernel may hold anything, and a history may be a stranger's. A slot
is named by its index in ``KernelSlots.slots``, since two may have the same id; -1 is none.

    >>> from vmm import kernelslots
    >>> slot = kernelslots.KernelSlot(
    ...     slot_id=1, as_id=0, base_gfn=0x10, npages=2, userspace_addr=0x7f0000000000, flags=0
    ... )
    >>> hex((slot.base_gfn + slot.npages) << 12)
    '0x12000'
"""

from typing import TypeAlias

import msgspec

NONE = -1
ELSEWHERE = -2
"""A pointer to something that is not among the slots of the list."""


class KernelSlot(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One struct kvm_memory_slot; ``userspace_addr`` is an address of the recorded process.

    >>> from vmm import kernelslots
    >>> slot = kernelslots.KernelSlot(
    ...     slot_id=1, as_id=0, base_gfn=0x100, npages=2, userspace_addr=0x7F00_0000, flags=0
    ... )
    >>> slot.npages
    2
    """

    slot_id: int
    as_id: int
    base_gfn: int
    npages: int
    userspace_addr: int
    flags: int


class SlotState(msgspec.Struct, frozen=True, gc=False):
    """The metadata of the slot that an operation named, after the operation, if it exists.

    ``dirty`` are the pages whose bit is set in its dirty bitmap; None if that was too long to be
    read. ``large`` has, for pages of 2 MiB and of 1 GiB, (index, count) of some of them, where the
    count is `disallow_lpage`: how many reasons forbid such a page. ``is_shadowing`` says whether
    the kernel shadows page tables of the guest, which is one reason. ``rmaps`` has, for pages of
    4 KiB, 2 MiB and 1 GiB, those indexes among the ones looked at where something is mapped; None
    if the kernel keeps no rmaps of that size.

    >>> from vmm import kernelslots
    >>> state = kernelslots.SlotState(
    ...     slot_id=1, has_bitmap=True, dirty=(0, 63), large=(((0, 1),), ()), is_shadowing=False
    ... )
    >>> state.large[0]  # One reason forbids the slot's first page of 2 MiB.
    ((0, 1),)
    """

    slot_id: int
    has_bitmap: bool
    dirty: tuple[int, ...] | None
    large: tuple[tuple[tuple[int, int], ...], ...]
    is_shadowing: bool
    rmaps: tuple[tuple[int, ...] | None, ...] = ()


class Node(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A node of a red-black tree; its neighbours are named as slots, like itself.

    >>> from vmm import kernelslots
    >>> kernelslots.Node(slot=1, parent=-1, left=-1, right=-1, black=True).black
    True
    """

    slot: int
    parent: int
    left: int
    right: int
    black: bool


class Interval(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The interval of a node in the tree of hvas, in bytes; ``last`` is inclusive.

    >>> from vmm import kernelslots
    >>> kernelslots.Interval(start=0x1000, last=0x2FFF, subtree_last=0x2FFF).last + 1 - 0x1000
    8192
    """

    start: int
    last: int
    subtree_last: int


class SlotSet(msgspec.Struct, frozen=True, gc=False):
    """One struct kvm_memslots. Nodes are in order (left, itself, right).

    ``intervals`` correspond to the nodes of ``hva_tree``. ``id_hash`` has (bucket, slot) for each
    entry. ``cut`` says where a pointer was invalid, or led to too many slots; empty if none did.
    ``last_used`` is the slot that was looked up last.

    >>> from vmm import kernelslots
    >>> node = kernelslots.Node(slot=1, parent=-1, left=-1, right=-1, black=True)
    >>> one = kernelslots.SlotSet(
    ...     generation=2, node_idx=0, gfn_root=1, gfn_tree=(node,),
    ...     hva_root=1, hva_leftmost=1, hva_tree=(node,),
    ...     intervals=(kernelslots.Interval(0x1000, 0x1FFF, 0x1FFF),), id_hash=((0, 1),),
    ... )
    >>> one.gfn_tree[0].slot == one.gfn_root
    True
    """

    generation: int
    node_idx: int
    gfn_root: int
    gfn_tree: tuple[Node, ...]
    hva_root: int
    hva_leftmost: int
    hva_tree: tuple[Node, ...]
    intervals: tuple[Interval, ...]
    id_hash: tuple[tuple[int, int], ...]
    cut: str = ""
    last_used: int = NONE


class KernelTrees(msgspec.Struct, frozen=True, gc=False, tag="trees", tag_field="kind"):
    """Linux 5.17 and later: both copies after a region operation, the one in use first.

    ``before`` is the generation that was in use before the operation. ``pages`` is how many pages
    the kernel counts in all slots of the VM; None where it is not known where it keeps that.

    >>> from vmm import kernelslots
    >>> empty = kernelslots.SlotSet(
    ...     generation=4, node_idx=0, gfn_root=-1, gfn_tree=(), hva_root=-1, hva_leftmost=-1,
    ...     hva_tree=(), intervals=(), id_hash=(),
    ... )
    >>> kernelslots.KernelTrees(2, as_id=0, slots=(), active=empty, inactive=empty).generation
    4
    """

    before: int
    as_id: int
    slots: tuple[KernelSlot, ...]
    active: SlotSet
    inactive: SlotSet
    changed: SlotState | None = None
    pages: int | None = None

    @property
    def generation(self) -> int:
        """The generation in use after the operation."""
        return self.active.generation


class KernelArray(msgspec.Struct, frozen=True, gc=False, tag="array", tag_field="kind"):
    """Linux 5.7 to 5.16: the array after a region operation, its entries in their order.

    ``id_to_index`` has (id, index) for each id whose index is not -1. ``before`` is the generation
    that was in use before the operation.

    >>> from vmm import kernelslots
    >>> array = kernelslots.KernelArray(
    ...     before=2, as_id=0, slots=(kernelslots.KernelSlot(1, 0, 0x100, 2, 0x7F00_0000, 0),),
    ...     generation=4, used_slots=1, lru_slot=0, id_to_index=((1, 0),),
    ... )
    >>> array.used_slots == len(array.slots)
    True
    """

    before: int
    as_id: int
    slots: tuple[KernelSlot, ...]
    generation: int
    used_slots: int
    lru_slot: int
    id_to_index: tuple[tuple[int, int], ...]
    changed: SlotState | None = None


KernelSlots: TypeAlias = KernelTrees | KernelArray
