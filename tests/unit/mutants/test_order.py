"""Which scenarios look for a bug, and in which order."""

from tests.mutants.command import _order
from tests.mutants.results import Costs
from tests.mutants.rows import Change, Mutant
from vmm.scenario.operations import Scenario

EDIT = (Change("f.c", "f", "a;", "b;"),)


def _scenario(name: str, *tags: str) -> Scenario:
    return Scenario(name=name, why="", source="", operations=(), tags=tags)


def test_the_likeliest_come_first_then_the_cheapest_and_the_slow_ones_last() -> None:
    row = Mutant("x", "x", EDIT, first=("move-*",))
    scenarios = [_scenario(each) for each in ("create", "delete", "move-b", "move-a")]
    scenarios.insert(0, _scenario("long", "slow"))
    costs: Costs = {"create": 2.0, "delete": 1.0, "move-a": 4.0, "move-b": 3.0, "long": 0.5}
    assert [*_order(row, scenarios, costs, False)] == [
        *("move-b", "move-a", "delete", "create", "long"),
    ]


def test_what_does_not_pass_without_a_bug_is_left_out() -> None:
    row = Mutant("x", "x", EDIT, first=("a",))
    scenarios = [_scenario("a"), _scenario("b"), _scenario("new")]
    assert [*_order(row, scenarios, {"a": None, "b": 1.0}, False)] == ["new", "b"]
