"""Hexadecimal numbers in a scenario's file: strings ("0x10000") for fields of type `Hex`."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from msgspec import inspect

from vmm.scenario.operation import HEXADECIMAL
from vmm.scenario.operations import Scenario

_MOST_LEVELS = 16
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]{1,32}")


def in_numbers(value: Any, level: int = 0) -> Any:
    """Return JSON data with the hexadecimal strings of `Hex` fields turned into numbers.

    Data nested deeper than any scenario is left alone; the decoder reports its place.
    """
    if level > _MOST_LEVELS:
        return value
    if isinstance(value, list):
        return [in_numbers(item, level + 1) for item in value]
    if isinstance(value, dict):
        names = hexadecimal_fields()
        return {
            key: _number(item, level) if key in names else in_numbers(item, level + 1)
            for key, item in value.items()
        }
    return value


def _number(value: Any, level: int) -> Any:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return int(value, 16)
    return in_numbers(value, level + 1)


def in_hexadecimal(value: Any) -> Any:
    """Return JSON data with the numbers of `Hex` fields as hexadecimal strings."""
    if isinstance(value, list | tuple):
        return [in_hexadecimal(item) for item in value]
    if isinstance(value, dict):
        names = hexadecimal_fields()
        return {
            key: hex(item) if key in names and type(item) is int else in_hexadecimal(item)
            for key, item in value.items()
        }
    return value


@cache
def hexadecimal_fields() -> frozenset[str]:
    """Return the names of a scenario's fields of type `Hex`.

    The name alone decides: no structure has a field of the same name that is not `Hex`.
    """
    return frozenset(
        field.name
        for struct in structs()
        for field in struct.fields
        if any(map(is_hexadecimal, alternatives(field.type)))
    )


def structs() -> Iterator[inspect.StructType]:
    """Yield every structure in a scenario, the scenario itself included."""
    seen: set[type] = set()
    todo = [inspect.type_info(Scenario)]
    while todo:
        match todo.pop():
            case inspect.StructType() as struct if struct.cls not in seen:
                seen.add(struct.cls)
                todo += [field.type for field in struct.fields]
                yield struct
            case inspect.UnionType(types):
                todo += types
            case inspect.VarTupleType(item):
                todo.append(item)


def alternatives(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    """Return the members of a union, or the type itself."""
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)


def is_hexadecimal(kind: inspect.Type) -> bool:
    """Whether a type is `Hex`."""
    return isinstance(kind, inspect.Metadata) and HEXADECIMAL in (kind.extra or {})
