"""Races as C programs: right on this kernel, and a rate on one that is wrong now and then."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.lab.lab import environment
from tests.programs import COMPILER, RIGHT, WRONG, end_of
from vmm.catalogue import catalogue
from vmm.execution.probe.features import probe_features
from vmm.kvm.system import Kvm
from vmm.repro.emit import program_of

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")

_ROUNDS = "2"
_LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("racing-dirty-log", "dirty-lowest-lost:every=9"),
        pytest.param("racing-move", "old-place-seen-for-20-runs:every=5", marks=_LONG),
        pytest.param("racing-drop", "host-change-missed-first-page:every=9", marks=_LONG),
        pytest.param("racing-clocks-through-moves", "clock-not-logged-beside-a-vcpu", marks=_LONG),
        pytest.param("racing-clocks-and-host-memory", "clock-writes-beyond:every=9", marks=_LONG),
        pytest.param(
            "racing-two-mappings-of-one-file", "old-place-seen-for-20-runs:every=5", marks=_LONG
        ),
        pytest.param("racing-truncate", "truncation-missed:every=3", marks=_LONG),
        pytest.param("racing-file-over-memory", "file-over-memory-missed:every=9", marks=_LONG),
        pytest.param("racing-memory-moved-away", "moving-away-missed:every=3", marks=_LONG),
        pytest.param("racing-pages-fetched-later", "fetching-parts-the-guest:every=3", marks=_LONG),
        pytest.param("racing-ring", "ring-page-wrong:every=200", marks=_LONG),
    ],
)
def test_a_race_is_right_here_and_says_how_often_a_wrong_kernel_fails(
    kvm: Kvm, tmp_path: Path, name: str, fault: str
) -> None:
    features = probe_features(kvm)
    scenario = next(each for each in catalogue(features) if each.name == name)
    text = program_of(scenario, features)
    status, said = end_of(text.replace(": 20;", f": {_ROUNDS};"), tmp_path)
    assert (status, said) == (RIGHT, f"wrong in 0 of {_ROUNDS} rounds (0 %)\nright")
    ended = subprocess.run(
        [tmp_path / "repro", _ROUNDS],
        env=environment(fault, os.environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == WRONG, ended.stdout
    assert re.search(rf"^wrong in [12] of {_ROUNDS} rounds", ended.stdout, re.MULTILINE)
