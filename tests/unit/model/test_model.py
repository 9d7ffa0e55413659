"""The oracle, asked directly: what it allows, and what it holds to be true afterwards."""

import errno

import msgspec
import pytest

from tests.ideal import FEATURES
from tests.modelled import outcome
from vmm.model.model import Model
from vmm.scenario.content import identity
from vmm.scenario.features import Features
from vmm.scenario.history import (
    DirtyPages,
    Done,
    HostChange,
    Inspected,
    Mmio,
    Refused,
    Stopped,
    Touched,
)
from vmm.scenario.operations import (
    GUEST_MEMFD,
    LOG_DIRTY_PAGES,
    READONLY,
    AnyOperation,
    Execute,
    GetDirtyLog,
    Inspect,
    Mapping,
    Place,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Touch,
)
from vmm.scenario.slots import NO_LAST_GFN

A = Place("a")
HOST = (Mapping("a", 8), Mapping("none", 2, "unmapped"), Mapping("zero", 2, "zero"))


def region(slot: int, gpa: int, pages: int, hva: Place | int = A, flags: int = 0) -> AnyOperation:
    return SetUserMemoryRegion(slot, gpa, pages * 4096, hva, flags)


def after(*operations: AnyOperation, features: Features = FEATURES) -> Model:
    """Return a model in which these operations have succeeded."""
    model = Model(HOST, features)
    for operation in operations:
        (choice,) = model.allowed(operation)
        assert not isinstance(choice.outcome, Refused), operation
        choice.adopt()
    return model


ONE = region(3, 0x10000, 2)


@pytest.mark.parametrize(
    ("operation", "number", "rule"),
    [
        (SetUserMemoryRegion(0, 0, 4096, A, caller="forked-child"), errno.EIO, "foreign-process"),
        (SetUserMemoryRegion(0, argument="unreadable"), errno.EFAULT, "bad-pointer"),
        (region(0, 0, 1, A, GUEST_MEMFD), errno.EINVAL, "first-form-flags"),
        (region(32764, 0, 1), errno.EINVAL, "slot-id-range"),
        (
            SetUserMemoryRegion2(0, 0, 4096, A, GUEST_MEMFD | READONLY),
            errno.EINVAL,
            "flags-valid",
        ),
        (SetUserMemoryRegion(0, 0, 4097, A), errno.EINVAL, "size-aligned"),
        (region(0, 0x10001, 1), errno.EINVAL, "gpa-aligned"),
        (region(0, 0, 1, Place("a", 1)), errno.EINVAL, "hva-user"),
        (region(3, 0, 0, 1 << 63), errno.EINVAL, "hva-user"),
        (
            SetUserMemoryRegion2(0, 0, 4096, A, GUEST_MEMFD, guest_memfd_offset=1),
            errno.EINVAL,
            "guest-memfd-offset",
        ),
        (region(1 << 16, 0, 1), errno.EINVAL, "address-space-range"),
        (region(0, (1 << 64) - 4096, 1), errno.EINVAL, "gpa-wraps"),
        (region(0, 0, 1 << 31), errno.EINVAL, "too-many-pages"),
        (region(4, 0, 0), errno.EINVAL, "delete-absent"),
        (region(3, 0x10000, 1), errno.EINVAL, "immutable"),
        (region(3, 0x10000, 2, Place("a", 4096)), errno.EINVAL, "immutable"),
        (region(3, 0x10000, 2, A, READONLY), errno.EINVAL, "immutable"),
        (region(4, 0x11000, 1), errno.EEXIST, "overlap"),
        (region(4, 0xF000, 2), errno.EEXIST, "overlap"),
        (region(4, 1 << 52, 1), errno.EINVAL, "gfn-limit"),
        (region(3, 1 << 52, 2), errno.EINVAL, "gfn-limit"),
    ],
)
def test_refusal_names_its_rule_and_changes_nothing(
    operation: AnyOperation, number: int, rule: str
) -> None:
    model = after(ONE)
    (choice,) = model.allowed(operation)
    assert (choice.outcome, choice.rule.name) == (Refused(number), rule)
    choice.adopt()
    assert [(slot.slot_id, slot.base_gfn) for slot in model.slots()] == [(3, 0x10)]


@pytest.mark.parametrize(
    ("name", "value"),
    [("user_memory2", True), ("dirty_ring_acq_rel", True), ("memory_attributes", 8)],
)
def test_newer_kernels_have_a_last_gfn_whatever_they_take(name: str, value: int) -> None:
    beyond = region(4, 1 << 52, 1)
    old = msgspec.structs.replace(
        FEATURES,
        last_gfn=NO_LAST_GFN,
        user_memory2=False,
        dirty_ring_acq_rel=False,
        memory_attributes=0,
    )
    assert outcome(after(features=old), beyond) == Done()
    newer = msgspec.structs.replace(old, **{name: value})
    assert outcome(after(features=newer), beyond) == Refused(errno.EINVAL)


