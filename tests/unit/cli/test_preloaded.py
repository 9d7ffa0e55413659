"""The program that waits in a machine until it is told which command it is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for chroot")

_OPTIONAL = ("dask", "distributed", "matplotlib", "drgn", "pytest")
_AS_IN_A_MACHINE = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({_OPTIONAL}))
runpy.run_module("vmm.cli.preloaded", run_name="__main__", alter_sys=True)
"""
"""Runs it without the dependencies that are optional, and not in a machine."""


def told(folder: Path, *words: str, variables: tuple[str, ...] = ()) -> tuple[int, str]:
    """Return the status and the output of the program that is told to be a command."""
    pairs = [("nonce", "n"), ("root", "/"), ("folder", str(folder))]
    pairs += [("variable", each) for each in variables] + [("word", each) for each in words]
    text = b"".join(os.fsencode(each) + b"\0" for pair in (*pairs, ("end", "")) for each in pair)
    reader, writer = os.pipe()
    command = [sys.executable, "-P", "-c", _AS_IN_A_MACHINE]
    redirected = ["bash", "-c", f'exec "$@" 3>&{writer}', "bash", *command]
    with subprocess.Popen(
        redirected,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(writer,),
    ) as process:
        os.close(writer)
        assert os.read(reader, 1) == b"1"
        os.close(reader)
        output, _ = process.communicate(text, timeout=60)
    return process.returncode, output.decode()


def test_it_is_the_command_that_it_is_told_to_be(tmp_path: Path) -> None:
    words = ("python", "-P", "-m", "vmm.cli", "show", "no-such-scenario")
    status, output = told(tmp_path, *words, variables=("PATH=/usr/bin", "A=b=c"))
    assert status == 2
    assert "no-such-scenario" in output


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    status, output = told(tmp_path / "none", "vmm.cli", "info")
    assert status == 126
    assert "cannot enter" in output
    assert "none" in output
