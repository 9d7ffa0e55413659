"""What is understood of strace's output: VMs, processes, calls, and the memory of slots."""

import errno
import gzip
import html
import os
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.traced import EINVAL, KVM, TRACES, content_of, region, trace_of
from vmm.replay.lines import MAX_LINE_BYTES, Numbered
from vmm.replay.numbers import literal
from vmm.replay.reader import read_trace
from vmm.replay.trace import Line, MemoryChange, Region, Trace, TraceError, Unread, VmCall

HVA = 0x7F0000000000
REGION = Region


def calls(trace: Trace) -> list[object]:
    (vm,) = trace.vms
    return list(vm.calls)


def changes(*lines: str) -> list[tuple[str, int, int]]:
    found = calls(trace_of(KVM, *lines))
    return [(each.how, each.start, each.size) for each in found if isinstance(each, MemoryChange)]


def read(line: str) -> tuple[int, int, int, int, int, int, bool]:
    call = calls(trace_of(KVM, line))[0]
    assert isinstance(call, Region)
    return (
        call.slot,
        call.flags,
        call.guest_phys_addr,
        call.memory_size,
        call.userspace_addr,
        call.errno,
        call.second_form,
    )


def test_a_call_with_all_that_it_says() -> None:
    line = region(65537, 0xFFFC0000, 262144, HVA, "KVM_MEM_READONLY|0x1", EINVAL)
    assert read(line) == (65537, 3, 0xFFFC0000, 262144, HVA, errno.EINVAL, False)


@pytest.mark.parametrize(
    "name",
    [
        "KVM_SET_USER_MEMORY_REGION",
        "0x4020ae46",
        "0x4020ae46 /* KVM_SET_USER_MEMORY_REGION */",
        "_IOC(_IOC_WRITE, 0xae, 0x46, 0x20)",
        "0x4020ae46 /* _IOC(_IOC_WRITE, 0xae, 0x46, 0x20) */",
    ],
)
@pytest.mark.parametrize("flags", ["KVM_MEM_READONLY", "0x2", "0x2 /* KVM_MEM_READONLY */"])
def test_every_name_of_a_request(name: str, flags: str) -> None:
    assert read(region(1, flags=flags, name=name)) == (1, 2, 0x10000, 0x2000, HVA, 0, False)


@pytest.mark.parametrize("name", ["0xaea3", "_IOC(_IOC_NONE, 0xae, 0xa3, 0)", "KVM_GET_TSC_KHZ"])
def test_a_request_with_the_number_of_another_is_not_that_one(name: str) -> None:
    trace = trace_of(KVM, region(), f"7 ioctl(8, {name}, 0) = 2500000")
    assert trace.passed_over == {}
    assert not trace.vms[0].enables_unseen


def test_the_second_form_with_its_guest_memfd() -> None:
    line = region(name="KVM_SET_USER_MEMORY_REGION2", flags="KVM_MEM_GUEST_MEMFD").replace(
        "}", ", guest_memfd_offset=0x1000, guest_memfd=11}"
    )
    (call,) = calls(trace_of(KVM, line))
    assert isinstance(call, Region)
    assert (call.second_form, call.flags, call.guest_memfd) == (True, 4, 11)
    assert call.guest_memfd_offset == 0x1000


def test_a_pointer_says_too_little_unless_the_errno_says_enough() -> None:
    trace = trace_of(
        KVM,
        region(),
        "7 ioctl(8, _IOC(_IOC_WRITE, 0xae, 0x49, 0xa0), 0x7ffd0da8ebc0) = 0",
        "7 ioctl(8, 0x4098ae49, 0x7ffd0da8ebc0) = -1 EINVAL (Invalid argument)",
        "7 ioctl(8, 0x4098ae49, 0x7ffd0da8ebc0) = -1 ENOTTY (Inappropriate ioctl for device)",
        "7 ioctl(8, KVM_SET_USER_MEMORY_REGION, 0x10) = -1 EFAULT (Bad address)",
    )
    _, changed, refused, unknown, fault = calls(trace)
    assert isinstance(changed, Unread)
    assert changed.may_change
    assert isinstance(refused, Unread)
    assert not refused.may_change
    assert isinstance(unknown, Region)
    assert (unknown.errno, unknown.second_form) == (errno.ENOTTY, True)
    assert isinstance(fault, Region)
    assert not fault.is_readable


