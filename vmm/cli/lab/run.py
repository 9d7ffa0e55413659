"""``vmm lab run``: boot a kernel and run one of our commands on it."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from pathlib import Path

import click
from click.shell_completion import CompletionItem, ShellComplete

from vmm.cli.lab.lines import SharedLines
from vmm.cli.lab.machines import LabFailed, in_one_line, job_of, kernel_of, say, worst
from vmm.cli.lab.outside import Boot, Command, Site, check_outside, is_judged_outside
from vmm.cli.lab.progress import Progress, interrupted
from vmm.cli.lab.results import Inside
from vmm.cli.lab.timeout_option import timeout_option
from vmm.cli.lab.whitebox import description_of
from vmm.cli.options.paths import FilePath
from vmm.cli.output.writing import sweep, unfinished
from vmm.lab.cache import new_run_folder
from vmm.lab.cells import usual_number
from vmm.lab.debian import RELEASES
from vmm.lab.log import Reports
from vmm.lab.machine import SAYS, Backend, Machine, chosen_backend
from vmm.lab.run import Ending, Listener, prepared, running, side_by_side

LIFE_S = {Backend.SVM: 120.0, Backend.VMX: 300.0, Backend.KVM: 60.0}
"""How long a machine may show no sign of life; an emulator is slow on a busy host."""


_VERDICTS = (0, 1)
_SKIP = 125
"""`git bisect run` takes this status as: try another commit."""


def _complete_kernels(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the releases with this prefix; if there are none, shells complete paths."""
    names = [each for each in RELEASES if each.startswith(incomplete)]
    return [CompletionItem(each) for each in names] or [CompletionItem(incomplete, type="file")]


