"""A known issue stands for one difference, in some scenarios, of one backend: for nothing else."""

from dataclasses import replace
from functools import partial

import msgspec
import pytest

from tests.ideal import FEATURES, ideal_history
from vmm.catalogue import catalogue
from vmm.catalogue._build import at
from vmm.fuzz.generate.mutate import can_be_mutated
from vmm.host.health import Problem
from vmm.report.terminal import scenario_report
from vmm.scenario.features import Features
from vmm.scenario.history import (
    Call,
    Closed,
    Done,
    End,
    Event,
    Header,
    History,
    Met,
    Mmio,
    Raced,
    Refused,
    RingPages,
    RingsReset,
    Stopped,
    Touched,
    Window,
)
from vmm.scenario.operations import (
    ATTRIBUTE_PRIVATE,
    GUEST_MEMFD,
    LOG_DIRTY_PAGES,
    READONLY,
    AnyOperation,
    ChangeHostMemory,
    CloseVm,
    CreateGuestMemfd,
    GuestThread,
    HarvestDirtyRing,
    HostAction,
    HostThread,
    Instruction,
    KvmclockCtrl,
    Mapping,
    MappingKind,
    Place,
    PreFaultMemory,
    Race,
    Scenario,
    SetMemoryAttributes,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Start,
    Touch,
)
from vmm.scenario.validate import validate
from vmm.verdict.ideal import EVERYTHING
from vmm.verdict.judge import Status
from vmm.verdict.known.issue import Known
from vmm.verdict.known.issues import KNOWN
from vmm.verdict.known.page_tables import is_written_across_entries
from vmm.verdict.known.pfnmap import may_read_forbidden_frames
from vmm.verdict.known.weighing import issues_met
from vmm.verdict.result import Checked, judged
from vmm.verdict.slotsbefore import Slots

_PLAIN = SetUserMemoryRegion(1, 0x100000, 0x1000, at("a"))
_BOUND = SetUserMemoryRegion2(1, 0x100000, 0x1000, at("a"), GUEST_MEMFD, guest_memfd="file0")
_TO_PRIVATE = SetMemoryAttributes(0x100000, 0x1000, ATTRIBUTE_PRIVATE)
_TO_SHARED = SetMemoryAttributes(0x100000, 0x1000)
_IN_SMM = SetUserMemoryRegion(1 << 16 | 1, 0x300000, 0x1000, at("a"))
ISSUE = KNOWN[0].issue
HOST = {"vendor": ISSUE.vendor}
WARNING = Problem(
    "WARNING: CPU: 0 PID: 7 at virt/kvm/dirty_ring.c:268 kvm_dirty_ring_push+0x1/0x2 [kvm]",
    (
        "------------[ cut here ]------------",
        "WARNING: CPU: 0 PID: 7 at virt/kvm/dirty_ring.c:268 kvm_dirty_ring_push+0x1/0x2 [kvm]",
        "---[ end trace 0000000000000000 ]---",
    ),
)
OTHER = Problem("BUG: unable to handle page fault", ("BUG: unable to handle page fault",))
COUNTED = (
    Problem("the kernel is newly tainted (W: the kernel issued a warning)"),
    Problem("warn_count went from 0 to 1"),
)


