"""What judging costs: random scenarios here, and the same ones as C programs.

``scripts/bench-overhead`` runs it. Everything is pinned to one CPU; the programs run between the
scenarios, so that both see the same machine. A program counts from its first instruction until it
is gone: as here, memory is filled and compared, and the VM is closed. What every process takes, one
that does nothing too, is left out. Of a scenario, and of a program, the fastest run counts.
"""

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from kvm_abi import raw
from vmm.execution.executor import Recorder, execute
from vmm.execution.probe.features import probe_features
from vmm.fuzz.generate.dice import seed_of
from vmm.fuzz.generate.scenarios import generate
from vmm.kvm.system import Kvm
from vmm.kvm.vm import IN_PYTHON, Vm
from vmm.repro.emit import InexpressibleError, program
from vmm.scenario.features import Features
from vmm.scenario.history import End, Event, Header, History
from vmm.scenario.operations import Scenario
from vmm.verdict.judge import Judgement, Status, judge

SEED = 1
COUNT = 30
LIMIT = 1.4
_RUNS = 5
_MAKING, _RUNNING, _JUDGING = "making scenarios", "running them", "judging them"
_C, _C_IOCTLS = "as C programs", "in their ioctls"
WAYS_IN = (
    *("_ioctl_struct", "_ioctl_value", "_run_past_mmio"),
    *("issue_region", "issue_regions", "issue_run"),
)
"""The names in `kvm_abi.raw` of all that issues an ioctl; the shortcut does so besides."""

_NOTHING = "int main(void) { return 0; }"


@dataclass(slots=True)
class Times:
    """Seconds, by scenario and by what they went into: those of the fastest run."""

    fastest: dict[tuple[int, str], float] = field(default_factory=dict)

    def add(self, number: int, what: str, seconds: float) -> None:
        """Take note of a run."""
        key = number, what
        self.fastest[key] = min(seconds, self.fastest.get(key, seconds))

    def spent(self, what: str) -> float:
        """Return the seconds of all scenarios."""
        return sum(seconds for (_, each), seconds in self.fastest.items() if each == what)


def main(arguments: list[str]) -> int:
    """Print the ratio and where the time goes."""
    count = int(arguments[0]) if arguments else COUNT
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    times, events = Times(), 0
    with Kvm.open() as kvm, tempfile.TemporaryDirectory() as folder:
        features = probe_features(kvm)
        programs = compiled(kvm, features, count, Path(folder))
        nothing = built(Path(folder) / "nothing.c", _NOTHING)
        gc.disable()  # As a worker of `vmm fuzz` does.
        gc.freeze()
        for _ in range(_RUNS):
            events = 0
            for number, program in programs:
                run_program(program, nothing, number, times)
                events += one(kvm, features, number, times)
            gc.collect()
        ioctls_s = sum(in_ioctls(kvm, features, number) for number, _ in programs)
    report(times, ioctls_s, events, len(programs))
    return 0


def history_of(kvm: Kvm, scenario: Scenario, features: Features) -> History:
    """Run a scenario: where kernels may differ, its program is to expect what this one does."""
    events: list[Event] = []
    execute(kvm, scenario, features.touch_limit, Recorder(events.append))
    return History(Header(scenario, features), tuple(events), End(events=len(events)))


def compiled(kvm: Kvm, features: Features, count: int, folder: Path) -> list[tuple[int, Path]]:
    """Return the numbers of scenarios that pass and have a C form, and their programs."""
    programs = []
    for number in range(count):
        try:
            history = history_of(kvm, generate(seed_of(SEED, number), features), features)
            if judge(history).status is not Status.PASSED:
                continue
            text = program(history)
        except InexpressibleError:
            continue
        programs.append((number, built(folder / f"{number}.c", text)))
    return programs


