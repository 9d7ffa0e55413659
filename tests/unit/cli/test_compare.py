"""``vmm compare``: two kernels side by side, whatever became of the files."""

from pathlib import Path

import msgspec
import pytest

from tests.ideal import FEATURES, ideal_history
from tests.played import Kernel, make, played, vmm, with_outcome
from vmm.scenario.codec import history_lines
from vmm.scenario.history import End, History, Raced, Refused
from vmm.scenario.operations import GuestThread, Race, Touch

SAME, OTHER = (ideal_history(make(name)) for name in ("same", "other"))
HOSTS = ({"kernel": "6.1", "vendor": "kvm_amd"}, {"kernel": "6.99", "vendor": "kvm_intel"})


def write(file: Path, *histories: History, host: dict[str, str] = HOSTS[0]) -> Path:
    """Write several histories to one file, as having been recorded on a host."""
    lines: list[bytes] = []
    for history in histories:
        header = msgspec.structs.replace(history.header, host=host)
        lines += history_lines(msgspec.structs.replace(history, header=header))
    file.write_bytes(b"".join(lines))
    return file


def ended(history: History, reason: str | None, events: int | None = None) -> History:
    """Return a history that ends elsewhere, or, with no reason, was cut off there."""
    end = None if reason is None else End(reason)
    return msgspec.structs.replace(history, events=history.events[:events], end=end)


def test_scenarios_that_went_the_same_are_counted(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", SAME, OTHER)
    b = write(tmp_path / "b.jsonl", OTHER, SAME, host=HOSTS[1])
    result = vmm("compare", a, b)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "A: 6.1, kvm_amd",
        "B: 6.99, kvm_intel",
        "2 scenarios in both, 0 differ, 0 could not be compared",
    ]


def test_a_step_that_went_differently_is_shown_with_both_answers(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", SAME, OTHER)
    b = write(tmp_path / "b.jsonl", SAME, with_outcome(OTHER, 0, Refused(17)))
    result = vmm("compare", a, b)
    assert result.exit_code == 1
    assert "other:\n  step 13: KVM_SET_USER_MEMORY_REGION(slot=1, " in result.stdout
    assert "\n    A: success\n    B: EEXIST\n" in result.stdout
    assert result.stdout.endswith("2 scenarios in both, 1 differ, 0 could not be compared\n")


def test_features_that_differ_are_named_once(tmp_path: Path) -> None:
    features = msgspec.structs.replace(FEATURES, nr_memslots=509)
    few = [ideal_history(make(name), features) for name in ("same", "other")]
    result = vmm("compare", write(tmp_path / "a", SAME, OTHER), write(tmp_path / "b", *few))
    assert result.stdout.count(f"feature nr_memslots: {FEATURES.nr_memslots} and 509\n") == 1


def test_a_missing_scenario_is_named(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", SAME, OTHER), write(tmp_path / "b", SAME)
    for first, second in ((a, b), (b, a)):
        result = vmm("compare", first, second)
        assert result.exit_code == 3
        assert f"other: not in {b}\n" in result.stdout
        assert "1 scenario in both, 0 differ, 1 could not" in result.stdout


@pytest.mark.parametrize(
    ("history", "status", "end"),
    [
        (ended(SAME, None, 3), 3, "cut off"),
        (ended(SAME, None), 3, "cut off"),
        (ended(SAME, "interrupted", 3), 3, "interrupted"),
        (ended(SAME, "hung: no end within 20 s; kernel stack: a < b", 3), 1, "hung: no end within"),
        (ended(SAME, "died: SIGKILL"), 1, "died: SIGKILL"),
    ],
)
def test_only_an_end_that_the_kernel_made_is_a_difference(
    tmp_path: Path, history: History, status: int, end: str
) -> None:
    result = vmm("compare", write(tmp_path / "a", SAME), write(tmp_path / "b", history))
    assert result.exit_code == status
    assert f"    B: {end}" in result.stdout


def test_a_file_cut_off_anywhere_is_compared_as_far_as_it_goes(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", SAME, OTHER), tmp_path / "b"
    whole = a.read_bytes()
    begun = whole.index(b"\n") + 1
    for cut in range(begun, len(whole) - 1, 97):
        b.write_bytes(whole[:cut])
        result = vmm("compare", a, b)
        assert result.exit_code == 3, result.stdout + result.stderr
        assert "0 differ, 1 could not be compared" in result.stdout or "2 could" in result.stdout


def test_other_scenarios_of_the_same_name_are_not_compared(tmp_path: Path) -> None:
    operations = SAME.header.scenario.operations[:2]
    scenario = msgspec.structs.replace(SAME.header.scenario, operations=operations)
    b = write(tmp_path / "b", ideal_history(scenario))
    result = vmm("compare", write(tmp_path / "a", SAME), b)
    assert result.exit_code == 3
    assert "same: the two scenarios of this name are not the same\n" in result.stdout


def test_folders_are_compared_scenario_by_scenario(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "a" / "1.jsonl", SAME)
    write(tmp_path / "a" / "2.jsonl", OTHER)
    write(tmp_path / "b" / "all.jsonl", SAME, OTHER)
    assert vmm("compare", tmp_path / "a", tmp_path / "b").exit_code == 0
    (tmp_path / "empty").mkdir()
    result = vmm("compare", tmp_path / "a", tmp_path / "empty")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"vmm: {tmp_path}/empty: no history there: ")


@pytest.mark.parametrize("text", ["", "nonsense\n", '{"type":"history","scenario":1}\n'])
def test_what_is_no_history_is_one_line(tmp_path: Path, text: str) -> None:
    a, b = write(tmp_path / "a", SAME), tmp_path / "b"
    b.write_text(text)
    for other in (b, tmp_path / "none"):
        result = vmm("compare", a, other)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"vmm: {other}:")
        assert result.stderr.count("\n") == 1


def test_what_check_writes_can_be_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernel: Kernel = played(monkeypatch)
    a, b = tmp_path / "a", tmp_path / "b"
    assert vmm("check", "--histories", a).exit_code == 0
    kernel.differ("move-up")
    assert vmm("check", "--histories", b).exit_code == 1
    result = vmm("compare", a, b)
    assert result.exit_code == 1
    assert "move-up:\n" in result.stdout
    assert result.stdout.endswith("4 scenarios in both, 1 differ, 0 could not be compared\n")
    assert vmm("check", "--histories", tmp_path).exit_code == 2


def test_two_races_never_take_the_same_course(tmp_path: Path) -> None:
    race = Race(guests=(GuestThread((Touch(0x10000),), windows=3),))
    history = ideal_history(msgspec.structs.replace(make("race"), operations=(race,)))
    index = next(n for n, event in enumerate(history.events) if isinstance(event.outcome, Raced))
    outcome = history.events[index].outcome
    assert isinstance(outcome, Raced)
    fewer = msgspec.structs.replace(outcome, windows=(outcome.windows[0][:-1],))
    events = list(history.events)
    events[index] = msgspec.structs.replace(events[index], outcome=fewer)
    other = msgspec.structs.replace(history, events=tuple(events))
    a, b = write(tmp_path / "a", history), write(tmp_path / "b", other)
    assert vmm("compare", a, b).exit_code == 0
