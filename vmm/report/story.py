"""The demo's story: a scenario in chapters, and its history chapter by chapter.

The story is run and judged like any other scenario, so what it shows is what this kernel did.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from vmm.host.structure import ARRAY, TREE, by_release
from vmm.scenario.features import Features
from vmm.scenario.history import Event, History
from vmm.scenario.operations import (
    GUEST_MAPPING,
    GUEST_SIZE_BYTES,
    PAGE_SIZE_BYTES,
    AnyOperation,
    Hva,
    Inspect,
    Mapping,
    Place,
    Scenario,
    SetUserMemoryRegion,
    Touch,
    pages_of,
)
from vmm.verdict.slotmap import Slot, slots_after_each

PAGES_SHOWN = 16
"""The story takes place in the lowest pages of guest-physical memory."""

_IN_THE_ARRAY = {
    "sorted": "This kernel keeps slots in an array, sorted by gfn, the highest in front.",
    "moved": "In the array it travels to the front.",
    "absent": "what says that a slot is absent is the array, not its address.",
    "deleted": "The entries after it in the array shift one to the front.",
}
_IN_THE_TREE = {
    "sorted": "This kernel finds slots in a red-black tree: lower gfns to the left.",
    "moved": "In the tree it is taken out, and put in again at its new gfn.",
    "absent": "what says that a slot is absent is the table of slot ids, not its address.",
    "deleted": "Its node leaves the tree, which is balanced again.",
}


@dataclass(frozen=True, slots=True)
class Chapter:
    """One step of the story: a text, and the operations."""

    title: str
    words: str
    operations: tuple[AnyOperation, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """A chapter that was run: its events, and the slots after them, front (highest gfn) first."""

    number: int
    chapter: Chapter
    events: tuple[Event, ...]
    slots: tuple[Slot, ...]
    mappings: tuple[Mapping, ...]


def chapters(features: Features, structure: str = TREE) -> tuple[Chapter, ...]:
    """Return the story for a kernel that keeps slots in an array or a tree (`structure`).

    One chapter differs where address 0 cannot be mapped.
    """
    said = _IN_THE_ARRAY if structure == ARRAY else _IN_THE_TREE
    return (
        *_first_slots(said["sorted"]),
        *_changes(said["moved"]),
        _at_address_zero(features, said["absent"]),
        *_end(said["deleted"]),
    )


def _first_slots(where_sorted: str) -> Iterator[Chapter]:
    yield Chapter(
        "A machine without memory",
        "A new virtual machine has no memory but the corner that its own code lives in (slot "
        "400, far up). The guest reads an address, finds nobody there, and KVM hands the "
        "access to us: an MMIO exit. On a real machine a device might answer.",
        (Touch(_gpa(2) + 0x40),),
    )
    yield Chapter(
        "Create a memslot",
        "A memslot says: these guest-physical pages (gfn 2, 3 and 4) are that piece of my "
        "memory (the hva where amber begins). Now the same read finds page 0 of amber, and we "
        "are not asked.",
        (_region(0, 2, 3, Place("amber")), Touch(_gpa(2) + 0x40), Touch(_gpa(4) + 0x40)),
    )
    yield Chapter(
        "Create another one",
        f"{where_sorted} What the guest writes is in our memory at once.",
        (
            _region(1, 8, 2, Place("blue")),
            Touch(_gpa(9) + 0x40, "write", value=0xCAFE),
            Inspect(),
        ),
    )


def _changes(where_moved: str) -> Iterator[Chapter]:
    yield Chapter(
        "Overlap",
        "No page can be in two slots. The kernel refuses, and nothing has changed.",
        (_region(2, 4, 2, Place("blue")), Touch(_gpa(4) + 0x40)),
    )
    yield Chapter(
        "Move",
        "The same slot with another guest address moves, and its content with it. Nobody may "
        f"reach it at the old place any more. {where_moved}",
        (_region(0, 12, 3, Place("amber")), Touch(_gpa(2) + 0x40), Touch(_gpa(12) + 0x40)),
    )


def _end(what_shifts: str) -> Iterator[Chapter]:
    yield Chapter(
        "Delete",
        f"A size of 0 deletes the slot, whatever else the call says. {what_shifts} The "
        "guest is alone at that address again.",
        (SetUserMemoryRegion(1), Touch(_gpa(9) + 0x40)),
    )
    yield Chapter(
        "Memory outlives its slots",
        "The content belongs to the host memory. Put it elsewhere under another slot, and "
        "what the guest wrote is still there.",
        (_region(3, 0, 2, Place("blue")), Touch(_gpa(1) + 0x40)),
    )


def story(features: Features) -> Scenario:
    """Return the whole story as a scenario."""
    zero = (Mapping("zero", 1, "zero"),) if features.zero_page else ()
    return Scenario(
        "demo",
        tuple(op for chapter in chapters(features) for op in chapter.operations),
        (Mapping("amber", 3), Mapping("blue", 2), *zero),
        why="What a memslot is.",
        survey="none",
    )


def scenes(history: History) -> Iterator[Scene]:
    """Yield each chapter as it went, as far as the history and the model go."""
    scenario, features = history.header.scenario, history.header.features
    mappings = (*scenario.mappings, Mapping(GUEST_MAPPING, pages_of(GUEST_SIZE_BYTES)))
    told = chapters(features, structure_of(history))
    ends = accumulate(len(chapter.operations) for chapter in told)
    steps = deque(slots_after_each(history))
    slots: tuple[Slot, ...] = ()
    for number, (chapter, end) in enumerate(zip(told, ends, strict=True), 1):
        shown: list[Event] = []
        while steps and steps[0][0].origin < end:
            event, slots = steps.popleft()
            if event.origin >= 0 and event.operation == scenario.operations[event.origin]:
                shown.append(event)
        if not shown:
            return
        yield Scene(number, chapter, tuple(shown), slots, mappings)


def structure_of(history: History) -> str:
    """Return how the kernel of a history keeps slots, `ARRAY` or `TREE`."""
    host = history.header.host
    known = host.get("memslots", ""), by_release(host.get("kernel", ""))
    return next((each for each in known if each in (ARRAY, TREE)), TREE)


def _region(slot: int, page: int, pages: int, hva: Hva) -> SetUserMemoryRegion:
    return SetUserMemoryRegion(slot, _gpa(page), pages * PAGE_SIZE_BYTES, hva)


def _gpa(page: int) -> int:
    return page * PAGE_SIZE_BYTES


def _at_address_zero(features: Features, absent: str) -> Chapter:
    title = "Userspace address 0"
    if features.zero_page:
        words = (
            "A slot's host memory may lie at any userspace address, and 0 is one like any other: "
            f"{absent}"
        )
    else:
        words = (
            "A slot's userspace address may be anything, 0 included: the call succeeds though "
            "nothing is mapped there (this process may not). The guest's touch is what fails."
        )
    return Chapter(title, words, (_region(2, 5, 1, 0), Touch(_gpa(5) + 0x40)))