def _complete(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return what could follow if the command ran here."""
    words = [*(ctx.params.get("words") or ())]
    return ShellComplete(ctx.find_root().command, {}, "vmm", "").get_completions(words, incomplete)


class _Run(Inside):
    """Skips a bisection's step where the command line is wrong: that says nothing of a commit."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        is_bisection = "--bisect" in takewhile(lambda word: word != "--", args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if not is_bisection:
                raise
            raise LabFailed(error.format_message(), _SKIP) from None


@click.command(cls=_Run)
@click.option(
    "--kernel",
    "name",
    default="debian",
    show_default=True,
    metavar="KERNEL",
    shell_complete=_complete_kernels,
    help=f"An image, a build tree, or one of {', '.join(RELEASES)} (the first is the newest).",
)
@click.option(
    "--modules",
    type=FilePath(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The modules of an image of your own.",
)
@click.option(
    "--backend",
    type=click.Choice([each.value for each in Backend]),
    help="Whose virtualisation; by default kvm if this host's nests, else svm.",
)
@click.option(
    "--param",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="For the kernel's command line, or a module: kvm_amd.npt=0.",
)
@click.option(
    "--smp",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="CPUs of the machine.",
)
@click.option(
    "--memory",
    type=click.IntRange(256),
    default=2048,
    show_default=True,
    metavar="MIB",
    help="Memory of the machine.",
)
@timeout_option
@click.option(
    "--bisect", is_flag=True, help="Exit 125, which git bisect skips, where there is no verdict."
)
@click.option(
    "--at-once",
    type=click.IntRange(1, 64),
    metavar="N",
    help="At most N machines share a check (by default one a CPU, memory permitting).",
)
@click.option("--fresh", is_flag=True, help="Boot anew, and save no state of the machine.")
@click.argument(
    "words",
    nargs=-1,
    required=True,
    type=click.UNPROCESSED,
    metavar="-- COMMAND [ARGUMENT]...",
    shell_complete=_complete,
)
@click.pass_context
def run(
    ctx: click.Context,
    name: str,
    modules: Path | None,
    backend: str | None,
    parameters: tuple[str, ...],
    smp: int,
    memory: int,
    timeout: float,
    bisect: bool,
    at_once: int | None,
    fresh: bool,
    words: tuple[str, ...],
) -> None:
    """Boot a kernel and run one of our commands on it.

    The command sees this host's files, and may write to the folder in which it starts: this one.
    Its status is the run's, if the machine ended as it should and the kernel never complained.
    """
    _look_up(ctx.find_root(), words, bisect)
    with in_one_line(_SKIP if bisect else None):
        chosen = chosen_backend(backend)
        machine = Machine(
            kernel_of(name, modules),
            chosen,
            parameters,
            smp,
            memory,
            timeout,
            life_s=LIFE_S[chosen],
        )
        start, others = time.monotonic(), unfinished(words)
        folder, progress = new_run_folder(), Progress()
        what = " ".join((chosen.value, *parameters))
        say(f"Linux {machine.kernel.release}, {what}: {SAYS[chosen]}")
        is_outside = is_judged_outside(words)
        # Each step of a bisection has another kernel.
        boot = _Machines(machine, folder, progress, fresh or bisect, is_outside).boot
        if is_outside:
            number = at_once or usual_number(smp, memory)
            place = Site(
                machine.kernel.release, folder, progress, number, chosen is not Backend.VMX
            )
            if bisect:
                place = replace(place, more_boots=0)
            status, ending = check_outside(words, boot, place)
        else:
            status, ending = _watched(words, boot, progress)
        progress.clear()
    for note in ending.notes:
        say(f"note: {note}")
    if ending.why:
        say(ending.why)
        sweep(words, others)
        status = worst((status, ending.status))
    say(f"status {status} after {time.monotonic() - start:.1f} s; logs: {folder}")
    ctx.exit(_SKIP if bisect and status not in _VERDICTS else status)


@dataclass(frozen=True, slots=True)
class _Machines:
    """The machines of one run, whose logs go to ``folder``; what they print is printed here.

    If they ``share`` a check, identical lines on standard error are printed only once.
    """

    machine: Machine
    folder: Path
    progress: Progress
    is_fresh: bool
    share: bool
    start: float = field(default_factory=time.monotonic)

    def boot(self, commands: Sequence[Command]) -> list[Ending]:
        """Run commands side by side, each in a machine of its own. Raises LabError.

        What they do is to end within the time limit of the first of them.
        """
        out, err = (partial(_write, descriptor, self.progress) for descriptor in (1, 2))
        description = description_of(self.machine.kernel)
        jobs = [job_of(each.words, self.machine.backend, description) for each in commands]
        if self.is_fresh:
            jobs = [replace(job, preloaded=()) for job in jobs]
        machine, spent_s = self.machine, time.monotonic() - self.start
        if commands[0].number:
            machine = replace(machine, limit_s=round(max(1, machine.limit_s - spent_s)))
        ready, machines = prepared(machine, jobs[0]), []
        printed = SharedLines(err)
        for job, each in zip(jobs, commands, strict=True):
            number = each.number
            logs = self.folder / f"machine-{number + 1}" if number else self.folder
            logs.mkdir(exist_ok=True)
            said = printed.of_one() if self.share else err
            listener = Listener(each.out or out, said, each.told)
            machines.append(running(ready, job, logs, listener, keeps=not number))
        try:
            return side_by_side(machines, self.progress.wait)
        finally:
            printed.end()


def _look_up(root: click.Context, words: tuple[str, ...], bisect: bool) -> None:
    """Find the command before anything boots. Raises click.UsageError, or skips a bisection."""
    assert isinstance(root.command, click.Group)
    try:
        root.command.resolve_command(root, list(words))
    except click.UsageError as error:
        if not bisect:
            raise
        raise LabFailed(error.format_message(), _SKIP) from None


def _watched(words: tuple[str, ...], boot: Boot, progress: Progress) -> tuple[int, Ending]:
    """Run a command whose work is all done inside the machine."""
    last = Reports()

    def heard(reports: Reports) -> None:
        nonlocal last
        last = reports
        progress.tell(reports)

    try:
        (ending,) = boot([Command(words, heard)])
    except KeyboardInterrupt:
        ending = interrupted(last)
    return ending.status, ending


def _write(descriptor: int, progress: Progress, data: bytes) -> None:
    progress.heard()
    while data:
        data = data[os.write(descriptor, data) :]
