"""Random scenarios are valid, the same for the same seed, and reach what they are meant to."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from kvm_abi.uapi import APIC_GPA, IDENTITY_MAP_GPA, USUAL_TSS_GPA
from tests.ideal import FEATURES, ideal_history
from tests.searched import BASES, composed, composed_from, of_subject, some
from vmm.fuzz.generate.dice import Dice, seed_of
from vmm.fuzz.generate.looks import Looks
from vmm.fuzz.generate.pools import LARGE, TABLES, Pools
from vmm.fuzz.generate.scenarios import generate
from vmm.fuzz.generate.starts import Starts
from vmm.fuzz.generate.world import World
from vmm.model.devices import RING_ENTRIES
from vmm.model.model import Model
from vmm.scenario.codec import scenario_text
from vmm.scenario.demand import USUAL, check_demand
from vmm.scenario.features import Features
from vmm.scenario.history import AnyOutcome, Header, Ran, Touched
from vmm.scenario.operations import (
    GUEST_MEMFD,
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    AnyOperation,
    ChangeHostMemory,
    ClearDirtyLog,
    CoalesceMmio,
    CollectMmio,
    EnableCap,
    Instruction,
    IoEventFd,
    Mapping,
    NewVm,
    Place,
    ResetDirtyRings,
    Scenario,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Start,
    Sweep,
    Touch,
    pages_of,
)
from vmm.scenario.plan import steps
from vmm.scenario.requirements import missing
from vmm.scenario.validate import validate
from vmm.verdict.ideal import EVERYTHING
from vmm.verdict.judge import Status, judge

_FILLED = 0x200_0000
"""From here on lies what dirty rings are filled with."""

OLD = Features(
    nr_memslots=509, address_spaces=2, readonly_mem=False, last_gfn=(1 << 24) - 1, sync_mmu=False
)


def followed(scenarios: Iterable[Scenario]) -> list[Scenario]:
    """Return scenarios whose outcomes the model knows, whatever the dice have put into tables."""
    return [s for s in scenarios if not any(isinstance(op, Start) for op in s.operations)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, (1 << 64) - 1), st.sampled_from((FEATURES, OLD)))
def test_every_scenario_is_valid(seed: int, features: Features) -> None:
    validate(generate(seed, features, BASES))


@pytest.mark.parametrize(
    "subject", ["rings", "memfds", "host", "internal", "ahead", "vms", "starts"]
)
def test_every_scenario_of_a_subject_is_valid(
    subject: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.fuzz.generate.pools._subjects", lambda *_: frozenset((subject,)))
    for number in range(25):
        validate(generate(seed_of(9, number), FEATURES))


@pytest.fixture(scope="module")
def of_devices() -> Sequence[Scenario]:
    return of_subject("devices", 3, 100, FEATURES)


def test_every_scenario_of_devices_is_valid(of_devices: Sequence[Scenario]) -> None:
    for scenario in of_devices:
        validate(scenario)


def test_the_model_knows_what_devices_do(of_devices: Sequence[Scenario]) -> None:
    """Devices that overlap would end many scenarios early."""
    for scenario in of_devices[:20]:
        verdict = judge(ideal_history(scenario))
        assert verdict.status is Status.PASSED, verdict


def test_devices_are_written_at_their_borders(of_devices: Sequence[Scenario]) -> None:
    met: set[str] = set()
    for scenario in of_devices:
        ranges: set[tuple[int, int]] = set()
        events: dict[int, IoEventFd] = {}
        kept = 0
        for op in scenario.operations:
            match op:
                case CoalesceMmio(pio=True):
                    met.add("ports" if op.on else "no ports")
                case CoalesceMmio(on=True):
                    ranges.add((op.gpa, op.gpa + op.size))
                case CoalesceMmio():
                    met |= {"part ends" for a, b in ranges if a < op.gpa and op.gpa + op.size == b}
                case IoEventFd(on=True):
                    events[op.gpa] = op
                case Touch(access="write") | Instruction(name="store"):
                    kept += any(a <= op.gpa and op.gpa + op.width <= b for a, b in ranges)
                    met |= set(_borders(op, ranges, events))
                case CollectMmio():
                    met |= {"full ring"} if kept > RING_ENTRIES else set()
                    kept = 0
                case _:
                    pass
    assert met >= {"first", "last", "across", "beside", "all eight", "part ends", "full ring"}
    assert met >= {"value", "another value", "another length", "ports", "no ports"}


def _borders(
    op: Touch | Instruction, ranges: set[tuple[int, int]], events: dict[int, IoEventFd]
) -> Iterator[str]:
    end = op.gpa + op.width
    for first, last in ranges:
        inside = first <= op.gpa and end <= last
        cases = {
            "first": op.gpa == first,
            "last": end == last,
            "across": first <= op.gpa < last < end,
            "beside": op.gpa == last,
            "all eight": inside and op.width == 8,
        }
        yield from (name for name, is_so in cases.items() if is_so)
    event = events.get(op.gpa)
    if event and event.match is not None and op.width == event.length:
        yield "value" if op.value == event.match else "another value"
    elif event and event.length not in (0, op.width):
        yield "another length"


def test_a_host_without_proc_is_not_asked_to_look_there() -> None:
    lacks = msgspec.structs.replace(EVERYTHING, process_files=False)
    assert any(missing(scenario, lacks) for scenario in composed(200))
    without = composed(40, lacks)
    assert {missing(scenario, lacks) for scenario in without} == {""}


def test_a_seed_gives_the_same_scenario_again() -> None:
    assert [generate(seed_of(7, number), FEATURES, BASES) for number in range(20)] == some(20)


def test_a_seed_gives_the_same_scenario_on_every_machine() -> None:
    text = "".join(scenario_text(generate(seed_of(1, n), FEATURES)) for n in range(50))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    # Who changes what is generated changes this, too: old seeds then mean something else.
    assert digest == "2070ebfedb6a7a02"


def test_chance_is_made_of_what_python_promises_to_keep() -> None:
    dice = Dice(42)
    assert [dice.below(1000) for _ in range(4)] == [639, 25, 275, 223]


def test_seeds_of_a_run_differ() -> None:
    seeds = {seed_of(run, number) for run in range(20) for number in range(500)}
    assert len(seeds) == 20 * 500


def test_an_ideal_kernel_passes_them_all() -> None:
    for scenario in followed(some(20)):
        verdict = judge(ideal_history(scenario))
        assert verdict.status is Status.PASSED, verdict


def test_large_addresses_and_several_vcpus_come_up() -> None:
    made = composed(400)
    operations = [op for scenario in made for op in scenario.operations]
    assert any(op.fail_nth for op in operations if isinstance(op, SetUserMemoryRegion))
    high = [op for op in operations if isinstance(op, Touch | Sweep) and op.gpa >= REAL_MODE_END]
    assert {type(op) for op in high} == {Touch, Sweep}
    assert {scenario.vcpus for scenario in made} == {1, 2, 3}


def test_logs_are_cleared_without_a_bit_and_have_more_words_than_a_huge_page() -> None:
    operations = [op for scenario in composed(400) for op in scenario.operations]
    assert any(op.pages == () for op in operations if isinstance(op, ClearDirtyLog))
    sizes = {pages_of(op.memory_size) for op in operations if isinstance(op, SetUserMemoryRegion)}
    assert {512, 577} <= sizes


def test_what_slots_show_of_a_change_is_read_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first page and its last, and the page after it."""
    monkeypatch.setattr("vmm.fuzz.generate.pools._subjects", lambda *_: frozenset(("host",)))
    usual = _share_followed()
    monkeypatch.setattr("vmm.fuzz.generate.extras._LOOKS_AFTER_CHANGES", 0)
    assert usual > 2 * _share_followed()


