"""Carries out what the options of ``vmm fuzz`` ask for, and prints the results."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.live import Live
from rich.text import Text

from vmm.cli.input.files import scenario_from
from vmm.cli.options.selection import curated
from vmm.cli.output.console import console
from vmm.cli.output.errors import Unusable, usable
from vmm.cli.output.printing import tell
from vmm.cli.output.writing import folder_made
from vmm.cli.running.host import Host
from vmm.fuzz import corpus
from vmm.fuzz.driver import Fuzzer
from vmm.fuzz.endings import is_ending
from vmm.fuzz.files import make_writable, write_whole
from vmm.fuzz.findings import write
from vmm.fuzz.gather import check_finding, findings_in, gather
from vmm.fuzz.generate.mutate import can_be_mutated
from vmm.fuzz.interruption import Interruption
from vmm.fuzz.journal import Intent, Interrupted, left_behind, read_journal
from vmm.fuzz.novelty import group
from vmm.fuzz.tally import Plan, Tally
from vmm.scenario.codec import FileError, scenario_text
from vmm.scenario.demand import Limits
from vmm.scenario.history import Header
from vmm.scenario.operations import Scenario
from vmm.scenario.shown import shown
from vmm.scenario.words import counted
from vmm.verdict import statuses
from vmm.verdict.judge import Verdict
from vmm.verdict.known.weighing import issues_met

_DRAW_EVERY_S = 0.2
_NOT_JUDGED = "inconclusive: what was found hung or died, which is no answer to be judged"
_WRITING_S = 10.0


def run_plan(plan: Plan, host: Host) -> Tally:
    """Run a plan, with a status line on a terminal, and print its result."""
    to = console()
    with ExitStack() as stack:
        for folder in filter(None, (plan.out, plan.corpus)):
            stack.enter_context(writable_folder(folder))
        interruption = stack.enter_context(Interruption())
        bases = _bases(plan, host)
        tell(f"seed {plan.seed}, {plan.jobs} jobs" + _part(plan))
        for path in left_behind(plan.out):
            left = "left by a run that broke off: --resume says what was under way"
            tell(f"{shown(str(path))}: {left}")
        sys.stdout.flush()  # Or each forked child would print the buffer again.
        status = _StatusLine(Live(console=to, auto_refresh=False, transient=True))
        with status.live:
            fuzzer = Fuzzer(plan, host.features, host.info, bases, status.draw)
            tally = fuzzer.run(interruption)
        for line in _summary(plan, tally):
            tell(line)
    return tally


@contextmanager
def writable_folder(folder: Path) -> Iterator[None]:
    """Create a folder, and check that it is writable; remove it at the end if it is empty."""
    with folder_made(folder):
        with usable(folder):
            make_writable(folder)
        yield


def _part(plan: Plan) -> str:
    return "" if plan.shard == (1, 1) else f", shard {plan.shard[0]}/{plan.shard[1]}"


def _bases(plan: Plan, host: Host) -> tuple[Scenario, ...]:
    """Return the scenarios that mutation starts from: curated ones, and the corpus."""
    facts = host.info.in_brief()
    bases = [
        scenario
        for scenario in curated(host.features)
        # Issues that are known here would be found over and over.
        if can_be_mutated(scenario, host.features)
        and not issues_met(Header(scenario, host.features, facts))
    ]
    if plan.corpus is not None:
        loaded = corpus.load(plan.corpus)
        for line in loaded.passed_over:
            tell(f"passed over: {line}", err=True)
        bases += [s for s in loaded.scenarios if can_be_mutated(s, host.features)]
    return tuple(bases)


class _StatusLine:
    """A status line, drawn only on request: no thread may run while we fork."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self._drawn_at = 0.0

    def draw(self, tally: Tally) -> None:
        now = time.monotonic()
        if now - self._drawn_at < _DRAW_EVERY_S or not self.live.console.is_terminal:
            return
        self._drawn_at = now
        self.live.update(Text(_line(tally), no_wrap=True, overflow="ellipsis"), refresh=True)


def _line(tally: Tally) -> str:
    rate = tally.operations / tally.seconds if tally.seconds else 0.0
    covered = tally.covered
    parts = [
        f"{tally.seconds:.0f} s",
        f"{tally.operations:,} operations ({rate:,.0f}/s)",
        f"{len(group(covered, 'change'))} changes, {len(group(covered, 'refusal'))} refusals, "
        f"{len(group(covered, 'pair'))} pairs",
        f"{len(tally.findings)} found",
    ]
    if tally.minimising:
        parts.append(f"minimising {tally.minimising}")
    return " | ".join(parts)