@pytest.mark.parametrize("change", ["create", "move"])
def test_the_last_gfn_is_the_last_that_a_slot_may_hold(change: str) -> None:
    features = msgspec.structs.replace(FEATURES, last_gfn=0xFFFFF)
    model = after(ONE, features=features)
    slot = 3 if change == "move" else 4
    assert outcome(model, region(slot, 0xFFFFF << 12, 2)) == Refused(errno.EINVAL)
    assert outcome(model, region(slot, 0xFFFFE << 12, 2)) == Done()


def test_below_the_end_of_a_mapping_at_zero_there_is_memory() -> None:
    mappings = (Mapping("z", 2, "zero"),)
    model = Model(mappings, FEATURES)
    outcome(model, SetUserMemoryRegion(0, 0x10000, 0x4000, 0))
    ends = [model.allowed(Touch(0x10000 + page * 0x1000))[0].rule.name for page in range(4)]
    assert ends == ["reach", "reach", "hva-absent", "hva-absent"]


def test_addresses_between_the_halves_may_be_accepted_or_refused() -> None:
    model = after(ONE)
    outcomes = {choice.outcome for choice in model.allowed(region(0, 0, 1, 1 << 47))}
    assert outcomes == {Refused(errno.EINVAL), Done()}


def test_move_takes_the_content_along_and_leaves_a_hole() -> None:
    model = after(ONE, region(3, 0x11000, 2))
    fill = 0xFFFFFFFF
    assert outcome(model, Touch(0x10000)) == Touched(fill, (Mmio(0x10000, False, b"\xff" * 4),))
    assert outcome(model, Touch(0x11000)) == Touched(identity(0, 0))
    assert outcome(model, Touch(0x12000)) == Touched(identity(0, 1))


def test_straddling_write_is_split_at_the_end_of_the_slot() -> None:
    model = after(ONE)
    write = Touch(0x11FFE, "write", 4, 0x44332211)
    assert outcome(model, write) == Touched(0, (Mmio(0x12000, True, b"\x33\x44"),))
    assert outcome(model, Inspect()) == Inspected((HostChange("a", 0x1FFE, b"\x11\x22"),))
    assert outcome(model, Inspect()) == Inspected(())


def test_readonly_slot_is_read_and_never_written() -> None:
    model = after(region(0, 0, 1, A, READONLY))
    assert outcome(model, Touch(0)) == Touched(identity(0, 0))
    assert outcome(model, Touch(0, "write", 1, 7)) == Touched(0, (Mmio(0, True, b"\x07"),))
    assert outcome(model, Inspect()) == Inspected(())


def test_absent_host_memory_faults_or_exits() -> None:
    model = after(region(0, 0, 1, Place("none")))
    outcomes = [choice.outcome for choice in model.allowed(Touch(0, width=1))]
    assert outcomes == [Touched(0xFF, (Mmio(0, False, b"\xff"),)), Stopped("EFAULT")]


def test_address_zero_is_the_mapping_that_is_there() -> None:
    model = after(region(0, 0x5000, 2, 0))
    assert outcome(model, Touch(0x6000)) == Touched(identity(2, 1))
    assert outcome(model, region(0, 0x8000, 2, Place("zero"))) == Done()


def test_execute_answers_the_identity_and_cannot_fetch_from_a_hole() -> None:
    model = after(ONE)
    assert outcome(model, Execute(0x11000)) == Touched(identity(0, 1))
    assert all(isinstance(c.outcome, Stopped) for c in model.allowed(Execute(0x12000)))


def test_overwritten_code_is_unknown() -> None:
    model = after(ONE, Touch(0x10800, "write", 1, 0))
    assert model.allowed(Execute(0x10000)) == ()


def test_dirty_log_is_exact_and_starts_anew() -> None:
    logged = region(3, 0x10000, 3, A, LOG_DIRTY_PAGES)
    model = after(logged, Touch(0x10FFE, "write"), Touch(0x12000))
    assert outcome(model, GetDirtyLog(3)) == DirtyPages((0, 1), words=1)
    assert outcome(model, GetDirtyLog(3)) == DirtyPages((), words=1)


def test_dirty_log_goes_along_with_a_move_and_away_with_the_flag() -> None:
    logged = region(3, 0x10000, 2, A, LOG_DIRTY_PAGES)
    model = after(logged, Touch(0x10000, "write"), region(3, 0x20000, 2, A, LOG_DIRTY_PAGES))
    assert outcome(model, GetDirtyLog(3)) == DirtyPages((0,), words=1)
    model = after(logged, Touch(0x10000, "write"), region(3, 0x10000, 2))
    assert outcome(model, GetDirtyLog(3)) == Refused(errno.ENOENT)
    outcome(model, logged)
    assert outcome(model, GetDirtyLog(3)) == DirtyPages((), words=1)


def test_failed_read_of_the_log_leaves_its_pages_in_doubt() -> None:
    logged = region(3, 0x10000, 2, A, LOG_DIRTY_PAGES)
    model = after(logged, Touch(0x10000, "write"))
    assert outcome(model, GetDirtyLog(3, "unwritable")) == Refused(errno.EFAULT)
    outcome(model, Touch(0x11000, "write"))
    (choice,) = model.allowed(GetDirtyLog(3))
    assert choice.outcome.admits(DirtyPages((1,)))
    assert choice.outcome.admits(DirtyPages((0, 1)))
    assert not choice.outcome.admits(DirtyPages((0,)))
