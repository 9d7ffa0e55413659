"""The shape of the kernel's tree of slots by gfn (Linux 5.17 and later; a54d738661e0).

It is a red-black tree: creating inserts, deleting erases, a move erases and inserts at the new gfn,
and a flags change replaces the node in place. The kernel keeps two copies of it and makes each
change in both, so both have the same shape. The algorithm is the usual one, as in `lib/rbtree.c`:
the successor replaces a node with two children.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vmm.scenario.operations import PAGE_SIZE_BYTES, SetUserMemoryRegion


@dataclass(slots=True, eq=False)
class Knot:
    """A node. ``number`` is the slot's 32-bit number."""

    number: int
    gfn: int
    parent: "Knot | None" = None
    left: "Knot | None" = None
    right: "Knot | None" = None
    black: bool = False


class GfnTree:
    """The slots of one address space by their first gfn."""

    def __init__(self) -> None:
        self.root: Knot | None = None
        self._knots: dict[int, Knot] = {}

    def __len__(self) -> int:
        return len(self._knots)

    def __contains__(self, number: int) -> bool:
        return number in self._knots

    def __iter__(self) -> Iterator[Knot]:
        """Yield the nodes, lowest gfn first."""
        stack: list[Knot] = []
        at = self.root
        while stack or at is not None:
            while at is not None:
                stack.append(at)
                at = at.left
            knot = stack.pop()
            yield knot
            at = knot.right

    def put(self, number: int, gfn: int) -> None:
        """Create a slot at a gfn, or move it there; do nothing if it is there already."""
        knot = self._knots.get(number)
        if knot is not None and knot.gfn == gfn:
            return
        if knot is not None:
            self.erase(number)
        self._insert(Knot(number, gfn))

    def erase(self, number: int) -> None:
        """Delete a slot. Raises KeyError if it is not there."""
        self._erase(self._knots.pop(number))

    def _insert(self, knot: Knot) -> None:
        self._knots[knot.number] = knot
        parent, at = None, self.root
        while at is not None:
            parent, at = at, at.left if knot.gfn < at.gfn else at.right
        knot.parent = parent
        if parent is None:
            self.root = knot
        elif knot.gfn < parent.gfn:
            parent.left = knot
        else:
            parent.right = knot
        self._mend_red(knot)

    def _mend_red(self, knot: Knot) -> None:
        """Restore that no red node has a red parent; the red ``knot`` may have one."""
        while (parent := knot.parent) is not None and not parent.black:
            above = parent.parent
            assert above is not None  # A root is black.
            is_left = parent is above.left
            uncle = above.right if is_left else above.left
            if uncle is not None and not uncle.black:
                parent.black = uncle.black = True
                above.black = False
                knot = above
                continue
            if knot is (parent.right if is_left else parent.left):
                self._rotate(parent, to_left=is_left)
                parent = knot
            parent.black, above.black = True, False
            self._rotate(above, to_left=not is_left)
            break
        assert self.root is not None
        self.root.black = True

    def _erase(self, knot: Knot) -> None:
        if knot.left is not None and knot.right is not None:
            self._change_places(knot, _leftmost(knot.right))
        child = knot.left or knot.right
        parent = knot.parent
        self._replace(knot, child)
        if child is not None:
            child.black = True  # An only child is red.
        elif knot.black:
            self._mend_black(parent, None)

    def _mend_black(self, parent: Knot | None, child: Knot | None) -> None:
        """Restore the black node that the paths through ``child`` have lost."""
        while parent is not None and (child is None or child.black):
            is_left = child is parent.left
            sibling = parent.right if is_left else parent.left
            assert sibling is not None  # Its side has one more black node.
            if not sibling.black:
                sibling.black, parent.black = True, False
                self._rotate(parent, to_left=is_left)
                sibling = parent.right if is_left else parent.left
                assert sibling is not None
            far, near = (sibling.right, sibling.left) if is_left else (sibling.left, sibling.right)
            if _is_black(far) and _is_black(near):
                sibling.black = False
                parent, child = parent.parent, parent
                continue
            if _is_black(far):
                assert near is not None
                near.black, sibling.black = True, False
                self._rotate(sibling, to_left=not is_left)
                far, sibling = sibling, near
            assert far is not None
            sibling.black, parent.black, far.black = parent.black, True, True
            self._rotate(parent, to_left=is_left)
            return
        if child is not None:
            child.black = True

    def _change_places(self, knot: Knot, successor: Knot) -> None:
        """Swap a node with its successor, colours included."""
        parent, left, right, black = knot.parent, knot.left, knot.right, knot.black
        if right is successor:
            knot.parent, right_of_new = successor, knot
        else:
            assert right is not None
            knot.parent, right_of_new = successor.parent, right
            assert successor.parent is not None
            successor.parent.left = knot
            right.parent = successor
        knot.left, knot.right, knot.black = None, successor.right, successor.black
        if knot.right is not None:
            knot.right.parent = knot
        successor.parent, successor.left, successor.right = parent, left, right_of_new
        successor.black = black
        assert left is not None
        left.parent = successor
        self._hang(parent, knot, successor)

    def _replace(self, knot: Knot, child: Knot | None) -> None:
        if child is not None:
            child.parent = knot.parent
        self._hang(knot.parent, knot, child)

    def _hang(self, parent: Knot | None, old: Knot, new: Knot | None) -> None:
        if parent is None:
            self.root = new
        elif parent.left is old:
            parent.left = new
        else:
            parent.right = new

    def _rotate(self, knot: Knot, *, to_left: bool) -> None:
        """Rotate a node to one side; its child on the other side takes its place."""
        child = knot.right if to_left else knot.left
        assert child is not None
        inner = child.left if to_left else child.right
        if to_left:
            knot.right, child.left = inner, knot
        else:
            knot.left, child.right = inner, knot
        if inner is not None:
            inner.parent = knot
        child.parent = knot.parent
        self._hang(knot.parent, knot, child)
        knot.parent = child


