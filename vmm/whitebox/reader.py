"""From bytes of the kernel's memory to `KernelSlots`. It believes no pointer.

``read`` takes an address and a size, and raises OSError where there is no memory. Nothing in here
knows where the bytes come from: a test may make them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from struct import Struct

from vmm.scenario.kernelslots import (
    ELSEWHERE,
    NONE,
    Interval,
    KernelSlot,
    KernelSlots,
    Node,
    SlotSet,
)
from vmm.whitebox.layout import Layout

Read = Callable[[int, int], bytes]

MOST_SLOTS = 256
"""An address space with more is not looked at: each operation would copy all of them."""

_MOST_LEFT_OUT = 1024
_MOST_VMS = 4096
_U64, _U32, _S32 = Struct("<Q"), Struct("<I"), Struct("<i")
_S16, _U16 = Struct("<h"), Struct("<H")
_RB_LEFT, _RB_RIGHT = 16, 8
_RB_BLACK = 1


class NotFoundError(Exception):
    """The VM is not in the kernel's list."""


class Reader:
    """Reads the memslots of one VM: the newest that a process has made."""

    def __init__(self, read: Read, layout: Layout, pid: int) -> None:
        """Raises NotFoundError."""
        self._read = read
        self._layout = layout
        self._vm = _newest_vm(read, layout, pid)
        self._left_out = dict.fromkeys(range(layout.spaces), 0)
        self._leave_out = dict.fromkeys(range(layout.spaces), 1)

    def generation(self, as_id: int) -> int | None:
        """Return the generation of the copy in use; None if there is no such address space."""
        if as_id >= self._layout.spaces:
            return None
        return self._u64(self._active(as_id) + self._layout.set_generation)

    def slots(self, as_id: int, before: int) -> KernelSlots | None:
        """Return what the kernel holds; None for more than MOST_SLOTS slots.

        To find that out costs as much as to read so many: each time that there are too many, twice
        as many calls as the time before are answered None unseen, up to _MOST_LEFT_OUT.
        """
        if self._left_out[as_id]:
            self._left_out[as_id] -= 1
            return None
        active = self._active(as_id)
        known = _Slots(self._read, self._layout)
        first = self._vm + self._layout.kvm_sets + 2 * as_id * self._layout.set_size
        other = first if active != first else first + self._layout.set_size
        try:
            sets = [_Copy(self._read, self._layout, known, each).read() for each in (active, other)]
        except _TooManyError:
            self._left_out[as_id] = self._leave_out[as_id]
            self._leave_out[as_id] = min(2 * self._leave_out[as_id], _MOST_LEFT_OUT)
            return None
        self._leave_out[as_id] = 1
        return KernelSlots(before, as_id, tuple(known.read), *sets)

    def _active(self, as_id: int) -> int:
        return self._u64(self._vm + self._layout.kvm_memslots + 8 * as_id)

    def _u64(self, address: int) -> int:
        return int(_U64.unpack(self._read(address, 8))[0])


def _newest_vm(read: Read, layout: Layout, pid: int) -> int:
    """Return the address of the first VM of a process in the list: new ones come to its front."""
    at = layout.vm_list
    for _ in range(_MOST_VMS):
        (at,) = _U64.unpack(read(at, 8))
        if at == layout.vm_list:
            break
        vm = at - layout.kvm_vm_list
        if _S32.unpack(read(vm + layout.kvm_userspace_pid, 4))[0] == pid:
            return int(vm)
    raise NotFoundError(f"no VM of process {pid} in the kernel's list")


class _TooManyError(Exception):
    pass


class _Slots:
    """The slots met so far, by address."""

    def __init__(self, read: Read, layout: Layout) -> None:
        self._memory = read
        self._layout = layout
        self._numbers: dict[int, int] = {}
        self._bytes: list[bytes] = []
        self.read: list[KernelSlot] = []

    def meet(self, address: int) -> int:
        """Return the number of the slot at an address. Raises OSError."""
        number = self._numbers.get(address)
        if number is not None:
            return number
        if len(self.read) == MOST_SLOTS:
            raise _TooManyError
        data = self._memory(address, self._layout.slot_size)
        number = self._numbers[address] = len(self.read)
        self._bytes.append(data)
        self.read.append(_slot(data, self._layout))
        return number

    def number(self, address: int) -> int:
        """Return the number of a slot that may not have been met."""
        return self._numbers.get(address, ELSEWHERE)

    def bytes_of(self, number: int) -> bytes:
        return self._bytes[number]