def built(source: Path, text: str) -> Path:
    """Compile a program that says when it began."""
    source.write_text(text)
    compiler = shutil.which("cc") or "gcc"
    header = Path(__file__).with_name("timed_ioctl.h")
    binary = source.with_suffix("")
    subprocess.run([compiler, "-O1", "-include", header, "-o", binary, source], check=True)
    return binary


def run_program(program: Path, nothing: Path, number: int, times: Times) -> None:
    """Take note of the seconds of a program without those of a process that does nothing."""
    all_s, ioctls_s = timed(program)
    times.add(number, _C, all_s - timed(nothing)[0])
    times.add(number, _C_IOCTLS, ioctls_s)


def timed(program: Path) -> tuple[float, float]:
    """Return the seconds from the beginning of a program until it is gone, and those in ioctls."""
    ran = subprocess.run([program], capture_output=True, text=True, check=False, timeout=60)
    gone_ns = time.monotonic_ns()
    if ran.returncode:
        raise SystemExit(f"the program of scenario {program.name}: {ran.stdout.strip()}")
    begun_ns, ioctls_ns = map(int, ran.stderr.split())
    return (gone_ns - begun_ns) / 1e9, ioctls_ns / 1e9


def one(kvm: Kvm, features: Features, number: int, times: Times) -> int:
    """Make, run and judge one scenario; return how many events it has."""
    begun = time.perf_counter()
    scenario: Scenario = generate(seed_of(SEED, number), features)
    made = time.perf_counter()
    events: list[Event] = []
    execute(kvm, scenario, features.touch_limit, Recorder(events.append))
    ran = time.perf_counter()
    judgement = Judgement(Header(scenario, features))
    if not all(judgement.admits(event) for event in events):
        raise SystemExit(f"scenario {number} differs: {judgement.verdict('')}")
    judged = time.perf_counter()
    times.add(number, _MAKING, made - begun)
    times.add(number, _RUNNING, ran - made)
    times.add(number, _JUDGING, judged - ran)
    return len(events)


def in_ioctls(kvm: Kvm, features: Features, number: int) -> float:
    """Return the seconds of the ioctls of one scenario; watching them counts with them."""
    scenario = generate(seed_of(SEED, number), features)
    watch = Stopwatch()
    watch.measure(lambda: execute(kvm, scenario, features.touch_limit, Recorder(lambda _: None)))
    return watch.seconds


class Stopwatch:
    """Adds up the time that ioctls take while something is measured."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def measure(self, work: Any) -> None:
        """Do the work with all ways into the kernel watched."""
        with ExitStack() as stack:
            for name in WAYS_IN:
                watched = self._watched(getattr(raw, name))
                stack.enter_context(patch.object(raw, name, watched))
            stack.enter_context(patch.object(Vm, IN_PYTHON.__name__, IN_PYTHON))
            work()

    def _watched(self, call: Any) -> Any:
        clock = time.perf_counter

        def watched(*arguments: Any) -> Any:
            begun = clock()
            result = call(*arguments)
            self.seconds += clock() - begun
            return result

        return watched


def report(times: Times, ioctls_s: float, events: int, count: int) -> None:
    """Print what was measured."""
    parts = {what: times.spent(what) for what in (_MAKING, _RUNNING, _JUDGING)}
    total, replayed = sum(parts.values()), times.spent(_C)

    def line(what: str, seconds: float) -> None:
        print(f"{what:28} {seconds:6.3f} s {seconds / events * 1e6:6.1f} us an event")

    print(f"{count} scenarios, {events} events, the fastest of {_RUNS} runs each, on one CPU")
    line("here, made, run and judged", total)
    for what, seconds in parts.items():
        line(f"  {what}", seconds)
    line("  of which in ioctls", ioctls_s)
    line(_C, replayed)
    line(f"  of which {_C_IOCTLS}", times.spent(_C_IOCTLS))
    ratio = total / replayed
    verdict = "within" if ratio <= LIMIT else "beyond"
    print(f"ratio {ratio:.2f}: {verdict} the limit of {LIMIT:g}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