def _is_black(knot: Knot | None) -> bool:
    return knot is None or knot.black


def _leftmost(knot: Knot) -> Knot:
    while knot.left is not None:
        knot = knot.left
    return knot


class Trees:
    """The trees of a VM, updated by its successful region calls while there are few slots."""

    def __init__(self, most: int) -> None:
        self._trees: dict[int, GfnTree] | None = {}
        self._most = most

    def follow(self, op: SetUserMemoryRegion) -> None:
        """Apply a region call that has succeeded."""
        if self._trees is None:
            return
        tree = self._trees.setdefault(op.slot >> 16, GfnTree())
        if op.memory_size:
            tree.put(op.slot, op.guest_phys_addr // PAGE_SIZE_BYTES)
        elif op.slot in tree:
            tree.erase(op.slot)
        if len(tree) > self._most:
            self._trees = None

    def knots(self, slots: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """Return, for each slot (32-bit number, first gfn), its parent's index and 1 for red.

        The index is among ``slots``, -1 for a root. Slots that other calls have created or deleted
        are added or removed first. Nothing is returned if there are too many slots to follow.
        """
        if self._trees is None or len(slots) > self._most:
            self._trees = None
            return ()
        places = {number: place for place, (number, _) in enumerate(slots)}
        for tree in self._trees.values():
            for knot in list(tree):
                if knot.number not in places:
                    tree.erase(knot.number)
        found = [(-1, 0)] * len(slots)
        for number, gfn in slots:
            self._trees.setdefault(number >> 16, GfnTree()).put(number, gfn)
        for tree in self._trees.values():
            for knot in tree:
                parent = -1 if knot.parent is None else places[knot.parent.number]
                found[places[knot.number]] = (parent, int(not knot.black))
        return tuple(found)
