"""Allocations that fail on purpose: asked for, taken back, and allowed by the model."""

import errno
from pathlib import Path

import pytest

from tests.ideal import FEATURES
from vmm.execution import failing
from vmm.execution.failing import can_fail_allocations, failing_allocation
from vmm.model.model import Model
from vmm.scenario.history import Done, Refused, Touched
from vmm.scenario.operations import Mapping, Place, Scenario, SetUserMemoryRegion, Touch
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate


@pytest.fixture
def fail_nth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the place of /proc/thread-self/fail-nth."""
    path = tmp_path / "fail-nth"
    path.write_text("7")
    monkeypatch.setattr(failing, "FAIL_NTH", path)
    ignore = tmp_path / "ignore-gfp-wait"
    ignore.write_text("N\n")
    monkeypatch.setattr(failing, "IGNORE_WAITING", ignore)
    return path


def test_number_is_written_and_taken_back(fail_nth: Path) -> None:
    fail_nth.write_text("")
    with failing_allocation(3):
        assert fail_nth.read_text() == "3"
    assert fail_nth.read_text() == "30"


def test_probe_asks_for_both_files(fail_nth: Path) -> None:
    assert can_fail_allocations()
    failing.IGNORE_WAITING.write_text("Y\n")
    assert not can_fail_allocations()
    failing.IGNORE_WAITING.unlink()
    assert not can_fail_allocations()


def test_call_may_find_no_memory_and_has_changed_nothing_then() -> None:
    model = Model((Mapping("a", 2),), FEATURES)
    call = SetUserMemoryRegion(1, 0x10000, 0x1000, Place("a"), fail_nth=1)
    done, refused = model.allowed(call)
    assert (done.outcome, refused.outcome) == (Done(), Refused(errno.ENOMEM))
    refused.adopt()
    (touched,) = model.allowed(Touch(0x10000))
    assert isinstance(touched.outcome, Touched)
    assert touched.rule.name == "hole"


@pytest.mark.parametrize("nth", [-1, 101])
def test_number_is_bounded(nth: int) -> None:
    with pytest.raises(ScenarioError, match="fail_nth: not within"):
        validate(Scenario("far", (SetUserMemoryRegion(1, fail_nth=nth),)))
