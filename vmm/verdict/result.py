"""The result of a run of scenarios: the input of every report."""

from collections import Counter
from dataclasses import dataclass, replace

from vmm.host.health import Problem
from vmm.host.hostinfo import HostInfo
from vmm.scenario.endings import is_short, why_failed
from vmm.scenario.features import Features
from vmm.scenario.history import History
from vmm.scenario.operations import Scenario
from vmm.verdict import statuses
from vmm.verdict.judge import Status, Verdict, judging
from vmm.verdict.known.issue import KnownIssue
from vmm.verdict.known.weighing import weighed
from vmm.verdict.steps import Step, StepRecorder


@dataclass(frozen=True, slots=True)
class Checked:
    """One scenario, its verdict, and the kernel's complaints during it.

    ``ran`` is how many of the scenario's operations were begun; ``issue`` is the known issue that
    explains the verdict; ``steps`` are there if they were asked for. ``again`` is the command that
    shows the result again, empty where that is `vmm check` with the scenario's name.

        >>> from vmm import Scenario, operations, run_scenario
        >>> checked = run_scenario(Scenario("nobody", (operations.Touch(0x1000),)))
        >>> next(step.outcome for step in checked.steps if step.origin == 0)
        '0xffffffff, MMIO read 0x1000+4 ffffffff'
    """

    scenario: Scenario
    verdict: Verdict
    ran: int = 0
    seconds: float = 0.0
    problems: tuple[Problem, ...] = ()
    issue: KnownIssue | None = None
    steps: tuple[Step, ...] = ()
    again: str = ""

    @property
    def unexplained(self) -> tuple[Problem, ...]:
        """The kernel's complaints, except those that a known issue accounts for."""
        if self.issue is None or self.verdict.status is not Status.KNOWN:
            return self.problems
        return self.issue.unexplained(self.problems)

    @property
    def failed(self) -> bool:
        """Whether the kernel differed or complained, and no known issue explains it."""
        return self.verdict.status is Status.DIFFERS or bool(self.unexplained)


def broken_off(scenario: Scenario, error: BaseException) -> Checked:
    """Return the result of a scenario that an error ended which is no verdict on the kernel.

    The host ran out of something, or this program failed. Other scenarios are not affected.
    """
    status = Status.INCONCLUSIVE if is_short(error) else Status.INTERNAL_ERROR
    verdict = Verdict(scenario.name, status, why_failed(error))
    return Checked(scenario, verdict)


def judged(history: History) -> Checked:
    """Judge a history and return its result, with its steps."""
    recorder = StepRecorder(history.header)
    *_, verdict = judging(history, recorder)
    assert verdict is not None
    return replace(concluded(history, verdict), steps=recorder.steps())


def concluded(history: History, verdict: Verdict) -> Checked:
    """Return the result of a history whose verdict is there already."""
    scenario = history.header.scenario
    verdict, issue = weighed(verdict, history)
    last = history.events[-1].origin if history.events else -1
    if verdict.under_way is not None:
        last = verdict.under_way.origin
    return Checked(scenario, verdict, min(last + 1, len(scenario.operations)), issue=issue)


@dataclass(frozen=True, slots=True)
class Run:
    """The result of all scenarios of a run.

    ``weaknesses`` name what could not be watched; ``not_run`` names the scenarios that an early end
    left out; ``cpus`` are those that scenarios ran on, one at a time on each. ``obstacle`` says why
    nothing could run, ``early`` why the run ended early; ``error`` is the traceback of an error of
    this program that belongs to no scenario. At least ``required`` scenarios must run.
    """

    checked: tuple[Checked, ...]
    features: Features
    host: HostInfo
    weaknesses: tuple[str, ...] = ()
    not_run: tuple[str, ...] = ()
    cpus: tuple[int, ...] = (0,)
    seconds: float = 0.0
    obstacle: str = ""
    early: str = ""
    error: str = ""
    required: int = 0

    @property
    def ran(self) -> int:
        """How many scenarios were not skipped."""
        return sum(each.verdict.status is not Status.SKIPPED for each in self.checked)

    @property
    def exit_status(self) -> int:
        """The exit status of a command with this result."""
        status = self.status.exit_status
        is_well = status in (statuses.PASSED, statuses.NOTHING_RAN)
        return statuses.TOO_FEW_RAN if is_well and self.ran < self.required else status

    @property
    def status(self) -> Status:
        """The status of the whole run; a complaint of the kernel counts as a difference."""
        found = {each.verdict.status for each in self.checked}
        if any(each.failed for each in self.checked):
            return Status.DIFFERS
        if self.error or Status.INTERNAL_ERROR in found:
            return Status.INTERNAL_ERROR
        if self.not_run or self.early or Status.INCONCLUSIVE in found:
            return Status.INCONCLUSIVE
        return Status.SKIPPED if found <= {Status.SKIPPED} else Status.PASSED

    @property
    def counts(self) -> dict[Status, int]:
        """How many scenarios got each verdict, in the order of Status; zeros included."""
        counter = Counter(each.verdict.status for each in self.checked)
        return {status: counter[status] for status in Status}
