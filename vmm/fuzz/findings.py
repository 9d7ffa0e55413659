"""Findings: each difference gets a folder with all that a bug report needs."""

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from vmm.execution.runner import HarnessError, long_enough, run_isolated
from vmm.fuzz import bugreport
from vmm.fuzz.endings import ended_badly, is_ending
from vmm.fuzz.files import whole_folder, write_whole
from vmm.host.hostinfo import HostInfo
from vmm.host.naming import named
from vmm.repro.emit import InexpressibleError, program
from vmm.scenario.codec import history_lines, read_scenario, scenario_text
from vmm.scenario.demand import LARGE
from vmm.scenario.endings import HUNG
from vmm.scenario.features import Features
from vmm.scenario.history import History
from vmm.scenario.operations import Scenario
from vmm.scenario.shown import shown
from vmm.scenario.words import counted
from vmm.verdict.identity import Identity
from vmm.verdict.judge import Verdict, judge

_DIFFERENT_TRIES = 10

_TRY_LIMIT_S = 5.0
"""How long each of these tries may take: what is left of all their time may be next to nothing, and
what does not end within that does not hang.
"""

ALSO = "also"
"""Subfolder of a finding for other findings of the same fault."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference, minimised: ``differed`` of ``runs`` runs of the scenario showed it.

    ``found_with`` is how many operations it had when it was found, after ``seconds``.
    ``unfinished`` says that time ended the minimising. ``log`` has the kernel's messages,
    ``journal`` the intent journal of a run that hung or died. The scenarios ``before`` ran before
    it in the same process.
    """

    scenario: Scenario
    identity: Identity
    seed: int
    found_with: int = 0
    seconds: float = 0.0
    tries: int = 0
    differed: int = 0
    runs: int = 0
    log: tuple[str, ...] = ()
    unfinished: bool = False
    journal: bytes = b""
    before: tuple[Scenario, ...] = ()

    @property
    def name(self) -> str:
        """A name that depends only on the kind of finding, so that the same one gets it again."""
        words = "-".join(str(self.identity).lower().replace("|", " ").split())
        shape = [type(operation).__name__ for operation in self.scenario.operations]
        digest = hashlib.sha256(json.dumps([str(self.identity), shape]).encode()).hexdigest()[:8]
        return f"{words[:48].strip('-')}-{digest}"

    @property
    def remark(self) -> str:
        """How reliably it shows, and whether it is fully minimised."""
        rate = f"in {self.differed} of {self.runs} runs" if self.runs else "not run again"
        return rate + ("; not fully minimised" if self.unfinished else "")


def write(
    folder: Path, finding: Finding, features: Features, host: HostInfo, time_limit_s: float
) -> tuple[Path, bool]:
    """Write the folder of a finding; return it, and whether it is new. Raises OSError.

    ``time_limit_s`` is for running its scenario once more, to get a history.
    """
    target = folder / finding.name
    if target.exists():
        return target, False
    scenario = msgspec.structs.replace(
        finding.scenario, name=finding.name[:64], why=_why(finding.identity)
    )
    history = _history(scenario, features, host, finding, time_limit_s)
    try:
        with whole_folder(target) as scratch:
            _fill(scratch, scenario, history, finding, host)
    except FileExistsError:  # Another run has just written the same finding.
        return target, False
    return target, True


def _why(identity: Identity) -> str:
    """Say what was found, as the ``why`` of a scenario.

    >>> _why(Identity("Touch", ("hole", "reach"), "MMIO"))
    'Found by vmm fuzz: Touch, decided by hole or reach, ended with MMIO.'
    """
    decided = f", decided by {' or '.join(identity.rules)}," if identity.rules else ""
    outcome = f" ended with {identity.outcome}" if identity.outcome else ""
    return f"Found by vmm fuzz: {identity.operation}{decided}{outcome}."


def length_of(folder: Path) -> int:
    """Return how many operations the scenario of a written finding has."""
    return len(read_scenario(folder / "scenario.json", LARGE).operations)


