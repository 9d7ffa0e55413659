"""What a hostile trace may take: its calls under way, its threads, its VMs and its calls."""

from tests.traced import KVM, region, trace_of
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
