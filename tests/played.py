"""A simulated kernel, so that commands run without /dev/kvm."""

import errno
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Self

import msgspec
import pytest
from click.testing import CliRunner, Result

from tests.ideal import FEATURES, ideal_history
from vmm.cli import check, info, listing, repro, run
from vmm.cli.main import main
from vmm.cli.running import carrying, lanes
from vmm.cli.running.host import Host
from vmm.execution.runner import Record
from vmm.host.health import KernelWatch, Problem
from vmm.host.hostinfo import HostInfo
from vmm.scenario.codec import history_lines
from vmm.scenario.history import End, Event, Header, History, Raced, Refused, Touched
from vmm.scenario.operations import (
    Mapping,
    Place,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)

CREATE = SetUserMemoryRegion(
    slot=1, guest_phys_addr=0x10000, memory_size=0x1000, userspace_addr=Place("a")
)
DELETE = SetUserMemoryRegion(slot=1)


def make(name: str, *tags: str, needs: tuple[str, ...] = ()) -> Scenario:
    return Scenario(
        name,
        (CREATE, Touch(0x10040), DELETE),
        (Mapping("a", 1),),
        why=f"Why of {name}.",
        tags=tags,
        needs=needs,
    )


SCENARIOS = (
    make("create-one", "create"),
    make("create-two", "create"),
    make("move-up", "move"),
    make("huge", "create", needs=("hugetlb_pages",)),
)
INFO = HostInfo("6.99", "x86_64", "A CPU", False, "kvm_amd", "on (kvm_amd.npt=1)")


class Kernel:
    """Plays the kernel: an ideal one, except for what a test changes."""

    def __init__(self) -> None:
        self.features = FEATURES
        self.info = INFO
        self.histories: dict[str, History | type[BaseException]] = {}
        self.complaints: dict[str, tuple[Problem, ...]] = {}
        self.ran: list[str] = []
        self.patience = 1.0
        self.limits: dict[str, float | None] = {}

    def look_at_host(self, patience: float = 1.0) -> Host:
        return Host(self.info, self.features)

    def play(self, header: Header, journal: Path | None) -> Record:
        """Return the record of a scenario, or raise what a test set for it."""
        scenario = header.scenario
        history = self.histories.get(scenario.name) or ideal_history(scenario, header.features)
        if isinstance(history, type):
            raise history
        self.ran.append(scenario.name)
        data = b"".join(history_lines(history))
        if journal is not None:
            journal.write_bytes(data)
        return Record(header, data, history.end.reason if history.end else "")

    def differ(self, name: str) -> None:
        """Refuse the scenario's first own operation."""
        history = ideal_history(named(name))
        self.histories[name] = with_outcome(history, 0, Refused(errno.EEXIST))

    def end(self, name: str, reason: str, events: int = -1) -> None:
        history = ideal_history(named(name))
        self.histories[name] = msgspec.structs.replace(
            history, events=history.events[:events], end=End(reason)
        )

    def news(self) -> tuple[Problem, ...]:
        return self.complaints.get(self.ran[-1], ())


class PlayedWorker:
    """Replaces `runner.Worker`: scenarios end as soon as they are waited for."""

    def __init__(
        self,
        kernel: Kernel,
        headers: Sequence[Header],
        *,
        journal: Path | None = None,
        cpu: int | None = None,
        patience: float = 1.0,
        process: str = "",
    ) -> None:
        kernel.patience = patience
        self._kernel = kernel
        self._headers = headers
        self._journal = journal
        self._index = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def start(self, index: int, limit_s: float | None = None) -> None:
        self._index = index
        self._kernel.limits[self._headers[index].scenario.name] = limit_s

    def ended(self) -> bool:
        return False

    def interrupt(self) -> None:
        pass

    def wait(self) -> Record:
        return self._kernel.play(self._headers[self._index], self._journal)


def named(name: str) -> Scenario:
    return next(scenario for scenario in SCENARIOS if scenario.name == name)


def with_outcome(history: History, origin: int, outcome: Refused | Touched | Raced) -> History:
    """Change the outcome of the first event of an operation."""
    at = next(i for i, event in enumerate(history.events) if event.origin == origin)
    events = list(history.events)
    events[at] = Event(origin, events[at].operation, outcome)
    return msgspec.structs.replace(history, events=tuple(events))


def played(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Replace the real kernel by a simulated one, for every command."""
    kernel = Kernel()
    monkeypatch.setattr("vmm.catalogue.catalogue", lambda features, with_large=True: SCENARIOS)
    for command in (check, info, listing, repro, run):
        monkeypatch.setattr(command, "look_at_host", kernel.look_at_host)
    monkeypatch.setattr(carrying, "Worker", partial(PlayedWorker, kernel))
    monkeypatch.setattr(lanes, "usual_lanes", lambda: 1)
    monkeypatch.setattr(lanes, "first_ended", lambda workers: workers[-1])
    monkeypatch.setattr(KernelWatch, "news", lambda watch: kernel.news())
    return kernel


def vmm(*args: object, stdin: str = "", **environment: str) -> Result:
    """Run a command, with standard input and additional environment variables."""
    words = [str(arg) for arg in args]
    return CliRunner(env=environment).invoke(main, words, prog_name="vmm", input=stdin)
