"""Files of strangers through the commands: one line with file and place, and nothing runs."""

import json
import time
from pathlib import Path

import msgspec
import pytest

from tests.ideal import FEATURES, ideal_history
from tests.played import Kernel, make, played, vmm, with_outcome
from tests.results import passed, run_of
from vmm.fuzz.minimise import alone
from vmm.report.json import run_text
from vmm.scenario.codec import HistoryText, history_lines, scenario_text
from vmm.scenario.history import End, Event, History, Refused, Touched
from vmm.scenario.operations import (
    ChangeHostMemory,
    Lives,
    Mapping,
    Place,
    Scenario,
    Touch,
)
from vmm.scenario.reached import SPARSE_PAGES
from vmm.verdict.judge import Status, Verdict

HOSTILE = Path(__file__).parent / "hostile"

SCENARIOS = {
    "nested-too-deep": "$.why: Expected `str`, got `array`",
    "lone-surrogate": "not JSON: ",
    "name-forges-a-report": "$.operations[0].name: 1 to 64 printable characters are needed",
    "race-region-of-2-to-the-64": "$.operations[0].hosts[0].operations[0].memory_size: a slot has",
    "guest-slot-out-of-range": "$.guest.slot: not within 0 to 32763",
    "lives-without-end": "$: may take 5000 s, and the limit is 60 s",
    "churn-beyond-the-slots": "$.operations[0].slot: it and the next one have to be within 0 to",
    "churn-of-a-slot-in-use": "$.operations[1].slot: 5 may be in use",
    "closed-vm-is-touched": "$.operations[1]: the VM is closed; begin with another one (new_vm)",
    "escape-in-a-field": r"$: Object contains unknown field `\x1b]0;PWNED\x07\x1b[2J`",
}
"""Each file that is refused, and what is said of it."""


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return played(monkeypatch)


def refused(*command: object) -> str:
    """Return the one line that a command says when it refuses a file."""
    result = vmm(*command)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("vmm: ")
    assert result.stderr[:-1].isprintable()
    assert result.stderr[-1] == "\n"
    return result.stderr


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("command", ["run", "repro"])
def test_a_hostile_scenario_is_refused(kernel: Kernel, command: str, name: str) -> None:
    file = HOSTILE / f"{name}.json"
    assert refused(command, file).startswith(f"vmm: {file}: {SCENARIOS[name]}")
    assert kernel.ran == []


def test_a_file_of_ever_new_unmapping_is_refused_in_a_second(
    kernel: Kernel, tmp_path: Path
) -> None:
    unmap = ChangeHostMemory(Place("a"), SPARSE_PAGES, "unmap")
    scenario = Scenario("x", (unmap,) * 8000, (Mapping("a", SPARSE_PAGES, "memfd"),))
    file = tmp_path / "s.json"
    file.write_text(scenario_text(scenario))
    start = time.process_time()
    assert "and the limit is" in refused("run", file)
    assert time.process_time() - start < 5


