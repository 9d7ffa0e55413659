"""Which scenarios a command is about, how much is told, and where scenarios come from."""

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import Result

from tests.ideal import ideal_history
from tests.played import SCENARIOS, Kernel, make, named, played, vmm
from vmm.catalogue import LARGE_NAMES, catalogue, large_scenarios
from vmm.cli.options.selection import select, selected
from vmm.cli.running.history_files import UNDER_WAY
from vmm.execution.runner import Record
from vmm.scenario.codec import history_lines, scenario_text
from vmm.scenario.features import Features
from vmm.scenario.history import Header
from vmm.scenario.operations import Scenario
from vmm.scenario.selection import Selection

SLOW = make("racing-move", "racing", "slow")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = played(monkeypatch)
    kernel.features = msgspec.structs.replace(kernel.features, hugetlb_pages=0)
    monkeypatch.setattr(
        "vmm.catalogue.catalogue", lambda features, with_large=True: (*SCENARIOS, SLOW)
    )
    return kernel


SELECTIONS = (
    (),
    ("--all",),
    ("move-*",),
    ("--tag", "create"),
    ("--tag", "create", "--tag", "racing"),
    ("--exclude", "create-*"),
    ("--exclude", "create-one", "--exclude", "huge", "--all"),
    ("*", "--exclude", "create-two"),
)


@pytest.mark.parametrize("options", SELECTIONS)
def test_what_is_listed_is_what_runs_and_is_skipped(
    kernel: Kernel, options: tuple[str, ...]
) -> None:
    listed = json.loads(vmm("check", *options, "--list", "--json").stdout)["scenarios"]
    assert kernel.ran == []
    text = vmm("check", *options, "--list").stdout.splitlines()
    result = json.loads(vmm("check", *options, "--json").stdout)
    ran = {each["name"]: each for each in result["scenarios"]}
    assert [each["name"] for each in listed] == list(ran) == [line.split()[0] for line in text]
    for each in listed:
        skipped = ran[each["name"]]["status"] == "skipped"
        assert bool(each["skipped"]) == skipped
        assert not skipped or ran[each["name"]]["reason"] == f"needs {each['skipped']}"


def test_a_list_says_that_slow_scenarios_are_left_out(kernel: Kernel) -> None:
    said = "vmm: 1 slow scenarios are not among them: --all\n"
    assert vmm("check", "--list").stderr == said
    assert vmm("check", "--list", "--exclude", "huge").stderr == said
    assert vmm("check", "--list", "--all").stderr == ""


def test_a_list_as_json_goes_where_it_is_told(kernel: Kernel, tmp_path: Path) -> None:
    file = tmp_path / "list.json"
    assert vmm("check", "--list", "--json", file, "move-*").stdout == ""
    assert [each["name"] for each in json.loads(file.read_text())["scenarios"]] == ["move-up"]
    for option in ("--format=json", "--json"):
        shown = json.loads(vmm("check", "--list", option, "move-up").stdout)
        assert [each["name"] for each in shown["scenarios"]] == ["move-up"]
    assert vmm("check", "--list", "--format", "ktap").exit_code == 2


def test_quiet_is_a_line_for_each_fault_and_the_counts(kernel: Kernel) -> None:
    kernel.differ("create-two")
    quiet = vmm("check", "-q")
    assert quiet.exit_code == 1
    first, last = quiet.stdout.splitlines()
    assert first.startswith("DIFFERS      create-two: operation 0 breaks ")
    assert last.startswith("4 scenarios: 2 passed, 1 differs, 1 skipped in ")
    assert vmm("check", "-q", "-v").exit_code == 2


def test_quiet_says_what_an_early_end_has_left_out(kernel: Kernel) -> None:
    kernel.differ("create-one")
    quiet = vmm("check", "-q", "--max-differences", 1)
    assert quiet.exit_code == 1
    _, left, last = quiet.stdout.splitlines()
    assert left.startswith("left out: 1 scenario did not run (set_user_memory_region breaks ")
    assert last.startswith("3 scenarios: 1 passed, 1 differs, 1 skipped, 1 did not run in ")


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (("run", "mvoe-up"), "no scenario is named 'mvoe-up'; the closest: move-up"),
        (("repro", "mvoe-up"), "no scenario is named 'mvoe-up'; the closest: move-up"),
        (("show", "mvoe-up"), "no scenario is named 'mvoe-up'; the closest: move-up"),
        (("check", "mvoe-up"), "no scenario matches 'mvoe-up'; the closest: move-up"),
        (("check", "--exclude", "mvoe-up"), "matches 'mvoe-up'; the closest: move-up"),
        (("check", "--tag", "mvoe"), "no scenario has the tag 'mvoe'; the closest: move"),
        (("lab", "rnu"), "The closest: run."),
        (("lab", "matirx"), "The closest: matrix."),
    ],
)
def test_what_is_misspelt_is_answered_with_the_closest(
    kernel: Kernel, command: tuple[str, ...], text: str
) -> None:
    result = vmm(*command)
    assert result.exit_code == 2
    assert text in result.stderr


