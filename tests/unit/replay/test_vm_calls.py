"""Dirty logs and capabilities in a trace whose structures were read, as by `vmm record`."""

import re
from gzip import decompress

import pytest

from tests.traced import (
    EFAULT,
    EINVAL,
    EIO,
    ENOENT,
    ENOTTY,
    KVM,
    TRACES,
    region,
    replay_in,
    trace_of,
)
from vmm.replay.build import Replay
from vmm.replay.judging import judged
from vmm.replay.reader import read_lines, read_trace
from vmm.scenario.operations import ClearDirtyLog, EnableCap, GetDirtyLog, SetIdentityMapAddr
from vmm.scenario.validate import validate
from vmm.verdict.judge import Status

ENXIO = "-1 ENXIO (No such device or address)"
ANY = region(5, 0x90000)
LOGGED = region(flags="KVM_MEM_LOG_DIRTY_PAGES")
MANUAL_IS_THERE = "7 ioctl(8, KVM_CHECK_EXTENSION, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) = 3"
RINGS_ARE_THERE = "7 ioctl(8, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING_ACQ_REL) = 1048576"


def cap(name: str, argument: int, result: str = "0") -> str:
    fields = f"{{cap={name}, flags=0x0, args=[{argument:#x}, 0x0, 0x0, 0x0]}}"
    return f"7 ioctl(8, KVM_ENABLE_CAP, {fields}) = {result}"


MANUAL = cap("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", 3)


RING, QUIRKS = "KVM_CAP_DIRTY_LOG_RING_ACQ_REL", "KVM_CAP_DISABLE_QUIRKS2"
QUIRKS_ARE_THERE = "7 ioctl(3, KVM_CHECK_EXTENSION, KVM_CAP_DISABLE_QUIRKS2) = 0xff"
E2BIG = "-1 E2BIG (Argument list too long)"
VCPU = "7 ioctl(8, KVM_CREATE_VCPU, 0) = 11"
SECOND_VCPU = "7 ioctl(8, KVM_CREATE_VCPU, 0x7) = 12"


def identity(result: str) -> str:
    return f"7 ioctl(8, KVM_SET_IDENTITY_MAP_ADDR, [0xfeffc000]) = {result}"


def get(slot: int = 0, result: str = "0") -> str:
    fields = f"{{slot={slot}, padding1=0, dirty_bitmap=0x7f00}}"
    return f"7 ioctl(8, KVM_GET_DIRTY_LOG, {fields}) = {result}"


def clear(slot: int = 0, first: int = 0, count: int = 2, result: str = "0") -> str:
    fields = f"{{slot={slot}, num_pages={count}, first_page={first}, dirty_bitmap=0x7f00}}"
    return f"7 ioctl(8, KVM_CLEAR_DIRTY_LOG, {fields}) = {result}"


def reset(result: str) -> str:
    return f"7 ioctl(8, KVM_RESET_DIRTY_RINGS) = {result}"


@pytest.mark.parametrize(
    "lines",
    [
        (LOGGED, get()),
        (LOGGED, get(1, ENOENT), get(509, EINVAL)),
        (region(), get(0, ENOENT)),
        (LOGGED, region(flags="0"), get(0, ENOENT)),
        (LOGGED, region(size=0), get(0, ENOENT)),
        (LOGGED, get(0, EFAULT), get()),
        (MANUAL_IS_THERE, MANUAL, LOGGED, get(), clear(), get()),
        (MANUAL_IS_THERE, MANUAL, LOGGED, clear(0, 1, 1, EINVAL), clear(0, 0, 3, EINVAL)),
        (MANUAL_IS_THERE, MANUAL, LOGGED, clear(1, 0, 2, ENOENT), clear(0, 0, 2, EFAULT)),
        (MANUAL_IS_THERE, cap("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", 2, EINVAL), LOGGED, get()),
        (RINGS_ARE_THERE, cap("KVM_CAP_DIRTY_LOG_RING_ACQ_REL", 4096), LOGGED, get(0, ENXIO)),
        (LOGGED, cap("KVM_CAP_SPLIT_IRQCHIP", 24), cap("164", 1), get()),
        (RINGS_ARE_THERE, VCPU, cap(RING, 4096, EINVAL)),
        (RINGS_ARE_THERE, cap(RING, 4096), cap(RING, 4096, EINVAL), VCPU, SECOND_VCPU),
        (RINGS_ARE_THERE, cap(RING, 12288, EINVAL), cap(RING, 1 << 30, E2BIG), VCPU),
        (QUIRKS_ARE_THERE, cap(QUIRKS, 0x80), cap(QUIRKS, 0x100, EINVAL), cap(QUIRKS, 0)),
        (identity("0"), VCPU, identity(EINVAL)),
        (RINGS_ARE_THERE, cap(RING, 4096), reset("0"), VCPU, reset("17")),
        (RINGS_ARE_THERE, cap(RING, 12288, EINVAL), reset(EINVAL), VCPU, reset(EINVAL)),
        (RINGS_ARE_THERE.replace("1048576", "0"), reset(ENOTTY), reset(EINVAL)),
    ],
)
def test_what_kvm_promises_of_logs_passes(lines: tuple[str, ...]) -> None:
    found = judged(
        replay_in(KVM, "7 ioctl(8, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS) = 509", *lines, ANY)
    )
    assert (found.verdict.status, found.assumed) == (Status.PASSED, ()), found


