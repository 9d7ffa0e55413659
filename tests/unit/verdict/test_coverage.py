"""What is checked by a run, rule by rule and bug by bug."""

from collections.abc import Mapping

import msgspec
import pytest

from tests.played import INFO
from vmm.model.regions import MOVE
from vmm.report.coverage import coverage_json, coverage_lines, coverage_markdown
from vmm.scenario.bugs import Bug, ShownBy
from vmm.scenario.features import Features
from vmm.verdict.coverage import (
    Coverage,
    RanCheck,
    RanScenario,
    State,
    cover,
)
from vmm.verdict.judge import Difference, Expected, Status

PASSED = RanScenario("up", Status.PASSED, rules=("move",))


def differing(name: str, *rules: str, status: Status = Status.DIFFERS) -> RanScenario:
    expected = tuple(Expected("success", rule, "", "", "") for rule in rules)
    return RanScenario(name, status, difference=Difference(0, 0, "", expected, "EEXIST", ()))


def covered(
    *outcomes: RanScenario,
    elsewhere: Mapping[str, tuple[str, ...]] | None = None,
    bugs: tuple[Bug, ...] = (),
    status: Status = Status.PASSED,
    features: Features | None = None,
) -> Coverage:
    result = RanCheck(status, outcomes, features or Features(), INFO)
    return cover(result, (MOVE,), bugs, lambda: elsewhere or {})


def state(*outcomes: RanScenario, **elsewhere: tuple[str, ...]) -> tuple[State, str]:
    (each,) = covered(*outcomes, elsewhere=elsewhere).rules
    return each.state, each.why


def test_rule_that_decided_an_event_is_checked() -> None:
    other = RanScenario("other", Status.PASSED, rules=("hole",))
    again = RanScenario("again", Status.INCONCLUSIVE, rules=("hole", "move"))
    (each,) = covered(other, PASSED, again).rules
    assert (each.state, each.scenarios, each.why) == (State.CHECKED, ("up", "again"), "")


def test_rule_that_the_kernel_broke_is_not_a_checked_one() -> None:
    assert state(PASSED, differing("down", "hole", "move")) == (State.DIFFERS, "")
    assert state(differing("down", "move", status=Status.KNOWN)) == (State.KNOWN, "")


def test_rule_of_scenarios_that_were_skipped_is_not_here() -> None:
    skipped = RanScenario("down", Status.SKIPPED, "needs KVM_CAP_X")
    passed = RanScenario("up", Status.PASSED, rules=("hole",))
    assert state(passed, skipped, up=("move",), down=("move",)) == (
        State.NOT_HERE,
        "needs KVM_CAP_X",
    )


def test_rule_that_another_one_stands_in_for_is_not_here() -> None:
    passed = RanScenario("up", Status.PASSED, rules=("hole",))
    assert state(passed, up=("move",)) == (
        State.NOT_HERE,
        "another rule decides it on this kernel",
    )


def test_rule_whose_scenario_did_not_come_to_an_end_is_not_run() -> None:
    skipped = RanScenario("down", Status.SKIPPED, "needs KVM_CAP_X")
    hung = RanScenario("up", Status.INCONCLUSIVE, "hung")
    both = {"down": ("move",), "up": ("move",)}
    assert state(skipped, **both) == (State.NOT_RUN, "up did not run")
    assert state(skipped, hung, **both) == (State.NOT_RUN, "up is inconclusive")


def test_rule_that_no_scenario_meets_is_a_gap() -> None:
    assert state(up=("hole",)) == (State.GAP, "no scenario meets it on any kernel")


def test_other_kernels_are_not_imagined_without_need() -> None:
    def never() -> dict[str, tuple[str, ...]]:
        raise AssertionError

    cover(RanCheck(Status.PASSED, (PASSED,), Features(), INFO), (MOVE,), (), never)