def _share_followed() -> float:
    followed = [
        is_followed
        for number in range(40)
        for is_followed in _followed(generate(seed_of(9, number), FEATURES).operations)
    ]
    return sum(followed) / len(followed)


def _followed(operations: Sequence[AnyOperation]) -> Iterator[bool]:
    """Yield whether the next touches are at these three pages of a slot, for each change."""
    slots: dict[int, SetUserMemoryRegion] = {}
    for number, op in enumerate(operations):
        if isinstance(op, SetUserMemoryRegion):
            slots[op.slot] = op
        if not isinstance(op, ChangeHostMemory) or op.pages == 1:
            continue
        rest = itertools.takewhile(lambda each: isinstance(each, Touch), operations[number + 1 :])
        gpas = {each.gpa & -PAGE_SIZE_BYTES for each in rest if isinstance(each, Touch)}
        for slot in slots.values():
            hva = slot.userspace_addr
            if isinstance(hva, Place) and hva.mapping == op.place.mapping:
                first = slot.guest_phys_addr + op.place.offset - hva.offset
                yield {
                    first + page * PAGE_SIZE_BYTES for page in (0, op.pages - 1, op.pages)
                } <= gpas


def test_capabilities_are_asked_for_in_odd_ways() -> None:
    made = composed(400)
    asked = {
        (op.cap, op.argument)
        for scenario in made
        for op in scenario.operations
        if isinstance(op, EnableCap)
    }
    most, quirks = EVERYTHING.dirty_ring_max_bytes, EVERYTHING.quirks
    assert asked >= {("MANUAL_DIRTY_LOG_PROTECT2", options) for options in (0, 1, 2, 3, 4, 1 << 63)}
    assert asked >= {("DIRTY_LOG_RING", most), ("DIRTY_LOG_RING_ACQ_REL", 2 * most)}
    assert asked >= {("DISABLE_QUIRKS2", argument) for argument in (0, quirks, quirks | 1)}