def _slot(data: bytes, layout: Layout) -> KernelSlot:
    return KernelSlot(
        _S16.unpack_from(data, layout.slot_id)[0],
        _U16.unpack_from(data, layout.slot_as_id)[0],
        _U64.unpack_from(data, layout.slot_base_gfn)[0],
        _U64.unpack_from(data, layout.slot_npages)[0],
        _U64.unpack_from(data, layout.slot_userspace_addr)[0],
        _U32.unpack_from(data, layout.slot_flags)[0],
    )


@dataclass(frozen=True, slots=True)
class _Pointers:
    """What an rb_node holds, as the kernel does."""

    parent: int
    left: int
    right: int
    black: bool


class _Copy:
    """One struct kvm_memslots under way."""

    def __init__(self, read: Read, layout: Layout, slots: _Slots, address: int) -> None:
        self._layout = layout
        self._slots = slots
        self._data = read(address, layout.set_size)
        self._read = read
        self._cut = ""

    def read(self) -> SlotSet:
        layout = self._layout
        index = int(_S32.unpack_from(self._data, layout.set_node_idx)[0])
        # A wrong index would lead outside of the slots' arrays of two.
        at = index if index in (0, 1) else 0
        hva = layout.slot_hva_node + at * layout.hva_node_size
        gfn = layout.slot_gfn_node + at * layout.rb_node_size
        gfn_root, gfn_tree = self._tree("gfn_tree", layout.set_gfn_tree, gfn)
        hva_root, hva_tree = self._tree("hva_tree", layout.set_hva_tree, hva)
        leftmost = self._word(layout.set_hva_leftmost)
        return SlotSet(
            generation=self._word(layout.set_generation),
            node_idx=index,
            gfn_root=gfn_root,
            gfn_tree=gfn_tree,
            hva_root=hva_root,
            hva_leftmost=self._slots.number(leftmost - hva) if leftmost else NONE,
            hva_tree=hva_tree,
            intervals=tuple(self._interval(node.slot, hva) for node in hva_tree),
            id_hash=tuple(self._hash(layout.slot_id_node + at * layout.hlist_node_size)),
            cut=self._cut,
        )

    def _word(self, offset: int) -> int:
        return int(_U64.unpack_from(self._data, offset)[0])

    def _tree(self, name: str, root: int, member: int) -> tuple[int, tuple[Node, ...]]:
        """Return the root and the nodes in order, none twice; ``member`` is where a slot has it."""
        top = self._word(root)
        order: list[tuple[int, _Pointers]] = []
        met: set[int] = set()
        stack: list[tuple[int, _Pointers]] = []
        at = top
        try:
            while at or stack:
                while at:
                    if at in met:
                        raise OSError(f"a node of {name} is met twice")
                    met.add(at)
                    number = self._slots.meet(at - member)
                    pointers = _pointers(self._slots.bytes_of(number), member)
                    stack.append((number, pointers))
                    at = pointers.left
                number, pointers = stack.pop()
                order.append((number, pointers))
                at = pointers.right
        except OSError as error:
            self._cut = self._cut or f"{name}: {error}"

        def name_of(address: int) -> int:
            return self._slots.number(address - member) if address else NONE

        nodes = tuple(
            Node(number, name_of(each.parent), name_of(each.left), name_of(each.right), each.black)
            for number, each in order
        )
        return name_of(top), nodes

    def _interval(self, number: int, member: int) -> Interval:
        data, layout = self._slots.bytes_of(number), self._layout
        return Interval(
            _U64.unpack_from(data, member + layout.hva_node_start)[0],
            _U64.unpack_from(data, member + layout.hva_node_last)[0],
            _U64.unpack_from(data, member + layout.hva_node_subtree_last)[0],
        )

    def _hash(self, member: int) -> Iterator[tuple[int, int]]:
        met: set[int] = set()
        for bucket in range(self._layout.set_buckets):
            at = self._word(self._layout.set_id_hash + 8 * bucket)
            while at:
                try:
                    if at in met:
                        raise OSError("an entry of id_hash is met twice")
                    met.add(at)
                    number = self._slots.meet(at - member)
                except OSError as error:
                    self._cut = self._cut or f"id_hash: {error}"
                    break
                yield bucket, number
                (at,) = _U64.unpack_from(self._slots.bytes_of(number), member)


def _pointers(data: bytes, member: int) -> _Pointers:
    """Return what a struct rb_node holds: parent and colour in one word, right, left."""
    (parent,) = _U64.unpack_from(data, member)
    (right,) = _U64.unpack_from(data, member + _RB_RIGHT)
    (left,) = _U64.unpack_from(data, member + _RB_LEFT)
    return _Pointers(parent & ~3, left, right, bool(parent & _RB_BLACK))
