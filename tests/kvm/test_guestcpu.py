"""What a guest run comes to on a kernel that never lets it end."""

import pytest

from kvm_abi import raw
from kvm_abi.raw import CData
from kvm_abi.uapi import ExitReason
from vmm.execution.probe.features import probe_features
from vmm.fuzz.trial import attempt
from vmm.kvm.system import Kvm
from vmm.scenario.operations import Scenario, Sweep, Touch


def mmio_for_ever(
    fd: int, run: CData, answer: int, end_port: int, words: CData, room: int, count: CData
) -> int:
    """Answer every KVM_RUN as a kernel does that completes no MMIO."""
    run.exit_reason = ExitReason.MMIO
    count[0] = room
    return 0


@pytest.mark.parametrize("operation", [Touch(0x1000), Sweep(0x1000, 400)])
def test_mmio_without_end_is_a_vcpu_that_stops(
    kvm: Kvm, monkeypatch: pytest.MonkeyPatch, operation: Touch | Sweep
) -> None:
    features = probe_features(kvm)
    monkeypatch.setattr(raw, "_run_past_mmio", mmio_for_ever)
    verdict = attempt(kvm, Scenario("endless", (operation,) * 3, survey="none"), features).verdict
    assert verdict.difference is not None
    assert verdict.difference.observed.startswith("the vCPU stops: mmio")
