"""What is missing is said in one line, with a remedy."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmm.cli.main import main
from vmm.whitebox import debuginfo
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


def test_debug_information_that_is_nowhere() -> None:
    with pytest.raises(CannotLookError, match="no debug information of kvm for Linux none"):
        debuginfo.usual_file("none")


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(CannotLookError, match=r"kvm\.ko: no such file"):
        debuginfo.layout_from(Path("nowhere/kvm.ko"))


def test_without_drgn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "drgn", None)
    with pytest.raises(CannotLookError, match="drgn is missing: pip install"):
        debuginfo.layout_from(Path(__file__))


def test_a_file_without_types_is_none_of_debug_information(tmp_path: Path) -> None:
    pytest.importorskip("drgn", reason="needs drgn: the extra whitebox")
    (tmp_path / "kallsyms").write_text("ffffffffa0060030 d vm_list\t[kvm]\n")
    with pytest.raises(CannotLookError, match="no debug information of memslots"):
        debuginfo.layout_from(Path(sys.executable), tmp_path / "kallsyms", tmp_path / "none")


@pytest.mark.parametrize(
    ("symbols", "why"),
    [
        ("ffffffffa0060030 d vm_list\t[kvm]\n", ""),
        ("0000000000000000 d vm_list\t[kvm]\n", "hides addresses"),
        ("ffffffffa0060030 t kvm_init\t[kvm]\n", "does not name vm_list"),
    ],
)
def test_the_list_of_vms_is_found_by_name(tmp_path: Path, symbols: str, why: str) -> None:
    (tmp_path / "kallsyms").write_text(symbols)
    if not why:
        assert debuginfo.vm_list_in(tmp_path / "kallsyms") == 0xFFFF_FFFF_A006_0030
        return
    with pytest.raises(CannotLookError, match=why):
        debuginfo.vm_list_in(tmp_path / "kallsyms")


def test_the_module_that_is_loaded_is_told_by_its_build_id(tmp_path: Path) -> None:
    (tmp_path / "note").write_bytes(b"GNU\0" + bytes(range(20)))
    debuginfo.check_build_id(Path("kvm.ko"), bytes(range(20)), tmp_path / "note")
    debuginfo.check_build_id(Path("kvm.ko"), bytes(20), tmp_path / "there-is-none")
    with pytest.raises(CannotLookError, match="another build ID"):
        debuginfo.check_build_id(Path("kvm.ko"), bytes(20), tmp_path / "note")


@pytest.mark.skipif(Path("/proc/kcore").exists(), reason="this kernel has /proc/kcore")
@pytest.mark.parametrize("command", [("run", "move-up"), ("check", "move-up")])
def test_a_command_says_what_is_missing_and_runs_nothing(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*command, "--white-box"])
    assert (result.exit_code, result.output.count("\n")) == (4, 1)
    assert "--white-box: this kernel has no /proc/kcore" in result.output
