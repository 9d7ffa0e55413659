"""``vmm replay``: judge the calls in a trace of another VMM, and repeat them here."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec
from rich.text import Text

from vmm.cli.command import Writing
from vmm.cli.input.files import allow_large
from vmm.cli.options.paths import FilePath
from vmm.cli.output.console import console, print_lines, width_of
from vmm.cli.output.errors import Unusable
from vmm.cli.output.writing import spare, written
from vmm.cli.running.host import Host, exit_status, look_at_host, require_usable
from vmm.replay.build import Built, Replay
from vmm.replay.judging import Judged, judged
from vmm.replay.lines import STDIN, name_of
from vmm.replay.reader import read_trace
from vmm.replay.trace import Line, Trace, TracedVm, TraceError
from vmm.report import terminal
from vmm.report.replay import heading, refusals, remark
from vmm.scenario import outcomewords
from vmm.scenario.codec import scenario_text
from vmm.scenario.demand import USUAL, Limits, check_demand
from vmm.scenario.limits import MAX_OPERATIONS
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate
from vmm.verdict.judge import Status, Verdict
from vmm.verdict.known.weighing import weighed
from vmm.verdict.result import Checked

_WORST = (
    Status.DIFFERS,
    Status.INTERNAL_ERROR,
    Status.INCONCLUSIVE,
    Status.SKIPPED,
    Status.KNOWN,
    Status.PASSED,
)


@click.command(cls=Writing, documents=("file",))
@click.argument(
    "traces",
    metavar="TRACE",
    nargs=-1,
    required=True,
    type=FilePath(path_type=Path, allow_dash=True),
)
@click.option("--judge-only", is_flag=True, help="Run nothing: no /dev/kvm is needed.")
@click.option(
    "--scenario",
    "file",
    type=FilePath(path_type=Path, dir_okay=False),
    metavar="FILE.json",
    help="Write the scenario that is made of the trace.",
)
@click.option("--vm", "number", type=click.IntRange(1), metavar="N", help="Only the N-th VM.")
@click.option("--require-run", is_flag=True, help="Fail (status 5) if nothing could run.")
@allow_large
@click.pass_context
def replay(
    ctx: click.Context,
    traces: tuple[Path, ...],
    judge_only: bool,
    file: Path | None,
    number: int | None,
    require_run: bool,
    limits: Limits,
) -> None:
    """Judge what strace or QEMU recorded of a VMM, and run it here.

    TRACE is the output of `strace -f`, or of QEMU's `-trace kvm_set_user_memory`; "-" reads
    standard input, and what gzip has packed is unpacked. The files that `strace -ff -o NAME`
    writes are one trace: give NAME, their folder, or all of them. What the kernel of the trace
    answered is compared with the model, by line of the trace; then the same calls are made on this
    kernel, and its memslots are looked at after each of them.
    """
    wanted = ReplayOptions(judge_only, file, number, require_run, limits)
    try:
        ctx.exit(replayed(traces, wanted))
    except TraceError as error:
        raise Unusable(str(error)) from None


@dataclass(frozen=True)
class ReplayOptions:
    """What to do with a trace: as the options say."""

    judge_only: bool
    file: Path | None = None
    number: int | None = None
    require_run: bool = False
    limits: Limits = USUAL
    again: str = ""
    """The command that shows it again, if it is not ``vmm replay``."""

    def command(self, vm: TracedVm, name: str, *options: str) -> str:
        """Return the command that shows this about a VM of a trace again."""
        if self.again:
            return self.again
        large = ("--allow-large",) if self.limits is not USUAL else ()
        words = ("vmm", "replay", *options, *large, "--vm", vm.name)
        return f"{' '.join(words)} {_argument(name)}"


def replayed(paths: tuple[Path, ...], wanted: ReplayOptions) -> int:
    """Judge and run the VMs of a trace; return the exit status.

    Raises TraceError for one that cannot be used.
    """
    file = wanted.file
    trace = read_trace(*paths)
    vms = _chosen(trace, wanted.number, file)
    spare(paths, [str(file)] if file is not None else [])
    path = Path(trace.name)
    host = None if wanted.judge_only else look_at_host()
    features = None if host is None or host.info.obstacle else host.features
    replays = [Replay(trace, vm, features) for vm in vms]
    if file is not None:
        _write(file, replays[0].built, path, wanted.limits)
    statuses: list[Status] = []
    to = console()
    print_lines(to, _about(trace))
    for made in replays:
        found = judged(made)
        statuses.append(weighed(found.verdict, found.history)[0].status)
        again = wanted.command(made.vm, trace.name, "--judge-only")
        notes = made.built.notes if host is not None or file is not None else ()
        print_lines(to, _vm_lines(trace, made, notes, found, again, width_of(to)))
    if host is not None:
        _require_few(trace, replays)
        for made in replays:
            _check(made.built, path, wanted.limits)
        statuses += _run(replays, host, path, wanted)
    status = min(statuses, key=_WORST.index)
    return exit_status(status, wanted.require_run)


def _chosen(trace: Trace, number: int | None, file: Path | None) -> list[TracedVm]:
    vms = [vm for vm in trace.vms if vm.calls]
    if number is None:
        if file is not None and len(vms) > 1:
            raise Unusable(f"{trace.name} has {len(vms)} VMs: choose one with --vm")
        return vms
    if number > len(trace.vms):
        raise Unusable(f"--vm {number}: {trace.name} has {len(trace.vms)} VMs")
    if not trace.vms[number - 1].calls:
        raise Unusable(f"--vm {number}: this VM of {trace.name} has no call on a memslot")
    return [trace.vms[number - 1]]


def _about(trace: Trace) -> Iterator[Text]:
    count = len(trace.vms)
    text = f"{trace.lines} lines of {trace.tool}, {count} VM{'s' * (count != 1)}"
    yield heading(trace.name, text)
    for name, times in trace.passed_over.items():
        first = trace.first_lines[name]
        why = "" if ", which " in name else ", whose arguments the trace does not show in full"
        yield remark("left out", f"{times} x {name}{why} (line {first})")
    for note in trace.notes[:5]:
        yield remark("note", note)


def _vm_lines(
    trace: Trace,
    made: Replay,
    notes: Sequence[str],
    found: Judged,
    again: str,
    width: int | None,
) -> Iterator[Text]:
    vm, summary = made.vm, made.summary
    begun = "older than the trace; first seen" if vm.began_before else "made"
    refused = f"{summary.refused} of them refused"
    yield heading(f"VM {vm.name}", f"{begun} on line {vm.line}: {summary.regions} calls, {refused}")
    shown = (
        (step.line.number, step.operation, outcomewords.outcome(step.outcome))
        for step in summary.first_refused
        if step.outcome is not None
    )
    yield from refusals(shown, summary.refused)
    for unread in summary.first_unread:
        yield remark("not read", f"line {unread.line.number}: {unread.name}: {unread.why}")
    if summary.unread > len(summary.first_unread):
        yield remark("", f"and {summary.unread - len(summary.first_unread)} more")
    for note in notes:
        yield remark("note", note)
    if found.assumed:
        yield remark("assumed", f"of the trace's kernel: {', '.join(found.assumed)}")
    verdict, issue = weighed(found.verdict, found.history)
    named = msgspec.structs.replace(verdict, scenario="as traced")
    count = len(found.scenario.operations)
    yield from terminal.single(Checked(found.scenario, named, count, issue=issue), again, width)
    yield from _trace_line(trace.name, found.line)


def _argument(name: str) -> str:
    """Return the argument that names a trace in a command."""
    return str(STDIN) if name == name_of(STDIN) else shlex.quote(name)


def _trace_line(name: str, line: Line | None) -> Iterator[Text]:
    if line is not None:
        yield remark("trace", f"{name}:{line.number}: {line.text}", "bold")


def _require_few(trace: Trace, replays: list[Replay]) -> None:
    """Raise Unusable if the VMs together make more calls than run here at a time."""
    count = sum(len(made.vm.calls) for made in replays)
    if len(replays) > 1 and count > MAX_OPERATIONS:
        raise Unusable(
            f"{trace.name}: {len(replays)} VMs make {count:,} calls, and {MAX_OPERATIONS:,} run "
            "here at most: --vm N runs one of them (--judge-only runs nothing)"
        )


def _write(file: Path, made: Built, path: Path, limits: Limits) -> None:
    _check(made, path, limits)
    with written(file) as stream:
        stream.write(scenario_text(made.scenario))


def _check(made: Built, path: Path, limits: Limits) -> None:
    """Raise Unusable for a scenario that is not safe to run."""
    problem = made.obstacle
    try:
        if made.scenario.operations:
            validate(made.scenario)
            check_demand(made.scenario, limits)
    except ScenarioError as error:
        # What is wrong with a slot says more than that it leaves no room, but not that it is where
        # the guest is then.
        if not (problem and "guest" in str(error)):
            problem = str(error)
    if problem:
        raise Unusable(f"{_place(made, path, problem)} (--judge-only runs nothing)")


def _place(made: Built, path: Path, problem: str) -> str:
    """Return a problem with the line of the trace whose operation it concerns."""
    head, _, rest = problem.partition("]")
    index = head.removeprefix("$.operations[")
    if index.isdecimal() and int(index) < len(made.steps):
        return f"{path}:{made.steps[int(index)].line.number}: {rest.lstrip('.')}"
    return f"{path}: {problem}"


def _run(replays: list[Replay], host: Host, path: Path, wanted: ReplayOptions) -> list[Status]:
    """Run the scenarios on this kernel, and print the verdicts."""
    require_usable(host, wanted.require_run)

    from vmm.cli.running.carrying import Orders
    from vmm.cli.running.execution import execute

    scenarios = [made.built.scenario for made in replays]
    result = execute(Orders(scenarios, host, jobs=1))
    to = console()
    lines = {made.built.scenario.name: made for made in replays}
    for checked in result.checked:
        made = lines[checked.scenario.name]
        named = msgspec.structs.replace(checked.verdict, scenario=f"VM {made.vm.name}, run here")
        again = wanted.command(made.vm, str(path))
        shown = Checked(
            checked.scenario,
            named,
            checked.ran,
            checked.seconds,
            checked.problems,
            checked.issue,
        )
        print_lines(to, terminal.single(shown, again, width_of(to)))
        print_lines(to, _trace_line(str(path), _line_of(made.built, checked.verdict)))
    print_lines(to, terminal.remarks(result, width_of(to)))
    return [result.status]


def _line_of(made: Built, verdict: Verdict) -> Line | None:
    """Return the line of the trace that belongs to a difference or to what was under way."""
    begun = verdict.difference or verdict.under_way
    if begun is None or not 0 <= begun.origin < len(made.steps):
        return None
    return made.steps[begun.origin].line
