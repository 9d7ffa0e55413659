"""Executes scenarios, some side by side, and judges them."""

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

    So many ``jobs`` run side by side, as many as is usual here unless told; one at a time where a
    file holds the history of the one under way. A scenario is judged while others run, and may take
    ``patience`` times as long as usual. ``with_steps`` puts into the results what happened at each
    operation.

    The run ends early when it is interrupted, when nobody takes what ``done`` prints, or when
    ``max_differences`` scenarios differ by one cause: what ran is kept, and what did not is named.
    """
    early = EarlyEnd()
    judge = Judge(scenarios, done, early, files, max_differences, with_steps)
    journal = None if files is None else files.file
    carried = carry_out(Orders(scenarios, host, begin, journal, patience, jobs, early), judge)
    return judge.run(host, carried)
