"""`vmm check --journal`: what is kept of the scenarios that ran, on a kernel that is played."""

from pathlib import Path

import pytest

from tests.ideal import ideal_history
from tests.played import Kernel, named, played, vmm
from vmm.cli.running.history_files import UNDER_WAY
from vmm.host.health import Problem
from vmm.scenario.codec import read_history


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return played(monkeypatch)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_is_kept_of_what_passes(kernel: Kernel, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert vmm("check", "--journal", folder).exit_code == 0
    assert not folder.parent.exists()


def test_histories_of_what_does_not_pass_are_kept(kernel: Kernel, tmp_path: Path) -> None:
    kernel.differ("create-two")
    kernel.end("move-up", "hung: no end within 60 s", 3)
    kernel.complaints["create-one"] = (Problem("WARNING: at mmu.c"),)
    assert vmm("check", "--journal", tmp_path).exit_code == 1
    assert names(tmp_path) == ["create-one.jsonl", "create-two.jsonl", "move-up.jsonl"]
    assert read_history(tmp_path / "create-one.jsonl") == ideal_history(named("create-one"))
    assert vmm("judge", tmp_path / "create-two.jsonl").exit_code == 1
    judged = vmm("judge", tmp_path / "move-up.jsonl")
    assert judged.exit_code == 3
    assert "INCONCLUSIVE move-up: hung: no end within 60 s\n  under way " in judged.stdout


def test_the_scenario_that_runs_is_in_the_journal(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[str] = []

    def look(history: object) -> None:
        held.append(read_history(tmp_path / UNDER_WAY).header.scenario.name)

    monkeypatch.setattr("vmm.verdict.judge.under_way", look)
    assert vmm("check", "create-*", "--journal", tmp_path).exit_code == 0
    assert held == ["create-one", "create-two"]


def test_what_a_crash_has_left_is_not_overwritten(kernel: Kernel, tmp_path: Path) -> None:
    left = tmp_path / UNDER_WAY
    left.write_text("left")
    result = vmm("check", "--journal", tmp_path)
    assert result.exit_code == 2
    assert result.stderr == (
        f"vmm: {left}: left by a run that broke off: `vmm judge` says where; then remove it\n"
    )
    assert (kernel.ran, left.read_text()) == ([], "left")


def test_a_folder_that_cannot_be_made_is_told_before_anything_runs(
    kernel: Kernel, tmp_path: Path
) -> None:
    folder = tmp_path / "file" / "folder"
    folder.parent.touch()
    result = vmm("check", "--journal", folder)
    assert result.exit_code == 2
    assert result.stderr == f"vmm: {folder}: Not a directory\n"
    assert kernel.ran == []


@pytest.mark.parametrize("option", ["--journal", "--failed-histories"])
def test_a_run_that_kept_nothing_leaves_no_new_folder(
    option: str, kernel: Kernel, tmp_path: Path
) -> None:
    assert vmm("check", "create-one", option, tmp_path / "a" / "b").exit_code == 0
    assert list(tmp_path.iterdir()) == []
