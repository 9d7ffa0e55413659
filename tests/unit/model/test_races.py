"""Races are judged by intervals: what may be is allowed, and what cannot be is found."""

import errno
from collections.abc import Callable, Sequence

import msgspec
import pytest

from tests.ideal import FEATURES, ideal_history
from vmm.catalogue import races
from vmm.model.contents import Contents
from vmm.model.races.logs import BEFORE, Logging
from vmm.model.races.tracks import Track
from vmm.model.races.words import MemoryWords
from vmm.scenario.content import changed_runs, identity, page_bytes
from vmm.scenario.history import (
    AnyOutcome,
    Call,
    DirtyPages,
    Done,
    Event,
    HostChange,
    Inspected,
    Met,
    Mmio,
    PreFaulted,
    Raced,
    Refused,
    Seen,
    Stopped,
    Touched,
    Window,
    private_fault,
)
from vmm.scenario.operations import (
    ATTRIBUTE_PRIVATE,
    GUEST_MEMFD,
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    ChangeHostMemory,
    CloseGuestMemfd,
    CreateGuestMemfd,
    Execute,
    GetDirtyLog,
    GuestThread,
    HostAction,
    HostChangeKind,
    HostThread,
    HostWrite,
    Mapping,
    Place,
    PreFaultMemory,
    PunchGuestMemfd,
    Race,
    Scenario,
    SetMemoryAttributes,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Touch,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate
from vmm.verdict.ideal import EVERYTHING
from vmm.verdict.judge import Status, Verdict, judge

GPA = 0x10_0000
A = Mapping("a", 4)
B = Mapping("b", 4, "memfd")
AGAIN = Mapping("again", 4, "memfd", of="b")
DELETE = SetUserMemoryRegion(1)
LOGGED = SetUserMemoryRegion(1, GPA, 2 * PAGE_SIZE_BYTES, Place("a"), LOG_DIRTY_PAGES)
CREATE = msgspec.structs.replace(LOGGED, flags=0)
READ = Touch(GPA)
WRITE = Touch(GPA, "write", value=0x1000)

PAGE_A = Touched(identity(0, 0))
GONE = Touched(0xFFFF_FFFF, (Mmio(GPA, False, b"\xff" * 4),))
WROTE = Touched(0)
NOT_WRITTEN = Touched(0, (Mmio(GPA, True, (0x1000).to_bytes(4, "little")),))


def played(
    first: SetUserMemoryRegion,
    host: tuple[HostAction, ...],
    program: Touch | Execute | PreFaultMemory,
    calls: tuple[Call, ...],
    windows: tuple[tuple[int, int, Met], ...],
    changes: tuple[HostChange, ...] = (),
) -> Verdict:
    """Return the verdict on a race of one host thread and one vCPU that went like this."""
    race = Race((HostThread(host),), (GuestThread((program,)),))
    scenario = Scenario("race", (first, race), (A, B, AGAIN), survey="none")
    history = ideal_history(scenario, FEATURES)
    seen: tuple[Seen, ...] = tuple((outcome,) for *_, outcome in windows)
    outcome: AnyOutcome = Raced(
        (calls,),
        (tuple(Window(begin, end, i) for i, (begin, end, _) in enumerate(windows)),),
        (seen,),
        changes,
    )
    events = tuple(
        Event(event.origin, race, outcome) if isinstance(event.operation, Race) else event
        for event in history.events
    )
    return judge(msgspec.structs.replace(history, events=events))


def refused(
    threads: Sequence[tuple[HostAction, ...]], mappings: tuple[Mapping, ...], why: str
) -> None:
    """Check that a race of these host threads, beside a vCPU that reads, is refused."""
    race = Race(tuple(map(HostThread, threads)), (GuestThread((READ,)),))
    scenario = Scenario("race", (race,), mappings, survey="none", needs=("sync_mmu",))
    with pytest.raises(ScenarioError, match=why):
        validate(scenario)


def deleted(*windows: tuple[int, int, Touched | Stopped]) -> Status:
    """Judge reads of a slot whose deletion takes place from 10 to 20."""
    return played(CREATE, (DELETE,), READ, (Call(10, 20, Done()),), windows).status


@pytest.mark.parametrize(
    ("window", "found", "status"),
    [
        ((1, 2), PAGE_A, Status.PASSED),
        ((1, 2), GONE, Status.DIFFERS),
        ((5, 15), PAGE_A, Status.PASSED),
        ((5, 15), GONE, Status.PASSED),
        ((11, 12), GONE, Status.PASSED),
        ((19, 30), PAGE_A, Status.PASSED),
        ((21, 22), GONE, Status.PASSED),
        ((21, 22), PAGE_A, Status.DIFFERS),
        ((5, 15), Touched(identity(0, 1)), Status.DIFFERS),
        ((5, 15), Stopped("EFAULT"), Status.DIFFERS),
    ],
)
def test_a_read_finds_what_was_at_some_moment_of_it(
    window: tuple[int, int], found: Touched | Stopped, status: Status
) -> None:
    assert deleted((*window, found)) is status


@pytest.mark.parametrize(
    ("window", "found", "status"),
    [
        ((1, 2), PreFaulted(GPA + PAGE_SIZE_BYTES), Status.PASSED),
        ((1, 2), PreFaulted(GPA, PAGE_SIZE_BYTES), Status.DIFFERS),
        ((1, 2), Refused(errno.EAGAIN), Status.DIFFERS),
        ((5, 15), PreFaulted(GPA + PAGE_SIZE_BYTES), Status.PASSED),
        ((5, 15), Refused(errno.EAGAIN), Status.PASSED),
        ((5, 15), Refused(errno.ENOENT), Status.PASSED),
        ((5, 15), Refused(errno.EFAULT), Status.DIFFERS),
        ((21, 22), Refused(errno.ENOENT), Status.PASSED),
        ((21, 22), Refused(errno.EAGAIN), Status.DIFFERS),
        ((21, 22), PreFaulted(GPA + PAGE_SIZE_BYTES), Status.DIFFERS),
    ],
)
def test_what_is_mapped_ahead_was_there_at_some_moment(
    window: tuple[int, int], found: Met, status: Status
) -> None:
    ahead = PreFaultMemory(GPA, PAGE_SIZE_BYTES)
    verdict = played(CREATE, (DELETE,), ahead, (Call(10, 20, Done()),), ((*window, found),))
    assert verdict.status is status


def test_the_difference_says_where_in_the_race_it_is() -> None:
    verdict = played(
        CREATE, (DELETE,), READ, (Call(10, 20, Done()),), ((1, 2, PAGE_A), (21, 22, PAGE_A))
    )
    assert verdict.difference is not None
    assert "moments 21 to 22; window 1 of vCPU 0" in verdict.difference.operation
    assert [each.rule for each in verdict.difference.expected] == ["race-reach"]
    assert "MMIO read 0x100000+4" in verdict.difference.expected[0].outcome


def test_a_moving_slot_may_be_nowhere_for_a_moment() -> None:
    onto_itself = msgspec.structs.replace(CREATE, guest_phys_addr=GPA - PAGE_SIZE_BYTES)
    second = Touched(identity(0, 1))
    for found, status in ((PAGE_A, Status.PASSED), (GONE, Status.PASSED), (second, Status.PASSED)):
        verdict = played(CREATE, (onto_itself,), READ, (Call(10, 20, Done()),), ((5, 15, found),))
        assert verdict.status is status


def test_an_access_never_fails_while_only_flags_change() -> None:
    verdict = played(CREATE, (LOGGED,), READ, (Call(10, 20, Done()),), ((5, 15, GONE),))
    assert verdict.status is Status.DIFFERS


def test_a_write_that_exits_is_not_in_memory_and_one_that_does_not_is() -> None:
    written = (HostChange("a", 0, (0x1000).to_bytes(4, "little")),)
    call = (Call(10, 20, Done()),)
    for outcome, changes, status in (
        (WROTE, written, Status.PASSED),
        (WROTE, (), Status.DIFFERS),
        (NOT_WRITTEN, (), Status.PASSED),
        (NOT_WRITTEN, written, Status.DIFFERS),
    ):
        verdict = played(CREATE, (DELETE,), WRITE, call, ((5, 15, outcome),), changes)
        assert verdict.status is status


def test_a_change_that_nobody_made_is_found() -> None:
    stray = (HostChange("b", 0x123, b"x"),)
    verdict = played(CREATE, (DELETE,), READ, (Call(1, 2, Done()),), ((3, 4, GONE),), stray)
    assert verdict.difference is not None
    assert verdict.difference.expected[0].rule == "race-content"


def test_dropped_memory_reads_as_zeros_from_then_on() -> None:
    zeros = (HostChange("a", 0, bytes(PAGE_SIZE_BYTES)),)
    drop = ChangeHostMemory(Place("a"), 1, "drop")
    for window, found, status in (
        ((5, 15), PAGE_A, Status.PASSED),
        ((5, 15), Touched(0), Status.PASSED),
        ((21, 22), Touched(0), Status.PASSED),
        ((21, 22), PAGE_A, Status.DIFFERS),
    ):
        call = (Call(10, 20, Done()),)
        verdict = played(CREATE, (drop,), READ, call, ((*window, found),), zeros)
        assert verdict.status is status, (window, found)


def test_unmapped_memory_is_out_of_reach() -> None:
    for outcome, status in (
        (GONE, Status.PASSED),
        (Stopped("EFAULT"), Status.PASSED),
        (PAGE_A, Status.DIFFERS),
    ):
        forbid = ChangeHostMemory(Place("a"), 1, "forbid")
        verdict = played(CREATE, (forbid,), READ, (Call(1, 2, Done()),), ((3, 4, outcome),))
        assert verdict.status is status


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        ((0,), (), Status.PASSED),
        ((), (0,), Status.PASSED),
        ((), (), Status.DIFFERS),
        ((0, 1), (), Status.DIFFERS),
        ((0,), (0,), Status.PASSED),
    ],
)
def test_a_write_is_in_the_log_beside_it_or_in_the_next(
    first: tuple[int, ...], second: tuple[int, ...], status: Status
) -> None:
    log = GetDirtyLog(1)
    calls = (Call(10, 20, DirtyPages(first)), Call(30, 40, DirtyPages(second)))
    written = (HostChange("a", 0, (0x1000).to_bytes(4, "little")),)
    verdict = played(LOGGED, (log, log), WRITE, calls, ((5, 15, WROTE),), written)
    assert verdict.status is status


