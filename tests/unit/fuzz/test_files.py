"""The journal names what is under way; the corpus is safe from whatever lies in it."""

import os
import signal
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, strategies as st

from tests.ideal import FEATURES, ideal_history
from vmm.fuzz import corpus
from vmm.fuzz.files import whole_folder, write_whole
from vmm.fuzz.generate.dice import seed_of
from vmm.fuzz.generate.scenarios import generate
from vmm.fuzz.interruption import Interruption
from vmm.fuzz.journal import Intent, Journal, journal_path, left_behind, read_journal
from vmm.fuzz.novelty import Novelty, group
from vmm.fuzz.tally import Plan
from vmm.host.child import Child
from vmm.scenario.history import Event, Header, Refused
from vmm.scenario.operations import Mapping, Place, Scenario, SetUserMemoryRegion
from vmm.verdict.compare import features_that_differ, partings
from vmm.verdict.judge import Judgement

SCENARIOS = tuple(generate(seed_of(9, number), FEATURES) for number in range(3))


INTENT = Intent(9, (1, 2), 40, 4, SCENARIOS)


def test_a_journal_names_the_scenario_under_way(tmp_path: Path) -> None:
    journal = Journal(journal_path(tmp_path, "run", 0))
    journal.begin(INTENT)
    journal.ended()
    (path,) = left_behind(tmp_path)
    left = read_journal(path)
    assert left is not None
    assert left.intent == INTENT
    assert left.under_way == SCENARIOS[1:]
    assert left.intent.next_index == 52
    journal.begin(Intent(9, (1, 2), 43, 4, SCENARIOS[:1]))
    again = read_journal(path)
    assert again is not None
    assert again.under_way == SCENARIOS[:1]
    journal.close()
    assert left_behind(tmp_path) == ()


def test_a_journal_that_was_cut_off_names_nothing(tmp_path: Path) -> None:
    path = journal_path(tmp_path, "run", 0)
    Journal(path).begin(INTENT)
    path.write_bytes(path.read_bytes()[:200])
    assert read_journal(path) is None


def test_what_is_no_file_of_its_own_is_no_journal(tmp_path: Path) -> None:
    real = tmp_path / "real"
    Journal(real).begin(INTENT)
    journal_path(tmp_path, "link", 0).symlink_to(real)
    journal_path(tmp_path, "folder", 0).mkdir()
    os.mkfifo(journal_path(tmp_path, "pipe", 0))
    assert left_behind(tmp_path) == ()
    with pytest.raises(OSError, match="link"):
        Journal(journal_path(tmp_path, "link", 0))


def test_a_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (tmp_path / f".file.{os.getpid()}").symlink_to(secret)
    (tmp_path / "file").symlink_to(secret)
    write_whole(tmp_path / "file", "text")
    assert secret.read_text() == "secret"
    assert (tmp_path / "file").read_text() == "text"


@given(st.integers(0), st.binary(max_size=3))
def test_a_journal_cut_off_anywhere_names_what_may_be_under_way(cut: int, rest: bytes) -> None:
    whole = msgspec.json.encode(INTENT) + b"\n.."
    with TemporaryDirectory() as folder:
        path = Path(folder, "cut.journal")
        path.write_bytes(whole[: cut % (len(whole) + 1)] + rest)
        left = read_journal(path)
    if left is not None:
        assert left.intent == INTENT
        assert left.under_way == SCENARIOS[len(SCENARIOS) - len(left.under_way) :]


def test_only_a_run_that_broke_off_leaves_its_journal_behind(tmp_path: Path) -> None:
    def work(theirs: Connection) -> None:
        Journal(journal_path(tmp_path, "live", 0)).begin(INTENT)
        theirs.send_bytes(b"begun")
        theirs.recv_bytes()

    Journal(journal_path(tmp_path, "dead", 0)).begin(INTENT)
    child = Child.start(work)
    child.connection.recv_bytes()
    assert [path.name for path in left_behind(tmp_path)] == ["under-way-dead-0.journal"]
    child.end()
    assert [path.name for path in left_behind(tmp_path)] == [
        "under-way-dead-0.journal",
        "under-way-live-0.journal",
    ]


