"""What is understood of QEMU's own trace, over its versions."""

import re

import pytest

from tests.traced import trace_of
from vmm.replay.build import Replay
from vmm.replay.judging import judged
from vmm.replay.trace import Region, Unread
from vmm.verdict.judge import Status

_OLD = (
    "kvm_set_user_memory Slot#{slot} flags=0x2 gpa=0xfffc0000 size=0x40000 "
    "ua=0x7f0000000000 ret={ret}"
)
_NEW = (
    "kvm_set_user_memory AddrSpace#1 Slot#1 flags=0x2 gpa=0xfffc0000 size=0x40000 "
    "ua=0x7f0000000000 guest_memfd=-1 guest_memfd_offset=0x0 ret={ret}"
)
_SIMPLE = (
    "kvm_set_user_memory 12.345 pid=77 as=0x1 slot=0x1 flags=0x2 guest_phys_addr=0xfffc0000 "
    "memory_size=0x40000 userspace_addr=0x7f0000000000 fd=0xffffffff fd_offset=0x0 ret={ret}"
)


@pytest.mark.parametrize(
    "head",
    [
        *("", "4711@1690000000.123456:", "2026-11-27T01:02:03.4Z ", "> "),
        " qemu-system-x86-99 [001] .... 123.000001: tracing_mark_write: ",
    ],
)
@pytest.mark.parametrize(
    ("line", "refused"),
    [
        (_OLD.replace("{slot}", "65537"), "-22"),
        (_NEW, "-22"),
        (_SIMPLE, "0xffffffea"),
        (_SIMPLE, "0xffffffffffffffea"),
    ],
)
def test_every_version_says_the_same(head: str, line: str, refused: str) -> None:
    (vm,) = trace_of(head + line.replace("{ret}", "0"), head + line.replace("{ret}", refused)).vms
    done, failed = vm.calls
    assert isinstance(done, Region)
    assert isinstance(failed, Region)
    assert (done.slot, done.flags, done.guest_phys_addr) == (65537, 2, 0xFFFC0000)
    assert (done.memory_size, done.userspace_addr) == (0x40000, 0x7F0000000000)
    assert (done.errno, failed.errno, done.guest_memfd) == (0, 22, -1)


def test_a_guest_memfd_makes_it_the_second_form() -> None:
    line = _NEW.replace("{ret}", "0").replace("flags=0x2", "flags=0x4")
    (vm,) = trace_of(line.replace("guest_memfd=-1", "guest_memfd=9")).vms
    (call,) = vm.calls
    assert isinstance(call, Region)
    assert (call.second_form, call.guest_memfd) == (True, 9)


def test_each_process_has_a_vm() -> None:
    line = _SIMPLE.format(ret=0)
    other = line.replace("pid=77", "pid=78")
    assert [len(vm.calls) for vm in trace_of(line, other, line).vms] == [2, 1]


def test_a_system_log_tells_two_qemus_apart_by_their_pids() -> None:
    line = _OLD.format(slot=1, ret=0)
    logged = [f"Nov 28 12:00:01 host qemu-system-x86_64[{pid}]: {line}" for pid in (77, 78, 77)]
    assert [len(vm.calls) for vm in trace_of(*logged).vms] == [2, 1]


def timed(thread: int, slot: int, hva: int, size: int = 0x1000) -> str:
    """Return a line as `-msg timestamp=on` has it: the thread and the time are in front."""
    gpa = 0x10000 * (slot + 1)
    text = f"Slot#{slot} flags=0x0 gpa={gpa:#x} size={size:#x} ua={hva:#x} ret=0"
    return f"{thread}@1795794634.459056:kvm_set_user_memory {text}"


def test_threads_that_share_memory_are_of_one_vm() -> None:
    main = [timed(10, 0, 0x7F0000000000), timed(10, 1, 0x7F0000100000)]
    vcpu = [timed(12, 1, 0x7F0000100000, 0), timed(12, 2, 0x7F0000200000)]
    device = [timed(13, 3, 0x7F0000300000)]
    (vm,) = trace_of(*main, *vcpu, *device).vms
    assert len(vm.calls) == 5


def test_threads_of_two_qemus_in_one_log_are_told_apart() -> None:
    one, two = 0x7F0000000000, 0x7E0000000000
    first = [timed(10, 0, one), timed(12, 0, one, 0), timed(12, 0, one)]
    second = [timed(11, 0, two), timed(14, 0, two, 0), timed(14, 0, two)]
    for order in ([*first, *second], [first[0], second[0], *first[1:], *second[1:]]):
        assert [len(vm.calls) for vm in trace_of(*order).vms] == [3, 3]