def test_a_log_that_nobody_read_is_left_to_the_next_operation() -> None:
    logging = Logging(1)
    logging.wrote(3, BEFORE, True)
    logging.wrote(4, (5, 15), True)
    logging.wrote(5, (25, 26), True)
    logging.wrote(6, (25, 26), False)
    logging.read((10, 20), frozenset({3, 4}), clears=True)
    assert list(logging.invented()) == []
    assert list(logging.lost()) == []
    assert logging.left() == ({5}, {4, 6})


def test_a_track_shows_what_overlaps() -> None:
    track = Track("old")
    track.change(10, 20, "new", ("between",))
    track.change(30, 40, "newer")
    assert track.within(1, 5) == ["old"]
    assert track.within(1, 15) == ["old", "between", "new"]
    assert track.within(21, 22) == ["new"]
    assert track.within(15, 35) == ["old", "between", "new", "newer"]
    assert track.last == "newer"


def test_a_certain_write_ends_what_was_before() -> None:
    words = MemoryWords(Contents((A,)), lambda mapping, page, _: ((mapping, page),))
    words.write("vCPU 0", "a", 0, (10, 20), 1)
    words.write("vCPU 1", "a", 0, (15, 25), 2)
    words.write("vCPU 0", "a", 0, (30, 40), 3, certain=False)
    assert words.values("a", 0, 1, 5) == [identity(0, 0)]
    assert set(words.values("a", 0, 12, 18)) == {identity(0, 0), 1, 2}
    assert set(words.values("a", 0, 26, 28)) == {1, 2}
    assert set(words.values("a", 0, 50, 60)) == {1, 2, 3}