MEETING = {
    "pvm-dirty-ring-overrun": {"ring-overrun-in-one-run", "ring-overrun-by-one-instruction"},
    "emulated-dirty-ring-overrun": {"ring-overrun-in-one-run", "ring-overrun-by-one-instruction"},
    "gmem-bind-signed-overflow": {
        "memfd-refuse-an-end-beyond-2-to-the-63",
        "private-vm-memfd-refuse-an-end-beyond-2-to-the-63",
    },
    "internal-slot-refused-mapping-left": {
        "tss-onto-a-slot",
        "identity-map-onto-a-slot",
        "identity-map-and-tss-side-by-side",
        "apic-page-onto-a-slot",
    },
    "initially-set-huge-page-border": {
        "clear-into-a-huge-page-thp-initially-set",
        "clear-into-a-huge-page-hugetlb-initially-set",
    },
    "emulated-descriptor-table-outside-memory": {
        "sgdt-in-a-hole",
        "sidt-on-a-readonly-slot",
        "fxsave-in-a-hole",
    },
    "emulated-pusha-exits-once": {
        "pusha-in-a-hole",
        "pusha-on-a-readonly-slot",
        "pusha-from-a-slot-into-a-hole",
    },
    "emulated-interrupt-exits-once": {
        "interrupt-onto-a-stack-in-a-hole",
        "interrupt-onto-a-readonly-stack",
    },
    "emulated-far-call-exits-once": {
        "return-address-of-a-far-call-in-a-hole",
        "return-address-of-a-far-call-on-a-readonly-slot",
    },
    "emulated-interrupt-table-outside-memory": {"interrupt-through-a-table-in-a-hole"},
    "interrupt-through-cached-mmio": {
        "interrupt-onto-a-stack-in-a-hole",
        "interrupt-outside-memory-in-64-bits",
        "interrupt-tables-that-are-readonly-in-64-bits",
        "interrupt-tables-that-are-readonly-in-64-bits-without-quirk",
        "interrupt-tables-that-change-in-64-bits",
        "interrupt-tables-that-change-in-64-bits-without-quirk",
    },
    "port-is-read-again": {"ports-downward-in-a-hole"},
    "emulated-popa-begins-again": {"popa-in-a-hole", "popa-from-a-slot-into-a-hole"},
    "emulated-enter-by-stack-size": {"enter-of-16-bits-in-a-hole", "enter-of-16-bits-in-memory"},
    "io-bus-out-of-order": {"devices-eventfd-of-any-length-after-a-range"},
    "coalesced-ring-full-at-half": {
        "devices-coalesced-until-the-ring-is-full",
        "bystanders-of-devices",
    },
    "private-memory-after-cached-mmio": {
        "private-after-cached-mmio",
        "racing-attributes-and-slots",
    },
    "private-fault-after-cached-mmio": {"private-where-mmio-was", "private-after-cached-mmio"},
    "table-written-across-entries": {
        "start-and-map-two-megabytes-anew-by-a-write-across-entries",
    },
}
"""The curated scenarios that do what it takes, where few do."""


def curated(name: str, features: Features = FEATURES) -> Scenario:
    return next(each for each in catalogue(features) if each.name == name)


def renamed(history: History) -> History:
    """Return a history as a stranger may have recorded it: under a name that says nothing."""
    header = history.header
    scenario = msgspec.structs.replace(header.scenario, name="mine")
    return msgspec.structs.replace(
        history, header=msgspec.structs.replace(header, scenario=scenario)
    )


def _harvests(scenario: Scenario) -> bool:
    return any(isinstance(op, HarvestDirtyRing) for op in scenario.operations)


def ideal(host: dict[str, str] = HOST) -> History:
    history = ideal_history(curated("ring-overrun-in-one-run"))
    return msgspec.structs.replace(
        history, header=msgspec.structs.replace(history.header, host=host)
    )


def broken(history: History, kind: type[RingPages] | type[RingsReset]) -> History:
    """Return a history in which the first outcome of a kind is wrong."""
    events = list(history.events)
    wrong = RingPages() if kind is RingPages else RingsReset(1, 2)
    index = next(
        i
        for i, event in enumerate(events)
        if isinstance(event.outcome, kind) and event.outcome != wrong
    )
    events[index] = Event(events[index].origin, events[index].operation, wrong)
    return msgspec.structs.replace(history, events=tuple(events))


def with_problems(checked: Checked, *problems: Problem) -> Checked:
    return replace(checked, problems=problems)


@pytest.mark.parametrize(
    "known", [each for each in KNOWN if each.kinds], ids=lambda known: known.issue.name
)
def test_an_issue_is_met_by_the_scenarios_that_do_what_it_takes(known: Known) -> None:
    meeting = [each for each in catalogue(EVERYTHING) if known.meets(each)]
    met = {each.name for each in meeting}
    assert met == MEETING.get(known.issue.name, met)
    assert not any(known.kinds.isdisjoint(map(type, each.operations)) for each in meeting)
    assert 0 < len(met) < 24


def test_slots_are_followed_only_for_an_operation_that_an_issue_is_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def followed(*_: object) -> bool:
        raise AssertionError

    monkeypatch.setattr(Slots, "change", followed)
    scenario = curated("generation-comes-round")
    assert not any(known.meets(scenario) for known in KNOWN if known.kinds)


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.issue.name)
def test_an_issue_says_what_breaks_or_that_a_call_hangs(known: Known) -> None:
    assert bool(known.issue.rules) is not known.issue.hangs
    assert known.issue.what
    assert known.issue.evidence


