"""Judges scenarios that have run, in parts, and passes the results on in order."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from vmm.cli.running.carrying import Carried, EarlyEnd, Finished
from vmm.cli.running.history_files import HistoryFiles
from vmm.cli.running.host import Host
from vmm.execution.runner import Record
from vmm.host.signals import SignalledError, is_interruption
from vmm.scenario.endings import DIED, HOST, INTERRUPTED, what_is_short
from vmm.scenario.operations import Scenario
from vmm.scenario.words import counted
from vmm.verdict.judge import Status, Verdict, judging
from vmm.verdict.result import Checked, Run, broken_off, concluded
from vmm.verdict.steps import StepRecorder

_NOT_ITS_OWN = (HOST, DIED)
"""Reasons for having no verdict that other scenarios will probably share."""


class Judge:
    """A taker that judges; ``done`` gets each result once all earlier ones were passed on.

    ``early`` ends the run when ``max_differences`` scenarios differ by one cause, or the host fails
    that many. ``with_steps`` puts into the results what happened at each operation.
    """

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        done: Callable[[Checked], None],
        early: EarlyEnd,
        files: HistoryFiles | None = None,
        max_differences: int | None = None,
        with_steps: bool = False,
    ) -> None:
        self._scenarios = scenarios
        self._done = done
        self._early = early
        self._files = files
        self._max_differences = max_differences
        self._enough = ""
        self._with_steps = with_steps
        self._causes: Counter[str] = Counter()
        self._judging: deque[tuple[int, Iterator[Checked | None]]] = deque()
        self._results: dict[int, Checked] = {}
        self._checked: list[Checked] = []
        self._following = 0

    @property
    def has_work(self) -> bool:
        """Whether anything waits for its verdict."""
        return bool(self._judging)

    def work(self) -> None:
        """Judge a part of the first history that waits."""
        index, judging = self._judging[0]
        try:
            result = next(judging)
        except KeyboardInterrupt:
            self._judging.clear()  # The first cannot be resumed, and results keep their order.
            raise
        if result is not None:
            self._judging.popleft()
            self._note(result)
            self._results[index] = result
            while self._following in self._results:
                self._following += 1
                self._hand_on(self._following - 1)

    def skip(self, index: int, missing: str) -> None:
        """Receive a scenario that does not run because of what is ``missing``."""
        scenario = self._scenarios[index]
        skipped = Verdict(scenario.name, Status.SKIPPED, f"needs {missing}")
        self._judging.append((index, iter((Checked(scenario, skipped),))))

    def take(self, ran: Finished) -> None:
        """Receive a scenario that ran."""
        self._judging.append((ran.index, self._judged(ran)))

    def end(self) -> None:
        """Judge what is left, and pass on all results, even if earlier ones are missing."""
        while self._judging:
            self.work()
        for index in sorted(self._results):
            self._hand_on(index)

    def run(self, host: Host, carried: Carried) -> Run:
        """Return the result of a run that went as ``carried`` says; what did not run is named.

        `end` must have been called, unless the run broke off.
        """
        known = {each.scenario.name for each in self._checked}
        left = tuple(each.name for each in self._scenarios if each.name not in known)
        early = carried.early
        if not left and early == self._enough:  # Nothing was left to leave out.
            early = ""
        early = early or (INTERRUPTED if left and not carried.error else "")
        if self._files is not None and self._files.failures:
            early = early or f"{HOST}{self._files.failures[0]}"
        return Run(
            tuple(self._checked),
            host.features,
            host.info,
            carried.weaknesses,
            left,
            carried.cpus,
            carried.seconds,
            early=early,
            error=carried.error,
        )

    def _hand_on(self, index: int) -> None:
        checked = self._results.pop(index)
        self._checked.append(checked)
        self._done(checked)

    def _note(self, checked: Checked) -> None:
        """Count a difference, or a failure of the host; end the run when one cause has enough."""
        verdict, many = checked.verdict, self._max_differences
        cause = ""
        if verdict.status is Status.DIFFERS and verdict.difference is not None:
            cause = verdict.difference.identity.cause.in_words
        elif verdict.status is Status.INCONCLUSIVE and verdict.reason.startswith(_NOT_ITS_OWN):
            cause = verdict.reason.partition("(")[0]
        if cause:
            self._causes[cause] += 1
            if self._causes[cause] == many:
                enough = f"--max-differences {many} is reached"
                self._enough = f"{cause} in {counted(many, 'scenario')}: {enough}"
                self._early.because(self._enough)

    def _judged(self, ran: Finished) -> Iterator[Checked | None]:
        """Judge a record in parts; an error of this program affects this scenario alone."""
        scenario = ran.record.header.scenario
        try:
            history = ran.record.history()
            recorder = StepRecorder(history.header) if self._with_steps else None
            for verdict in judging(history, recorder):
                if verdict is None:
                    yield None
                    continue
                checked = concluded(history, verdict)
                checked = replace(checked, seconds=ran.seconds, problems=ran.problems)
                if recorder is not None:
                    checked = replace(checked, steps=recorder.steps())
        except Exception as error:
            if is_interruption(error):
                raise SignalledError from error
            checked = broken_off(scenario, error)
            checked = replace(checked, seconds=ran.seconds, problems=ran.problems)
        self._keep(ran.record, checked)
        yield checked

    def _keep(self, record: Record, checked: Checked) -> None:
        if self._files is None:
            return
        try:
            self._files.keep(record, checked)
        except OSError as error:
            self._files.failures.append(f"a history could not be kept: {what_is_short(error)}")
