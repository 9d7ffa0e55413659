"""Whether real mode is emulated is told by an instruction that KVM's emulator does not know."""

from typing import Any

import pytest

from kvm_abi import uapi
from vmm.execution.probe import emulation
from vmm.kvm.exits import Hlt, InternalError, Shutdown, VcpuExit


@pytest.mark.parametrize(
    ("stop", "emulates"),
    [
        (Hlt(), False),
        (Shutdown(), False),
        (InternalError(uapi.InternalError.EMULATION, (), b""), True),
        (InternalError(uapi.InternalError.DELIVERY_EV, (), b""), False),
    ],
)
def test_only_an_emulator_does_not_know_it(
    monkeypatch: pytest.MonkeyPatch, stop: VcpuExit, emulates: bool
) -> None:
    executed: list[bytes] = []

    def first_stop(_kvm: Any, code: bytes) -> VcpuExit:
        executed.append(code)
        return stop

    monkeypatch.setattr(emulation, "first_stop", first_stop)
    kvm: Any = None
    assert emulation.emulates_real_mode(kvm) is emulates
    assert executed == [bytes.fromhex("d9d0f4")]  # fnop, hlt