def test_what_a_vcpu_met_as_mmio_in_smm_it_may_take_for_that_outside() -> None:
    hole, again = Touch(0x300000), Touch(0x300FFC)
    slot = SetUserMemoryRegion(1, 0x300000, 0x1000, at("a"))
    in_smm = Touch(0x300FFC, "write", as_id=1)

    def wrong_at_the_end(*operations: AnyOperation) -> Status:
        scenario = Scenario(
            "made-up", operations, (Mapping("a", 1),), needs=("smm",), survey="none"
        )
        history = ideal_history(scenario, EVERYTHING)
        last = max(n for n, event in enumerate(history.events) if event.operation is again)
        missed = Touched(0xFFFF_FFFF, (Mmio(again.gpa, False, b"\xff" * 4),))
        event = msgspec.structs.replace(history.events[last], outcome=missed)
        events = (*history.events[:last], event)
        return judged(msgspec.structs.replace(history, events=events)).verdict.status

    assert wrong_at_the_end(hole, slot, in_smm, again) is Status.KNOWN
    assert wrong_at_the_end(hole, in_smm, slot, again) is Status.DIFFERS
    assert wrong_at_the_end(slot, in_smm, again) is Status.DIFFERS
    assert wrong_at_the_end(hole, slot, again) is Status.DIFFERS


def _meets_and_shows(known: Known, *operations: AnyOperation) -> bool:
    """Whether an issue may be met by a guest with SMM, and shows at the last operation."""
    mappings = (Mapping("a", 1),)
    scenario = Scenario("made-up", operations, mappings, needs=("smm",), survey="none")
    shows = known.shows_at(scenario, len(operations) - 1, operations[-1])
    return known.meets(scenario) and shows


def test_what_a_vcpu_met_as_mmio_in_the_other_space_counts_until_slots_change() -> None:
    known = next(each for each in KNOWN if each.issue.name == "mmio-cached-in-the-other-space")
    slot = SetUserMemoryRegion(1, 0x300000, 0x1000, at("a"))
    in_smm, aside = Touch(0x300FFC, as_id=1), Touch(0x400000, as_id=1)
    other = SetUserMemoryRegion(2, 0x500000, 0x1000, at("a"))
    read, write = Touch(0x300000), Touch(0x300000, "write")
    emulated = Instruction("lock-bts", 0x300000, 4)

    meets = partial(_meets_and_shows, known)

    assert meets(slot, in_smm, write)
    assert meets(slot, in_smm, emulated)
    assert meets(read, slot, in_smm, read)
    assert not meets(slot, in_smm, read)
    assert not meets(slot, in_smm, other, write)
    assert not meets(slot, in_smm, msgspec.structs.replace(slot, flags=LOG_DIRTY_PAGES), write)
    assert meets(slot, in_smm, msgspec.structs.replace(slot, flags=READONLY), write)  # Refused.
    assert not meets(slot, in_smm, aside, write)
    assert not meets(slot, write)


@pytest.mark.parametrize(
    ("before", "wrong"),
    [
        ((Touch(0x300000, as_id=1), ChangeHostMemory(at("a")), _IN_SMM), Touch(0x300100, as_id=1)),
        ((_IN_SMM, Touch(0x300000)), Touch(0x300FFE, "write", value=0x1234, as_id=1)),
    ],
)
def test_what_is_missed_in_smm_is_known_whichever_rule_decides(
    before: tuple[AnyOperation, ...], wrong: Touch
) -> None:
    """Memory has changed since the slot was made, or the access goes beyond its end."""
    operations = (*before, wrong)
    scenario = Scenario("made-up", operations, (Mapping("a", 1),), needs=("smm",), survey="none")
    history = ideal_history(scenario, EVERYTHING)
    last = max(n for n, event in enumerate(history.events) if event.operation is wrong)
    is_write = wrong.access == "write"
    data = wrong.value.to_bytes(4, "little") if is_write else b"\xff" * 4
    missed = msgspec.structs.replace(
        history.events[last].outcome,
        value=wrong.value if is_write else 0xFFFF_FFFF,
        mmio=(Mmio(wrong.gpa, is_write, data),),
    )
    event = msgspec.structs.replace(history.events[last], outcome=missed)
    events = (*history.events[:last], event)
    assert judged(msgspec.structs.replace(history, events=events)).verdict.status is Status.KNOWN


def test_an_instruction_in_smm_meets_and_shows_what_a_vcpu_remembers_as_mmio() -> None:
    known = next(each for each in KNOWN if each.issue.name == "smm-mmio-cache-generation")
    outside = Instruction("bts-register", 0x300000, 4)
    inside = Instruction("bts-register", 0x300000, 4, as_id=1)

    meets = partial(_meets_and_shows, known)

    assert meets(inside, _IN_SMM, inside)
    assert meets(Touch(0x300100, as_id=1), _IN_SMM, inside)
    assert meets(inside, _IN_SMM, Touch(0x300100, as_id=1))
    assert meets(inside, _IN_SMM, Touch(0x2FFFFE, as_id=1))
    assert not meets(_IN_SMM, inside)
    assert not meets(inside, _IN_SMM, outside)


