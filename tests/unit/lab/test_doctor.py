from pathlib import Path

import pytest

from vmm.lab import doctor
from vmm.lab.doctor import Requirement, remedy, requirements


def test_what_building_a_kernel_lacks_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_SBIN", str(tmp_path))
    monkeypatch.setattr(doctor, "_LIBELF", tmp_path / "libelf.h")
    monkeypatch.delenv("CC", raising=False)
    for name in ("make", "bc", "gcc"):
        (tmp_path / name).touch(mode=0o755)
    assert _of_kernels() == "flex, bison, libelf.h are missing: apt install flex bison libelf-dev"
    (tmp_path / "libelf.h").touch()
    (tmp_path / "flex").touch(mode=0o755)
    assert _of_kernels() == "bison is missing: apt install bison"
    (tmp_path / "bison").touch(mode=0o755)
    assert _of_kernels() == ""


def test_one_command_installs_all_that_is_missing() -> None:
    found = [
        Requirement("one", "", "one is missing: apt install a b"),
        Requirement("other", "", "no kernel nests"),
        Requirement("third", "", "b, c are missing: apt install b c"),
    ]
    assert remedy(found) == "apt install a b c"
    assert remedy(found[1:2]) == ""


def _of_kernels() -> str:
    (told,) = (each.lack for each in requirements() if each.what == "scripts/lab-kernel")
    return told
