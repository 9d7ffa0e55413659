"""Logs and rings in races: each write is named where it must be, and nothing else is."""

from collections.abc import Callable

import msgspec
import pytest

from tests.ideal import FEATURES, ideal_history
from vmm.catalogue import races_logs
from vmm.model.races.flaw import Flaw
from vmm.model.races.logs import Logging
from vmm.model.races.rings import RingJudge
from vmm.model.rings import RingState
from vmm.scenario.features import Features
from vmm.scenario.history import (
    Call,
    History,
    Raced,
    RingPages,
    RingsReset,
)
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    ClearDirtyLog,
    GuestThread,
    HarvestDirtyRing,
    HostThread,
    Mapping,
    Place,
    Race,
    ResetDirtyRings,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate
from vmm.verdict.ideal import EVERYTHING
from vmm.verdict.judge import Status, Verdict, judge

PAGE = (1, 0)
HARVEST, RESET = HarvestDirtyRing(), ResetDirtyRings()


def log(*writes: tuple[int, int], clears: tuple[tuple[int, int], ...] = ()) -> Logging:
    """Return the log of page 0, cleared by hand."""
    logging = Logging(1)
    for interval in writes:
        logging.wrote(0, interval, True)
    for interval in clears:
        logging.cleared(interval, frozenset((0,)))
    return logging


@pytest.mark.parametrize(
    ("clears", "named", "is_right"),
    [
        ((), True, True),
        ((), False, False),
        (((20, 30),), True, False),
        (((20, 30),), False, True),
        (((8, 20),), True, True),
        (((8, 20),), False, True),
        (((1, 4),), False, False),
        (((45, 55),), False, True),
        (((45, 55),), True, True),
    ],
)
def test_a_page_is_dirty_until_it_is_cleared(
    clears: tuple[tuple[int, int], ...], named: bool, is_right: bool
) -> None:
    logging = log((5, 10), clears=clears)
    logging.read((50, 60), frozenset((0,) if named else ()), clears=False)
    assert (not list(logging.invented()) and not list(logging.lost())) is is_right


def test_every_log_names_what_is_not_cleared() -> None:
    logging = log((5, 10))
    for begin, pages in ((20, {0}), (30, {0}), (40, set())):
        logging.read((begin, begin + 5), frozenset(pages), clears=False)
    assert [(read.begin, page) for read, page, _ in logging.lost()] == [(40, 0)]
    assert logging.left() == ({0}, set())


def test_what_is_cleared_while_it_is_written_may_be_dirty_or_not() -> None:
    assert log((5, 10), clears=((8, 20),)).left() == (set(), {0})
    assert log((5, 10), clears=((12, 20),)).left() == (set(), set())


def test_what_is_dirty_from_the_start_is_named_until_it_is_cleared() -> None:
    logging = Logging(1, (10, 20), tracked=20)
    logging.holds(3)
    logging.read((30, 40), frozenset({3}), clears=False)
    assert not list(logging.invented())
    assert logging.left() == ({3}, set())


def ring_flaw(
    host: tuple[tuple[int, RingPages | RingsReset], ...],
    *writes: tuple[int, int],
    left: RingPages | None = None,
    helped: tuple[Call, ...] = (),
    vcpu: int = 0,
    anew: tuple[tuple[int, int], ...] = (),
) -> Flaw | None:
    """Judge writes to page 0 of slot 1, and what a host thread found; each call takes 5 moments."""
    operations = tuple(RESET if isinstance(each, RingsReset) else HARVEST for _, each in host)
    race = Race((HostThread(operations),), (GuestThread(()), GuestThread(())))
    calls = tuple(Call(begin, begin + 5, each) for begin, each in host)
    logging = Logging(1, anew=list(anew))
    for interval in writes:
        logging.wrote(0, interval, True, vcpu)
    outcome = Raced((calls,), ((), ()), ((), ()), (), (helped, ()), (left or NONE, NONE))
    return RingJudge(race, RingState(4096, FEATURES)).flaw(outcome, [logging])


NONE = RingPages()
ONE = RingPages((PAGE,), entries=1)


@pytest.mark.parametrize(
    ("host", "writes", "is_right"),
    [
        (((20, ONE),), ((5, 10),), True),
        (((20, NONE),), ((5, 10),), False),
        (((20, NONE), (30, ONE)), ((5, 10),), False),
        (((20, NONE), (30, ONE)), ((5, 22),), True),
        (((20, ONE),), (), False),
        (((20, ONE),), ((30, 35),), False),
        (((20, ONE), (30, ONE)), ((5, 10),), False),
        # Harvested, but not reset: a later write need not be named again.
        (((20, ONE), (40, NONE)), ((5, 10), (30, 35)), True),
        (((20, ONE), (30, RingsReset(1)), (50, NONE)), ((5, 10), (40, 45)), False),
        (((20, ONE), (30, RingsReset(1)), (50, ONE)), ((5, 10), (40, 45)), True),
        (((20, ONE), (30, RingsReset(1)), (50, NONE)), ((5, 10), (32, 45)), True),
    ],
)
def test_a_write_is_named_unless_its_page_is_not_reset(
    host: tuple[tuple[int, RingPages | RingsReset], ...],
    writes: tuple[tuple[int, int], ...],
    is_right: bool,
) -> None:
    assert (ring_flaw(host, *writes) is None) is is_right