@pytest.mark.parametrize(
    ("window", "found", "status"),
    [
        ((1, 2), Touched(identity(1, 0)), Status.PASSED),
        ((11, 12), Touched(7), Status.PASSED),
        ((21, 22), Touched(7), Status.PASSED),
        ((21, 22), Touched(identity(1, 0)), Status.DIFFERS),
        ((21, 22), Touched(identity(2, 0)), Status.DIFFERS),
    ],
)
def test_what_is_written_through_one_mapping_of_a_file_shows_in_the_other(
    window: tuple[int, int], found: Touched, status: Status
) -> None:
    first = SetUserMemoryRegion(1, GPA, 2 * PAGE_SIZE_BYTES, Place("again"))
    written = tuple(HostChange(name, 0, b"\x07\0\0\0") for name in ("b", "again"))
    call = (Call(10, 20, Done()),)
    write = HostWrite(Place("b"), 7)
    assert played(first, (write,), READ, call, ((*window, found),), written).status is status
    half = played(first, (write,), READ, call, ((*window, found),), written[:1]).status
    assert half is Status.DIFFERS, "both show it"


def test_a_mapping_that_is_unmapped_takes_the_other_one_not_along() -> None:
    for name, status in (("b", Status.PASSED), ("again", Status.DIFFERS)):
        first = SetUserMemoryRegion(1, GPA, 2 * PAGE_SIZE_BYTES, Place(name))
        gone = ChangeHostMemory(Place("b"), 1, "unmap")
        call = (Call(10, 20, Done()),)
        assert played(first, (gone,), READ, call, ((21, 22, GONE),)).status is status


