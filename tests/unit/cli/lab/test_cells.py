"""What `vmm lab matrix` says before and while its machines run."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmm.cli.lab import diff as lab_diff, matrix as lab_matrix
from vmm.cli.lab.cells import Watched, about, how_far, say_what_runs
from vmm.cli.main import main
from vmm.lab.cells import Task, cells_of
from vmm.lab.machine import Backend


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task("debian-svm-npt=1", ("true",), tmp_path)


def test_a_run_says_what_it_is_about_to_do_a_line_a_cell(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say_what_runs(cells_of(["debian"], [Backend.SVM, Backend.VMX]), 600, 2, Path("out"))
    first, *cells = capsys.readouterr().err.splitlines()
    assert "5 cells, 600 scenarios each, 2 at a time: about 19 min" in first
    assert first.endswith("results: out")
    assert [" ".join(line.split()) for line in cells] == [
        "lab: debian-svm-npt=1 about 2 min",
        "lab: debian-svm-npt=0 about 2 min",
        "lab: debian-vmx-ept=1 about 11 min",
        "lab: debian-vmx-ept=0 about 11 min",
        "lab: debian-vmx-unrestricted_guest=0 about 11 min",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "about 10 s"), (44, "about 40 s"), (90, "about 2 min"), (7200, "about 2.0 h")],
)
def test_an_estimate_is_a_round_number(seconds: float, text: str) -> None:
    assert about(seconds) == text


def test_how_far_a_machine_is_stands_at_the_end_of_its_output(task: Task) -> None:
    assert how_far(task) == "boots"
    (task.folder / "output.txt").write_text(
        "lab: 1 of 600 scenarios, create-one\n" + "x" * 5000 + "\nlab: 40 of 600 scenarios, a\n"
    )
    assert how_far(task) == "40 of 600"


def test_a_machine_without_a_verdict_says_why(
    task: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    (task.folder / "output.txt").write_text(
        "lab: Linux 6.12\nlab: the machine stopped\nlab: status 3 after 2 s; logs: x\n"
    )
    watched = Watched("2 cells")
    watched.ended(task, 3, 2.0)
    watched.look([])
    lines = capsys.readouterr().err.splitlines()
    assert "status 3 after 2 s" in lines[0]
    assert lines[1:] == ["lab:   the machine stopped"]
    assert watched.statuses == {"debian-svm-npt=1": 3}


KERNELS = "--kernel debian --kernel debian-6.1"


@pytest.mark.parametrize(
    "command", ["lab matrix no-such-scenario", f"lab diff {KERNELS} no-such-scenario"]
)
def test_a_pattern_that_names_nothing_is_told_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    def fetched(*_: object) -> None:
        raise AssertionError("a kernel is fetched")

    for each in (lab_matrix, lab_diff):
        monkeypatch.setattr(each, "kernel_of", fetched)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [*command.split(), "no-such-scenario"])
    assert done.exit_code == 2
    assert "no-such-scenario" in done.output


def test_a_search_that_only_hung_has_found_nothing(tmp_path: Path) -> None:
    for name in ("hung-1efe74a6", "died-8be7d2a6", "touch-hole-14746fea"):
        (tmp_path / "findings" / name).mkdir(parents=True)
        (tmp_path / "findings" / name / "scenario.json").touch()
    assert lab_diff.findings(tmp_path) == {"touch-hole-14746fea"}


def test_an_interrupted_diff_shows_what_has_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(
        tasks: list[Task], _: int, done: Callable[[Task, int, float], None], __: object
    ) -> None:
        done(tasks[0], 0, 1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(lab_diff, "kernel_of", lambda *_: None)
    monkeypatch.setattr(lab_diff, "run_all", interrupted)
    monkeypatch.chdir(tmp_path)
    kernels = ["--kernel", "debian", "--kernel", "debian-6.1", "--backend", "svm"]
    done = CliRunner().invoke(main, ["lab", "diff", *kernels, "create-one-page"])
    assert done.exit_code == 3
    assert "A check: status 0 after 1 s (" in done.output
    assert "interrupted: 1 of 4 runs have ended" in done.output
    assert "no result" in done.output


def test_an_interrupted_run_shows_what_has_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lab_matrix, "kernel_of", lambda *_: None)
    monkeypatch.setattr(lab_matrix, "run_all", interrupted)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["lab", "matrix", "--backend", "svm", "create-one-page"])
    assert done.exit_code == 3
    assert "interrupted: 0 of 8 cells have ended" in done.output
    assert "A  debian-svm-npt=1: no result" in done.output
