"""``vmm bench``: what memslot operations cost on this kernel."""

import errno
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from vmm.bench.setup import MAX_FILLED_PAGES, WORKS, Setup
from vmm.cli.command import Command
from vmm.cli.options.paths import FilePath
from vmm.cli.output.errors import Ended, Failure, Unusable
from vmm.cli.output.printing import tell
from vmm.cli.output.unfinished import Early, never_stale, not_read, note_printed, remove
from vmm.cli.output.writing import apart, document, spare, temporary_folder, written_bytes
from vmm.cli.running.host import Host, look_at_host, require_usable
from vmm.host.hostinfo import host_facts
from vmm.scenario.endings import HOST, KERNEL_SHORT
from vmm.scenario.reading import FileError, read_text
from vmm.scenario.shown import shown
from vmm.scenario.toolversion import tool_version
from vmm.verdict import statuses

if TYPE_CHECKING:
    from vmm.bench.measure import Point
    from vmm.bench.result import Bench

_ALL = "all"
_USED_SLOTS = 2  # The code's, and the slot under test.
_SLOTS = ("1", "10", "100", "1000", _ALL)
_MOST_DIGITS = 9
_PICTURES = (".svg", ".png")
_WRITTEN = ("json_file", "plot")


class _Bench(Command):
    """The command, which writes to its result why it ended early."""

    def never_stale(self, ctx: click.Context) -> AbstractContextManager[object]:
        """If the command fails, write a result without points, and remove an old picture."""
        files = [str(ctx.params[name]) for name in _WRITTEN if ctx.params.get(name) is not None]
        others = [value for name, value in ctx.params.items() if name not in _WRITTEN]
        json_file = str(ctx.params.get("json_file"))
        return never_stale(not_read(files, others), partial(_write_early, json_file))


def _write_early(json_file: str, early: Early, files: Sequence[str]) -> None:
    from vmm.bench.result import Bench, text_of

    remove(early, [file for file in files if file != json_file])
    if json_file in files:
        host = host_facts()
        why = early.why or early.traceback
        with document(json_file) as stream:
            stream.write(text_of(Bench(host.kernel, host.vendor, host.cpu, 0, (), early=why)))


class _Slower(Failure):
    """Something is slower than in the older result."""

    exit_code = 1


@click.command(cls=_Bench)
@click.option("--work", "works", type=click.Choice(WORKS), multiple=True, metavar="WORK",
              help=f"Only {', '.join(WORKS[:-1])} or {WORKS[-1]} (may be repeated).")  # fmt: skip
@click.option("--slots", "counts", multiple=True, metavar="N",
              help="With N slots, or `all` (may be repeated).")  # fmt: skip
@click.option("--pages", type=int, default=64, show_default=True, metavar="N",
              help="Pages of each slot.")  # fmt: skip
@click.option("--vcpus", type=int, default=1, show_default=True, metavar="N",
              help="vCPUs of the VM; one of them works.")  # fmt: skip
@click.option("--huge", is_flag=True, help="Ask for transparent huge pages.")
@click.option("--rounds", type=click.IntRange(3, 1000), default=25, show_default=True, metavar="N",
              help="Rounds of each, through the library and in C in turn.")  # fmt: skip
@click.option("--no-c", is_flag=True, help="Do not compare with C.")
@click.option("--json", "json_file", type=FilePath(path_type=Path), metavar="FILE",
              help="Write the result (-: to stdout).")  # fmt: skip
@click.option("--against", type=FilePath(path_type=Path), metavar="OLD.json",
              help="Say what changed beyond the noise; status 1 if slower.")  # fmt: skip
@click.option("--plot", type=FilePath(path_type=Path), metavar="FILE",
              help="Draw it: a name that ends in .svg or .png.")  # fmt: skip
def bench(
    works: tuple[str, ...],
    counts: tuple[str, ...],
    pages: int,
    vcpus: int,
    huge: bool,
    rounds: int,
    no_c: bool,
    json_file: Path | None,
    against: Path | None,
    plot: Path | None,
) -> None:
    """Measure what memslot operations cost, next to the same work in C.

    Costs are in microseconds: the median of the rounds, and the range of their middle half. C does
    the same work in the same run on the same CPU; the ratio compares rounds that follow each other.
    `both` is a creation and a deletion, one call of the library each; `pairs` is the same where one
    call makes 16 of each. How each cost grows with the number of slots is said in words.
    """
    from vmm.bench.result import Bench, text_of
    from vmm.bench.table import table

    outputs = [str(each) for each in (json_file, plot) if each is not None]
    apart(outputs)
    if against is not None:
        spare([against], outputs)
    before = _older(against) if against is not None else None
    if plot is not None:
        _require_plot(plot)
    base = _base(pages, vcpus, huge)
    host = look_at_host()
    require_usable(host)
    setups = _setups(works or WORKS, counts or _SLOTS, host, base)
    if before is not None:
        _require_common(setups, before, against)
    to_stdout = str(json_file) == "-"
    with ExitStack() as files:  # Opened before anything is measured.
        kept = files.enter_context(document(str(json_file))) if json_file else None
        picture = files.enter_context(written_bytes(plot)) if plot else None
        points, cpu = _measured(setups, rounds, with_c=not no_c)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        info = host.info
        result = Bench(info.kernel, info.vendor, info.cpu, cpu, points, tool_version(), now)
        for line in table(result):
            tell(line, err=to_stdout)
        if kept is not None:
            kept.write(text_of(result))
            if to_stdout:
                note_printed()
        if picture is not None and plot is not None:
            from vmm.bench.plot import plot as draw

            draw(result, picture, plot.suffix.removeprefix("."))
    if before is not None and _is_slower(before, result, err=to_stdout):
        raise _Slower(f"slower than {against}")


