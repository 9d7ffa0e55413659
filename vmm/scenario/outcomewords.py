"""Outcomes in words."""

import errno
from collections.abc import Iterable, Iterator
from typing import assert_never

from vmm.scenario.content import identify
from vmm.scenario.history import (
    AnyOutcome,
    Closed,
    DirtyPages,
    Done,
    HostChange,
    Inspected,
    Mmio,
    MmioKept,
    MsrsSet,
    PreFaulted,
    Raced,
    Ran,
    Refused,
    RingPages,
    RingsReset,
    SetUpRefused,
    Stopped,
    Swept,
    Touched,
    Unmapped,
    bytes_of,
)
from vmm.scenario.instruction_effects import AF, CF, OF, PF, SF, ZF
from vmm.scenario.operations import PAGE_SIZE_BYTES, Mapping, Place
from vmm.scenario.shown import shown
from vmm.scenario.words import counted, hva, ranges, some

_REGISTERS = ("ax", "bx", "cx", "dx")
_POINTERS = ("sp", "bp", "si", "di")
_CPU_FLAGS = ((CF, "CF"), (PF, "PF"), (AF, "AF"), (ZF, "ZF"), (SF, "SF"), (OF, "OF"))
_MANY_BYTES, _FIRST_BYTES = 32, 16
_MOST_COMPARED = 1 << 20
"""Changed bytes that are compared one by one, to say which are wrong."""


def outcome(result: AnyOutcome, mappings: tuple[Mapping, ...] = ()) -> str:
    """Return one line that describes an outcome.

    With ``mappings``, words that are the identity of a page are named as such.
    """
    match result:
        case Done():
            return "success"
        case Refused(number):
            return errno.errorcode.get(number, f"errno {number}")
        case Touched(value, mmio, unknown):
            word = _word(value, mappings) if not unknown else f"{value:#x} or other {unknown:#x}"
            return f"{word}, {_mmio(mmio)}" if mmio else f"{word}, no exit"
        case Ran():
            return _ran(result)
        case Swept(runs, mmio):
            words = some(f"{_word(value, mappings)} x{times}" for value, times in runs)
            return f"[{words}], {_mmio(mmio)}" if mmio else f"[{words}], no exit"
        case Stopped(reason, detail):
            return f"the vCPU stops: {shown(reason)}" + (f" ({shown(detail)})" if detail else "")
        case DirtyPages():
            return _log(result)
        case RingPages():
            return _ring(result)
        case RingsReset():
            return _reset(result)
        case PreFaulted(gpa, size):
            return f"success, {size:#x} bytes are left from gpa {gpa:#x} on"
        case Inspected():
            return _inspected(result)
        case Raced(calls, windows):
            seen = counted(sum(map(len, windows)), "window")
            return f"{counted(sum(map(len, calls)), 'call')}, {seen}"
        case Closed(left):
            things = some(map(shown, left), "; ")
            return f"left behind: {things}" if left else "nothing left behind"
        case MmioKept():
            return _kept(result)
        case MsrsSet(number):
            return f"{counted(number, 'MSR')} set"
        case Unmapped(mappings=number):
            return f"{counted(number, 'mapping')} unmapped"
        case SetUpRefused(call, arguments, number, answer):
            came = answer or errno.errorcode.get(number, f"errno {number}")
            return f"{shown(call)}({shown(arguments)}): {shown(came)}"
        case _:
            assert_never(result)


def _kept(result: MmioKept) -> str:
    gpas = tuple(each for n, each in enumerate(result.writes) if n not in result.ports)
    kept = [_mmio(gpas)] if gpas else []
    kept += [f"port {result.writes[n].gpa:#x} {result.writes[n].data.hex()}" for n in result.ports]
    writes = f"kept: {some(kept)}" if kept else "no write kept"
    events = [f"{shown(name)} signalled {times} times" for name, times in result.events]
    return ", ".join([writes, *events])


def _inspected(result: Inspected) -> str:
    changes = some(map(_change, result.changes))
    texts = [f"changed: {changes}" if changes else "no byte changed"]
    texts += [
        f"{each.clock} written at {shown(each.mapping)}+{each.offset:#x}" for each in result.due
    ]
    if result.room:
        places = some(
            f"{shown(name)}+{offset:#x} ({size} bytes)" for name, offset, size in result.room
        )
        texts.append(f"perhaps written by KVM: {places}")
    return ", ".join(texts)


def amiss(observed: AnyOutcome, allowed: Iterable[AnyOutcome]) -> str:
    """Return what a log, a ring or host memory lacks or has too many, to end a text with.

    It is empty for other outcomes.
    """
    for right in allowed:
        match observed, right:
            case DirtyPages(), DirtyPages():
                missing = ranges(sorted({*right.pages} - {*observed.pages}))
                beyond = ranges(sorted({*observed.pages} - {*right.pages, *right.perhaps}))
            case RingPages(), RingPages():
                missing = _by_slot(sorted({*right.pages} - {*observed.pages}))
                beyond = _by_slot(sorted({*observed.pages} - {*right.pages, *right.perhaps}))
            case Inspected(), Inspected():
                wrong = some(_wrong_bytes(observed, right))
                return f"; wrong: {wrong}" if wrong else ""
            case _:
                continue
        lacks = f"; missing {{{missing}}}" if missing else ""
        return lacks + (f"; too many {{{beyond}}}" if beyond else "")
    return ""


