"""Boots a machine for one command, and returns how that ended."""

import secrets
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import IO

from vmm.lab import bochs
from vmm.lab.errors import LabError
from vmm.lab.log import LogReader, Reports
from vmm.lab.machine import (
    Backend,
    Job,
    Machine,
    State,
    Wiring,
    command_line,
    loadable,
    module_parameters,
    qemu_command,
)
from vmm.lab.modules import Module
from vmm.lab.monitor import Monitor
from vmm.lab.process import Late, Pipes, Sink, TimeLimits, emulator, watch
from vmm.lab.settings import first_files, orders
from vmm.lab.snapshot import Keeping, files_of, kept, remove, state_path, used
from vmm.verdict.statuses import ALL, DIFFERS, INCONCLUSIVE, USAGE


@dataclass(frozen=True, slots=True)
class Ending:
    """The exit status, and ``why`` if it is not the command's own.

    The machine is ``lost`` if its command had begun, and another machine may go on with it.
    """

    status: int
    why: str = ""
    notes: tuple[str, ...] = ()
    reports: Reports = field(default_factory=Reports)
    lost: bool = False


def _nobody(reports: Reports) -> None:
    """Ignore the reports."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Gets a machine's output, and its reports whenever the log has grown."""

    out: Sink
    err: Sink
    on_reports: Callable[[Reports], None] = _nobody


Running = Generator[None, None, Ending]
"""A running machine: each step takes a tenth of a second at most, and the last one ends it."""