def test_failed_histories_are_kept_without_a_file_that_is_synced(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.differ("create-two")
    journals: list[Path | None] = []
    play = kernel.play

    def noted(header: Header, file: Path | None) -> Record:
        journals.append(file)
        return play(header, file)

    monkeypatch.setattr(kernel, "play", noted)
    folder = tmp_path / "a" / "b"
    assert vmm("check", "--failed-histories", folder).exit_code == 1
    assert [path.name for path in folder.iterdir()] == ["create-two.jsonl"]
    assert journals == [None] * 3
    vmm("check", "--journal", folder)
    assert journals[3:] == [folder / UNDER_WAY] * 3
    assert vmm("check", "--journal", folder, "--failed-histories", folder).exit_code == 2


def test_a_scenario_is_read_from_standard_input(kernel: Kernel) -> None:
    scenario = make("from-a-pipe", "mine")
    result = vmm("run", "-", stdin=scenario_text(scenario))
    assert result.exit_code == 0
    assert result.stdout.startswith("PASSED       from-a-pipe: ")
    assert kernel.ran == ["from-a-pipe"]
    assert "from-a-pipe" in vmm("repro", "-", stdin=scenario_text(scenario)).stdout
    broken = vmm("run", "-", stdin="{")
    assert (broken.exit_code, broken.stderr[:27]) == (2, "vmm: standard input: not JS")


def result_of(kernel: Kernel, command: str, scenario: Scenario, folder: Path) -> Result:
    """Run or judge a scenario that differs, with two formats in files."""
    kernel.differ(scenario.name)
    formats = (
        f"--format=junit:{folder / 'r.xml'}",
        "--format=text",
        f"--html={folder / 'r.html'}",
        f"--json={folder / 'r.json'}",
    )
    if command == "run":
        file = folder / "s.json"
        file.write_text(scenario_text(scenario))
    else:
        file = folder / "h.jsonl"
        history = kernel.histories[scenario.name]
        assert not isinstance(history, type)
        file.write_bytes(b"".join(history_lines(history)))
    return vmm(command, file, *formats)


@pytest.mark.parametrize("command", ["run", "judge"])
def test_run_and_judge_report_in_every_format(kernel: Kernel, command: str, tmp_path: Path) -> None:
    result = result_of(kernel, command, named("move-up"), tmp_path)
    assert result.exit_code == 1, result.output
    assert result.stdout.startswith("DIFFERS      move-up\n")
    again = f"vmm {command} {tmp_path}/"
    assert f"again     {again}" in result.stdout
    data = json.loads((tmp_path / "r.json").read_text())
    assert (data["status"], data["exit_status"]) == ("differs", 1)
    assert data["scenarios"][0]["again"].startswith(again)
    assert "differs from the model" in (tmp_path / "r.html").read_text()
    assert 'failures="1"' in (tmp_path / "r.xml").read_text()


def test_histories_of_one_name_are_told_apart(kernel: Kernel, tmp_path: Path) -> None:
    file = tmp_path / "h.jsonl"
    lines = b"".join(history_lines(ideal_history(named("move-up"))))
    file.write_bytes(lines + lines)
    data = json.loads(vmm("judge", file, "--json").stdout)
    assert [each["name"] for each in data["scenarios"]] == ["move-up", "move-up (2)"]
    assert data["host"]["kernel"] == "unknown"


def test_nothing_is_written_of_histories_that_cannot_be_read(
    kernel: Kernel, tmp_path: Path
) -> None:
    file, page = tmp_path / "h.jsonl", tmp_path / "page.html"
    file.write_text("{}\n")
    assert vmm("judge", file, "--html", page).exit_code == 2
    assert not page.exists()


@pytest.mark.parametrize(
    "selection",
    [
        Selection(),
        Selection(everything=True),
        Selection(patterns=("table-*",)),
        Selection(tags=("table",)),
        Selection(exclude=("table-filled-and-*",)),
        Selection(patterns=("move-*", "delete-twice")),
        Selection(patterns=("generation-*",)),
        Selection(exclude=("move-*",)),
    ],
    ids=str,
)
def test_what_is_left_out_beforehand_is_not_what_anybody_asks_for(selection: Selection) -> None:
    features = Features(nr_memslots=509)
    assert selected(features, selection) == select(catalogue(features), selection)


def test_large_scenarios_are_slow_ones() -> None:
    large = large_scenarios(Features(nr_memslots=509))
    assert tuple(scenario.name for scenario in large) == LARGE_NAMES
    assert all("slow" in scenario.tags for scenario in large)
