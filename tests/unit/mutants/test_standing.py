"""What stands in the table is kept where it is not looked for anew."""

import pytest

from tests.mutants import results, table
from tests.mutants.found import Found
from tests.mutants.rows import versions

_TEXT = table.DOCUMENT.read_text()


@pytest.mark.parametrize("version", versions())
def test_a_table_is_the_same_where_nothing_was_looked_for(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing: dict[str, Found] = {}
    monkeypatch.setattr(results, "read", lambda _: nothing)
    lines = "\n".join(table.of_version(version, _TEXT))
    assert f"{lines}\n" in _TEXT
