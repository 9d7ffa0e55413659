"""strace's lines: every spelling that its options give a call is the same call."""

import errno

import pytest

from vmm.replay.syntax import Called, Exited, Joiner, Unparsed, file_of, number_of, split

_CALL = "ioctl(4, KVM_CREATE_VM, 0)"


def items(*lines: str) -> list[object]:
    joiner = Joiner()
    found = [joiner.item(number, line) for number, line in enumerate(lines, 1)]
    return [item for item in found if item is not None]


def called(*lines: str) -> Called:
    (item,) = items(*lines)
    assert isinstance(item, Called)
    return item


@pytest.mark.parametrize(
    ("head", "pid"),
    [
        ("", 0),
        ("9320  ", 9320),
        ("[pid  9320] ", 9320),
        ("[pid 9320<qemu-system-x86>] ", 9320),
        ("9320<qemu-system-x86>  ", 9320),
        ("9320  12:00:01 ", 9320),
        ("12:00:01.000123 ", 0),
        ("[pid 9320] 12:00:01.000123456 (+     0.000012) ", 9320),
        ("9320  1700000000.123456 ", 9320),
        ("9320  1700000000 ", 9320),
        ("1700000000 ", 0),
        ("     0.000012 ", 0),
        ("9320<vmm>      0.000012 ", 9320),
        ("9320  2026-11-27T01:02:03.000001+0000 ", 9320),
        ("9320 01:10:23.340768 [  16] [00007f1786f7ad6b] ", 9320),
        ("9320 [????????????????] ", 9320),
        ("> 9320  12:00:01 ", 9320),
        (">> | [pid 9320] ", 9320),
        ("Nov 27 21:00:00 host strace[99]: 9320  ", 9320),
        ("2026-11-27T21:00:00+0000 host qemu-kvm[99]: [pid 9320] ", 9320),
        ("2026-11-27T21:00:00.123456789Z 9320  ", 9320),
        ("2026-11-27T21:00:00.123456789Z ", 0),
        ("Nov 27 21:00:00 9320  12:00:01 ", 9320),
        ("21:00:00.123 9320  ", 9320),
        ("17:9320  ", 9320),
        ("17:12:00:01.000123 ", 0),
        ("q35.strace:9320  ", 9320),
        ("q35.strace:17:[pid  9320] ", 9320),
        ("    17\t9320  ", 9320),
    ],
)
def test_what_stands_in_front_of_a_call(head: str, pid: int) -> None:
    call = called(f"{head}{_CALL} = 8")
    assert (call.pid, call.name, call.arguments) == (pid, "ioctl", "4, KVM_CREATE_VM, 0")
    assert (call.returned, call.error) == (8, 0)


@pytest.mark.parametrize(
    ("tail", "returned", "error"),
    [
        (" = 8", 8, 0),
        ("        = 8<anon_inode:kvm-vm>", 8, 0),
        (" = 0x7f0000001000 <0.000123>", 0x7F0000001000, 0),
        (" = -1 EINVAL (Invalid argument)", -1, errno.EINVAL),
        (" = -1 EINVAL (Invalid argument) <0.000012>", -1, errno.EINVAL),
        (" = ? ERESTARTSYS (To be restarted if SA_RESTART is set)", None, 0),
        (" = ?", None, 0),
    ],
)
def test_what_stands_after_a_call(tail: str, returned: int | None, error: int) -> None:
    call = called(_CALL + tail)
    assert (call.returned, call.error) == (returned, error)


def test_a_result_that_strace_made_up_is_marked() -> None:
    assert called(f"{_CALL} = 0 (INJECTED)").is_injected
    assert not called(f"{_CALL} = 0").is_injected


def test_what_is_resumed_is_one_call_with_the_lines_of_both() -> None:
    call = called(
        "7 ioctl(4, KVM_CREATE_VM <unfinished ...>",
        "8 --- SIGUSR1 {si_signo=SIGUSR1} ---",
        "7 <... ioctl resumed>, 0) = 9",
    )
    assert (call.begin, call.number, call.pid) == (1, 3, 7)
    assert (call.arguments, call.returned) == ("4, KVM_CREATE_VM, 0", 9)


def test_calls_of_two_threads_are_not_mixed_up() -> None:
    found = items(
        "7 munmap(0x1000, 4096 <unfinished ...>",
        "8 munmap(0x2000, 4096 <unfinished ...>",
        "7 <... munmap resumed>)      = 0",
        "8 <... munmap resumed>)      = -1 EINVAL (Invalid argument)",
    )
    assert [(each.pid, each.error) for each in found if isinstance(each, Called)] == [
        (7, 0),
        (8, errno.EINVAL),
    ]


def test_what_began_before_the_trace_is_nothing() -> None:
    assert items("7 <... ioctl resumed>) = 0") == []


def test_a_line_that_is_cut_off_is_said_to_be() -> None:
    (item,) = items("7 ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=0, fla")
    assert isinstance(item, Unparsed)
    assert item.name == "ioctl"


def test_an_end_and_other_lines() -> None:
    (item,) = items(
        "7 +++ exited with 0 +++",
        "strace: Process 8 attached",
        " > /lib/libc.so.6(ioctl+0x3b) [0x1]",
    )
    assert item == Exited(1, 7)


def test_arguments_are_taken_apart_outside_of_brackets_and_quotes() -> None:
    assert split('3, {a=1, b=[2, 3]}, "x, \\", y", _IOC(_IOC_WRITE, 0xae)') == [
        "3",
        "{a=1, b=[2, 3]}",
        '"x, \\", y"',
        "_IOC(_IOC_WRITE, 0xae)",
    ]


@pytest.mark.parametrize("fd", ["4", "4<anon_inode:kvm-vm>", "4</dev/kvm<char 10:232>>"])
def test_a_file_may_be_decorated(fd: str) -> None:
    found = file_of(f"{fd}, KVM_RUN, 0")
    assert found is not None
    assert (found[0], found[2].strip()) == (4, "KVM_RUN, 0")


@pytest.mark.parametrize(
    ("text", "number"),
    [("NULL", 0), ("0x10", 16), ("10", 10), ("010", 8), ("0x2 /* A|B */", 2), ("FOO", None)],
)
def test_numbers(text: str, number: int | None) -> None:
    assert number_of(text) == number
