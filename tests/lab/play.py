"""Plays scenarios on wrong kernels: `python -m tests.lab.play`, with the library preloaded.

Reads lines of ``fault scenario`` and answers each with ``status rule``: the verdict, and the rule
that the kernel broke (- if none). An error of the harness is ``harness why``.
"""

import gc
import os
import sys

import msgspec

from vmm.catalogue import catalogue
from vmm.execution.probe.features import probe_features
from vmm.execution.runner import HarnessError, run_isolated
from vmm.host.hostinfo import host_facts
from vmm.kvm.system import Kvm
from vmm.scenario.operations import Lives, Scenario
from vmm.verdict.judge import Verdict
from vmm.verdict.result import judged

MOST_LIVES = 200
PATIENCE = 4
"""Leaks are measured with a wait as long as the work, also on a busy host."""


def play() -> None:
    """Answer requests until the input ends."""
    os.environ["WRONG_KERNEL"] = ""
    with Kvm.open() as kvm:
        features = probe_features(kvm)
    host = host_facts().in_brief()
    known = {scenario.name: _shortened(scenario) for scenario in catalogue(features)}
    gc.freeze()  # The catalogue stays, so collections need not look at it.
    for line in sys.stdin:
        fault, name = line.split()
        os.environ["WRONG_KERNEL"] = "" if fault == "-" else fault
        try:
            verdict = judged(
                run_isolated(known[name], features, host=host, patience=PATIENCE)
            ).verdict
            print(verdict.status.value, _rule(verdict), flush=True)
        except HarnessError as error:
            print("harness", str(error).replace("\n", " "), flush=True)


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
