"""The stages in which one finding is minimised, each a process.

The first minimises it; each try is a VM of its own in that process. The second, in which KVM was
never used, checks whether the result differs there, too; if not, it minimises again, with a process
for each try. If there is no result by then, it is minimised once more, however unsteady it is.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from vmm.execution.runner import HarnessError
from vmm.fuzz.endings import is_ending
from vmm.fuzz.findings import Finding
from vmm.fuzz.messages import Best, Failed, Minimised, receive
from vmm.fuzz.minimise.confirm import Doubt, confirm
from vmm.fuzz.minimise.process import Task, run_minimiser
from vmm.host.child import Child
from vmm.kvm.closing import Closing
from vmm.scenario.endings import HARNESS, HOST, why_failed
from vmm.scenario.features import Features
from vmm.scenario.operations import Scenario

_GRACE_S = 30.0
"""How long a process may exceed the limit: to finish a try, and to measure the rate."""


class Stages(Closing):
    """Minimises one finding; ``finding`` is the result so far.

    ``others`` are scenarios that differed likewise when they were found; the list may grow. Issues
    that ``host`` is known to have are no difference. ``notes`` say how a process failed.
    """

    def __init__(
        self,
        found: Finding,
        features: Features,
        time_limit_s: float,
        cpu: int,
        others: Sequence[Scenario] = (),
        host: dict[str, str] | None = None,
    ) -> None:
        self.finding = replace(found, unfinished=True)
        self.notes: list[str] = []
        self._others = others
        self._deadline = time.monotonic() + time_limit_s
        self._task = Task(
            found.scenario, found.identity, features, time_limit_s, cpu, host=host or {}
        )
        self._children = self._processes()
        self._child = next(self._children, None)

    @property
    def connection(self) -> Connection | None:
        """Messages of the current stage's process; None when all stages are over."""
        return None if self._child is None else self._child.connection

    def answered(self, time_limit_s: float) -> bool:
        """Whether a message arrives within a time limit."""
        return self._child is not None and self._child.answered(time_limit_s)

    def receive(self) -> None:
        """Handle a message. Raises HarnessError if this program is at fault."""
        assert self._child is not None
        try:
            message = receive(self._child.connection)
        except EOFError:
            how = self._end_child()
            if how.startswith(HARNESS):
                raise HarnessError(how.removeprefix(HARNESS)) from None
            self._child = next(self._children, None)
            return
        match message:
            case Best() | Minimised():
                self.finding = _improved(self.finding, message)
            case Failed(reason, is_host=True):
                self._note(HOST + reason)
            case Failed(reason):
                raise HarnessError(reason)
            case other:
                raise HarnessError(f"a minimiser said {type(other).__name__}")

    def check_time(self) -> None:
        """End a process that takes too long, since it hangs."""
        if self._left_s() < -_GRACE_S:
            self.close()

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._end_child()

    def _end_child(self) -> str:
        """End the process, and return how it died by itself."""
        assert self._child is not None
        how = self._child.end()
        self._child = None
        if how and not how.startswith(HARNESS):
            self._note(how)
        return how

    def _note(self, how: str) -> None:
        self.notes.append(f"minimising '{self.finding.identity}': {how}")

    def _left_s(self) -> float:
        return self._deadline - time.monotonic()

    def _processes(self) -> Iterator[Child]:
        """Yield processes, each started when the previous one has ended, while there is time."""
        yield Child.start(partial(run_minimiser, self._task), explain=why_failed)
        if is_ending(self._task.identity):  # Each try had a process of its own already.
            return
        if self._left_s() > 0:
            found = self.finding
            is_sure = 0 < found.runs == found.differed
            yield confirm(
                Doubt(found.scenario, is_sure, self._again(), tuple(self._others), found.before)
            )
        if not self.finding.runs and self._left_s() > 0:
            again = msgspec.structs.replace(self._again(), is_steady=False)
            yield Child.start(partial(run_minimiser, again), explain=why_failed)

    def _again(self) -> Task:
        return msgspec.structs.replace(self._task, time_limit_s=self._left_s())


def _improved(found: Finding, message: Best | Minimised) -> Finding:
    """Return a finding updated by a message."""
    news: dict[str, Any] = msgspec.structs.asdict(message)
    if isinstance(message, Best):
        news |= {"differed": 0, "runs": 0, "unfinished": True}
    return replace(found, **news)
