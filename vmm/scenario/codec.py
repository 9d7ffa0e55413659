"""Scenarios and histories as files: a scenario is JSON, a history JSON Lines.

In a scenario, gpas, sizes, addresses and flags are hexadecimal strings ("0x10000"); plain numbers
are read, too. A bad file raises ``FileError``: one line with file, place and remedy.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from vmm.scenario.demand import LARGE, USUAL, Limits, check_demand
from vmm.scenario.events import EventChecker
from vmm.scenario.features import check_features
from vmm.scenario.guestplace import with_room
from vmm.scenario.hexadecimal import in_hexadecimal, in_numbers
from vmm.scenario.history import End, Event, Header, History
from vmm.scenario.kinds import BEGINNING_BYTES, HISTORY, HISTORY_BEGINS, SCENARIO, other_than
from vmm.scenario.mistakes import in_words, json_problem
from vmm.scenario.operations import FORMAT, Scenario
from vmm.scenario.packing import PackingError, is_packed, packed, unpacked
from vmm.scenario.problem import ScenarioError
from vmm.scenario.reading import (
    EMPTY,
    MAX_HISTORY_BYTES,
    CutOffError as CutOffError,
    FileError as FileError,
    beginning_of,
    lines_of,
    read_text,
)
from vmm.scenario.twice import name_that_stands_twice
from vmm.scenario.undecodable import UNDECODABLE
from vmm.scenario.validate import validate

HEADER_BEGINS = HISTORY_BEGINS
_NO_HISTORY = "not a history: the first line is its header"

_TEXT_SHARE = 4
"""The text of a history may take a quarter of the memory that its scenario may take."""


def read_scenario(path: Path, limits: Limits = USUAL) -> Scenario:
    """Return the scenario in a JSON file, checked and safe to run, and within ``limits``.

    Raises FileError.
    """
    return parse_scenario(read_text(path), str(path), limits)


def parse_scenario(text: bytes, name: str, limits: Limits = USUAL) -> Scenario:
    """Return the scenario in JSON text; ``name`` stands for the file in errors.

    Raises FileError.
    """
    _require(SCENARIO, text, name)
    raw = _object_in(text, name)
    try:
        _check_format(raw.pop("format", FORMAT), name)
        scenario = msgspec.convert(in_numbers(raw), Scenario)
        if not _names_a_place(raw.get("guest")):
            scenario = _with_room(scenario)
        validate(scenario)
        check_demand(scenario, limits)
    except msgspec.ValidationError as error:
        raise FileError(name, in_words(error, raw)) from None
    except ScenarioError as error:
        raise FileError(name, error) from None
    return scenario


def _require(wanted: str, beginning: bytes, place: object) -> None:
    """Raise FileError for a file of another kind."""
    other = other_than(wanted, beginning)
    if other:
        raise FileError(place, other)


def _object_in(text: bytes, name: str) -> dict[str, Any]:
    """Return the object in JSON text, in which no name stands twice. Raises FileError."""
    try:
        found = msgspec.json.decode(text)
        if not isinstance(found, dict):
            raise FileError(name, f"a scenario is a JSON object, this is {type(found).__name__}")
        twice = name_that_stands_twice(text)
    except RecursionError:
        raise FileError(name, "nested too deep: a scenario has a few levels") from None
    except msgspec.ValidationError as error:
        raise FileError(name, str(error).partition(" - at ")[0]) from None
    except UNDECODABLE as error:
        raise FileError(name, json_problem(text, error)) from None
    if twice:
        raise FileError(name, f"{twice}: stands twice in one object")
    return found


def scenario_text(scenario: Scenario) -> str:
    """Return a scenario as JSON, one operation a line."""
    data = in_hexadecimal(msgspec.to_builtins(scenario))
    if not (_names_a_place(data.get("guest")) or _is_implied(scenario)):
        data["guest"] = {**data.get("guest", {}), "gpa": hex(scenario.guest.gpa)}
    lines = []
    for key, value in {"format": FORMAT, **data}.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            items = ",\n".join(f"    {json.dumps(item)}" for item in value)
            lines.append(f'  "{key}": [\n{items}\n  ]')
        else:
            lines.append(f'  "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _names_a_place(guest: object) -> bool:
    """Whether a file names the guest's place: ``{}`` names the usual one."""
    return isinstance(guest, dict) and (not guest or "gpa" in guest)


def _with_room(scenario: Scenario) -> Scenario:
    """Move the guest out of the way; if there is no room, any other problem is raised instead."""
    try:
        return with_room(scenario)
    except ScenarioError:
        validate(scenario)
        raise


def _is_implied(scenario: Scenario) -> bool:
    """Whether the guest would be put where it is if the file did not say so."""
    try:
        return with_room(scenario) is scenario
    except ScenarioError:
        return False


_ENCODER = msgspec.json.Encoder()


_END = b'{"type":"end"'


def history_line(part: Header | Event | End) -> bytes:
    """Return one line of a history file; a long event is packed.

    Raises OverflowError for an event that is too long to be read again even when packed.
    """
    text = _ENCODER.encode(part)
    return (packed(text) if isinstance(part, Event) else text) + b"\n"


def has_ended(data: bytes) -> bool:
    """Whether the last line is the end of a history; ``data`` holds whole lines."""
    return data[data.rfind(b"\n", 0, -1) + 1 :].startswith(_END)


def ending_of(data: bytes) -> str:
    """Return why a history ended early, empty if it did not; ``data`` holds whole lines."""
    last = data[data.rfind(b"\n", 0, -1) + 1 :]
    return msgspec.json.decode(last, type=End).reason if last.startswith(_END) else ""


