"""What a format is: three functions, told of a run's beginning, of each result, and of its end.

The formats are the files beside this one. Each has a function that takes where it is to write and
returns a `Reporter`. Results come in the order of the scenarios that ``begin`` was told of, so that
what is written is the same for the same results, however the run went.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from vmm.host.hostinfo import HostInfo
from vmm.scenario.operations import Scenario
from vmm.verdict.result import Checked, Run

Write = Callable[[str], object]
"""Takes text, line ends included."""


@dataclass(frozen=True, slots=True)
class Reporter:
    """A format under way.

    ``begin`` gets the scenarios that are to run and the host, ``done`` each result in that order,
    ``end`` the whole run, once.
    """

    begin: Callable[[Sequence[Scenario], HostInfo], None]
    done: Callable[[Checked], None]
    end: Callable[[Run], None]


def at_the_end(write: Write, render: Callable[[Run], str]) -> Reporter:
    """Return the reporter of a format that is one document: it is written when all is known."""
    return Reporter(
        lambda scenarios, host: None, lambda checked: None, lambda run: _ignored(write(render(run)))
    )


def together(reporters: Iterable[Reporter]) -> Reporter:
    """Return what tells several reporters: one that fails keeps nothing from the others."""
    every = tuple(reporters)

    def begin(scenarios: Sequence[Scenario], host: HostInfo) -> None:
        _all(partial(each.begin, scenarios, host) for each in every)

    def done(checked: Checked) -> None:
        _all(partial(each.done, checked) for each in every)

    def end(run: Run) -> None:
        _all(partial(each.end, run) for each in every)

    return Reporter(begin, done, end)


def _all(calls: Iterable[Callable[[], object]]) -> None:
    """Make all calls, and raise then what the first of them raised that did."""
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
    """Return scenarios by their subject, subjects in the order in which they appear."""
    subjects: dict[str, list[Scenario]] = {}
    for scenario in scenarios:
        subjects.setdefault(subject_of(scenario), []).append(scenario)
    return subjects


def _ignored(_: object) -> None:
    return None
