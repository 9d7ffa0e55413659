"""Draws the demo's scenes: guest-physical memory, the array or tree of slots, what a touch met."""

import textwrap
from collections.abc import Callable, Iterator, Sequence

from rich.text import Text

from vmm.host.structure import ARRAY, TREE
from vmm.report.story import PAGES_SHOWN, Scene
from vmm.scenario import outcomewords
from vmm.scenario.content import identify
from vmm.scenario.history import AnyOutcome, Inspected, Touched
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    Hva,
    Mapping,
    Place,
    SetUserMemoryRegion,
    Touch,
)
from vmm.verdict.slotmap import Slot

WIDTH = 80
"""The most columns that are used; 60 suffice."""

_MARGIN = 9
_CELL, _NARROW_CELL = 4, 3
_RULED = 4  # The gpa of every fourth page is shown.
_KNOT = 13
_TERMS = (
    ("gpa", "a guest-physical address: where the guest believes its memory to be"),
    ("gfn", "the number of a guest page: gpa / 4096"),
    ("hva", "a host-virtual address: where the memory lies in this process"),
    ("MMIO", "an access where no memory is: KVM_RUN ends, and we are asked to answer"),
)
_STRUCTURES = {
    ARRAY: ("array", "how this kernel keeps its slots: sorted by gfn, the highest in front"),
    TREE: ("tree", "how this kernel finds its slots: a red-black tree by gfn (● black, ○ red)"),
}
_COLOURS = {"amber": "yellow", "blue": "bright_blue", "zero": "magenta"}
_GOOD, _EXIT, _BAD = "green", "cyan", "red"
_ASCII = str.maketrans("·━─▼└┘┌┐┴→●○", ".=-v\\//\\+>*o")


def opening(mappings: tuple[Mapping, ...], structure: str, width: int = WIDTH) -> list[Text]:
    """Return what to know before the first scene, at most ``width`` columns wide."""
    legend = Text("  Our memory: ")
    for mapping in mappings:
        legend.append_text(_host_pages(mapping)).append(f" {mapping.name}   ")
    legend.rstrip()
    words = (
        "A memslot maps guest-physical memory to host memory. Every page of ours carries its own "
        "mark, so that what the guest reads tells which page it reached."
    )
    lines = list(_paragraph(words, width))
    for term, meaning in (*_TERMS, _STRUCTURES[structure]):
        head = f"  {term:<6}"
        for number, line in enumerate(textwrap.wrap(meaning, width - 10)):
            text = Text(" " * len(head) if number else head, style="bold")
            lines.append(text.append(line, style="not bold"))
    return [*lines, legend, Text()]


def scene_lines(scene: Scene, structure: str, width: int = WIDTH) -> list[Text]:
    """Return a scene, ``width`` columns wide (60 or more), with the kernel's array or tree."""
    title = f"━━ {scene.number} ━ {scene.chapter.title} "
    lines = [Text(title.ljust(width, "━"), style="bold")]
    lines += _paragraph(scene.chapter.words, width)
    touches = [
        event for event in scene.events if not isinstance(event.operation, SetUserMemoryRegion)
    ]
    for event in scene.events:
        if isinstance(event.operation, SetUserMemoryRegion):
            lines.append(_call(event.operation, event.outcome))
    touched = {
        e.operation.gpa // PAGE_SIZE_BYTES for e in touches if isinstance(e.operation, Touch)
    }
    cell = _CELL if width >= _MARGIN + PAGES_SHOWN * _CELL else _NARROW_CELL
    lines += _memory(scene, touched, cell)
    lines += [_array(scene.slots)] if structure == ARRAY else _tree(scene.slots)
    for event in touches:
        if isinstance(event.operation, Touch):
            lines.append(_touch(event.operation, event.outcome, scene))
        elif isinstance(event.outcome, Inspected):
            lines.append(_seen(event.outcome))
    return [*lines, Text()]


def in_ascii(line: Text) -> Text:
    """Return a line, styles included, with ASCII in place of what an old terminal lacks."""
    plain = line.copy()
    plain.plain = line.plain.translate(_ASCII)
    return plain


def _paragraph(words: str, width: int) -> Iterator[Text]:
    return (Text(f"  {line}") for line in textwrap.wrap(words, width - 4))


def _labelled(label: str) -> Text:
    return Text(f"  {label:<{_MARGIN - 2}}", style="dim")


def _memory(scene: Scene, touched: set[int], cell: int) -> Iterator[Text]:
    """Yield the drawing: where the guest touches, the pages, and the slots over them."""
    arrows = "".join(("▼" if page in touched else "").center(cell) for page in range(PAGES_SHOWN))
    addresses = (f"{page * PAGE_SIZE_BYTES:#x}" for page in range(0, PAGES_SHOWN, _RULED))
    ruler = "".join(address.ljust(_RULED * cell) for address in addresses)
    yield _labelled("gpa").append(f" {ruler.rstrip()}", style="dim")
    yield _labelled("").append(arrows.rstrip(), style="not dim bold")
    pages = _labelled("memory")
    for page in range(PAGES_SHOWN):
        pages.append_text(_page(page, scene, cell))
    yield pages
    brackets = [" " * cell] * PAGES_SHOWN
    for slot in scene.slots:
        if slot.base_gfn < PAGES_SHOWN:
            width = slot.npages * cell - 2
            name = f" slot {slot.slot_id} "
            name = name if len(name) < width else str(slot.slot_id)
            drawn = f"└{name.center(width, '─')}┘"
            brackets[slot.base_gfn : slot.base_gfn + slot.npages] = [drawn]
            brackets[slot.base_gfn + 1 : slot.base_gfn + 1] = [""] * (slot.npages - 1)
    yield _labelled("slots").append("".join(brackets).rstrip(), style="not dim")