@pytest.mark.parametrize("flags", [GUEST_MEMFD, 0])
def test_a_slot_with_a_guest_memfd_stays_where_it_is(flags: int) -> None:
    known = next(each for each in KNOWN if each.issue.name == "private-fault-after-cached-mmio")
    bound = SetUserMemoryRegion2(1, 0x100000, 0x1000, at("a"), GUEST_MEMFD, guest_memfd="m")
    refused = msgspec.structs.replace(bound, guest_phys_addr=0x300000, flags=flags)
    moved = msgspec.structs.replace(refused, slot=2)
    private = SetMemoryAttributes(0x300000, 0x1000, 8)

    def meets(*operations: AnyOperation) -> bool:
        mappings = (Mapping("a", 1), Mapping("m", 1, "guest_memfd"))
        scenario = Scenario("made-up", operations, mappings, survey="none", vm_type=1)
        return known.meets(scenario)

    touch = Touch(0x300000)
    assert meets(bound, refused, touch, private, touch)
    deleted = SetUserMemoryRegion(1)
    assert not meets(bound, moved, touch, private, touch)
    assert not meets(bound, deleted, refused, touch, private, touch)


def test_a_root_that_was_missed_stays_so_until_a_slot_moves() -> None:
    known = next(each for each in KNOWN if each.issue.name == "pvm-root-is-not-found-again")
    start, slot = Start(0, tables=0x111000), SetUserMemoryRegion(1, 0x111000, 0x8000, at("a"))
    logged, moved = (
        msgspec.structs.replace(slot, flags=1),
        msgspec.structs.replace(slot, guest_phys_addr=0x110000),
    )
    assert known.meets(Scenario("same-values", (start, slot, slot, start)))
    assert known.meets(Scenario("flags", (start, slot, logged, start)))
    assert not known.meets(Scenario("moved", (start, slot, moved, start)))


def test_a_root_that_was_missed_stays_so_whatever_becomes_of_host_memory() -> None:
    known = next(each for each in KNOWN if each.issue.name == "pvm-root-is-not-found-again")
    scenario = curated("start-after-tables-were-missed-without-quirk")
    assert known.meets(scenario)
    missed = max(i for i, op in enumerate(scenario.operations) if isinstance(op, Start))

    def with_one_more(op: AnyOperation) -> Scenario:
        operations = (*scenario.operations[:missed], op, *scenario.operations[missed:])
        return msgspec.structs.replace(scenario, operations=operations)

    assert known.meets(with_one_more(ChangeHostMemory(at("a"), 1, "drop")))
    assert not known.meets(with_one_more(Touch(0x100000)))
    tables = next(
        op
        for op in scenario.operations
        if isinstance(op, SetUserMemoryRegion) and op.guest_phys_addr == 0x100000
    )
    other = msgspec.structs.replace(
        tables, slot=9, guest_phys_addr=0x900000, memory_size=tables.memory_size + 0x1000
    )
    refused = msgspec.structs.replace(tables, slot=9)
    operations = (other, refused, *scenario.operations)
    assert known.meets(msgspec.structs.replace(scenario, operations=operations)), "it has not moved"
    own = scenario.operations
    for gpa in (0xFFFF_FFFF_FFFF_F000, 0x900001, 1 << 51):  # Some kernels accept the last one.
        beyond = msgspec.structs.replace(
            tables, guest_phys_addr=gpa, memory_size=tables.memory_size + 0x1000
        )
        operations = (*own[: missed - 1], beyond, *own[missed - 1 :])
        assert known.meets(msgspec.structs.replace(scenario, operations=operations)), hex(gpa)
    last = scenario.operations[missed]
    assert known.shows_at(scenario, missed, last)
    assert known.shows_at(with_one_more(last), missed + 1, last), "once more is too late, too"


def test_a_name_excuses_nothing() -> None:
    """A stranger's scenario that is only called like one that meets an issue."""
    scenario = curated("ring-names-what-was-written")
    history = ideal_history(msgspec.structs.replace(scenario, name="ring-overrun-in-one-run"))
    history = msgspec.structs.replace(
        history, header=msgspec.structs.replace(history.header, host=HOST)
    )
    assert judged(broken(history, RingPages)).verdict.status is Status.DIFFERS


def test_another_name_is_excused_all_the_same() -> None:
    assert judged(renamed(broken(ideal(), RingPages))).verdict.status is Status.KNOWN


