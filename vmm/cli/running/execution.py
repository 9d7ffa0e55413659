"""Runs scenarios, some side by side, and judges them."""

from collections.abc import Callable
from dataclasses import replace

from vmm.cli.running.carrying import Orders, carry_out
from vmm.cli.running.history_files import HistoryFiles
from vmm.cli.running.judging import Judge
from vmm.verdict.result import Checked, Run


def _ignore(checked: Checked) -> None:
    """Do nothing with a result."""


def execute(
    orders: Orders,
    done: Callable[[Checked], None] = _ignore,
    files: HistoryFiles | None = None,
    max_differences: int | None = None,
    with_steps: bool = False,
) -> Run:
    """Run and judge scenarios; ``done`` gets the results, in order.

    A scenario is judged while others run, but one runs at a time if ``files`` has a file for the
    history of the one under way. ``with_steps`` adds the steps to the results.

    The run ends early when it is interrupted, when the output of ``done`` is lost, or when
    ``max_differences`` scenarios differ by one cause: what ran is kept, and the rest is named.
    """
    judge = Judge(orders.scenarios, done, orders.early, files, max_differences, with_steps)
    journal = None if files is None else files.file
    return judge.run(orders.host, carry_out(replace(orders, journal=journal), judge))
