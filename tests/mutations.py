"""Puts mutated files through the commands: they end soon, with a documented status.

To run more by hand: ``python -m tests.mutations 20000 SEED``.
"""

import copy
import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import msgspec
from click.testing import CliRunner, Result

from tests.ideal import FEATURES, ideal_history
from tests.played import INFO
from vmm.catalogue import catalogue
from vmm.cli import repro
from vmm.cli.main import main
from vmm.cli.running.host import Host
from vmm.fuzz.journal import Intent, read_journal
from vmm.report import json as report
from vmm.scenario.codec import FileError, history_lines, scenario_text
from vmm.scenario.operations import Scenario
from vmm.verdict.ideal import EVERYTHING

DOCUMENTED = (0, 1, 2, 3, 4)
MOST_CPU_S = 20.0
_MOST_OPERATIONS = 60

_VALUES: tuple[Any, ...] = (
    *(0, 1, -1, 2, 63, 64, 4095, 4096, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1),
    *(1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1, 1 << 64, 10**30, 10**400),
    *(0.5, 1e300, True, False, None, "", "x", "a", "b", "guest", "0x1000", "0xffffffffffffffff"),
    *(
        "0x" + "f" * 5000,
        "\n\x1b[2J",
        "\ud800",
        "x" * 70,
        [],
        {},
        [[]],
        {"op": "inspect"},
        -(10**30),
    ),
)
_OPERATIONS: tuple[dict[str, Any], ...] = (
    {"op": "close_vm"},
    {"op": "new_vm"},
    {"op": "inspect"},
    {"op": "churn", "slot": 7, "times": 3},
    {"op": "lives", "death": "killed", "times": 9},
    {"op": "touch", "gpa": 0x1000},
    {"op": "execute", "gpa": 0x1000},
    {"op": "create_irqchip"},
    {"op": "set_memory_attributes", "address": 0, "size": 1 << 30, "attributes": 8},
    {"op": "pre_fault_memory", "gpa": 0, "size": 1 << 40},
    {"op": "enable_cap", "cap": "DIRTY_LOG_RING", "argument": 1 << 16},
)