def test_more_is_allowed_where_it_is_asked_for(kernel: Kernel, tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    file.write_text(scenario_text(Scenario("mine", (Lives("killed", 2000),))))
    assert "may take 100 s, and the limit is 60 s; --allow-large" in refused("run", file)
    assert vmm("run", file, "--allow-large").exit_code == 0
    assert kernel.ran == ["mine"]


def test_a_large_scenario_is_minimised_where_that_is_asked_for(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "s.json"
    file.write_text(scenario_text(Scenario("mine", (Lives("killed", 2000),))))
    passed = Verdict("mine", Status.PASSED)
    monkeypatch.setattr(alone, "minimise_scenario", lambda *_: passed)
    assert "may take 100 s, " in refused("fuzz", "--minimise", file)
    result = vmm("fuzz", "--minimise", file, "--allow-large", "--out", tmp_path / "out")
    assert result.stdout == f"{file}: passed: there is nothing to minimise\n"


def write(file: Path, *histories: History) -> Path:
    file.write_bytes(b"".join(line for each in histories for line in history_lines(each)))
    return file


def test_a_history_with_a_hole_is_refused(tmp_path: Path) -> None:
    line = refused("judge", HOSTILE / "history-with-a-hole.jsonl")
    assert ".jsonl:3: the end of 159 events, but 1 are in the file" in line


def test_each_line_of_a_history_is_missed_and_seen_twice(tmp_path: Path) -> None:
    lines = list(history_lines(ideal_history(make("mine"))))
    for number in range(1, len(lines) - 1):
        for changed in (lines[:number] + lines[number + 1 :], lines[: number + 1] + lines[number:]):
            file = tmp_path / "h.jsonl"
            file.write_bytes(b"".join(changed))
            refused("judge", file)


def test_a_history_without_an_end_is_judged_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = ideal_history(make("mine"))
    for end in (None, End("hung: no end")):
        history = msgspec.structs.replace(whole, events=whole.events[:3], end=end)
        assert vmm("judge", write(tmp_path / "h.jsonl", history)).exit_code == 3


def test_events_of_another_scenario_are_refused(tmp_path: Path) -> None:
    history = ideal_history(make("mine"))
    for event, what in (
        (Event(3, Touch(1 << 60), Touched(0)), "operation: neither one of the scenario"),
        (Event(3, Touch(0, vcpu=7), Touched(0)), "operation: neither one of the scenario"),
        (Event(7, Touch(0), Touched(0)), "origin: 7"),
        (Event(-1, Touch(0), Touched(0)), "origin: -1 comes after 3"),
        (Event(3, Touch(0), Touched(1 << 32)), "outcome.value"),
        (Event(3, Touch(0), Refused(-1)), "outcome.errno"),
    ):
        last = len(history.events) - 1
        changed = msgspec.structs.replace(history, events=(*history.events[:-1], event))
        line = refused("judge", write(tmp_path / "h.jsonl", changed))
        assert f":{last + 2}: $.{what}" in line


def test_features_that_no_kernel_has_are_refused(tmp_path: Path) -> None:
    for name, value in (("address_spaces", 1 << 40), ("nr_memslots", 0), ("last_gfn", -1)):
        features = msgspec.structs.replace(FEATURES, **{name: value})
        history = ideal_history(make("mine"))
        header = msgspec.structs.replace(history.header, features=features)
        line = refused("judge", write(tmp_path / "h.jsonl", History(header, (), None)))
        assert f":1: $.features.{name}: " in line


def test_all_histories_of_a_file_are_judged(tmp_path: Path) -> None:
    good, other = ideal_history(make("good")), ideal_history(make("other"))
    bad = with_outcome(ideal_history(make("bad")), 0, Refused(17))
    cut = msgspec.structs.replace(other, end=None)
    result = vmm("judge", write(tmp_path / "h.jsonl", good, bad, cut))
    assert result.exit_code == 1
    assert result.stdout.startswith("PASSED       good: ")
    assert "\nDIFFERS      bad\n" in result.stdout
    assert result.stdout.endswith("\n3 histories: 1 passed, 1 differs, 1 inconclusive\n")
    assert vmm("judge", write(tmp_path / "h.jsonl", good, cut, good)).exit_code == 3
    assert vmm("judge", write(tmp_path / "h.jsonl", good, good)).exit_code == 0


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (AssertionError("in the judge"), 70, "INTERNAL ERROR bad: this program failed"),
        (MemoryError(), 3, "INCONCLUSIVE bad: the host: out of memory\n"),
    ],
)
def test_an_error_in_one_history_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, said: str
) -> None:
    parse = HistoryText.history

    def fail(text: HistoryText) -> History:
        if text.header.scenario.name == "bad":
            raise error
        return parse(text)

    monkeypatch.setattr(HistoryText, "history", fail)
    every = [ideal_history(make(name)) for name in ("good", "bad", "late")]
    result = vmm("judge", write(tmp_path / "h.jsonl", *every))
    assert result.exit_code == status
    assert said in result.stdout
    assert "PASSED       late: " in result.stdout


