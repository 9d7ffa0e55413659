"""What is missing is said in one line, with a remedy."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmm.cli.main import main
from vmm.cli.options.whitebox import WHERE_IT_CAN, looking
from vmm.execution.looking import look_at
from vmm.whitebox.box import opened
from vmm.whitebox.errors import CannotLookError


def told(kcore: Path, debug_info: Path | None = None) -> str:
    with pytest.raises(CannotLookError) as caught, opened(debug_info, kcore):
        pass
    return str(caught.value)


def test_a_kernel_without_kcore(tmp_path: Path) -> None:
    assert told(tmp_path / "kcore") == f"this kernel has no {tmp_path}/kcore (CONFIG_PROC_KCORE)"


def test_a_kcore_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "kcore").write_bytes(b"nothing")
    assert told(tmp_path / "kcore") == f"{tmp_path}/kcore: not a 64-bit ELF file"


def test_a_kcore_that_cannot_be_read(tmp_path: Path) -> None:
    assert told(tmp_path) == f"{tmp_path}: Is a directory: be root, without lockdown"


@pytest.mark.skipif(Path("/proc/kcore").exists(), reason="this kernel has /proc/kcore")
@pytest.mark.parametrize("command", [("run", "move-up"), ("check", "move-up")])
def test_a_command_says_what_is_missing_and_runs_nothing(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*command, "--white-box"])
    assert (result.exit_code, result.output.count("\n")) == (4, 1)
    assert "--white-box: this kernel has no /proc/kcore" in result.output


def test_where_only_the_lab_asks_a_line_says_why_nobody_looks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(WHERE_IT_CAN, "1")
    with looking(None, Path("/nowhere.json")):
        assert look_at() is None
    assert capsys.readouterr().err.startswith("vmm: not looked into the kernel (white box): ")
    with looking(False, None):
        assert look_at() is None
    assert not capsys.readouterr().err


def test_nobody_looks_unless_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WHERE_IT_CAN, raising=False)
    with looking(None, Path(sys.executable)):
        assert look_at() is None


def test_a_description_of_ours_is_no_elf_file_and_is_taken(tmp_path: Path) -> None:
    description = tmp_path / "kernel.json"
    description.write_text("{}")
    with looking(None, description):
        assert look_at() is None