def test_what_the_host_cannot_look_at_in_the_end_is_held_against_nobody() -> None:
    gone = ChangeHostMemory(Place("a"), 1, "unmap")
    call = (Call(10, 20, Done()),)
    assert played(CREATE, (gone,), WRITE, call, ((5, 15, WROTE),)).status is Status.PASSED


def _raced(*hosts: HostThread, program: tuple[Touch | Execute, ...] = (READ,)) -> Scenario:
    return Scenario("race", (Race(hosts, (GuestThread(program),)),), (A, B))


@pytest.mark.parametrize(
    ("scenario", "complaint"),
    [
        (_raced(HostThread((CREATE,)), HostThread((DELETE,))), "another thread changes slot"),
        (_raced(HostThread((CREATE,), 10**6)), "calls are needed"),
        (_raced(HostThread((ChangeHostMemory(Place("a"), 9),))), "not within the 4 pages"),
        (_raced(HostThread((ChangeHostMemory(Place("a"), 1, "punch"),))), "takes a mapping of"),
        (_raced(program=(Touch(GPA, width=1),)), "aligned accesses of 4 bytes"),
        (_raced(program=(Touch(GPA, vcpu=1),)), "vcpu"),
        (_raced(program=(READ, Execute(GPA))), "stands alone"),
        (_raced(program=(READ,) * 64), "accesses of all vCPUs"),
        (_raced(program=(Touch(0xFFFF_0000),)), "the guest's own memory"),
        (
            _raced(HostThread((ChangeHostMemory(Place("a")),)), program=(Execute(GPA),)),
            "a vCPU may execute",
        ),
        (
            _raced(
                HostThread((HostWrite(Place("a"), 1),)),
                HostThread((ChangeHostMemory(Place("a"), 1, "unmap"),)),
            ),
            "'a' is written and taken away",
        ),
    ],
)
def test_a_race_that_is_not_safe_or_not_clear_is_refused(
    scenario: Scenario, complaint: str
) -> None:
    with pytest.raises(ScenarioError, match=complaint):
        validate(scenario)


def test_the_order_of_changes_to_a_guest_memfd_has_to_be_known() -> None:
    file = CreateGuestMemfd("f", 8 * PAGE_SIZE_BYTES)
    size, b = PAGE_SIZE_BYTES, Place("b")
    first = SetUserMemoryRegion2(1, GPA, size, b, GUEST_MEMFD, guest_memfd="f")
    second = SetUserMemoryRegion2(
        2, 2 * GPA, size, b, GUEST_MEMFD, guest_memfd="f", guest_memfd_offset=size
    )
    deletion = SetUserMemoryRegion(1)
    onto = msgspec.structs.replace(second, guest_memfd_offset=0)
    close = CloseGuestMemfd("f")
    clear: tuple[tuple[tuple[HostAction, ...], HostAction, HostAction], ...] = (
        ((), first, second),
        ((first,), deletion, close),
    )
    for before, one, other in clear:
        race = Race((HostThread((one,)), HostThread((other,))), (GuestThread((READ,)),))
        validate(Scenario("race", (file, *before, race), (A, B)))
    unclear: tuple[tuple[tuple[HostAction, ...], HostAction, HostAction], ...] = (
        ((), first, onto),
        ((), first, close),
        ((), first, PunchGuestMemfd("f", 0, PAGE_SIZE_BYTES)),
        ((first,), deletion, onto),
    )
    for before, one, other in unclear:
        race = Race((HostThread((one,)), HostThread((other,))), (GuestThread((READ,)),))
        with pytest.raises(ScenarioError, match=r"another thread changes (page f\+|file f)0x[01]"):
            validate(Scenario("race", (file, *before, race), (A, B)))


