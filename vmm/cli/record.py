"""``vmm record``: run a VMM under strace, judge what it did, and repeat it."""

import shlex
import shutil
from pathlib import Path

import click

from vmm.cli.command import Writing
from vmm.cli.input.files import allow_large
from vmm.cli.options.paths import FilePath
from vmm.cli.output.errors import NothingRan, Unusable, usable
from vmm.cli.output.printing import tell
from vmm.cli.output.writing import temporary_folder
from vmm.cli.recorded import recorded
from vmm.cli.replay import ReplayOptions, replayed
from vmm.replay.trace import NoMemslotsError, TraceError
from vmm.scenario.demand import Limits

_NO_STRACE = "strace is not installed: `apt install strace`, `dnf install strace`, or the like"


@click.command(
    cls=Writing, documents=("output",), context_settings={"ignore_unknown_options": True}
)
@click.option(
    "-o",
    "--output",
    type=FilePath(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Keep the trace in this file.",
)
@click.option("--judge-only", is_flag=True, help="Judge the trace; run nothing else.")
@allow_large
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def record(
    ctx: click.Context,
    output: Path | None,
    judge_only: bool,
    limits: Limits,
    command: tuple[str, ...],
) -> None:
    """Run a VMM under strace, and replay what it did.

    COMMAND runs as it is, until it ends or is interrupted: `vmm record -- qemu-system-x86_64 ...`.
    What it did to memslots and to their memory is then judged, and carried out, as by `vmm replay`.
    """
    strace = shutil.which("strace")
    if strace is None:
        raise NothingRan(_NO_STRACE)
    if shutil.which(command[0]) is None:
        raise Unusable(f"{command[0]}: no such program")
    with temporary_folder() as folder:
        trace = output or Path(folder) / "trace"
        with usable(trace):
            found = recorded(strace, Path(folder) / "fifo", trace, command)
        if not found.lines:
            raise NothingRan(f"strace recorded nothing (its exit status is {found.status})")
        ended = f"; the command ended with status {found.status}" if found.status else ""
        tell(f"recorded {found.lines} lines{f' in {output}' if output else ''}{ended}")
        if found.blind:
            tell(f"structures that strace does not print are not read: the host: {found.blind}")
        # Without -o the trace is gone at the end.
        again = (
            ""
            if output is not None
            else shlex.join(["vmm", "record", "-o", "FILE", "--", *command])
        )
        wanted = ReplayOptions(judge_only, limits=limits, again=again)
        try:
            ctx.exit(replayed((trace,), wanted))
        except NoMemslotsError:
            why = f"{command[0]} made no call on a memslot: is it a VMM, with KVM?"
            raise Unusable(why) from None
        except TraceError as error:
            raise Unusable(str(error)) from None
