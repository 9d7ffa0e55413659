import io
import tarfile
from pathlib import Path

import pytest

from vmm.lab import bochs
from vmm.lab.bochs import Unpacking, mark
from vmm.lab.doctor import requirements
from vmm.lab.errors import LabError, MissingError

NONCE = "0a1b2c3d"


def packed(**files: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return stream.getvalue()


def test_files_come_after_the_mark_wherever_the_stream_is_cut(tmp_path: Path) -> None:
    stream = b"warned\n--- not it\n" + mark(NONCE).encode() + packed(result="{}")
    for cut in range(len(stream)):
        shown: list[bytes] = []
        unpacking = Unpacking(NONCE, shown.append)
        unpacking(stream[:cut])
        unpacking(stream[cut:])
        folder = tmp_path / str(cut)
        folder.mkdir()
        unpacking.unpack(folder)
        assert b"".join(shown) == b"warned\n--- not it\n"
        assert (folder / "result").read_text() == "{}"


def test_a_whole_line_is_shown_at_once() -> None:
    """Else the next line of the lab's own would stand beside it."""
    shown: list[bytes] = []
    Unpacking(NONCE, shown.append)(b"warned\n")
    assert shown == [b"warned\n"]


def test_what_looks_like_the_beginning_of_the_mark_is_shown_in_the_end(tmp_path: Path) -> None:
    shown: list[bytes] = []
    unpacking = Unpacking(NONCE, shown.append)
    unpacking(b"last line\n--- memslot")
    unpacking.unpack(tmp_path)
    assert b"".join(shown) == b"last line\n--- memslot"


def test_files_that_were_cut_off_are_said(tmp_path: Path) -> None:
    unpacking = Unpacking(NONCE, lambda data: None)
    unpacking(mark(NONCE).encode() + packed(result="x" * 3000)[:40])
    with pytest.raises(LabError, match="damaged"):
        unpacking.unpack(tmp_path)


def test_a_file_never_lands_outside_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    unpacking = Unpacking(NONCE, lambda data: None)
    unpacking(mark(NONCE).encode() + packed(**{"../out": "x"}))
    with pytest.raises(LabError):
        unpacking.unpack(folder)
    assert not (tmp_path / "out").exists()


def test_all_that_is_missing_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bios, loader = tmp_path / "bios", tmp_path / "isolinux.bin"
    monkeypatch.setattr(bochs, "PACKAGES", {bios: "bochsbios", loader: "isolinux"})
    monkeypatch.setenv("PATH", str(tmp_path))
    bios.touch()
    lack = f"bochs, xorriso, {loader} are missing: apt install bochs xorriso isolinux"
    (told,) = (each.lack for each in requirements() if each.what == "bochs")
    assert told == lack
    with pytest.raises(MissingError, match=f"^{lack}$"):
        bochs.make_cd(tmp_path / "cd", tmp_path / "kernel", tmp_path / "first", "")
    for name in ("bochs", "xorriso"):
        (tmp_path / name).touch(mode=0o755)
    assert bochs.lacking() == f"{loader} is missing: apt install isolinux"
    loader.touch()
    assert bochs.lacking() == ""
