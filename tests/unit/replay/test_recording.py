"""Real traces that were recorded, and which of strace's lines a recording keeps."""

import pytest

from tests.traced import TRACES
from vmm.replay.build import replay_of
from vmm.replay.judging import judged
from vmm.replay.reader import read_trace
from vmm.replay.recording import Filter, strace_command
from vmm.scenario.operations import Mapping
from vmm.verdict.judge import Status


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("qemu-q35-seabios.strace", 39),
        ("qemu-q35-seabios.qemu", 39),
        ("qemu-q35-seabios-memory.strace.gz", 26),
        ("qemu-q35-4g.strace.gz", 29),
        ("qemu-pc-seabios.strace.gz", 26),
        ("qemu-q35-ovmf.strace.gz", 12),
        ("gvisor-kvm.strace.gz", 5),
        ("hyperlight-kvm.strace.gz", 2),
        ("libkrun-microsandbox.strace.gz", 3),
        ("qemu-pc-seabios-times.qemu", 37),
    ],
)
def test_real_traces_are_judged_without_a_difference(name: str, calls: int) -> None:
    trace = read_trace(TRACES / name)
    (vm,) = trace.vms
    made = replay_of(trace, vm)
    assert (made.regions, made.refused, made.unread) == (calls, (), ())
    found = judged(made)
    assert (found.verdict.status, found.assumed) == (Status.PASSED, ())


def test_what_a_trace_shows_of_memory_is_declared() -> None:
    trace = read_trace(TRACES / "qemu-q35-seabios-memory.strace.gz")
    mappings = replay_of(trace, trace.vms[0]).scenario.mappings
    assert Mapping("m0", 32768, "thp") in mappings


def kept(*lines: str) -> list[int]:
    keeps = Filter().keeps
    return [number for number, line in enumerate(lines) if keeps(line)]


def test_calls_on_memslots_and_memory_are_kept_and_no_others() -> None:
    assert kept(
        "7 ioctl(9, KVM_RUN, 0) = 0",
        "7 ioctl(3, KVM_CREATE_VM, 0) = 8",
        "7 ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=0}) = 0",
        "7 ioctl(8, _IOC(_IOC_WRITE, 0xae, 0x49, 0xa0), 0x7ffd) = 0",
        "7 ioctl(9, KVM_GET_REGS, {rax=0}) = 0",
        "7 munmap(0x1000, 4096) = 0",
        "7 fcntl(8, F_GETFL) = 2",
        "7 fcntl(8, F_DUPFD_CLOEXEC, 0) = 12",
    ) == [1, 2, 3, 5, 7]


def test_both_halves_of_a_call_are_kept_or_none() -> None:
    assert kept(
        "7 ioctl(9, KVM_RUN <unfinished ...>",
        "8 ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=0} <unfinished ...>",
        "7 <... ioctl resumed>, 0) = 0",
        "8 <... ioctl resumed>) = 0",
        "8 <... ioctl resumed>) = 0",
    ) == [1, 3]


def test_the_command_is_run_as_it_is() -> None:
    arguments = strace_command("/usr/bin/strace", "/tmp/fifo", ["vm", "-o", "x"])
    assert arguments[0] == "/usr/bin/strace"
    assert arguments[-4:] == ["--", "vm", "-o", "x"]
    assert arguments[arguments.index("-o") + 1] == "/tmp/fifo"
