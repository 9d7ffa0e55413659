"""Gives tasks to the hosts of a Dask cluster, one at a time to each, and survives lost hosts.

One at a time, because the kernel's complaints belong to a host, not to a process: two tasks side by
side would share their warnings. A task whose worker is gone or silent is tried on another one, and
so is one whose worker cannot do it at all, as without this program or with another version of it:
that worker gets no other task.
"""

import logging
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count

from distributed import Client, Future, KilledWorker, wait

from vmm.fleet.work import Report, run
from vmm.scenario.toolversion import tool_version
from vmm.verdict import statuses

MOST_TRIES = 3
"""A task that loses this many workers may be the cause: it is given up."""

_POLL_S = 0.5

_ANSWER_S = 30
"""A scheduler that takes longer to answer is considered gone."""

_LONGEST_LOOK_S = 5
"""Longer than that between two looks at the workers, and it was this process that stood still."""


@dataclass(frozen=True, slots=True)
class Task:
    """A command of this program, with a name for people."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Callbacks while tasks run: for each that ended, and each that lost its worker."""

    done: Callable[[Task, str, Report], None]
    lost: Callable[[Task, str, str], None]


class _SchedulerLostError(Exception):
    """The scheduler no longer answers."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Dask's own loggers: events are reported once, by us."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _asked() -> Iterator[None]:
    """Turn the errors of calls to a lost scheduler into _SchedulerLostError."""
    try:
        yield
    except (CancelledError, OSError) as error:
        raise _SchedulerLostError(str(error)) from None


@dataclass(slots=True)
class _Running:
    task: Task
    host: str
    worker: str


@dataclass(frozen=True, slots=True)
class _Sign:
    """The last sign of life of a worker: the scheduler's timestamp, and how long we have seen it.

    What we have not seen does not count, or a client that was stopped would find all silent.
    """

    stamp: float
    silent_s: float = 0.0


@dataclass(slots=True)
class Fleet:
    """The hosts of a cluster. ``timeout_s`` limits a task, ``patience_s`` the wait for a worker.

    A worker without a sign of life for ``silence_s`` is lost. ``scheduler_is_gone`` says whether
    `run` ended because the scheduler no longer answered.
    """

    client: Client
    timeout_s: float
    patience_s: float = 30
    silence_s: float = 30
    scheduler_is_gone: bool = False
    _running: dict[Future, _Running] = field(default_factory=dict)
    _numbers: "count[int]" = field(default_factory=count)
    _used: dict[str, int] = field(default_factory=dict)
    _signs: dict[str, _Sign] = field(default_factory=dict)
    _silent: set[str] = field(default_factory=set)
    _unfit: set[str] = field(default_factory=set)
    _looked_s: float | None = None

    def hosts(self) -> dict[str, list[str]]:
        """Return the addresses of the workers (`tcp://HOST:PORT`) by host (`tcp://HOST`).

        Those that have been silent too long, or can do no task, are left out.
        """
        asked = self.client.sync(self.client.scheduler.identity, callback_timeout=_ANSWER_S)
        passed_s = self._time_since_last_look()
        found: dict[str, list[str]] = {}
        self._silent.clear()
        for address, worker in asked["workers"].items():
            sign = self._signs.get(address)
            if sign is None or sign.stamp != worker["last_seen"]:
                sign = _Sign(worker["last_seen"])
            else:
                sign = _Sign(sign.stamp, sign.silent_s + passed_s)
            self._signs[address] = sign
            if sign.silent_s > self.silence_s:
                self._silent.add(address)
            elif address not in self._unfit:
                found.setdefault(address.rpartition(":")[0], []).append(address)
        return found

    def _time_since_last_look(self) -> float:
        now_s = time.monotonic()
        before_s, self._looked_s = self._looked_s, now_s
        return 0.0 if before_s is None else min(now_s - before_s, _LONGEST_LOOK_S)

    def run(self, tasks: Sequence[Task], callbacks: Callbacks) -> tuple[Task, ...]:
        """Run all tasks; return those that could not run.

        These lost too many workers, or no worker was left, or the scheduler was gone.
        """
        waiting = deque(tasks)
        tries = dict.fromkeys(tasks, 0)
        given_up: list[Task] = []
        seen_s = time.monotonic()
        try:
            while waiting or self._running:
                with _asked():
                    hosts = self.hosts()
                for task, host, why, is_task_tried in self._gather(hosts, callbacks):
                    tries[task] += is_task_tried
                    callbacks.lost(task, host, why)
                    (given_up if tries[task] >= MOST_TRIES else waiting).append(task)
                with _asked():
                    self._submit(hosts, waiting)
                if self._running or hosts:
                    seen_s = time.monotonic()
                elif time.monotonic() - seen_s > self.patience_s:
                    break
                with _asked():
                    self._pause()
        except _SchedulerLostError:
            self.scheduler_is_gone = True
            given_up += [running.task for running in self._running.values()]
        finally:
            with suppress(CancelledError, OSError):
                for future in self._running:
                    future.cancel()
            self._running.clear()
        return (*given_up, *waiting)

    def _gather(
        self, hosts: dict[str, list[str]], callbacks: Callbacks
    ) -> list[tuple[Task, str, str, bool]]:
        """Collect finished tasks; return each that lost its worker, its host, and why.

        The last says whether the task may be the cause, and not only a worker that can do none.
        """
        there = {address for addresses in hosts.values() for address in addresses}
        lost = []
        for future, running in list(self._running.items()):
            if future.done():
                del self._running[future]
                try:
                    report = future.result()
                except Exception as error:  # Whatever the cluster or the worker raises.
                    is_task_tried = not self._can_do_none(running.worker, error)
                    why = str(error) or type(error).__name__
                    lost.append((running.task, running.host, why, is_task_tried))
                    continue
                if report.status == statuses.USAGE:
                    self._unfit.add(running.worker)
                    why = report.complained.strip().rpartition("\n")[2].removeprefix("vmm: ")
                    lost.append((running.task, running.host, why, False))
                else:
                    callbacks.done(running.task, running.host, report)
            elif running.worker not in there:
                del self._running[future]
                future.cancel()
                silent = running.worker in self._silent
                how = f"has been silent for {self.silence_s:g} s" if silent else "is gone"
                why = f"the worker {running.worker} {how}"
                lost.append((running.task, running.host, why, True))
        return lost

    def _can_do_none(self, worker: str, error: Exception) -> bool:
        """Whether a worker can do no task, since it has this program not, or otherwise; note it."""
        if isinstance(error, subprocess.TimeoutExpired | KilledWorker | CancelledError):
            return False
        self._unfit.add(worker)
        return True

    def _submit(self, hosts: dict[str, list[str]], waiting: deque[Task]) -> None:
        busy = {running.host for running in self._running.values()}
        for host, workers in hosts.items():
            fit = [each for each in workers if each not in self._unfit]
            if not waiting or host in busy or not fit:
                continue
            worker = min(fit, key=lambda address: self._used.get(address, 0))
            self._used[worker] = self._used.get(worker, 0) + 1
            task = waiting[0]
            future = self.client.submit(
                run,
                task.command,
                self.timeout_s,
                host,
                tool_version(),
                key=f"vmm-{id(self)}-{next(self._numbers)}",
                workers=[worker],
                allow_other_workers=False,
                retries=0,
                pure=False,
            )
            self._running[future] = _Running(waiting.popleft(), host, worker)

    def _pause(self) -> None:
        if not self._running:
            time.sleep(_POLL_S)
            return
        with suppress(TimeoutError):
            wait(list(self._running), timeout=_POLL_S, return_when="FIRST_COMPLETED")
