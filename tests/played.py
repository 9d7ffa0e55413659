"""A kernel that is played: the commands run on it without /dev/kvm."""

import errno
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from tests.ideal import FEATURES, ideal_history
from vmm.cli import check, execution, info, run
from vmm.cli.host import Host
from vmm.cli.main import main
from vmm.health import KernelWatch, Problem
from vmm.hostinfo import HostInfo
from vmm.memslots.codec import history_lines
from vmm.memslots.features import Features
from vmm.memslots.history import End, Event, History, Refused, Touched
from vmm.memslots.operations import (
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
    """Plays the kernel: an ideal one, but for what a test changes."""

    def __init__(self) -> None:
        self.features = FEATURES
        self.info = INFO
        self.histories: dict[str, History | type[BaseException]] = {}
        self.complaints: dict[str, tuple[Problem, ...]] = {}
        self.ran: list[str] = []

    def look_at_host(self) -> Host:
        return Host(self.info, self.features)

    def run_isolated(
        self,
        scenario: Scenario,
        features: Features,
        *,
        host: dict[str, str],
        journal: Path | None = None,
    ) -> History:
        history = self.histories.get(scenario.name) or ideal_history(scenario, features)
        if isinstance(history, type):
            raise history
        self.ran.append(scenario.name)
        if journal is not None:
            journal.write_bytes(b"".join(history_lines(history)))
        return history

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


def named(name: str) -> Scenario:
    return next(scenario for scenario in SCENARIOS if scenario.name == name)


def with_outcome(history: History, origin: int, outcome: Refused | Touched) -> History:
    """Change the outcome of the first event of an operation."""
    at = next(i for i, event in enumerate(history.events) if event.origin == origin)
    events = list(history.events)
    events[at] = Event(origin, events[at].operation, outcome)
    return msgspec.structs.replace(history, events=tuple(events))


def played(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Put a played kernel in the place of the real one, for every command."""
    kernel = Kernel()
    monkeypatch.setattr("scenarios.catalogue", lambda features: SCENARIOS)
    for command in (check, info, run):
        monkeypatch.setattr(command, "look_at_host", kernel.look_at_host)
    monkeypatch.setattr(execution, "run_isolated", kernel.run_isolated)
    monkeypatch.setattr(KernelWatch, "news", lambda watch: kernel.news())
    return kernel


def vmm(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="vmm")
