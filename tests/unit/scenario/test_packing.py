"""Events that are long: what is written of them can be read again, and bombs are refused."""

import random
import zlib
from pathlib import Path

import msgspec
import pytest

from tests.ideal import FEATURES
from vmm.scenario import packing
from vmm.scenario.codec import (
    FileError,
    histories_in,
    history_line,
    history_lines,
    parse_history,
    read_history,
)
from vmm.scenario.demand import Limits
from vmm.scenario.history import DirtyPages, End, Event, Header, History, HostChange, Inspected
from vmm.scenario.operations import GetDirtyLog, Inspect, Mapping, Scenario

PAGES = 16384
SCENARIO = Scenario("long", (Inspect(), GetDirtyLog(1)), (Mapping("a", PAGES),), survey="none")
HEADER = Header(SCENARIO, FEATURES)
LOST = Inspected((HostChange("a", 0, bytes(PAGES << 12)),))


def history(*events: Event) -> History:
    return History(HEADER, events, End("", len(events)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "h.jsonl"


def packed_line(text: bytes) -> bytes:
    return msgspec.json.encode({"type": "packed", "event": text})


def test_an_event_longer_than_any_line_is_read_again(file: Path) -> None:
    dirty = DirtyPages(tuple(range(300_000)))
    whole = history(Event(0, Inspect(), LOST), Event(1, GetDirtyLog(1), dirty))
    lines = list(history_lines(whole))
    assert sum(len(line) for line in lines) < 4 << 20
    file.write_bytes(b"".join(lines))
    assert read_history(file) == whole


def test_short_events_are_text() -> None:
    assert history_line(Event(0, Inspect(), Inspected())).startswith(b'{"origin":0')


def test_what_cannot_be_made_short_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "LONG_BYTES", 1000)
    monkeypatch.setattr(packing, "MAX_LINE_BYTES", 2000)
    noise = random.Random(1).randbytes(2000)
    with pytest.raises(OverflowError, match="an event has more than"):
        history_line(Event(0, Inspect(), Inspected((HostChange("a", 0, noise),))))


def test_all_packed_events_together_have_a_limit(file: Path) -> None:
    text = msgspec.json.encode(Event(0, Inspect(), LOST))
    line = packed_line(zlib.compress(text))
    lines = [history_line(HEADER).strip(), line, line]
    once = Limits(4 * len(text), 60.0)
    assert len(parse_history(lines[:2], "h", limits=once).events) == 1
    with pytest.raises(FileError, match=r"h:3: the events of a history have more than 0 bytes"):
        parse_history(lines, "h", limits=once)
    file.write_bytes(b"\n".join(lines))
    (found,) = histories_in(file, Limits(1 << 28, 60.0))
    with pytest.raises(FileError, match=r"h.jsonl:2: .* more than 67108864 bytes left"):
        found.history()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"no deflated text", "cannot be read"),
        (zlib.compress(b"{}")[:-1], "not whole"),
        (zlib.compress(b"{}") + b"x", "or more than one"),
        (zlib.compress(b"{}"), "missing required field"),
        (zlib.compress(b""), "truncated"),
    ],
)
def test_a_packed_line_that_holds_no_event_is_refused(data: bytes, problem: str) -> None:
    lines = [history_line(HEADER).strip(), packed_line(data), history_line(End("", 1))]
    with pytest.raises(FileError, match=rf"^h:2: .*{problem}"):
        parse_history(lines, "h")


def test_a_packed_line_that_is_cut_off_ends_a_history_without_its_end() -> None:
    line = packed_line(zlib.compress(b"{}"))
    whole = parse_history([history_line(HEADER).strip(), line[:-5]], "h")
    assert (whole.events, whole.end) == ((), None)
