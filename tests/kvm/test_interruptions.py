"""Signals that come while guests run: a pause, as stopping and continuing a process is, or ^Z."""

import errno
import signal
from collections.abc import Iterator

import pytest

from kvm_abi import raw
from vmm.execution.probe.features import probe_features
from vmm.fuzz.trial import attempt
from vmm.kvm.system import Kvm
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    AnyOperation,
    Mapping,
    Place,
    Scenario,
    SetUserMemoryRegion,
    Sweep,
    Touch,
)
from vmm.verdict.judge import Status

PAGE = PAGE_SIZE_BYTES
EVERY_S = 0.0005

ROUND: tuple[AnyOperation, ...] = (
    SetUserMemoryRegion(1, PAGE, PAGE, Place("a", 0)),
    *(Touch(0x40 + page % 2 * PAGE) for page in range(900)),
    Sweep(PAGE - 4, 400),
)
SCENARIO = Scenario("interrupted", ROUND * 20, (Mapping("a", 1),))


@pytest.fixture
def signals() -> Iterator[list[int]]:
    """Signals that come all the time, and are answered by taking note of them."""
    seen: list[int] = []
    previous = signal.signal(signal.SIGPROF, lambda number, _: seen.append(number))
    signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
    try:
        yield seen
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def test_signals_change_nothing(kvm: Kvm, signals: list[int]) -> None:
    verdict = attempt(kvm, SCENARIO, probe_features(kvm)).verdict
    assert (verdict.status, verdict.difference) == (Status.PASSED, None)
    assert len(signals) > 20


def test_a_kernel_that_makes_them_up_differs(kvm: Kvm, monkeypatch: pytest.MonkeyPatch) -> None:
    features = probe_features(kvm)
    monkeypatch.setattr(raw, "_run_past_mmio", lambda *_: -errno.EINTR)
    once = Scenario("interrupted", ROUND, SCENARIO.mappings)
    verdict = attempt(kvm, once, features).verdict
    assert verdict.difference is not None
    assert verdict.difference.observed == "the vCPU stops: EINTR"