def test_a_call_without_its_end_is_not_read() -> None:
    cut = region()[:60]
    killed = region(result="?")
    made_up = region(result="0 (INJECTED)")
    never_resumed = region(head="9 ").replace(") = 0", " <unfinished ...>")
    found = calls(trace_of(KVM, region(), cut, killed, made_up, never_resumed))
    whole, *rest = found
    assert isinstance(whole, Region)
    assert [type(each) for each in rest] == [Unread] * 4
    assert [each.may_change for each in rest if isinstance(each, Unread)] == [
        True,
        True,
        False,
        True,
    ]


def test_a_call_that_is_cut_off_anywhere_may_have_changed_slots() -> None:
    whole = region()
    for end in range(len("9 "), len(whole) - len(" = 0")):
        *_, last = calls(trace_of(KVM, whole, f"{whole[:end]} <unfinished ...>"))
        assert isinstance(last, Unread), whole[:end]
        assert last.may_change


@pytest.mark.parametrize(
    "cut",
    [
        "9 ioctl(8, KVM_IRQ_LINE, 0x7ff",
        "9 ioctl(8, KVM_IRQ",
        "9 ioctl(5, KVM_SET_USER_MEM",
        "9 munmap(0x10",
        "9 futex(0x7f00",
    ],
)
def test_a_call_that_is_cut_off_and_not_on_slots_says_nothing(cut: str) -> None:
    found = calls(trace_of(KVM, region(), f"{cut} <unfinished ...>"))
    assert [type(each) for each in found] == [Region]


def test_threads_that_the_trace_does_not_introduce_use_the_file_of_their_process() -> None:
    trace = trace_of(KVM, region(head="9 "), "7 ioctl(8, KVM_SET_TSS_ADDR, 0xfffbd000) = 0")
    assert [type(each) for each in calls(trace)] == [Region, VmCall]


def test_two_processes_with_the_same_fd_have_two_vms() -> None:
    trace = trace_of(
        KVM,
        region(1),
        "20 ioctl(3, KVM_CREATE_VM, 0) = 8",
        region(2, head="20 "),
        region(3, head="9 "),
        region(4, head="21 "),
    )
    slots = [[call.slot for call in vm.calls if isinstance(call, Region)] for vm in trace.vms]
    assert slots == [[1, 3], [2, 4]]


def test_a_fork_has_the_vm_but_not_its_memory_and_a_thread_has_both() -> None:
    trace = trace_of(
        KVM,
        region(),
        "7 clone3({flags=CLONE_VM|CLONE_FS|CLONE_FILES|CLONE_THREAD, exit_signal=0} => "
        "{parent_tid=[9]}, 88) = 9",
        "7 clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|SIGCHLD) = 10",
        region(1, head="9 "),
        region(2, head="10 ", result="-1 EIO (Input/output error)"),
    )
    foreign = [call.is_foreign for call in calls(trace) if isinstance(call, Region)]
    assert foreign == [False, False, True]


def test_a_thread_that_is_not_introduced_is_no_forked_child() -> None:
    trace = trace_of(KVM, "7 fork() = 20", region(head="30 "))
    (call,) = calls(trace)
    assert isinstance(call, Region)
    assert not call.is_foreign


def test_a_file_that_is_closed_and_one_that_is_duplicated() -> None:
    trace = trace_of(
        KVM,
        region(),
        "7 dup(8) = 12",
        region(1, fd="12"),
        "7 close(8) = 0",
        "7 ioctl(3, KVM_CREATE_VM, 0) = 8",
        region(2),
    )
    slots = [[call.slot for call in vm.calls if isinstance(call, Region)] for vm in trace.vms]
    assert slots == [[0, 1], [2]]


def test_a_vm_that_is_older_than_the_trace() -> None:
    (vm,) = trace_of(region(fd="8<anon_inode:kvm-vm>")).vms
    assert vm.began_before


def test_what_the_kernel_can_do_is_kept_by_vm() -> None:
    trace = trace_of(
        "7 ioctl(3, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS) = 509",
        KVM,
        "7 ioctl(8, KVM_CHECK_EXTENSION, 0x76 /* KVM_CAP_MULTI_ADDRESS_SPACE */) = 2",
        region(),
    )
    assert trace.vms[0].capabilities == {10: 509, 118: 2}


