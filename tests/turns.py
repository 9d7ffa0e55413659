"""Tests that watch the kernel's memory run alone, though folders of tests run side by side.

Each folder that uses KVM has a lock, which a test holds while it runs; one that is to run alone
holds them all. Tests of whole commands, which scripts/test runs beside the others of their folder,
have a lock of their own: TEST_TURN names it.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

FOLDERS = ("commands", "kvm", "lab")


@contextmanager
def turn(folder: str, alone: bool = False, place: str = "") -> Iterator[None]:
    """Wait until a test of this folder may run. ``place`` is where the locks are, if not in /tmp.

    Only other processes are waited for.
    """
    with ExitStack() as stack:
        for name in FOLDERS if alone else (folder,):
            stack.enter_context(_held(Path(place or tempfile.gettempdir()) / _file(name)))
        yield


def marks_of(scenario: str) -> tuple[pytest.MarkDecorator, ...]:
    """Return the marks of a test that plays a scenario: one that watches memory runs alone."""
    return (pytest.mark.alone,) if scenario.startswith("nothing-used-up-") else ()


def _file(name: str) -> str:
    return f"memslot-vmm-tests-{os.geteuid()}-{name}.lock"


@contextmanager
def _held(lock: Path) -> Iterator[None]:
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.lockf(fd, os.F_LOCK, 0)
        yield
    finally:
        os.close(fd)
