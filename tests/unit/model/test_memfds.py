"""guest_memfds: what the model allows, and which scenarios are safe to run."""

import errno

import msgspec
import pytest

from tests.ideal import FEATURES
from vmm.model.model import Model
from vmm.scenario.content import identity
from vmm.scenario.features import Features
from vmm.scenario.history import Done, HostChange, Inspected, Mmio, Refused, Touched
from vmm.scenario.operations import (
    GUEST_MEMFD,
    MEMFD_INIT_SHARED,
    MEMFD_MMAP,
    AnyOperation,
    CloseGuestMemfd,
    CreateGuestMemfd,
    HostWrite,
    Inspect,
    MapGuestMemfd,
    Mapping,
    NewVm,
    Place,
    ResizeGuestMemfd,
    Scenario,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Touch,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate

PAGE = 4096
HOST = (Mapping("a", 8), Mapping("file", 1, "memfd"), Mapping("shown", 4, "guest_memfd"))
A = Place("a")
SHARED = MEMFD_MMAP | MEMFD_INIT_SHARED
MADE = CreateGuestMemfd("g", 4 * PAGE)
MADE_SHARED = CreateGuestMemfd("g", 4 * PAGE, SHARED)
SHOW = MapGuestMemfd("g", "shown")


def bound(
    slot: int, gpa: int, page: int = 0, memfd: str = "g", hva: Place = A
) -> SetUserMemoryRegion2:
    """Return a call for two pages of a guest_memfd."""
    call = SetUserMemoryRegion2(slot, gpa, 2 * PAGE, hva, GUEST_MEMFD)
    return msgspec.structs.replace(call, guest_memfd=memfd, guest_memfd_offset=page * PAGE)


def after(*operations: AnyOperation) -> Model:
    """Return a model in which these operations have succeeded."""
    model = Model(HOST, FEATURES)
    for operation in operations:
        (choice,) = model.allowed(operation)
        assert choice.outcome == Done()
        choice.adopt()
    return model


@pytest.mark.parametrize(
    ("operation", "numbers", "rule"),
    [
        (CreateGuestMemfd("h", 0), [errno.EINVAL], "guest-memfd-size"),
        (CreateGuestMemfd("h", PAGE + 1), [errno.EINVAL], "guest-memfd-size"),
        (CreateGuestMemfd("h", 1 << 63), [errno.EINVAL], "guest-memfd-size"),
        (CreateGuestMemfd("h", PAGE, 4), [errno.EINVAL], "guest-memfd-flags"),
        (bound(2, 0x20000, 2, "never"), [errno.EBADF], "guest-memfd-fd"),
        (bound(2, 0x20000, 2, "file"), [errno.EINVAL], "guest-memfd-not-one"),
        (bound(2, 0x20000, 3), [errno.EINVAL], "guest-memfd-end"),
        (bound(2, 0x20000, (1 << 51) - 1), [errno.EINVAL], "guest-memfd-end"),
        (bound(2, 0x20000, 1), [errno.EEXIST, errno.EINVAL], "guest-memfd-overlap"),
        (bound(2, 0x11000, 2), [errno.EEXIST], "overlap"),
        (bound(1, 0x10000), [errno.EINVAL], "guest-memfd-immutable"),
        (bound(1, 0x20000), [errno.EINVAL], "guest-memfd-immutable"),
        (SetUserMemoryRegion(1, 0x20000, 2 * PAGE, Place("a")), [22], "guest-memfd-immutable"),
        (SHOW, [errno.ENODEV], "guest-memfd-mmap"),
    ],
)
def test_refusal_names_its_rule(operation: AnyOperation, numbers: list[int], rule: str) -> None:
    choices = after(MADE, bound(1, 0x10000)).allowed(operation)
    assert [choice.outcome for choice in choices] == [Refused(number) for number in numbers]
    assert {choice.rule.name for choice in choices} == {rule}


def test_deleted_slot_gives_its_pages_back() -> None:
    model = after(MADE, bound(1, 0x10000), SetUserMemoryRegion(1), bound(2, 0x20000, 1))
    assert [slot.slot_id for slot in model.slots()] == [2]


def test_file_of_a_former_vm_is_open_and_refused() -> None:
    (choice,) = after(MADE, NewVm()).allowed(bound(1, 0x10000))
    assert (choice.outcome, choice.rule.name) == (Refused(errno.EINVAL), "guest-memfd-foreign")


def test_closed_file_is_no_file_and_its_slot_stays() -> None:
    model = after(MADE, bound(1, 0x10000), CloseGuestMemfd("g"))
    assert [c.outcome for c in model.allowed(bound(2, 0x20000, 2))] == [Refused(errno.EBADF)]
    assert [c.outcome for c in model.allowed(CloseGuestMemfd("g"))] == [Refused(errno.EBADF)]
    assert [c.outcome for c in model.allowed(Touch(0x10000))] == [Touched(identity(0, 0))]


def test_private_mapping_is_refused() -> None:
    (choice,) = after(MADE_SHARED).allowed(MapGuestMemfd("g", "shown", "private"))
    assert choice.outcome == Refused(errno.EINVAL)


def test_memory_of_a_file_that_cannot_be_mapped_is_that_of_the_hva() -> None:
    model = after(MADE, bound(1, 0x10000, 2))
    assert [c.outcome for c in model.allowed(Touch(0x11000))] == [Touched(identity(0, 1))]


def test_shared_file_is_tagged_when_it_is_mapped_and_guest_and_host_see_it() -> None:
    model = after(MADE_SHARED, SHOW, bound(1, 0x10000, 1, hva=Place("shown", PAGE)))
    assert [c.outcome for c in model.allowed(Touch(0x10000))] == [Touched(identity(2, 1))]
    (wrote,) = model.allowed(Touch(0x11000, "write", 1, 7))
    wrote.adopt()
    (looked,) = model.allowed(Inspect())
    assert looked.outcome == Inspected((HostChange("shown", 2 * PAGE, b"\x07"),))


@pytest.mark.parametrize("page", [0, 2])
def test_hva_that_shows_something_else_than_the_file_is_unknown(page: int) -> None:
    model = after(MADE_SHARED, SHOW, bound(1, 0x10000, 1, hva=Place("shown", page * PAGE)))
    assert model.allowed(Touch(0x10000)) == ()


def test_reserved_place_holds_no_memory_until_the_file_is_mapped() -> None:
    model = after(SetUserMemoryRegion(1, 0x10000, PAGE, Place("shown")))
    usual, *_ = model.allowed(Touch(0x10000))
    assert usual.outcome == Touched(0xFFFFFFFF, (Mmio(0x10000, False, b"\xff" * 4),))


def test_host_writes_nothing_where_no_file_is_mapped() -> None:
    write = HostWrite(Place("shown", PAGE), 7)
    assert [each.outcome for each in after(MADE_SHARED).allowed(write)] == [Refused(errno.EFAULT)]
    assert [each.outcome for each in after(MADE_SHARED, SHOW).allowed(write)] == [Done()]


def test_kernel_without_guest_memfd_is_unknown() -> None:
    assert Model(HOST, Features()).allowed(MADE) == ()


@pytest.mark.parametrize(
    ("operations", "complaint"),
    [
        ((MADE, MADE), "$.operations[1].name: 'g' is taken"),
        ((CreateGuestMemfd("a", PAGE),), ".name: 'a' is taken"),
        ((CreateGuestMemfd("g", 1 << 64),), ".size: an unsigned 64-bit number"),
        ((CloseGuestMemfd("g"),), ".name: no operation creates 'g'"),
        ((MADE, MapGuestMemfd("g", "a")), ".mapping: 'a' is no mapping of kind guest_memfd"),
        ((CreateGuestMemfd("g", PAGE), SHOW), ".mapping: 'shown' is larger than 'g'"),
        (
            (MADE, CreateGuestMemfd("h", 4 * PAGE), SHOW, MapGuestMemfd("h", "shown")),
            "[3].mapping: 'shown' shows another guest_memfd",
        ),
        ((bound(1, 0x10000),), ".guest_memfd: 'g' is neither -1, nor a guest_memfd"),
        ((bound(1, 0x10000, memfd="a"),), ".guest_memfd: 'a' is neither"),
    ],
)
def test_unsafe_scenario_is_refused(operations: tuple[AnyOperation, ...], complaint: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        validate(Scenario("unsafe", operations, HOST))
    assert complaint in str(caught.value)


def test_file_has_one_mapping() -> None:
    host = (*HOST, Mapping("second", 4, "guest_memfd"))
    operations = (MADE, SHOW, MapGuestMemfd("g", "second"))
    with pytest.raises(ScenarioError, match=r"\[2\]\.name: 'g' is shown by another mapping"):
        validate(Scenario("unsafe", operations, host))


@pytest.mark.parametrize("size", [0, PAGE, 4 * PAGE, (1 << 63) - 1])
def test_a_guest_memfd_keeps_its_size(size: int) -> None:
    (choice,) = after(MADE).allowed(ResizeGuestMemfd("g", size))
    assert (choice.outcome, choice.rule.name) == (Refused(errno.EINVAL), "guest-memfd-resize")
    (choice,) = after(MADE, CloseGuestMemfd("g")).allowed(ResizeGuestMemfd("g", size))
    assert choice.outcome == Refused(errno.EBADF)
