"""Helpers for scenarios of single instructions."""

from collections.abc import Iterable, Iterator

from vmm.catalogue._area import Area
from vmm.scenario.content import MMIO_FILL, identity
from vmm.scenario.instruction_operation import Width
from vmm.scenario.instructions import INSTRUCTIONS, Mode, Row
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    Instruction,
)

MANUALS = "Intel SDM vol. 2, AMD APM vol. 3"

FILL = MMIO_FILL * 0x0101_0101
"""The value of a word that is read from a hole."""

UPDATES = tuple(
    row
    for row in INSTRUCTIONS.values()
    if row.register is not None
    and not (row.is_stack or row.sizes or row.name == "cmp")
    and not row.name.startswith(("load", "store"))
)
"""The instructions that read and write the same memory."""

LOCKED = tuple(row for row in UPDATES if row.is_locked)
PLAIN = tuple(row for row in UPDATES if not row.is_locked)

_VALUE = 0x5A69_7887_96A5_B4C3
_HIGH = 0x3C2D_1E0F_F1E2_D3C4


def tag(mapping: int, page: int) -> int:
    """Return the word that fills a fresh page of a mapping."""
    return identity(mapping, page)


def update(row: Row, gpa: int, width: Width, word: int, mode: Mode = "real") -> Instruction:
    """Return an instruction on memory filled with ``word``, where a comparison succeeds."""
    compare, high = _halves(row, gpa, width, word)
    return Instruction(row.name, gpa, width, _VALUE, compare, _HIGH, high, mode=mode)


def twice(
    row: Row, gpa: int, width: Width, word: int, mode: Mode = "real"
) -> Iterator[Instruction]:
    """Yield an instruction on memory filled with ``word``, before it one whose comparison fails."""
    if "cmpxchg" in row.name:
        yield Instruction(row.name, gpa, width, _VALUE, 0x0DD, _HIGH, 0x0DD, mode=mode)
    yield update(row, gpa, width, word, mode)


def every_update(
    rows: Iterable[Row], gpa: int, word: int, mode: Mode = "real", step: int = 32
) -> Iterator[Instruction]:
    """Yield each instruction in each width, each at its own place from a gpa on."""
    for row in rows:
        for width in row.widths(mode):
            yield from twice(row, gpa, width, word, mode)
            gpa += step


def over(
    border: int, rows: Iterable[Row], mode: Mode = "real", widest: bool = False
) -> Iterator[Instruction]:
    """Yield each instruction on an operand across a border, in each width above a byte."""
    for row in rows:
        widths = [width for width in row.widths(mode) if width > 1 and not row.is_aligned]
        for width in widths[-1:] if widest else widths:
            yield Instruction(row.name, border - width // 2, width, _VALUE, 1, _HIGH, 1, mode=mode)


instruction_scenario = Area(tags=("instruction",), source=MANUALS, survey="none")


def gpa_of(gfn: int, offset: int = 0) -> int:
    """Return the gpa of a byte of a page; without an offset, of its start."""
    gpa = gfn * PAGE_SIZE_BYTES + offset
    assert gpa < REAL_MODE_END
    return gpa


def _halves(row: Row, gpa: int, width: int, word: int) -> tuple[int, int]:
    """Return what memory filled with a word holds at a gpa, as low and high accumulator."""
    data = (word.to_bytes(4, "little") * 8)[gpa % 4 :]
    half = width // 2 if row.is_pair else width
    low, high = data[:half], data[half : 2 * half] if row.is_pair else b""
    return int.from_bytes(low, "little"), int.from_bytes(high, "little")
