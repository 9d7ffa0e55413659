"""Churn: it leaves the VM as it was, and says which call was not refused."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast, get_args

import pytest

from kvm_abi.raw import KvmError
from kvm_abi.uapi import Cap, Ioctl
from vmm.execution import churn as churning
from vmm.execution.churn import churn
from vmm.execution.failing import can_fail_allocations
from vmm.kvm.memory import HostAddress, HostMapping
from vmm.kvm.system import Kvm
from vmm.kvm.vm import Vm
from vmm.scenario.history import Closed, Refused
from vmm.scenario.operations import Churn, ChurnKind

KINDS: tuple[ChurnKind, ...] = tuple(
    kind for kind in get_args(ChurnKind) if kind != "failing-changes" or can_fail_allocations()
)


@pytest.fixture
def vm(kvm: Kvm) -> Iterator[Vm]:
    if not kvm.check_extension(Cap.GUEST_MEMFD):
        pytest.skip("needs KVM_CAP_GUEST_MEMFD")
    with kvm.create_vm() as vm:
        yield vm


@pytest.fixture
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    def once(turn: object, times: int) -> tuple[str, ...]:
        assert callable(turn)
        for _ in range(times):
            turn()
        return ()

    monkeypatch.setattr(churning, "growth", once)


def _read_by_nobody(gpa: int) -> None:
    pass


def test_a_slot_that_changes_is_read_each_time(vm: Vm, no_measuring: None) -> None:
    reads: list[int] = []
    assert churn(vm, Churn(7, 3), reads.append) == Closed()
    assert reads == [0x8000] * 3


@pytest.mark.parametrize("what", KINDS)
def test_it_leaves_both_slots_absent(vm: Vm, what: ChurnKind, no_measuring: None) -> None:
    assert churn(vm, Churn(7, 8, what), _read_by_nobody) == Closed()
    for slot in (7, 8):
        with pytest.raises(KvmError, match="EINVAL"):
            vm.set_user_memory_region(slot, 0, 0, 0, 0)


@pytest.mark.parametrize("what", [kind for kind in KINDS if kind != "refused-eventfds"])
def test_a_place_that_is_taken_is_an_outcome(vm: Vm, what: ChurnKind, no_measuring: None) -> None:
    with HostMapping.anonymous(0x5000) as memory:
        vm.set_user_memory_region(1, 0, 0x8000, 0x5000, HostAddress(memory, 0))
        assert isinstance(churn(vm, Churn(7, 1, what), _read_by_nobody), Refused)
        vm.set_user_memory_region(1, 0, 0, 0, 0)


class Accepting:
    """A kernel that refuses nothing, and notes which slots it has."""

    fd = 0

    def __init__(self) -> None:
        self.slots: set[int] = set()

    def set_user_memory_region(
        self, slot: int, flags: int, gpa: int, size_bytes: int, place: object, *more: int
    ) -> None:
        if size_bytes:
            self.slots.add(slot)
        else:
            self.slots.discard(slot)

    set_user_memory_region2 = set_user_memory_region

    def ioeventfd(self, file: int, gpa: int, *more: int | None, on: bool = True) -> None:
        pass

    def check_extension(self, cap: int) -> int:
        return 1

    def create_guest_memfd(self, size_bytes: int) -> int:
        return os.memfd_create("file")


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("refused-creations", 23),
        ("refused-moves", 12),
        ("refused-bindings", 10),
        ("refused-eventfds", 13),
    ],
)
def test_calls_that_are_not_refused_are_named(
    what: ChurnKind, named: int, no_measuring: None
) -> None:
    vm = Accepting()
    outcome = churn(cast(Vm, vm), Churn(7, 2, what), _read_by_nobody)
    assert isinstance(outcome, Closed)
    assert len(outcome.left) == named
    assert all(" that is " in each for each in outcome.left)
    assert vm.slots == set()


class Short(Accepting):
    """A kernel whose calls each make two allocations; notes those that succeed."""

    failing = 0
    forgets = False
    """Whether an eventfd stays that there was no memory for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, int]] = []
        self.events: list[bool] = []
        """Whether each eventfd was added or taken away."""

    @contextmanager
    def failing_allocation(self, nth: int) -> Iterator[None]:
        self.failing = nth
        yield
        self.failing = 0

    def set_user_memory_region(
        self, slot: int, flags: int, gpa: int, size_bytes: int, place: object, *more: int
    ) -> None:
        if 1 <= self.failing <= 2:
            self.failing = 0
            raise KvmError(errno.ENOMEM, Ioctl.SET_USER_MEMORY_REGION, None, "")
        if self.failing:
            self.calls.append((flags, gpa))

    def ioeventfd(self, file: int, gpa: int, *more: int | None, on: bool = True) -> None:
        if on in self.events:
            raise KvmError(errno.EEXIST, Ioctl.IOEVENTFD, None, "")
        if 1 <= self.failing <= 2:
            self.failing = 0
            if self.forgets and on:
                self.events.append(on)
            raise KvmError(errno.ENOMEM, Ioctl.IOEVENTFD, None, "")
        self.events.append(on)


def test_a_change_is_made_after_each_of_its_allocations_failed(
    monkeypatch: pytest.MonkeyPatch, no_measuring: None
) -> None:
    vm = Short()
    monkeypatch.setattr(churning, "failing_allocation", vm.failing_allocation)
    assert churn(cast(Vm, vm), Churn(7, 1, "failing-changes"), _read_by_nobody) == Closed()
    assert vm.calls == [(0, 0x8000), (1, 0x8000), (1, 0xA000), (0, 0xB000), (0, 0)]
    assert vm.events == [True, False]


def test_an_eventfd_that_stays_although_there_was_no_memory_is_an_outcome(
    monkeypatch: pytest.MonkeyPatch, no_measuring: None
) -> None:
    vm = Short()
    vm.forgets = True
    monkeypatch.setattr(churning, "failing_allocation", vm.failing_allocation)
    outcome = churn(cast(Vm, vm), Churn(7, 1, "failing-changes"), _read_by_nobody)
    assert outcome == Refused(errno.EEXIST)
