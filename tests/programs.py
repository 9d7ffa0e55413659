"""C programs of scenarios: do they compile, and end as ``vmm`` judges the scenarios?

``scripts/repro-sweep`` runs it on all curated or on random scenarios, one after the other.
"""

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmm.catalogue import catalogue
from vmm.execution.probe.features import probe_features
from vmm.execution.runner import run_isolated
from vmm.fuzz.generate.dice import seed_of
from vmm.fuzz.generate.scenarios import generate
from vmm.kvm.system import Kvm
from vmm.repro.emit import InexpressibleError, program, program_of
from vmm.scenario.features import Features
from vmm.scenario.operations import Scenario
from vmm.scenario.plan import out_of_reach
from vmm.verdict.judge import Status, judge

COMPILER = shutil.which("cc") or shutil.which("gcc")
RIGHT, WRONG, NOT_KNOWN, CANNOT_RUN = 0, 1, 3, 4
REFUSED = -1
_TIME_LIMIT_S = 240
_EXPECTED = {Status.PASSED: RIGHT, Status.DIFFERS: WRONG}


@dataclass(frozen=True, slots=True)
class Ran:
    """The result of a scenario's program: exit statuses, -1 if the compiler refused it.

    ``form`` says why there is no program; "" if there is one.
    """

    scenario: str
    expected: int = RIGHT
    status: int = REFUSED
    said: str = ""
    form: str = ""

    @property
    def good(self) -> bool:
        """Whether the program agrees with ``vmm``."""
        return self.status == self.expected or bool(self.form)


def compare(scenario: Scenario, features: Features, folder: Path) -> Ran:
    """Run a scenario and its program; a program must refuse to run what ``vmm`` skips."""
    expected = CANNOT_RUN
    try:
        if features.missing(scenario.needs, scenario.vm_type) or out_of_reach(
            scenario, features.touch_limit
        ):
            text = program_of(scenario, features)
        else:
            history = run_isolated(scenario, features, time_limit_s=_TIME_LIMIT_S)
            text = program(history)
            verdict = judge(history)
            if verdict.reason.startswith("the model does not know"):
                expected = NOT_KNOWN
            elif verdict.status in _EXPECTED:
                expected = _EXPECTED[verdict.status]
            else:
                return Ran(scenario.name, form=f"the judge says {verdict.status.value}")
    except InexpressibleError as error:
        return Ran(scenario.name, form=str(error))
    status, said = end_of(text, folder)
    return Ran(scenario.name, expected, status, said)


def end_of(text: str, folder: Path) -> tuple[int, str]:
    """Compile and run a program; return its exit status and output."""
    source, binary = folder / "repro.c", folder / "repro"
    source.write_text(text)
    strict = ("-Wall", "-Wextra", "-Werror", "-pthread")
    made = subprocess.run(
        [str(COMPILER), *strict, "-o", binary, source],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        return REFUSED, made.stderr
    ended = subprocess.run(
        [binary], capture_output=True, text=True, timeout=_TIME_LIMIT_S, check=False
    )
    return ended.returncode, ended.stdout.strip()


def chosen(arguments: Sequence[str], features: Features) -> Iterator[Scenario]:
    """Yield curated scenarios by parts of their names, or random ones by seed and count."""
    if arguments[:1] == ["--random"]:
        seed, count = map(int, arguments[1:])
        yield from (generate(seed_of(seed, number), features) for number in range(count))
        return
    for scenario in catalogue(features):
        if not arguments or any(part in scenario.name for part in arguments):
            yield scenario


def main(arguments: Sequence[str]) -> int:
    """Print disagreements, and counts of all results; return 1 if there is a disagreement."""
    with Kvm.open() as kvm:
        features = probe_features(kvm)
    count: Counter[str] = Counter()
    for scenario in chosen(arguments, features):
        with tempfile.TemporaryDirectory() as folder:
            ran = compare(scenario, features, Path(folder))
        if ran.form:
            count["no form in C"] += 1
            print(f"{ran.scenario}: {ran.form}", flush=True)
        elif ran.good:
            count[f"exit status {ran.status}, as expected"] += 1
        else:
            count["not as expected"] += 1
            print(f"{ran.scenario}: {ran.status}, expected {ran.expected}: {ran.said}", flush=True)
    for what, times in sorted(count.items()):
        print(f"{times:4} {what}")
    return int("not as expected" in count)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
