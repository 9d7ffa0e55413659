"""Traces of any length: calls beyond the first ones are in a file, and are judged as a stream."""

import pytest

from tests.traced import EEXIST, EINVAL, KVM, region, replay_in, trace_of
from vmm.replay import build, judging, passes
from vmm.replay.build import Replay
from vmm.replay.judging import Judged, judged
from vmm.replay.spool import BLOCK, KEPT, Store
from vmm.replay.trace import Call, Calls, Line, Unread
from vmm.scenario.operations import SetUserMemoryRegion
from vmm.verdict.judge import Status

MANY = KEPT + 5 * BLOCK + 7
SPACES = "7 ioctl(3, KVM_CHECK_EXTENSION, KVM_CAP_MULTI_ADDRESS_SPACE) = 1"


def churned(count: int) -> list[str]:
    """Return the lines of calls that make and delete slots."""
    return [region(each // 2 % 7, size=(1 - each % 2) * 0x2000) for each in range(count)]


def many(*last: str) -> Judged:
    """Return the verdict on a trace with many calls before the last ones."""
    return judged(replay_in(KVM, *churned(MANY - MANY % 2), *last))


def test_records_come_back_in_order_as_often_as_they_are_asked_for() -> None:
    calls = Calls(Store())
    every: list[Call] = [Unread(Line(at, at, f"line {at}"), "x", "y") for at in range(MANY)]
    for call in every:
        calls.append(call)
    assert len(calls) == MANY
    assert list(calls) == list(calls) == every


def test_spools_of_one_trace_share_a_file() -> None:
    store = Store()
    spools = [Calls(store), Calls(store)]
    for at in range(MANY * 2):
        spools[at % 2].append(Unread(Line(at, at), "x", "y"))
    for number, spool in enumerate(spools):
        assert [each.line.number for each in spool] == list(range(number, MANY * 2, 2))


def test_calls_in_a_file_are_under_way_until_lines_that_are_known_later() -> None:
    calls = trace_of(KVM, *churned(MANY)).vms[0].calls
    calls.ends = {3: 9, MANY - 5: MANY}
    assert [each.line.until for each in calls if each.line.until] == [9, MANY]


def test_any_number_of_calls_is_judged() -> None:
    found = many()
    assert (found.verdict.status, found.verdict.events) == (Status.PASSED, MANY - 1)


def test_the_last_answer_of_many_is_found_to_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "KEPT", 100)
    monkeypatch.setattr(passes, "KEPT", 100)
    found = many(region(3), region(4), region(3, size=0))
    assert found.verdict.status is Status.DIFFERS
    assert found.verdict.difference is not None
    assert found.line is not None
    assert found.line.number == MANY - 1 + 3
    last = found.history.events[found.verdict.difference.event].operation
    assert isinstance(last, SetUserMemoryRegion)
    assert (last.slot, last.memory_size) == (4, 0x2000)
    assert found.scenario.operations[found.verdict.difference.origin] == last
    assert len(found.scenario.operations) <= 100 + 1


def test_what_the_last_of_many_answers_need_is_assumed_if_all_before_agree_then() -> None:
    smram = region(1 << 16)
    assert many(smram).assumed == ("KVM_CAP_MULTI_ADDRESS_SPACE of 2",)
    high = region(9, 1 << 53)
    assert many(high).assumed == ("no last gfn (before Linux 5.18)",)
    refused = region(9, 1 << 37, result=EINVAL)
    assert many(refused).assumed == ("gpas of 36 bits",)
    found = judged(replay_in(KVM, high, *churned(MANY), refused))
    assert found.verdict.status is Status.DIFFERS
    assert found.assumed == ("no last gfn (before Linux 5.18)",)


@pytest.mark.parametrize("before", [0, 100, passes.WINDOW - 1, passes.WINDOW, 3 * passes.WINDOW])
def test_calls_may_have_overtaken_each_other_wherever_they_are(before: int) -> None:
    lines = [
        KVM,
        *churned(before - before % 2),
        "8 ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=1, flags=0, guest_phys_addr=0x10000, "
        "memory_size=8192, userspace_addr=0x7f0000000000} <unfinished ...>",
        region(2, result=EEXIST),
        "8 <... ioctl resumed>) = 0",
        region(1, size=0),
    ]
    for turn in range(3):
        found = judged(replay_in(*lines, *lines[-4:] * turn, *churned(100)))
        assert found.verdict.status is Status.PASSED


def test_a_call_that_was_under_way_during_many_others_raises_a_doubt() -> None:
    begun = (
        "8 ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=20, flags=0, guest_phys_addr=0x10000, "
        "memory_size=8192, userspace_addr=0x7f0000000000} <unfinished ...>"
    )
    found = judged(
        replay_in(
            KVM, begun, region(2, result=EEXIST), *churned(MANY), "8 <... ioctl resumed>) = 0"
        )
    )
    assert found.verdict.status is Status.INCONCLUSIVE
    assert "under way at the same time" in found.verdict.reason


def test_more_calls_than_run_here_are_refused_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "MAX_OPERATIONS", 10)
    trace = trace_of(KVM, *churned(12))
    built = Replay(trace, trace.vms[0]).built
    assert built.obstacle == (
        "VM 1 makes 12 calls, and 10 run here at most: "
        "`head -n 11 TRACE | vmm replay -` runs the first of them"
    )
