"""What returns from interrupts, and far calls, come to: by what is on the stack now."""

import pytest

from vmm.catalogue._build import Slot, at
from vmm.model.model import Model
from vmm.scenario.content import STUB_OFFSET, identity
from vmm.scenario.features import Features
from vmm.scenario.history import AnyOutcome, DirtyPages, Inspected, Mmio, Touched
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    AnyOperation,
    HostWrite,
    Inspect,
    Mapping,
    Place,
    Touch,
)
from vmm.scenario.pagetables import PROGRAM_OFFSET, STACK_OFFSET, real_interrupt
from vmm.scenario.programs import RETURN, far_call, return_frame, writes

TARGET = 0x30 * PAGE_SIZE_BYTES + STUB_OFFSET
STACK = Place("a", 4 * PAGE_SIZE_BYTES + STACK_OFFSET)
START = real_interrupt(0x20, 0x10, 0x8)
PLAIN = Features()


def outcomes(model: Model, operation: AnyOperation) -> list[AnyOutcome]:
    """Let an operation happen, if it is known what it comes to, and return what it may."""
    allowed = model.allowed(operation)
    if allowed:
        allowed[0].adopt()
    return [each.outcome for each in allowed]


def model_of(program: bytes, flags: int = 0, features: Features = PLAIN) -> Model:
    """Return a VM with a program in slot 2, its target in slot 3 and its stack in slot 4."""
    model = Model((Mapping("a", 8),), features)
    operations: tuple[AnyOperation, ...] = (
        *writes(Place("a", PAGE_SIZE_BYTES + PROGRAM_OFFSET), program),
        *writes(STACK, return_frame(TARGET, is_long=False)),
        Slot(2, 0x20, at("a", 1)).create(),
        Slot(3, 0x30, at("a", 2)).create(),
        Slot(4, 0x8, at("a", 4), flags=flags).create(),
    )
    for operation in operations:
        assert outcomes(model, operation)
    return model


@pytest.mark.parametrize("flags", [0, READONLY, LOG_DIRTY_PAGES])
def test_a_return_goes_where_the_stack_says_and_writes_nothing(flags: int) -> None:
    model = model_of(RETURN, flags)
    assert outcomes(model, START) == [Touched(identity(0, 2))]
    if flags == LOG_DIRTY_PAGES:
        assert outcomes(model, Slot(4, 0x8, at("a", 4)).log()) == [DirtyPages((), words=1)]


def test_the_page_of_the_code_that_returns_may_be_logged() -> None:
    model = model_of(RETURN, features=Features(reads_make_dirty=True))
    logged = Slot(2, 0x20, at("a", 1), flags=LOG_DIRTY_PAGES)
    for operation in (logged.create(), START):
        assert outcomes(model, operation)
    assert outcomes(model, logged.log()) == [DirtyPages((), (0,), 1)]


@pytest.mark.parametrize(("at_offset", "word"), [(0, 0x0300_0801), (4, 0x102), (0, 0x7000_0800)])
def test_a_return_to_what_nobody_knows_is_not_known(at_offset: int, word: int) -> None:
    model = model_of(RETURN)
    assert outcomes(model, HostWrite(Place("a", STACK.offset + at_offset), word))
    assert outcomes(model, START) == []


def test_a_return_by_a_stack_in_a_hole_is_not_known() -> None:
    model = model_of(RETURN)
    assert outcomes(model, Slot(4, 0x8, at("a", 4)).delete())
    assert outcomes(model, START) == []


def test_a_far_call_pushes_the_address_after_it() -> None:
    model = model_of(far_call(TARGET), LOG_DIRTY_PAGES)
    assert outcomes(model, START) == [Touched(identity(0, 2))]
    below = 0x8 * PAGE_SIZE_BYTES + STACK_OFFSET - 4
    pushed = 0x2000 << 16 | PROGRAM_OFFSET + 5
    assert outcomes(model, Touch(below)) == [Touched(pushed)]
    assert outcomes(model, Slot(4, 0x8, at("a", 4)).log()) == [DirtyPages((0,), words=1)]


@pytest.mark.parametrize("flags", [READONLY, None])
def test_each_word_that_a_far_call_pushes_outside_memory_exits(flags: int | None) -> None:
    model = model_of(far_call(TARGET), flags or 0)
    if flags is None:
        assert outcomes(model, Slot(4, 0x8, at("a", 4)).delete())
    assert outcomes(model, Inspect())
    top = 0x8 * PAGE_SIZE_BYTES + STACK_OFFSET
    ip = (PROGRAM_OFFSET + 5).to_bytes(2, "little")
    exits = (Mmio(top - 2, True, b"\x00\x20"), Mmio(top - 4, True, ip))
    assert outcomes(model, START) == [Touched(identity(0, 2), exits)]
    assert outcomes(model, Inspect()) == [Inspected(())]