def test_what_the_host_does_to_the_memory_of_slots_takes_part() -> None:
    assert changes(
        f"7 munmap({HVA:#x}, 8192) = 0",
        region(size=0x4000),
        f"7 madvise({HVA:#x}, 8192, MADV_DONTNEED) = 0",
        f"7 madvise({HVA + 0x1000:#x}, 4096, 0x9 /* MADV_REMOVE */) = 0",
        f"7 mprotect({HVA:#x}, 4096, PROT_NONE) = 0",
        f"7 mprotect({HVA:#x}, 4096, PROT_READ|PROT_WRITE) = 0",
        f"7 munmap({HVA:#x}, 4096) = 0",
        f"7 mmap({HVA:#x}, 4096, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_FIXED|MAP_ANONYMOUS, -1, 0)"
        f" = {HVA:#x}",
        f"7 munmap({HVA + 0x4000:#x}, 4096) = 0",
        f"7 munmap({HVA:#x}, 4096) = -1 EINVAL (Invalid argument)",
    ) == [
        ("drop", HVA, 8192),
        ("punch", HVA + 0x1000, 4096),
        ("forbid", HVA, 4096),
        ("allow", HVA, 4096),
        ("unmap", HVA, 4096),
        ("map", HVA, 4096),
    ]


def test_a_hole_in_a_file_is_one_wherever_the_file_is_mapped() -> None:
    assert changes(
        '7 memfd_create("ram", MFD_CLOEXEC) = 5',
        f"7 mmap(NULL, 16384, PROT_READ|PROT_WRITE, MAP_SHARED, 5, 0x2000) = {HVA:#x}",
        region(size=0x4000),
        "7 fallocate(5, FALLOC_FL_KEEP_SIZE|FALLOC_FL_PUNCH_HOLE, 0x1000, 0x2000) = 0",
    ) == [("punch", HVA, 0x1000)]


@pytest.mark.parametrize(
    ("flags", "fd", "kind"),
    [
        ("MAP_PRIVATE|MAP_ANONYMOUS", "-1", "anonymous"),
        ("MAP_SHARED|MAP_ANONYMOUS", "-1", "shared"),
        ("MAP_SHARED", "5</memfd:ram (deleted)>", "memfd"),
        ("MAP_PRIVATE|MAP_ANONYMOUS|MAP_HUGETLB|21<<MAP_HUGE_SHIFT", "-1", "hugetlb"),
        ("MAP_SHARED", "5</dev/hugepages/qemu.A (deleted)>", "hugetlb"),
        ("0x22", "-1", "anonymous"),
    ],
)
def test_the_kind_of_memory(flags: str, fd: str, kind: str) -> None:
    trace = trace_of(
        KVM,
        f"7 mmap(NULL, 2097152, PROT_READ|PROT_WRITE, {flags}, {fd}, 0) = {HVA:#x}",
        region(size=0x200000),
    )
    assert [each.kind for each in trace.vms[0].memory] == [kind]


def test_calls_that_say_too_little_are_named_and_counted() -> None:
    trace = trace_of(KVM, region(), *["7 ioctl(8, KVM_GET_DIRTY_LOG, 0x7ffd0da8ebc0) = 0"] * 3)
    assert trace.passed_over["KVM_GET_DIRTY_LOG"] == 3
    assert trace.first_lines["KVM_GET_DIRTY_LOG"] == 3


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "empty"),
        (["\x07evil", "more"], "begins with '\\\\x07evil'"),
        (["7 close(3) = 0"], "no call on a memslot"),
        ([KVM, "7 ioctl(8, 0x4098ae49, 0x7ffd0da8ebc0) = 0"], "trace:2: no call on a memslot can"),
    ],
)
def test_what_nothing_can_be_made_of(lines: list[str], says: str) -> None:
    with pytest.raises(TraceError) as error:
        trace_of(*lines)
    assert says in str(error.value)
    assert str(error.value).isprintable()


def test_colours_and_carriage_returns_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    text = f"\x1b[32m{KVM}\x1b[0m\r\n\x1b[1m{region()}\x1b[m\r\n"
    file.write_bytes(text.encode())
    assert len(calls(read_trace(file))) == 1


def test_a_line_without_end_is_cut_and_the_next_has_its_number(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_bytes(b"x" * (3 * MAX_LINE_BYTES) + b"\n" + KVM.encode())
    with file.open("rb") as stream:
        found = list(Numbered(stream))
    assert [(number, len(line)) for number, line in found] == [(1, MAX_LINE_BYTES), (2, len(KVM))]


def test_a_number_that_is_none_leaves_a_call_unread(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_text(f"{KVM}\n{region()}\n{region().rpartition('=')[0]}= {'1' * 5000}\n")
    first, second = calls(read_trace(file))
    assert (type(first), type(second)) == (Region, Unread)


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("-1", -1), ("0x1F", 31), ("-0x10", -16), ("0644", 0o644), ("089", 89), ("00", 0)],
)
def test_numbers_are_read_as_c_has_them(text: str, number: int) -> None:
    assert literal(text) == number


