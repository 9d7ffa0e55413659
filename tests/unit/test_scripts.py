"""The scripts: how they set up the environment, by uv where it may, and what they say without."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLD = '{"format": 1, "status": "passed", "exit_status": 0}'


def installs(venv: Path, pip_settings: str, uv_status: int = 0) -> tuple[int, list[str]]:
    """Return the status of an installation by uv, and what it asked for."""
    programs = {
        "python": f'#!/bin/sh\n[ "$3" = config ] && echo "{pip_settings}"',
        "uv": f'#!/bin/sh\necho uv "$@"\nexit {uv_status}',
    }
    (venv / "bin").mkdir()
    for name, text in programs.items():
        (venv / "bin" / name).write_text(text)
        (venv / "bin" / name).chmod(0o755)
    script = f"source {ROOT}/scripts/_env; VENV={venv}; env_install_by_uv '.[dev]' echo pip"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize("settings", ["", "global.extra-index-url='file:///more'"])
def test_many_packages_are_installed_by_uv(tmp_path: Path, settings: str) -> None:
    status, asked = installs(tmp_path, settings)
    assert status == 0
    assert asked[-2] == "pip uv"
    assert asked[-1].startswith(f"uv pip install --python {tmp_path}/bin/python ")
    assert asked[-1].endswith(" --editable .[dev]")


@pytest.mark.parametrize("setting", ["global.index-url", ":env:.index-url", "install.no-index"])
def test_an_index_that_only_pip_knows_is_left_to_pip(tmp_path: Path, setting: str) -> None:
    status, asked = installs(tmp_path, f"{setting}='https://here.example'")
    assert status != 0
    assert not any(line.startswith(("pip", "uv")) for line in asked)


def test_where_uv_fails_pip_is_asked(tmp_path: Path) -> None:
    assert installs(tmp_path, "", uv_status=2)[0] != 0


@pytest.mark.parametrize("most", [4, 8, 15])
def test_too_few_descriptors_to_start_python_are_said(most: int) -> None:
    command = f"ulimit -n {most}; exec {ROOT}/scripts/vmm --version"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "oo few open files" in done.stderr or "Too many open files" in done.stderr


def test_a_folder_as_standard_input_is_no_difference(tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    done = subprocess.run(
        [ROOT / "scripts/vmm", "run", "-"],
        stdin=handle, capture_output=True, text=True, check=False,
    )  # fmt: skip
    os.close(handle)
    assert (done.returncode, done.stderr) == (2, "vmm: standard input: empty\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_python_has_begun_is_told_in_the_result(
    number: int, tmp_path: Path
) -> None:
    file = tmp_path / "result.json"
    file.write_text(OLD)
    process = subprocess.Popen(
        # The tests themselves may ignore SIGHUP, under nohup.
        ["env", "--default-signal", ROOT / "scripts/vmm", "check", "--json", file],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    status = Path(f"/proc/{process.pid}/status")
    while not handles(status.read_text(), number):
        pass
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("", "vmm: interrupted\n")
    assert process.returncode == 3
    assert json.loads(file.read_text())["early"] == "interrupted"


def test_a_set_up_that_is_interrupted_leaves_no_older_result(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(OLD)
    process = subprocess.Popen(
        [ROOT / "scripts/vmm", "check", "--json", file],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "VMM_VENV": str(tmp_path / "venv")},
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("setting up ")
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[1] == "vmm: interrupted\n"
    assert (process.returncode, file.exists()) == (3, False)


@pytest.mark.parametrize("option", ["--json=", "--json "])
def test_where_python_cannot_be_started_only_an_older_result_goes(
    option: str, tmp_path: Path
) -> None:
    result, scenario = tmp_path / "result.json", tmp_path / "scenario.json"
    for file, text in ((result, OLD), (scenario, '{"format": 1, "name": "mine"}')):
        file.write_text(text)
        command = f"ulimit -n 8; exec {ROOT}/scripts/vmm run {option}{file}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
        assert done.returncode == 3
    assert [*tmp_path.iterdir()] == [scenario]


def test_where_python_cannot_be_started_what_is_to_be_read_stays(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    result.write_text(OLD)
    command = f"ulimit -n 8; exec {ROOT}/scripts/vmm coverage --json {result}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert (done.returncode, result.read_text()) == (3, OLD)


def handles(status: str, number: int) -> bool:
    """Whether a process catches a signal by now."""
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_all_that_a_kernel_takes_is_missed_in_one_line(tmp_path: Path) -> None:
    """Else whoever lacks five packages starts it five times."""
    bin_folder, tree = tmp_path / "bin", tmp_path / "tree"
    bin_folder.mkdir()
    for name in ("bash", "env", "dirname", "readlink", "basename", "gcc", "bc"):
        (bin_folder / name).symlink_to(f"/usr/bin/{name}")
    (tree / "virt/kvm").mkdir(parents=True)
    (tree / "virt/kvm/kvm_main.c").touch()
    (tree / "Makefile").touch()
    libelf = "" if Path("/usr/include/libelf.h").exists() else ", libelf.h"
    package = " libelf-dev" if libelf else ""
    for source, more, packages in (
        (tree, "", ""),
        ("6.12", ", apt-get, dpkg-deb, tar, xz", " apt dpkg tar xz-utils"),
    ):
        done = subprocess.run(
            [ROOT / "scripts/lab-kernel", "small", source],
            capture_output=True,
            text=True,
            env={"PATH": str(bin_folder), "HOME": str(tmp_path)},
            check=False,
        )
        lacking = f"make, flex, bison{more}{libelf} are missing"
        install = f"apt install make flex bison{packages}{package}"
        assert done.stderr == f"lab-kernel: {lacking}: {install}\n"
    assert not (tmp_path / ".cache").exists()


def test_a_signal_to_all_that_the_script_has_begun_has_a_status_of_ours(tmp_path: Path) -> None:
    ended = tmp_path / "sha256sum"  # Ends all processes of the group, as Ctrl-C does.
    ended.write_text("#!/bin/sh\nkill -TERM 0\nsleep 9\n")
    ended.chmod(0o755)
    done = subprocess.run(
        ["env", "--default-signal", ROOT / "scripts/vmm", "info"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.endswith("vmm: interrupted\n")
