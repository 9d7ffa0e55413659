"""What makes differences the same, and how results are drawn together."""

import errno
from dataclasses import replace

import msgspec

from tests.ideal import ideal_history
from vmm.model.regions import CREATE, DELETE, MOVE
from vmm.scenario.history import Done, History, Mmio, Refused, Touched
from vmm.scenario.operations import Mapping, Place, Scenario, SetUserMemoryRegion, Touch
from vmm.verdict.groups import differing, known, skipped
from vmm.verdict.identity import Identity
from vmm.verdict.judge import Status, Verdict
from vmm.verdict.known.issue import KnownIssue
from vmm.verdict.known.issues import KNOWN
from vmm.verdict.result import Checked, judged

SLOT = SetUserMemoryRegion(0, 0x10000, 0x1000, Place("a"))
GONE = SetUserMemoryRegion(0)
REFUSED = Refused(errno.EINVAL)


def history_of(name: str, count: int, wrong: type[SetUserMemoryRegion | Touch]) -> History:
    """Return a history of some creations and deletions; its last step of a kind is wrong."""
    scenario = Scenario(name, (SLOT, GONE) * count, (Mapping("a", 1),))
    history = ideal_history(scenario)
    events = list(history.events)
    at = max(i for i, event in enumerate(events) if isinstance(event.operation, wrong))
    outcome = Touched(1) if wrong is Touch else REFUSED
    events[at] = msgspec.structs.replace(events[at], outcome=outcome)
    return msgspec.structs.replace(history, events=tuple(events))


def skip(name: str, reason: str) -> Checked:
    return Checked(Scenario(name, ()), Verdict(name, Status.SKIPPED, reason))


def test_identity_is_operation_rules_and_outcome() -> None:
    found = judged(history_of("a", 2, SetUserMemoryRegion)).verdict.difference
    assert found is not None
    assert found.identity == Identity("SetUserMemoryRegion", ("delete",), "EINVAL")
    assert str(found.identity) == "SetUserMemoryRegion delete EINVAL"


def test_identity_does_not_depend_on_the_order_of_rules() -> None:
    one = Identity.of(SLOT, (CREATE, MOVE), Done())
    assert one == Identity.of(SLOT, (MOVE, CREATE, MOVE), Done())
    assert one != Identity.of(SLOT, (DELETE,), Done())
    assert one != Identity.of(Touch(0), (CREATE, MOVE), Done())


def test_outcomes_of_one_cause_are_related_and_no_others() -> None:
    read = Touch(0)
    memory = Identity.of(read, (CREATE,), Touched(1))
    mmio = Identity.of(read, (CREATE,), Touched(1, (Mmio(0, False, b"\1"),)))
    assert memory != mmio
    assert memory.cause == mmio.cause
    assert memory.cause != Identity.of(read, (MOVE,), Touched(1)).cause
    assert Identity("", outcome="hung").cause != Identity("", outcome="died").cause


def test_differences_are_grouped_by_cause_with_the_shortest_first() -> None:
    checked = [
        judged(history_of("long", 3, SetUserMemoryRegion)),
        judged(history_of("other", 1, Touch)),
        judged(history_of("short", 1, SetUserMemoryRegion)),
        judged(history_of("middle", 2, SetUserMemoryRegion)),
        judged(ideal_history(Scenario("right", (SLOT,), (Mapping("a", 1),)))),
    ]
    by_delete, by_touch = differing(checked)
    assert by_delete.shortest.scenario.name == "short"
    assert by_delete.others == ("long", "middle")
    assert (by_touch.shortest.scenario.name, by_touch.others) == ("other", ())


def test_what_is_known_is_grouped_by_issue_with_the_shortest_first() -> None:
    def of(issue: KnownIssue, name: str, count: int) -> Checked:
        found = judged(history_of(name, count, SetUserMemoryRegion))
        verdict = msgspec.structs.replace(found.verdict, status=Status.KNOWN)
        return replace(found, verdict=verdict, issue=issue)

    one, two = (each.issue for each in KNOWN[:2])
    by_one, by_two = known([of(one, "long", 3), of(two, "other", 1), of(one, "short", 1)])
    assert (by_one.shortest.scenario.name, by_one.others) == ("short", ("long",))
    assert (by_two.shortest.scenario.name, by_two.others) == ("other", ())


def test_skips_are_grouped_by_reason_the_most_frequent_first() -> None:
    checked = [skip("a", "needs one"), skip("b", "needs two"), skip("c", "needs two")]
    assert [(each.reason, each.names) for each in skipped(checked)] == [
        ("needs two", ("b", "c")),
        ("needs one", ("a",)),
    ]


def test_differences_of_a_file_without_identities_can_be_read() -> None:
    difference = judged(history_of("a", 1, Touch)).verdict.difference
    assert difference is not None
    data = msgspec.to_builtins(difference)
    assert msgspec.convert(data, type(difference)) == difference
    del data["identity"]
    assert msgspec.convert(data, type(difference)).identity == Identity("")