def test_a_host_that_does_not_say_what_does_the_work_may_have_it() -> None:
    host = {"vendor": "unknown"}
    assert judged(broken(ideal(host), RingPages)).verdict.status is Status.KNOWN
    assert judged(ideal(host)).verdict.status is Status.PASSED


def test_a_call_that_hangs_is_known_where_it_is_known_to_hang() -> None:
    scenario = curated("pre-fault-then-delete", EVERYTHING)
    whole = ideal_history(scenario, EVERYTHING)
    ahead = [n for n, e in enumerate(whole.events) if isinstance(e.operation, PreFaultMemory)]
    end = End("hung: no end within 5 s; stack")

    def hung_at(index: int) -> Status:
        cut = msgspec.structs.replace(whole, events=whole.events[:index], end=end)
        return judged(cut).verdict.status

    assert hung_at(ahead[1]) is Status.KNOWN
    assert hung_at(ahead[0]) is Status.INCONCLUSIVE
    assert hung_at(ahead[1] - 1) is Status.INCONCLUSIVE
    crashed = msgspec.structs.replace(
        whole, events=whole.events[: ahead[1]], end=End("died: signal 11")
    )
    assert judged(crashed).verdict.status is Status.INCONCLUSIVE


def test_a_race_hangs_where_it_maps_ahead_while_slots_change() -> None:
    known = next(each for each in KNOWN if each.issue.name == "pre-fault-with-an-obsolete-root")
    slot = SetUserMemoryRegion(1, memory_size=0x1000, guest_phys_addr=0x8000)
    changes = HostThread((slot, msgspec.structs.replace(slot, memory_size=0)))
    ahead = GuestThread((Touch(0x8000), PreFaultMemory(0x8000, 0x1000)))
    alone = GuestThread((Touch(0x8000),))

    def meets(*operations: AnyOperation) -> bool:
        scenario, last = Scenario("made-up", operations), len(operations) - 1
        return known.meets(scenario) and known.shows_at(scenario, last, operations[last])

    assert meets(Race((changes,), (ahead,)))
    assert not meets(Race((changes,), (alone,)))
    assert not meets(Race((), (ahead,)))
    assert meets(Touch(0x8000), slot, Race((), (ahead,)))
    assert meets(Race((changes,), (alone,)), slot, PreFaultMemory(0x8000, 0x1000))


@pytest.mark.parametrize(
    ("calls", "last", "status"),
    [
        ((_TO_PRIVATE, _BOUND), Stopped("EFAULT"), Status.KNOWN),
        ((_TO_PRIVATE, _BOUND), Touched(0), Status.PASSED),
        ((_TO_PRIVATE, _BOUND), Touched(5), Status.DIFFERS),
        ((_TO_SHARED, _BOUND), Stopped("EFAULT"), Status.DIFFERS),
        ((_TO_PRIVATE, _PLAIN), Touched(0), Status.DIFFERS),
    ],
)
def test_a_race_finds_no_private_memory_where_a_page_was_met_as_mmio(
    calls: tuple[HostAction, ...], last: Met, status: Status
) -> None:
    read = Touch(_PLAIN.guest_phys_addr)
    race = Race((HostThread(calls),), (GuestThread((read,)),))
    scenario = Scenario(
        "mine",
        (CreateGuestMemfd("file0", 0x1000), race),
        (Mapping("a", 1),),
        needs=("sw_protected",),
        survey="none",
        vm_type=1,
    )
    validate(scenario)
    hole = Touched(0xFFFFFFFF, (Mmio(read.gpa, False, b"\xff" * 4),))
    raced = Raced(
        (tuple(Call(20 * n + 10, 20 * n + 20, Done()) for n in range(len(calls))),),
        ((Window(1, 2, 0), Window(61, 62, 1)),),
        (((hole,), (last,)),),
    )
    whole = ideal_history(scenario, EVERYTHING)
    events = tuple(
        Event(each.origin, race, raced) if isinstance(each.operation, Race) else each
        for each in whole.events
    )
    assert judged(msgspec.structs.replace(whole, events=events)).verdict.status is status