def test_no_thread_comes_to_where_another_one_takes_a_slot_away() -> None:
    other = msgspec.structs.replace(CREATE, slot=2)
    threads = (HostThread((DELETE,)), HostThread((other,)))
    race = Race(threads, (GuestThread((READ,)),))
    validate(Scenario("race", (race,), (A, B)))
    earlier = msgspec.structs.replace(race, hosts=(HostThread((CREATE,)),))
    with pytest.raises(ScenarioError, match="another thread changes gfn 0x100"):
        validate(Scenario("race", (CREATE, race), (A, B)))
    with pytest.raises(ScenarioError, match="another thread changes gfn 0x100"):
        validate(Scenario("race", (earlier, race), (A, B)))


def _less(outcome: Raced) -> Raced:
    return msgspec.structs.replace(outcome, changes=())


def _lazy(outcome: Raced) -> Raced:
    """Let the first vCPU go on finding what its first window found."""
    windows = (tuple(Window(w.begin, w.end, 0) for w in outcome.windows[0]), *outcome.windows[1:])
    return msgspec.structs.replace(outcome, windows=windows)


@pytest.mark.parametrize(
    ("name", "spoil"), [("racing-delete-and-create", _lazy), ("racing-drop", _less)]
)
def test_a_spoilt_race_differs(name: str, spoil: Callable[[Raced], Raced]) -> None:
    scenario = next(each for each in races.SCENARIOS if each.name == name)
    history = ideal_history(scenario)
    events = tuple(
        Event(event.origin, event.operation, spoil(event.outcome))
        if isinstance(event.outcome, Raced)
        else event
        for event in history.events
    )
    assert judge(history).status is Status.PASSED
    assert judge(msgspec.structs.replace(history, events=events)).status is Status.DIFFERS


OVER = ChangeHostMemory(Place("a"), 1, "map_file", Place("b", 2 * PAGE_SIZE_BYTES))
UNDER = ChangeHostMemory(Place("a"), 1, "map")
PAGE_B2 = Touched(identity(1, 2))


def _runs(mapping: str, before: bytes, after: bytes) -> tuple[HostChange, ...]:
    return tuple(HostChange(mapping, at, data) for at, data in changed_runs(before, after))


TO_FILE = _runs("a", page_bytes(0, 0), page_bytes(1, 2))
TO_ZEROS = _runs("a", page_bytes(0, 0), bytes(PAGE_SIZE_BYTES))


@pytest.mark.parametrize(
    ("host", "window", "found", "changes", "status"),
    [
        ((OVER,), (5, 15), PAGE_A, TO_FILE, Status.PASSED),
        ((OVER,), (5, 15), PAGE_B2, TO_FILE, Status.PASSED),
        ((OVER,), (21, 22), PAGE_B2, TO_FILE, Status.PASSED),
        ((OVER,), (21, 22), PAGE_A, TO_FILE, Status.DIFFERS),
        ((OVER,), (21, 22), Touched(0), TO_FILE, Status.DIFFERS),
        ((OVER,), (21, 22), PAGE_B2, (), Status.DIFFERS),  # The host still sees its old page.
        ((OVER, UNDER), (25, 35), PAGE_B2, TO_ZEROS, Status.PASSED),
        ((OVER, UNDER), (25, 35), Touched(0), TO_ZEROS, Status.PASSED),
        ((OVER, UNDER), (41, 42), Touched(0), TO_ZEROS, Status.PASSED),
        ((OVER, UNDER), (41, 42), PAGE_B2, TO_ZEROS, Status.DIFFERS),
        ((OVER, UNDER), (41, 42), PAGE_A, TO_ZEROS, Status.DIFFERS),
    ],
)
def test_a_page_shows_the_file_that_is_mapped_over_it_and_fresh_memory_after_that(
    host: tuple[HostAction, ...],
    window: tuple[int, int],
    found: Touched,
    changes: tuple[HostChange, ...],
    status: Status,
) -> None:
    calls = (Call(10, 20, Done()), Call(30, 40, Done()))[: len(host)]
    assert played(CREATE, host, READ, calls, ((*window, found),), changes).status is status


