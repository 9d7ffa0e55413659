"""Files are read with care: what is no file, never ends, or is too large is refused in one line."""

import os
from pathlib import Path

import pytest

from vmm.scenario import reading
from vmm.scenario.reading import FileError, lines_of, read_whole


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, what in ((tmp_path, "a folder"), (fifo, "a pipe"), (Path("/dev/zero"), "a device")):
        with pytest.raises(FileError) as caught:
            read_whole(path)
        assert str(caught.value) == f"{path}: {what}, not a file"
        with pytest.raises(FileError, match=what):
            list(lines_of(path))


def test_what_is_absent_or_cannot_be_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="No such file"):
        read_whole(tmp_path / "none")
    with pytest.raises(FileError, match="null byte"):
        read_whole(Path("a\0b"))


def test_a_file_that_has_nothing_to_read_yet_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As /proc/kmsg, which is a regular file by its own word."""
    monkeypatch.setattr(reading, "_refuse_special", lambda path, mode: None)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)
    try:
        with pytest.raises(FileError, match="nothing to read yet"):
            read_whole(fifo)
    finally:
        os.close(writer)


def test_no_more_is_read_than_is_bearable(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"x" * 100)
    assert read_whole(file, 100) == b"x" * 100
    with pytest.raises(FileError, match="larger than"):
        read_whole(file, 99)
    assert list(lines_of(file, 100)) == [b"x" * 100]
    with pytest.raises(FileError, match=r"f:1: longer than"):
        list(lines_of(file, 99))


def test_a_file_of_many_terabytes_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    os.truncate(file, 1 << 42)
    with pytest.raises(FileError, match="larger than 32 MiB"):
        read_whole(file)


@pytest.mark.parametrize("data", [b"", b"\n", b"a", b"a\n", b"a\n\nb\n", b"a\nb"])
def test_lines_are_those_of_split(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "f"
    file.write_bytes(data)
    assert list(lines_of(file)) == data.split(b"\n")


def test_a_name_cannot_forge_a_line(tmp_path: Path) -> None:
    with pytest.raises(FileError) as caught:
        read_whole(tmp_path / "x\nvmm: all passed\x1b[2J")
    assert str(caught.value).isprintable()