def test_a_write_taken_for_a_read_is_known_with_ept_alone() -> None:
    scenario = curated("unmapped-hva-readonly")
    whole = ideal_history(scenario)
    index = next(
        n
        for n, event in enumerate(whole.events)
        if event.origin == 0
        and isinstance(event.operation, Touch)
        and (event.operation.access, event.operation.gpa) == ("write", 0x100020)
    )
    events = list(whole.events)
    events[index] = msgspec.structs.replace(events[index], outcome=Stopped("EFAULT"))
    end = msgspec.structs.replace(whole, events=tuple(events[: index + 1]))

    def on(history: History, vendor: str, tdp: str, emulates: bool = False) -> Status:
        host = {**whole.header.host, "vendor": vendor, "tdp": tdp}
        features = msgspec.structs.replace(whole.header.features, emulates_real_mode=emulates)
        header = msgspec.structs.replace(whole.header, host=host, features=features)
        return judged(msgspec.structs.replace(history, header=header)).verdict.status

    ept, shadow = "on (kvm_intel.ept=Y)", "off (kvm_intel.ept=N)"
    assert on(end, "kvm_intel", ept, emulates=True) is Status.DIFFERS
    assert on(whole, "kvm_intel", ept, emulates=True) is Status.PASSED
    assert on(end, "kvm_intel", ept) is on(end, "kvm_intel", "unknown") is Status.KNOWN
    assert on(end, "kvm_intel", shadow) is Status.DIFFERS
    assert on(end, "kvm_amd", "on (kvm_amd.npt=Y)") is Status.DIFFERS
    assert on(whole, "kvm_intel", ept) is Status.PASSES_NOW
    assert on(whole, "kvm_intel", shadow) is Status.PASSED


def test_a_readonly_slot_with_all_its_memory_does_not_meet_it() -> None:
    met = {
        scenario.name
        for scenario in catalogue(EVERYTHING)
        for issue in issues_met(Header(scenario, EVERYTHING, {"vendor": "kvm_intel", "tdp": "on"}))
        if issue.name == "ept-write-through-cached-mmio"
    }
    assert met == {"unmapped-zero-va-with-each-flag", "unmapped-hva-readonly"}


def test_an_interrupt_hangs_only_where_an_earlier_one_met_no_memory() -> None:
    scenario = curated("interrupt-onto-a-stack-in-a-hole")
    whole = ideal_history(scenario)
    starts = [n for n, e in enumerate(whole.events) if isinstance(e.operation, Start)]

    def endless_at(index: int) -> Status:
        end = End("endless: the guest has no exit within 5 s")
        return judged(
            msgspec.structs.replace(whole, events=whole.events[:index], end=end)
        ).verdict.status

    assert [endless_at(index) for index in starts] == [Status.INCONCLUSIVE, Status.KNOWN]


def test_mmio_remembered_from_smm_is_known_and_wrong_memory_is_not() -> None:
    scenario = curated("spaces-switched-between-changes", EVERYTHING)
    whole = ideal_history(scenario, EVERYTHING)
    index = next(
        n
        for n, event in enumerate(whole.events)
        if n > 40
        and isinstance(event.operation, Touch)
        and event.operation.as_id == 1
        and isinstance(event.outcome, Touched)
        and not event.outcome.mmio
    )
    event = whole.events[index]
    assert isinstance(event.operation, Touch)
    mmio = Touched(0xFFFFFFFF, (Mmio(event.operation.gpa, False, b"\xff" * 4),))

    def with_outcome(outcome: Touched) -> Status:
        wrong = msgspec.structs.replace(event, outcome=outcome)
        events = (*whole.events[:index], wrong, *whole.events[index + 1 :])
        return judged(msgspec.structs.replace(whole, events=events)).verdict.status

    assert with_outcome(mmio) is Status.KNOWN
    assert with_outcome(Touched(0x1234)) is Status.DIFFERS


def test_expected_failure_is_shown_as_known_and_exits_with_0() -> None:
    checked = judged(broken(ideal(), RingPages))
    assert checked.verdict.status is Status.KNOWN
    assert checked.verdict.status.exit_status == 0
    assert not checked.failed
    text = "\n".join(line.plain for line in scenario_report(checked, "vmm check x", None))
    assert ISSUE.what in text
    assert ISSUE.evidence in text
    assert "observed" in text


def test_expected_failure_that_passes_is_said() -> None:
    checked = judged(ideal())
    assert checked.verdict.status is Status.PASSES_NOW
    assert checked.verdict.status.exit_status == 0
    (line,) = (x.plain for x in scenario_report(checked, "again", None) if ISSUE.name in x.plain)
    assert line.startswith("PASSES NOW ")


def test_another_rule_is_no_known_issue() -> None:
    assert judged(broken(ideal(), RingsReset)).verdict.status is Status.DIFFERS


@pytest.mark.parametrize(
    "host", [{}, {"vendor": "kvm_amd"}, {"vendor": "kvm_intel", "tdp": "on (ept=Y)"}]
)
def test_another_backend_has_no_excuse(host: dict[str, str]) -> None:
    assert judged(broken(ideal(host), RingPages)).verdict.status is Status.DIFFERS
    assert judged(ideal(host)).verdict.status is Status.PASSED


