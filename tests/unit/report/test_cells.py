from vmm.report.cells import markdown, parts, table

GOOD = {"a": "passed", "b": "passed", "c": "skipped", "d": "known"}
BAD = {"a": "passed", "b": "differs", "c": "passed", "d": "known"}


def rows() -> list[str]:
    return [line.plain for line in table({"one": GOOD, "two": BAD})]


def test_a_row_for_what_is_not_good_in_every_cell() -> None:
    text = "\n".join(rows())
    assert "* b ok       DIFFERS" in text
    assert "  d known    known" in text
    assert "\n* a" not in text
    assert "c " not in [row[2:4] for row in rows()]
    assert rows()[-1] == "4 scenarios, 2 passed or skipped in every cell"


def test_the_legend_counts_each_cell() -> None:
    assert rows()[0] == "  A  one: 2 passed, 1 skipped, 1 known"
    assert rows()[1] == "  B  two: 2 passed, 1 known, 1 differs"


def test_a_cell_without_a_result_parts_from_the_others() -> None:
    shown = [line.plain for line in table({"one": GOOD, "none": {}})]
    assert "  B  none: no result" in shown
    assert any(row.startswith("* a ") and "not run" in row for row in shown)


def test_a_skip_is_no_difference_between_cells() -> None:
    assert not parts("c", [GOOD, BAD])
    assert parts("b", [GOOD, BAD])


def test_markdown_emphasises_the_same_rows() -> None:
    text = markdown({"one": GOOD, "two": BAD})
    assert "| **b** | ok | DIFFERS |" in text
    assert "| d | known | known |" in text
