"""What belongs to a slot besides its fields: what is right passes, each fault is found."""

from collections.abc import Mapping

import msgspec
import pytest

from vmm.model.regions import Memslot
from vmm.model.slotstate import state_flaw
from vmm.scenario.kernelslots import KernelSlot, SlotState
from vmm.scenario.operations import GUEST_MEMFD, LOG_DIRTY_PAGES, Place

HUGE = 512
ALIGNED = 0x7F00_4000_0000
"""An hva at which a page of 1 GiB may begin."""


def slot(base_gfn: int, npages: int, hva: int, flags: int = 0) -> tuple[KernelSlot, Memslot]:
    held = KernelSlot(3, 0, base_gfn, npages, hva, flags)
    return held, Memslot(3, base_gfn, npages, Place("a"), flags)


def state(
    large: tuple[Mapping[int, int], ...] = (),
    dirty: tuple[int, ...] | None = (),
    *,
    has_bitmap: bool = False,
    is_shadowing: bool = False,
) -> SlotState:
    counts = tuple(tuple(sorted(each.items())) for each in large)
    return SlotState(3, has_bitmap, dirty, counts, is_shadowing)


def told(
    found: SlotState,
    held: KernelSlot,
    wanted: Memslot,
    has_ring: bool = False,
    is_new: bool = False,
) -> tuple[str, str]:
    flaw = state_flaw(found, held, wanted, has_ring, is_new)
    return (flaw.rule.name, flaw.observed) if flaw else ("", "")


WHOLE = slot(0x40000, 2 * HUGE, ALIGNED)
"""Two whole huge pages at the beginning of a page of 1 GiB."""
CUT = slot(0x40001, 2 * HUGE, ALIGNED + 0x1000)
"""The same, a page later: it begins and ends within huge pages."""
ASKEW = slot(0x40000, 2 * HUGE, ALIGNED + 0x1000)
"""Its gpa and its hva lie differently in huge pages."""


@pytest.mark.parametrize(
    ("of", "two_mib", "one_gib"),
    [
        (WHOLE, {0: 0, 1: 0}, {0: 1}),
        (CUT, {0: 1, 1: 0, 2: 1}, {0: 1}),
        (ASKEW, {0: 1, 1: 1}, {0: 1}),
        (slot(0x40001, 100, ALIGNED + 0x1000), {0: 2}, {0: 2}),
    ],
)
def test_each_count_of_large_pages_is_right_or_told(
    of: tuple[KernelSlot, Memslot], two_mib: dict[int, int], one_gib: dict[int, int]
) -> None:
    assert told(state((two_mib, one_gib)), *of) == ("", "")
    for index, count in two_mib.items():
        wrong = two_mib | {index: 0 if count else 1}
        found = told(state((wrong, one_gib)), *of)
        assert found == ("kernel-large-pages", f"disallow_lpage {wrong[index]}")
    # Shadowed page tables of the guest count, too.
    more = {index: count + 1 for index, count in two_mib.items()}
    assert told(state((more, one_gib), is_shadowing=True), *of) == ("", "")


def test_what_a_move_leaves_of_the_old_alignment_is_told() -> None:
    before = state(({0: 0, 1: 0}, {0: 1}))
    assert told(before, *WHOLE) == ("", "")
    assert told(before, *CUT)[0] == "kernel-large-pages"


def test_guest_memfds_have_rules_of_their_own() -> None:
    held, wanted = ASKEW
    private = msgspec.structs.replace(held, flags=GUEST_MEMFD)
    assert told(state(({0: 0, 1: 0}, {0: 0})), private, wanted) == ("", "")


def test_a_bitmap_is_there_while_pages_are_logged() -> None:
    held, wanted = slot(0x40000, 10, ALIGNED, LOG_DIRTY_PAGES)
    wanted.dirty, wanted.perhaps = {1, 4}, {7}
    for bits in ((1, 4), (1, 4, 7)):
        assert told(state((), bits, has_bitmap=True), held, wanted) == ("", "")
    wrong: tuple[tuple[int, ...], ...] = ((1,), (1, 4, 5), (1, 4, 10), ())
    for pages in wrong:
        found = told(state((), pages, has_bitmap=True), held, wanted)
        assert found[0] == "kernel-dirty-bitmap"
    assert told(state((), None, has_bitmap=True), held, wanted) == ("", "")
    assert told(state(), held, wanted) == ("kernel-dirty-bitmap", "no dirty bitmap")
    assert told(state(), held, wanted, has_ring=True) == ("", "")
    wanted.dirty = None
    found = told(state((), (), has_bitmap=True), held, wanted)
    assert found == ("kernel-dirty-bitmap", "a dirty bitmap")


def test_a_new_slot_has_nothing_in_its_rmaps() -> None:
    held, wanted = WHOLE
    right = state(({0: 0, 1: 0}, {0: 1}))

    def of(*rmaps: tuple[int, ...] | None, is_new: bool = True) -> tuple[str, str]:
        return told(msgspec.structs.replace(right, rmaps=rmaps), held, wanted, is_new=is_new)

    assert of() == of((), (), ()) == of(None, None, None) == ("", "")
    assert of((3,), (), (), is_new=False) == ("", "")
    assert of((3, 4), (), ()) == ("kernel-rmaps", "rmap of entry 3 is not empty")
    assert of((), (), (0,)) == ("kernel-rmaps", "rmap of entry 0 is not empty")
    assert of((), None, ()) == ("kernel-rmaps", "those of 4 KiB, 1 GiB")