@given(st.integers(1, 5), st.lists(st.integers(1, 4), min_size=5, max_size=5), st.integers(0, 9))
def test_shards_and_workers_share_no_scenario(shards: int, jobs: list[int], first: int) -> None:
    plans = [
        Plan(0, Path(), jobs=jobs[shard], shard=(shard + 1, shards), first=first)
        for shard in range(shards)
    ]
    end = shards * (first + 12)
    indexes = [
        index
        for plan in plans
        for worker in range(plan.jobs)
        for index in range(plan.index(worker), end, plan.step)
    ]
    assert sorted(indexes) == list(range(shards * first, end))


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "new") as scratch:
        (scratch / "file").touch()
        assert not (tmp_path / "new").exists()
    with suppress(KeyboardInterrupt), whole_folder(tmp_path / "other") as scratch:
        (scratch / "file").touch()
        raise KeyboardInterrupt
    with pytest.raises(FileExistsError), whole_folder(tmp_path / "new") as scratch:
        (scratch / "late").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "new",
        "new/file",
    ]


def test_a_wish_to_end_is_noted_and_a_second_one_obeyed() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        assert not interruption.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_corpus_keeps_each_content_once(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    assert corpus.keep(folder, SCENARIOS[0])
    assert not corpus.keep(folder, msgspec.structs.replace(SCENARIOS[0], name="other"))
    assert corpus.keep(folder, SCENARIOS[1])
    loaded = corpus.load(folder)
    assert {s.operations for s in loaded.scenarios} == {s.operations for s in SCENARIOS[:2]}
    assert loaded.passed_over == ()


def test_an_unreadable_entry_is_named_and_passed_over(tmp_path: Path) -> None:
    corpus.keep(tmp_path, SCENARIOS[0])
    (tmp_path / "torn.json").write_text('{"name": "to')
    (tmp_path / "folder.json").mkdir()
    loaded = corpus.load(tmp_path)
    assert len(loaded.scenarios) == 1
    assert sorted(Path(line.split(": ")[0]).name for line in loaded.passed_over) == [
        "folder.json",
        "torn.json",
    ]


def test_a_corpus_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert corpus.load(tmp_path / "none").scenarios == ()


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "taken"
    target.mkdir()
    with pytest.raises(OSError, match="taken"):
        write_whole(target, "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def seen(novelty: Novelty, scenario: Scenario) -> None:
    history = ideal_history(scenario)
    judgement = Judgement(Header(scenario, FEATURES))
    novelty.begin()
    for event in history.events:
        assert judgement.admits(event)
        novelty.see(event, judgement.rule)


def test_what_was_covered_is_counted() -> None:
    create = SetUserMemoryRegion(1, 0x100000, 4096, Place("a"))
    move = SetUserMemoryRegion(1, 0x200000, 4096, Place("a"))
    delete = SetUserMemoryRegion(1)
    scenario = Scenario("few", (create, move, delete, delete), (Mapping("a", 4),), survey="none")
    novelty = Novelty()
    seen(novelty, scenario)
    assert novelty.fresh
    assert group(novelty.items, "change") == ["create", "delete", "move"]
    assert group(novelty.items, "refusal") == ["delete-absent 22"]
    assert "move>delete" in group(novelty.items, "pair")
    assert "create>move>delete" in group(novelty.items, "path")
    assert group(novelty.items, "slots") == ["1", "2"]
    assert novelty.take()["change:create"] == 2
    seen(novelty, scenario)
    assert not novelty.fresh


def test_two_kernels_part_where_their_answers_do() -> None:
    first = ideal_history(SCENARIOS[0])
    assert list(partings(first, first)) == []
    last = first.events[1]
    other = Event(last.origin, last.operation, Refused(28))
    second = msgspec.structs.replace(first, events=(first.events[0], other, *first.events[2:]))
    (parting,) = partings(first, second)
    assert (parting.event, parting.second) == (2, "ENOSPC")


def test_a_history_that_ends_early_parts_there() -> None:
    first = ideal_history(SCENARIOS[0])
    second = msgspec.structs.replace(first, events=first.events[:4], end=None)
    (parting,) = partings(first, second)
    assert (parting.event, parting.first, parting.second) == (5, "goes on", "cut off")


def test_features_are_compared_by_name() -> None:
    other = msgspec.structs.replace(FEATURES, nr_memslots=509)
    assert features_that_differ(FEATURES, other) == [f"nr_memslots: {FEATURES.nr_memslots} and 509"]
