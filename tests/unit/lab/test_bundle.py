import stat
import sys
from pathlib import Path

from vmm.lab.bundle import bundled


def test_a_bundle_has_python_its_libraries_and_what_is_named(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text("x = 1\n")
    (tmp_path / "input.json").write_text("{}")
    entries = bundled([tmp_path / "code"], [tmp_path / "input.json"])
    files = {f"/{path}": (mode, content) for path, mode, content in entries}
    assert files[str(tmp_path / "input.json")][1] == b"{}"
    assert files[str(tmp_path / "code" / "mine.py")][1] == b"x = 1\n"
    python = str(Path(sys.executable).resolve())
    assert files[python][1].startswith(b"\x7fELF")
    link = files[str(Path(sys.prefix, "bin", "python"))]
    assert (stat.S_ISLNK(link[0]), link[1].decode()) == (True, python)
    names = {Path(path).name for path in files}
    assert {"click", "msgspec", "ld-linux-x86-64.so.2", "encodings"} <= names
    assert any(path.endswith("dist-info/METADATA") and "memslot_vmm" in path for path in files)
    assert not {"pytest", "mypy", "pip", "tkinter"} & names


def test_every_folder_comes_before_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "input").touch()
    seen = {"."}
    for path, _, _ in bundled([], [tmp_path / "input"]):
        assert str(Path(path).parent) in seen
        seen.add(path)
