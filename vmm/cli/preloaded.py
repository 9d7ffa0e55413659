"""Imports all modules, waits for orders, and then runs the command that they name.

The lab starts it in a machine before the host's files are there: see `vmm/lab/init/`. Importing
takes seconds there, which a snapshot of a machine in this state saves.
"""

import importlib
import os
import pkgutil
import random
import sys
from collections import defaultdict
from contextlib import suppress
from typing import NoReturn

import vmm
from vmm.cli.start import run

PROGRAM = "vmm.cli"
"""In the orders, the word before the command's arguments."""

_LOADED_FD = 3
_CANNOT_ENTER = 126


def main() -> NoReturn:
    """Wait for orders on standard input, and run their command."""
    words = ordered(PROGRAM)
    sys.argv = ["vmm", *words]
    run()


def ordered(program: str) -> list[str]:
    """Import the project and wait for orders; return the words after a program's name.

    The process then has the root, folder and environment that the orders name.
    """
    for module in pkgutil.walk_packages(vmm.__path__, "vmm."):
        with suppress(ImportError):  # Optional dependencies are not in the machine.
            importlib.import_module(module.name)
    os.write(_LOADED_FD, b"1")
    os.close(_LOADED_FD)
    text = sys.stdin.buffer.read()
    orders: defaultdict[str, list[str]] = defaultdict(list)
    strings = [os.fsdecode(each) for each in text.split(b"\0")[:-1]]
    for key, value in zip(strings[::2], strings[1::2], strict=True):
        orders[key].append(value)
    _enter(orders["root"][-1], orders["folder"][-1])
    os.environ.clear()
    for each in orders["variable"]:
        name, _, value = each.partition("=")
        os.environ[name] = value
    random.seed()  # The snapshot has the same state in every machine.
    words = orders["word"]
    return words[words.index(program) + 1 :]


def _enter(root: str, folder: str) -> None:
    try:
        os.chroot(root)
        os.chdir(folder)
    except OSError as error:
        sys.stderr.write(f"cannot enter {folder}: {error.strerror}\n")
        os._exit(_CANNOT_ENTER)


if __name__ == "__main__":
    main()
