"""Draws the demo's scenes: guest-physical memory, the slot array, and what a touch met."""

import textwrap
from collections.abc import Iterator

from rich.text import Text

from vmm.report.story import PAGES_SHOWN, Scene
from vmm.scenario import words
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

WIDTH = 80
_MARGIN = 9
_CELL = 4
_RULED = 4  # every so many pages their gpa is shown
_COLOURS = {"amber": "yellow", "blue": "bright_blue", "zero": "magenta"}
_GOOD, _EXIT, _BAD = "green", "cyan", "red"
_ASCII = str.maketrans("·━─▼└┘→", ".=-v\\/>")


def opening(mappings: tuple[Mapping, ...]) -> list[Text]:
    """Return what to know before the first scene."""
    legend = Text("  Our host memory: ")
    for mapping in mappings:
        legend.append_text(_host_pages(mapping)).append(f" {mapping.name}   ")
    words = (
        "A memslot maps guest-physical memory to host memory. Every page of ours carries its own "
        "mark, so that what the guest reads tells which page it reached."
    )
    return [*_paragraph(words), legend, Text()]


def scene_lines(scene: Scene) -> list[Text]:
    """Return a scene, ``WIDTH`` columns wide."""
    title = f"━━ {scene.number} ━ {scene.chapter.title} "
    lines = [Text(title.ljust(WIDTH, "━"), style="bold"), *_paragraph(scene.chapter.words)]
    touches = [
        event for event in scene.events if not isinstance(event.operation, SetUserMemoryRegion)
    ]
    for event in scene.events:
        if isinstance(event.operation, SetUserMemoryRegion):
            lines.append(_call(event.operation, event.outcome))
    touched = {
        e.operation.gpa // PAGE_SIZE_BYTES for e in touches if isinstance(e.operation, Touch)
    }
    lines += _memory(scene, touched)
    for event in touches:
        if isinstance(event.operation, Touch):
            lines.append(_touch(event.operation, event.outcome, scene))
        elif isinstance(event.outcome, Inspected):
            lines.append(_seen(event.outcome))
    return [*lines, Text()]


def in_ascii(line: Text) -> Text:
    """Return a line without characters that an old terminal lacks, styles included."""
    plain = line.copy()
    plain.plain = line.plain.translate(_ASCII)
    return plain


def _paragraph(words: str) -> Iterator[Text]:
    return (Text(f"  {line}") for line in textwrap.wrap(words, WIDTH - 4))


def _labelled(label: str) -> Text:
    return Text(f"  {label:<{_MARGIN - 2}}", style="dim")


def _memory(scene: Scene, touched: set[int]) -> Iterator[Text]:
    """Yield the drawing: where the guest touches, the pages, the slots over them, the array."""
    arrows = "".join(("▼" if page in touched else "").center(_CELL) for page in range(PAGES_SHOWN))
    addresses = (f"{page * PAGE_SIZE_BYTES:#x}" for page in range(0, PAGES_SHOWN, _RULED))
    ruler = "".join(address.ljust(_RULED * _CELL) for address in addresses)
    yield _labelled("gpa").append(f" {ruler.rstrip()}", style="dim")
    yield _labelled("").append(arrows.rstrip(), style="not dim bold")
    pages = _labelled("memory")
    for page in range(PAGES_SHOWN):
        pages.append_text(_page(page, scene))
    yield pages
    brackets = [" " * _CELL] * PAGES_SHOWN
    for slot in scene.slots:
        if slot.base_gfn < PAGES_SHOWN:
            width = slot.npages * _CELL - 2
            name = f" slot {slot.slot_id} " if slot.npages > 2 else str(slot.slot_id)
            drawn = f"└{name.center(width, '─')}┘"
            brackets[slot.base_gfn : slot.base_gfn + slot.npages] = [drawn]
            brackets[slot.base_gfn + 1 : slot.base_gfn + 1] = [""] * (slot.npages - 1)
    yield _labelled("slots").append("".join(brackets).rstrip(), style="not dim")
    array = _labelled("array")
    for index, slot in enumerate(scene.slots):
        array.append(f"[{index}] ", style="dim")
        array.append(f"slot {slot.slot_id}  ", style=f"not dim {_colour(slot.userspace_addr)}")
    yield array.append("(front: highest gpa)", style="dim")


def _page(page: int, scene: Scene) -> Text:
    slot = next((s for s in scene.slots if s.base_gfn <= page < s.base_gfn + s.npages), None)
    if slot is None:
        return Text("·".center(_CELL), style="dim")
    within = page - slot.base_gfn
    return Text(
        f" {_letter(slot.userspace_addr)}{within} ".ljust(_CELL),
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
    text = words.outcome(outcome)
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
        return words.outcome(outcome)
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