@pytest.mark.parametrize("problems", [(WARNING, *COUNTED), (WARNING,), COUNTED, ()])
def test_its_own_warning_is_explained(problems: tuple[Problem, ...]) -> None:
    checked = with_problems(judged(broken(ideal(), RingPages)), *problems)
    assert checked.unexplained == ()
    assert not checked.failed


@pytest.mark.parametrize(
    "problems",
    [
        (OTHER,),
        (WARNING, OTHER, *COUNTED),
        (Problem("oops_count went from 0 to 1"),),
        (Problem("the kernel is newly tainted (W: the kernel issued a warning; D: it died)"),),
    ],
)
def test_any_other_complaint_is_a_failure(problems: tuple[Problem, ...]) -> None:
    assert with_problems(judged(broken(ideal(), RingPages)), *problems).failed


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("start-and-map-two-megabytes-anew-by-a-write-across-entries", Status.KNOWN),
        ("start-and-map-two-megabytes-anew", Status.DIFFERS),
    ],
)
def test_only_a_write_across_two_entries_may_leave_the_second(name: str, status: Status) -> None:
    history = ideal_history(curated(name))
    events = list(history.events)
    index = [n for n, e in enumerate(events) if isinstance(e.operation, Start)][1]
    was = events[index - 1].outcome
    assert was != events[index].outcome
    events[index] = Event(events[index].origin, events[index].operation, was)
    broken = msgspec.structs.replace(history, events=tuple(events))
    assert judged(broken).verdict.status is status


def test_fuzzer_mutates_no_scenario_that_could_fail_by_it() -> None:
    rings = [each for each in catalogue(FEATURES) if "ring" in each.tags]
    assert rings
    assert not any(can_be_mutated(each, FEATURES) for each in rings if _harvests(each))


def test_warning_without_the_difference_is_a_failure() -> None:
    assert with_problems(judged(ideal()), WARNING, *COUNTED).failed


@pytest.mark.parametrize("name", sorted(n for names in MEETING.values() for n in names))
def test_mistake_in_kvm_itself_needs_no_remark_where_it_is_mended(name: str) -> None:
    scenario = curated(name, EVERYTHING)
    assert issues_met(Header(scenario, EVERYTHING, {"vendor": "kvm_pvm"}))
    assert judged(ideal_history(scenario, EVERYTHING)).verdict.status is Status.PASSED


@pytest.mark.parametrize(
    ("memslots", "internal", "left", "status"),
    [
        ("array", "internal_identity", True, Status.KNOWN),
        ("array", "internal_apic", True, Status.KNOWN),
        ("array", "", True, Status.DIFFERS),
        ("tree", "internal_identity", True, Status.DIFFERS),
        ("array", "internal_identity", False, Status.PASSED),
    ],
)
def test_memory_of_internal_slots_is_left_only_where_slots_are_in_an_array(
    memslots: str, internal: str, left: bool, status: Status
) -> None:
    whole = ideal_history(curated("move-up"))
    own = {f"internal_{what}": False for what in ("tss", "identity", "apic")}
    own |= {internal: True} if internal else {}
    features = msgspec.structs.replace(whole.header.features, **own)
    host = {**whole.header.host, "vendor": "kvm_intel", "memslots": memslots}
    header = msgspec.structs.replace(whole.header, features=features, host=host)
    end = next(n for n, e in enumerate(whole.events) if isinstance(e.operation, CloseVm))
    events = list(whole.events)
    if left:
        lost = Closed(("mapping 7f00-7f01 /dev/zero (deleted)",))
        events[end] = msgspec.structs.replace(events[end], outcome=lost)
    history = msgspec.structs.replace(whole, header=header, events=tuple(events))
    assert judged(history).verdict.status is status
    assert "internal-slot-unmapped-at-zero" not in {issue.name for issue in issues_met(header)}


