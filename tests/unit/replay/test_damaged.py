"""Lines that were cut off, joined or overwritten: the call on them may have changed slots."""

import time
from pathlib import Path

import pytest

from tests.traced import EINVAL, KVM, region, replay_in, trace_of
from vmm.replay.build import Replay
from vmm.replay.judging import judged
from vmm.replay.reader import read_trace
from vmm.replay.syntax import Joiner
from vmm.replay.trace import JOINED, Region, Unread
from vmm.verdict.judge import Status

_CALL = region(1, gpa=0x20000)


def kinds(*lines: str) -> list[type]:
    return [type(call) for call in trace_of(KVM, region(), *lines).vms[0].calls]


@pytest.mark.parametrize("head", ["7 ", ""])
def test_a_call_that_was_cut_off_and_joined_to_the_next_is_read_nowhere(head: str) -> None:
    following = region(1, gpa=0x20000, head=head)
    for at in range(len("7 ioctl(8, KVM_SET_USER_"), len(_CALL) - len(") = 0")):
        assert kinds(f"{_CALL[:at]}{following}") == [Region, Unread], _CALL[:at]


def test_an_error_without_its_name_is_no_result() -> None:
    whole = region(1, gpa=0x20000, result=EINVAL)
    for at in range(whole.index("-1"), whole.index("EINVAL") + len("EINVAL")):
        assert kinds(whole[:at]) == [Region, Unread], whole[:at]


@pytest.mark.parametrize("damage", ["\\xff", "\\x01\\x02", "~"])
def test_a_request_that_is_damaged_within_its_name_may_be_one_on_slots(damage: str) -> None:
    begin = len("7 ioctl(8, KVM_SET_U")
    for at in range(begin, _CALL.index("_REGION")):
        assert kinds(f"{_CALL[:at]}{damage}{_CALL[at + 1 :]}") == [Region, Unread], _CALL[:at]


def test_another_request_is_not_taken_for_one_on_slots() -> None:
    assert kinds("7 ioctl(8, KVM_SET_GSI_ROUTING, 0x7ffd) = 0") == [Region]


def test_what_a_file_system_has_lost_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    lost = "\0" * 4096
    path.write_text(f"{KVM}\n{region()}\n{_CALL[:30]}{lost}{_CALL[30:]}\n{lost}\n")
    assert [type(call) for call in read_trace(path).vms[0].calls] == [Region, Region]


@pytest.mark.parametrize(
    "other",
    [
        "7 <... ioctl resumed>, 0) = 0",
        "7 futex(0x7ffd, FUTEX_WAIT_PRIVATE, 0, NULL) = 0",
        "9 <... futex resumed>) = 0",
    ],
)
def test_a_call_that_stands_within_another_one_may_have_changed_slots(other: str) -> None:
    for at in range(other.index(" re" if "<" in other else "0x"), len(other)):
        assert kinds(f"{other[:at]}{_CALL}") == [Region, Unread], other[:at]


def test_a_call_that_another_one_was_written_into_may_have_changed_slots() -> None:
    other = "9 ioctl(3</dev/kvm>, KVM_CHECK_EXTENSION, KVM_CAP_EXT_CPUID) = 1"
    for at in range(len("7 ioctl(8, KVM_SET_USER_"), len(_CALL) - len(") = 0")):
        assert kinds(f"{_CALL[:at]}{other}{_CALL[at:]}") == [Region, Unread], _CALL[:at]


def test_a_request_that_a_warning_was_written_into_may_be_one_on_slots() -> None:
    for at in range(len("7 ioctl(8, KVM_SET_U"), _CALL.index("_REGION")):
        lines = (f"{_CALL[:at]}warning: x", _CALL[at:])
        assert kinds(*lines) == [Region, Unread], _CALL[:at]


@pytest.mark.parametrize("at", range(len("ioctl(")))
def test_a_call_whose_own_name_is_damaged_may_be_one_on_slots(at: int) -> None:
    begin = len("7 ") + at
    assert kinds(f"{_CALL[:begin]}\\xed{_CALL[begin + 1 :]}") == [Region, Unread]


