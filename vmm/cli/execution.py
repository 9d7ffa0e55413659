"""Runs scenarios, some side by side, and judges them."""

from collections.abc import Callable, Sequence

from vmm.cli.carrying import Begin, EarlyEnd, Orders, carry_out
from vmm.cli.history_files import HistoryFiles
from vmm.cli.host import Host
from vmm.cli.judging import Judge
from vmm.scenario.operations import Scenario
from vmm.verdict.result import Checked, Run


def execute(
    scenarios: Sequence[Scenario],
    host: Host,
    begin: Begin,
    done: Callable[[Checked], None],
    files: HistoryFiles | None = None,
    patience: float = 1.0,
    jobs: int | None = None,
    max_differences: int | None = None,
    with_steps: bool = False,
) -> Run:
    """Run the scenarios; ``begin`` gets each as it begins, ``done`` the results, in order.

    ``jobs`` scenarios run side by side (None: the usual number), but one at a time if ``files`` has
    a file for the history of the one under way. A scenario is judged while others run, and may take
    ``patience`` times as long as usual. ``with_steps`` adds the steps to the results.

    The run ends early when it is interrupted, when the output of ``done`` is lost, or when
    ``max_differences`` scenarios differ by one cause: what ran is kept, and the rest is named.
    """
    early = EarlyEnd()
    judge = Judge(scenarios, done, early, files, max_differences, with_steps)
    journal = None if files is None else files.file
    carried = carry_out(Orders(scenarios, host, begin, journal, patience, jobs, early), judge)
    return judge.run(host, carried)
