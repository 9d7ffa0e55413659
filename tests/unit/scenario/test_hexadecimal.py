"""Which numbers of a file are hexadecimal is declared at each field, and nowhere else."""

import pytest
from msgspec import inspect

from vmm.catalogue import catalogue
from vmm.scenario.codec import parse_scenario, scenario_text
from vmm.scenario.hexadecimal import alternatives, hexadecimal_fields, is_hexadecimal, structs
from vmm.verdict.ideal import EVERYTHING

DECIMAL = {
    *("slot", "vcpu", "vcpus", "argument", "count", "first_page", "num_pages", "pages", "times"),
    *("fail_nth", "rounds", "pause", "windows", "vm", "length", "migrates", "pio", "index"),
}
"""Ids, indexes and counts: people read them in decimal."""


def is_number(kind: inspect.Type) -> bool:
    """Whether a value of this type may be an integer of any size."""
    of = alternatives(kind)
    return any(isinstance(each, inspect.IntType | inspect.Metadata) for each in of)


NUMBERS = [
    (struct.cls.__name__, field.name, any(map(is_hexadecimal, alternatives(field.type))))
    for struct in structs()
    for field in struct.fields
    if is_number(field.type)
]


@pytest.mark.parametrize(("struct", "field", "is_hex"), NUMBERS)
def test_every_number_is_declared_to_be_hexadecimal_or_known_as_decimal(
    struct: str, field: str, is_hex: bool
) -> None:
    """A new number is `Hex`, or its name goes into DECIMAL: one name is always read one way."""
    assert is_hex != (field in DECIMAL)
    assert is_hex == (field in hexadecimal_fields())


def test_all_numbers_were_looked_at() -> None:
    assert {field for _, field, is_hex in NUMBERS if not is_hex} == DECIMAL
    assert ("Touch", "gpa", True) in NUMBERS
    assert ("SetUserMemoryRegion", "userspace_addr", True) in NUMBERS


def test_a_scenario_is_the_same_after_it_was_a_file() -> None:
    for scenario in catalogue(EVERYTHING)[:100]:
        assert parse_scenario(scenario_text(scenario).encode(), "x") == scenario