def test_all_histories_of_a_folder_are_judged(tmp_path: Path) -> None:
    line = refused("judge", tmp_path)
    assert line.endswith("no history there: a history's name ends in .jsonl\n")
    (tmp_path / "deep").mkdir()
    write(tmp_path / "a.jsonl", ideal_history(make("a")))
    write(tmp_path / "deep" / "b.jsonl", ideal_history(make("b")))
    result = vmm("judge", tmp_path)
    assert result.exit_code == 0
    assert result.stdout.endswith("\n2 histories: 2 passed\n")


def test_a_bad_file_does_not_hide_a_difference(tmp_path: Path) -> None:
    bad = with_outcome(ideal_history(make("bad")), 0, Refused(17))
    write(tmp_path / "a.jsonl", ideal_history(make("good")))
    (tmp_path / "b.jsonl").write_text("{}\n")
    result = vmm("judge", tmp_path)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    write(tmp_path / "a.jsonl", bad)
    result = vmm("judge", tmp_path)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


READERS = {
    "a scenario": ("run {}", "repro {}", "fuzz --minimise {}"),
    "a history": ("judge {}", "compare {} {}"),
    "a result": ("report {} --html x", "matrix {} --html x", "coverage {}"),
    "a benchmark": ("bench --against {}",),
    "a trace": ("replay {}", "replay --judge-only {}"),
}
TAKERS = {
    "a scenario": "`vmm run` takes it",
    "a history": "`vmm judge` and `vmm repro` take it",
    "a result": "`vmm report` draws it",
    "a benchmark": "`vmm bench --against` takes it",
}


def of_each_kind() -> dict[str, str]:
    """Return a file of each kind that commands write."""
    one = ideal_history(make("one"))
    host = {"kernel": "6.18", "backend": "kvm_intel", "processor": "", "cpu": 0, "points": []}
    return {
        "a scenario": scenario_text(one.header.scenario),
        "a history": b"".join(history_lines(one)).decode(),
        "a result": run_text(run_of(passed("one"))),
        "a benchmark": json.dumps(host),
    }


@pytest.mark.parametrize("wanted", READERS)
@pytest.mark.parametrize("kind", TAKERS)
def test_a_file_of_another_kind_is_called_what_it_is(
    kernel: Kernel, tmp_path: Path, kind: str, wanted: str
) -> None:
    file = tmp_path / "f"
    file.write_text(of_each_kind()[kind])
    for command in READERS[wanted]:
        takes_both = kind == "a history" and command.startswith("repro")
        if kind == wanted or takes_both or (kind, command) == ("a scenario", "repro {}"):
            continue
        line = refused(*command.format(file, file).split())
        assert line == f"vmm: {file}: {kind}, not {wanted}: {TAKERS[kind]}\n"
    assert kernel.ran == []


def test_repro_takes_one_history_whatever_the_file_is_called(
    kernel: Kernel, tmp_path: Path
) -> None:
    one, other = ideal_history(make("one")), ideal_history(make("other"))
    file = write(tmp_path / "h", one)
    assert "observed: success" in vmm("repro", file).stdout
    line = refused("repro", write(file, one, other))
    assert line == f"vmm: {file}: holds several histories: `vmm judge` takes them all\n"
    assert "a history, not a scenario" in refused("run", file)
    assert kernel.ran == []


@pytest.mark.parametrize("command", ["run", "repro", "judge"])
def test_what_is_no_file_is_refused(kernel: Kernel, tmp_path: Path, command: str) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    for path in (Path("/dev/null"), empty):
        assert refused(command, path).startswith(f"vmm: {path}:")
    if command != "judge":
        assert refused(command, tmp_path) == f"vmm: {tmp_path}: a folder, not a file\n"


def test_true_is_no_format(kernel: Kernel, tmp_path: Path) -> None:
    for file, text in (
        (tmp_path / "s.json", b'{"format": true, "name": "x", "operations": []}'),
        (tmp_path / "h.jsonl", b'{"type":"history","format":true,"scenario":{}}\n'),
    ):
        file.write_bytes(text)
        assert "format True is not known here" in refused("repro", file)