def test_qemu_deletes_untold_where_readonly_changes() -> None:
    line = _OLD.format(slot=1, ret=0)
    trace = trace_of(line, line.replace("flags=0x2", "flags=0x0"))
    sizes = [call.memory_size for call in trace.vms[0].calls if isinstance(call, Region)]
    assert sizes == [0x40000, 0, 0x40000]


def test_a_line_that_is_cut_off_is_not_read() -> None:
    line = _OLD.format(slot=1, ret=0)
    trace = trace_of(line, line[:-6])
    call = [*trace.vms[0].calls][1]
    assert isinstance(call, Unread)
    assert call.why == "the line is cut off, or lacks ret"


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("width", [4, 9, 17])
def test_a_line_that_another_program_has_written_into_may_have_changed_slots(
    at: int, width: int
) -> None:
    lines = [
        f"kvm_set_user_memory Slot#{slot} flags=0x0 gpa={slot:#x}0000 size=0x1000 "
        f"ua=0x7f00000{slot}000 ret=0"
        for slot in range(3)
    ]
    lines[at] = lines[at][:width] + "warning: x" + lines[at][width:]
    (vm,) = trace_of(*lines).vms
    assert [isinstance(call, Unread) for call in vm.calls] == [each == at for each in range(3)]


@pytest.mark.parametrize("width", [5, 7, 12, 19])
def test_an_event_that_is_cut_off_within_its_name_may_have_changed_slots(width: int) -> None:
    lines = [_NEW.replace("{ret}", "0"), _NEW[:width], _NEW.replace("{ret}", "0")]
    (vm,) = trace_of(*lines).vms
    assert [isinstance(call, Unread) for call in vm.calls] == [False, True, False]


@pytest.mark.parametrize("head", ["", "12@1795794634.459056:"])
def test_an_event_that_is_cut_off_and_joined_to_the_next_may_have_changed_slots(head: str) -> None:
    lines = [timed(12, slot, 0x7F0000000000 + slot * 0x2000) for slot in range(3)]
    lines = [head + line.partition(":")[2] for line in lines]
    for width in range(len(head) + len("kvm_set"), len(lines[1]) - len("=0")):
        (vm,) = trace_of(lines[0], lines[1][:width] + lines[2]).vms
        assert any(isinstance(call, Unread) for call in vm.calls), width
        assert next(iter(vm.calls)) == next(iter(trace_of(lines[0]).vms[0].calls))


def test_two_events_in_one_line_are_both_read() -> None:
    one, two = _NEW.replace("{ret}", "0"), _NEW.replace("{ret}", "0").replace("Slot#1", "Slot#2")
    (vm,) = trace_of(one + two).vms
    assert [call.slot & 0xFFFF for call in vm.calls if isinstance(call, Region)] == [1, 2]


def test_an_event_whose_time_is_damaged_is_of_the_vm_that_has_its_memory() -> None:
    lines = [timed(10, 0, 0x7F0000000000), timed(10, 1, 0x7F0000100000)]
    damaged = timed(10, 1, 0x7F0000100000, 0).replace("10@", "\\xff")
    (vm,) = trace_of(*lines, damaged, "10@179579").vms
    kinds = [type(call) for call in vm.calls]
    assert kinds == [Region, Region, Region, Unread]


def test_a_result_that_no_call_has_is_none() -> None:
    lines = [_OLD.format(slot=slot, ret=ret) for slot, ret in ((1, 0), (2, -25256))]
    (vm,) = trace_of(*lines).vms
    assert [type(call) for call in vm.calls] == [Region, Unread]


def test_a_first_event_that_is_cut_off_is_not_passed_over() -> None:
    whole = _OLD.format(slot=1, ret=0)
    (vm,) = trace_of(whole[: whole.index("gpa=")], whole).vms
    assert [type(call) for call in vm.calls] == [Unread, Region]


def test_the_log_of_libvirt_has_no_event_but_qemu_s() -> None:
    log = (
        *("2026-11-28 06:00:01.123+0000: starting up libvirt version: 9.0.0", "LC_ALL=C \\"),
        *("/usr/bin/qemu-system-x86_64 \\", "-accel kvm", "-trace kvm_set_user_memory"),
        *("char device redirected to /dev/pts/3 (label charserial0)", _NEW.replace("{ret}", "0")),
        "2026-11-28T06:00:09.000000Z qemu-system-x86_64: terminating on signal 15 from pid 1",
    )
    (vm,) = trace_of(*log).vms
    assert [isinstance(call, Region) for call in vm.calls] == [True]


