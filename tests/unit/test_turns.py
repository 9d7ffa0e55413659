"""Tests that are to run alone wait for those of every folder, and these for them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.turns import FOLDERS, turn

_ROOT = Path(__file__).parents[2]
_TRY = """
import sys, threading, os
from tests.turns import FOLDERS, turn
threading.Timer(0.3, os._exit, (1,)).start()
with turn(sys.argv[1], sys.argv[2] == "alone", sys.argv[3]):
    os._exit(0)
"""


def waits(place: Path, folder: str, alone: str = "") -> bool:
    """Return whether a test of another process would have to wait now."""
    command = [sys.executable, "-c", _TRY, folder, alone, str(place)]
    return subprocess.run(command, cwd=_ROOT).returncode == 1


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_alone_is_so_in_every_folder(folder: str, tmp_path: Path) -> None:
    with turn("lab", alone=True, place=str(tmp_path)):
        assert waits(tmp_path, folder)
    assert not waits(tmp_path, folder)


def test_folders_run_side_by_side(tmp_path: Path) -> None:
    with turn("lab", place=str(tmp_path)):
        assert not waits(tmp_path, "kvm")
        assert waits(tmp_path, "kvm", "alone")
