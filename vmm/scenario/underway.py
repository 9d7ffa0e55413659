"""What was under way when a history broke off.

Nothing is recorded of an operation before it is done, and nothing need be: the plan depends on the
scenario and on what the header says of the kernel alone, so that it tells what came next.
"""

from vmm.scenario.history import History, SetUpRefused
from vmm.scenario.plan import Step, batches, steps


def under_way(history: History) -> tuple[Step, ...]:
    """Return the steps that had begun, or were about to, when a history broke off.

    They are several where touches are made in one KVM_RUN: which of them it was is not known. There
    are none for a history that came to its end, nor for one that another plan led to.
    """
    if history.end is not None and not history.end.reason:
        return ()
    header, recorded = history.header, history.events
    if recorded and isinstance(recorded[-1].outcome, SetUpRefused):
        return ()  # It is known how that ended.
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