def test_a_pipe_is_no_trace(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(TraceError, match="pipe: a pipe, not a file"):
        read_trace(pipe)


def test_a_packed_trace_reads_like_the_plain_one(tmp_path: Path) -> None:
    plain = TRACES / "qemu-q35-seabios.strace"
    packed = tmp_path / "trace.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert content_of(read_trace(packed)) == {**content_of(read_trace(plain)), "name": str(packed)}


def test_a_packed_trace_that_is_cut_off(tmp_path: Path) -> None:
    packed = tmp_path / "trace.gz"
    packed.write_bytes(gzip.compress((TRACES / "qemu-q35-seabios.strace").read_bytes())[:-900])
    with pytest.raises(TraceError, match=r"trace\.gz: .* cut off after line 19"):
        read_trace(packed)


def test_strace_s_own_notice_within_a_line_is_taken_out() -> None:
    whole = region(head="[pid 7] ")
    call, result = whole.rsplit(")", 1)
    for rest in ([f"){result}"], [" <unfinished ...>", f"[pid 7] <... ioctl resumed>){result}"]):
        notices = [f"{call}strace: Process 8 attached", "strace: Process 9 attached"]
        (vm,) = trace_of("[pid 7] " + KVM[2:], *notices, *rest).vms
        (found,) = vm.calls
        assert isinstance(found, Region)
        assert (found.slot, found.errno) == (0, 0)


@pytest.mark.parametrize("end", [") = 0", " <unfinished ...>"])
def test_a_line_that_is_whole_before_a_notice_takes_no_other_along(end: str) -> None:
    noticed = f"7 ioctl(3, KVM_CHECK_EXTENSION, KVM_CAP_HYPERV{end}strace: Process 8 attached"
    (vm,) = trace_of(KVM, noticed, region()).vms
    (found,) = vm.calls
    assert isinstance(found, Region)


def test_raw_arguments_are_counted_as_not_read() -> None:
    raw = "7 ioctl(0x8, 0x4020ae46, 0x7ffd48d32ef0) = 0"
    (vm,) = trace_of("7 ioctl(0x3, 0xae01, 0) = 0x8", raw, region(1)).vms
    assert [type(call) for call in vm.calls] == [Unread, Region]


def test_a_file_of_one_thread_says_what_joins_them() -> None:
    (note,) = trace_of(region(head="")).notes
    assert "strace-log-merge" in note


def test_a_trace_of_pointers_alone_says_so() -> None:
    with pytest.raises(
        TraceError, match=r"trace:3: no call .* here \(only a pointer is here: .*-e raw"
    ):
        trace_of(KVM, "7 ioctl(8, 0xae47, 0xfeffd000) = 0", "7 ioctl(8, 0x4020ae46, 0x7ffd0d) = 0")


def test_memory_of_a_32_bit_program_is_known() -> None:
    line = "7 mmap2(NULL, 8192, PROT_READ|PROT_WRITE, MAP_SHARED|MAP_ANONYMOUS, -1, 0) = 0xf3600000"
    (vm,) = trace_of(KVM, line, region(hva=0xF3600000)).vms
    assert [each.kind for each in vm.memory] == ["shared"]


def wrapped_at_blanks(line: str, width: int) -> list[str]:
    return textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)


def wrapped_anywhere(line: str, width: int) -> list[str]:
    return [line[at : at + width] for at in range(0, len(line), width)]


@pytest.mark.parametrize("wrap", [wrapped_at_blanks, wrapped_anywhere])
@pytest.mark.parametrize("quote", ["", "> "])
@pytest.mark.parametrize("width", [50, 72, 80, 100])
def test_lines_that_were_wrapped_are_joined(
    wrap: Callable[[str, int], list[str]], quote: str, width: int
) -> None:
    whole = [KVM, region(), region(1, gpa=0x20000, flags="KVM_MEM_READONLY"), region(result=EINVAL)]
    lines = [quote + part for line in whole for part in wrap(line, width)]
    found = calls(trace_of(*lines))
    assert [replace(call, line=Line(0, 0)) for call in found if isinstance(call, Region)] == [
        replace(call, line=Line(0, 0))
        for call in calls(trace_of(*whole))
        if isinstance(call, Region)
    ]
    first, second, _ = (call.line.number for call in found if isinstance(call, Region))
    assert (first, second) == (2, 2 + len(wrap(whole[1], width)))


def test_a_call_that_is_cut_off_does_not_swallow_the_next() -> None:
    trace = trace_of(KVM, region()[:60], region(1, gpa=0x20000), region(2)[:40], "7 close(5) = 0")
    assert [isinstance(call, Unread) for call in calls(trace)] == [True, False, True]