@pytest.mark.parametrize(
    "lines",
    [
        (LOGGED, get(0, ENOENT)),
        (region(), get()),
        (LOGGED, region(size=0), get()),
        (LOGGED, get(1)),
        (LOGGED, get(0, "1")),
        (MANUAL_IS_THERE, LOGGED, cap("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", 3, EINVAL)),
        (MANUAL_IS_THERE, LOGGED, cap("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", 2)),
        (MANUAL_IS_THERE, MANUAL, LOGGED, clear(0, 0, 2, EINVAL)),
        (MANUAL_IS_THERE, MANUAL, LOGGED, clear(0, 0, 3)),
        (MANUAL_IS_THERE, MANUAL, LOGGED, clear(0, 1, 1)),
        (MANUAL_IS_THERE, MANUAL, LOGGED, clear(1)),
        (RINGS_ARE_THERE, cap("KVM_CAP_DIRTY_LOG_RING_ACQ_REL", 4096), LOGGED, get()),
        (RINGS_ARE_THERE, LOGGED, cap("KVM_CAP_DIRTY_LOG_RING_ACQ_REL", 12288)),
        (RINGS_ARE_THERE, VCPU, cap(RING, 4096)),
        (RINGS_ARE_THERE, VCPU, SECOND_VCPU, cap(RING, 4096, E2BIG)),
        (RINGS_ARE_THERE, cap(RING, 4096), cap(RING, 4096)),
        (RINGS_ARE_THERE, cap(RING, 1 << 30)),
        (QUIRKS_ARE_THERE, cap(QUIRKS, 0x80, EINVAL)),
        (QUIRKS_ARE_THERE, cap(QUIRKS, 0x100)),
        (VCPU, identity("0")),
        (RINGS_ARE_THERE, cap(RING, 4096), reset(EINVAL)),
        (RINGS_ARE_THERE, reset("0")),
        (RINGS_ARE_THERE, reset(ENOTTY)),
    ],
)
def test_what_kvm_does_not_promise_differs_in_its_line(lines: tuple[str, ...]) -> None:
    found = judged(replay_in(KVM, *lines, ANY))
    assert (found.verdict.status, found.assumed) == (Status.DIFFERS, ())
    assert found.line is not None
    assert found.line.number == len(lines) + 1


def test_a_capability_that_a_trace_does_not_ask_for_is_assumed() -> None:
    found = judged(replay_in(KVM, MANUAL, LOGGED, clear()))
    assert found.verdict.status is Status.PASSED
    assert found.assumed == ("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",)


def test_quirks_that_a_trace_does_not_ask_for_are_those_that_were_disabled() -> None:
    found = judged(
        replay_in(KVM, cap(QUIRKS, 0x80), cap(QUIRKS, 0x40), cap(QUIRKS, 2, EINVAL), ANY)
    )
    assert found.verdict.status is Status.PASSED
    assert found.assumed == ("KVM_CAP_DISABLE_QUIRKS2 of 0xc1",)
    found = judged(replay_in(KVM, cap(QUIRKS, 0x80), cap(QUIRKS, 0x80, EINVAL), ANY))
    assert found.verdict.status is Status.DIFFERS


def test_a_small_ring_is_refused_where_pml_needs_room() -> None:
    small = cap(RING, 8192, EINVAL)
    found = judged(replay_in(KVM, RINGS_ARE_THERE, small, cap(RING, 16384), VCPU, ANY))
    assert found.verdict.status is Status.PASSED
    assert found.assumed == ("dirty rings of at least 16 KiB (PML)",)