@pytest.mark.parametrize("window", [(21, 22), (15, 25)])
def test_what_a_guest_writes_to_a_file_over_memory_is_in_the_file(window: tuple[int, int]) -> None:
    wrote = (0x1000).to_bytes(4, "little")
    after = wrote + page_bytes(1, 2)[4:]
    in_file = _runs("b", page_bytes(1, 2), after)
    in_file = tuple(
        HostChange("b", each.offset + 2 * PAGE_SIZE_BYTES, each.data) for each in in_file
    )
    again = tuple(HostChange("again", each.offset, each.data) for each in in_file)
    both = (*_runs("a", page_bytes(0, 0), after), *in_file, *again)
    calls = (Call(10, 20, Done()),)
    windows = ((*window, WROTE),)
    assert played(CREATE, (OVER,), WRITE, calls, windows, both).status is Status.PASSED
    lost = played(CREATE, (OVER,), WRITE, calls, windows, TO_FILE)
    # A write during the call may have gone to the memory that is gone.
    assert lost.status is (Status.DIFFERS if window[0] > 20 else Status.PASSED)


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (private_fault(GPA, PAGE_SIZE_BYTES), Status.PASSED),
        (GONE, Status.PASSED),
        (Stopped("EFAULT"), Status.PASSED),
        (Touched(0), Status.DIFFERS),
        (PAGE_A, Status.DIFFERS),
    ],
)
def test_a_private_gpa_without_a_slot_is_a_fault_or_mmio(
    outcome: Touched | Stopped, status: Status
) -> None:
    bound = SetUserMemoryRegion2(
        1, GPA, PAGE_SIZE_BYTES, Place("a"), GUEST_MEMFD, guest_memfd="file"
    )
    race = Race((HostThread((DELETE,)),), (GuestThread((READ,)),))
    before = (
        CreateGuestMemfd("file", PAGE_SIZE_BYTES),
        bound,
        SetMemoryAttributes(GPA, PAGE_SIZE_BYTES, ATTRIBUTE_PRIVATE),
    )
    scenario = Scenario("race", (*before, race), (A,), survey="none", vm_type=1)
    history = ideal_history(scenario, EVERYTHING)
    raced = Raced(((Call(10, 20, Done()),),), ((Window(21, 22, 0),),), (((outcome,),),), ())
    events = tuple(
        Event(event.origin, race, raced) if isinstance(event.operation, Race) else event
        for event in history.events
    )
    assert judge(msgspec.structs.replace(history, events=events)).status is status


def test_merging_changes_nothing_that_a_guest_sees() -> None:
    merge = ChangeHostMemory(Place("a"), 4, "merge")
    for found, status in ((PAGE_A, Status.PASSED), (Touched(0), Status.DIFFERS)):
        calls = (Call(10, 20, Done()),)
        assert played(CREATE, (merge,), READ, calls, ((15, 30, found),)).status is status


@pytest.mark.parametrize(
    ("threads", "why"),
    [
        ([(ChangeHostMemory(Place("b"), 1, "map_file", Place("b")),)], "takes anonymous memory"),
        ([(OVER,), (ChangeHostMemory(Place("a"), 1, "drop"),)], "another thread changes page a"),
        (
            [(OVER,), (ChangeHostMemory(Place("b", 2 * PAGE_SIZE_BYTES), 2, "truncate"),)],
            "another thread cuts 'b'",
        ),
        ([(ChangeHostMemory(Place("a"), 1, "guard"), OVER)], "'map_file' has to wait|pages stay"),
    ],
)
def test_what_a_page_shows_is_one_thread_s(
    threads: list[tuple[ChangeHostMemory, ...]], why: str
) -> None:
    refused(threads, (A, B), why)


FORK, REAP, DROP = (ChangeHostMemory(Place("a"), 1, how) for how in ("fork", "reap", "drop"))


@pytest.mark.parametrize(
    ("threads", "why"),
    [
        ([(FORK,)], "a thread that forks a child ends it itself"),
        ([(FORK, REAP, FORK)], "a thread that forks a child ends it itself"),
        ([(FORK, FORK, REAP)], "'fork' and 'reap' take turns"),
        ([(FORK, REAP), (FORK, REAP)], "another thread changes child"),
        ([(FORK, REAP), (DROP,)], "a forked child looks at memory that 'drop' may take away"),
    ],
)
def test_children_of_a_race_are_ended_by_who_forked_them(
    threads: list[tuple[ChangeHostMemory, ...]], why: str
) -> None:
    refused(threads, (A, B), why)


def test_a_child_that_sees_what_a_guest_writes_differs() -> None:
    seen = HostChange("a", 0x200, b"new!")
    for found, status in (((), Status.PASSED), ((seen,), Status.DIFFERS)):
        calls = (Call(2, 3, Done()), Call(4, 5, Inspected(found)))
        assert played(CREATE, (FORK, REAP), READ, calls, ((6, 7, PAGE_A),)).status is status