@pytest.mark.parametrize("flags", ["KVM_warning: xMEM_READONLY", "0x2warning: x", "KVM_MEM_R"])
def test_flags_that_are_damaged_are_not_taken_for_none(flags: str) -> None:
    assert kinds(region(1, gpa=0x20000, flags=flags)) == [Region, Unread]


def test_a_mark_at_the_beginning_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(b"\xef\xbb\xbf" + f"{KVM}\n{region()}\n".encode())
    assert not read_trace(path).vms[0].began_before


def test_a_call_that_a_program_has_printed_is_none() -> None:
    assert kinds(f'7 write(1, "{_CALL}", 99) = 99') == [Region]


@pytest.mark.parametrize(
    "head", ["7", "7 ", "7<qemu-sys", "[pid  7", "7<x> 12:00:01.5 [  16] [00fe"]
)
def test_a_difference_after_a_line_without_its_call_is_none_for_certain(head: str) -> None:
    lines = [KVM, region(), head, region(1, gpa=0x20000, size=0)]
    found = judged(replay_in(*lines))
    assert found.verdict.status is Status.INCONCLUSIVE
    assert found.verdict.reason == "line 3 is cut off: which call it had is not known"
    lines[2], lines[3] = lines[3], lines[2]
    assert judged(replay_in(*lines)).verdict.status is Status.DIFFERS
    assert judged(replay_in(*lines[:2], head)).verdict.status is Status.PASSED


_AGAIN = region(0, 0x30000, hva=0x7E0000000000)


@pytest.mark.parametrize(
    ("lines", "line", "doubt"),
    [
        (("7 <... ioctl resumed>) = 0",), 4, "ends a call that began on a line that is lost"),
        (("97 close(5) = 0",), 0, ""),
        (("97 close(5) = 0", "98 close(5) = 0", "9798 close(6) = 0"), 6, "begins with two pids"),
        (("97 close(5) = 0", "99798 close(6) = 0", "98 close(6) = 0"), 0, ""),
        (("97 close(5) = 0", "997 close(6) = 0"), 5, "begins with two pids"),
        (("97 close(5) = 0", "997 close(6) = 0", "997 close(7) = 0"), 0, ""),
        (("7 <... ioctl resumed>, 0) = 0",), 0, ""),
        (("9 <... ioctl resumed>) = 0",), 0, ""),
        (("7 ioctl(5, TCGETS, {c_iflag=0} <unfinished ...>", "7 <... ioctl resumed>) = 0"), 0, ""),
        (("7 ioctl(9, KVM_RUN <unfinished ...>", "7 <... ioctl resumed>, 0) = 0"), 0, ""),
        (("7 <... futex resumed>) = 0",), 0, ""),
    ],
)
def test_a_difference_after_a_line_that_shows_a_loss_is_none_for_certain(
    lines: tuple[str, ...], line: int, doubt: str
) -> None:
    found = judged(replay_in(KVM, region(), region(1, 0x20000), *lines, _AGAIN))
    if not doubt:
        assert found.verdict.status is Status.DIFFERS, found
        return
    assert found.verdict.status is Status.INCONCLUSIVE, found
    assert found.verdict.reason.startswith(f"line {line} {doubt}")


@pytest.mark.parametrize("head", ["18", "kv", "kvm"])
def test_an_event_that_is_cut_off_before_its_name_leaves_a_doubt(head: str) -> None:
    event = "kvm_set_user_memory Slot#{} flags=0x0 gpa=0x0 size=0x{} ua=0x7f0000000000 ret=0"
    lines = [event.format(0, "1000"), head, event.format(1, "0")]
    found = judged(replay_in(*lines))
    assert found.verdict.status is Status.INCONCLUSIVE
    assert judged(replay_in(lines[0], lines[2], head)).verdict.status is Status.DIFFERS


def test_many_pids_take_no_time_that_grows_with_their_square() -> None:
    joiner = Joiner()
    pids = (*range(1_000_000, 2_800_000, 31), *range(10, 100))
    for number, pid in enumerate(pids, 1):
        joiner.item(number, f"{pid} +++ exited with 0 +++")
    begun_s = time.process_time()
    assert [why for _, why in joiner.lacking()] == [JOINED]
    assert time.process_time() - begun_s < 10


