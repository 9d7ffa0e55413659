"""Plays scenarios on wrong kernels: `python -m tests.lab.play`, with the library preloaded.

Reads lines of ``fault scenario`` and answers each with ``status rule``: the verdict, and the rule
that the kernel broke (- if none). An error of the harness is ``harness why``.

One child plays them all, each on its own VM, since to fork takes as long as to play most of them.
Scenarios that count what VMs leave behind have one of their own.
"""

import gc
import os
import sys
from collections.abc import Sequence
from mmap import mmap
from typing import overload

import msgspec

from vmm.catalogue import catalogue
from vmm.execution.probe.features import probe_features
from vmm.execution.runner import HarnessError, Worker, run_isolated
from vmm.host.hostinfo import host_facts
from vmm.kvm.system import Kvm
from vmm.scenario.endings import HARNESS
from vmm.scenario.history import Header, History
from vmm.scenario.operations import Lives, Scenario
from vmm.verdict.judge import Verdict
from vmm.verdict.result import judged

MOST_LIVES = 200
PATIENCE = 4
"""Leaks are measured with a wait as long as the work, also on a busy host."""


class _Headers(Sequence[Header]):
    """Scenarios whose process meets, from when it takes one, the fault that was chosen last."""

    def __init__(self, scenarios: Sequence[Header]) -> None:
        self._scenarios = scenarios
        self._fault = mmap(-1, 4096)  # A child that was forked before reads it, too.

    def choose(self, fault: str) -> None:
        self._fault.seek(0)
        self._fault.write(fault.encode() + b"\n")

    def __len__(self) -> int:
        return len(self._scenarios)

    @overload
    def __getitem__(self, index: int) -> Header: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Header]: ...

    def __getitem__(self, index: int | slice) -> Header | Sequence[Header]:
        self._fault.seek(0)
        os.environ["WRONG_KERNEL"] = self._fault.readline().decode().rstrip()
        return self._scenarios[index]


def play() -> None:
    """Answer requests until the input ends."""
    os.environ["WRONG_KERNEL"] = ""
    with Kvm.open() as kvm:
        features = probe_features(kvm)
    host = host_facts().in_brief()
    scenarios = [Header(_shortened(each), features, host) for each in catalogue(features)]
    numbers = {header.scenario.name: number for number, header in enumerate(scenarios)}
    headers = _Headers(scenarios)
    gc.freeze()  # The catalogue stays, so collections need not look at it.
    with Worker(headers, patience=PATIENCE) as worker:
        for line in sys.stdin:
            fault, name = line.split()
            headers.choose("" if fault == "-" else fault)
            try:
                verdict = judged(_played(worker, headers, numbers[name])).verdict
                print(verdict.status.value, _rule(verdict), flush=True)
            except HarnessError as error:
                print("harness", str(error).replace("\n", " "), flush=True)


def _played(worker: Worker, headers: Sequence[Header], number: int) -> History:
    header = headers[number]
    if not any(isinstance(op, Lives) for op in header.scenario.operations):
        worker.start(number)
        history = worker.wait().history()
        # What a fault has left in the process may be in the way of another scenario.
        if history.end is None or not history.end.reason.startswith(HARNESS):
            return history
    return run_isolated(header.scenario, header.features, host=header.host, patience=PATIENCE)


def _shortened(scenario: Scenario) -> Scenario:
    """Limit the number of VMs that live and die: a fault that keeps them shows with hundreds."""
    operations = tuple(
        msgspec.structs.replace(op, times=min(op.times, MOST_LIVES))
        if isinstance(op, Lives)
        else op
        for op in scenario.operations
    )
    return msgspec.structs.replace(scenario, operations=operations)


def _rule(verdict: Verdict) -> str:
    return verdict.difference.expected[0].rule if verdict.difference else "-"


if __name__ == "__main__":
    play()