@pytest.mark.parametrize(
    ("nth", "kernel", "status"),
    [
        *((0, "6.1.0-57-amd64", Status.KNOWN), (1, "6.1.0", Status.DIFFERS)),
        *((2, "6.1.0", Status.DIFFERS), (3, "6.1.0", Status.KNOWN)),
        *((0, "6.12.118", Status.DIFFERS), (0, "5.10.262", Status.DIFFERS)),
        *((0, "7.2", Status.DIFFERS), (0, "", Status.KNOWN)),
    ],
)
def test_a_system_time_is_kept_only_where_one_reached_into_the_next_page(
    nth: int, kernel: str, status: Status
) -> None:
    whole = ideal_history(curated("clocks-system-time-reaches-beyond-its-slot", EVERYTHING))
    events = list(whole.events)
    pauses = [n for n, event in enumerate(events) if isinstance(event.operation, KvmclockCtrl)]
    was = events[pauses[nth]].outcome
    turned = Refused(22) if was == Done() else Done()
    events[pauses[nth]] = msgspec.structs.replace(events[pauses[nth]], outcome=turned)
    host = {**whole.header.host, "kernel": kernel}
    header = msgspec.structs.replace(whole.header, host=host)
    history = msgspec.structs.replace(whole, header=header, events=tuple(events))
    assert judged(history).verdict.status is status


@pytest.mark.parametrize(("nth", "status"), [(84, Status.DIFFERS), (85, Status.KNOWN)])
def test_a_coalesced_ring_may_be_full_at_half_and_not_before(nth: int, status: Status) -> None:
    whole = ideal_history(curated("devices-coalesced-until-the-ring-is-full", EVERYTHING))
    events = list(whole.events)
    writes = [n for n, event in enumerate(events) if isinstance(event.operation, Touch)]
    event = events[writes[nth]]
    assert isinstance(event.operation, Touch)
    exit_ = Mmio(event.operation.gpa, True, event.operation.value.to_bytes(4, "little"))
    events[writes[nth]] = msgspec.structs.replace(event, outcome=Touched(0, (exit_,)))
    history = msgspec.structs.replace(whole, events=tuple(events))
    assert judged(history).verdict.status is status


FORBID, ALLOW, UNMAP = (
    ChangeHostMemory(Place("frames"), 1, how) for how in ("forbid", "allow", "unmap")
)


@pytest.mark.parametrize(
    ("kind", "changes", "then", "status"),
    [
        ("pfnmap", (FORBID,), Touch(0x100100), Status.KNOWN),
        ("memfd", (FORBID,), Touch(0x100100), Status.DIFFERS),
        (
            "pfnmap",
            (UNMAP,),
            Touch(0x100100),
            Status.DIFFERS,
        ),
        (
            "pfnmap",
            (FORBID, UNMAP),
            Touch(0x100100),
            Status.DIFFERS,
        ),
        (
            "pfnmap",
            (FORBID, ALLOW),
            Touch(0x100100),
            Status.DIFFERS,
        ),
        ("pfnmap", (FORBID,), Touch(0x100100, "write", value=7), Status.DIFFERS),
        (
            "pfnmap",
            (FORBID, ChangeHostMemory(Place("frames", 0x1000), 1, "unmap")),
            Touch(0x101100),
            Status.DIFFERS,
        ),
    ],
)
def test_only_forbidden_page_frames_may_be_read(
    kind: MappingKind, changes: tuple[ChangeHostMemory, ...], then: Touch, status: Status
) -> None:
    scenario = Scenario(
        "forbidden",
        (SetUserMemoryRegion(1, 0x100000, 0x2000, Place("frames")), *changes, then),
        (Mapping("file", 2, "memfd"), Mapping("frames", 2, kind, of="file")),
        survey="none",
    )
    whole = ideal_history(scenario)
    events = list(whole.events)
    last = next(n for n, event in enumerate(events) if event.operation == then)
    events[last] = msgspec.structs.replace(events[last], outcome=Touched(0x5EEA))
    history = msgspec.structs.replace(whole, events=tuple(events))
    assert judged(history).verdict.status is status


def test_page_frames_that_are_forbidden_may_be_mapped_ahead_and_no_others() -> None:
    operations = (
        SetUserMemoryRegion(1, 0x100000, 0x2000, Place("frames")),
        FORBID,
    )
    mappings = (Mapping("file", 2, "memfd"), Mapping("frames", 2, "pfnmap", of="file"))
    scenario = Scenario("forbidden", operations, mappings)
    assert may_read_forbidden_frames(scenario, 1, PreFaultMemory(0x100000, 0x2000))
    assert not may_read_forbidden_frames(scenario, 1, PreFaultMemory(0x101000, 0x1000))
    assert not may_read_forbidden_frames(scenario, 0, PreFaultMemory(0x100000, 0x2000))


def test_a_guest_in_32_bit_mode_writes_across_entries_without_excuse() -> None:
    start = Start(0x1800, 0x100000, 0x2006, paging="two-level")
    assert not is_written_across_entries(Scenario("in-32-bit-mode", (start,)), 0, start)
    long = msgspec.structs.replace(start, paging="long")
    assert is_written_across_entries(Scenario("in-64-bit-mode", (long,)), 0, long)