def test_a_refused_ring_is_in_doubt_if_the_trace_shows_no_vcpu() -> None:
    found = judged(replay_in(KVM, RINGS_ARE_THERE, cap(RING, 16384, EINVAL), ANY))
    assert found.verdict.status is Status.INCONCLUSIVE
    assert found.verdict.reason == "whether there is a vCPU is not in the trace"


def test_the_answer_to_a_forked_child_is_left_out_by_name() -> None:
    forked = "7 clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD) = 8"
    trace = trace_of(KVM, forked, LOGGED, get(0, EIO).replace("7 ", "8 ", 1), get())
    name = "KVM_GET_DIRTY_LOG by a forked child, which changes nothing"
    assert trace.passed_over == {name: 1}
    assert judged(Replay(trace, trace.vms[0])).verdict.status is Status.PASSED


def test_logs_are_in_doubt_if_the_trace_does_not_say_what_was_enabled() -> None:
    found = judged(replay_in(KVM, "7 ioctl(8, KVM_ENABLE_CAP, 0x7ffe) = 0", LOGGED, get(0, ENXIO)))
    assert found.verdict.status is Status.INCONCLUSIVE
    assert found.verdict.reason.startswith("which capabilities were enabled is not in the trace")


def test_they_become_operations_that_can_be_run() -> None:
    identity = "7 ioctl(8, KVM_SET_IDENTITY_MAP_ADDR, [0xfeffc000]) = 0"
    made = replay_in(KVM, MANUAL, identity, LOGGED, get(), clear())
    operations = made.built.scenario.operations
    assert operations[:2] == (
        EnableCap("MANUAL_DIRTY_LOG_PROTECT2", 3),
        SetIdentityMapAddr(0xFEFFC000),
    )
    assert operations[3:] == (GetDirtyLog(0), ClearDirtyLog(0, 0, 2))
    validate(made.built.scenario)


def test_each_altered_answer_on_a_log_of_a_real_trace_is_found() -> None:
    name = "qemu-q35-migration-logs.strace.gz"
    trace = read_trace(TRACES / name)
    (vm,) = trace.vms
    numbers = [call.line.number for call in vm.calls if re.search(r"_LOG", call.line.text)]
    assert len(numbers) >= 12
    lines = decompress((TRACES / name).read_bytes()).decode().splitlines()
    for number in numbers:
        altered = [*lines]
        assert altered[number - 1].endswith(" = 0")
        altered[number - 1] = altered[number - 1][:-1] + ENOENT
        again = read_lines(iter(enumerate(altered, 1)), name)
        found = judged(Replay(again, again.vms[0]))
        assert (found.verdict.status, found.assumed) == (Status.DIFFERS, ())
        assert found.line is not None
        assert found.line.number == number


def test_a_refused_reset_of_the_rings_of_a_real_trace_is_found() -> None:
    name = "qemu-q35-dirty-ring.strace.gz"
    lines = decompress((TRACES / name).read_bytes()).decode().splitlines()
    (at,) = [at for at, line in enumerate(lines) if "KVM_RESET_DIRTY_RINGS" in line]
    assert lines[at].endswith(" = 2819")
    lines[at] = lines[at].replace("= 2819", f"= {EINVAL}")
    again = read_lines(iter(enumerate(lines, 1)), name)
    found = judged(Replay(again, again.vms[0]))
    assert found.verdict.status is Status.DIFFERS
    assert (found.line and found.line.number) == at + 1


def test_calls_that_carry_too_little_are_named_with_the_reason() -> None:
    attributes = "7 ioctl(8, KVM_SET_MEMORY_ATTRIBUTES, 0x7ffe) = 0"
    made = "7 ioctl(8, KVM_CREATE_GUEST_MEMFD, 0x7ffe) = 9"
    enabled = "7 ioctl(8, KVM_ENABLE_CAP, 0x7ffe) = 0"
    fault = "7 ioctl(9, KVM_PRE_FAULT_MEMORY, 0x7ffe) = 0"
    lines = (KVM, LOGGED, attributes, made, enabled, reset("2"), fault)
    assert trace_of(*lines).passed_over == {
        "KVM_ENABLE_CAP": 1,
        "KVM_SET_MEMORY_ATTRIBUTES": 1,
        "KVM_CREATE_GUEST_MEMFD": 1,
        "KVM_RESET_DIRTY_RINGS, which may be right or not: what was enabled is not in the trace": 1,
        "KVM_PRE_FAULT_MEMORY, whose gpa or whose VM the trace does not show": 1,
    }
