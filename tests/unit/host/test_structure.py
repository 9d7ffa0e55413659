"""Which structure a kernel keeps memslots in: its type information says so, else its version."""

from pathlib import Path

import pytest

from vmm.host.structure import ARRAY, TREE, by_release, memslot_structure


@pytest.mark.parametrize(
    ("types", "release", "expected"),
    [
        (b"\0gfn_tree\0", "5.14.0-500.el9", TREE),
        (b"\0used_slots\0", "6.1", ARRAY),
        (b"\0nothing\0", "5.16.20", ARRAY),
        (b"\0nothing\0", "5.17.0", TREE),
        (None, "6.12.3-amd64", TREE),
        (None, "strange", ""),
    ],
)
def test_the_structure(tmp_path: Path, types: bytes | None, release: str, expected: str) -> None:
    if types is not None:
        folder = tmp_path / "kernel" / "btf"
        folder.mkdir(parents=True)
        (folder / "kvm").write_bytes(types)
    assert memslot_structure(tmp_path, release) == expected


def test_versions_are_compared_as_numbers() -> None:
    assert by_release("5.9.0") == by_release("4.19") == ARRAY
    assert by_release("5.100") == by_release("10.1") == TREE
