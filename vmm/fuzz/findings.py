"""What a difference leaves behind: a folder with all that a bug report needs."""

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from vmm.fuzz.corpus import write_whole
from vmm.hostinfo import HostInfo
from vmm.memslots import describe
from vmm.memslots.check import Verdict, judge
from vmm.memslots.codec import history_lines, scenario_text
from vmm.memslots.features import Features
from vmm.memslots.history import History
from vmm.memslots.operations import Scenario
from vmm.memslots.runner import HarnessError, run_isolated
from vmm.repro.emit import InexpressibleError, program

_TIME_LIMIT_S = 20.0
_DIFFERENT_TRIES = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference, shrunk: ``differed`` of ``runs`` runs of the scenario showed it.

    ``found_with`` is how many operations it had when it was found, ``seconds`` when that was.
    """

    scenario: Scenario
    kind: str
    seed: int
    found_with: int = 0
    seconds: float = 0.0
    tries: int = 0
    differed: int = 0
    runs: int = 0
    log: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A name that the same finding gets again."""
        words = "-".join(self.kind.lower().replace("|", " ").split())
        shape = [type(operation).__name__ for operation in self.scenario.operations]
        digest = hashlib.sha256(json.dumps([self.kind, shape]).encode()).hexdigest()[:8]
        return f"{words[:48].strip('-')}-{digest}"


def write(folder: Path, finding: Finding, features: Features, host: HostInfo) -> Path | None:
    """Write the folder of a finding; None if there is one already. Raises OSError."""
    target = folder / finding.name
    if target.exists():
        return None
    target.mkdir(parents=True)
    scenario = msgspec.structs.replace(
        finding.scenario, name=finding.name[:64], why=f"Found by vmm fuzz: {finding.kind}."
    )
    write_whole(target / "scenario.json", scenario_text(scenario))
    write_whole(target / "host.json", json.dumps(asdict(host), indent=2) + "\n")
    write_whole(target / "kernel-log.txt", "".join(f"{line}\n" for line in finding.log))
    history = _history(scenario, features, host, finding)
    if history is None:
        write_whole(target / "report.md", _report(finding, None, host))
        return target
    text = b"".join(history_lines(history)).decode()
    write_whole(target / "history.jsonl", text)
    with suppress(InexpressibleError):  # The history says all the same what happened.
        write_whole(target / "repro.c", program(history))
    write_whole(target / "report.md", _report(finding, judge(history), host))
    return target


def _history(
    scenario: Scenario, features: Features, host: HostInfo, finding: Finding
) -> History | None:
    """Return a history that shows the difference; one that comes and goes is tried for again."""
    history = None
    for _ in range(_DIFFERENT_TRIES):
        try:
            history = run_isolated(
                scenario, features, time_limit_s=_TIME_LIMIT_S, host=host.in_brief()
            )
        except HarnessError:
            return None
        if judge(history).difference is not None or not finding.kind:
            break
    return history


def _report(finding: Finding, verdict: Verdict | None, host: HostInfo) -> str:
    """Return the finding in the form of a bug report."""
    parts = [f"# KVM: memslots: {_title(finding, verdict)}\n", _summary(finding, verdict)]
    operations = finding.scenario.operations
    steps = [f"{number}. {describe.operation(op)}" for number, op in enumerate(operations, 1)]
    parts.append("## Steps\n\n" + "\n".join(steps) + "\n")
    if verdict is not None and verdict.difference is not None:
        difference = verdict.difference
        expected = "\n".join(
            f"- {each.outcome}: {each.promise} ({each.basis}: {each.cite})"
            for each in difference.expected
        )
        slots = "\n".join(difference.slot_map) or "(no slot)"
        parts.append(f"## Expected\n\nAfter `{difference.operation}`:\n\n{expected}\n")
        parts.append(f"## Observed\n\n- {difference.observed}\n")
        parts.append(f"## Slots at that moment\n\n```\n{slots}\n```\n")
    if finding.log:
        parts.append("## Kernel log\n\n```\n" + "\n".join(finding.log) + "\n```\n")
    facts = "\n".join(f"- {name}: {value}" for name, value in host.in_brief().items())
    parts.append(f"## Host\n\n{facts}\n")
    parts.append(_again(finding))
    return "\n".join(parts)


def _title(finding: Finding, verdict: Verdict | None) -> str:
    if verdict is None or verdict.difference is None:
        return finding.kind
    return verdict.difference.expected[0].promise if verdict.difference.expected else finding.kind


def _summary(finding: Finding, verdict: Verdict | None) -> str:
    count = len(finding.scenario.operations)
    when = f"on {time.strftime('%Y-%m-%d')}, after {finding.seconds:.1f} s"
    lines = [f"Found by `vmm fuzz` (seed {finding.seed}) {when}."]
    if finding.tries:
        lines.append(
            f"Shrunk from {finding.found_with} to {count} operations in {finding.tries} tries."
        )
    if finding.runs:
        lines.append(f"It showed in {finding.differed} of {finding.runs} runs.")
    if finding.runs and finding.differed < finding.runs:
        lines.append("It comes and goes: it may be a race, or depend on what ran before.")
    if verdict is not None and verdict.reason:
        lines.append(f"The run ended: {verdict.reason}.")
    return "\n".join(lines) + "\n"


def _again(finding: Finding) -> str:
    return (
        "## To see it again\n\n"
        "```\n"
        "cc -o repro repro.c && ./repro; echo $?    # 1: wrong, 0: right, 4: cannot run here\n"
        "vmm run scenario.json\n"
        "vmm judge history.jsonl\n"
        "```\n"
    )
