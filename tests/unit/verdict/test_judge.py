"""Histories and verdicts: an ideal one passes, one with any single wrong answer does not."""

import msgspec
import pytest

from tests.ideal import ideal_history
from tests.wrong import wrong
from vmm.scenario import codec
from vmm.scenario.history import (
    DirtyPages,
    Done,
    Event,
    Mmio,
    Refused,
    Stopped,
    Touched,
)
from vmm.scenario.operations import (
    ClearDirtyLog,
    EnableCap,
    Execute,
    GetDirtyLog,
    HarvestDirtyRing,
    HostWrite,
    Mapping,
    NewVm,
    Place,
    PreFaultMemory,
    ResetDirtyRings,
    Scenario,
    SetUserMemoryRegion,
    Sweep,
    Touch,
)
from vmm.verdict.judge import Status, judge

SCENARIO = Scenario(
    "everything",
    (
        SetUserMemoryRegion(0, 0x10000, 0x2000, Place("a"), 1),
        Touch(0x11000, "write", 2, 7),
        HostWrite(Place("a", 0x1004), 9),
        Execute(0x10000),
        PreFaultMemory(0x10000, 0x3000),
        Sweep(0x11FF0, 8),
        GetDirtyLog(0),
        SetUserMemoryRegion(0, 0x11000, 0x2000, Place("a"), 1),
        SetUserMemoryRegion(1, 0x12000, 0x1000, Place("a")),
        SetUserMemoryRegion(0),
        EnableCap("MANUAL_DIRTY_LOG_PROTECT2", 1),
        ClearDirtyLog(0, 0, 2),
        NewVm(),
        EnableCap("DIRTY_LOG_RING", 4096),
        SetUserMemoryRegion(0, 0x10000, 0x2000, Place("a"), 1),
        Touch(0x11000, "write", 2, 8),
        HarvestDirtyRing(),
        ResetDirtyRings(),
    ),
    (Mapping("a", 2),),
)
HISTORY = ideal_history(SCENARIO)


def with_event(index: int, event: Event) -> tuple[Event, ...]:
    return (*HISTORY.events[:index], event, *HISTORY.events[index + 1 :])


def test_ideal_history_passes() -> None:
    verdict = judge(HISTORY)
    assert verdict.status is Status.PASSED
    assert verdict.events == len(HISTORY.events)


@pytest.mark.parametrize("index", range(len(HISTORY.events)))
def test_every_single_wrong_outcome_is_found_where_it_is(index: int) -> None:
    event = HISTORY.events[index]
    bad = msgspec.structs.replace(event, outcome=wrong(event.outcome))
    verdict = judge(msgspec.structs.replace(HISTORY, events=with_event(index, bad)))
    assert verdict.status is Status.DIFFERS
    assert verdict.difference is not None
    assert (verdict.difference.event, verdict.difference.origin) == (index, event.origin)


def test_swallowed_mmio_exit_is_found() -> None:
    index, event = next(
        (i, e)
        for i, e in enumerate(HISTORY.events)
        if isinstance(e.outcome, Touched) and e.outcome.mmio
    )
    assert isinstance(event.outcome, Touched)
    bad = msgspec.structs.replace(event, outcome=Touched(event.outcome.value))
    verdict = judge(msgspec.structs.replace(HISTORY, events=with_event(index, bad)))
    assert verdict.status is Status.DIFFERS


def test_difference_says_what_was_expected_by_which_rule_and_the_slot_map() -> None:
    index = next(i for i, e in enumerate(HISTORY.events) if isinstance(e.outcome, Refused))
    bad = msgspec.structs.replace(HISTORY.events[index], outcome=Done())
    difference = judge(msgspec.structs.replace(HISTORY, events=with_event(index, bad))).difference
    assert difference is not None
    assert [(e.outcome, e.rule) for e in difference.expected] == [("EEXIST", "overlap")]
    assert difference.observed == "success"
    assert difference.operation.startswith("KVM_SET_USER_MEMORY_REGION(slot=1, ")
    assert difference.slot_map[1].startswith("[1] slot 0: gpa 0x11000..0x13000 (2 pages) -> a+0x0")


def test_difference_says_which_pages_a_log_lacks_or_has_too_many() -> None:
    index, event = next(
        (n, e) for n, e in enumerate(HISTORY.events) if isinstance(e.outcome, DirtyPages)
    )
    assert isinstance(event.outcome, DirtyPages)
    assert event.outcome.pages == (0, 1)
    other = msgspec.structs.replace(event.outcome, pages=(0, 5, 6, 7))
    events = with_event(index, msgspec.structs.replace(event, outcome=other))
    difference = judge(msgspec.structs.replace(HISTORY, events=events)).difference
    assert difference is not None
    assert difference.observed.endswith("; missing {1}; too many {5-7}")


def test_history_that_is_cut_off_is_judged_as_far_as_it_goes() -> None:
    cut = msgspec.structs.replace(HISTORY, events=HISTORY.events[:5], end=None)
    verdict = judge(cut)
    assert (verdict.status, verdict.events) == (Status.INCONCLUSIVE, 5)


def test_difference_outweighs_an_end_that_came_too_soon() -> None:
    bad = msgspec.structs.replace(HISTORY.events[4], outcome=Stopped("EFAULT"))
    cut = msgspec.structs.replace(HISTORY, events=(*HISTORY.events[:4], bad), end=None)
    assert judge(cut).status is Status.DIFFERS


def test_history_survives_its_file() -> None:
    lines = b"".join(codec.history_lines(HISTORY)).split(b"\n")
    assert codec.parse_history(lines, "file") == HISTORY


@pytest.mark.parametrize("cut", [1, 40, 3000])
def test_history_file_cut_anywhere_loses_only_the_end(cut: int) -> None:
    data = b"".join(codec.history_lines(HISTORY))[:-cut]
    history = codec.parse_history(data.split(b"\n"), "file")
    kept = len(history.events)
    assert history.events == HISTORY.events[:kept]
    assert judge(history).status is (Status.PASSED if cut == 1 else Status.INCONCLUSIVE)


def test_mmio_data_is_part_of_what_is_compared() -> None:
    assert Touched(0, (Mmio(0, True, b"\1"),)) != Touched(0, (Mmio(0, True, b"\2"),))
