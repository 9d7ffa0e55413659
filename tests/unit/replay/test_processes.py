"""Which process a call is of: children that act before the call that makes them returns, pids
that strace leaves out, and forks that are not in the trace.
"""

import errno

import pytest

from tests.traced import EIO, KVM, region, replay_in, trace_of
from vmm.replay.judging import judged
from vmm.replay.trace import MemoryChange, Region, Trace
from vmm.verdict.judge import Status

_FORK = "clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD"
_THREAD = "clone3({flags=CLONE_VM|CLONE_FS|CLONE_FILES|CLONE_THREAD, exit_signal=0}"


def called(trace: Trace) -> list[tuple[int, bool]]:
    (vm,) = trace.vms
    calls = [each for each in vm.calls if isinstance(each, Region)]
    assert len(calls) == len(vm.calls)
    assert trace.notes == []
    return [(each.errno, each.is_foreign) for each in calls]


@pytest.mark.parametrize("ends", [(), ("9 +++ exited with 0 +++",)])
def test_a_child_that_acts_before_its_fork_returns_is_a_child(ends: tuple[str, ...]) -> None:
    trace = trace_of(
        KVM,
        region(),
        f"7 {_FORK} <unfinished ...>",
        region(1, gpa=0x20000, head="9 ", result=EIO),
        *ends,
        "7 <... clone resumed>, child_tidptr=0x7f00) = 9",
        region(2, gpa=0x30000),
    )
    assert called(trace) == [(0, False), (errno.EIO, True), (0, False)]


def test_a_child_of_vfork_that_executes_a_program_takes_nothing_from_its_parent() -> None:
    trace = trace_of(
        KVM,
        region(),
        "7 vfork( <unfinished ...>",
        "9 close(8) = 0",
        '9 execve("/bin/true", ["true"], 0x7ffc /* 35 vars */ <unfinished ...>',
        "7 <... vfork resumed>) = 9",
        "9 <... execve resumed>) = 0",
        region(1, gpa=0x20000),
    )
    assert called(trace) == [(0, False), (0, False)]
    assert not trace.vms[0].began_before


def test_a_thread_that_acts_before_its_clone_returns_is_one() -> None:
    trace = trace_of(
        KVM,
        f"7 {_THREAD} <unfinished ...>",
        region(head="9 "),
        "7 <... clone3 resumed> => {parent_tid=[9]}, 88) = 9",
        region(1, gpa=0x20000, head="9 "),
    )
    assert called(trace) == [(0, False), (0, False)]


def test_an_older_thread_that_acts_during_a_fork_is_no_child() -> None:
    trace = trace_of(
        KVM,
        f"7 {_FORK} <unfinished ...>",
        region(head="8 "),
        "7 <... clone resumed>, child_tidptr=0x7f00) = 9",
        region(1, gpa=0x20000, head="8 "),
        region(2, gpa=0x30000, head="9 ", result=EIO),
    )
    assert called(trace) == [(0, False), (0, False), (errno.EIO, True)]


def test_an_older_thread_has_the_memory_of_its_process_once_the_fork_returned() -> None:
    trace = trace_of(
        KVM,
        region(),
        f"7 {_FORK} <unfinished ...>",
        region(1, gpa=0x20000, head="8 "),
        "7 <... clone resumed>, child_tidptr=0x7f00) = 9",
        "8 munmap(0x7f0000000000, 8192) = 0",
    )
    (vm,) = trace.vms
    assert isinstance([*vm.calls][-1], MemoryChange)


def test_children_of_two_threads_at_the_same_time_are_each_known_in_the_end() -> None:
    trace = trace_of(
        KVM,
        f"7 {_THREAD}) = 8",
        f"7 {_FORK} <unfinished ...>",
        f"8 {_THREAD} <unfinished ...>",
        region(head="9 ", result=EIO),
        region(1, gpa=0x20000, head="10 "),
        "7 <... clone resumed>, child_tidptr=0x7f00) = 9",
        "8 <... clone3 resumed> => {parent_tid=[10]}, 88) = 10",
        region(2, gpa=0x30000, head="9 ", result=EIO),
        region(3, gpa=0x40000, head="10 "),
    )
    assert called(trace) == [(errno.EIO, True), (0, False), (errno.EIO, True), (0, False)]


