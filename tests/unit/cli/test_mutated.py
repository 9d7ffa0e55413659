"""A few mutated files through the commands; ``python -m tests.mutations`` tries many."""

from pathlib import Path

import pytest

from tests.mutations import KINDS, Mutator, tried
from tests.played import played
from vmm.cli import repro


@pytest.mark.parametrize("kind", KINDS)
def test_a_mutated_file_comes_to_a_documented_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    monkeypatch.setattr(repro, "look_at_host", played(monkeypatch).look_at_host)
    mutator = Mutator(7)
    wrong = [what for _ in range(25) for what in tried(mutator, kind, tmp_path / kind)]
    assert wrong == []