@pytest.mark.parametrize(
    ("status", "outcome", "met", "exit_status"),
    [
        (Status.PASSED, PASSED, "up", 0),
        (Status.PASSED, RanScenario("up", Status.PASSED), "up", 0),
        (Status.PASSED, RanScenario("up", Status.PASSED), "down", 3),
        (Status.PASSED, RanScenario("up", Status.PASSED), "", 3),
        (Status.DIFFERS, PASSED, "up", 1),
        (Status.DIFFERS, RanScenario("up", Status.PASSED), "", 1),
        (Status.INCONCLUSIVE, PASSED, "up", 3),
        (Status.SKIPPED, RanScenario("up", Status.SKIPPED), "up", 4),
    ],
)
def test_exit_status_is_0_only_if_every_rule_of_this_kernel_is_checked(
    status: Status, outcome: RanScenario, met: str, exit_status: int
) -> None:
    assert covered(outcome, elsewhere={met: ("move",)}, status=status).exit_status == exit_status


SHOWN = ShownBy("up", "it would", needs=("guest_memfd",))
BUG = Bug(("abc",), "wrong", (SHOWN, ShownBy("down", "so would this")))


@pytest.mark.parametrize(
    ("up", "down", "expected"),
    [
        (Status.PASSED, Status.SKIPPED, State.CHECKED),
        (Status.PASSED, Status.DIFFERS, State.DIFFERS),
        (Status.PASSED, Status.KNOWN, State.KNOWN),
        (Status.PASSES_NOW, Status.SKIPPED, State.CHECKED),
        (Status.SKIPPED, Status.SKIPPED, State.NOT_HERE),
        (Status.SKIPPED, None, State.NOT_RUN),
        (Status.SKIPPED, Status.INCONCLUSIVE, State.NOT_RUN),
    ],
)
def test_bug_is_what_its_scenarios_say(up: Status, down: Status | None, expected: State) -> None:
    outcomes = [RanScenario("up", up), *([] if down is None else [RanScenario("down", down)])]
    (each,) = covered(*outcomes, bugs=(BUG,), features=Features(guest_memfd=True)).bugs
    assert each.state is expected
    assert [name for name, _ in each.results] == ["up", "down"]


def test_pass_says_nothing_of_a_bug_that_this_kernel_could_not_show() -> None:
    (each,) = covered(PASSED, RanScenario("down", Status.SKIPPED), bugs=(BUG,)).bugs
    assert each.state is State.NOT_HERE
    assert each.results == (("up", "not here"), ("down", "skipped"))


def test_bug_without_a_scenario_is_a_gap() -> None:
    (each,) = covered(bugs=(Bug(("abc",), "wrong", gap="it takes two threads"),)).bugs
    assert (each.state, each.results) == (State.GAP, ())


WHOLE = covered(
    PASSED,
    differing("down", "hole"),
    bugs=(BUG, Bug(("def", "012"), "a|b", gap="why not")),
)


def test_lines_name_every_rule_and_bug_and_count_them() -> None:
    assert [line.plain for line in coverage_lines(WHOLE)] == [
        "Rules",
        "checked   move  up",
        "\nBugs that kernels had",
        "differs   abc      wrong: up (not here), down (differs)",
        "gap       def 012  a|b: why not",
        "",
        "Linux 6.99, kvm_amd, TDP on (kvm_amd.npt=1)",
        "1 rules: 1 checked",
        "2 bugs: 1 differs, 1 gap",
    ]


def test_markdown_holds_both_tables() -> None:
    lines = coverage_markdown(WHOLE).splitlines()
    move = f"| checked | `move` | {MOVE.promise} | documented: {MOVE.cite} | `up` |"
    assert move in lines
    assert (
        "| differs | `abc` | wrong | anywhere | `up`: it would (not here); "
        "`down`: so would this (differs) |"
    ) in lines
    assert "| gap | `def`, `012` | a\\|b | anywhere | why not |" in lines


def test_json_holds_everything() -> None:
    data = msgspec.json.decode(coverage_json(WHOLE))
    assert data["exit_status"] == 0
    assert data["rules"][0]["scenarios"] == ["up"]
    assert data["bugs"][0]["scenarios"][1] == {
        "name": "down",
        "because": "so would this",
        "status": "differs",
    }
    assert data["bugs"][1]["gap"] == "why not"
