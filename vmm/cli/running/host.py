"""Finds out what this host's KVM can do, or why it cannot be used."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import click

from vmm.cli.options.finite import FiniteRange
from vmm.cli.output.errors import InProbing, NothingRan, TooFewRan
from vmm.host.cpus import allowed, stay_on
from vmm.host.hostinfo import HostInfo, host_facts
from vmm.report import terminal
from vmm.scenario.endings import is_short
from vmm.scenario.features import Features
from vmm.scenario.operations import Scenario
from vmm.scenario.trouble import Trouble
from vmm.verdict import statuses
from vmm.verdict.judge import Status
from vmm.verdict.probing import troubled
from vmm.verdict.result import Checked, Run

USUAL = Features()
"""The features that kernels usually have, for a host whose kernel cannot be probed."""

NOT_ASKED = "the kernel could not be asked what it can do"
"""Why nothing runs if there is `Host.trouble`."""


patience_option = click.option(
    "--patience",
    type=FiniteRange(min=0.1),
    default=1,
    envvar="VMM_PATIENCE",
    metavar="FACTOR",
    help="Let the kernel take FACTOR times as long: more on an emulated machine.",
)
"""The option; a command gets ``patience``."""


@dataclass(frozen=True, slots=True)
class Host:
    """A host and its kernel's features, or why these could not be probed."""

    info: HostInfo
    features: Features = USUAL
    probe_failure: Trouble | None = None

    @property
    def trouble(self) -> Checked | None:
        """The verdict on a kernel that could not be probed."""
        return None if self.probe_failure is None else troubled(self.probe_failure)

    @property
    def why_not(self) -> str:
        """Why nothing can run on this host, and what to do about it; empty if it can."""
        info = self.info
        return f"nothing could run: {info.obstacle}; {info.remedy}" if info.obstacle else ""


def nothing(host: Host, early: str = "") -> Run:
    """Return a run of nothing: on a host that cannot be used, or because it ended ``early``."""
    return Run((), host.features, host.info, obstacle=host.why_not, early=early)


def nothing_can_run(host: Host, scenarios: Sequence[Scenario]) -> Run | None:
    """Return the run of scenarios on a host where none can run; None if they can."""
    if host.trouble is not None:
        left = tuple(each.name for each in scenarios)
        return Run((host.trouble,), host.features, host.info, not_run=left, early=NOT_ASKED)
    return nothing(host) if host.why_not else None


def remarks_on(run: Run) -> Iterator[str]:
    """Yield what to say about a run on standard error, whatever its formats are."""
    if run.error:
        yield f"{run.error}vmm: internal error: this says nothing about the kernel"
    if run.obstacle:
        yield run.obstacle
    if run.exit_status == statuses.TOO_FEW_RAN:
        yield f"only {run.ran} of {len(run.checked)} scenarios ran: --require-run {run.required}"


def require_usable(host: Host, required: int = 0) -> None:
    """Raise a Failure that says why, if nothing can run on this host."""
    if host.trouble is not None:
        lines = terminal.scenario_report(host.trouble, "vmm info", None)
        text = "\n".join(line.plain for line in lines)
        raise InProbing(f"asking the kernel\n{text}", host.trouble.verdict.status.exit_status)
    if host.why_not and required:
        raise TooFewRan(f"{host.why_not} (--require-run {required})")
    if host.why_not:
        raise NothingRan(host.why_not)


def exit_status(status: Status, required: bool) -> int:
    """Return the exit status of a command that may have had nothing to run."""
    if status is Status.SKIPPED and required:
        return statuses.TOO_FEW_RAN
    return status.exit_status


def look_at_host(patience: float = 1.0) -> Host:
    """Return this host; its ``info.obstacle`` says why its KVM cannot be used.

    Probing may take ``patience`` times as long as usual.
    """
    facts = host_facts()
    if facts.obstacle:
        return Host(facts)
    try:
        from vmm.execution.probe.child import TIME_LIMIT_S, Probed, probe
        from vmm.execution.probe.obstacles import obstacle
    except ImportError as error:
        if is_short(error):
            raise
        missing = f"a compiled module is missing: {error}"
        remedy = "build it: `pip install -e .`, or run ./scripts/vmm, which does"
        return Host(replace(facts, obstacle=missing, remedy=remedy))
    found = probe(TIME_LIMIT_S * patience)
    if isinstance(found, Probed):
        facts = replace(facts, capabilities=found.capabilities)
    lacking = obstacle(found)
    if lacking is not None:
        return Host(replace(facts, obstacle=lacking.why, remedy=lacking.remedy))
    if isinstance(found, Probed):
        return Host(facts, found.features)
    return Host(facts, USUAL, found)


@contextmanager
def reserved_cpus(count: int) -> Iterator[tuple[int, ...]]:
    """Yield CPUs for scenarios to run on, and keep this process off them, if there are others.

    They are the lowest allowed ones; if there are too few, the first one repeatedly. Slot-changing
    ioctls wait for an SRCU grace period, which takes up to five times longer on a small idle host
    if it is not the first CPU that waits.
    """
    found = allowed()
    cpus = sorted(found)[:count]
    stay_on(found.difference(cpus) or found.difference(cpus[:1]) or found)
    try:
        yield (*cpus, *cpus[:1] * (count - len(cpus)))
    finally:
        stay_on(found)
