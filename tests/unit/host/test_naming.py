"""Errors of files name the file, which write(2) does not."""

import errno
import os
from pathlib import Path

import pytest

from vmm.host.naming import NamedFile, named, write_named

FULL = Path("/dev/full")


def test_a_full_disk_is_told_with_the_file() -> None:
    with NamedFile(FULL, "wb") as file, pytest.raises(OSError, match="/dev/full") as met:
        file.write(b"x")
    assert met.value.errno == errno.ENOSPC


def test_a_text_that_cannot_be_written_is_told_with_the_file() -> None:
    with pytest.raises(OSError, match="/dev/full"):
        write_named(FULL, "x")


def test_a_descriptor_is_told_by_the_name_that_it_is_known_by() -> None:
    opened = os.open(FULL, os.O_WRONLY)
    with NamedFile(opened, "wb", Path("r.json")) as file, pytest.raises(OSError, match=r"r\.json"):
        file.write(b"x")


def test_a_name_that_is_there_stays() -> None:
    with pytest.raises(FileNotFoundError, match="/nowhere"), named("elsewhere"):
        Path("/nowhere").read_bytes()
