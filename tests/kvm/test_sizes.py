"""Memory that a scenario declares and does not touch costs nothing."""

import subprocess
import sys

import pytest

_LIMITS_KIB = {
    "sizes-64-gib-in-a-slot": 120 << 10,
    "sizes-q35-of-4-gib": 120 << 10,
    "sizes-2-gib-of-huge-pages": 400 << 10,
}

_MEASURED = """
import resource, subprocess, sys
status = subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL).returncode
print(status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""A small process of its own: what a process has at most is counted from before its exec on."""


@pytest.mark.parametrize("name", _LIMITS_KIB)
def test_what_is_not_touched_costs_nothing(name: str) -> None:
    command = ("-m", "vmm.cli", "check", "--all", "-q", "--require-run", name)
    ran = subprocess.run(
        [sys.executable, "-c", _MEASURED, *command], capture_output=True, text=True, check=True
    )
    status, most_kib = map(int, ran.stdout.split())
    assert status == 0
    assert most_kib < _LIMITS_KIB[name]
