"""What a hostile trace may take: its calls under way, its threads, its VMs and its calls."""

import tracemalloc

import pytest

from tests.traced import KVM, region, replay_in, trace_of
from vmm.replay import processes
from vmm.replay.syntax import MAX_BEGUN, MAX_WAITING, Joiner, Unparsed
from vmm.replay.trace import Region, Unread


def test_a_call_that_is_resumed_without_end_keeps_its_size() -> None:
    joiner = Joiner()
    joiner.item(1, "7 ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=0 <unfinished ...>")
    for number in range(200):
        joiner.item(number, f"7 <... ioctl resumed>{'x' * 1000} <unfinished ...>")
    (left,) = joiner.left()
    assert len(left.text) == MAX_BEGUN


def test_a_call_that_is_too_long_to_be_kept_may_have_changed_slots() -> None:
    long = f"9 ioctl(8, KVM_SET_USER_MEMORY_REGION, {{{'x' * 50_000} <unfinished ...>"
    *_, last = trace_of(KVM, region(), long, "9 <... ioctl resumed>) = 0").vms[0].calls
    assert isinstance(last, Unread)
    assert last.may_change


def test_calls_under_way_beyond_a_number_may_have_changed_slots() -> None:
    joiner = Joiner()
    call = "ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=0 <unfinished ...>"
    items = [joiner.item(pid, f"{pid} {call}") for pid in range(1, MAX_WAITING + 2)]
    assert set(items[:-1]) == {None}
    assert isinstance(items[-1], Unparsed)
    assert items[-1].name == "ioctl"


def test_many_threads_of_many_qemus_are_told_apart() -> None:
    lines = [
        f"{thread}@1.5:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1000 "
        f"ua={0x7F0000000000 + thread % 1000 * 0x2000:#x} ret=0"
        for thread in range(4000)
    ]
    vms = trace_of(*lines).vms
    assert len(vms) == 1000
    assert {len(vm.calls) for vm in vms} == {4}
    assert all(isinstance(call, Region) for vm in vms for call in vm.calls)


def test_vms_beyond_a_number_are_counted() -> None:
    lines = [f"{pid} ioctl(3, KVM_CREATE_VM, 0) = 8" for pid in range(10, 1015)]
    calls = [region(head=f"{pid} ") for pid in range(10, 1015)]
    trace = trace_of(*lines, *calls)
    assert len(trace.vms) == 1000
    assert trace.passed_over == {"VM, which is beyond the first 1000": 5}
    assert {len(vm.calls) for vm in trace.vms} == {1}


def test_what_becomes_of_huge_memory_takes_no_more_than_that_of_a_page() -> None:
    size = 1 << 30
    mapped = f", {size}, PROT_READ|PROT_WRITE, MAP_SHARED"
    replay = replay_in(
        KVM,
        '7 memfd_create("m", 0) = 12',
        f"7 mmap(NULL{mapped}, 12, 0) = 0x7f0000000000",
        region(0, 1 << 32, size),
        f"7 fallocate(12, FALLOC_FL_PUNCH_HOLE|FALLOC_FL_KEEP_SIZE, 0, {size}) = 0",
        f"7 munmap(0x7f0000000000, {size}) = 0",
        f"7 mmap(0x7f0000000000{mapped}|MAP_FIXED, 12, 0) = 0x7f0000000000",
    )
    tracemalloc.start()
    try:
        operations = replay.built.scenario.operations
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(operations) == 4
    assert most < 4 << 20


def test_numbers_that_are_too_large_for_a_system_call_are_none() -> None:
    large = "9" * 38
    lines = (
        region(0),
        region(1, result=large),
        region(2).replace("memory_size=8192", f"memory_size={large}"),
        region(3).replace("slot=3", "slot=-3"),
        region(4, flags=f"0x{'f' * 30}"),
        f"7 mmap(NULL, {large}, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f0000000000",
        "7 munmap(0x7f0000000000, 18446744073709551615) = 0",
        f"7 ioctl({large}, KVM_CREATE_VM, 0) = {large}",
    )
    (vm,) = trace_of(KVM, *lines * 100).vms
    kinds = [type(call) for call in vm.calls][:5]
    assert kinds == [Region, Unread, Unread, Unread, Unread]
    assert len(list(vm.calls)) == len(vm.calls)


def test_a_large_number_in_qemus_trace_is_none() -> None:
    line = "kvm_set_user_memory Slot#1 flags=0x0 gpa=0x0 size=0x2000 ua=0x7f0000000000 ret=0"
    lines = (line, line.replace("0x2000", "0x" + "f" * 20))
    (vm,) = trace_of(*lines * 1000).vms
    assert [type(call) for call in vm.calls][:2] == [Region, Unread]


def test_processes_beyond_a_number_close_nothing_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MAX_PROCESSES", 3)
    made = "7 ioctl(8, KVM_CREATE_GUEST_MEMFD, {size=16384, flags=0}) = 9"
    children = [
        line
        for pid in range(20, 30)
        for line in (f"7 fork() = {pid}", f"{pid} close(9) = 0", f"{pid} close(8) = 0")
    ]
    bound = region(flags="KVM_MEM_GUEST_MEMFD", name="KVM_SET_USER_MEMORY_REGION2")
    bound = bound.replace("}", ", guest_memfd_offset=0, guest_memfd=9}")
    (vm,) = trace_of(KVM, made, *children, bound, "30 ioctl(3, KVM_CREATE_VM, 0) = 8").vms[:1]
    *_, last = vm.calls
    assert isinstance(last, Region)
    assert last.memfd == "guest_memfd 1"
    assert len(vm.calls) == 2


def test_answers_on_capabilities_beyond_a_number_are_left_out() -> None:
    asked = [f"7 ioctl(3, KVM_CHECK_EXTENSION, {number:#x}) = 1" for number in range(5000)]
    on_vm = [line.replace("(3", "(8") for line in asked]
    (vm,) = trace_of(*asked, KVM, *on_vm, region()).vms
    assert len(vm.capabilities) <= processes.MAX_CAPABILITIES
