"""Reads the two copies of an address space's memslots (Linux 5.17 and later)."""

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

from vmm.scenario.kernelslots import (
    ELSEWHERE,
    NONE,
    Interval,
    KernelSlot,
    KernelTrees,
    Node,
    SlotSet,
)
from vmm.whitebox.layout import TreeLayout
from vmm.whitebox.reading import (
    MOST_SLOTS,
    S32,
    U64,
    Look,
    Pages,
    Read,
    TooManyError,
    slot_from,
)
from vmm.whitebox.state import read_state

_RB_BLACK = 1
_THREE_WORDS = Struct("<QQQ")


def read_trees(read: Read, layout: TreeLayout, vm: int, active: int, look: Look) -> KernelTrees:
    """Return both copies, with the metadata of the slot looked for.

    ``active`` is the address of the copy in use. Raises TooManyError, and OSError if a copy cannot
    be read.
    """
    memory = Pages(read).read
    known = _Slots(memory, layout)
    first = vm + layout.kvm_sets + 2 * look.as_id * layout.set_size
    other = first if active != first else first + layout.set_size
    in_use, spare = (_Copy(memory, layout, known, each).read() for each in (active, other))
    data = known.with_id(look.slot_id)
    state = None if data is None else read_state(memory, layout, vm, data)
    (pages,) = U64.unpack(memory(vm + layout.kvm_slot_pages, 8))
    return KernelTrees(look.before, look.as_id, tuple(known.read), in_use, spare, state, pages)


class _Slots:
    """The slots met so far, by address."""

    def __init__(self, read: Read, layout: TreeLayout) -> None:
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
            raise TooManyError
        data = self._memory(address, self._layout.slot_size)
        number = self._numbers[address] = len(self.read)
        self._bytes.append(data)
        self.read.append(slot_from(data, self._layout))
        return number

    def number(self, address: int) -> int:
        """Return the number of a slot; ELSEWHERE if it has not been met."""
        return self._numbers.get(address, ELSEWHERE)

    def with_id(self, slot_id: int) -> bytes | None:
        """Return the bytes of the slot with an id, if there is exactly one."""
        found = [number for number, slot in enumerate(self.read) if slot.slot_id == slot_id]
        return self._bytes[found[0]] if len(found) == 1 else None

    def bytes_of(self, number: int) -> bytes:
        return self._bytes[number]


@dataclass(frozen=True, slots=True)
class _Pointers:
    """The fields of an rb_node, as addresses."""

    parent: int
    left: int
    right: int
    black: bool


class _Copy:
    """Reads one struct kvm_memslots."""

    def __init__(self, read: Read, layout: TreeLayout, slots: _Slots, address: int) -> None:
        self._layout = layout
        self._slots = slots
        self._data = read(address, layout.set_size)
        self._read = read
        self._cut = ""

    def read(self) -> SlotSet:
        layout = self._layout
        index = int(S32.unpack_from(self._data, layout.set_node_idx)[0])
        # A wrong index would lead outside of the slots' arrays of two nodes.
        at = index if index in (0, 1) else 0
        hva = layout.slot_hva_node + at * layout.hva_node_size
        gfn = layout.slot_gfn_node + at * layout.rb_node_size
        gfn_root, gfn_tree = self._tree("gfn_tree", layout.set_gfn_tree, gfn)
        hva_root, hva_tree = self._tree("hva_tree", layout.set_hva_tree, hva)
        leftmost = self._word(layout.set_hva_leftmost)
        id_hash = tuple(self._hash(layout.slot_id_node + at * layout.hlist_node_size))
        last_used = self._word(layout.set_last_used)
        return SlotSet(
            generation=self._word(layout.set_generation),
            node_idx=index,
            gfn_root=gfn_root,
            gfn_tree=gfn_tree,
            hva_root=hva_root,
            hva_leftmost=self._slots.number(leftmost - hva) if leftmost else NONE,
            hva_tree=hva_tree,
            intervals=tuple(self._interval(node.slot, hva) for node in hva_tree),
            id_hash=id_hash,
            cut=self._cut,
            last_used=self._slots.number(last_used) if last_used else NONE,
        )

    def _word(self, offset: int) -> int:
        return int(U64.unpack_from(self._data, offset)[0])

    def _tree(self, name: str, root: int, member: int) -> tuple[int, tuple[Node, ...]]:
        """Return the root and the nodes in order; ``member`` is the node's offset in a slot."""
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
        data = self._slots.bytes_of(number)
        return Interval(*_THREE_WORDS.unpack_from(data, member + self._layout.hva_node_start))

    def _hash(self, member: int) -> Iterator[tuple[int, int]]:
        met: set[int] = set()
        heads = Struct(f"<{self._layout.set_buckets}Q")
        for bucket, at in enumerate(heads.unpack_from(self._data, self._layout.set_id_hash)):
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
                (at,) = U64.unpack_from(self._slots.bytes_of(number), member)


def _pointers(data: bytes, member: int) -> _Pointers:
    """Decode a struct rb_node: parent and colour in one word, right, left."""
    parent, right, left = _THREE_WORDS.unpack_from(data, member)
    return _Pointers(parent & ~3, left, right, bool(parent & _RB_BLACK))
