"""What the options of ``vmm fuzz`` come to, and what is said of it."""

import shutil
import signal
import sys
import time
from pathlib import Path

from rich.live import Live
from rich.text import Text

from vmm.cli.errors import Unusable
from vmm.cli.files import scenario_from
from vmm.cli.host import Host
from vmm.cli.output import console
from vmm.cli.selection import curated
from vmm.fuzz import corpus
from vmm.fuzz.corpus import write_whole
from vmm.fuzz.driver import Fuzzer, Plan, Tally
from vmm.fuzz.findings import Finding, write
from vmm.fuzz.journal import left_behind, read_journal
from vmm.fuzz.mutate import can_be_mutated
from vmm.fuzz.reach import group
from vmm.memslots.codec import scenario_text
from vmm.memslots.operations import Scenario

_DRAW_EVERY_S = 0.2


def run_plan(plan: Plan, host: Host) -> Tally:
    """Run a plan, with a status line on a terminal, and print what came of it."""
    to = console()
    bases = _bases(plan, host)
    print(f"seed {plan.seed}, {plan.jobs} jobs" + _part(plan))
    sys.stdout.flush()  # What is buffered would be printed once more by each forked child.
    # A batch system ends its jobs with SIGTERM: that is Ctrl-C to us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    status = _StatusLine(Live(console=to, auto_refresh=False, transient=True))
    with status.live:
        tally = Fuzzer(plan, host.features, host.info, bases, status.draw).run()
    for line in _summary(plan, tally):
        print(line)
    return tally


def _part(plan: Plan) -> str:
    return "" if plan.shard == (1, 1) else f", shard {plan.shard[0]}/{plan.shard[1]}"


def _bases(plan: Plan, host: Host) -> tuple[Scenario, ...]:
    """Return what mutations begin with: curated scenarios, and the corpus."""
    bases = [s for s in curated(host.features) if can_be_mutated(s, host.features)]
    if plan.corpus is not None:
        loaded = corpus.load(plan.corpus)
        for line in loaded.passed_over:
            print(f"passed over: {line}", file=sys.stderr)
        bases += [s for s in loaded.scenarios if can_be_mutated(s, host.features)]
    return tuple(bases)


class _StatusLine:
    """One line that stays, drawn only when it is asked for: no thread may run while we fork."""

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
    reached = tally.reached
    parts = [
        f"{tally.seconds:.0f} s",
        f"{tally.operations:,} operations ({rate:,.0f}/s)",
        f"{len(group(reached, 'change'))} changes, {len(group(reached, 'refusal'))} refusals, "
        f"{len(group(reached, 'pair'))} pairs",
        f"{len(tally.findings)} found",
    ]
    if tally.shrinking:
        parts.append(f"shrinking {tally.shrinking}")
    return " | ".join(parts)


def _summary(plan: Plan, tally: Tally) -> list[str]:
    reached = tally.reached
    rate = tally.operations / tally.seconds if tally.seconds else 0.0
    slots = sorted(map(int, group(reached, "slots")))
    lines = [
        f"{tally.scenarios:,} scenarios, {tally.operations:,} operations in {tally.seconds:.1f} s "
        f"({rate:,.0f} a second)",
        f"reached: {', '.join(group(reached, 'change')) or 'no change'}; "
        f"{len(group(reached, 'refusal'))} refusals; {len(group(reached, 'pair'))} pairs of "
        f"successive calls; {len(group(reached, 'path'))} paths of a slot; "
        f"up to {slots[-1] if slots else 0} slots or more",
    ]
    if plan.corpus is not None:
        lines.append(f"kept {tally.kept} scenarios in {plan.corpus}")
    if tally.inconclusive:
        lines.append(f"{tally.inconclusive} scenarios were inconclusive")
    lines += [f"note: {note}" for note in tally.notes]
    lines += [f"found: {path} (in {tally.rates[path.name]} runs)" for path in tally.findings]
    if not tally.findings:
        lines.append("no difference found")
    return lines


def resumed(
    out: Path, seed: int | None, shard: tuple[int, int]
) -> tuple[int | None, tuple[int, int], int]:
    """Say what was under way, keep it as files, and return where to go on."""
    first = 0
    for path in left_behind(out):
        left = read_journal(path)
        if left is None:
            print(f"{path}: cut off: nothing of it was run")
            path.unlink()
            continue
        for scenario in left.under_way:
            target = out / f"{scenario.name}.json"
            write_whole(target, scenario_text(scenario))
            print(f"under way: {scenario.name}: `vmm fuzz --shrink {target}` shrinks it")
        seed, shard = left.intent.seed, left.intent.shard
        behind = left.intent.next_index // shard[1] + len(left.intent.scenarios)
        first = max(first, behind)
        path.unlink()
    if seed is None:
        raise Unusable(f"{out}: no journal there: nothing was under way")
    return seed, shard, first


def shrink_one(path: Path, host: Host, out: Path) -> int:
    """Shrink a scenario in a file; return the exit status."""
    from vmm.cli.shrinking import shrink_scenario

    finding = shrink_scenario(scenario_from(str(path)), host.features)
    if finding is None:
        print(f"{path}: passes, there is nothing to shrink")
        return 0
    target = write(out, finding, host.features, host.info) or out / finding.name
    print(f"shrunk to {len(finding.scenario.operations)} operations: {target}")
    return 3 if finding.kind in ("hung", "died") else 1


def merge_folders(folders: tuple[Path, ...], out: Path) -> int:
    """Gather the findings of several runs, the same one only once; return the exit status."""
    gathered = 0
    for folder in folders:
        if not folder.is_dir():
            raise Unusable(f"{folder}: not a folder")
        for finding in sorted(folder.iterdir()):
            if not (finding / "scenario.json").exists():
                continue
            gathered += 1
            target = out / finding.name
            if not target.exists():
                out.mkdir(parents=True, exist_ok=True)
                scratch = out / f".{finding.name}.part"
                shutil.copytree(finding, scratch, dirs_exist_ok=True)
                scratch.rename(target)
    kept = sorted(p for p in out.iterdir() if p.is_dir()) if out.is_dir() else []
    print(f"{gathered} findings in {len(folders)} folders, {len(kept)} different ones in {out}")
    for path in kept:
        print(f"found: {path}")
    return 1 if kept else 0


__all__ = ["Finding", "merge_folders", "resumed", "run_plan", "shrink_one"]
