"""What counts as noticed where a scenario meets an issue that is known of other kernels."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import cast

import pytest

from tests.mutants import inside
from tests.mutants.inside import Prepared
from tests.mutants.words import Said, Task

PREPARED = cast(Prepared, SimpleNamespace(order=SimpleNamespace(limit_s=1)))


@pytest.mark.parametrize(
    ("answers", "how", "control"),
    [
        ([("known", "a"), ("passed", ""), ("differs", "")], "differs", "passed"),
        ([("known", "a"), ("known", ""), ("differs", "b"), ("passed", "")], "differs", "passed"),
        ([("known", "a"), ("known", ""), ("passed", "")], "passed", ""),
        ([("differs", "a"), ("known", ""), ("passed", "")], "passed", ""),
        (
            [("differs", "a"), ("differs", ""), ("differs", "b"), ("passed", "")],
            "differs",
            "passed",
        ),
        ([("differs", "a"), ("hung", "")], "differs", "hung"),
    ],
)
def test_a_known_issue_counts_where_only_the_bug_brings_it(
    answers: list[tuple[str, str]], how: str, control: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(answers)

    def in_a_child(limit_s: float, work: Callable[[], Said]) -> Said:
        said, scenario = left.pop(0)
        return Said("end", how=said, scenario=scenario)

    monkeypatch.setattr(inside, "_in_a_child", in_a_child)
    found, found_control, _ = inside._noticed(Task(7, ("a", "b")), PREPARED)
    assert (found.how, found_control) == (how, control)


def test_without_a_bug_all_scenarios_run_and_those_that_fail_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, ...]] = []
    answers = [Said("end", how="hung", scenario="b", step="no end"), Said("end", how="passed")]

    def in_a_child(limit_s: float, work: Callable[[], Said]) -> Said:
        asked.append(cast("partial[Said]", work).args[0].scenarios)
        return answers.pop(0)

    monkeypatch.setattr(inside, "_in_a_child", in_a_child)
    found, control, _ = inside._noticed(Task(0, ("a", "b", "c")), PREPARED)
    assert asked == [("a", "b", "c"), ("c",)]
    assert (found.how, found.scenario, found.step, control) == ("hung", "b", "b hung: no end", "")
