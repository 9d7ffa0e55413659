"""Region calls that were refused, as the rules say, are counted by errno and rule, and said."""

import errno
import json

import jsonschema
import msgspec

from tests.ideal import FEATURES, ideal_history
from tests.results import passed, run_of
from vmm.report import terminal
from vmm.report.json import run_text
from vmm.report.resultfile import schema
from vmm.report.text import Detail, text_report
from vmm.scenario.history import (
    Call,
    CallOutcome,
    Done,
    Event,
    Header,
    History,
    Raced,
    Refused,
    Window,
)
from vmm.scenario.operations import (
    GuestThread,
    HostThread,
    Mapping,
    Place,
    Race,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)
from vmm.verdict.judge import Status, judge
from vmm.verdict.refusals import IN_A_RACE, Refusals
from vmm.verdict.result import judged

PAGE = 4096
HOST = (Mapping("a", 4),)
CREATE = SetUserMemoryRegion(1, 0x10000, 2 * PAGE, Place("a"))
OVERLAPS = SetUserMemoryRegion(2, 0x11000, PAGE, Place("a"))
UNALIGNED = SetUserMemoryRegion(2, 0x11800, PAGE, Place("a"))
REFUSING = Scenario(
    "refusing", (CREATE, UNALIGNED, OVERLAPS, UNALIGNED, UNALIGNED, Touch(0x10000)), HOST
)


def test_refused_calls_are_counted_by_errno_and_rule_with_the_first() -> None:
    verdict = judge(ideal_history(REFUSING))
    assert verdict.status is Status.PASSED
    unaligned, overlaps = verdict.refused
    assert (unaligned.errno, unaligned.count, unaligned.origin) == ("EINVAL", 3, 1)
    assert (overlaps.errno, overlaps.count, overlaps.origin) == ("EEXIST", 1, 2)
    assert "0x11800" in unaligned.operation
    assert {unaligned.rule, overlaps.rule} <= set(verdict.rules)


def test_nothing_refused_is_nothing_said() -> None:
    checked = judged(ideal_history(Scenario("fine", (CREATE, Touch(0x10000)), HOST)))
    assert checked.verdict.refused == ()
    assert len(terminal.single(checked, "", None)) == 1


def test_refusal_that_no_rule_allows_is_a_difference_and_no_refusal() -> None:
    history = ideal_history(REFUSING)
    events = tuple(
        msgspec.structs.replace(event, outcome=Refused(errno.EINVAL))
        if event.operation == CREATE
        else event
        for event in history.events
    )
    verdict = judge(msgspec.structs.replace(history, events=events))
    assert verdict.status is Status.DIFFERS
    assert verdict.refused == ()


def test_calls_of_a_race_are_counted() -> None:
    race = Race((HostThread((OVERLAPS, CREATE), rounds=2),), (GuestThread((Touch(0x20000),)),))
    outcomes: tuple[CallOutcome, ...] = (Refused(errno.EEXIST), Done()) * 2
    calls = tuple(Call(2 * n, 2 * n + 1, each) for n, each in enumerate(outcomes))
    refusals = Refusals()
    refusals.note(Event(0, race, Raced((calls,), ((Window(0, 1, 0),),), ((),))), None)
    (told,) = refusals.counted()
    assert (told.errno, told.rule, told.count) == ("EEXIST", IN_A_RACE, 2)
    assert "0x11000" in told.operation


def test_report_of_one_says_it_in_two_lines() -> None:
    checked = judged(ideal_history(REFUSING))
    title, count, first = (line.plain for line in terminal.single(checked, "", None))
    unaligned, overlaps = checked.verdict.refused
    assert title.startswith("PASSED")
    assert (
        count.split()
        == (
            f"refused 4 region calls, as the rules say: 3 x EINVAL by {unaligned.rule}, "
            f"1 x EEXIST by {overlaps.rule}"
        ).split()
    )
    assert first.strip().startswith("first: operation 1 (of 0 to 5): ")


def test_verbose_run_says_it_once_for_all() -> None:
    lines: list[str] = []
    checked = judged(ideal_history(REFUSING))
    run = run_of(checked, passed("quiet"), checked)
    for verbose in (True, False):
        lines.clear()
        show = text_report(
            lambda texts: lines.extend(each.plain for each in texts),
            None,
            Detail.VERBOSE if verbose else Detail.USUAL,
        )
        show.end(run)
        assert sum("8 region calls" in line for line in lines) == verbose


def test_json_has_it() -> None:
    data = json.loads(run_text(run_of(judged(ideal_history(REFUSING)))))
    jsonschema.Draft202012Validator(schema()).validate(data)
    (found,) = data["scenarios"]
    assert [(each["errno"], each["count"]) for each in found["refused"]] == [
        ("EINVAL", 3),
        ("EEXIST", 1),
    ]


def test_guest_slot_in_the_way_is_said() -> None:
    """A scenario may name a place in the way of its own slots."""
    bios = SetUserMemoryRegion(1, 0xFFFF_F000, PAGE, Place("a"))
    header = Header(Scenario("bios", (bios,), HOST, survey="none"), FEATURES)
    history = ideal_history(header.scenario)
    assert isinstance(history, History)
    (told,) = judge(history).refused
    assert (told.errno, told.count, told.origin) == ("EEXIST", 1, 0)
