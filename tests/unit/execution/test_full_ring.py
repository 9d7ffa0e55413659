"""A vCPU with a full dirty ring is run once more before there is room, and has to stop at once."""

from collections.abc import Callable
from typing import cast

import pytest

from guests.windows import Windows
from kvm_abi.raw import WrongAnswerError
from vmm.execution.guestcpu import GuestCpu
from vmm.kvm.exits import DirtyRingFull, Hlt, VcpuExit
from vmm.kvm.vcpu import Vcpu

FULL = DirtyRingFull()


def cpu(make_room: Callable[[], bool]) -> GuestCpu:
    return GuestCpu(cast(Vcpu, None), 0, memoryview(b""), cast(Windows, None), make_room)


def left(exits: list[VcpuExit], insists: bool = True) -> tuple[VcpuExit, int]:
    """Return how a vCPU leaves that gives these exits in turn, and how often room was made."""
    rooms = 0

    def make_room() -> bool:
        nonlocal rooms
        rooms += 1
        return True

    made = cpu(make_room)
    made.insists = insists
    return made._leave(lambda: exits.pop(0)), rooms


def test_room_is_made_where_the_ring_is_still_full() -> None:
    assert left([FULL, FULL, FULL, FULL, Hlt()]) == (Hlt(), 2)


def test_a_vcpu_that_goes_on_with_a_full_ring_is_wrong() -> None:
    with pytest.raises(WrongAnswerError, match=r"KVM_RUN\(with a full dirty ring\) answers no"):
        left([FULL, Hlt()])


def test_in_a_race_another_thread_may_have_made_room() -> None:
    assert left([FULL, Hlt()], insists=False) == (Hlt(), 1)


def test_a_ring_that_stays_full_is_an_exit() -> None:
    exits: list[VcpuExit] = [FULL, FULL]
    assert cpu(lambda: False)._leave(lambda: exits.pop(0)) == FULL
