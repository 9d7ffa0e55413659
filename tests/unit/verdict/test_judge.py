"""Histories and verdicts: an ideal one passes, one with any single wrong answer does not."""

import errno

import msgspec
import pytest

from tests.ideal import ideal_history
from tests.wrong import wrong
from vmm.scenario import codec
from vmm.scenario.endings import HARNESS, HOST
from vmm.scenario.history import (
    AnyOutcome,
    DirtyPages,
    Done,
    End,
    Event,
    Header,
    History,
    Mmio,
    Refused,
    SetUpRefused,
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
    Start,
    Sweep,
    Touch,
)
from vmm.verdict.ideal import EVERYTHING
from vmm.verdict.judge import Status, Verdict, judge

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


def judged_with(outcome: AnyOutcome, at: int = 1, reason: str = "refused: ...") -> Verdict:
    """Judge a history whose event at an index is the last, and has this outcome."""
    last = msgspec.structs.replace(HISTORY.events[at], outcome=outcome)
    events = (*HISTORY.events[:at], last)
    return judge(msgspec.structs.replace(HISTORY, events=events, end=End(reason, len(events))))


def test_a_call_that_every_vmm_needs_is_not_refused() -> None:
    verdict = judged_with(SetUpRefused("KVM_SET_SREGS", "cr0=0x10", errno.EINVAL))
    assert (verdict.status, verdict.under_way) == (Status.DIFFERS, None)
    assert verdict.difference is not None
    assert verdict.difference.observed == "KVM_SET_SREGS(cr0=0x10): EINVAL"
    assert [(each.outcome, each.rule) for each in verdict.difference.expected] == [
        ("success", "set-up")
    ]


def test_a_wrong_answer_to_such_a_call_differs() -> None:
    verdict = judged_with(SetUpRefused("KVM_GET_API_VERSION", answer="13"))
    assert verdict.difference is not None
    assert verdict.difference.observed == "KVM_GET_API_VERSION(): 13"


def test_what_comes_of_a_guest_that_the_model_does_not_know_is_no_difference() -> None:
    """KVM gives a VM up whose vCPU cannot save its state: each later call on it is EIO."""
    start = Start(0x1000, smi=True)
    scenario = Scenario("smi", (start,), needs=("smm",), survey="none")
    none = ideal_history(msgspec.structs.replace(scenario, operations=()), EVERYTHING)
    before = tuple(event for event in none.events if event.origin < 0)
    refused = Event(0, start, SetUpRefused("KVM_SET_VCPU_EVENTS", "", errno.EIO))
    end = End("refused: ...", len(before) + 1)
    history = msgspec.structs.replace(
        none, header=Header(scenario, EVERYTHING), events=(*before, refused), end=end
    )
    verdict = judge(history)
    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.reason.startswith("the model does not know: vCPU 0 with an SMI pending")


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EMFILE, errno.ENFILE])
def test_a_kernel_that_has_run_out_is_no_difference(number: int) -> None:
    name = errno.errorcode[number]
    verdict = judged_with(SetUpRefused("KVM_CREATE_VCPU", "", number))
    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.reason == f"{HOST}KVM_CREATE_VCPU(): {name}"
    create = next(i for i, e in enumerate(HISTORY.events) if e.origin == 0)
    verdict = judged_with(Refused(number), create)
    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.reason.startswith(f"{HOST}KVM_SET_USER_MEMORY_REGION(slot=0")
    assert verdict.reason.endswith(f": {name}")
    verdict = judged_with(Stopped(name), create)
    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.reason.endswith(f": the vCPU stops: {name}")


def test_running_out_is_no_excuse_where_the_call_must_be_refused() -> None:
    refused = next(i for i, e in enumerate(HISTORY.events) if isinstance(e.outcome, Refused))
    assert judged_with(Refused(errno.ENOMEM), refused).status is Status.DIFFERS


def test_an_error_of_this_program_is_named_as_such() -> None:
    verdict = judge(msgspec.structs.replace(HISTORY, end=End(f"{HARNESS}Traceback ...")))
    assert (verdict.status, verdict.status.exit_status) == (Status.INTERNAL_ERROR, 70)


def of_events(events: tuple[Event, ...]) -> Verdict:
    """Judge some events as a history that says it is whole."""
    return judge(History(HISTORY.header, events, End(events=len(events))))


@pytest.mark.parametrize("index", range(len(HISTORY.events)))
def test_an_event_that_is_left_out_is_missed(index: int) -> None:
    events = (*HISTORY.events[:index], *HISTORY.events[index + 1 :])
    verdict = of_events(events)
    assert verdict.status is Status.INCONCLUSIVE
    assert "out of sequence" in verdict.reason or "claims to be complete" in verdict.reason


@pytest.mark.parametrize("index", range(len(HISTORY.events)))
def test_an_event_that_is_repeated_is_noticed(index: int) -> None:
    verdict = of_events((*HISTORY.events[: index + 1], *HISTORY.events[index:]))
    assert verdict.status is Status.INCONCLUSIVE
    assert f"event {index + 1} is out of sequence" in verdict.reason


def test_events_in_another_order_are_noticed() -> None:
    first, second, *others = HISTORY.events
    assert first.operation != second.operation
    assert of_events((second, first, *others)).status is Status.INCONCLUSIVE


def test_an_operation_at_another_origin_is_noticed() -> None:
    last = HISTORY.events[-1]
    moved = msgspec.structs.replace(last, origin=last.origin - 1)
    verdict = of_events((*HISTORY.events[:-1], moved))
    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.events == len(HISTORY.events) - 1


def test_a_history_of_nothing_is_not_whole() -> None:
    assert of_events(()).status is Status.INCONCLUSIVE


def test_a_difference_before_a_hole_stays_one() -> None:
    events = list(HISTORY.events)
    events[3] = msgspec.structs.replace(events[3], outcome=wrong(events[3].outcome))
    assert of_events((*events[:9], *events[10:])).status is Status.DIFFERS