@pytest.mark.parametrize("what", [b"\0\0\0", b"\xff\xfe9"])
def test_what_differs_after_a_line_with_bytes_of_no_text_is_in_doubt(
    what: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "trace"
    lines = [KVM, region(0), "7 close(5) = 0", region(0), region(9, size=0)]
    whole = "\n".join(lines).encode()
    path.write_bytes(whole)
    statuses = []
    for text in (whole, whole.replace(b"close(5)", b"cl" + what)):
        path.write_bytes(text)
        trace = read_trace(path)
        statuses.append(judged(Replay(trace, trace.vms[0])).verdict)
    assert [each.status for each in statuses] == [Status.DIFFERS, Status.INCONCLUSIVE]
    assert statuses[1].reason == "line 3 has bytes of no text: what stood there is lost"


def test_other_languages_are_text(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text("\n".join([KVM, "7 # \u00ab\u4f60\u597d\u00bb", region(9, size=0)]))
    trace = read_trace(path)
    assert judged(Replay(trace, trace.vms[0])).verdict.status is Status.DIFFERS


@pytest.mark.parametrize(
    "line",
    [
        "lot=1, flags=0, guest_phys_addr=0x20000, memory_size=8192, userspace_addr=0x7f}) = 0",
        ") = 0",
        "= 0",
        " 0",
        "7 ioctl(3, KVM_CHECK_EXTENSION, KVM_CAP_PIT2) = 1KVM_CAP_IRQFD) = 1",
        "7 ioctl(3, KVM_CHECK_EXTENSION, KVM_CAP_PIT2) = 0 = 0",
        "7 ioctl(8, KVM_CREATE_DEVICE, KVM_flags=0, memory_size=655360}) = 0",
        "7 7 ioctl(3, KVM_CHECK_EXTENSION, KVM_CAP_PIT2) = 1",
        "7 ioct9 madvise(0x562cb665f000, 4096, MADV_DONTNEED) = 0",
        "7 ioct9 futex(0x7ffd, FUTEX_WAKE_PRIVATE, 1) = 0",
        "ctl(12, TCGETS, 0x7ffd) = 0",
    ],
)
def test_a_line_that_is_torn_leaves_a_doubt(line: str) -> None:
    lines = [KVM, region(), line, region(1, size=0), region(2, size=0)]
    found = judged(replay_in(*lines))
    assert found.verdict.status is Status.INCONCLUSIVE, found
    assert found.verdict.reason.startswith("line 3 ")
    assert judged(replay_in(*lines[:2], *lines[3:])).verdict.status is Status.DIFFERS
    assert judged(replay_in(*lines[:3])).verdict.status is Status.PASSED


@pytest.mark.parametrize(
    "line",
    [
        _CALL.replace("ioctl", "octl"),
        _CALL.replace("0x20000,", "0x2ot=5, flags=0, guest_phys_addr=0x20000,"),
        _CALL.replace("guest_phys", "{slot=3, guest_phys"),
        _CALL.replace("KVM_SET_USER", "KR"),
        _CALL.replace("ioctl(8", "ioctl(3, KVM_CHEtl(8"),
    ],
)
def test_a_call_on_a_slot_that_is_torn_is_read_nowhere(line: str) -> None:
    assert kinds(line) == [Region, Unread]


def test_a_deletion_whose_line_stands_twice_is_in_doubt() -> None:
    gone = region(size=0)
    for head in ("7 ", "7 12:00:01.25 "):
        lines = [KVM, region(), *[region(size=0, head=head)] * 2]
        found = judged(replay_in(*lines))
        assert found.verdict.status is Status.INCONCLUSIVE
        assert found.verdict.reason == "line 4 is the one before once more: it may stand twice"
    for between in (region(1, 0x20000), "7 close(5) = 0"):
        found = judged(replay_in(KVM, region(), gone, between, gone))
        assert found.verdict.status is Status.DIFFERS
    timed = [region(size=0, head=f"7 12:00:01.2{digit} ") for digit in "56"]
    assert judged(replay_in(KVM, region(), *timed)).verdict.status is Status.DIFFERS
