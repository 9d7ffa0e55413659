"""Boots a machine for one command, and says what came of it."""

import secrets
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from vmm.lab import bochs
from vmm.lab.errors import LabError
from vmm.lab.log import LogReader, Reports
from vmm.lab.machine import (
    Backend,
    Job,
    Machine,
    command_line,
    first_files,
    module_parameters,
    qemu_command,
)
from vmm.lab.process import Pipes, Sink, emulator, watch

DIFFERS, USAGE, INCONCLUSIVE = 1, 2, 3
OF_COMMANDS = frozenset({0, 1, 2, 3, 4, 70})
"""The statuses that a command of ours ends with."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A status as of every command, and why it is not the command's own, if it isn't."""

    status: int
    why: str = ""
    notes: tuple[str, ...] = ()


def run(machine: Machine, job: Job, folder: Path, out: Sink, err: Sink) -> Outcome:
    """Run a command in a machine; ``folder`` gets the logs, ``out`` and ``err`` what it prints.

    Raises LabError where nothing could be booted.
    """
    nonce = secrets.token_hex(4)
    first, log, errors = folder / "initramfs", folder / "kernel.log", folder / "emulator.log"
    try:
        first.write_bytes(first_files(machine, job, nonce))
    except OSError as error:
        raise LabError(f"{first}: {error.strerror}") from None
    files = bochs.Unpacking(nonce, err)
    pipes = Pipes(out, files)
    cd = folder / "cd.iso"
    try:
        if machine.backend is Backend.VMX:
            bochs.make_cd(cd, machine.kernel.image, first, command_line(machine))
            command = bochs.command(folder, cd, machine.memory_mib, log, *pipes.writers)
        else:
            command = list(qemu_command(machine, job, first, log, *pipes.writers))
        with (
            errors.open("wb") as file,
            emulator(command, file, pipes.writers) as process,
        ):
            pipes.close_writers()
            reports, is_late = watch(
                process, pipes, LogReader(log, nonce), machine.limit_s, machine.silence_s
            )
    finally:
        pipes.close()
        first.unlink(missing_ok=True)
        cd.unlink(missing_ok=True)
    files.unpack(job.folder)
    said = errors.read_text(errors="replace").strip().splitlines()
    return judged(machine, reports, is_late, said)


def judged(machine: Machine, reports: Reports, is_late: bool, said: list[str]) -> Outcome:
    """Return what a machine's log proves; ``said`` is what the emulator itself complained of.

    A command's own status counts only with a sentinel behind it and no complaint of the kernel.
    """
    notes = tuple(reports.notes)
    wrong = _wrong_parameter(machine, reports)
    if wrong:
        return Outcome(USAGE, wrong)
    if reports.complaint and reports.has_begun:
        return Outcome(DIFFERS, f"the kernel complained: {reports.complaint}", notes)
    if reports.complaint:
        return Outcome(INCONCLUSIVE, f"the kernel did not get far: {reports.complaint}", notes)
    if reports.fatal:
        return Outcome(INCONCLUSIVE, reports.fatal, notes)
    last = f"its last line is: {reports.last_line or 'none'}"
    if is_late:
        stage = "the command was still running" if reports.is_ready else "it had not booted"
        if reports.status is not None:
            stage = "the command had ended, but not the machine"
        return Outcome(INCONCLUSIVE, f"gave up after {_patience(machine)}: {stage}; {last}", notes)
    if not reports.is_ready:
        why = said[-1] if said and not reports.last_line else last
        return Outcome(INCONCLUSIVE, f"the machine stopped before the command began; {why}", notes)
    if reports.status is None:
        return Outcome(INCONCLUSIVE, f"the machine stopped without the command's status; {last}")
    if not reports.is_over:
        return Outcome(INCONCLUSIVE, f"the machine stopped before all had ended; {last}", notes)
    if reports.status not in OF_COMMANDS:
        return Outcome(INCONCLUSIVE, f"the command ended with status {reports.status}", notes)
    return Outcome(reports.status, "", notes)


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
