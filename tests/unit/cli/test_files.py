"""Commands that take or print files, and info: on a kernel that is played."""

import dataclasses
import errno
import json
import os
from pathlib import Path

import msgspec
import pytest

from tests.ideal import FEATURES, ideal_history
from tests.played import INFO, Kernel, make, played, vmm
from vmm.cli.running.host import Host
from vmm.scenario.codec import history_lines, scenario_text
from vmm.scenario.endings import HUNG
from vmm.scenario.trouble import Trouble


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return played(monkeypatch)


def test_run_takes_a_file_and_writes_the_history(kernel: Kernel, tmp_path: Path) -> None:
    file, history = tmp_path / "s.json", tmp_path / "h.jsonl"
    file.write_text(scenario_text(make("mine")))
    result = vmm("run", file, "--history", history)
    assert result.exit_code == 0
    assert result.stdout.startswith("PASSED       mine: ")
    again = vmm("judge", history)
    assert again.exit_code == 0
    assert again.stdout.splitlines()[0] == result.stdout.splitlines()[0]
    assert "  rules     " not in result.stdout
    for verbose in (vmm("run", "-v", file), vmm("judge", "-v", history)):
        assert verbose.stdout.splitlines()[1].startswith("  rules     content, create, delete, ")


def test_run_takes_a_name_and_tells_a_difference(kernel: Kernel) -> None:
    kernel.differ("move-up")
    result = vmm("run", "move-up")
    assert result.exit_code == 1
    assert "  observed  EEXIST\n" in result.stdout
    assert "  again     vmm run move-up\n" in result.stdout


def test_an_interrupted_run_says_what_did_not_run(kernel: Kernel, tmp_path: Path) -> None:
    kernel.end("move-up", "interrupted", 3)
    history = tmp_path / "h.jsonl"
    result = vmm("run", "move-up", "--history", history)
    assert result.exit_code == 3
    assert "INCONCLUSIVE move-up: interrupted\n" in result.stdout
    assert "  not run   operations 0 to 2\n" in result.stdout
    assert vmm("judge", history).exit_code == 3


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("{", ": not JSON: "),
        (
            '{"name": "x", "operations": [{"op": "fly"}]}',
            ": $.operations[0].op: Invalid value 'fly'",
        ),
        (
            '{"name": "x", "operations": [{"op": "touch", "gpa": "here"}]}',
            ": $.operations[0].gpa: 'here' is no number",
        ),
        (
            '{"name": "x", "operations": [{"op": "host_write", "value": 1, '
            '"place": {"mapping": "b"}}]}',
            "$.operations[0].place.mapping: no mapping is named 'b'",
        ),
        ('{"format": 99, "name": "x", "operations": []}', "format 99"),
    ],
)
def test_a_bad_scenario_is_one_line_and_nothing_runs(
    kernel: Kernel, tmp_path: Path, text: str, place: str
) -> None:
    file = tmp_path / "s.json"
    file.write_text(text)
    result = vmm("run", file)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"vmm: {file}: ")
    assert place in result.stderr
    assert result.stderr.count("\n") == 1
    assert kernel.ran == []


def test_a_scenario_that_is_neither_file_nor_name(kernel: Kernel) -> None:
    result = vmm("run", "absent.json")
    assert result.exit_code == 2
    assert result.stderr == "vmm: absent.json: No such file or directory\n"


def test_a_history_that_is_cut_off_is_inconclusive(tmp_path: Path) -> None:
    file = tmp_path / "h.jsonl"
    whole = b"".join(history_lines(ideal_history(make("mine"))))
    file.write_bytes(whole[: len(whole) // 2])
    result = vmm("judge", file)
    assert result.exit_code == 3
    assert "INCONCLUSIVE mine: the history is cut off\n" in result.stdout


def test_a_file_that_is_no_history(tmp_path: Path) -> None:
    file = tmp_path / "h.jsonl"
    file.write_text("hello\n")
    result = vmm("judge", file)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"vmm: {file}:1: not JSON")


def test_show_prints_what_run_takes(kernel: Kernel, tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    file.write_text(vmm("show", "huge").stdout)
    assert vmm("run", file).exit_code == 0
    assert kernel.ran == ["huge"]


def test_show_of_an_unknown_name_names_the_closest(kernel: Kernel) -> None:
    result = vmm("show", "hug")
    assert result.exit_code == 2
    assert "no scenario is named 'hug'; the closest: huge" in result.stderr


def test_info_of_a_host_that_can(kernel: Kernel) -> None:
    kernel.info = dataclasses.replace(INFO, capabilities={"USER_MEMORY": 1, "GUEST_MEMFD": 0})
    kernel.features = msgspec.structs.replace(FEATURES, zero_page=False)
    result = vmm("info")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "This host can run memslot scenarios."
    assert "  kernel        Linux 6.99, x86_64" in lines
    assert "  TDP           on (kvm_amd.npt=1)" in lines
    assert "  slots         32764 in 1 address space(s)" in lines
    assert "  KVM_CAP_GUEST_MEMFD  0" in lines
    lacking = lines[next(i for i, line in enumerate(lines) if line.startswith("  lacks  ")) :]
    assert any(line.startswith("                the right to map virtual") for line in lacking)
    assert json.loads(vmm("info", "--json").stdout)["usable"] is True


@pytest.mark.parametrize("command", ["info", "coverage"])
def test_json_of_a_kernel_that_cannot_be_probed_says_why(
    command: str, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble = Trouble("a guest reads as far as it reaches", reason=f"{HUNG}no end within 20 s")
    host = Host(INFO, probe_failure=trouble)
    monkeypatch.setattr(f"vmm.cli.{command}.look_at_host", lambda: host)
    result = vmm(command, "--json")
    assert result.exit_code == 3
    data = json.loads(result.stdout)
    assert data["exit_status"] == 3
    assert "no end within 20 s" in data["early"]
    assert data.get("usable", False) is False


def test_info_of_a_host_that_cannot(kernel: Kernel) -> None:
    kernel.info = dataclasses.replace(INFO, obstacle="/dev/kvm: No such file", remedy="load it")
    result = vmm("info")
    assert result.exit_code == 4
    assert result.stdout.splitlines()[:3] == [
        "This host cannot run memslot scenarios.",
        "  why           /dev/kvm: No such file",
        "  what to do    load it",
    ]
    as_json = vmm("info", "--json")
    assert as_json.exit_code == 4
    data = json.loads(as_json.stdout)
    assert (data["usable"], data["features"]) == (False, None)
    assert data["host"]["remedy"] == "load it"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EIO])
@pytest.mark.parametrize(
    "words", ["judge {}", "run {}", "repro {}", "report {} --html x", "replay {}"]
)
def test_a_file_that_the_host_cannot_open_is_no_wrong_usage(
    number: int, words: str, kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("{}")
    really = os.open

    def fail(path: object, *args: int, **more: int) -> int:
        if str(path) == str(file):
            raise OSError(number, os.strerror(number), path)
        return really(path, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("os.open", fail)
    monkeypatch.chdir(tmp_path)
    result = vmm(*words.format(file).split())
    assert (result.exit_code, kernel.ran) == (3, [])
    assert result.output.startswith(f"vmm: the host: {file}: {os.strerror(number)}")
    assert result.output.count("\n") == 1
