"""Memory mapped ahead: what the model allows, and that each scenario fails on a wrong answer."""

import errno

import msgspec
import pytest

from tests.ideal import FEATURES, ideal_history
from vmm.catalogue.prefault import SCENARIOS
from vmm.model.model import Model
from vmm.scenario.features import Features
from vmm.scenario.history import AnyOutcome, DirtyPages, History, PreFaulted, Refused
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    AnyOperation,
    ChangeHostMemory,
    GetDirtyLog,
    Mapping,
    Place,
    PreFaultMemory,
    Scenario,
    SetTssAddr,
    SetUserMemoryRegion,
)
from vmm.verdict.judge import Status, judge

PAGE = 4096
HOST = (Mapping("a", 4), Mapping("nowhere", 1, "unmapped"))
SLOT = SetUserMemoryRegion(1, 0x10000, 4 * PAGE, Place("a"))
BARE = SetUserMemoryRegion(2, 0x14000, PAGE, Place("nowhere"))


def outcomes(
    operation: AnyOperation, *before: AnyOperation, features: Features = FEATURES
) -> list[AnyOutcome]:
    """Return what the model allows after operations that came to their first outcome."""
    model = Model(HOST, features)
    for each in before:
        model.allowed(each)[0].adopt()
    return [choice.outcome for choice in model.allowed(operation)]


@pytest.mark.parametrize(
    ("gpa", "size", "outcome"),
    [
        (0x10000, 4 * PAGE, PreFaulted(0x14000)),
        (0x11000, PAGE, PreFaulted(0x12000)),
        (0x12000, 3 * PAGE, PreFaulted(0x14000, PAGE)),
        (0x10000, (1 << 64) - 0x11000, PreFaulted(0x14000, (1 << 64) - 0x15000)),
        (0x0F000, 2 * PAGE, Refused(errno.ENOENT)),
        (0x10800, PAGE, Refused(errno.EINVAL)),
        (0x10000, 0x800, Refused(errno.EINVAL)),
        (0x10000, 0, Refused(errno.EINVAL)),
        (0x10000, (1 << 64) - 0x10000, Refused(errno.EINVAL)),
    ],
)
def test_range_is_mapped_up_to_what_has_no_slot(gpa: int, size: int, outcome: AnyOutcome) -> None:
    assert outcomes(PreFaultMemory(gpa, size), SLOT) == [outcome]


def test_flags_are_refused() -> None:
    assert outcomes(PreFaultMemory(0x10000, PAGE, 1), SLOT) == [Refused(errno.EINVAL)]


def test_page_without_memory_ends_it_or_refuses_it() -> None:
    assert outcomes(PreFaultMemory(0x13000, 2 * PAGE), SLOT, BARE) == [PreFaulted(0x14000, PAGE)]
    assert outcomes(PreFaultMemory(0x14000, PAGE), SLOT, BARE) == [Refused(errno.EFAULT)]
    taken = ChangeHostMemory(Place("a", PAGE), how="unmap")
    assert outcomes(PreFaultMemory(0x10000, 4 * PAGE), SLOT, taken) == [
        PreFaulted(0x11000, 3 * PAGE)
    ]


def test_slot_of_the_kernels_own_in_the_way_is_unknown() -> None:
    tss = SetTssAddr(0x14000)
    assert outcomes(PreFaultMemory(0x10000, 5 * PAGE), SLOT, tss) == []
    assert outcomes(PreFaultMemory(0x10000, 4 * PAGE), SLOT, tss) == [PreFaulted(0x14000)]


def test_kernel_without_it_says_so_or_does_not_know_the_call() -> None:
    features = msgspec.structs.replace(FEATURES, pre_fault=False)
    refusals = [Refused(errno.EOPNOTSUPP), Refused(errno.EINVAL)]
    assert outcomes(PreFaultMemory(0x10000, PAGE), SLOT, features=features) == refusals
    assert outcomes(PreFaultMemory(0x10001, PAGE), SLOT, features=features) == refusals[1:]


def test_log_may_take_it_for_a_read() -> None:
    logged = msgspec.structs.replace(SLOT, flags=LOG_DIRTY_PAGES)
    ahead = PreFaultMemory(0x11000, 2 * PAGE)
    assert outcomes(GetDirtyLog(1), logged, ahead) == [DirtyPages((), words=1)]
    features = msgspec.structs.replace(FEATURES, reads_make_dirty=True)
    doubtful = DirtyPages((), (1, 2), words=1)
    assert outcomes(GetDirtyLog(1), logged, ahead, features=features) == [doubtful]


def wrong(outcome: AnyOutcome) -> AnyOutcome:
    """Return another answer to a call that maps memory ahead."""
    if isinstance(outcome, PreFaulted):
        return msgspec.structs.replace(outcome, gpa=outcome.gpa + PAGE, size=outcome.size + PAGE)
    return PreFaulted(0)


def with_wrong_answer(history: History, index: int) -> History:
    events = list(history.events)
    events[index] = msgspec.structs.replace(events[index], outcome=wrong(events[index].outcome))
    return msgspec.structs.replace(history, events=tuple(events))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_scenario_fails_where_one_answer_is_wrong(scenario: Scenario) -> None:
    history = ideal_history(scenario)
    assert judge(history).status is Status.PASSED
    calls = [i for i, e in enumerate(history.events) if isinstance(e.operation, PreFaultMemory)]
    assert calls
    for index in calls:
        verdict = judge(with_wrong_answer(history, index))
        assert verdict.difference is not None
        assert verdict.difference.origin == history.events[index].origin