def _summary(plan: Plan, tally: Tally) -> list[str]:
    covered = tally.covered
    rate = tally.operations / tally.seconds if tally.seconds else 0.0
    slots = sorted(map(int, group(covered, "slots")))
    lines = [
        f"{tally.scenarios:,} scenario{'s' * (tally.scenarios != 1)}, "
        f"{tally.operations:,} operations in {tally.seconds:.1f} s "
        f"({rate:,.0f} a second)" + _overtime(tally),
        f"covered: {', '.join(group(covered, 'change')) or 'no change'}; "
        f"{len(group(covered, 'operation'))} kinds of operation; "
        f"{len(group(covered, 'refusal'))} refusals; {len(group(covered, 'pair'))} pairs of "
        f"successive calls; {len(group(covered, 'path'))} paths of a slot; "
        + (f"at least {counted(slots[-1], 'slot')} at a time" if slots else "no slot"),
    ]
    if plan.corpus is not None:
        lines.append(f"kept {tally.kept} scenarios in {plan.corpus}")
    if tally.known:
        lines.append(f"{tally.known:,} of them met what is known to be wrong on this host")
    if tally.inconclusive:
        lines.append(f"{tally.inconclusive:,} of them asked what the model does not know")
    lines += [f"note: {note}" for note in tally.notes]
    if not (tally.scenarios or tally.notes):
        lines.append("note: the time was over before a scenario had ended: take more --seconds")
    for path in tally.findings:
        lines.append(f"found: {path} ({tally.remarks[path.name]})")
        lines += [f"  likely the same fault: {other}" for other in tally.also.get(path.name, ())]
    lines += [f"found again: {path}" for path in tally.again]
    if not tally.differs:
        ended = tally.findings or tally.again
        passed = "no difference found" + (" in what ran" if tally.ended_early else "")
        lines.append(_NOT_JUDGED if ended else passed)
    return lines


def _overtime(tally: Tally) -> str:
    if not tally.overtime:
        return ""
    return f", and {tally.overtime:.1f} s more to minimise and write what was found"


def resumed(out: Path) -> tuple[int, tuple[int, int], int]:
    """Save what was under way as files; return seed, shard, and how many scenarios were done.

    If there are several seeds, the latest run is resumed. Its scenarios up to the last one under
    way count as done: a slower worker may have left some out, but none that a crash stopped runs
    again.
    """
    going_on: Intent | None = None
    done = 0
    for path in left_behind(out):
        with usable(path):
            try:
                left = read_journal(path)
            except FileError as error:
                tell(f"passed over: {error}", err=True)
                continue
            if left is None:
                tell(f"{shown(str(path))}: cut off: nothing of it was run")
            else:
                _keep_under_way(left, out)
                intent = left.intent
                if going_on is None or _run_of(intent) != _run_of(going_on):
                    done = 0
                going_on = intent
                done = max(done, intent.next_index)
            path.unlink()
    if going_on is None:
        raise Unusable(f"{out}: no journal there: nothing was under way")
    return going_on.seed, going_on.shard, done // going_on.shard[1]


def _run_of(intent: Intent) -> tuple[int, tuple[int, int]]:
    return intent.seed, intent.shard


def _keep_under_way(left: Interrupted, out: Path) -> None:
    for scenario in left.under_way:
        target = out / f"{corpus.file_name(scenario)}.json"
        write_whole(target, scenario_text(scenario))
        tell(f"under way: {scenario.name}: `vmm fuzz --minimise {target}` minimises it")
    if not left.under_way:
        tell(f"under way: nothing: {left.intent.scenarios[-1].name} was the last to end")


def minimise_one(path: Path, host: Host, out: Path, limits: Limits) -> int:
    """Minimise the scenario in a file, within ``limits``; return the exit status."""
    from vmm.fuzz.minimise.alone import minimise_scenario

    scenario = scenario_from(str(path), limits)
    with writable_folder(out), usable(out), Interruption() as interruption:
        finding = minimise_scenario(scenario, host.features, interruption)
        if isinstance(finding, Verdict):
            tell(f"{path}: {finding.status.name.lower()}: there is nothing to minimise")
            return finding.status.exit_status
        target, _ = write(out, finding, host.features, host.info, _WRITING_S)
    operations = len(finding.scenario.operations)
    tell(f"minimised to {operations} operations: {target} ({finding.remark})")
    return 3 if is_ending(finding.identity) else 1


def merge_folders(folders: tuple[Path, ...], out: Path) -> int:
    """Gather the findings of several runs, duplicates only once; return the exit status.

    Shards that found nothing leave no folder. Raises Unusable if no folder has a finding.
    """
    findings, others = _sorted_out(folders)
    if not findings:
        raise Unusable("; ".join(others))
    for line in others:
        tell(f"passed over: {line}", err=True)
    for finding in findings:
        with usable(out):
            gather(finding, out)
    kept = sorted(out.glob("*/scenario.json"))
    tell(f"{len(findings)} findings in {len(folders)} folders, {len(kept)} different ones in {out}")
    for path in kept:
        tell(f"found: {shown(str(path.parent))}")
    return statuses.DIFFERS


def _sorted_out(folders: tuple[Path, ...]) -> tuple[list[Path], list[str]]:
    """Return the findings in folders, and a line for everything else there."""
    findings: list[Path] = []
    others: list[str] = []
    for folder in folders:
        with usable(folder):
            try:
                there = findings_in(folder)
            except FileNotFoundError:
                others.append(f"{folder}: not there: a run that finds nothing leaves no folder")
                continue
        if not there:
            others.append(f"{folder}: no finding there (FOLDER/scenario.json)")
        for path in there:
            try:
                check_finding(path)
            except FileError as error:
                others.append(str(error))
            else:
                findings.append(path)
    return findings, others
