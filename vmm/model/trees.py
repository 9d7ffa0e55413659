"""Checks of red-black trees and interval trees: pure functions of recorded nodes.

Each returns what is wrong, in a few words, or "". Nodes are not trusted: neighbours may be missing,
and trees may have cycles.
"""

from collections.abc import Sequence
from itertools import pairwise

from vmm.scenario.kernelslots import NONE, Interval, Node


def tree_flaw(nodes: Sequence[Node], root: int) -> str:
    """Return what is wrong with the shape or the colours of a red-black tree; nodes in order."""
    by_slot = {node.slot: node for node in nodes}
    if len(by_slot) != len(nodes):
        return "a slot is in it twice"
    if not nodes:
        return "" if root == NONE else "its root leads nowhere"
    if root not in by_slot:
        return "its root is none of its nodes"
    if not by_slot[root].black:
        return "its root is red"
    if by_slot[root].parent != NONE:
        return "its root has a parent"
    return _walk_flaw(by_slot, nodes, root)


def _walk_flaw(by_slot: dict[int, Node], nodes: Sequence[Node], root: int) -> str:
    """Check the tree by an in-order walk from its root, counting black nodes on each path."""
    order: list[int] = []
    heights: set[int] = set()
    stack: list[tuple[Node, int]] = []
    at, above, blacks, red_above = root, NONE, 0, False
    met: set[int] = set()
    while at != NONE or stack:
        while at != NONE:
            node = by_slot.get(at)
            if node is None or at in met:
                return f"a child of {_named(above)} is no node of it"
            met.add(at)
            if node.parent != above:
                return f"the parent of {_named(at)} is not {_named(above)}"
            if red_above and not node.black:
                return f"{_named(at)} is red, as its parent is"
            blacks += node.black
            stack.append((node, blacks))
            at, above, red_above = node.left, at, not node.black
        heights.add(blacks)
        node, blacks = stack.pop()
        order.append(node.slot)
        if node.right == NONE:
            heights.add(blacks)
        at, above, red_above = node.right, node.slot, not node.black
    if order != [node.slot for node in nodes]:
        return "not all of its nodes hang together"
    return "" if len(heights) == 1 else "its paths have different numbers of black nodes"


def interval_flaw(nodes: Sequence[Node], intervals: Sequence[Interval], leftmost: int) -> str:
    """Return what is wrong with the intervals of a tree whose shape is right."""
    if len(nodes) != len(intervals):
        return "not every node has an interval"
    if leftmost != (nodes[0].slot if nodes else NONE):
        return f"its leftmost is {_named(leftmost)}"
    for one, other in pairwise(intervals):
        if one.start > other.start:
            return f"an interval at {other.start:#x} comes after one at {one.start:#x}"
    by_slot = {node.slot: each for node, each in zip(nodes, intervals, strict=True)}
    for node in nodes:
        below = (by_slot[child].subtree_last for child in (node.left, node.right) if child >= 0)
        last = max((by_slot[node.slot].last, *below))
        if by_slot[node.slot].subtree_last != last:
            wrong = by_slot[node.slot].subtree_last
            return f"the subtree of {_named(node.slot)} ends at {wrong:#x}, not at {last:#x}"
    return ""


def _named(slot: int) -> str:
    return f"entry {slot}" if slot >= 0 else "none"
