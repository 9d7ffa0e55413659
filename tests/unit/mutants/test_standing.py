"""What stands in the table is kept where it is not looked for anew."""

import pytest

from tests.mutants import results, table
from tests.mutants.found import Found
from tests.mutants.rows import Mutant, versions
from tests.mutants.standing import named

_TEXT = table.DOCUMENT.read_text()


@pytest.mark.parametrize("version", versions())
def test_a_table_is_the_same_where_nothing_was_looked_for(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing: dict[str, Found] = {}
    monkeypatch.setattr(results, "read", lambda _: nothing)
    lines = "\n".join(table.of_version(version, _TEXT))
    assert f"{lines}\n" in _TEXT


def test_what_a_bug_needs_is_in_its_name_and_changes_what_its_result_is_kept_under() -> None:
    plain = Mutant("a", "something is forgotten", ())
    other = Mutant("a", "something is forgotten", (), npt=0, params=("kvm.tdp_mmu=1",))
    assert named(plain) == "something is forgotten"
    assert named(other) == "something is forgotten, npt=0, kvm.tdp_mmu=1"
    keys = {results.key(each, white=False) for each in (plain, other, Mutant("a", "", (), npt=0))}
    assert len(keys) == 3
