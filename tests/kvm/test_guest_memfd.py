"""guest_memfds as memory of the host, and as files that the executor has to close."""

import errno
import os

import pytest

from kvm_abi import mman
from kvm_abi.uapi import Cap, GuestMemfdFlag
from tests.ideal import FEATURES
from vmm.execution import executor
from vmm.execution.executor import Recorder, execute
from vmm.execution.leftovers import Leftovers
from vmm.execution.runner import run_isolated
from vmm.kvm.memory import HostMapping
from vmm.kvm.system import Kvm
from vmm.scenario.history import Closed, Event, Refused
from vmm.scenario.operations import (
    CloseGuestMemfd,
    CloseVm,
    CreateGuestMemfd,
    HostWrite,
    Mapping,
    NewVm,
    Place,
    Scenario,
)
from vmm.verdict.judge import Status, judge

PAGE = 4096
SHARED = GuestMemfdFlag.MMAP | GuestMemfdFlag.INIT_SHARED


@pytest.fixture
def memfd_kvm(kvm: Kvm) -> Kvm:
    if kvm.check_extension(Cap.GUEST_MEMFD_FLAGS) & SHARED != SHARED:
        pytest.skip("needs GUEST_MEMFD_FLAG_MMAP and GUEST_MEMFD_FLAG_INIT_SHARED")
    return kvm


@pytest.mark.parametrize("closed", [False, True])
def test_an_open_file_holds_its_vm(
    memfd_kvm: Kvm, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    asked: list[bool] = []
    events: list[Event] = []

    class Watched(Leftovers):
        def found(self, *, held: bool = False) -> tuple[str, ...]:
            asked.append(held)
            return super().found(held=held)

    monkeypatch.setattr(executor, "Leftovers", Watched)
    made = CreateGuestMemfd("g", PAGE, SHARED)
    operations = (made, *((CloseGuestMemfd("g"),) if closed else ()), CloseVm())
    scenario = Scenario("held", operations, survey="none")
    execute(memfd_kvm, scenario, 1 << 32, Recorder(events.append))
    assert Closed() in [event.outcome for event in events]
    assert asked[0] is not closed


def test_reserved_mapping_shows_a_shared_file(memfd_kvm: Kvm) -> None:
    with memfd_kvm.create_vm() as vm, HostMapping.reserved(2 * PAGE) as memory:
        file = vm.create_guest_memfd(2 * PAGE, SHARED)
        memory.cover(file)
        os.close(file)
        assert memory.read(0, 2 * PAGE) == bytes(2 * PAGE)
        memory.write(PAGE, b"\x55")
        assert memory.read(PAGE, 2) == b"\x55\0"


def test_hole_is_zeros_for_the_host_and_its_numbers_go_to_the_kernel_whole(memfd_kvm: Kvm) -> None:
    with memfd_kvm.create_vm() as vm, HostMapping.reserved(2 * PAGE) as memory:
        file = vm.create_guest_memfd(2 * PAGE, SHARED)
        memory.cover(file)
        memory.write(0, b"\x55" * 2 * PAGE)
        mman.fallocate(file, 3, PAGE, PAGE)
        assert memory.read(0, 2 * PAGE) == b"\x55" * PAGE + bytes(PAGE)
        for offset, size, number in (
            ((1 << 63) - PAGE, PAGE, errno.EFBIG),
            (1 << 63, PAGE, errno.EINVAL),
            (0, 1 << 63, errno.EINVAL),
        ):
            with pytest.raises(OSError, match="fallocate") as caught:
                mman.fallocate(file, 3, offset, size)
            assert caught.value.errno == number
        with pytest.raises(OSError, match="fallocate") as caught:
            mman.fallocate(file, 2, 0, PAGE)
        os.close(file)
        assert caught.value.errno == errno.EOPNOTSUPP


@pytest.mark.parametrize(
    ("flags", "private", "number"), [(0, False, errno.ENODEV), (SHARED, True, errno.EINVAL)]
)
def test_refused_file_leaves_the_mapping_as_it_was(
    memfd_kvm: Kvm, flags: int, private: bool, number: int
) -> None:
    with memfd_kvm.create_vm() as vm, HostMapping.anonymous(2 * PAGE) as memory:
        memory.write(0, b"\x55")
        file = vm.create_guest_memfd(2 * PAGE, flags)
        with pytest.raises(OSError, match="mmap") as caught:
            memory.cover(file, private=private)
        os.close(file)
        assert caught.value.errno == number
        assert memory.read(0, 1) == b"\x55"


def test_host_that_would_write_nowhere_lives_on(kvm: Kvm) -> None:
    mappings = (Mapping("shown", 2, "guest_memfd"), Mapping("never", 2, "unmapped"))
    writes = tuple(HostWrite(Place(mapping.name), 7) for mapping in mappings)
    scenario = Scenario("nowhere", writes, mappings, survey="none")
    history = run_isolated(scenario, FEATURES)
    assert judge(history).status is Status.PASSED
    assert [event.outcome for event in history.events[1:3]] == [Refused(errno.EFAULT)] * 2


def test_executor_closes_every_file_that_the_scenario_leaves_open(memfd_kvm: Kvm) -> None:
    events: list[Event] = []
    operations = (
        CreateGuestMemfd("left", PAGE),
        CreateGuestMemfd("closed", PAGE),
        CloseGuestMemfd("closed"),
        CloseGuestMemfd("closed"),
        NewVm(),
        CreateGuestMemfd("late", PAGE),
    )
    before = os.listdir("/proc/self/fd")
    scenario = Scenario("files", operations)
    execute(memfd_kvm, scenario, 1 << 32, Recorder(events.append))
    assert os.listdir("/proc/self/fd") == before
    refused = [event.origin for event in events if isinstance(event.outcome, Refused)]
    assert refused == [3]
