"""The kinds of page tables: indices, and where large pages lie."""

import pytest

from vmm.scenario.paging import KINDS, PagingKind


@pytest.mark.parametrize(
    ("kind", "indices"),
    [
        ("long", (0x1FF, 1, 3, 0)),
        ("pae", (0x1FF, 1, 3)),
        ("two-level", (0x3FF, 0x300)),
    ],
)
def test_an_address_has_an_index_at_each_level(kind: PagingKind, indices: tuple[int, ...]) -> None:
    paging = KINDS[kind]
    address = 0xC03F_F123
    found = [paging.index_of(address, level) for level in range(len(paging.shifts))]
    assert found == list(indices)


def test_a_page_of_4_mib_has_bits_32_to_39_of_its_gpa_after_bit_12() -> None:
    paging = KINDS["two-level"]
    assert paging.large_page(0x0080_00E7) == 0x80_0000
    assert paging.large_page(0x0080_20E7) == 0x1_0080_0000
    assert paging.large_page(0xFFDF_E0E7) == 0xFF_FFC0_0000
    assert paging.large_page(0x00A0_00E7) is None
    assert paging.large_page(0x0080_10E7) is None


@pytest.mark.parametrize("kind", ["long", "pae"])
def test_a_page_of_2_mib_is_aligned(kind: PagingKind) -> None:
    assert KINDS[kind].large_page(0x12_0020_00E7) == 0x12_0020_0000
    assert KINDS[kind].large_page(0x12_0020_10E7) is None
