"""What the lab shows while a machine says nothing."""

import time
from collections.abc import Callable

import pytest

from vmm.cli.lab.progress import Progress


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def pass_until(seconds: float) -> None:
        now[0] = seconds

    return pass_until


def test_a_machine_that_boots_is_told_of(
    at: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress()
    for seconds in (1, 29, 31, 32, 62):
        at(seconds)
        progress.wait()
    expected = ["lab: the machine boots: 31 s", "lab: the machine boots: 62 s"]
    assert capsys.readouterr().err.splitlines() == expected


def test_a_machine_that_has_spoken_boots_no_longer(
    at: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress()
    progress.heard()
    at(31)
    progress.wait()
    assert capsys.readouterr().err == ""
