"""What an author expects is kept, checked, and told apart from what the kernel owes."""

import errno
import json
from pathlib import Path

import msgspec
import pytest

from tests.ideal import FEATURES, ideal_history
from vmm.fuzz import corpus
from vmm.report import terminal
from vmm.scenario.codec import (
    FileError,
    history_lines,
    parse_history,
    parse_scenario,
    scenario_text,
)
from vmm.scenario.history import Refused
from vmm.scenario.operations import (
    AnyOperation,
    CoalesceMmio,
    GetDirtyLog,
    IoEventFd,
    Mapping,
    Place,
    ResetDirtyRings,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)
from vmm.verdict.judge import MISTAKEN, Status, judge
from vmm.verdict.result import judged

PAGE = 4096


def create(expect: str = "", slot: int = 1, gpa: int = 0x10000) -> SetUserMemoryRegion:
    return SetUserMemoryRegion(slot, gpa, PAGE, Place("a"), expect=expect)


def scenario(*operations: AnyOperation) -> Scenario:
    return Scenario("s", operations, (Mapping("a", 4),))


RIGHT = scenario(
    create("success"),
    create("EEXIST", slot=2),
    create("EINVAL", gpa=0x10800),
    GetDirtyLog(1, expect="ENOENT"),
    ResetDirtyRings(expect="EINVAL"),
    IoEventFd("e", 0x20000, 4, expect="success"),
    IoEventFd("e", 0x20000, 4, expect="EEXIST"),
    CoalesceMmio(0x30000, 0x1000, expect="success"),
    Touch(0x10000),
)


def test_expectations_that_come_true_pass() -> None:
    assert judge(ideal_history(RIGHT)).status is Status.PASSED


def test_expectations_are_kept_in_files_and_histories() -> None:
    assert parse_scenario(scenario_text(RIGHT).encode(), "f") == RIGHT
    history = ideal_history(RIGHT)
    assert parse_history(history_lines(history), "f") == history
    assert '"expect"' not in scenario_text(scenario(create()))


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (create("EINVAL"), "gave success, and its `expect` says EINVAL"),
        (create("success", gpa=0x10800), "gave EINVAL, and its `expect` says success"),
        (create("EEXIST", gpa=0x10800), "gave EINVAL, and its `expect` says EEXIST"),
    ],
)
def test_wrong_expectation_is_inconclusive_and_the_authors(
    made: SetUserMemoryRegion, text: str
) -> None:
    checked = judged(ideal_history(scenario(Touch(0x5000), made, create("EFAULT", gpa=0x20000))))
    verdict = checked.verdict
    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.status.exit_status == 3
    assert verdict.reason.startswith(f"{MISTAKEN}operation 1, KVM_SET_USER_MEMORY_REGION(")
    assert text in verdict.reason
    assert verdict.difference is None
    assert "not what the scenario expects" in terminal.single(checked, "", None)[0].plain


def test_either_answer_is_allowed_and_so_said() -> None:
    features = msgspec.structs.replace(FEATURES, dirty_ring_bytes=0)
    verdict = judge(ideal_history(scenario(ResetDirtyRings(expect="ENOTTY")), features))
    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.reason.endswith("the rules allow either (by ring-absent)")


@pytest.mark.parametrize("expect", ["success", "EINVAL"])
def test_answer_that_no_rule_allows_is_a_difference_whatever_was_expected(expect: str) -> None:
    history = ideal_history(scenario(create("EFAULT", slot=3, gpa=0x30000), create(expect)))
    events = tuple(
        msgspec.structs.replace(event, outcome=Refused(errno.EINVAL))
        if event.origin == 1 and isinstance(event.operation, SetUserMemoryRegion)
        else event
        for event in history.events
    )
    verdict = judge(msgspec.structs.replace(history, events=events))
    assert verdict.status is Status.DIFFERS
    assert "author" not in verdict.reason


@pytest.mark.parametrize(
    ("operation", "complaint"),
    [
        ({"expect": "EWRONG"}, "$.operations[0].expect: 'EWRONG' is neither"),
        ({"expect": "einval"}, "$.operations[0].expect"),
        ({"expect": "0"}, "$.operations[0].expect"),
        ({"expect": 22}, "$.operations[0].expect: "),
        ({"expect": None}, "$.operations[0].expect: "),
        ({"op": "touch", "gpa": 0, "expect": "success"}, "only calls to KVM"),
        ({"op": "inspect", "expect": "success"}, "only calls to KVM"),
        (
            {
                "op": "race",
                "hosts": [{"operations": [{"op": "reset_dirty_rings", "expect": "EINVAL"}]}],
                "guests": [{"program": [{"op": "touch", "gpa": 0}]}],
            },
            "$.operations[0].hosts[0].operations[0].expect: calls of a race",
        ),
        ({"op": "race", "expect": "success"}, "only calls to KVM"),
    ],
)
def test_other_expectations_are_refused(operation: dict[str, object], complaint: str) -> None:
    op = operation if "op" in operation else {"op": "create_irqchip", **operation}
    made = {"name": "s", "operations": [op]}
    with pytest.raises(FileError) as caught:
        parse_scenario(json.dumps(made).encode(), "f")
    assert complaint in str(caught.value)


def test_corpus_expects_nothing(tmp_path: Path) -> None:
    corpus.keep(tmp_path, RIGHT)
    (loaded,) = corpus.load(tmp_path).scenarios
    assert [op.expect for op in loaded.operations] == [""] * 9
