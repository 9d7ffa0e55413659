"""What a terminal is told of a difference, beyond what the formats' tests see."""

import dataclasses

import msgspec

from tests.ideal import ideal_history
from vmm.report.terminal import scenario_report
from vmm.scenario.history import Touched
from vmm.scenario.operations import (
    AnyOperation,
    ChangeHostMemory,
    Mapping,
    Place,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)
from vmm.verdict.judge import Status
from vmm.verdict.known.issue import KnownIssue
from vmm.verdict.result import judged

SLOT = SetUserMemoryRegion(1, 0x100_000, 0x1000, Place("a"))
UNMAPPED = ChangeHostMemory(Place("a"), 1, "unmap")
READ = Touch(0x100_000)


def step(*operations: AnyOperation) -> list[str]:
    """Return the lines on the step where the last operation finds what was there at first."""
    history = ideal_history(Scenario("a-scenario", operations, (Mapping("a", 1),), survey="none"))
    stale = tuple(
        msgspec.structs.replace(event, outcome=Touched(0x9B10_0000))
        if event.operation == READ
        else event
        for event in history.events
    )
    found = judged(msgspec.structs.replace(history, events=stale))
    lines = [line.plain.strip() for line in scenario_report(found, "", None)]
    labelled = [at for at, line in enumerate(lines) if line.startswith(("step ", "expected "))]
    return lines[slice(*labelled)]


def test_the_hosts_last_change_is_named_where_a_slot_shows_what_was_there_before() -> None:
    after = "after operation 1: munmap on 1 page at a+0x0"
    assert step(SLOT, UNMAPPED, READ)[1:] == [after]
    assert step(SLOT, UNMAPPED, SetUserMemoryRegion(2), READ)[1:] == [after]
    assert step(SLOT, UNMAPPED, SetUserMemoryRegion(1), READ)[1:] == []


def test_how_a_known_hang_was_found_out_is_said() -> None:
    history = ideal_history(Scenario("a-scenario", (SLOT,), (Mapping("a", 1),), survey="none"))
    found = judged(history)
    verdict = msgspec.structs.replace(found.verdict, status=Status.KNOWN, reason="it hangs")
    issue = KnownIssue("x", "", frozenset(), "what", "Linux 6.18 does not come back", hangs=True)
    found = dataclasses.replace(found, verdict=verdict, issue=issue)
    lines = [line.plain.split() for line in scenario_report(found, "", None)]
    assert ["evidence", *issue.evidence.split()] in lines
