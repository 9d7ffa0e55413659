"""A report format is three functions: for the beginning of a run, each result, and the end.

Each format is a module beside this one, with a function that takes where to write and returns a
`Reporter`. Results come in the order of the scenarios that ``begin`` got, so the same results
always give the same report.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from vmm.host.hostinfo import HostInfo
from vmm.scenario.operations import Scenario
from vmm.verdict.result import Checked, Run

Write = Callable[[str], object]
"""Writes text, line ends included."""


@dataclass(frozen=True, slots=True)
class Reporter:
    """A report in progress.

    ``begin`` gets the scenarios that will run and the host, ``done`` each result in that order,
    ``end`` the whole run, once.
    """

    begin: Callable[[Sequence[Scenario], HostInfo], None]
    done: Callable[[Checked], None]
    end: Callable[[Run], None]


def at_the_end(write: Write, render: Callable[[Run], str]) -> Reporter:
    """Return the reporter of a format that is written as one document at the end."""
    return Reporter(
        lambda scenarios, host: None, lambda checked: None, lambda run: _ignored(write(render(run)))
    )


def together(reporters: Iterable[Reporter]) -> Reporter:
    """Return a reporter that passes everything to several; one that fails does not stop others."""
    every = tuple(reporters)

    def begin(scenarios: Sequence[Scenario], host: HostInfo) -> None:
        _all(partial(each.begin, scenarios, host) for each in every)

    def done(checked: Checked) -> None:
        _all(partial(each.done, checked) for each in every)

    def end(run: Run) -> None:
        _all(partial(each.end, run) for each in every)

    return Reporter(begin, done, end)


def _all(calls: Iterable[Callable[[], object]]) -> None:
    """Make all calls, then raise the first exception that any of them raised."""
    raised: Exception | None = None
    for call in calls:
        try:
            call()
        except Exception as error:
            raised = raised or error
    if raised is not None:
        raise raised


def subject_of(scenario: Scenario) -> str:
    """Return the group of a scenario: its first tag."""
    return scenario.tags[0] if scenario.tags else "scenarios"


def by_subject(scenarios: Iterable[Scenario]) -> dict[str, list[Scenario]]:
    """Return scenarios by subject, in the order in which the subjects appear."""
    subjects: dict[str, list[Scenario]] = {}
    for scenario in scenarios:
        subjects.setdefault(subject_of(scenario), []).append(scenario)
    return subjects


def _ignored(_: object) -> None:
    return None
