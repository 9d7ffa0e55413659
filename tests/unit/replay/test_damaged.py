"""Lines that were cut off, joined or overwritten: the call on them may have changed slots."""

from pathlib import Path

import pytest

from tests.traced import EINVAL, KVM, region, trace_of
from vmm.replay.reader import read_trace
from vmm.replay.trace import Region, Unread

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
