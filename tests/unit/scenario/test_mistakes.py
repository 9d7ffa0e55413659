"""Typical mistakes in a scenario's file: each is told with its place and what would be right."""

import json
from typing import Any

import pytest

from vmm.scenario.codec import parse_scenario
from vmm.scenario.reading import FileError

REGION = {
    "op": "set_user_memory_region",
    "slot": 0,
    "guest_phys_addr": "0x10000",
    "memory_size": "0x1000",
    "userspace_addr": {"mapping": "a"},
}
TOUCH = {"op": "touch", "gpa": "0x10000", "access": "read", "width": 4}
NUMBER = 'is no number, such as 4096 or "0x1000"'


def problem(text: str) -> str:
    with pytest.raises(FileError) as refused:
        parse_scenario(text.encode(), "file")
    return str(refused.value).removeprefix("file: ")


def scenario(**change: Any) -> str:
    first = {**REGION, **change.pop("region", {})}
    second = {**TOUCH, **change.pop("touch", {})}
    mapping = {"name": "a", "pages": 1, **change.pop("mapping", {})}
    whole = {"name": "n", "mappings": [mapping], "operations": [first, second], **change}
    return json.dumps(whole, indent=1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"region": {"guest_phys_addr": "0x1000g"}}, f"[0].guest_phys_addr: '0x1000g' {NUMBER}"),
        ({"region": {"memory_size": "10000"}}, f"[0].memory_size: '10000' {NUMBER}"),
        ({"region": {"memory_size": 1.5}}, f"[0].memory_size: 1.5 {NUMBER}"),
        (
            {"region": {"userspace_addr": "a"}},
            f'[0].userspace_addr: \'a\' {NUMBER}, or a place: {{"mapping": "NAME"}}',
        ),
        (
            {"region": {"guest_phys_adr": 0}},
            "[0]: Object contains unknown field `guest_phys_adr`; the closest: guest_phys_addr",
        ),
        ({"region": {"op": "set_region"}}, "[0].op: Invalid value 'set_region'"),
        (
            {"region": {"op": "set_memory_region"}},
            "[0].op: Invalid value 'set_memory_region'; the closest: set_user_memory_region, "
            "set_user_memory_region2, set_memory_attributes",
        ),
        ({"touch": {"access": "wr"}}, "[1].access: Invalid enum value 'wr'; possible: read, write"),
        ({"touch": {"width": 3}}, "[1].width: Invalid enum value 3; possible: 1, 2, 4"),
    ],
)
def test_an_operation(change: dict[str, Any], expected: str) -> None:
    assert problem(scenario(**change)).startswith(f"$.operations{expected}")


def test_a_mapping() -> None:
    assert problem(scenario(mapping={"kind": "hugetlb1"})) == (
        "$.mappings[0].kind: Invalid enum value 'hugetlb1'; the closest: hugetlb, hugetlb_memfd"
    )


def test_the_scenario_itself() -> None:
    assert problem(scenario(mapings=[])) == (
        "$: Object contains unknown field `mapings`; the closest: mappings"
    )
    assert problem("{}") == "$: Object missing required field `name`"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{\n "name": 0x10}', "line 2, column 11: JSON is malformed: expected ',' or '}'; a hex"),
        ('{\n // a comment\n "name": ""}', "line 2, column 2: JSON is malformed: object keys mus"),
        ('{"name": "",\n}', "line 2, column 1: JSON is malformed: trailing comma in object"),
        ('{"name": ""', "Input data was truncated"),
    ],
)
def test_no_json(text: str, expected: str) -> None:
    assert problem(text).startswith(f"not JSON: {expected}")


def test_comments() -> None:
    assert problem('{\n // a comment\n "name": ""}').endswith("; JSON has no comments")