def test_a_race_says_why_it_takes_no_private_copy_of_a_file() -> None:
    copy = Mapping("copy", 4, "private_file", of="b")
    slot = SetUserMemoryRegion(1, GPA, PAGE_SIZE_BYTES, Place("copy"))
    race = Race((HostThread((slot,)),), (GuestThread((READ,)),))
    with pytest.raises(ScenarioError, match="whether a page still shows its file"):
        validate(Scenario("race", (race,), (B, copy), survey="none"))


CUT, BESIDE = Mapping("f", 4, "memfd"), Mapping("g", 4, "memfd", of="f")


def _of_file(how: HostChangeKind, name: str = "f", page: int = 0) -> ChangeHostMemory:
    return ChangeHostMemory(Place(name, page * PAGE_SIZE_BYTES), 4 - page, how)


@pytest.mark.parametrize(
    ("threads", "why"),
    [
        ([(_of_file("truncate", page=2),), (_of_file("punch"),)], r"page f\+0x0|page f\+0x2"),
        ([(_of_file("truncate", page=2),), (_of_file("unmap", "g"),)], "another thread changes"),
        ([(_of_file("extend"),), (_of_file("forbid", "g", 3),)], "another thread changes page g"),
        ([(HostWrite(Place("g"), 1),), (_of_file("truncate", page=2),)], "is written and taken"),
    ],
)
def test_truncation_changes_every_mapping_of_a_file(
    threads: list[tuple[HostAction, ...]], why: str
) -> None:
    refused(threads, (CUT, BESIDE), why)


def test_what_a_race_truncates_may_be_raced_over_again() -> None:
    race = Race(
        (HostThread((_of_file("truncate", page=2), _of_file("extend", page=2))),),
        (GuestThread((READ,)),),
    )
    beside = Race((HostThread((_of_file("drop", "g"),)),), (GuestThread((READ,)),))
    operations = (_of_file("truncate", page=1), race, beside)
    validate(Scenario("race", operations, (CUT, BESIDE), survey="none", needs=("sync_mmu",)))


AWAY, BACK = (ChangeHostMemory(Place("a"), 1, how) for how in ("move_away", "move_back"))


@pytest.mark.parametrize(
    ("window", "found", "status"),
    [
        ((5, 15), PAGE_A, Status.PASSED),
        ((5, 15), Touched(0), Status.PASSED),  # Fresh memory, until its address is reserved.
        ((15, 16), Touched(0), Status.PASSED),
        ((21, 22), Touched(0), Status.DIFFERS),
        ((21, 22), PAGE_A, Status.DIFFERS),
        ((21, 22), GONE, Status.PASSED),
        ((25, 35), GONE, Status.PASSED),
        ((25, 35), PAGE_A, Status.PASSED),
        ((25, 35), Touched(0), Status.DIFFERS),
        ((41, 42), PAGE_A, Status.PASSED),
        ((41, 42), Touched(0), Status.DIFFERS),
        ((41, 42), GONE, Status.DIFFERS),
    ],
)
def test_memory_that_is_moved_away_and_back(
    window: tuple[int, int], found: Touched, status: Status
) -> None:
    calls = (Call(10, 20, Done()), Call(30, 40, Done()))
    verdict = played(CREATE, (AWAY, BACK), READ, calls, ((*window, found),))
    assert verdict.status is status


@pytest.mark.parametrize(
    ("window", "is_kept", "status"),
    [
        ((5, 15), True, Status.PASSED),
        ((5, 15), False, Status.PASSED),  # It went to fresh memory.
        ((5, 9), False, Status.DIFFERS),
        ((25, 35), False, Status.DIFFERS),
        ((25, 35), True, Status.PASSED),
    ],
)
def test_a_write_may_be_lost_while_its_page_is_moved_away(
    window: tuple[int, int], is_kept: bool, status: Status
) -> None:
    calls = (Call(10, 20, Done()), Call(30, 40, Done()))
    kept = (HostChange("a", 0, (0x1000).to_bytes(4, "little")),)
    changes = kept if is_kept else ()
    verdict = played(CREATE, (AWAY, BACK), WRITE, calls, ((*window, WROTE),), changes)
    assert verdict.status is status


LATER, SETTLE = (ChangeHostMemory(Place("a"), 1, how) for how in ("fetch_later", "settle"))


