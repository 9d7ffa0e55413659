"""The kernel's tree of slots: right in the eyes of the white box's checks, and of known shapes."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from vmm.model.gfntree import GfnTree, Knot
from vmm.model.trees import tree_flaw
from vmm.scenario.codec import histories_in
from vmm.scenario.history import Done
from vmm.scenario.kernelslots import NONE, KernelTrees, Node, SlotSet
from vmm.scenario.operations import PAGE_SIZE_BYTES, SetUserMemoryRegion


def nodes(tree: GfnTree) -> list[Node]:
    """Return the nodes of a tree as the white box records them."""

    def number(knot: Knot | None) -> int:
        return NONE if knot is None else knot.number

    return [
        Node(each.number, number(each.parent), number(each.left), number(each.right), each.black)
        for each in tree
    ]


def shape(tree: GfnTree) -> str:
    """Return a tree in one line: red nodes in brackets, children in parentheses."""

    def told(knot: Knot | None) -> str:
        if knot is None:
            return "."
        name = str(knot.number) if knot.black else f"[{knot.number}]"
        below = (knot.left, knot.right)
        return name if below == (None, None) else f"{name}({told(below[0])} {told(below[1])})"

    return told(tree.root)


def made(*gfns: int) -> GfnTree:
    tree = GfnTree()
    for gfn in gfns:
        tree.put(gfn, gfn)
    return tree


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 60)), max_size=60))
def test_after_any_changes_it_is_a_red_black_tree_in_order(changes: list[tuple[int, int]]) -> None:
    tree, expected = GfnTree(), dict[int, int]()
    for number, gfn in changes:
        if number in tree and gfn % 3 == 0:
            tree.erase(number)
            del expected[number]
        elif gfn not in expected.values():
            tree.put(number, gfn)
            expected[number] = gfn
        root = NONE if tree.root is None else tree.root.number
        assert tree_flaw(nodes(tree), root) == ""
        assert {each.number: each.gfn for each in tree} == expected
        assert [each.gfn for each in tree] == sorted(expected.values())


@pytest.mark.parametrize(
    ("gfns", "expected"),
    [
        ((1,), "1"),
        ((1, 2), "1(. [2])"),
        ((1, 2, 3), "2([1] [3])"),
        ((3, 1, 2), "2([1] [3])"),
        ((1, 2, 3, 4), "2(1 3(. [4]))"),
        ((1, 2, 3, 4, 5, 6), "2(1 [4](3 5(. [6])))"),
        ((8, 7, 6, 5, 4, 3, 2, 1), "5([3](2([1] .) 4) [7](6 8))"),
    ],
)
def test_insertion(gfns: tuple[int, ...], expected: str) -> None:
    assert shape(made(*gfns)) == expected


@pytest.mark.parametrize(
    ("erased", "expected"),
    [
        (1, "4(2(. [3]) 5(. [6]))"),
        (2, "3(1 [5](4 6))"),
        (3, "2(1 [5](4 6))"),
        (4, "2(1 [5](3 6))"),
        (6, "2(1 [4](3 5))"),
    ],
)
def test_erasing(erased: int, expected: str) -> None:
    tree = made(1, 2, 3, 4, 5, 6)
    tree.erase(erased)
    assert shape(tree) == expected


def test_a_move_erases_and_inserts() -> None:
    tree = made(1, 2, 3)
    tree.put(2, 9)
    assert shape(tree) == "3([1] [2])"
    tree.put(2, 9)
    assert shape(tree) == "3([1] [2])"


RECORDED = Path(__file__).with_name("linux-6.12-trees.jsonl.gz")
"""What `vmm lab run --kernel debian-6.12 -- check ... --histories FILE` has read of a kernel."""


def test_it_is_the_tree_that_a_kernel_was_seen_to_hold(tmp_path: Path) -> None:
    file = tmp_path / "h.jsonl"
    file.write_bytes(gzip.decompress(RECORDED.read_bytes()))
    compared = 0
    for text in histories_in(file):
        tree = GfnTree()
        for event in text.history().events:
            op, kernel = event.operation, event.kernel
            if not isinstance(op, SetUserMemoryRegion) or not isinstance(kernel, KernelTrees):
                continue
            if op.memory_size:
                tree.put(op.slot, op.guest_phys_addr // PAGE_SIZE_BYTES)
            else:
                tree.erase(op.slot)
            assert event.outcome == Done()
            for held in (kernel.active, kernel.inactive):
                assert by_id(kernel, held) == nodes(tree)
                compared += 1
    assert compared == 92


def by_id(kernel: KernelTrees, held: SlotSet) -> list[Node]:
    """Return a kernel's nodes, named by their slots' ids."""

    def number(at: int) -> int:
        return at if at < 0 else kernel.slots[at].slot_id

    return [
        Node(number(n.slot), number(n.parent), number(n.left), number(n.right), n.black)
        for n in held.gfn_tree
    ]
