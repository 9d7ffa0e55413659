"""Whatever text a file holds, no output of a command has control characters or forged lines."""

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.ideal import ideal_history
from tests.played import Kernel, make, played, vmm
from vmm.scenario.codec import history_lines
from vmm.scenario.history import Closed, End, Event, History, SetUpRefused, Stopped

STRANGE = (
    "\n## Kernel log\n",
    "\x1b]0;PWNED\x07",
    "\x9b2J",
    "\u202e",
    "\u2028",
    "*/ int main;",
    "\r\nPASSED       x",
    "\x7f",
    "x" * 5000,
    "\0",
)
TEXT = st.lists(
    st.sampled_from(STRANGE) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    max_size=3,
).map(lambda parts: "".join(parts) or "y")
FEW = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
MOST_IN_A_LINE = 4200


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return played(monkeypatch)


def lines(result: Result) -> int:
    """Return how many lines a command printed, all of them printable and not too long."""
    assert result.exit_code in (0, 1, 2, 3, 4), result.output
    for stream in (result.stdout, result.stderr):
        for line in stream.split("\n"):
            assert line.replace("\t", "").isprintable()
            assert len(line) < MOST_IN_A_LINE
    return result.stdout.count("\n")


@cache
def usual(counted: Callable[[str, str], list[int]], place: str) -> list[int]:
    """Return what is printed where harmless text stands at a place: it is asked for once."""
    return counted(place, "x")


def scenario(**fields: object) -> str:
    data = msgspec.to_builtins(ideal_history(make("create-one")).header.scenario)
    return json.dumps({"format": 1, **data, **fields})


def with_names(name: str) -> dict[str, Any]:
    """Return fields of a scenario that names things so."""
    return {
        "mappings": [{"name": name, "pages": 1}],
        "operations": [
            {"op": "set_user_memory_region", "slot": 1, "guest_phys_addr": 4096,
             "memory_size": 4096, "userspace_addr": {"mapping": name}},
            {"op": "host_write", "place": {"mapping": name + "?"}, "value": 1},
        ],
    }  # fmt: skip


def with_memfd(name: str) -> dict[str, Any]:
    return {
        "operations": [
            {"op": "create_guest_memfd", "name": name, "size": 4096},
            {"op": "punch_guest_memfd", "name": name + "?", "offset": 0, "size": 1},
        ]
    }


FIELDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "why": lambda text: {"why": text},
    "source": lambda text: {"source": text},
    "tags": lambda text: {"tags": [text]},
    "needs": lambda text: {"needs": [text]},
    "name": lambda text: {"name": text},
    "mapping": with_names,
    "memfd": with_memfd,
    "field": lambda text: {text: text},
    "op": lambda text: {"operations": [{"op": text}]},
    "survey": lambda text: {"survey": text},
    "format": lambda text: {"format": text},
    "number": lambda text: {"vcpus": text},
}


@FEW
@given(text=TEXT)
@pytest.mark.parametrize("field", FIELDS)
def test_text_of_a_scenario(kernel: Kernel, field: str, text: str) -> None:
    kernel.differ("create-one")  # So that all there is to say is said.
    printed = lines_of_scenario(field, text)
    if field in ("why", "source", "tags"):
        assert printed == usual(lines_of_scenario, field)


def lines_of_scenario(field: str, text: str) -> list[int]:
    """Return how many lines commands print of a scenario that has some text in a field."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "s.json"
        file.write_text(scenario(**FIELDS[field](text)))
        return [lines(vmm(command, file)) for command in ("run", "repro")]


def history(text: str, kind: str) -> History:
    """Return a history that holds text at a place."""
    whole = ideal_history(make("create-one"))
    if kind == "reason":
        return msgspec.structs.replace(whole, events=whole.events[:3], end=End(text))
    if kind == "host":
        header = msgspec.structs.replace(whole.header, host={"kernel": text, "vendor": text})
        return msgspec.structs.replace(whole, header=header)
    events = list(whole.events)
    if kind == "stopped":
        at = next(n for n, event in enumerate(events) if event.origin == 1)
        outcome: Stopped | Closed | SetUpRefused = Stopped(text, text)
    elif kind == "set-up":
        at = len(events) - 2
        outcome = SetUpRefused(text, text, 0, text)
    else:
        at = len(events) - 2
        outcome = Closed((text,) * 20)
    events[at] = Event(events[at].origin, events[at].operation, outcome)
    return msgspec.structs.replace(whole, events=tuple(events))


@FEW
@given(text=TEXT)
@pytest.mark.parametrize("kind", ["reason", "host", "stopped", "set-up", "left"])
def test_text_of_a_history(kind: str, text: str) -> None:
    assert lines_of_history(kind, text) == usual(lines_of_history, kind)


def lines_of_history(kind: str, text: str) -> list[int]:
    """Return how many lines commands print of a history that holds some text at a place."""
    with tempfile.TemporaryDirectory() as folder:
        file, other = Path(folder) / "h.jsonl", Path(folder) / "other.jsonl"
        other.write_bytes(b"".join(history_lines(ideal_history(make("create-one")))))
        file.write_bytes(b"".join(history_lines(history(text, kind))))
        return [
            lines(vmm("judge", file)),
            lines(vmm("compare", file, other)),
            lines(vmm("compare", other, file)),
            lines(vmm("repro", file)),
        ]


@FEW
@given(text=TEXT)
def test_text_of_a_result(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "r.json"
        printed: list[list[int]] = []
        for each in (text, "x"):
            file.write_text(json.dumps(result_with(each)))
            counted = [lines(vmm("coverage", file, *o)) for o in ((), ("--markdown",))]
            printed.append(counted)
            lines(vmm("coverage", file, "--json"))
        assert printed[0] == printed[1]


def result_with(text: str) -> dict[str, Any]:
    """Return what `vmm check --json` writes, with text wherever it has any."""
    facts = ("kernel", "machine", "cpu", "vendor", "tdp")
    return {
        "format": 1,
        "status": "passed",
        "scenarios": [
            {"name": text, "status": "skipped", "reason": text, "rules": [text, "create"]},
            {"name": "x-2", "status": "inconclusive", "reason": text, "rules": ["move"]},
        ],
        "features": msgspec.to_builtins(ideal_history(make("x")).header.features),
        "host": {**dict.fromkeys(facts, text), "nested": False},
    }
