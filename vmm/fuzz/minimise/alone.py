"""Minimises a single scenario (``vmm fuzz --minimise``)."""

from vmm.execution.runner import long_enough, run_isolated
from vmm.fuzz.endings import ended_badly, ending
from vmm.fuzz.findings import Finding
from vmm.fuzz.interruption import Interruption
from vmm.fuzz.minimise.stages import Stages
from vmm.host.cpus import allowed
from vmm.scenario.features import Features
from vmm.scenario.operations import Scenario
from vmm.verdict.judge import Verdict, judge

_TIME_LIMIT_S = 120.0
_RUN_LIMIT_S = 10.0
_TICK_S = 0.1


def minimise_scenario(
    scenario: Scenario, features: Features, interruption: Interruption
) -> Finding | Verdict:
    """Return a scenario minimised, until interrupted; its verdict if nothing differs.

    Raises HarnessError.
    """
    limit_s = long_enough(scenario, _RUN_LIMIT_S)
    history = run_isolated(scenario, features, time_limit_s=limit_s)
    verdict = judge(history)
    if verdict.difference is not None:
        identity = verdict.difference.identity
    elif ended_badly(verdict.reason):
        identity = ending(verdict.reason)
    else:
        return verdict
    found = Finding(scenario, identity, 0, found_with=len(scenario.operations))
    with Stages(found, features, _TIME_LIMIT_S, min(allowed())) as stages:
        while stages.connection is not None and not interruption.asked:
            if stages.answered(_TICK_S):
                stages.receive()
            stages.check_time()
    return stages.finding
