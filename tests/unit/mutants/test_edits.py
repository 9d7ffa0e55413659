import fnmatch
from pathlib import Path

import pytest

from tests.mutants.edits import Edit, EditError, edited
from tests.mutants.rows import mutants, sources_with, versions
from vmm.catalogue import catalogue
from vmm.scenario.features import Features

FILE = "virt/kvm/some.c"
SOURCE = """
/* half() is where the bugs go: return size; */
static int half(int size);

#define EACH(at, end) \\
\tfor (at = 0; at < end; at++)

static int half(int size)
{
\tif (size < 0)
\t\treturn -EINVAL;	// size < 0
\tsize = (size + 1) / 2; /* size < 0 */
\treturn size;
}

static inline int
twice(int size)
{
\treturn half(size) * 4;
}

int SPLIT(many)(int size)
{
\treturn size;
}
"""


def edit(old: str, new: str, function: str = "half", nth: int = 0) -> Edit:
    """Return an edit of SOURCE."""
    return Edit(FILE, function, old, new, nth)


def with_edits(*edits: Edit) -> str:
    """Return SOURCE with edits, numbered from 1."""
    return edited(SOURCE, list(enumerate(edits, 1)))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (edit("size<0", "size < 1"), "\tif (((kvm_mutant == 1) ? (size < 1) : (size < 0)))"),
        (edit("size < 0", "$ || 0"), "((kvm_mutant == 1) ? (size < 0 || 0) : (size < 0))"),
        (
            edit("size = (size + 1) / 2;", ""),
            "\t{ if (kvm_mutant == 1) {  } else { size = (size + 1) / 2; } }",
        ),
        (edit("(size + 1)", "(size + MUTANT)"), "\tsize = (size + (kvm_mutant == 1)) / 2;"),
        (edit("size", "0", nth=3), "\tsize = (((kvm_mutant == 1) ? (0) : (size)) + 1) / 2;"),
        (edit("4", "5", "twice"), "\treturn half(size) * ((kvm_mutant == 1) ? (5) : (4));"),
        (edit("at < end", "at <= end", "EACH"), "((kvm_mutant == 1) ? (at <= end) : (at < end))"),
        (edit("size", "1", "SPLIT(many)"), "\treturn ((kvm_mutant == 1) ? (1) : (size));"),
    ],
)
def test_both_texts_stand_side_by_side(change: Edit, line: str) -> None:
    assert line in with_edits(change)
    assert "static int half(int size);" in with_edits(change), "a declaration is no function"


def test_all_else_stays() -> None:
    changed = with_edits(edit("size < 0", "size < 1")).splitlines()
    assert [a for a, b in zip(SOURCE.splitlines(), changed, strict=True) if a != b] == [
        "\tif (size < 0)"
    ]


def test_two_bugs_share_a_place() -> None:
    changed = with_edits(edit("size < 0", "size < 1"), edit("size < 0", "0"))
    wanted = "((kvm_mutant == 1) ? (size < 1) : (((kvm_mutant == 2) ? (0) : (size < 0))))"
    assert wanted in changed


def test_one_bug_lies_within_another() -> None:
    changed = with_edits(edit("size + 1", "size"), edit("size = (size + 1) / 2;", ""))
    assert "size = (((kvm_mutant == 1) ? (size) : (size + 1))) / 2; } }" in changed


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (edit("size > 0", ""), "half(): 'size > 0': it is not there"),
        (edit("size", ""), "half(): 'size': it is there 4 times: say which (nth)"),
        (edit("size", "", nth=9), "half(): 'size': it is there 4 times, not 9"),
        (edit("size", "", "third"), "third() is not defined there"),
        (edit(" ", "1"), "half(): nothing to replace"),
        (edit("ize < 0", "1"), "half(): 'ize < 0': it is not there"),
    ],
)
def test_an_edit_that_does_not_apply_names_file_and_function(change: Edit, why: str) -> None:
    with pytest.raises(EditError) as error:
        with_edits(change)
    assert str(error.value) == f"{FILE}: {why}"


def test_edits_that_cross_are_refused() -> None:
    with pytest.raises(EditError, match="overlaps"):
        with_edits(edit("(size + 1) / 2", "1"), edit("1) / 2;", "1"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EditError, match=r"virt/kvm/kvm_main\.c: No such file"):
        sources_with(mutants("6.12"), tmp_path)


@pytest.mark.parametrize("version", versions())
def test_the_rows_are_well_formed(version: str) -> None:
    rows = mutants(version)
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert len({row.subject for row in rows}) == len(rows)
    for row in rows:
        assert row.edit, row.name
        assert row.npt in (0, 1), row.name
        assert not row.subject.endswith("."), row.name
        for change in row.edit:
            assert change.old.strip() != change.new.strip(), row.name
            assert "kvm_mutant" not in change.old + change.new, row.name


def test_an_edit_within_one_that_does_not_say_where_is_refused() -> None:
    source = "int f(int i)\n{\n\treturn i < 3;\n}\n"
    inner = (2, Edit("a.c", "f", "i < 3", "$ - 1"))
    with pytest.raises(EditError, match=r"say \$"):
        edited(source, [(1, Edit("a.c", "f", "i < 3", "i < 3 - MUTANT")), inner])
    whole = edited(source, [(1, Edit("a.c", "f", "i < 3", "$ - MUTANT")), inner])
    assert "kvm_mutant == 1" in whole
    assert "kvm_mutant == 2" in whole


@pytest.mark.parametrize("version", versions())
def test_first_comes_what_there_is(version: str) -> None:
    names = [scenario.name for scenario in catalogue(Features(nr_memslots=509))]
    for row in mutants(version):
        for pattern in row.first:
            assert fnmatch.filter(names, pattern), f"{row.name}: {pattern}"
