"""Says what is wrong with a scenario that does not decode, and what would be right in its place."""

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

import msgspec
from msgspec import inspect

from vmm.scenario.hexadecimal import alternatives, is_hexadecimal
from vmm.scenario.operations import Scenario

_PLACE = re.compile(r" - at `(.*)`$")
_PARTS = re.compile(r"\.(\w+)|\[(\d+)\]")
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_FEW = 8
"""So many names are listed; of more only those that look alike."""


def in_words(error: msgspec.ValidationError, data: object) -> str:
    """Return an error of the decoder as place, problem and remedy; ``data`` is the whole file."""
    text = str(error)
    found = _PLACE.search(text)
    place, problem = (found[1], text[: found.start()]) if found else ("$", text)
    kinds, value = _at(place, data)
    if any(map(is_hexadecimal, kinds)) and isinstance(value, str | float | list):
        place_too = any(isinstance(kind, inspect.StructType) for kind in kinds)
        other = ', or a place: {"mapping": "NAME"}' if place_too else ""
        return f'{place}: {_short(value)} is no number, such as 4096 or "0x1000"{other}'
    return f"{place}: {problem}{_remedy(problem, kinds, value)}"


def json_problem(text: bytes, error: Exception) -> str:
    """Return why text is no JSON, with line and column in place of the offset."""
    found = re.search(r" \(byte (\d+)\)$", str(error))
    if found is None:
        return f"not JSON: {error}"
    before = text[: int(found[1])]
    line, column = before.count(b"\n") + 1, len(before) - (before.rfind(b"\n") + 1) + 1
    problem = str(error)[: found.start()]
    return f"not JSON: line {line}, column {column}: {problem}{_hint(text, before)}"


def _hint(text: bytes, before: bytes) -> str:
    if text[len(before) :].startswith((b"/", b"#")):
        return "; JSON has no comments"
    if before.endswith(b"0") and text[len(before) :].startswith((b"x", b"X")):
        return '; a hexadecimal number is a string: "0x1000"'
    return ""


def _remedy(problem: str, kinds: tuple[inspect.Type, ...], value: Any) -> str:
    if unknown := _UNKNOWN_FIELD.fullmatch(problem):
        return _proposal(unknown[1], _fields(kinds, value))
    if problem.startswith("Invalid enum value"):
        return _proposal(value, _values(kinds))
    if problem.startswith("Invalid value"):  # The place is that of the tag, which tells structures.
        return _proposal(value, _tags(kinds))
    return ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _proposal(value: object, names: Iterable[object]) -> str:
    known = list(dict.fromkeys(str(name) for name in names))
    close = get_close_matches(str(value), known, 3, 0.6)
    if len(known) <= _FEW:
        return f"; possible: {', '.join(known)}" if known else ""
    return f"; the closest: {', '.join(close)}" if close else ""


def _at(place: str, data: Any) -> tuple[tuple[inspect.Type, ...], Any]:
    """Return the types that may stand at a place, and what stands there.

    The place of a tag, as of ``op``, has the types of the structure around it.
    """
    kinds: tuple[inspect.Type, ...] = (inspect.type_info(Scenario),)
    for name, index in _PARTS.findall(place):
        if index:
            kinds = tuple(_items(kinds))
            data = data[int(index)] if isinstance(data, list) and int(index) < len(data) else None
            continue
        kinds = tuple(_field_types(kinds, name, data)) or kinds
        data = data.get(name) if isinstance(data, dict) else None
    return kinds, data


def _items(kinds: Iterable[inspect.Type]) -> Iterator[inspect.Type]:
    for kind in kinds:
        match kind:
            case inspect.VarTupleType(item) | inspect.ListType(item):
                yield from alternatives(item)
            case inspect.TupleType(items):
                for item in items:
                    yield from alternatives(item)


def _field_types(kinds: Iterable[inspect.Type], name: str, data: Any) -> Iterator[inspect.Type]:
    for struct in _structs(kinds, data):
        for field in struct.fields:
            if field.encode_name == name:
                yield from alternatives(field.type)


def _structs(kinds: Iterable[inspect.Type], data: Any) -> Iterator[inspect.StructType]:
    """Yield the structures that data may be: if it has a tag, those of that tag."""
    for kind in kinds:
        if isinstance(kind, inspect.StructType) and (
            kind.tag_field is None
            or not isinstance(data, dict)
            or data.get(kind.tag_field) == kind.tag
        ):
            yield kind


def _fields(kinds: Iterable[inspect.Type], data: Any) -> Iterator[str]:
    for struct in _structs(kinds, data):
        yield from (field.encode_name for field in struct.fields)


def _values(kinds: Iterable[inspect.Type]) -> Iterator[object]:
    for kind in kinds:
        match kind:
            case inspect.LiteralType(values):
                yield from values
            case inspect.EnumType(cls):
                yield from (member.value for member in cls)


def _tags(kinds: Iterable[inspect.Type]) -> Iterator[object]:
    yield from (kind.tag for kind in kinds if isinstance(kind, inspect.StructType))
