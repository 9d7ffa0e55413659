"""What the kernel holds is compared with the model: what is right passes, each fault is found."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from tests.kernelheld import balanced, held, intervals_of
from vmm.model.array import Change
from vmm.model.heldslots import HeldSlots
from vmm.model.kernelslots import (
    UPDATE_IN_PROGRESS,
    TreeRules,
    bucket_of,
    change_of,
    generation_flaw,
)
from vmm.model.regions import GuestMemfd, Memslot
from vmm.model.trees import interval_flaw, tree_flaw
from vmm.scenario.kernelslots import Interval, KernelSlot, KernelTrees, SlotSet
from vmm.scenario.operations import GUEST_MEMFD, MEMFD_MMAP, Place

BASE = 0x7F00_0000_0000
WANTED = [
    Memslot(number, 0x1000 - 0x10 * number, 2, Place("ram", 0x4000 * number), number % 2)
    for number in range(7)
]
"""From the highest gfn down, as the model has them."""

SLOTS = [
    KernelSlot(
        slot.slot_id, 0, slot.base_gfn, slot.npages, BASE + 0x4000 * slot.slot_id, slot.flags
    )
    for slot in WANTED
]
INTERNAL = KernelSlot(32765, 0, 0xFFFBC, 3, 0x7E00_0000_0000, 0)


def flaw_of(kernel: KernelTrees, wanted: list[Memslot] = WANTED) -> str:
    found = TreeRules(HeldSlots(32764)).flaw(kernel, wanted)
    return found.observed if found else ""


def test_what_is_right_passes() -> None:
    assert flaw_of(held(SLOTS, 2, 4)) == ""
    assert flaw_of(held([], 2, 4), []) == ""


def test_slots_of_the_kernels_own_are_not_asked_for() -> None:
    assert flaw_of(held([*SLOTS, INTERNAL], 2, 4)) == ""


GMEM_ONLY = 1 << 17


@pytest.mark.parametrize(
    ("memfd", "internal", "is_right"),
    [
        (GuestMemfd(0x4000, MEMFD_MMAP, 0), GMEM_ONLY, True),
        (GuestMemfd(0x4000, MEMFD_MMAP, 0), 0, False),
        (GuestMemfd(0x4000, 0, 0), 0, True),
        (GuestMemfd(0x4000, 0, 0), GMEM_ONLY, False),
        (None, 0, True),
        (None, GMEM_ONLY, False),
        (None, 1 << 16, False),
    ],
)
def test_the_kernel_marks_slots_that_a_guest_memfd_backs_alone(
    memfd: GuestMemfd | None, internal: int, is_right: bool
) -> None:
    flags = 0 if memfd is None else GUEST_MEMFD
    wanted = Memslot(1, 0x100, 2, Place("ram"), flags, memfd=memfd)
    slot = KernelSlot(1, 0, 0x100, 2, BASE, flags | internal)
    flaw = flaw_of(held([slot], 2, 4), [wanted])
    assert ("flags is" in flaw, not flaw) == (not is_right, is_right)


Edit = Callable[[SlotSet], SlotSet]


def with_node(tree: str, index: int, **changes: object) -> Edit:
    def edit(each: SlotSet) -> SlotSet:
        nodes = list(getattr(each, tree))
        nodes[index] = msgspec.structs.replace(nodes[index], **changes)
        return msgspec.structs.replace(each, **{tree: tuple(nodes)})

    return edit


def with_interval(index: int, **changes: int) -> Edit:
    def edit(each: SlotSet) -> SlotSet:
        every = list(each.intervals)
        every[index] = msgspec.structs.replace(every[index], **changes)
        return msgspec.structs.replace(each, intervals=tuple(every))

    return edit


def swapped(each: SlotSet) -> SlotSet:
    """Two neighbours have changed places, as a tree that is right in itself would have them."""
    order = [node.slot for node in each.gfn_tree]
    order[2], order[3] = order[3], order[2]
    root, nodes = balanced(order)
    return msgspec.structs.replace(each, gfn_root=root, gfn_tree=nodes)


def without(each: SlotSet) -> SlotSet:
    """A slot has been left out of gfn_tree."""
    root, nodes = balanced([node.slot for node in each.gfn_tree][1:])
    return msgspec.structs.replace(each, gfn_root=root, gfn_tree=nodes)


def out_of_hvas(each: SlotSet) -> SlotSet:
    """A slot has been left out of hva_tree."""
    order = [node.slot for node in each.hva_tree][:-1]
    root, nodes = balanced(order)
    intervals = intervals_of(nodes, root, tuple(SLOTS))
    return msgspec.structs.replace(each, hva_root=root, hva_tree=nodes, intervals=intervals)


def changed(**changes: object) -> Edit:
    return lambda each: msgspec.structs.replace(each, **changes)


FAULTS: list[tuple[Edit, str]] = [
    (swapped, "gfn_tree: slot 4 at gfn 0xfc0 comes after slot 3 at gfn 0xfd0 with 2 pages"),
    (without, "gfn_tree: the slots are 5, 4, 3, 2, 1, 0"),
    (out_of_hvas, "hva_tree: the slots are not those of gfn_tree"),
    (lambda each: changed(id_hash=each.id_hash[:-1])(each), "id_hash: slot 6 is missing"),
    (
        lambda each: changed(id_hash=(*each.id_hash, each.id_hash[0]))(each),
        "id_hash: 8 entries for 7 slots",
    ),
    (
        lambda each: changed(id_hash=((5, each.id_hash[0][1]), *each.id_hash[1:]))(each),
        "id_hash: slot 0 is in bucket 5, not in 0",
    ),
    (with_node("gfn_tree", 3, black=False), "gfn_tree: its root is red"),
    (
        with_node("gfn_tree", 0, black=False),
        "gfn_tree: its paths have different numbers of black nodes",
    ),
    (with_node("gfn_tree", 0, parent=3), "gfn_tree: the parent of entry 6 is not entry 5"),
    (with_node("gfn_tree", 1, right=3), "gfn_tree: a child of entry 5 is no node of it"),
    (with_node("gfn_tree", 1, right=-1), "gfn_tree: not all of its nodes hang together"),
    (with_node("gfn_tree", 1, slot=99), "gfn_tree: a node is no slot"),
    (with_node("hva_tree", 1, left=-2), "hva_tree: a child of entry 1 is no node of it"),
    (changed(gfn_root=-1), "gfn_tree: its root is none of its nodes"),
    (changed(hva_leftmost=3), "hva_tree: its leftmost is entry 3"),
    (changed(last_used=-2), "last_used_slot is none of its slots"),
    (changed(last_used=99), "last_used_slot is none of its slots"),
    (
        with_interval(3, subtree_last=BASE),
        "hva_tree: the subtree of entry 3 ends at 0x7f0000000000, not at 0x7f0000019fff",
    ),
    (
        with_interval(0, last=BASE + 0xFFF),
        "hva_tree: the subtree of entry 0 ends at 0x7f0000001fff, not at 0x7f0000000fff",
    ),
    (
        with_interval(0, start=BASE - 0x1000),
        "hva_tree: slot 0 has 0x7efffffff000 to 0x7f0000001fff, "
        "not 0x7f0000000000 to 0x7f0000001fff",
    ),
    (changed(node_idx=3), "node_idx is 3"),
    (
        changed(cut="gfn_tree: a node of gfn_tree is met twice"),
        "gfn_tree: a node of gfn_tree is met twice",
    ),
]


@pytest.mark.parametrize(("edit", "observed"), FAULTS)
def test_a_fault_in_either_copy_is_found(edit: Edit, observed: str) -> None:
    kernel = held(SLOTS, 2, 4)
    active = msgspec.structs.replace(kernel, active=edit(kernel.active))
    inactive = msgspec.structs.replace(kernel, inactive=edit(kernel.inactive))
    assert flaw_of(active) == f"in the copy in use, {observed}"
    assert flaw_of(inactive) == f"in the other copy, {observed}"


def test_both_copies_with_one_index_are_found() -> None:
    kernel = held(SLOTS, 2, 4)
    same = msgspec.structs.replace(kernel.inactive, node_idx=0)
    assert flaw_of(msgspec.structs.replace(kernel, inactive=same)) == "node_idx 0 twice"


@pytest.mark.parametrize(
    ("changes", "observed"),
    [
        ({"as_id": 1}, "slot 2: as_id is 0x1, not 0x0"),
        ({"base_gfn": 0xFDF}, "slot 2: base_gfn is 0xfdf, not 0xfe0"),
        ({"npages": 3}, "slot 2: npages is 0x3, not 0x2"),
        ({"flags": 3}, "slot 2: flags is 0x3, not 0x0"),
        (
            {"userspace_addr": BASE + 0x7000},
            "slot 2: userspace_addr is 0x7f0000007000, not 0x7f0000008000",
        ),
    ],
)
def test_a_slot_that_is_not_as_the_model_has_it_is_found(
    changes: dict[str, int], observed: str
) -> None:
    slots = list(SLOTS)
    slots[2] = msgspec.structs.replace(slots[2], **changes)
    assert flaw_of(held(slots, 2, 4)) == f"in the copy in use, {observed}"


def test_a_slot_that_stays_after_its_deletion_is_found() -> None:
    assert "gfn_tree: the slots are" in flaw_of(held(SLOTS, 2, 4), WANTED[1:])


@pytest.mark.parametrize(
    ("change", "grown"),
    [
        (Change.CREATE, 2),
        (Change.FLAGS_ONLY, 2),
        (Change.DELETE, 4),
        (Change.MOVE, 4),
        (None, 0),
    ],
)
def test_the_generation_grows_with_the_kind_of_change(change: Change | None, grown: int) -> None:
    for each in range(10):
        flaw = generation_flaw(held([], 10, 10 + each), change, 2, False)
        assert (flaw is None) == (each == grown)


def test_a_change_that_may_be_undone_may_count_twice() -> None:
    grown = [n for n in range(9) if not generation_flaw(held([], 6, 6 + n), None, 2, True)]
    assert grown == [0, 4]


def test_an_update_in_progress_is_found() -> None:
    flaw = generation_flaw(held([], 2, 4 | UPDATE_IN_PROGRESS), Change.CREATE, 2, False)
    assert flaw is not None
    assert flaw.expected == "no update in progress"


def test_changes_are_told_by_what_was_and_what_is() -> None:
    one = Memslot(0, 1, 1, 0, 0)
    moved, logged = Memslot(0, 2, 1, 0, 0), Memslot(0, 1, 1, 0, 1)
    assert change_of(None, one) is Change.CREATE
    assert change_of(one, None) is Change.DELETE
    assert change_of(one, moved) is Change.MOVE
    assert change_of(one, logged) is Change.FLAGS_ONLY
    assert change_of(one, one) is change_of(None, None) is None


def test_ids_have_the_buckets_of_the_kernels_table() -> None:
    assert [bucket_of(slot_id) for slot_id in range(4)] == [0, 48, 97, 18]
    assert {bucket_of(slot_id) for slot_id in range(-3, 32767)} == set(range(128))


orders = st.integers(0, 40).flatmap(lambda count: st.permutations(range(count)))


@given(orders)
@settings(max_examples=60, deadline=None)
def test_balanced_trees_have_no_flaw(order: list[int]) -> None:
    root, nodes = balanced(order)
    assert tree_flaw(nodes, root) == ""


@given(orders, st.data())
@settings(max_examples=150, deadline=None)
def test_any_single_change_of_a_tree_is_a_flaw(order: list[int], data: st.DataObject) -> None:
    root, nodes = balanced(order or [0])
    at = data.draw(st.integers(0, len(nodes) - 1))
    field = data.draw(st.sampled_from(["slot", "parent", "left", "right"]))
    value = data.draw(st.integers(-2, len(nodes)).filter(lambda v: v != getattr(nodes[at], field)))
    wrong = list(nodes)
    wrong[at] = msgspec.structs.replace(nodes[at], **{field: value})
    assert tree_flaw(wrong, root)


@given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(1, 50)), min_size=1, max_size=30),
    st.data(),
)
@settings(max_examples=100, deadline=None)
def test_a_wrong_subtree_end_is_a_flaw(spans: list[tuple[int, int]], data: st.DataObject) -> None:
    slots = tuple(KernelSlot(0, 0, 0, pages, 4096 * start, 0) for start, pages in spans)
    root, nodes = balanced(sorted(range(len(slots)), key=lambda n: slots[n].userspace_addr))
    intervals = list(intervals_of(nodes, root, slots))
    assert interval_flaw(nodes, intervals, nodes[0].slot) == ""
    at = data.draw(st.integers(0, len(nodes) - 1))
    one = intervals[at]
    intervals[at] = Interval(one.start, one.last, one.subtree_last + data.draw(st.integers(1, 9)))
    assert "ends at" in interval_flaw(nodes, intervals, nodes[0].slot)