class Mutator:
    """Files by kind, each changed in one to three places. The same seed gives the same files."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        every = {s.name: s for features in (FEATURES, EVERYTHING) for s in catalogue(features)}
        self._scenarios = [s for s in every.values() if len(s.operations) <= _MOST_OPERATIONS]

    def scenario(self) -> bytes:
        data = json.loads(scenario_text(self._one()))
        return self._text(self._mutated(data))

    def history(self) -> bytes:
        """Return a history whose lines are changed, removed, repeated or reordered."""
        history = ideal_history(self._one(lambda s: len(s.operations) < 12), EVERYTHING)
        lines = [json.loads(line) for line in history_lines(history)]
        for _ in range(self._random.randint(1, 3)):
            at = self._random.randrange(len(lines))
            match self._random.randrange(8):
                case 0:
                    del lines[at]
                case 1:
                    lines.insert(at, lines[at])
                case 2:
                    other = self._random.randrange(len(lines))
                    lines[at], lines[other] = lines[other], lines[at]
                case _:
                    lines[at] = self._mutated(lines[at])
            if not lines:
                return b""
        text = self._spoiled(b"\n".join(map(_json, lines)))
        return text + b"\n" if self._random.random() < 0.8 else text

    def journal(self) -> bytes:
        few = tuple(self._one() for _ in range(2))
        data = json.loads(msgspec.json.encode(Intent(9, (1, 2), 3, 2, few)))
        return self._text(self._mutated(data)) + b"\n" + b"." * self._random.randrange(4)

    def result(self) -> bytes:
        data = {
            "format": report.FORMAT,
            "status": "passed",
            "scenarios": [{"name": "move-up", "status": "passed", "rules": ["move"]}],
            "features": msgspec.to_builtins(FEATURES),
            "host": {"kernel": "6", "machine": "x", "cpu": "y", "nested": False, "vendor": "",
                     "tdp": ""},
        }  # fmt: skip
        return self._text(self._mutated(data))

    def _one(self, wanted: Callable[[Scenario], bool] = lambda _: True) -> Scenario:
        return self._random.choice([s for s in self._scenarios if wanted(s)])

    def _text(self, data: object) -> bytes:
        return self._spoiled(_json(data))

    def _spoiled(self, text: bytes) -> bytes:
        """Change bytes now and then, so that it is no longer JSON."""
        if self._random.random() < 0.05:
            at = self._random.randrange(len(text) + 1)
            text = text[:at] + self._random.randbytes(2) + text[at:]
        if self._random.random() < 0.02:
            text = text[: self._random.randrange(len(text) + 1)]
        return text

    def _mutated(self, data: Any) -> Any:
        data = copy.deepcopy(data)
        for _ in range(self._random.randint(1, 3)):
            places = list(_places(data))
            if not places:
                return self._random.choice(_VALUES)
            self._change(*self._random.choice(places))
        return data

    def _change(self, parent: Any, key: Any) -> None:
        """Change one value of a list or an object."""
        random = self._random
        value = parent[key]
        match random.randrange(7):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, list):
                parent.insert(key, copy.deepcopy(value))
            case 1:
                parent[f"{key}x"] = copy.deepcopy(value)
            case 2 if isinstance(value, int):
                parent[key] = value + random.choice((-4096, -1, 1, 4096, 1 << 32, 1 << 40))
            case 3 if isinstance(value, list):
                parent[key] = value * random.choice((0, 2, 50))
            case 4 if isinstance(value, list) and all(isinstance(each, dict) for each in value):
                value.insert(
                    random.randrange(len(value) + 1), copy.deepcopy(random.choice(_OPERATIONS))
                )
            case _:
                parent[key] = copy.deepcopy(random.choice(_VALUES))


def _json(data: object) -> bytes:
    """Return data as compact JSON: a history begins so."""
    return json.dumps(data, separators=(",", ":")).encode()


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place of a value: the list or object that holds it, and its index or key."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in list(items):
        yield data, key
        if isinstance(value, list | dict):
            yield from _places(value)


COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "scenario": (("repro",),),
    "history": (("judge",), ("repro",), ("compare",)),
    "result": (("coverage",),),
}


KINDS = (*COMMANDS, "journal")


def tried(mutator: Mutator, kind: str, file: Path) -> list[str]:
    """Put one mutated file through its commands; return what went wrong."""
    file.write_bytes(getattr(mutator, kind)())
    if kind == "journal":
        try:
            read_journal(file)
        except FileError as error:
            return [] if str(error).isprintable() else [f"not printable: {error!r}"]
        return []
    wrong: list[str] = []
    for command in COMMANDS[kind]:
        files = [file, file] if command == ("compare",) else [file]
        start = time.process_time()
        result = CliRunner().invoke(main, [*command, *map(str, files)], prog_name="vmm")
        seconds = time.process_time() - start
        wrong += (f"{command[0]}: {each}" for each in _wrong(result, seconds))
    return wrong


def _wrong(result: Result, seconds: float) -> Iterator[str]:
    if result.exit_code not in DOCUMENTED:
        how = "".join(traceback.format_exception(result.exception))[-2000:]
        yield f"status {result.exit_code}\n{result.stderr[-3000:]}\n{how}"
    if result.exit_code == 2 and result.stderr.count("\n") != 1:
        yield f"more than a line: {result.stderr[-2000:]!r}"
    if seconds > MOST_CPU_S:
        yield f"{seconds:.1f} s"
    for line in (result.stdout + result.stderr).split("\n"):
        if not line.replace("\t", "").isprintable():
            yield f"not printable: {line!r}"


def run(count: int, seed: int) -> int:
    """Try ``count`` files of each kind; print and keep failures, and return their number."""
    mutator, found = Mutator(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        for number in range(count):
            for kind in KINDS:
                file = Path(name) / kind
                for what in tried(mutator, kind, file):
                    found[kind] += 1
                    kept = Path(f"mutant-{seed}-{number}-{kind}")
                    kept.write_bytes(file.read_bytes())
                    print(f"{kept}: {what}", flush=True)
    print(f"seed {seed}: {count} of each kind, {found.total()} wrong")
    return found.total()


def _host(patience: float = 1.0) -> Host:
    """Return a host with all features: this host's kernel is not probed."""
    return Host(INFO, EVERYTHING)


if __name__ == "__main__":
    with mock.patch.object(repro, "look_at_host", _host):
        sys.exit(bool(run(int(sys.argv[1]), int(sys.argv[2]))))
