"""Runs in the machine: looks for one bug after the other, each in a process of its own.

What takes long to begin with (Python's start, the catalogue) is done once; each bug gets a fork.
The parameter of the module is set before and reset after. The scenario that noticed a bug then
runs once more without it, and must pass.
"""

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from tests.mutants.words import Order, Said, Task
from vmm.catalogue import catalogue
from vmm.cli.main import main as command
from vmm.cli.options.whitebox import looking
from vmm.cli.running.host import look_at_host
from vmm.execution.runner import Worker
from vmm.host.freememory import FreeMemory
from vmm.host.health import KernelWatch, Problem
from vmm.scenario import requirements
from vmm.scenario.demand import short_of_memory
from vmm.scenario.endings import DIED, ENDLESS, HUNG
from vmm.scenario.features import Features
from vmm.scenario.history import Header
from vmm.scenario.operations import Scenario
from vmm.scenario.plan import out_of_reach
from vmm.verdict.judge import Status
from vmm.verdict.result import Checked, judged

SWITCH = Path("/sys/module/kvm/parameters/mutant")
WARN_AGAIN = Path("/sys/kernel/debug/clear_warn_once")
_MOST = 400
_DIFFER = ("differs", "known")
_AT_ONCE = 16
"""So many scenarios share a child process."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What all tasks of an order share."""

    order: Order
    features: Features
    scenarios: tuple[Scenario, ...]


def main(arguments: list[str]) -> int:
    """Carry out an order; end early where the kernel is not to be trusted any more."""
    order = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=Order)
    # One that warns goes on, and is asked about the next bug.
    Path("/proc/sys/kernel/panic_on_warn").write_text("0")
    features = look_at_host(order.patience).features
    white_box = Path(order.white_box) if order.white_box else None
    with looking(white_box is not None, white_box):
        _carry_out(Prepared(order, features, catalogue(features)))
    return 0


def _carry_out(prepared: Prepared) -> None:
    order = prepared.order
    say(Said("ready"))
    for task in order.tasks:
        say(Said("begin", task.number))
        found, control, seconds = _noticed(task, prepared)
        say(msgspec.structs.replace(found, number=task.number, seconds=seconds, control=control))
        if found.how in ("hung", "error") or control not in ("", "passed"):
            break  # In another machine, the next one has a kernel that is as it should be.


def _noticed(task: Task, prepared: Prepared) -> tuple[Said, str, float]:
    """Return what a bug came to, how what noticed it ended without it, and after how long.

    What differs without the bug as well says nothing of it, and the next scenario has its turn; an
    issue that is known elsewhere counts if it is not this kernel's. Without a bug at work all
    scenarios run, whatever they say.
    """
    limit_s = prepared.order.limit_s
    seconds = 0.0
    failed: list[Said] = []
    while True:
        start = time.monotonic()
        found = _in_a_child(_limit_s(prepared.order, task), partial(_look, task, prepared))
        took = time.monotonic() - start
        seconds += took
        control = ""
        if found.how != "passed" and found.scenario and task.number:
            again = Task(0, (found.scenario,))
            control = _in_a_child(limit_s, partial(_look, again, prepared)).how
        if not _goes_on(found, control, task):
            how = "differs" if found.how == "known" else found.how
            found = msgspec.structs.replace(found, how=how)
            return _in_all(found, failed), control, round(seconds, 2)
        if not task.number and found.how != "known":
            failed.append(found)
        after = task.scenarios.index(found.scenario) + 1
        task = msgspec.structs.replace(
            task, scenarios=task.scenarios[after:], check_s=max(task.check_s - took, 0)
        )


def _goes_on(found: Said, control: str, task: Task) -> bool:
    """Return whether what was found says nothing of the bug, and scenarios are left."""
    if found.scenario not in task.scenarios:
        return False
    return not task.number or (found.how in _DIFFER and control in _DIFFER)


def _in_all(found: Said, failed: Sequence[Said]) -> Said:
    """Return what scenarios came to without a bug, those that did not pass among them."""
    if not failed:
        return found
    steps = [*(f"{each.scenario} {each.how}: {each.step}" for each in failed), found.step]
    return msgspec.structs.replace(failed[0], step="; ".join(filter(None, steps))[: 4 * _MOST])


def _limit_s(order: Order, task: Task) -> float:
    return order.limit_s + task.check_s + task.fuzz_s


def say(said: Said) -> None:
    """Print a line, at once."""
    os.write(1, msgspec.json.encode(said) + b"\n")