@pytest.mark.parametrize("ends", ["= -1 EAGAIN (Resource temporarily unavailable)", "= ?"])
def test_a_fork_that_fails_has_no_child(ends: str) -> None:
    trace = trace_of(
        KVM,
        f"7 {_FORK} <unfinished ...>",
        f"7 <... clone resumed>) {ends}",
        '8 execve("/bin/true", ["true"], 0x7ffc) = 0',
        region(),
    )
    assert called(trace) == [(0, False)]


def test_without_o_a_process_has_a_pid_only_while_there_are_others() -> None:
    trace = trace_of(
        "ioctl(3, KVM_CREATE_VM, 0) = 8",
        region(head=""),
        "vfork( <unfinished ...>",
        '[pid  9] execve("/bin/true", ["true"], 0x7ffc <unfinished ...>',
        "[pid  7] <... vfork resumed>) = 9",
        "[pid  7] ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=1, flags=0, guest_phys_addr=0x30000, "
        "memory_size=4096, userspace_addr=0x7f0000002000} <unfinished ...>",
        "[pid  9] <... execve resumed>) = 0",
        "[pid  9] +++ exited with 0 +++",
        "<... ioctl resumed>) = 0",
        region(2, gpa=0x20000, head=""),
    )
    assert called(trace) == [(0, False), (0, False), (0, False)]


def test_without_a_fork_in_the_trace_eio_tells_a_forked_child_and_is_no_pass() -> None:
    lines = (KVM, region(), region(1, gpa=0x20000, head="9 ", result=EIO))
    assert called(trace_of(*lines)) == [(0, False), (errno.EIO, True)]
    found = judged(replay_in(*lines))
    assert found.verdict.status is Status.INCONCLUSIVE
    assert "a forked child" in found.verdict.reason
    assert found.line is not None
    assert found.line.number == 3


@pytest.mark.parametrize("head", ["7 ", "9 "])
def test_eio_differs_for_a_thread_whose_call_was_accepted(head: str) -> None:
    lines = (region(head=head), region(1, gpa=0x20000, head=head, result=EIO))
    assert judged(replay_in(KVM, *lines)).verdict.status is Status.DIFFERS


def test_a_pid_that_is_used_again_is_of_the_last_process_that_had_it() -> None:
    once = (
        "5 close(3) = 0",
        "7 ioctl(3, KVM_CREATE_VM, 0) = 8",
        region(),
        region(size=0, head="9 "),
        *(f"{pid} +++ exited with 0 +++" for pid in (9, 7, 5)),
    )
    trace = trace_of(*once * 3)
    assert [len(vm.calls) for vm in trace.vms] == [2, 2, 2]


@pytest.mark.parametrize("name", ["clone", "clone3"])
def test_a_clone_that_does_not_say_yet_what_is_shared_makes_no_forked_child(name: str) -> None:
    flags = _THREAD.partition("(")[2] if name == "clone3" else "flags=CLONE_VM|CLONE_FILES"
    trace = trace_of(
        KVM,
        f"7 {name}( <unfinished ...>",
        region(head="9 "),
        f"7 <... {name} resumed>{flags}) = 9",
        region(size=0, head="9 "),
    )
    assert called(trace) == [(0, False), (0, False)]


def test_a_thread_that_no_clone_names_is_of_the_vms_process_after_its_own_clones() -> None:
    vm = KVM.replace("7 ", "8 ")
    lines = (f"7 {_FORK}) = 8", '8 execve("/proc/self/exe", [], 0) = 0', vm, f"8 {_THREAD}) = 2")
    trace = trace_of("7 close(4) = 0", *lines, f"10 {_THREAD}) = 3", region(head="10 "))
    assert [(vm.line, len(vm.calls), vm.began_before) for vm in trace.vms] == [(4, 1, False)]


def test_a_child_in_another_namespace_is_known_where_strace_translates_its_pid() -> None:
    trace = trace_of(
        KVM,
        region(),
        f"7 {_FORK}) = 2 /* 9 in strace's PID NS */",
        region(1, gpa=0x20000, head="9 ", result=EIO),
    )
    assert called(trace) == [(0, False), (errno.EIO, True)]
    assert not any(isinstance(call, Region) and call.is_guessed for call in trace.vms[0].calls)