def _wrong_bytes(observed: Inspected, right: Inspected) -> Iterator[str]:
    """Yield each stretch of host memory whose bytes are not those expected, and may not be."""
    if sum(len(each.data) for each in (*observed.changes, *right.changes)) > _MOST_COMPARED:
        return
    seen, wanted = bytes_of(observed.changes), bytes_of(right.changes)
    free = {(name, at + n) for name, at, size in right.room for n in range(size)}
    places = {place for place in {*seen, *wanted} if seen.get(place) != wanted.get(place)} - free
    if right.due:  # What a clock has written is in no expectation.
        places &= wanted.keys()
    for stretch in _stretches(sorted(places)):
        (name, first), *_ = stretch
        where = hva(Place(name, first))
        yield (
            f"{where} {_these([seen.get(each) for each in stretch])}"
            f" instead of {_these([wanted.get(each) for each in stretch])}"
        )


def _stretches(places: Iterable[tuple[str, int]]) -> list[list[tuple[str, int]]]:
    """Return places in order, those together that follow each other."""
    found: list[list[tuple[str, int]]] = []
    for name, offset in places:
        if found and found[-1][-1] == (name, offset - 1):
            found[-1].append((name, offset))
        else:
            found.append([(name, offset)])
    return found


def _these(data: list[int | None]) -> str:
    """Return bytes, of which some may not have changed."""
    if None not in data:
        return _bytes(bytes(each for each in data if each is not None))
    if not any(each is not None for each in data):
        return "unchanged"
    few = "".join("--" if each is None else f"{each:02x}" for each in data[:_FIRST_BYTES])
    return few + ("..." if len(data) > _FIRST_BYTES else "")


def _ran(ran: Ran) -> str:
    """Return the registers that are not 0, and the flags by name."""
    registers = [f"{name}={getattr(ran, name):#x}" for name in _REGISTERS if getattr(ran, name)]
    registers += [f"{name}{getattr(ran, name):+#x}" for name in _POINTERS if getattr(ran, name)]
    names = [name for bit, name in _CPU_FLAGS if ran.flags & ~ran.undefined & bit]
    undefined = [f"{name}?" for bit, name in _CPU_FLAGS if ran.undefined & bit]
    port = [f"sent={ran.sent.hex()}"] if ran.sent else []
    port += [f"taken={ran.taken:#x}"] if ran.taken else []
    text = " ".join([*registers, *port, f"flags {{{' '.join([*names, *undefined])}}}"])
    return f"{text}, {_mmio(ran.mmio)}" if ran.mmio else f"{text}, no exit"


def _log(result: DirtyPages) -> str:
    bitmap = "" if result.words is None else f", in a bitmap of {result.words * 64} bits"
    return f"dirty pages {{{ranges(result.pages)}}}{_perhaps(ranges(result.perhaps))}{bitmap}"


def _reset(result: RingsReset) -> str:
    if result == RingsReset():
        return "as many entries reset as were harvested"
    return f"{result.entries} entries reset, of {result.harvested} harvested"


def _ring(result: RingPages) -> str:
    perhaps = some(f"{slot}:{page}" for slot, page in result.perhaps)
    stops = f", full {counted(result.full, 'time')}" if result.full else ""
    if result.may_be_full:
        stops += " or more" if stops else ", full or not"
    return f"dirty ring {{{_by_slot(result.pages)}}}{_perhaps(perhaps)}{stops}"


def _by_slot(found: Iterable[tuple[int, int]]) -> str:
    """Return the pages of each slot of (slot, page)."""
    by_slot: dict[int, list[int]] = {}
    for slot, page in found:
        by_slot.setdefault(slot, []).append(page)
    return some((f"slot {slot}: {ranges(pages)}" for slot, pages in by_slot.items()), "; ")


def _perhaps(text: str) -> str:
    return f", perhaps {{{text}}}" if text else ""


def _word(value: int, mappings: tuple[Mapping, ...]) -> str:
    index, page = identify(value)
    if 0 <= index < len(mappings) and page < mappings[index].pages:
        return f"{value:#010x} (page {page} of {shown(mappings[index].name)})"
    return f"{value:#x}"


def _mmio(exits: tuple[Mmio, ...]) -> str:
    return "MMIO " + some(
        f"{'write' if e.write else 'read'} {e.gpa:#x}+{len(e.data)} {e.data[:16].hex()}"
        for e in exits
    )


def _change(change: HostChange) -> str:
    where = hva(Place(change.mapping, change.offset))
    return f"{where} (page {change.offset // PAGE_SIZE_BYTES}) = {_bytes(change.data)}"


def _bytes(data: bytes) -> str:
    """Return bytes in hexadecimal; if there are many, how many, and the first or what all are."""
    if len(data) <= _MANY_BYTES and (len(data) <= 4 or len(set(data)) > 1):
        return data.hex()
    if len(set(data)) == 1:
        return f"{data[0]:02x} x{len(data)}"
    return f"{data[:_FIRST_BYTES].hex()}... ({len(data)} bytes)"
