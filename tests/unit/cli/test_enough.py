"""`--max-differences`: what is said of a run that it ends."""

from types import SimpleNamespace
from typing import Any

import pytest

from vmm.cli.running.carrying import EarlyEnd
from vmm.cli.running.judging import Judge
from vmm.scenario.operations import Scenario, Touch

ENOUGH = "hole in 2 scenarios: --max-differences 2 is reached"
HOST: Any = SimpleNamespace(features=None, info=None)


@pytest.mark.parametrize(
    ("early", "left", "said"),
    [(ENOUGH, 1, ENOUGH), (ENOUGH, 0, ""), ("the host: no disk", 0, "the host: no disk")],
)
def test_it_is_named_only_where_something_is_left_out(early: str, left: int, said: str) -> None:
    scenarios = tuple(Scenario(f"s{number}", (Touch(0),)) for number in range(left))
    judge = Judge(scenarios, lambda _: None, EarlyEnd())
    judge._enough = ENOUGH
    carried: Any = SimpleNamespace(early=early, error="", weaknesses=(), cpus=(), seconds=0.0)
    assert judge.run(HOST, carried).early == said
