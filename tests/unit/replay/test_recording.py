"""Real traces that were recorded, and which of strace's lines a recording keeps."""

import errno
import re

import pytest
from msgspec.structs import replace

from tests.traced import TRACES, calls_of
from vmm.replay.build import Replay
from vmm.replay.judging import judged
from vmm.replay.reader import read_trace
from vmm.replay.recording import Filter, strace_command
from vmm.replay.trace import Call, Region
from vmm.scenario.operations import Mapping
from vmm.verdict.judge import Status

CALLS = {
    "qemu-q35-seabios.strace": 39,
    "qemu-q35-seabios.qemu": 39,
    "qemu-q35-seabios-memory.strace.gz": 26,
    "qemu-q35-4g.strace.gz": 29,
    "qemu-pc-seabios.strace.gz": 26,
    "qemu-q35-ovmf.strace.gz": 12,
    "gvisor-kvm.strace.gz": 5,
    "hyperlight-kvm.strace.gz": 2,
    "libkrun-microsandbox.strace.gz": 3,
    "qemu-pc-seabios-times.qemu": 37,
    "qemu-microvm.strace.gz": 6,
    "qemu-q35-memory-hotplug.strace.gz": 24,
    "qemu-q35-migration.strace.gz": 32,
    "kvmtool-5g.strace.gz": 2,
    "qemu-q35-migration-logs.strace.gz": 27,
    "qemu-q35-dirty-ring.strace.gz": 16,
    "selftest-memslot-stress.strace.gz": 22,
}
"""How many calls on memslots each of the recorded traces has."""


def test_every_recorded_trace_is_judged_and_described() -> None:
    files = {path.name for path in TRACES.iterdir()} - {"README.md"}
    table = re.findall(r"^\| `([^`]+)` \|", (TRACES / "README.md").read_text(), re.MULTILINE)
    assert sorted(CALLS) == sorted(files) == sorted(table)


@pytest.mark.parametrize(("name", "calls"), CALLS.items())
def test_real_traces_are_judged_without_a_difference(name: str, calls: int) -> None:
    trace = read_trace(TRACES / name)
    (vm,) = trace.vms
    made = Replay(trace, vm)
    assert (made.summary.regions, made.summary.refused, made.summary.unread) == (calls, 0, 0)
    found = judged(made)
    assert (found.verdict.status, found.assumed) == (Status.PASSED, ())


@pytest.mark.parametrize("name", sorted(CALLS))
def test_an_altered_answer_of_any_call_in_a_real_trace_is_found(name: str) -> None:
    trace = read_trace(TRACES / name)
    (vm,) = trace.vms
    for index, call in enumerate(vm.calls):
        if isinstance(call, Region):
            calls: list[Call] = [*vm.calls]
            calls[index] = replace(call, errno=errno.EINVAL)
            found = judged(Replay(trace, replace(vm, calls=calls_of(calls))))
            assert found.verdict.status is not Status.PASSED, call.line
            if not found.assumed:  # On a kernel that lacks something, EINVAL may be right there.
                assert (found.verdict.status, found.line) == (Status.DIFFERS, call.line)


def test_what_a_trace_shows_of_memory_is_declared() -> None:
    trace = read_trace(TRACES / "qemu-q35-seabios-memory.strace.gz")
    mappings = Replay(trace, trace.vms[0]).built.scenario.mappings
    assert Mapping("m0", 32768, "thp") in mappings


def kept(*lines: str) -> list[int]:
    kept = Filter().kept
    return [number for number, line in enumerate(lines) if kept(line)]


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


BEGUN = "7 ioctl(8, KVM_GET_DIRTY_LOG, 0x7ffd <unfinished ...>"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            ["7 ioctl(8, KVM_GET_DIRTY_LOG, 0x7ffd) = 0"],
            ["7 ioctl(8, KVM_GET_DIRTY_LOG, {slot=3}) = 0"],
        ),
        (
            [BEGUN, "7 <... ioctl resumed>)    = 0"],
            [
                "7 ioctl(8, KVM_GET_DIRTY_LOG <unfinished ...>",
                "7 <... ioctl resumed>, {slot=3}) = 0",
            ],
        ),
        (
            ["7 ioctl(8, KVM_GET_DIRTY_LOG <unfinished ...>", "7 <... ioctl resumed>, 0x7f) = 0"],
            [
                "7 ioctl(8, KVM_GET_DIRTY_LOG <unfinished ...>",
                "7 <... ioctl resumed>, {slot=3}) = 0",
            ],
        ),
        (
            ["9 ioctl(8, KVM_GET_DIRTY_LOG, 0x7ffd) = 0"],  # Another thread's.
            ["9 ioctl(8, KVM_GET_DIRTY_LOG, 0x7ffd) = 0"],
        ),
    ],
)
def test_what_a_call_asks_for_stands_in_its_line(lines: list[str], expected: list[str]) -> None:
    recording = Filter()
    recording.asked(7, "{slot=3}")
    assert [recording.kept(line) for line in lines] == expected


def test_what_was_asked_for_is_used_once_and_pointers_stay_without_it() -> None:
    recording = Filter()
    recording.asked(7, "{slot=3}")
    recording.kept("7 ioctl(8, KVM_GET_DIRTY_LOG, 0x7ffd) = 0")
    line = "7 ioctl(8, KVM_GET_DIRTY_LOG, 0x7ffd) = 0"
    assert recording.kept(line) == line
    recording.kept(BEGUN)
    assert recording.kept("7 <... ioctl resumed>) = 0") == "7 <... ioctl resumed>, 0x7ffd) = 0"