def _in_a_child(limit_s: float, work: Callable[[], Said]) -> Said:
    """Return what a fork finds out within a time; no bug is at work afterwards."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        try:
            said = work()
        except BaseException:
            said = Said("end", how="error", step=traceback.format_exc()[-_MOST:])
        os.write(writer, msgspec.json.encode(said))
        os._exit(0)
    os.close(writer)
    try:
        return _answer(child, reader, limit_s)
    finally:
        os.close(reader)
        SWITCH.write_text("0")


def _answer(child: int, reader: int, limit_s: float) -> Said:
    def late(number: int, frame: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        data = os.read(reader, 1 << 16)
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.waitpid(child, 0)
        return msgspec.json.decode(data, type=Said) if data else Said("end", how="hung")
    except TimeoutError:
        os.killpg(child, signal.SIGKILL)
        return Said("end", how="hung", step=f"no end within {limit_s:g} s")


def _look(task: Task, prepared: Prepared) -> Said:
    """Run scenarios until one notices the bug, then the fuzzer."""
    with suppress(OSError):
        WARN_AGAIN.write_text("1")
    SWITCH.write_text(str(task.number))
    unsure: list[str] = []
    how = "passed"
    end = time.monotonic() + task.check_s
    for said in _scenarios(task, prepared):
        if said.how == "unsure":
            unsure.append(f"{said.scenario}: {said.step}")
        elif said.how == "known" and not task.number:
            how = said.how
        elif said.how != "passed":
            return said
        if time.monotonic() > end:
            unsure.append(f"{said.scenario} was the last for which there was time")
            break
    if task.fuzz_s:
        say(Said("fuzzing", task.number))
        if found := _fuzzed(task.fuzz_s):
            return found
    return Said("end", how=how, step="; ".join(unsure)[:_MOST])


def _scenarios(task: Task, prepared: Prepared) -> Iterator[Said]:
    """Run scenarios, and yield what each says."""
    patience = prepared.order.patience
    host = look_at_host(patience / 4)  # A guest that hangs here is a bug, and costs all of it.
    if host.trouble is not None:
        yield _said(host.trouble, "(probing)")
        return
    same = host.features == prepared.features
    known = prepared.scenarios if same else catalogue(host.features)
    named = {scenario.name: scenario for scenario in known}
    chosen = [named[name] for name in task.scenarios if name in named]
    memory = FreeMemory()
    with KernelWatch() as watch:
        # Most bugs are noticed by one of the first: the others need no preparation.
        for first in range(0, len(chosen), _AT_ONCE):
            batch = chosen[first : first + _AT_ONCE]
            headers = [Header(each, host.features, host.info.in_brief()) for each in batch]
            with Worker(headers, patience=patience) as worker:
                for index, scenario in enumerate(batch):
                    if _can_run(scenario, host.features, memory):
                        yield _run(worker, index, scenario.name, task.number, watch)


def _can_run(scenario: Scenario, features: Features, memory: FreeMemory) -> bool:
    return not (
        requirements.missing(scenario, features)
        or out_of_reach(scenario, features.touch_limit)
        or short_of_memory(scenario, memory.size_bytes())
    )


def _run(worker: Worker, index: int, name: str, number: int, watch: KernelWatch) -> Said:
    say(Said("running", number, name))
    start = time.monotonic()
    worker.start(index)
    said = _said(judged(worker.wait().history()), name)
    if problems := watch.news():
        said = Said("end", 0, name, "complained", _complaint(problems))
    seconds = round(time.monotonic() - start, 3)
    say(Said("ran", number, name, said.how, seconds=seconds))
    return said


def _complaint(problems: Sequence[Problem]) -> str:
    lines = [line for problem in problems for line in (*problem.excerpt, problem.what)]
    return next((each for each in lines if "cut here" not in each), "")[:_MOST]


def _said(checked: Checked, name: str) -> Said:
    """Return what a scenario says of the kernel."""
    verdict = checked.verdict
    how = "known" if verdict.status is Status.KNOWN else "differs"
    match verdict.status:
        case Status.PASSED | Status.SKIPPED | Status.PASSES_NOW:
            return Said("end", scenario=name, how="passed")
        case Status.DIFFERS | Status.KNOWN if verdict.difference is not None:
            difference = verdict.difference
            where = "set-up" if difference.origin < 0 else f"operation {difference.origin + 1}"
            rules = " ".join(sorted({each.rule for each in difference.expected}))
            step = f"{where}, {difference.operation}: {difference.observed}"[:_MOST]
            return Said("end", scenario=name, how=how, step=step, rule=rules)
        case Status.DIFFERS | Status.KNOWN:
            return Said("end", scenario=name, how=how, step=verdict.reason[:_MOST])
        case Status.INCONCLUSIVE:
            how = "hung" if verdict.reason.startswith((HUNG, DIED, ENDLESS)) else "unsure"
            return Said("end", scenario=name, how=how, step=verdict.reason[:_MOST])
        case Status.INTERNAL_ERROR:
            return Said("end", scenario=name, how="error", step=verdict.reason[-_MOST:])


def _fuzzed(seconds: float) -> Said | None:
    """Return what the fuzzer finds, if it does."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["fuzz", "--seconds", f"{seconds:g}", "--seed", "1", "--jobs", "1"]
        words += ["--findings", "1", "--out", folder]
        log = Path(folder, "log")
        child = os.fork()
        if not child:
            _run_to(log, words)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        lines = log.read_text(errors="replace").splitlines()
        found = [line for line in lines if line.startswith("found: ")]
        if status == 1 or found:
            return Said("end", how="differs", step=" ".join(["fuzz:", *found])[:_MOST])
        if status not in (0, 3):
            return Said("end", how="error", step="\n".join(lines)[-_MOST:])
    return None


def _run_to(log: Path, words: list[str]) -> None:
    """Run a command, which writes to a file, and end this process."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        command(words)
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 0)
    except BaseException:
        traceback.print_exc()
    os._exit(70)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