def side_by_side(
    machines: Sequence[Running], look: Callable[[], None] = lambda: None
) -> list[Ending]:
    """Run several machines at the same time, and return how each ended.

    ``look`` is called again and again. An error in one of them, or an interruption, ends all.
    """
    endings: dict[int, Ending] = {}
    with ExitStack() as stack:
        going = {number: stack.enter_context(closing(each)) for number, each in enumerate(machines)}
        while going:
            look()
            for number, each in list(going.items()):
                try:
                    next(each)
                except StopIteration as end:
                    endings[number] = end.value
                    del going[number]
    return [endings[number] for number in range(len(machines))]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A machine, its modules, and the path of its saved state; None if it cannot have one."""

    machine: Machine
    loaded: tuple[Module, ...]
    state: Path | None


def prepared(machine: Machine, job: Job) -> Prepared:
    """Read what equal machines have in common, whatever their jobs' commands are.

    Raises LabError if nothing can be booted.
    """
    loaded = loadable(machine)
    return Prepared(machine, loaded, state_path(machine, job, loaded))


def running(
    prepared: Prepared,
    job: Job,
    folder: Path,
    listener: Listener,
    keeps: bool = True,
) -> Running:
    """Run a command in a machine; ``folder`` gets the logs.

    If it ``keeps`` states, a machine that has loaded the job's program is saved then, and the next
    run of an equal one starts there.

    Raises LabError if nothing could be booted.
    """
    machine, loaded, state = prepared.machine, prepared.loaded, prepared.state
    if state is not None and state.exists():
        used(state)
        start = _Start(loaded, restores=state)
        ending = yield from _booted(machine, job, folder, listener, start)
        if ending.reports.has_booted:
            return ending
        remove(state)
    with kept(state if keeps else None, machine.memory_mib) as keeping:
        start = _Start(loaded, keeps=keeping)
        return (yield from _booted(machine, job, folder, listener, start))


@dataclass(frozen=True, slots=True)
class _Start:
    """The modules of a machine, and which state it starts from, or how it saves its own."""

    loaded: tuple[Module, ...]
    restores: Path | None = None
    keeps: Keeping | None = None

    @property
    def state(self) -> State | None:
        """The files of the state that it starts from."""
        return files_of(self.restores) if self.restores else None

    @property
    def memory(self) -> Path | None:
        """The file that is its memory while it can save its state."""
        return self.keeps.memory if self.keeps else None


def _booted(
    machine: Machine,
    job: Job,
    folder: Path,
    listener: Listener,
    start: _Start,
) -> Running:
    nonce = secrets.token_hex(4)
    first, log, errors = folder / "initramfs", folder / "kernel.log", folder / "emulator.log"
    cd = folder / "cd.iso"
    files = bochs.Unpacking(nonce, listener.err)
    pipes = Pipes(listener.out, files)
    out, err = pipes.writers
    ours, theirs = socket.socketpair()
    try:
        _write(first, b"" if start.restores else first_files(machine, job, start.loaded, nonce))
        if machine.backend is Backend.VMX:
            bochs.make_cd(cd, machine.kernel.image, first, command_line(machine))
            command = bochs.command(folder, cd, machine.memory_mib, log, out, err)
            text = b""
        else:
            wiring = Wiring(first, log, out, err, theirs.fileno(), start.state, start.memory)
            command = list(qemu_command(machine, job, wiring))
            text = orders(machine, job, nonce, is_restored=start.restores is not None)
        with (
            errors.open("wb") as file,
            emulator(command, file, (out, err, theirs.fileno())) as process,
        ):
            pipes.close_writers()
            theirs.close()
            assert process.stdin is not None
            giving = _Orders(process.stdin, text, Monitor(ours), start)
            limits = TimeLimits(machine.limit_s, machine.silence_s, machine.life_s)
            reports, late = yield from watch(
                process,
                pipes,
                LogReader(log, nonce),
                limits,
                partial(giving.handle, listener.on_reports),
            )
    finally:
        pipes.close()
        ours.close()
        theirs.close()
        first.unlink(missing_ok=True)
        cd.unlink(missing_ok=True)
    files.unpack(job.folder)
    said = errors.read_text(errors="replace").strip().splitlines()
    return replace(judged(machine, reports, late, said), reports=reports)


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}") from None


class _Orders:
    """Gives a machine its orders when it waits for them, after saving its state."""

    def __init__(self, pipe: IO[bytes], text: bytes, monitor: Monitor, start: _Start) -> None:
        self._pipe = pipe
        self._text = text
        self._monitor = monitor
        self._start = start
        if start.state is not None:
            with suppress(LabError):  # Then it never boots, and another one does afresh.
                monitor.restore(start.state.devices)
            self._give()

    def handle(self, on_reports: Callable[[Reports], None], reports: Reports) -> None:
        """Handle reports, and pass them on to ``on_reports``."""
        if reports.is_waiting and self._text:
            self._keep(reports)
            self._give()
        on_reports(reports)

    def _keep(self, reports: Reports) -> None:
        """Save the state of a machine, unless its kernel complained."""
        if self._start.keeps is None or reports.complaint or reports.notes:
            return
        try:
            self._start.keeps.keep(self._monitor)
        except LabError as error:
            reports.notes.append(f"this machine's state is not kept: {error}")

    def _give(self) -> None:
        text, self._text = self._text, b""
        with suppress(OSError):  # It has ended, and its log says why.
            self._pipe.write(text)
            self._pipe.flush()


def judged(machine: Machine, reports: Reports, late: Late, said: list[str]) -> Ending:
    """Return what a machine's log proves; ``said`` is the emulator's own output.

    The command's status counts only if the final report follows it, without a complaint of the
    kernel.
    """
    notes = tuple(reports.notes)
    wrong = _wrong_parameter(machine, reports)
    if wrong:
        return Ending(USAGE, wrong)
    if reports.complaint and reports.has_begun:
        return Ending(DIFFERS, f"the kernel complained: {reports.complaint}", notes, lost=True)
    if reports.complaint:
        return Ending(INCONCLUSIVE, f"the kernel did not get far: {reports.complaint}", notes)
    if reports.fatal:
        return Ending(INCONCLUSIVE, reports.fatal, notes)
    last = f"its last line is: {reports.last_line or 'none'}"
    where = f" in {reports.under_way}" if reports.under_way else ""
    if late is Late.DEAD:
        why = f"the machine hangs{where}: no sign of life for {machine.life_s:g} s; {last}"
        return Ending(INCONCLUSIVE, why, notes, lost=reports.is_ready)
    if late is Late.TIME:
        stage = f"the command was still running{where}" if reports.is_ready else "it had not booted"
        if reports.status is not None:
            stage = "the command had ended, but not the machine"
        return Ending(INCONCLUSIVE, f"gave up after {_patience(machine)}: {stage}; {last}", notes)
    if not reports.is_ready:
        why = said[-1] if said and not reports.last_line else last
        return Ending(INCONCLUSIVE, f"the machine stopped before the command began; {why}", notes)
    if reports.status is None:
        why = f"the machine stopped{where} without the command's status; {last}"
        return Ending(INCONCLUSIVE, why, notes, lost=True)
    if not reports.is_over:
        return Ending(INCONCLUSIVE, f"the machine stopped before all had ended; {last}", notes)
    if reports.status not in ALL:
        return Ending(INCONCLUSIVE, f"the command ended with status {reports.status}", notes)
    return Ending(reports.status, "", notes)


def _patience(machine: Machine) -> str:
    silence = f", or {machine.silence_s:g} s of silence" if isfinite(machine.silence_s) else ""
    return f"{machine.limit_s:g} s{silence}"


def _wrong_parameter(machine: Machine, reports: Reports) -> str:
    for name, wanted in module_parameters(machine).items():
        got = reports.parameters.get(name)
        if got is None:
            continue
        if got == "-":
            return f"--param {name}: this kernel has no such parameter"
        if _plain(got) != _plain(wanted):
            return f"--param {name}={wanted}: it is {got} in this kernel"
    return ""


def _plain(value: str) -> str:
    return {"Y": "1", "N": "0", "y": "1", "n": "0", "": "1"}.get(value, value)
