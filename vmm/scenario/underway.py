"""What was under way when a history broke off.

An operation is recorded only once it is done. That is enough: the plan depends only on the scenario
and on the features in the header, so it tells what came next.
"""

from vmm.scenario.history import History, SetUpRefused
from vmm.scenario.plan import Step, batches, steps


def under_way(history: History) -> tuple[Step, ...]:
    """Return the steps that had begun, or were about to begin, when a history broke off.

    There are several if touches share one KVM_RUN: which of them it was is not known. There are
    none for a complete history, nor for one that was recorded with a different plan.
    """
    if history.end is not None and not history.end.reason:
        return ()
    header, recorded = history.header, history.events
    if recorded and isinstance(recorded[-1].outcome, SetUpRefused):
        return ()  # The last step is recorded, with its outcome.
    done = 0
    for batch in batches(steps(header.scenario, header.features.touch_limit)):
        known = min(len(recorded) - done, len(batch))
        for step, event in zip(batch, recorded[done : done + known], strict=False):
            if (step.origin, step.operation) != (event.origin, event.operation):
                return ()
        if known < len(batch):
            return tuple(batch[known:])
        done += known
    return ()
