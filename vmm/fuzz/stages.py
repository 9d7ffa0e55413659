"""The processes that shrink a finding, one after the other, and what each of them says."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec

from vmm.fuzz.confirming import Doubt, confirm
from vmm.fuzz.findings import Finding
from vmm.fuzz.messages import Best, Shrunk
from vmm.fuzz.shrinking import ENDINGS, Task, run_shrinker
from vmm.host.child import Child
from vmm.scenario.operations import Scenario


def stages(
    task: Task,
    best: Callable[[], Finding],
    others: Sequence[Scenario],
    left_s: Callable[[], float],
) -> Iterator[Child]:
    """Yield processes, each to be started when the one before has ended, while there is time.

    ``best`` returns what was come to by then. ``others`` are scenarios that differed likewise when
    they were found; there may be more of them in the end.
    """
    yield Child.start(partial(run_shrinker, task))
    if task.kind in ENDINGS:  # Each try has had a process of its own.
        return
    if left_s() > 0:
        come_to = best()
        is_sure = 0 < come_to.runs == come_to.differed
        again = msgspec.structs.replace(task, time_limit_s=left_s())
        yield confirm(Doubt(come_to.scenario, is_sure, again, tuple(others)))
    if not best().runs and left_s() > 0:
        again = msgspec.structs.replace(task, time_limit_s=left_s(), is_steady=False)
        yield Child.start(partial(run_shrinker, again))


def improved(found: Finding, message: Best | Shrunk) -> Finding:
    """Return a finding as a process says that it is now."""
    news: dict[str, Any] = msgspec.structs.asdict(message)
    if isinstance(message, Best):
        news |= {"differed": 0, "runs": 0, "unfinished": True}
    return replace(found, **news)
