import errno
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from vmm.cli.lab import COMMANDS, lab, run as lab_run
from vmm.cli.lab.matrix import words_of
from vmm.cli.main import main
from vmm.lab.cache import new_run_folder
from vmm.lab.run import Ending
from vmm.scenario.selection import Selection


@pytest.fixture(autouse=True)
def cache(cache_with_init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(cache_with_init, tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["lab", *words])


def kernel(tmp_path: Path) -> str:
    data = bytearray(0x400)
    data[0x202:0x206] = b"HdrS"
    data[0x20E:0x210] = (0x100).to_bytes(2, "little")
    data[0x300:0x309] = b"6.12.1 x\0"
    (tmp_path / "bzImage").write_bytes(data)
    return str(tmp_path / "bzImage")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_help_line_that_it_says_itself(name: str) -> None:
    command = lab.get_command(click.Context(lab), name)
    assert command
    assert command.get_short_help_str(200) == COMMANDS[name]


def test_a_kernel_that_is_not_there_is_a_usage_error() -> None:
    done = run("run", "--kernel", "no-such", "--", "info")
    assert done.exit_code == 2
    assert "no such file or folder, and none of debian," in done.output


def test_modules_that_are_not_there_are_a_usage_error(tmp_path: Path) -> None:
    done = run("run", "--kernel", kernel(tmp_path), "--modules", "none", "--", "info")
    assert done.exit_code == 2
    assert "--modules none: no such folder" in done.output


def test_an_image_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "image").write_text("#!/bin/sh\n")
    done = run("run", "--kernel", "image", "--", "info")
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert "image: this is no kernel image" in done.output
    assert run("run", "--kernel", "image", "--bisect", "--", "info").exit_code == 125


@pytest.mark.parametrize("status", [0, 1, 2, 3, 4])
def test_the_status_is_the_ending_s_and_125_where_bisect_is_to_skip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(lab_run, "side_by_side", lambda *_: [Ending(status, "because")])
    words = ("run", "--kernel", kernel(tmp_path), "--backend", "svm")
    done = run(*words, "--", "info")
    assert done.exit_code == status
    assert "lab: because" in done.output
    assert "svm: AMD's virtualisation, emulated by QEMU (TCG)" in done.output
    skipped = run(*words, "--bisect", "--", "info")
    assert skipped.exit_code == (status if status < 2 else 125)


def test_a_command_is_needed(tmp_path: Path) -> None:
    assert run("run", "--kernel", kernel(tmp_path)).exit_code == 2


def test_a_misspelt_command_is_told_before_anything_boots(tmp_path: Path) -> None:
    words = ("run", "--kernel", kernel(tmp_path), "--backend", "svm")
    done = run(*words, "--", "chek", "move-up")
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert "No such command 'chek'. The closest: check." in done.output
    assert run(*words, "--bisect", "--", "chek").exit_code == 125


def test_a_wrong_option_skips_a_bisection_too(tmp_path: Path) -> None:
    words = ("run", "--kernel", kernel(tmp_path), "--smp", "none")
    assert run(*words, "--", "check").exit_code == 2
    done = run(*words, "--bisect", "--", "check")
    assert (done.exit_code, done.output.count("\n")) == (125, 1)
    assert "--smp" in done.output
    assert run(*words, "--", "check", "--bisect").exit_code == 2


def test_diff_wants_two_kernels(tmp_path: Path) -> None:
    done = run("diff", "--kernel", kernel(tmp_path))
    assert done.exit_code == 2
    assert "give --kernel twice" in done.output


def test_what_selects_scenarios_reaches_each_machine_of_a_matrix() -> None:
    assert words_of(Selection()) == []
    selection = Selection(("move-*", "table-?"), ("dirty",), ("*huge*",), True)
    words = ["move-*", "table-?", "--tag", "dirty", "--exclude", "*huge*", "--all"]
    assert words_of(selection) == words


@pytest.mark.parametrize(
    "words", [("run", "--kernel", "KERNEL", "--backend", "svm", "--", "info"), ("doctor",)]
)
def test_a_cache_that_cannot_be_made_is_told_with_its_remedy(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    result = run(*(str(kernel(tmp_path)) if word == "KERNEL" else word for word in words))
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert str(tmp_path / "file") in result.stderr
    assert "XDG_CACHE_HOME says where the lab keeps files" in result.stderr


def test_a_full_disk_names_the_file_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space") as caught:
        new_run_folder()
    assert Path(str(caught.value.filename)).name == "pid"