@pytest.mark.parametrize(
    ("window", "found", "status"),
    [
        ((5, 15), PAGE_A, Status.PASSED),
        ((5, 15), Touched(0), Status.DIFFERS),
        ((21, 22), PAGE_A, Status.PASSED),
        ((21, 22), GONE, Status.DIFFERS),
        ((25, 35), Touched(0), Status.DIFFERS),
    ],
)
def test_memory_that_is_fetched_later_is_what_it_was(
    window: tuple[int, int], found: Touched, status: Status
) -> None:
    calls = (Call(10, 20, Done()), Call(30, 40, Inspected(())))
    verdict = played(CREATE, (LATER, SETTLE), READ, calls, ((*window, found),))
    assert verdict.status is status


@pytest.mark.parametrize(
    ("window", "status"),
    [((5, 15), Status.PASSED), ((5, 9), Status.DIFFERS), ((21, 22), Status.DIFFERS)],
)
def test_a_write_may_be_lost_while_its_page_is_copied_and_dropped(
    window: tuple[int, int], status: Status
) -> None:
    calls = (Call(10, 20, Done()), Call(30, 40, Inspected(())))
    verdict = played(CREATE, (LATER, SETTLE), WRITE, calls, ((*window, WROTE),))
    assert verdict.status is status


GUARD = ChangeHostMemory(Place("a"), 1, "guard")


@pytest.mark.parametrize(
    ("window", "missed", "status"),
    [
        ((5, 15), (), Status.PASSED),
        ((25, 35), (), Status.PASSED),
        ((25, 35), (HostChange("a", 0, b"\0\0\0\0"),), Status.DIFFERS),
    ],
)
def test_a_write_to_a_guarded_page_is_held_up_and_kept(
    window: tuple[int, int], missed: tuple[HostChange, ...], status: Status
) -> None:
    calls = (Call(10, 20, Done()), Call(30, 40, Inspected(missed)))
    kept = (HostChange("a", 0, (0x1000).to_bytes(4, "little")),)
    verdict = played(CREATE, (GUARD, SETTLE), WRITE, calls, ((*window, WROTE),), kept)
    assert verdict.status is status, verdict
    lost = played(CREATE, (GUARD, SETTLE), WRITE, calls, ((*window, WROTE),))
    assert lost.status is Status.DIFFERS


FORBID = ChangeHostMemory(Place("a", PAGE_SIZE_BYTES), 1, "forbid")


@pytest.mark.parametrize(
    ("threads", "why"),
    [
        ([(AWAY,)], "a thread ends each 'move_away' by 'move_back'"),
        ([(AWAY, BACK, AWAY)], "a thread ends each 'move_away' by 'move_back'"),
        ([(AWAY, BACK, FORBID)], "'forbid' takes a mapping whose pages stay"),
        ([(AWAY, BACK), (FORBID,)], "another thread changes page a"),
        ([(HostWrite(Place("a"), 1),), (AWAY, BACK)], "is written and taken away"),
        ([(LATER,)], "a thread ends each 'fetch_later' by 'settle'"),
        ([(LATER, SETTLE), (DROP,)], "another thread changes page a"),
        ([(HostWrite(Place("a"), 1),), (LATER, SETTLE)], "is written and taken away"),
        ([(GUARD,)], "a thread ends each 'guard' by 'settle'"),
        ([(GUARD, DROP, SETTLE)], "'drop' has to wait for 'settle'"),
        ([(GUARD, SETTLE), (DROP,)], "another thread changes page a"),
        ([(FORK, REAP), (LATER, SETTLE)], "looks at memory that 'fetch_later' and 'settle' may"),
    ],
)
def test_what_is_moved_in_a_race_comes_back(
    threads: list[tuple[HostAction, ...]], why: str
) -> None:
    race = Race(tuple(map(HostThread, threads)), (GuestThread((READ,)),))
    with pytest.raises(ScenarioError, match=why):
        validate(Scenario("race", (race,), (A, B), survey="none", needs=("sync_mmu",)))


def test_no_vcpu_executes_memory_that_is_moved() -> None:
    race = Race((HostThread((AWAY, BACK)),), (GuestThread((Execute(GPA),)),))
    with pytest.raises(ScenarioError, match="content is lost that a vCPU may execute"):
        validate(Scenario("race", (race,), (A, B), survey="none", needs=("sync_mmu",)))
