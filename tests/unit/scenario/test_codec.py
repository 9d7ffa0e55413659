"""Files of strangers: what is wrong is said in one line, with its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from vmm.scenario import codec
from vmm.scenario.codec import FileError
from vmm.scenario.operations import Mapping, Place, Scenario, SetUserMemoryRegion, Touch

GOOD: dict[str, Any] = {
    "format": 1,
    "name": "good",
    "mappings": [{"name": "a", "pages": 2}],
    "operations": [
        {
            "op": "set_user_memory_region",
            "slot": 0,
            "guest_phys_addr": "0x10000",
            "memory_size": "0x2000",
            "userspace_addr": {"mapping": "a"},
        },
        {"op": "touch", "gpa": 65536},
    ],
}


def parse(**changes: Any) -> Scenario:
    return codec.parse_scenario(json.dumps({**GOOD, **changes}).encode(), "f.json")


def region(**fields: Any) -> dict[str, Any]:
    return {**GOOD["operations"][0], **fields}


def test_hexadecimal_and_decimal_numbers_are_the_same() -> None:
    assert parse().operations == (
        SetUserMemoryRegion(0, 0x10000, 0x2000, Place("a")),
        Touch(0x10000),
    )


def test_scenario_survives_its_file() -> None:
    scenario = Scenario(
        "x", (SetUserMemoryRegion(1, 1 << 40, 0x1000, 1 << 63, 2),), (Mapping("a", 1),), tags=("t",)
    )
    assert codec.parse_scenario(codec.scenario_text(scenario).encode(), "x") == scenario


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format": 2}, "format 2 is not known"),
        ({"name": ""}, "$.name"),
        ({"colour": 1}, "colour"),
        ({"vcpus": 0}, "$.vcpus"),
        ({"vcpus": 9}, "$.vcpus"),
        ({"needs": ["magic"]}, "$.needs: 'magic'"),
        ({"operations": [{"op": "fly"}]}, "$.operations[0]"),
        ({"operations": [{"slot": 1}]}, "op"),
        ({"operations": [region(slot="x")]}, "$.operations[0].slot"),
        ({"operations": [region(slot=1 << 32)]}, "$.operations[0].slot"),
        ({"operations": [region(slot=400)]}, "$.operations[0].slot"),
        ({"operations": [region(guest_phys_addr=-1)]}, "$.operations[0].guest_phys_addr"),
        ({"operations": [region(memory_size="0x2000000000")]}, "$.operations[0].memory_size"),
        ({"operations": [region(userspace_addr={"mapping": "b"})]}, "named 'b'"),
        ({"operations": [region(userspace_addr={"mapping": "guest"})]}, "named 'guest'"),
        (
            {"operations": [region(userspace_addr={"mapping": "a", "offset": 4096})]},
            "$.operations[0].userspace_addr.offset",
        ),
        ({"operations": [region(userspace_addr=0x400000)]}, "$.operations[0].userspace_addr"),
        (
            {"operations": [region(userspace_addr=0, memory_size="0x11000")]},
            "$.operations[0].userspace_addr",
        ),
        (
            {"operations": [{"op": "touch", "gpa": (1 << 52) - 3}]},
            "$.operations[0].gpa: an",
        ),
        (
            {"operations": [{"op": "touch", "gpa": (1 << 32) - 3}], "guest": {"gpa": "0xffff0000"}},
            "guest's own memory",
        ),
        (
            {"operations": [{"op": "touch", "gpa": (1 << 32) + (n << 21)} for n in range(129)]},
            "$.operations[128].gpa: more than 128 stretches",
        ),
        ({"operations": [{"op": "set_tss_addr", "gpa": 1 << 64}]}, "$.operations[0].gpa"),
        ({"operations": [{"op": "set_identity_map_addr", "gpa": -1}]}, "$.operations[0].gpa"),
        (
            {"operations": [{"op": "enable_cap", "cap": "DISABLE_QUIRKS2", "flags": 1 << 32}]},
            "$.operations[0].flags",
        ),
        ({"operations": [{"op": "create_vcpu", "vcpu": 1}]}, "$.operations[0].vcpu"),
        ({"operations": [{"op": "create_irqchip"}], "vcpus": 2}, "$.operations[0]: $.vcpus"),
        (
            {"operations": [{"op": "touch", "gpa": "0xffff0ffe"}], "guest": {"gpa": "0xffff0000"}},
            "$.operations[0].gpa",
        ),
        ({"operations": [{"op": "touch", "gpa": 0, "width": 8}]}, "$.operations[0].width"),
        ({"operations": [{"op": "touch", "gpa": 0, "vcpu": 1}]}, "$.operations[0].vcpu"),
        ({"operations": [{"op": "execute", "gpa": 1}]}, "$.operations[0].gpa"),
        ({"operations": [{"op": "sweep", "gpa": 0, "count": 8192}]}, "$.operations[0].count"),
        (
            {"operations": [{"op": "coalesce_mmio", "gpa": 0xD0, "size": 17, "pio": True}]},
            "$.operations[0].gpa: guests use ports 0xe0 to 0xff",
        ),
        (
            {
                "operations": [
                    {"op": "host_write", "place": {"mapping": "a", "offset": 8189}, "value": 0}
                ]
            },
            "$.operations[0].place.offset",
        ),
        ({"mappings": [{"name": "a", "pages": 0}]}, "$.mappings[0].pages"),
        ({"mappings": [{"name": "a", "pages": (1 << 24) + 1}]}, "$.mappings[0].pages"),
        ({"mappings": [{"name": "guest", "pages": 1}]}, "$.mappings[0].name"),
        ({"mappings": [{"name": "a", "pages": 2, "kind": "disk"}]}, "$.mappings[0].kind"),
        ({"mappings": [{"name": "a", "pages": 3, "kind": "hugetlb"}]}, "$.mappings[0].pages"),
        ({"guest": {"gpa": 4096}}, "$.guest.gpa"),
    ],
)
def test_bad_scenario_is_one_line_with_its_place(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(FileError) as caught:
        parse(**changes)
    text = str(caught.value)
    assert text.startswith("f.json: ")
    assert complaint in text
    assert "\n" not in text


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_what_is_no_json_object_is_refused(text: bytes) -> None:
    with pytest.raises(FileError, match=r"^f\.json: "):
        codec.parse_scenario(text, "f.json")


def test_a_number_that_no_computer_holds_is_refused() -> None:
    with pytest.raises(FileError, match=r"^f\.json: Number out of range$"):
        codec.parse_scenario(b'{"name": "x", "why": 1e999}', "f.json")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b'{"name": "x", "operations": [], "name": "y"}', "$.name"),
        (b'{"operations": [{"op": "touch"}, {"gpa": 1, "gpa": 2}]}', "$.operations[1].gpa"),
        (b'{"guest": {"a": 1, "\\u0061": 1}, "guest": {}}', "$.guest"),
    ],
)
def test_a_name_that_stands_twice_is_refused(text: bytes, place: str) -> None:
    with pytest.raises(FileError) as caught:
        codec.parse_scenario(text, "f.json")
    assert str(caught.value) == f"f.json: {place}: stands twice in one object"


def test_missing_file_is_a_file_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="No such file"):
        codec.read_scenario(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b"", "h: empty"),
        (b"hello", "h:1"),
        (b'{"type":"event"}', "h:1"),
        (b'{"type":"history","format":9}', "h:1"),
        (b'{"type":"history"}', "h:1"),
    ],
)
def test_bad_history_names_its_line(text: bytes, place: str) -> None:
    with pytest.raises(FileError, match=place):
        codec.parse_history(text.split(b"\n"), "h")
