"""The guest gets out of the way of its scenario, and stays where that is named or free."""

import json

import msgspec
import pytest

from vmm.catalogue import catalogue
from vmm.scenario.codec import FileError, history_line, parse_history, parse_scenario, scenario_text
from vmm.scenario.guestplace import USUAL_GPA, free_gpa, placed
from vmm.scenario.history import End, Header
from vmm.scenario.operations import (
    GUEST_SIZE_BYTES,
    SOMEWHERE,
    AnyOperation,
    Execute,
    Guest,
    GuestThread,
    HostThread,
    Mapping,
    Place,
    PreFaultMemory,
    Race,
    Scenario,
    SetIdentityMapAddr,
    SetTssAddr,
    SetUserMemoryRegion,
    Sweep,
    Touch,
    guest_count,
)
from vmm.scenario.plan import guest_slots
from vmm.scenario.problem import ScenarioError
from vmm.verdict.ideal import EVERYTHING

PAGE = 4096
TOP = 1 << 32
HOST = (Mapping("a", TOP // PAGE, "unmapped"), Mapping("m", 64))
BELOW_4G = SetUserMemoryRegion(1, 0xFFFC_0000, 0x40000, Place("m"))
ALL = SetUserMemoryRegion(1, 0, TOP, Place("a"))
EXPLICIT = {"gpa": "0xffff0000"}


def scenario(*operations: AnyOperation, **fields: object) -> Scenario:
    return msgspec.structs.replace(Scenario("s", operations, HOST, survey="none"), **fields)


def raw(*operations: AnyOperation, **fields: object) -> bytes:
    """Return a file that says no more of the guest than ``fields`` do."""
    data = msgspec.to_builtins(Scenario("s", operations, HOST, vcpus=8, survey="none"))
    return json.dumps({**data, **fields}).encode()


@pytest.mark.parametrize(
    "operation",
    [
        BELOW_4G,
        SetUserMemoryRegion(1, 0xFFFF_F000, PAGE),
        SetUserMemoryRegion(1 << 16, 0xFFFF_0000, PAGE),
        Touch(0xFFFE_FFFF, width=2),
        Touch(0xFFFF_FFFF, width=1),
        Sweep(0xFFFE_FFFC, count=2),
        Execute(0xFFFF_8000),
        SetTssAddr(0xFFFF_0000),
        SetIdentityMapAddr(0xFFFF_F000),
        PreFaultMemory(0xFFFF_0000, PAGE),
        Race((HostThread((BELOW_4G,)),), (GuestThread((Touch(0),)),)),
        Race((), (GuestThread((Touch(0xFFFF_0000),)),)),
    ],
    ids=lambda op: type(op).__name__,
)
def test_guest_makes_room_for_what_operations_name(operation: AnyOperation) -> None:
    moved = placed(scenario(operation))
    assert moved.guest.gpa < USUAL_GPA
    assert moved.guest.slot == SOMEWHERE.slot
    assert parse_scenario(raw(operation), "f").guest == moved.guest


@pytest.mark.parametrize(
    "operation",
    [
        Touch(0xFFFE_FFFC),
        SetUserMemoryRegion(1, 0xFFFC_0000, 0x30000, Place("a")),
        SetUserMemoryRegion(1, 0xFFFF_0000, 0),
        SetUserMemoryRegion(1, 0xFFFF_0001, PAGE),
        SetUserMemoryRegion(1, 0xFFFF_0000, PAGE - 1),
        SetUserMemoryRegion(1, 0xFFFF_0000, 1 << 63, Place("a")),
        SetUserMemoryRegion(1, TOP, PAGE),
        PreFaultMemory(0x10000, (1 << 64) - 0x11000),
    ],
    ids=lambda op: f"{type(op).__name__}",
)
def test_guest_stays_where_nothing_could_meet_it(operation: AnyOperation) -> None:
    assert placed(scenario(operation)).guest is SOMEWHERE
    assert parse_scenario(raw(operation), "f").guest == SOMEWHERE


@pytest.mark.parametrize("guests", [1, 2, 8])
def test_all_guests_of_a_race_have_room_in_every_space_and_none_lies_on_kernel_pages(
    guests: int,
) -> None:
    race = Race((HostThread((BELOW_4G,)),), (GuestThread((Touch(0x1000),)),) * guests)
    high = SetUserMemoryRegion(2, 0xFEF0_0000, 0xA0000)
    moved = placed(scenario(race, high, needs=("smm",), vcpus=8))
    assert guest_count(moved) == guests
    slots = guest_slots(moved)
    assert len(slots) == 2 * guests
    kept = [(0xFEC0_0000, 0xFEF0_0000), (0xFFFB_C000, TOP), (0xFEF0_0000, 0xFEFA_0000)]
    for slot in slots:
        begin, end = slot.guest_phys_addr, slot.guest_phys_addr + GUEST_SIZE_BYTES
        assert 0 <= begin < end <= TOP
        assert not any(begin < stop and start < end for start, stop in kept)


def test_place_is_the_highest_with_a_free_page_on_both_sides() -> None:
    assert free_gpa([(0xFFFF_0000, TOP)]) == 0xFFFD_0000
    assert free_gpa([(0xFFFC_0000, TOP)]) == 0xFFFA_0000
    assert free_gpa([(0x20000, TOP)]) == 0
    assert free_gpa([(0, 0x30000), (0x40000, TOP)]) == 0x30000
    assert free_gpa([(0, 0x28000), (0x38000, TOP)]) is None
    assert free_gpa([(0, 0x30000), (0x50000, TOP)], guests=2) == 0x40000


def test_order_of_operations_does_not_matter() -> None:
    ranges = [(0xFFF0_0000, TOP), (0xFF00_0000, 0xFF10_0000), (0xFEF0_0000, 0xFFEF_0000)]
    assert {free_gpa(ranges), free_gpa(ranges[::-1]), free_gpa(ranges[1:] + ranges[:1])} == {
        0xFEBE_0000
    }


def test_no_room_is_said_with_the_place() -> None:
    with pytest.raises(FileError, match=r"f: \$\.guest\.gpa: .* no 64 KiB below 4 GiB"):
        parse_scenario(raw(ALL), "f")
    with pytest.raises(ScenarioError, match=r"no 64 KiB"):
        placed(scenario(ALL))


def test_named_place_stays() -> None:
    text = raw(ALL, guest=EXPLICIT)
    assert parse_scenario(text, "f").guest == Guest()
    assert parse_scenario(raw(BELOW_4G, guest={}), "f").guest == Guest()
    assert placed(scenario(BELOW_4G, guest=Guest())).guest == Guest()
    assert placed(scenario(BELOW_4G, guest=Guest(7, 0x10000))).guest == Guest(7, 0x10000)
    with pytest.raises(FileError, match="the guest's own memory is at"):
        parse_scenario(raw(Touch(0xFFFF_0000), guest=EXPLICIT), "f")


def test_slot_alone_leaves_the_place_open() -> None:
    moved = parse_scenario(raw(BELOW_4G, guest={"slot": 7}), "f").guest
    assert moved == Guest(7, 0xFFFA_0000)


@pytest.mark.parametrize("guest", [SOMEWHERE, Guest(), Guest(5), Guest(gpa=0x10000)])
@pytest.mark.parametrize("operation", [BELOW_4G, Touch(0x1000), ALL])
def test_file_that_is_written_is_read_as_it_was(operation: AnyOperation, guest: Guest) -> None:
    made = scenario(operation, guest=guest)
    assert parse_scenario(scenario_text(made).encode(), "f") == made


def test_usual_place_is_written_only_where_it_would_be_left() -> None:
    assert '"guest"' not in scenario_text(scenario(Touch(0x1000)))
    assert '"guest"' in scenario_text(scenario(BELOW_4G, guest=Guest()))


def test_history_keeps_the_place_that_its_header_says() -> None:
    """One of an earlier version, too, whose guest was in the way."""
    for made in (scenario(BELOW_4G), placed(scenario(BELOW_4G))):
        lines = [history_line(Header(made, EVERYTHING)), history_line(End())]
        assert parse_history(lines, "f").header.scenario.guest == made.guest


def test_curated_scenarios_are_kept_in_files_as_they_are() -> None:
    for made in catalogue(EVERYTHING):
        if "slow" not in made.tags and len(made.operations) < 1000:
            assert parse_scenario(scenario_text(made).encode(), made.name).guest == made.guest
