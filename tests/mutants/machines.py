"""Boots machines that look for the bugs, a new one where a kernel has died, and keeps results."""

import compileall
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import msgspec

from tests.mutants import preloaded
from tests.mutants.build import Built
from tests.mutants.found import Found
from tests.mutants.preloaded import PROGRAM
from tests.mutants.rows import Mutant
from tests.mutants.words import Order, Said, Task
from vmm.cli.lab.machines import job_of
from vmm.lab.errors import LabError
from vmm.lab.kernel import from_path
from vmm.lab.machine import Backend, Job, Machine
from vmm.lab.run import Ending, Listener, Running, prepared, running
from vmm.verdict.statuses import DIFFERS, PASSED

_HERE = Path(__file__).parent
_BOOT_S = 300
AT_ONCE = 8
"""So many bugs a machine looks for at most."""
PATIENCE = 8.0
"""So many times as long as on hardware a scenario may take, where the emulator has a CPU."""


@dataclass(frozen=True, slots=True)
class Lookout:
    """How to look for bugs: on which kernel with which MMU, for how long.

    ``description`` is that of the kernel's structures, if they are to be looked at.
    """

    built: Built
    npt: int
    limit_s: float
    description: bytes = b""
    ran: Callable[[str, float | None], None] = lambda name, seconds: None
    """Gets each scenario that ran on the good kernel, and how long it took; None: not passed."""
    cpus: int = 1
    params: tuple[str, ...] = ()
    """Of modules, besides ``npt``."""


class _Listener:
    """Reads what the machine prints, line by line; knows what is under way."""

    def __init__(
        self, names: Sequence[str], keep: Callable[[Found], None], lookout: "Lookout"
    ) -> None:
        self._rest = b""
        self._names = names
        self._keep = keep
        self._white = bool(lookout.description)
        self._ran = lookout.ran
        self.is_ready = False
        self.under_way: int | None = None
        self.doing = ""
        self.began = 0.0
        self.other = b""

    def take(self, data: bytes) -> None:
        """Take what has come."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                self._hear(msgspec.json.decode(line, type=Said))
            except msgspec.DecodeError:
                self.other += line + b"\n"

    def take_error(self, data: bytes) -> None:
        """Take what the machine's program complains of."""
        self.other = (self.other + data)[-2000:]

    def _hear(self, said: Said) -> None:
        match said.kind:
            case "ready":
                self.is_ready = True
            case "begin":
                self.under_way, self.doing, self.began = said.number, "", time.monotonic()
            case "running":
                self.doing = said.scenario
            case "ran":
                if not said.number:
                    has_passed = said.how == "passed"
                    self._ran(said.scenario, said.seconds if has_passed else None)
            case "fuzzing":
                self.doing = "(fuzz)"
            case "end":
                self.under_way = None
                how = "survived" if said.how in ("passed", "known") else said.how
                self.add(how, said.number, said)

    def add(self, how: str, number: int, said: Said) -> None:
        """Keep what became of a bug, and say so."""
        found = Found(
            self._names[number],
            how,
            said.scenario,
            said.step,
            said.rule,
            said.seconds,
            said.control,
            self._white,
        )
        self._keep(found)
        text = f"{found.name}: {found.how} after {found.seconds:.1f} s"
        if found.control not in ("", "passed"):
            text += f" (without the bug: {found.control})"
        if found.how != "survived":
            text += f" {found.scenario}: {found.step}"
        print(text[:300], file=sys.stderr, flush=True)


class Waiting:
    """The bugs that are still to be looked for; each machine takes some when it boots."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._left = deque(tasks)

    def take(self) -> list[Task]:
        """Take some off."""
        return [self._left.popleft() for _ in range(min(AT_ONCE, len(self._left)))]

    def put_back(self, tasks: Sequence[Task]) -> None:
        """Take back what a machine did not come to."""
        self._left.extendleft(reversed(tasks))


def look(
    lookout: Lookout,
    rows: Sequence[Mutant],
    waiting: Waiting,
    folder: Path,
    keep: Callable[[Found], None],
) -> Running:
    """Look for bugs in machines, one after the other; ``folder`` gets orders and logs.

    ``keep`` gets each result as it comes.
    """
    names = ["(none)", *(row.name for row in rows)]
    ending = Ending(PASSED)
    for boot in count(1):
        tasks = waiting.take()
        if not tasks:
            break
        done: set[str] = set()

        def take(each: Found, done: set[str] = done) -> None:
            done.add(each.name)
            keep(each)

        listener = _Listener(names, take, lookout)
        own = folder / str(boot)
        own.mkdir()
        ending = yield from _booted(lookout, tasks, own, listener)
        if listener.under_way is not None:
            seconds = time.monotonic() - listener.began
            said = Said("end", listener.under_way, listener.doing, seconds=round(seconds, 2))
            how = "complained" if ending.status == DIFFERS else "hung"
            listener.add(
                how, listener.under_way, msgspec.structs.replace(said, step=_short(ending.why))
            )
        elif not listener.is_ready:
            printed = listener.other.decode(errors="replace")
            raise LabError(f"the machine did not begin: {ending.why} {printed}")
        left = [task for task in tasks if names[task.number] not in done]
        if len(left) == len(tasks):
            raise LabError(f"no result of {names[left[0].number]}: {ending.why}")
        waiting.put_back(left)
    return ending


def _short(why: str) -> str:
    return why.removeprefix("the kernel complained: ")


def _booted(lookout: Lookout, tasks: Sequence[Task], folder: Path, listener: _Listener) -> Running:
    description = folder / "kernel.json"
    description.write_bytes(lookout.description)
    white_box = str(description) if lookout.description else ""
    order = Order(tuple(tasks), lookout.limit_s, PATIENCE, white_box)
    path = folder / "order.json"
    path.write_bytes(msgspec.json.encode(order))
    kernel = from_path(lookout.built.tree, lookout.built.modules)
    limit_s = _BOOT_S + sum(lookout.limit_s + task.check_s + task.fuzz_s for task in tasks)
    machine = Machine(
        kernel,
        Backend.SVM,
        (f"kvm_amd.npt={lookout.npt}", *lookout.params),
        lookout.cpus,
        limit_s=limit_s,
        silence_s=_BOOT_S + lookout.limit_s + max(task.fuzz_s for task in tasks),
    )
    job = _job(path, folder)
    ready = prepared(machine, job)
    return (yield from running(ready, job, folder, Listener(listener.take, listener.take_error)))


def _job(order: Path, folder: Path) -> Job:
    compileall.compile_dir(_HERE, quiet=2)
    start = (str(Path(sys.prefix, "bin", "python")), "-P", "-m")
    job = job_of(("info",), Backend.SVM)
    return replace(
        job,
        words=(*start, PROGRAM, str(order)),
        folder=folder,
        kept=(),
        code=(*job.code, _HERE),
        preloaded=(*start, preloaded.__name__),
    )