def test_the_second_form_has_fields_that_count_for_nothing() -> None:
    made = composed(200)
    calls = [
        op
        for scenario in made
        for op in scenario.operations
        if isinstance(op, SetUserMemoryRegion2) and not op.flags & GUEST_MEMFD
    ]
    assert any(op.guest_memfd_offset for op in calls)
    assert any(op.guest_memfd != -1 for op in calls)


def test_some_slots_are_as_large_as_a_huge_page() -> None:
    made = composed(400)
    sizes = {
        op.memory_size
        for scenario in made
        for op in scenario.operations
        if isinstance(op, SetUserMemoryRegion)
    }
    assert 512 * PAGE_SIZE_BYTES in sizes


def test_pages_inside_a_place_that_a_slot_has_left_are_looked_at() -> None:
    drawn = Pools((1,), (), (0x100,), (), (129,), (Mapping("a", 136),), (0,))
    slot = SetUserMemoryRegion(1, 0x100_000, 129 * PAGE_SIZE_BYTES, Place("a"))
    seen: set[int] = set()
    for seed in range(300):
        world = World(FEATURES.last_gfn)
        world.apply(slot)
        gone = SetUserMemoryRegion(1)
        world.apply(gone)
        looks = Looks(Dice(seed), drawn, world).after(gone)
        seen |= {op.gpa // PAGE_SIZE_BYTES - 0x100 for op in looks if isinstance(op, Touch)}
    assert seen >= {0, 1, 63, 64, 127, 128}


@pytest.mark.parametrize(
    "refused", [{"caller": "forked-child"}, {"argument": "unreadable"}], ids=str
)
def test_a_call_that_is_refused_whatever_it_asks_for_is_nothing_to_build_on(
    refused: dict[str, str],
) -> None:
    world = World(FEATURES.last_gfn)
    call = SetUserMemoryRegion(1, 0x100_000, PAGE_SIZE_BYTES, Place("a"))
    world.apply(msgspec.structs.replace(call, **refused))
    assert not world.slots
    world.apply(msgspec.structs.replace(call, fail_nth=3))
    assert world.slots == {1: call}


def made_of(
    subject: str, count: int, monkeypatch: pytest.MonkeyPatch, features: Features = FEATURES
) -> list[Scenario]:
    """Return scenarios of a subject that is drawn with the others."""
    monkeypatch.setattr("vmm.fuzz.generate.pools._subjects", lambda *_: frozenset((subject,)))
    return [generate(seed_of(9, number), features) for number in range(count)]


def test_now_and_then_a_ring_gets_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few writes at a time, as many as fit in what is left of a full ring."""
    entries = FEATURES.dirty_ring_bytes // 16
    made = made_of("rings", 12, monkeypatch)
    most, at_once = 0, 0
    for scenario in made:
        pages: set[int] = set()
        writes = 0
        for op in scenario.operations:
            is_write = isinstance(op, Touch) and op.access == "write" and op.gpa >= _FILLED
            writes = (writes + 1) * is_write
            at_once = max(at_once, writes)
            if isinstance(op, Touch) and is_write:
                pages.add(pages_of(op.gpa))
            elif isinstance(op, ResetDirtyRings):
                pages.clear()
            most = max(most, len(pages))
        validate(scenario)
    assert most > entries
    assert at_once == 48


def test_slots_are_put_where_the_kernel_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_of("internal", 20, monkeypatch)
    calls = [op for s in made for op in s.operations if isinstance(op, SetUserMemoryRegion)]
    gfns = {pages_of(op.guest_phys_addr) for op in calls if op.memory_size}
    for gpa in (APIC_GPA, USUAL_TSS_GPA, IDENTITY_MAP_GPA):
        assert {pages_of(gpa) - 1, pages_of(gpa)} <= gfns


def test_changes_of_host_memory_begin_and_end_where_slots_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What slots show is read before some of them."""
    aimed = "vmm.fuzz.generate.extras._AIMED_CHANGES"
    shares = []
    for chance in (0.0, 1.0):
        monkeypatch.setattr(aimed, chance)
        at_borders = [
            is_at_border
            for scenario in made_of("host", 20, monkeypatch)
            for is_at_border in _at_borders(scenario.operations)
        ]
        shares.append(sum(at_borders) / len(at_borders))
    assert shares[1] > shares[0] + 0.08
    operations = [s.operations for s in made_of("host", 20, monkeypatch)]
    pairs = itertools.chain.from_iterable(map(itertools.pairwise, operations))
    assert any(isinstance(a, Touch) and isinstance(b, ChangeHostMemory) for a, b in pairs)


def _at_borders(operations: Sequence[AnyOperation]) -> Iterator[bool]:
    """Yield whether pages that are dropped begin or end where a slot's memory does."""
    slots: dict[int, SetUserMemoryRegion] = {}
    for op in operations:
        if isinstance(op, SetUserMemoryRegion):
            slots[op.slot] = op
        if not isinstance(op, ChangeHostMemory) or op.how != "drop":
            continue
        ends = op.place.offset, op.place.offset + op.pages * PAGE_SIZE_BYTES
        yield any(
            isinstance(slot.userspace_addr, Place)
            and slot.userspace_addr.mapping == op.place.mapping
            and (
                slot.userspace_addr.offset == ends[0]
                or slot.userspace_addr.offset + slot.memory_size == ends[1]
            )
            for slot in slots.values()
        )


def test_some_slots_are_as_large_as_those_of_machines() -> None:
    made = [each for each in composed(400) if any(m.name == LARGE for m in each.mappings)]
    assert made
    calls = [op for s in made for op in s.operations if isinstance(op, SetUserMemoryRegion)]
    assert max(op.memory_size for op in calls if pages_of(op.memory_size) <= 1 << 20) >= 1 << 29
    for scenario in made:
        validate(scenario)
        check_demand(scenario, USUAL)


def test_rings_are_emptied_before_they_run_over() -> None:
    made = composed(300)
    ringed = [scenario for scenario in made if "dirty_ring_bytes" in scenario.needs]
    assert ringed
    for scenario in ringed:
        writes = 0
        for op in scenario.operations:
            if isinstance(op, Touch) and op.gpa >= _FILLED:
                continue  # A ring is filled on purpose, by a few writes at a time.
            writes += isinstance(op, Touch | Sweep) and op.access == "write"
            writes += isinstance(op, Instruction)
            writes *= not isinstance(op, ResetDirtyRings | NewVm)
            assert writes <= 60, scenario.name


@pytest.mark.parametrize("need", ["guest_memfd", "dirty_ring_bytes"])
def test_an_ideal_kernel_passes_each_subject(need: str) -> None:
    features = msgspec.structs.replace(EVERYTHING, internal_tss=False, internal_identity=False)
    made = followed(composed(80, features))
    tasting = [s for s in made if need in s.needs and len(s.operations) < 1500][:4]
    assert tasting
    for scenario in tasting:
        verdict = judge(ideal_history(scenario, features))
        assert verdict.status is Status.PASSED, verdict


def test_every_kind_of_change_and_refusal_comes_up() -> None:
    rules: set[str] = set()
    for scenario in followed(some(110)):
        rules.update(judge(ideal_history(scenario)).rules)
    assert rules >= {
        "create", "delete", "move", "flags-only", "no-change", "overlap", "immutable",
        "delete-absent", "gfn-limit", "gpa-aligned", "size-aligned", "hva-user", "slot-id-range",
        "address-space-range", "first-form-flags", "gpa-wraps", "too-many-pages", "bad-pointer",
        "foreign-process", "reach", "hole", "straddle", "readonly", "dirty-exact", "dirty-absent",
    }  # fmt: skip


def test_where_there_is_smm_guests_look_at_both_address_spaces() -> None:
    scenarios = some(40, EVERYTHING)
    inside = [s for s in scenarios if any(isinstance(o, Touch) and o.as_id for o in s.operations)]
    assert 5 < len(inside) < 30
    rules: set[str] = set()
    for scenario in inside:
        validate(scenario)
        assert "smm" in scenario.needs
        verdict = judge(ideal_history(scenario, EVERYTHING))
        assert verdict.status is Status.PASSED, verdict
        rules.update(verdict.rules)
    assert "smm" in rules


def test_some_are_mutations_and_some_are_long() -> None:
    scenarios = some(110)
    assert any(scenario.why.startswith("A mutation of ") for scenario in scenarios)
    lengths = sorted(len(scenario.operations) for scenario in scenarios)
    assert lengths[len(lengths) // 5] < 80
    assert lengths[-len(lengths) // 4] > 300


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_chances_of_never_and_always(share: float) -> None:
    dice = Dice(1)
    assert all(dice.chance(share) is bool(share) for _ in range(100))


def test_instructions_cross_pages_and_go_downward() -> None:
    made = composed(300)
    operations = [op for s in made for op in s.operations if isinstance(op, Instruction)]
    assert any(op.down for op in operations)
    assert any(op.gpa // PAGE_SIZE_BYTES != (op.gpa + 1) // PAGE_SIZE_BYTES for op in operations)
    assert any(op.as_id for op in operations)


def test_what_goes_wrong_outside_of_memory_is_in_memory() -> None:
    names = {"pusha", "popa", "sgdt", "sidt", "fxsave", "fxsave64", "fxrstor64"}
    made = composed(60)
    met = [s for s in made if any(getattr(op, "name", "") in names for op in s.operations)]
    events = [event for s in met[:10] for event in ideal_history(s, EVERYTHING).events]
    outcomes = [e.outcome for e in events if getattr(e.operation, "name", "") in names]
    assert outcomes
    assert all(isinstance(each, Ran) and not each.mmio for each in outcomes)


def test_what_stops_on_the_way_through_page_tables_sets_no_bit_there() -> None:
    """Else it is not known which are set, and nothing of the scenario is judged from there on."""
    unknown = 0
    for number in (320, 634, 884, 912, 985, 1043, 1117):
        scenario = generate(seed_of(11, number), FEATURES)
        model = Model.of(Header(scenario, FEATURES))
        plan = steps(scenario, FEATURES.touch_limit)
        unknown += not all(model.prefer(step.operation) for step in plan)
    assert not unknown


def test_some_guests_start_with_page_tables_of_their_own() -> None:
    made = composed(400)
    starts = [op for s in made for op in s.operations if isinstance(op, Start)]
    assert len(starts) > 100
    assert {op.tables is None for op in starts} == {False, True}
    assert any(op.value for op in starts)
    assert any(op.data and not op.value for op in starts)
    real = msgspec.structs.replace(FEATURES, touch_limit=REAL_MODE_END)
    for scenario in composed(40, real):
        starts = [op for op in scenario.operations if isinstance(op, Start)]
        assert all(op.tables is None for op in starts)


def test_interrupts_go_through_tables_in_slots_and_no_further() -> None:
    """Outside memory an interrupt never comes back, on some kernels: a known issue."""
    made = [composed_from(number, FEATURES) for number in (22, 75, 119, 197, 230, 263)]
    modes: set[bool] = set()
    outcomes: list[AnyOutcome] = []
    for scenario in made:
        starts = [op for op in scenario.operations if isinstance(op, Start)]
        assert any(op.interrupts is not None for op in starts), "other seeds have them now"
        for event in ideal_history(scenario).events:
            if isinstance(event.operation, Start):
                modes.add(event.operation.tables is None)
                outcomes.append(event.outcome)
    assert modes == {False, True}
    assert all(isinstance(each, Touched) and not each.mmio for each in outcomes)
    assert len({str(each) for each in outcomes}) > 8, "each page answers with its own identity"


@pytest.mark.parametrize("reach", [1 << 32, 1 << 40])
def test_page_tables_and_code_are_within_a_guest_s_reach(reach: int) -> None:
    mappings = (Mapping("a", 8), Mapping(TABLES, 8))
    last = reach // PAGE_SIZE_BYTES - 1
    drawn = Pools((1,), (), (last,), (), (1,), mappings, (0,), reach=reach)
    made = list(Starts(Dice(1), drawn, World(FEATURES.last_gfn)).begin())
    slots = [op for op in made if isinstance(op, SetUserMemoryRegion)]
    assert {op.guest_phys_addr + op.memory_size for op in slots} <= {reach, reach - 0x4000}
