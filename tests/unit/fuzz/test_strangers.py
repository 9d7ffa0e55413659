"""Journals, corpora and findings of strangers: nothing leaves its folder, nothing is trusted."""

import os
from pathlib import Path

import msgspec
import pytest

from tests.ideal import FEATURES
from vmm.cli.fuzzing import merge_folders, resumed
from vmm.fuzz import corpus
from vmm.fuzz.generate.dice import seed_of
from vmm.fuzz.generate.scenarios import generate
from vmm.fuzz.journal import Intent, journal_path, left_behind, read_journal
from vmm.scenario.codec import FileError, scenario_text
from vmm.scenario.operations import Lives, Scenario, Touch

SCENARIO = generate(seed_of(9, 1), FEATURES)
INTENT = Intent(9, (1, 2), 40, 4, (SCENARIO,))


def left(folder: Path, intent: Intent, name: str = "x") -> Path:
    path = journal_path(folder, name, 0)
    path.write_bytes(msgspec.json.encode(intent) + b"\n")
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"shard": (1, 0)},
        {"shard": (0, 1)},
        {"shard": (3, 2)},
        {"step": 0},
        {"first": -1},
        {"seed": -1},
        {"scenarios": ()},
        {"scenarios": (Scenario("x", (Touch(-1),)),)},
        {"scenarios": (Scenario("x", (Lives("closed", 1 << 40),)),)},
    ],
)
def test_a_journal_that_no_run_of_ours_has_written_is_refused(
    tmp_path: Path, changes: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    path = left(tmp_path, msgspec.structs.replace(INTENT, **changes))
    with pytest.raises(FileError, match="not a journal of `vmm fuzz`: \\$"):
        read_journal(path)
    good = left(tmp_path, INTENT, "y")
    assert resumed(tmp_path) == (9, (1, 2), 22)
    assert f"passed over: {path}: not a journal" in capsys.readouterr().err
    assert (path.exists(), good.exists()) == (True, False)


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "..", ".hidden", "a b", "scénario"])
def test_a_name_never_becomes_a_path(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    scenario = msgspec.structs.replace(SCENARIO, name=name)
    left(out, msgspec.structs.replace(INTENT, scenarios=(scenario,)))
    resumed(out)
    assert list(tmp_path.iterdir()) == [out]
    assert [path.name for path in out.iterdir()] == [f"{corpus.content_name(scenario)}.json"]


def test_what_only_looks_like_a_journal_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "under-way-fifo-0.journal")
    (tmp_path / "under-way-folder-0.journal").mkdir()
    (tmp_path / "under-way-gone-0.journal").symlink_to(tmp_path / "none")
    for path in left_behind(tmp_path):
        with pytest.raises(FileError, match="not a file"):
            read_journal(path)


def test_one_bad_entry_of_a_corpus_is_named_and_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 100_000)
    (tmp_path / "b.json").write_text(scenario_text(Scenario("x", (Lives("killed", 10_000),))))
    (tmp_path / "c.json").write_text(scenario_text(SCENARIO))
    (tmp_path / "d.json").mkdir()
    os.mkfifo(tmp_path / "e.json")
    loaded = corpus.load(tmp_path)
    assert loaded.scenarios == (SCENARIO,)
    told = [line.partition(": ")[0].removeprefix(f"{tmp_path}/") for line in loaded.passed_over]
    assert told == ["a.json", "b.json", "d.json", "e.json"]


def test_merging_follows_no_symbolic_link(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret, theirs, out = tmp_path / "secret", tmp_path / "theirs", tmp_path / "out"
    secret.mkdir()
    (secret / "scenario.json").write_text(scenario_text(SCENARIO))
    (secret / "key").write_text("secret")
    finding = theirs / "finding"
    finding.mkdir(parents=True)
    (finding / "scenario.json").write_text(scenario_text(SCENARIO))
    (finding / "report.md").symlink_to(secret / "key")
    (finding / "deep").symlink_to(secret)
    os.mkfifo(finding / "fifo")
    (theirs / "link").symlink_to(secret)
    linked = theirs / "linked"
    linked.mkdir()
    (linked / "scenario.json").symlink_to(secret / "scenario.json")
    bad = theirs / "bad"
    bad.mkdir()
    (bad / "scenario.json").write_text("{}")
    assert merge_folders((theirs,), out) == 1
    assert [path.name for path in out.iterdir()] == ["finding"]
    assert [path.name for path in (out / "finding").iterdir()] == ["scenario.json"]
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in told] == ["passed over"] * 3
    assert f"passed over: {theirs}/link: not a folder" in told
    assert f"passed over: {linked}: has no scenario.json" in told


def test_a_finding_does_not_replace_what_a_link_points_to(tmp_path: Path) -> None:
    theirs, out, kept = tmp_path / "theirs", tmp_path / "out", tmp_path / "kept"
    (theirs / "finding").mkdir(parents=True)
    (theirs / "finding" / "scenario.json").write_text(scenario_text(SCENARIO))
    out.mkdir()
    (out / "finding").symlink_to(kept)
    merge_folders((theirs,), out)
    assert not kept.exists()