def history_lines(history: History) -> Iterator[bytes]:
    """Yield the lines of a history file."""
    yield history_line(history.header)
    for event in history.events:
        yield history_line(event)
    if history.end is not None:
        yield history_line(history.end)


def read_history(path: Path, limits: Limits = USUAL) -> History:
    """Return the one history of a JSON Lines file.

    If the last line is cut off, it is ignored and ``end`` is None. Raises FileError.
    """
    found = list(islice(histories_in(path, limits), 2))
    if len(found) != 1:
        raise FileError(path, "holds several histories: `vmm judge` takes them all")
    return found[0].history()


class HistoryText(msgspec.Struct, frozen=True):
    """A history of which only the header is parsed so far; it begins at ``line`` of the file."""

    header: Header
    lines: list[bytes]
    name: str
    line: int = 1
    limits: Limits = USUAL

    def history(self) -> History:
        """Parse and check the events, and return the history. Raises FileError."""
        check = EventChecker(self.header).problem
        return parse_history(self.lines, self.name, self.header, self.line, check, self.limits)


def histories_in(path: Path, limits: Limits = USUAL) -> Iterator[HistoryText]:
    """Yield each history of a file; only one is in memory at a time.

    Raises FileError, also for a scenario beyond ``limits``; CutOffError at the end if the last
    header is cut off.
    """
    lines: list[bytes] = []
    size, first = 0, 1

    def text() -> HistoryText:
        header = _header(lines[0], f"{path}:{first}", limits)
        return HistoryText(header, lines, str(path), first, limits)

    for number, line in enumerate(lines_of(path), 1):
        if line.startswith(HEADER_BEGINS):
            if lines:
                yield text()
            lines, size, first = [line], len(line), number
            continue
        if not lines and line.strip():
            _require(HISTORY, beginning_of(path, BEGINNING_BYTES), path)
            raise FileError(f"{path}:{number}", f"{_why_no_header(line)}{_NO_HISTORY}")
        size += len(line)
        if size > MAX_HISTORY_BYTES:
            raise FileError(
                f"{path}:{first}", f"a history of more than {MAX_HISTORY_BYTES >> 20} MiB"
            )
        if lines:
            lines.append(line)
    if not lines:
        raise FileError(path, EMPTY)
    if len(lines) == 1 and first > 1 and not lines[0].endswith(b"}"):
        raise CutOffError(f"{path}:{first}", "cut off in the header of a history")
    yield text()


def parse_history(
    lines: Iterable[bytes],
    name: str,
    header: Header | None = None,
    first: int = 1,
    check: Callable[[Event], str] | None = None,
    limits: Limits = LARGE,
) -> History:
    """Return the history in the lines of a file; ``name`` stands for the file in errors.

    A ``header`` that is already parsed is not parsed again; it is on line ``first``. ``check``
    says what is wrong with an event, beginning with the field. ``limits`` bound the size of
    unpacked events. Raises FileError.
    """
    whole = list(lines)
    if not whole or not whole[0].strip():
        raise FileError(name, EMPTY)
    header = header or _header(whole[0], f"{name}:{first}")
    decoder = msgspec.json.Decoder(Event)
    events: list[Event] = []
    room = limits.memory_bytes // _TEXT_SHARE
    for number, line in enumerate(whole[1:], first + 1):
        if not line.strip():
            continue
        try:
            if line.startswith(_END):
                end = msgspec.json.decode(line, type=End)
                _check_end(end, len(events), whole[number - first + 1 :], f"{name}:{number}")
                return History(header, tuple(events), end)
            if is_packed(line):
                text = unpacked(line, room)
                room -= len(text)
                line = text
            event = decoder.decode(line)
        except PackingError as error:
            raise FileError(f"{name}:{number}", error) from None
        except UNDECODABLE as error:
            if number - first + 1 == len(whole):
                break
            raise FileError(f"{name}:{number}", error) from None
        if check and (problem := check(event)):
            raise FileError(f"{name}:{number}", f"$.{problem}")
        events.append(event)
    return History(header, tuple(events), None)


def _check_end(end: End, events: int, after: list[bytes], place: str) -> None:
    """Raise FileError unless the end line counts the events and comes last.

    The end of a history that was broken off may hold no count.
    """
    if (end.events or not end.reason) and end.events != events:
        raise FileError(place, f"the end of {end.events} events, but {events} are in the file")
    if any(line.strip() for line in after):
        raise FileError(place, "the end of a history, but more lines follow")


def _header(line: bytes, place: str, limits: Limits = LARGE) -> Header:
    try:
        fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        if bytes(fields.get("type", b"")) != b'"history"':
            raise FileError(place, _NO_HISTORY)
        if "format" in fields:
            _check_format(msgspec.json.decode(fields["format"]), place)
        header = msgspec.json.decode(line, type=Header)
        validate(header.scenario)
        check_demand(header.scenario, limits)
        check_features(header.features)
    except (msgspec.ValidationError, ScenarioError) as error:
        raise FileError(place, error) from None
    except UNDECODABLE as error:
        raise FileError(place, f"not JSON: {error}") from None
    return header


def _why_no_header(line: bytes) -> str:
    try:
        msgspec.json.decode(line, type=msgspec.Raw)
    except UNDECODABLE as error:
        return f"not JSON: {error}: "
    return ""


def _check_format(version: object, place: str) -> None:
    if type(version) is not int or version != FORMAT:
        raise FileError(
            place,
            f"format {version!r} is not known here (this reads format {FORMAT}): "
            "use the version of this program that wrote it",
        )