def test_what_is_left_in_a_ring_is_found_in_the_end() -> None:
    assert ring_flaw((), (5, 10), left=ONE) is None
    assert ring_flaw((), (5, 10)) is not None


def test_a_ring_names_what_its_own_vcpu_wrote() -> None:
    assert ring_flaw(((20, ONE),), (5, 10), vcpu=1) is not None


def test_a_page_is_tracked_anew_where_its_slot_moved() -> None:
    host = ((20, ONE), (50, NONE))
    assert ring_flaw(host, (5, 10), (40, 45)) is None
    assert ring_flaw(host, (5, 10), (40, 45), anew=((30, 35),)) is not None


@pytest.mark.parametrize(
    ("counted", "is_right"), [((1, 1), True), ((2, 0), True), ((3, 0), False), ((0, 2), False)]
)
def test_resets_count_what_was_harvested(counted: tuple[int, int], is_right: bool) -> None:
    first, second = (RingsReset(each) for each in counted)
    found = RingPages((PAGE,), entries=1)
    # The second harvest takes place while the first reset does.
    host = ((10, found), (20, first), (22, found), (30, second))
    assert (ring_flaw(host, (5, 24)) is None) is is_right


def test_a_vcpu_stops_at_a_full_ring_only() -> None:
    def stopped(entries: int) -> Flaw | None:
        found = RingPages((PAGE,), entries=entries)
        helped = (Call(7, 8, found), Call(9, 10, RingsReset(entries)))
        return ring_flaw((), (5, 12), helped=helped)

    assert stopped(192) is None
    flaw = stopped(191)
    assert flaw is not None
    assert "held 191 entries" in flaw.note


def _races(features: Features = FEATURES) -> dict[str, Scenario]:
    return {each.name: each for each in races_logs.scenarios(features)}


@pytest.mark.parametrize("features", [FEATURES, EVERYTHING], ids=["usual", "everything"])
@pytest.mark.parametrize("name", _races())
def test_a_kernel_that_keeps_its_promises_passes(name: str, features: Features) -> None:
    scenario = _races(features)[name]
    if features.missing(scenario.needs):
        return
    validate(scenario)
    assert judge(ideal_history(scenario, features)).status is Status.PASSED


def _spoilt(history: History, spoil: Callable[[Call], Call]) -> Verdict:
    def changed(outcome: Raced) -> Raced:
        calls = tuple(tuple(map(spoil, thread)) for thread in outcome.calls)
        return msgspec.structs.replace(outcome, calls=calls)

    events = tuple(
        msgspec.structs.replace(event, outcome=changed(event.outcome))
        if isinstance(event.outcome, Raced)
        else event
        for event in history.events
    )
    return judge(msgspec.structs.replace(history, events=events))


def _without_pages(call: Call) -> Call:
    if not isinstance(call.outcome, RingPages):
        return call
    return Call(call.begin, call.end, RingPages(entries=call.outcome.entries))


def _one_less(call: Call) -> Call:
    if not isinstance(call.outcome, RingsReset):
        return call
    return Call(call.begin, call.end, RingsReset(call.outcome.entries - 1))


@pytest.mark.parametrize(
    ("spoil", "rule"), [(_without_pages, "race-ring"), (_one_less, "ring-reset")]
)
def test_a_spoilt_ring_differs(spoil: Callable[[Call], Call], rule: str) -> None:
    history = ideal_history(_races(EVERYTHING)["racing-ring"], EVERYTHING)
    difference = _spoilt(history, spoil).difference
    assert difference is not None
    assert {each.rule for each in difference.expected} == {rule}


@pytest.mark.parametrize(
    ("hosts", "complaint"),
    [
        ((HostThread((HARVEST,)), HostThread((HARVEST,))), "another thread changes ring 0x0"),
        ((HostThread((RESET,)), HostThread((RESET,))), "another thread changes rings"),
        ((HostThread((HarvestDirtyRing(1),)),), "the race has 1"),
        ((HostThread((HARVEST,), rounds=0),), "one has to have a number of rounds"),
        ((HostThread((ClearDirtyLog(1, bitmap="unreadable"),)),), "a readable one is needed"),
    ],
)
def test_a_race_over_rings_that_is_not_clear_is_refused(
    hosts: tuple[HostThread, ...], complaint: str
) -> None:
    slot = SetUserMemoryRegion(1, 0, 4096, Place("a"), LOG_DIRTY_PAGES)
    race = Race(hosts, (GuestThread((Touch(0),)),))
    with pytest.raises(ScenarioError, match=complaint):
        validate(Scenario("race", (slot, race), (Mapping("a", 1),), vcpus=2))