def test_two_qemus_in_a_log_without_threads_are_told_apart_by_their_memory() -> None:
    def line(slot: int, hva: int, size: int = 0x1000) -> str:
        return timed(1, slot, hva, size).partition(":")[2]

    one, two = 0x7FB100000000, 0x7F0300000000
    first = [line(0, one), line(1, one + 0x10000)]
    second = [line(0, two), line(1, two + 0x10000)]
    late = [line(2, one + 0x20000), line(2, two + 0x30000), line(0, two, 0), line(0, one, 0)]
    trace = trace_of(*first, *second, *late)
    assert [[call.line.number for call in vm.calls] for vm in trace.vms] == [
        [1, 2, 5, 8],
        [3, 4, 6, 7],
    ]
    assert trace.notes == [
        "line 3: slot 0 exists, and is made of other memory: taken for another QEMU's "
        "(-msg timestamp=on tells them apart)"
    ]


def test_what_may_be_of_another_vm_is_no_difference() -> None:
    def line(slot: int, hva: int, size: int = 0x1000) -> str:
        return timed(1, slot, hva, size).partition(":")[2]

    one, two = 0x7FB100000000, 0x7F0300000000
    trace = trace_of(line(0, one), line(0, two), line(1, two - 0x10000), line(1, two, 0))
    found = [judged(Replay(trace, vm)) for vm in trace.vms]
    assert [each.verdict.status for each in found] == [Status.PASSED, Status.PASSED]
    trace = trace_of(line(0, one), line(0, two), line(1, two - 0x10000), line(2, two, 0))
    found = [judged(Replay(trace, vm)) for vm in trace.vms]
    assert [each.verdict.status for each in found] == [Status.PASSED, Status.INCONCLUSIVE]
    assert found[1].verdict.reason == "which VM some calls are on is not in the trace"


def test_a_slot_that_was_deleted_is_made_of_other_memory_by_the_same_qemu() -> None:
    lines = [timed(1, 0, hva, size) for hva, size in ((0x7000, 0x1000), (0x7000, 0), (0x9000, 1))]
    assert len(trace_of(*(each.partition(":")[2] for each in lines)).vms) == 1


@pytest.mark.parametrize("altered", ["gpa=0xfffd0000", "size=0x20000", "ua=0x7f0000001000"])
def test_qemu_deletes_untold_only_where_nothing_but_flags_changes(altered: str) -> None:
    line = _OLD.format(slot=0, ret=0)
    name = altered.partition("=")[0]
    other = re.sub(rf"\b{name}=\w+", altered, line.replace("flags=0x2", "flags=0x0"))
    trace = trace_of(line, other)
    assert len(trace.vms[0].calls) == 2
    (difference,) = [judged(Replay(trace, vm)).verdict.difference for vm in trace.vms]
    assert difference is not None
    assert [each.rule for each in difference.expected] == ["immutable"]


def test_an_old_qemu_knows_no_guest_memfd() -> None:
    line = _OLD.format(slot=0, ret=0).replace("flags=0x2", "flags=0x4")
    trace = trace_of(line)
    found = judged(Replay(trace, trace.vms[0]))
    assert found.verdict.status is Status.DIFFERS


def qemu(slot: int, gpa: int = 0, size: int = 0x1000, end: str = "ret=0") -> str:
    return f"kvm_set_user_memory Slot#{slot} flags=0x0 gpa={gpa:#x} size={size:#x} ua=0x7f00 {end}"


@pytest.mark.parametrize("first", [qemu(3, 0x9000), qemu(0, size=0)])
def test_a_log_that_does_not_begin_with_slot_0_lacks_its_beginning(first: str) -> None:
    trace = trace_of(first, qemu(5, 0x5000, 0))
    assert trace.vms[0].began_before
    assert judged(Replay(trace, trace.vms[0])).verdict.status is Status.INCONCLUSIVE
    assert not trace_of(qemu(0)).vms[0].began_before


@pytest.mark.parametrize(
    "line",
    [
        qemu(1, 0x1000, end="ret=02732@1795794634.5:"),
        qemu(1, 0x1000) + "@1795794634.5:x",
        qemu(1, 0x1000).replace(" gpa", " gpa=0x0 gpa"),
        qemu(1, 0x1000, end="ret=00 ret=0"),
        qemu(1, 0x1000).replace(" ua=", " =0x0 ua="),
        "5256@1795794634.53806=0x7feddfec0000 ret=0",
        "kvm_s" + qemu(1, 0x1000).partition("size=0x1000")[2],
    ],
)
def test_what_two_events_have_left_may_have_changed_slots(line: str) -> None:
    (vm,) = trace_of(qemu(0), line, qemu(0, size=0)).vms
    assert [type(call) for call in vm.calls] == [Region, Unread, Region]