def _is_slower(before: "Bench", now: "Bench", *, err: bool) -> bool:
    """Tell what changed beyond the noise; return whether anything became slower."""
    from vmm.bench.result import changes
    from vmm.bench.table import compared, elsewhere

    found = changes(before, now)
    for line in (*elsewhere(before, now), *compared(found)):
        tell(shown(line), err=err)
    return any(change.is_beyond_noise and change.factor > 1 for change in found)


def _base(pages: int, vcpus: int, huge: bool) -> Setup:
    try:
        return Setup("nop", 0, pages, vcpus, huge)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _older(path: Path) -> "Bench":
    from vmm.bench.result import BenchFileError, bench_of

    try:
        return bench_of(read_text(path))
    except FileError as error:
        raise Unusable(str(error)) from None
    except BenchFileError as error:
        raise Unusable(f"{path}: {error}") from None


def _require_common(setups: Sequence[Setup], before: "Bench", path: Path | None) -> None:
    measured = {point.setup for point in before.points}
    if measured.isdisjoint(setups):
        raise Unusable(f"{path}: has nothing of what is measured now, with these options")


def _require_plot(path: Path) -> None:
    if path.suffix not in _PICTURES:
        raise click.UsageError(f"--plot {path}: a picture's name ends in .svg or .png")
    if find_spec("matplotlib") is None:
        raise Unusable("--plot needs matplotlib: pip install 'memslot-vmm[plot]'")


def _setups(
    works: Sequence[str], counts: Sequence[str], host: Host, base: Setup
) -> tuple[Setup, ...]:
    """Return what to measure; work that the kernel lacks is left out with a message."""
    most = min(host.features.nr_memslots - _USED_SLOTS, MAX_FILLED_PAGES // base.pages)
    numbers = sorted({_count(count, most) for count in counts})
    if not host.features.dirty_ring_bytes and "dirty-ring" in works:
        tell("dirty-ring: not measured: needs KVM_CAP_DIRTY_LOG_RING_ACQ_REL", err=True)
        works = [work for work in works if work != "dirty-ring"]
    return tuple(
        msgspec.structs.replace(base, work=work, slots=slots)
        for work, slots in product(works, numbers)
    )


def _count(text: str, most: int) -> int:
    if text == _ALL:
        return most
    if not text.isdecimal() or len(text) > _MOST_DIGITS or int(text) > most:
        raise click.UsageError(f"--slots {shown(text)}: a number up to {most} here, or {_ALL}")
    return int(text)


def _measured(
    setups: Sequence[Setup], rounds: int, *, with_c: bool
) -> tuple[tuple["Point", ...], int]:
    from kvm_abi.raw import KvmError
    from vmm.bench.measure import Sample, pinned, point_of, samples, shares
    from vmm.kvm.system import Kvm

    with temporary_folder() as folder, pinned() as cpu, Kvm.open() as kvm:
        program = _program(Path(folder)) if with_c else None
        taken: dict[Setup, list[Sample]] = {setup: [] for setup in setups}
        steps = list(product(shares(rounds), taken.items()))
        for number, (share, (setup, found)) in enumerate(steps, 1):
            _progress(f"{number}/{len(steps)} {setup.work}, {setup.slots} slots")
            try:
                found += samples(kvm, setup, share, program)
            except (KvmError, RuntimeError) as error:
                raise _broken_off(setup, error) from None
        _progress("")
        return tuple(point_of(setup, found) for setup, found in taken.items()), cpu


def _broken_off(setup: Setup, error: Exception) -> Ended:
    """Return how a measurement ends: a refusal is the kernel's, unless it is short of something."""
    from kvm_abi.raw import KvmError, WrongAnswerError

    where = f"{setup.work} with {setup.slots} slots: {error}"
    match error:
        case KvmError(errno=number) if number in KERNEL_SHORT:
            return Ended(f"{HOST}{where}", statuses.INCONCLUSIVE)
        case KvmError(errno=number) if number != errno.EINTR:
            return Ended(where, statuses.DIFFERS)
        case WrongAnswerError():
            return Ended(where, statuses.DIFFERS)
    return Ended(where, statuses.INCONCLUSIVE)  # A signal, or the C program ended.


def _program(folder: Path) -> Path | None:
    from vmm.bench.native import NoCompilerError, compiled

    try:
        return compiled(folder)
    except NoCompilerError as error:
        tell(f"not compared with C: {error}", err=True)
        return None


def _progress(text: str) -> None:
    if os.isatty(2):
        click.echo(f"\r\x1b[K{text}", nl=False, err=True)
