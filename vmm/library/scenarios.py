"""Runs scenarios from a program: records them on this kernel, and judges them."""

import errno
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import msgspec

from vmm.catalogue import catalogue
from vmm.execution.probe.child import probe
from vmm.execution.probe.obstacles import obstacle
from vmm.execution.runner import run_unless_interrupted
from vmm.host.freememory import FreeMemory
from vmm.host.health import KernelWatch
from vmm.host.hostinfo import HostInfo, host_facts
from vmm.kvm.system import DEVICE
from vmm.report import terminal
from vmm.scenario import outcomewords, plan
from vmm.scenario.demand import short_of_memory
from vmm.scenario.features import Features
from vmm.scenario.guestplace import placed
from vmm.scenario.hexadecimal import in_numbers
from vmm.scenario.history import Header, History
from vmm.scenario.mistakes import in_words
from vmm.scenario.operations import Scenario
from vmm.scenario.problem import ScenarioError
from vmm.scenario.selection import Selection
from vmm.scenario.trouble import Trouble
from vmm.scenario.validate import validate
from vmm.verdict.judge import Status, Verdict
from vmm.verdict.result import Checked, judged


@cache
def features_here() -> Features:
    """Return what this kernel and this process can do, probed once, in a child process.

    Raises `OSError` if /dev/kvm cannot be used, or KVM has no memslots by its own word, and
    `RuntimeError` if the kernel refuses what every VMM needs, or hangs: `vmm check` then reports
    more.

        >>> features_here().nr_memslots > 32
        True
    """
    os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    found = probe()
    lacking = obstacle(found)
    if lacking is not None:
        raise OSError(errno.ENODEV, f"{lacking.why}; {lacking.remedy}")
    if isinstance(found, Trouble):
        why = outcomewords.outcome(found.refused) if found.refused else found.reason
        raise RuntimeError(f"the kernel cannot be asked what it can do: {found.step}: {why}")
    return found.features


@cache
def _curated() -> tuple[Scenario, ...]:
    return catalogue(features_here())


@cache
def _host() -> HostInfo:
    return host_facts()


def curated_scenarios(pattern: str = "*") -> Iterator[Scenario]:
    """Yield the curated scenarios for this kernel whose name matches a pattern, such as `move-*`.

    Includes those tagged `slow`. Raises `OSError` if /dev/kvm cannot be used, and `ValueError`,
    with the closest names, for a pattern that matches nothing.

        >>> next(curated_scenarios("move-*")).name
        'move-up'
    """
    return iter(Selection((pattern,), everything=True).among(_curated()))


def why_not(scenario: Scenario) -> str:
    """Return what this host lacks for a scenario, as a phrase; empty if it can run.

    Raises `OSError` if /dev/kvm cannot be used.

        >>> from vmm import curated_scenarios
        >>> why_not(next(curated_scenarios("move-up")))
        ''
    """
    features = features_here()
    return plan.why_not(scenario, features) or short_of_memory(scenario, FreeMemory().size_bytes())


def record_scenario(scenario: Scenario, *, time_limit_s: float | None = None) -> History:
    """Run a scenario on this kernel, in a process of its own, and return its history.

    A guest or a call that never ends is stopped after `time_limit_s` seconds: `History.end.reason`
    says so. The default is 20 seconds plus 2 ms for each operation, or what the scenario may take
    by its size if that is more.

    Raises `vmm.ScenarioError` for a scenario that is not safe to run, or has a field of another
    type; `TypeError` for what is no scenario, `ValueError` for a limit that is no time, `OSError`
    if /dev/kvm cannot be used, and `KeyboardInterrupt` if that came meanwhile.

        >>> from vmm import Scenario, judge, operations
        >>> history = record_scenario(Scenario("nobody-there", (operations.Touch(0x1000),)))
        >>> judge(history).status.value
        'passed'
    """
    _require_time(time_limit_s)
    return _recorded(_safe(scenario), time_limit_s)


def _require_time(limit_s: float | None) -> None:
    if limit_s is not None and not 0 < limit_s < math.inf:
        raise ValueError(f"time_limit_s: {limit_s} is no time")


def _recorded(scenario: Scenario, time_limit_s: float | None) -> History:
    header = Header(scenario, features_here(), _host().in_brief())
    return run_unless_interrupted(header, time_limit_s)


def _safe(scenario: Scenario) -> Scenario:
    """Return a scenario with its guest's place, which is safe to run. Raises as its callers do."""
    scenario = placed(_sound(scenario))
    validate(scenario)
    return scenario


def _sound(scenario: Scenario) -> Scenario:
    """Return a scenario whose fields have their types: what is made in Python may have others."""
    if not isinstance(scenario, Scenario):
        hint = "curated_scenarios() yields those with a name"
        raise TypeError(f"{scenario!r} is no vmm.Scenario; {hint}")
    raw = in_numbers(msgspec.to_builtins(scenario))
    try:
        return msgspec.convert(raw, Scenario)
    except msgspec.ValidationError as error:
        raise ScenarioError(in_words(error, raw)) from None


def run_scenario(scenario: Scenario, *, time_limit_s: float | None = None) -> Checked:
    """Run a scenario on this kernel, and judge it.

    The result has the verdict, the kernel's complaints during it, and each operation with the
    memslots after it and what the guest met (`Checked.steps`). If the host lacks something the
    verdict is `Status.SKIPPED`, with the reason. `describe` turns a result into text.

    Raises what `record_scenario` raises.

        >>> from vmm import Mapping, Place, Scenario, operations
        >>> create = operations.SetUserMemoryRegion(
        ...     slot=0, guest_phys_addr=0x10000, memory_size=0x2000, userspace_addr=Place("a")
        ... )
        >>> checked = run_scenario(Scenario("mine", (create,), (Mapping("a", pages=2),)))
        >>> checked.verdict.status.value
        'passed'
        >>> [slot.slot_id for slot in checked.steps[1].slots]
        [400, 0]
    """
    scenario = _safe(scenario)
    lacking = why_not(scenario)
    if lacking:
        return Checked(scenario, Verdict(scenario.name, Status.SKIPPED, f"needs {lacking}"))
    _require_time(time_limit_s)
    with KernelWatch() as watch:
        checked = judged(_recorded(scenario, time_limit_s))
        return replace(checked, problems=watch.news())


def describe(checked: Checked) -> str:
    """Return a result as text, as the command line prints it, without a final newline.

    Raises nothing.

    >>> from vmm import Scenario
    >>> print(describe(run_scenario(Scenario("nothing", ()))))
    PASSED       nothing: 4 events judged by 3 rules
    """
    again = f"vmm.run_scenario({checked.scenario.name!r})"
    return "\n".join(line.plain for line in terminal.single(checked, again, None))
