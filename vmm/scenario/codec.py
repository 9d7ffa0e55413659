"""Scenarios and histories as files: JSON for people, JSON Lines for what happened.

Numbers may be written as hexadecimal strings ("0x10000"); gpas, sizes, addresses and flags are
written that way. A bad file is a ``FileError``: one line with file, place and remedy.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from vmm.scenario.history import End, Event, Header, History
from vmm.scenario.operations import FORMAT, Scenario
from vmm.scenario.validate import ScenarioError, validate

_HEADER_BEGINS = b'{"type":"history"'

_HEXADECIMAL = frozenset(
    (
        "guest_phys_addr",
        "memory_size",
        "size",
        "address",
        "attributes",
        "userspace_addr",
        "gpa",
        "offset",
        "value",
        "flags",
        "guest_memfd_offset",
    )
)


class FileError(ValueError):
    """A file that cannot be used; the text is one line with file, place and remedy."""


def read_scenario(path: Path) -> Scenario:
    """Return the scenario in a JSON file, checked and safe to run.

    Raises FileError.
    """
    return parse_scenario(_read(path), str(path))


def parse_scenario(text: bytes, name: str) -> Scenario:
    """Return the scenario in JSON text; ``name`` stands for the file in errors.

    Raises FileError.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{name}: not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise FileError(f"{name}: a scenario is a JSON object, this is {type(raw).__name__}")
    _check_format(raw.pop("format", FORMAT), name)
    try:
        scenario = msgspec.convert(_numbers(raw), Scenario)
        validate(scenario)
    except (msgspec.ValidationError, ScenarioError) as error:
        raise FileError(f"{name}: {error}") from None
    return scenario


def scenario_text(scenario: Scenario) -> str:
    """Return a scenario as JSON, an operation a line."""
    data = _hexadecimal(msgspec.to_builtins(scenario))
    lines = []
    for key, value in {"format": FORMAT, **data}.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            items = ",\n".join(f"    {json.dumps(item)}" for item in value)
            lines.append(f'  "{key}": [\n{items}\n  ]')
        else:
            lines.append(f'  "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


_ENCODER = msgspec.json.Encoder()


def history_line(part: Header | Event | End) -> bytes:
    """Return one line of a history file."""
    return _ENCODER.encode(part) + b"\n"


def history_lines(history: History) -> Iterator[bytes]:
    """Yield the lines of a history file."""
    yield history_line(history.header)
    for event in history.events:
        yield history_line(event)
    if history.end is not None:
        yield history_line(history.end)


def read_history(path: Path) -> History:
    """Return the history in a JSON Lines file.

    A last line that is cut off is left out, and ``end`` is None then. Raises FileError.
    """
    return parse_history(_read(path).split(b"\n"), str(path))


def records_in(path: Path) -> Iterator[tuple[Header, list[bytes]]]:
    """Yield each history of a file: its header, and all its lines. Raises FileError.

    A last header that is cut off is left out.
    """
    lines: list[bytes] = []
    for number, line in enumerate(_read(path).split(b"\n"), 1):
        if line.startswith(_HEADER_BEGINS):
            if lines:
                yield _header(lines[0], str(path)), lines
            lines = [line]
        elif lines:
            lines.append(line)
        elif line.strip():
            raise FileError(f"{path}:{number}: not a history: the first line is its header")
    if len(lines) > 1:
        yield _header(lines[0], str(path)), lines


def parse_history(lines: Iterable[bytes], name: str, header: Header | None = None) -> History:
    """Return the history in the lines of a file; ``name`` stands for it in errors.

    A ``header`` that is known already is not read again. Raises FileError.
    """
    whole = list(lines)
    if not whole or not whole[0].strip():
        raise FileError(f"{name}:1: empty: a history begins with a header line")
    header = header or _header(whole[0], name)
    decoder = msgspec.json.Decoder(Event)
    events: list[Event] = []
    for number, line in enumerate(whole[1:], 2):
        if not line.strip():
            continue
        try:
            if line.startswith(b'{"type":"end"'):
                return History(header, tuple(events), msgspec.json.decode(line, type=End))
            events.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if number == len(whole):
                break
            raise FileError(f"{name}:{number}: {error}") from None
    return History(header, tuple(events), None)


def _header(line: bytes, name: str) -> Header:
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise FileError(f"{name}:1: not JSON: {error}") from None
    if not isinstance(raw, dict) or raw.get("type") != "history":
        raise FileError(f"{name}:1: not a history: the first line is its header")
    _check_format(raw.get("format", FORMAT), f"{name}:1")
    header = _decode(line, Header, f"{name}:1")
    try:
        validate(header.scenario)
    except ScenarioError as error:
        raise FileError(f"{name}:1: {error}") from None
    return header


_T = TypeVar("_T")


def _decode(line: bytes, kind: type[_T], place: str) -> _T:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FileError(f"{place}: {error}") from None


def _check_format(version: object, place: str) -> None:
    if version != FORMAT:
        raise FileError(
            f"{place}: format {version!r} is not known here (this reads format {FORMAT}): "
            "use the version of this program that wrote it"
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from None


def _numbers(value: Any) -> Any:
    """Return JSON data with the hexadecimal strings of number fields turned into numbers."""
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, dict):
        return {
            key: _number(item) if key in _HEXADECIMAL else _numbers(item)
            for key, item in value.items()
        }
    return value


def _number(value: Any) -> Any:
    if isinstance(value, str) and value.lower().startswith("0x"):
        try:
            return int(value, 16)
        except ValueError:
            return value
    return _numbers(value)


def _hexadecimal(value: Any) -> Any:
    """Return JSON data with the fields that people read as addresses in hexadecimal."""
    if isinstance(value, list | tuple):
        return [_hexadecimal(item) for item in value]
    if isinstance(value, dict):
        return {
            key: hex(item) if key in _HEXADECIMAL and type(item) is int else _hexadecimal(item)
            for key, item in value.items()
        }
    return value
