"""What judging costs: random scenarios here, and the ioctls of the same ones as C programs.

``scripts/bench-overhead`` runs it. Everything is pinned to one CPU; the programs run between the
scenarios, so that both see the same machine.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvm_abi import raw
from vmm.execution.executor import execute
from vmm.execution.probe.features import probe_features
from vmm.fuzz.dice import seed_of
from vmm.fuzz.generate import generate
from vmm.kvm.system import Kvm
from vmm.repro.emit import InexpressibleError, program
from vmm.scenario.features import Features
from vmm.scenario.history import Event, Header, History
from vmm.scenario.operations import Scenario
from vmm.verdict.judge import Judgement

SEED = 1
COUNT = 30
LIMIT = 2.0
_RUNS = 3


@dataclass(slots=True)
class Times:
    """Seconds, by what they went into."""

    spent: dict[str, float] = field(default_factory=dict)
    events: int = 0

    def add(self, what: str, since: float) -> float:
        """Count the time since then, and return the time now."""
        now = time.perf_counter()
        self.spent[what] = self.spent.get(what, 0.0) + now - since
        return now


def main(arguments: list[str]) -> int:
    """Print the ratio and where the time goes."""
    count = int(arguments[0]) if arguments else COUNT
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    times, c_all, c_asked = Times(), 0.0, 0.0
    with Kvm.open() as kvm, tempfile.TemporaryDirectory() as folder:
        features = probe_features(kvm)
        programs = compiled(kvm, features, count, Path(folder))
        ioctls = Stopwatch()
        for _ in range(_RUNS):
            for number, program in programs:
                asked_of_c = run_program(program)
                c_all += asked_of_c[0]
                c_asked += asked_of_c[1]
                ioctls.measure(lambda n=number: one(kvm, features, n, times))
    report(times, ioctls, c_all, c_asked, len(programs))
    return 0


def history_of(kvm: Kvm, scenario: Scenario, features: Features) -> History:
    """Run a scenario: where kernels may differ, its program is to expect what this one does."""
    events: list[Event] = []
    execute(kvm, scenario, features.touch_limit, events.append, lambda: None)
    return History(Header(scenario, features), tuple(events), None)


def compiled(kvm: Kvm, features: Features, count: int, folder: Path) -> list[tuple[int, Path]]:
    """Return the numbers of scenarios that have a C form, and their programs."""
    programs = []
    header = Path(__file__).with_name("timed_ioctl.h")
    for number in range(count):
        try:
            text = program(history_of(kvm, generate(seed_of(SEED, number), features), features))
        except InexpressibleError:
            continue
        source = folder / f"{number}.c"
        source.write_text(text)
        compiler = shutil.which("cc") or "gcc"
        binary = source.with_suffix("")
        subprocess.run([compiler, "-O1", "-include", header, "-o", binary, source], check=True)
        programs.append((number, binary))
    return programs


def run_program(program: Path) -> tuple[float, float]:
    """Return the seconds of all ioctls, and of those that the scenario asks for."""
    ran = subprocess.run([program], capture_output=True, text=True, check=False, timeout=60)
    if ran.returncode:
        raise SystemExit(f"the program of scenario {program.name}: {ran.stdout.strip()}")
    all_ns, asked_ns, _ = map(int, ran.stderr.split())
    return all_ns / 1e9, asked_ns / 1e9


def one(kvm: Kvm, features: Features, number: int, times: Times) -> None:
    """Make, run and judge one scenario."""
    since = time.perf_counter()
    scenario: Scenario = generate(seed_of(SEED, number), features)
    since = times.add("making scenarios", since)
    events: list[Event] = []
    execute(kvm, scenario, features.touch_limit, events.append, lambda: None)
    since = times.add("running them", since)
    judgement = Judgement(Header(scenario, features))
    if not all(judgement.admits(event) for event in events):
        raise SystemExit(f"scenario {number} differs: {judgement.verdict('')}")
    times.add("judging them", since)
    times.events += len(events)


class Stopwatch:
    """Adds up the time that ioctls take while something is measured."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def measure(self, work: Any) -> None:
        """Do the work with all ways into the kernel watched."""
        usual = {name: getattr(raw, name) for name in raw.WAYS_IN}
        for name, call in usual.items():
            setattr(raw, name, self._watched(call))
        try:
            work()
        finally:
            for name, call in usual.items():
                setattr(raw, name, call)

    def _watched(self, call: Any) -> Any:
        clock = time.perf_counter

        def watched(*arguments: Any) -> Any:
            begun = clock()
            result = call(*arguments)
            self.seconds += clock() - begun
            return result

        return watched


def report(times: Times, ioctls: Stopwatch, c_all: float, c_asked: float, count: int) -> None:
    """Print what was measured."""
    total = sum(times.spent.values())
    print(f"{count} scenarios, {times.events} events, {_RUNS} runs each, on one CPU")
    print(f"here, made, run and judged: {total:.2f} s, {times.events / total:,.0f} events a second")
    for what, seconds in times.spent.items():
        print(f"  {what:20} {seconds:6.2f} s  {seconds / times.events * 1e6:6.1f} us an event")
    print(f"  of which in ioctls   {ioctls.seconds:6.2f} s")
    print(f"as C programs: {c_all:.2f} s in ioctls, {c_asked:.2f} s of it in those asked for")
    ratio = total / c_all
    verdict = "within" if ratio <= LIMIT else "beyond"
    print(f"ratio {ratio:.2f}: {verdict} the limit of {LIMIT:g}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