def test_a_call_that_does_not_begin_as_straces_is_not_passed_over() -> None:
    trace = trace_of(KVM, region(), "{log: " + region(1))
    _, call = calls(trace)
    assert isinstance(call, Unread)
    assert call.line.number == 3
    assert call.may_change


def test_calls_that_do_not_begin_as_straces_are_shown() -> None:
    with pytest.raises(TraceError, match=r"trace:2: a call on a memslot, but what .* \{log: 7"):
        trace_of("{log: " + KVM, "{log: " + region())


def test_the_tss_alone_is_no_call_on_a_slot() -> None:
    with pytest.raises(TraceError, match="2 lines of strace, and no call on a memslot: trace"):
        trace_of(KVM, "7 ioctl(8, KVM_SET_TSS_ADDR, 0xfffbd000) = 0")


def test_a_saved_web_page_is_read(tmp_path: Path) -> None:
    begun, ended = region().split(", {")
    lines = [KVM, f"{begun} <unfinished ...>", f"7 <... ioctl resumed>, {{{ended}"]
    path = tmp_path / "page.html"
    path.write_text("<pre>\n" + html.escape("\n".join(lines)) + "\n</pre>\n")
    assert len(read_trace(path).vms[0].calls) == 1


IDLE = (
    "7 ioctl(12, KVM_RUN, 0) = 0",
    "7 ioctl(8, KVM_IRQ_LINE_STATUS, 0x7ffe) = 0",
    "7 ioctl(8</dev/kvm>, KVM_SET_GSI_ROUTING, 0x7ffe) = 0 <0.000012>",
    '7 read(5, "KVM_SET_USER_MEMORY_REGION", 26) = 26',
    "8 futex(0x55, FUTEX_WAIT_PRIVATE, 2, NULL <unfinished ...>",
)


def test_what_says_nothing_of_slots_changes_nothing_wherever_it_stands() -> None:
    lines = (
        *(KVM, "7 ioctl(8, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS) = 77", region()),
        *("7 ioctl(8, KVM_SET_TSS_ADDR, 0xfffbd000) = 0", region(1, gpa=0x20000)[:60]),
        *("7 ioctl(8, KVM_ENABLE_CAP, 0x7ffe) = 0", region(2, gpa=0x40000)),
        *(region(3, gpa=0x80000)[:-4] + "strace: Process 9 attached", region(3)[-4:]),
    )
    # The last two lines are one call, and the rest of a call follows at once.
    mixed = [*(line for each in lines[:-2] for line in (*IDLE, each)), *lines[-2:], *IDLE]
    bare, trace = trace_of(*lines), trace_of(*mixed)
    assert [type(call) for call in calls(trace)] == [type(call) for call in calls(bare)]
    numbers = [call.line.number for call in calls(trace) if isinstance(call, Region)]
    assert [mixed[number - 1] for number in numbers[:2]] == [region(), region(2, gpa=0x40000)]
    assert len(numbers) == 3
    assert trace.vms[0].capabilities == bare.vms[0].capabilities
    assert trace.passed_over == bare.passed_over == {"KVM_ENABLE_CAP": 1}
    assert trace.lines == len(mixed)


def test_a_call_that_is_never_resumed_may_have_changed_slots() -> None:
    begun = region(1, gpa=0x20000)[:30] + " <unfinished ...>"
    others = (
        ["7 ioctl(8, KVM_CHECK_EXTENSION <unfinished ...>", "7 <... ioctl resumed>, 10) = 77"],
        ["7 <... close resumed>) = 0"],
        [region(1, gpa=0x20000)],
    )
    for other in others:
        _, unread, *_ = calls(trace_of(KVM, region(), begun, *other, "7 close(8) = 0"))
        assert isinstance(unread, Unread)
        assert (unread.line.number, unread.may_change) == (3, True)


def test_without_pids_a_call_is_resumed_though_another_thread_calls_meanwhile() -> None:
    head, rest = region(1, gpa=0x20000, head="").split(", guest")
    lines = [f"{head} <unfinished ...>", "close(5) = 0", f"<... ioctl resumed>, guest{rest}"]
    found = calls(trace_of(KVM[2:], region(head=""), *lines))
    assert [isinstance(call, Region) for call in found] == [True, True]


@pytest.mark.parametrize("cut", ["7 i", "7 ioc", "7 ioct", "[pid 7] io", "7 ioctl"])
def test_a_call_that_is_cut_off_within_its_name_may_have_changed_slots(cut: str) -> None:
    found = calls(trace_of(KVM, region(), cut, region(1, gpa=0x20000)))
    assert [isinstance(call, Unread) for call in found] == [False, True, False]