def swap(known: Path, shorter: Path, target: Path) -> None:
    """Make a finding inside another one the outer one, under the name ``target``.

    Raises OSError.
    """
    shorter.rename(target)
    also = known / ALSO
    also.rename(target / ALSO)
    known.rename(target / ALSO / known.name)


def _fill(
    folder: Path, scenario: Scenario, history: History | None, finding: Finding, host: HostInfo
) -> None:
    """Write all the files. Raises OSError."""
    write_whole(folder / "scenario.json", scenario_text(scenario))
    write_whole(folder / "host.json", json.dumps(asdict(host), indent=2) + "\n")
    if finding.log:
        write_whole(folder / "kernel-log.txt", "".join(f"{line}\n" for line in finding.log))
    if finding.journal:
        journal = folder / "under-way.journal"
        with named(journal):
            journal.write_bytes(finding.journal)
    if history is not None:
        write_whole(folder / "history.jsonl", b"".join(history_lines(history)).decode())
        with suppress(InexpressibleError):  # The history still says what happened.
            write_whole(folder / "repro.c", program(history))
    verdict = None if history is None else judge(history)
    title = bugreport.subject(finding.scenario, history, verdict, str(finding.identity))
    summary = _summary(finding, verdict)
    files = {path.name for path in folder.iterdir()}
    parts = tuple(bugreport.sections(finding.scenario, history, verdict, host, finding.log, files))
    write_whole(folder / "report.md", bugreport.markdown(title, summary, parts))
    write_whole(folder / "report.txt", bugreport.mail(title, summary, parts))


def _history(
    scenario: Scenario, features: Features, host: HostInfo, finding: Finding, time_limit_s: float
) -> History | None:
    """Return a history that shows the difference, after several tries if needed."""
    history = None
    hangs = is_ending(finding.identity)
    deadline = time.monotonic() + time_limit_s
    limit_s = long_enough(scenario, _TRY_LIMIT_S)
    for _ in range(_DIFFERENT_TRIES):
        if time.monotonic() >= deadline:
            break
        try:
            tried = run_isolated(scenario, features, time_limit_s=limit_s, host=host.in_brief())
        except HarnessError:
            return None
        verdict = judge(tried)
        is_bad = ended_badly(verdict.reason)
        if verdict.difference is not None or is_bad is hangs or history is None:
            history = tried
        if verdict.difference is not None or (hangs and is_bad):
            break
    if history is not None and not hangs:
        # What our own time limit cut short shows nothing, least of all a hang.
        return None if judge(history).reason.startswith(HUNG) else history
    return history


def _minimised(before: int, after: int, tries: int) -> str:
    operations = counted(after, "operation")
    if after == before:
        return f"None of its {operations} could be left out, in {tries} tries."
    if after > before:
        return f"Its surveys are operations now: {operations}, after {tries} tries."
    return f"Minimised from {before} to {operations} in {tries} tries."


def _summary(finding: Finding, verdict: Verdict | None) -> str:
    count = len(finding.scenario.operations)
    today = time.strftime("%Y-%m-%d")
    lines = [
        f"Found by `vmm fuzz` (seed {finding.seed}) on {today}, after {finding.seconds:.1f} s."
        if finding.seconds
        else f"Minimised by `vmm fuzz` on {today}, from a scenario that was given."
    ]
    if finding.tries:
        lines.append(_minimised(finding.found_with, count, finding.tries))
    if finding.unfinished:
        lines.append("Time ended the minimising: fewer operations may do.")
    if finding.runs:
        lines.append(f"It showed in {finding.differed} of {finding.runs} runs.")
    if finding.runs and finding.differed < finding.runs:
        lines.append("It comes and goes: it may be a race, or depend on what ran before.")
    if verdict is not None and verdict.reason:
        lines.append(f"The run ended: {shown(verdict.reason)}.")
    return "\n".join(lines) + "\n"
