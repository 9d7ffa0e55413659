"""Finds names that stand twice in an object of a JSON file: decoders take the last of them."""

import json
from typing import Any


class _Twice(dict[str, Any]):
    """An object with a name that stands twice."""

    name = ""


def name_that_stands_twice(text: bytes) -> str:
    """Return the place of the first one in JSON text, as ``$.operations[0].gpa``; empty if none."""
    found = False

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal found
        fields = dict(pairs)
        if len(fields) == len(pairs):
            return fields
        found = True
        names = [name for name, _ in pairs]
        twice = _Twice(fields)
        twice.name = next(name for name in names if names.count(name) > 1)
        return twice

    data = json.loads(text, object_pairs_hook=made)
    return _place(data, "$") if found else ""


def _place(data: Any, at: str) -> str:
    """Return the place of the first name in what stands ``at`` a place; empty if there is none."""
    if isinstance(data, _Twice):
        return f"{at}.{data.name}"
    inside: list[tuple[str, Any]] = []
    if isinstance(data, dict):
        inside = [(f"{at}.{name}", value) for name, value in data.items()]
    elif isinstance(data, list):
        inside = [(f"{at}[{index}]", value) for index, value in enumerate(data)]
    return next((place for where, value in inside if (place := _place(value, where))), "")