def _array(slots: Sequence[Slot]) -> Text:
    line = _labelled("array")
    for index, slot in enumerate(slots):
        line.append(f"[{index}] ", style="dim")
        line.append(f"slot {slot.slot_id}  ", style=f"not dim {_colour(slot.userspace_addr)}")
    return line.append("(front: highest gpa)", style="dim")


def _tree(slots: Sequence[Slot]) -> Iterator[Text]:
    """Yield a red-black tree: a line for the nodes of each depth, and one for their branches."""
    order = sorted(range(len(slots)), key=lambda at: slots[at].base_gfn)
    columns = {at: place * _KNOT + _KNOT // 2 for place, at in enumerate(order)}

    def depth(at: int) -> int:
        return 0 if slots[at].parent < 0 else 1 + depth(slots[at].parent)

    deepest = max((depth(at) for at in order), default=0)
    for level in range(deepest + 1):
        if level:
            yield _labelled("").append(_branches(slots, columns, level, depth), style="dim")
        line = _labelled("" if level else "tree")
        for at in order:
            if depth(at) == level:
                name = f"{'○' if slots[at].is_red else '●'} slot {slots[at].slot_id}"
                line.append(" " * (columns[at] - len(name) // 2 + _MARGIN - len(line.plain)))
                line.append(name, style=f"not dim {_colour(slots[at].userspace_addr)}")
        yield line


def _branches(
    slots: Sequence[Slot], columns: dict[int, int], level: int, depth: Callable[[int], int]
) -> str:
    """Return the line between the nodes of a level and their parents."""
    line = [" "] * (max(columns.values()) + 1)
    for parent, middle in columns.items():
        below = [columns[at] for at in columns if slots[at].parent == parent]
        if not below or depth(parent) != level - 1:
            continue
        first, last = min(*below, middle), max(*below, middle)
        line[first : last + 1] = "─" * (last - first + 1)
        line[first] = "┌" if first < middle else "└"
        line[last] = "┐" if last > middle else "┘"
        if first < middle < last:
            line[middle] = "┴"
    return "".join(line)


def _page(page: int, scene: Scene, cell: int) -> Text:
    slot = next((s for s in scene.slots if s.base_gfn <= page < s.base_gfn + s.npages), None)
    if slot is None:
        return Text("·".center(cell), style="dim")
    within = page - slot.base_gfn
    return Text(
        f"{_letter(slot.userspace_addr)}{within}".center(cell),
        style=f"not dim bold reverse {_colour(slot.userspace_addr)}",
    )


def _host_pages(mapping: Mapping) -> Text:
    cells = "".join(f" {_letter(Place(mapping.name))}{page}" for page in range(mapping.pages))
    return Text(f"{cells} ", style=f"bold reverse {_colour(Place(mapping.name))}")


def _name(hva: Hva) -> str:
    return hva.mapping if isinstance(hva, Place) else "zero"


def _letter(hva: Hva) -> str:
    return _name(hva)[0].upper()


def _colour(hva: Hva) -> str:
    return _COLOURS.get(_name(hva), "")


def _call(op: SetUserMemoryRegion, outcome: AnyOutcome) -> Text:
    hva = op.userspace_addr.mapping if isinstance(op.userspace_addr, Place) else "0"
    line = _labelled("ioctl").append(
        f"SET_USER_MEMORY_REGION slot={op.slot} gpa={op.guest_phys_addr:#x} "
        f"size={op.memory_size:#x} hva={hva}",
        style="not dim",
    )
    text = outcomewords.outcome(outcome)
    return line.append(" → ", style="dim").append(
        "ok" if text == "success" else text, style=f"not dim {_GOOD if text == 'success' else _BAD}"
    )


def _touch(op: Touch, outcome: AnyOutcome, scene: Scene) -> Text:
    action = "reads" if op.access == "read" else f"writes {op.value:#x} at"
    line = _labelled("guest").append(f"{action} gpa {op.gpa:#x} → ", style="not dim")
    style = _BAD
    if isinstance(outcome, Touched):
        style = _EXIT if outcome.mmio else _GOOD
    return line.append(_met(op, outcome, scene), style=f"not dim {style}")


def _met(op: Touch, outcome: AnyOutcome, scene: Scene) -> str:
    """Return in plain words what a touch met."""
    if not isinstance(outcome, Touched):
        return outcomewords.outcome(outcome)
    if outcome.mmio:
        page = op.gpa // PAGE_SIZE_BYTES
        inside = any(s.base_gfn <= page < s.base_gfn + s.npages for s in scene.slots)
        return "a slot without memory: MMIO exit" if inside else "no slot here: MMIO exit"
    if op.access == "write":
        return "written, no exit"
    index, page = identify(outcome.value)
    if 0 <= index < len(scene.mappings) and page < scene.mappings[index].pages:
        return f"finds the mark of {scene.mappings[index].name}, page {page}"
    return f"finds {outcome.value:#x}"


def _seen(outcome: Inspected) -> Text:
    line = _labelled("host")
    for change in outcome.changes:
        page, offset = divmod(change.offset, PAGE_SIZE_BYTES)
        value = int.from_bytes(change.data, "little")
        text = f"sees {value:#x} in page {page} of {change.mapping}, at {offset:#x}"
        line.append(text, style=f"not dim {_GOOD}")
    return line
