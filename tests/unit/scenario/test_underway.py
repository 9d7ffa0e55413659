"""A history that broke off says what was under way."""

from itertools import accumulate
from pathlib import Path

import msgspec
import pytest

from guests import mailbox
from tests.ideal import FEATURES, ideal_history
from tests.played import vmm
from vmm.scenario.codec import history_lines, parse_history
from vmm.scenario.history import End, Event, History, Inspected, Refused
from vmm.scenario.operations import (
    CloseVm,
    Inspect,
    Mapping,
    NewVm,
    Place,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)
from vmm.scenario.plan import MAX_BATCH, Step, batches, guest_slot, steps
from vmm.scenario.underway import under_way
from vmm.verdict.judge import Status, UnderWay, judge

CREATE = SetUserMemoryRegion(0, 0x10000, 0x1000, Place("a"))
READ = Touch(0x10000)
READ_ON_1 = Touch(0x10000, vcpu=1)
SCENARIO = Scenario(
    "cut",
    (CREATE, READ, READ, READ_ON_1, NewVm(), CREATE),
    (Mapping("a", 1),),
    survey="none",
    vcpus=2,
)
SURVEYED = msgspec.structs.replace(SCENARIO, survey="write")


def cut(history: History, events: int, end: End | None = None) -> History:
    return msgspec.structs.replace(history, events=history.events[:events], end=end)


@pytest.mark.parametrize("scenario", [SCENARIO, SURVEYED], ids=["plain", "surveyed"])
@pytest.mark.parametrize("end", [None, End("hung: no end within 60 s"), End("died: SIGKILL")])
def test_batch_that_was_not_recorded_is_under_way_as_a_whole(
    scenario: Scenario, end: End | None
) -> None:
    history = ideal_history(scenario)
    plan = list(batches(steps(scenario, FEATURES.touch_limit)))
    starts = accumulate((len(batch) for batch in plan), initial=0)
    for start, batch in zip(starts, plan, strict=False):
        assert under_way(cut(history, start, end)) == tuple(batch)


def test_history_that_is_cut_within_a_batch_leaves_the_rest_of_it() -> None:
    history = ideal_history(SCENARIO)
    assert under_way(cut(history, 2)) == (Step(1, READ), Step(2, READ))
    assert under_way(cut(history, 3)) == (Step(2, READ),)
    assert under_way(cut(history, 4)) == (Step(3, READ_ON_1),)


def test_nothing_is_under_way_behind_the_end() -> None:
    history = ideal_history(SCENARIO)
    assert under_way(history) == ()
    assert under_way(msgspec.structs.replace(history, end=None)) == ()
    last = Step(len(SCENARIO.operations), CloseVm())
    assert under_way(cut(history, len(history.events) - 2)) == (last,)


def test_history_of_another_plan_tells_nothing() -> None:
    history = ideal_history(SCENARIO)
    events = (history.events[0], Event(0, Inspect(), Inspected()), *history.events[2:5])
    assert under_way(msgspec.structs.replace(history, events=events, end=None)) == ()


def test_a_batch_is_what_fits_in_the_mailbox() -> None:
    assert MAX_BATCH == mailbox.MAX_TOUCHES


def test_verdict_names_it_and_how_much_more_it_may_have_been() -> None:
    history = ideal_history(SCENARIO)
    assert judge(history).under_way is None
    verdict = judge(cut(history, 2, End("died: SIGKILL")))
    assert (verdict.status, verdict.reason) == (Status.INCONCLUSIVE, "died: SIGKILL")
    assert verdict.under_way == UnderWay(1, "vCPU 0 reads 4 bytes at gpa 0x10000", 1)
    region = judge(cut(history, 1)).under_way
    assert region is not None
    assert region.origin == 0
    assert region.operation.startswith("KVM_SET_USER_MEMORY_REGION(slot=0, ")


def test_difference_does_not_hide_it() -> None:
    history = ideal_history(SCENARIO)
    bad = Event(-1, guest_slot(SCENARIO), Refused(22))
    wrong = msgspec.structs.replace(history, events=(bad, history.events[1]), end=End("hung"))
    verdict = judge(wrong)
    assert verdict.status is Status.DIFFERS
    assert verdict.under_way is not None


def judged_lines(tmp_path: Path, data: bytes) -> list[str]:
    file = tmp_path / "h.jsonl"
    file.write_bytes(data)
    result = vmm("judge", file)
    assert result.exit_code == 3
    return result.stdout.splitlines()


def test_judge_prints_the_touches_that_were_under_way(tmp_path: Path) -> None:
    data = b"".join(history_lines(cut(ideal_history(SCENARIO), 2)))
    assert judged_lines(tmp_path, data)[:4] == [
        "INCONCLUSIVE cut: the history is cut off",
        "  under way operation 1 (of 0 to 5): vCPU 0 reads 4 bytes at gpa 0x10000",
        "            or a later one of the 2 touches in this KVM_RUN",
        f"  again     vmm judge {tmp_path}/h.jsonl",
    ]


def test_judge_prints_the_system_call_that_was_under_way(tmp_path: Path) -> None:
    lines = judged_lines(tmp_path, b"".join(history_lines(cut(ideal_history(SCENARIO), 1))))
    assert lines[1].startswith("  under way operation 0 (of 0 to 5): KVM_SET_USER_MEMORY_REGION(")
    assert lines[-1] == "  not run   operations 1 to 5"


def test_line_that_is_torn_counts_as_not_recorded(tmp_path: Path) -> None:
    history = ideal_history(SCENARIO)
    data = b"".join(history_lines(cut(history, 3)))
    for torn in (1, 2, 20):
        kept = parse_history(data[:-torn].split(b"\n"), "file")
        assert under_way(kept)[0].origin == (2 if torn == 1 else 1)
