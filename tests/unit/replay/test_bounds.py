"""What a hostile trace may take: its calls under way, and its threads."""

import pytest

from tests.traced import KVM, region, replay_in, trace_of
from vmm.replay import trace
from vmm.replay.judging import judged
from vmm.replay.syntax import MAX_BEGUN, MAX_WAITING, Joiner, Unparsed
from vmm.replay.trace import Region, Unread
from vmm.verdict.judge import Status


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


def test_what_was_judged_of_too_many_calls_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "MAX_CALLS", 1500)
    calls = [region(1, size=size) for _ in range(1000) for size in (0x2000, 0)]
    verdict = judged(replay_in(KVM, *calls)).verdict
    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.reason == (
        "the first 1,500 calls agree with the model; 500 more, from line 1502 on, are not judged"
    )
