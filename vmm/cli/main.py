"""The ``vmm`` command. A subcommand's module is imported when it runs, so that help is fast.

The exit statuses are those of `vmm.verdict.statuses`.
"""

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import click

from vmm.cli.groups import CommandsByName
from vmm.cli.output.errors import Ended, Failure, in_one_line
from vmm.cli.output.printing import OutputLost, give_up_on, output_checked, say
from vmm.cli.output.unfinished import early_of
from vmm.host.signals import ENDING_SIGNALS, SignalledError
from vmm.scenario.endings import INTERRUPTED
from vmm.verdict import statuses

_AGAIN_S = 0.01
_LAST_CPU_S = 1
"""CPU time for writing what has run, once the limit of it is over."""

_SELFTEST = "vmm.selftest"

COMMANDS = {
    "check": "Run the curated scenarios on this kernel and judge them.",
    "run": "Run one scenario, from a file or by name, and judge it.",
    "record": "Run a VMM under strace, and replay what it did.",
    "replay": "Judge what strace or QEMU recorded of a VMM, and run it here.",
    "fuzz": "Run random scenarios on this kernel and judge them.",
    "repro": "Turn a scenario into a C program that needs nothing else.",
    "compare": "Say where two kernels differ on the same scenarios.",
    "coverage": "Say which rules and historic bugs a run checks, and by what.",
    "judge": "Judge recorded histories again, without a kernel.",
    "matrix": "Compare the results of kernels on one page of HTML.",
    "report": "Draw a saved result as a page of HTML.",
    "show": "Print a curated scenario as JSON, to be edited and run.",
    "info": "Say whether scenarios can run here, and what the kernel offers.",
    "bench": "Measure what memslot operations cost, next to the same work in C.",
    "lab": "Run commands on other kernels, in machines of their own.",
    "completion": "Print a shell's completion script for commands and scenarios.",
    "man": "Print this program's manual page: `vmm man | man -l -`.",
    "demo": "Show what a memslot is, step by step, on this kernel.",
}
"""Each command and its help line; ``vmm.cli.NAME`` holds it as ``NAME``."""


class Commands(CommandsByName):
    """The group of commands, which also maps errors to exit statuses."""

    by_name = COMMANDS
    module = "vmm.cli."

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_SELFTEST] = "--kselftest" in args
        with in_one_line():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return self._invoke(ctx)
        except (KeyboardInterrupt, click.Abort):
            # A second signal ends the process from here on: it would be click's to handle.
            say(INTERRUPTED)
            ctx.exit(_without_a_run(ctx, statuses.INCONCLUSIVE))

    def _invoke(self, ctx: click.Context) -> Any:
        with _as_interruptions():
            try:
                with in_one_line():
                    result = super().invoke(ctx)
                with output_checked():
                    sys.stdout.flush()
                return result
            except OutputLost as lost:
                give_up_on(1)
                say(lost.message)
                ctx.exit(_without_a_run(ctx, lost.exit_code))
            except Failure as error:
                raise Ended(error.message, _without_a_run(ctx, error.exit_code)) from None
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except Exception as error:
                ctx.exit(_without_a_run(ctx, _failed(error)))


def _without_a_run(ctx: click.Context, status: int) -> int:
    """Return the status of a command that ended without a verdict on a run.

    As a selftest of the kernel it may not be 2 or 3, which there are known issues.
    """
    if not ctx.meta.get(_SELFTEST):
        return status
    from vmm.report.kselftest import status_without_a_run

    return status_without_a_run(status)


def _failed(error: Exception) -> int:
    """Print what is wrong, and return its status."""
    early = early_of(error)
    if early.traceback:
        say(f"{early.traceback}vmm: internal error: this says nothing about the kernel")
        return early.status
    if early.why != INTERRUPTED:
        give_up_on(1)  # It may be what failed: full, or without a reader.
    say(early.why)
    return early.status


@contextmanager
def _as_interruptions() -> Iterator[None]:
    """Raise KeyboardInterrupt for all signals that end a run, as for Ctrl-C, unless ignored.

    Python drops an exception raised in a finalizer or a weak reference's callback, which it calls
    at every import: such an interruption is repeated a moment later.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise SignalledError

    def out_of_time(number: int, frame: FrameType | None) -> None:
        # The kernel sends it again each second: what has run is still to be written.
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
        with suppress(OSError):
            os.write(2, b"vmm: the host: no more CPU time is allowed (ulimit -t)\n")
        raise SignalledError

    def dropped(what: "sys.UnraisableHookArgs") -> None:
        if isinstance(what.exc_value, KeyboardInterrupt):
            signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        else:
            hook(what)

    hook, sys.unraisablehook = sys.unraisablehook, dropped
    taken = (*ENDING_SIGNALS, signal.SIGALRM, signal.SIGXCPU)
    before = {number: signal.getsignal(number) for number in taken}
    for number in ENDING_SIGNALS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    signal.signal(signal.SIGXCPU, out_of_time)
    limits = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, _with_time_left(*limits))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_CPU, limits)
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _with_time_left(soft: int, hard: int) -> tuple[int, int]:
    """Return limits of CPU time with a signal before the end: ``ulimit -t`` sets both to the same.

    At the hard limit the kernel kills a process, which then writes nothing.
    """
    is_sudden = hard > _LAST_CPU_S and (soft < 0 or soft >= hard)
    return (hard - _LAST_CPU_S, hard) if is_sudden else (soft, hard)


def _print_version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from vmm.scenario.toolversion import tool_version

        click.echo(f"vmm {tool_version()}")
        ctx.exit()


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96},
    epilog="Exit status: 0 passed, 1 the kernel differs, 2 usage, 3 inconclusive, 4 nothing ran, "
    "5 too few ran (--require-run), 70 an error of this program.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
    help="Show the version and exit.",
)  # fmt: skip
def main() -> None:
    """Prove on this kernel that KVM's memslots behave."""
