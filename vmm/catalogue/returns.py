"""Returns from interrupts, and far calls: what stacks in slots say, and code that they lead to."""

from collections.abc import Iterator

import msgspec

from vmm.catalogue._area import Area
from vmm.catalogue._build import Slot, at, creates
from vmm.scenario.content import STUB_OFFSET
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    AnyOperation,
    Place,
    Start,
)
from vmm.scenario.pagetables import (
    PROGRAM_OFFSET,
    STACK_OFFSET,
    USED,
    Tables,
    long_table,
    real_interrupt,
)
from vmm.scenario.programs import (
    CODE_SELECTOR,
    ENTRY_BYTES,
    FLAT_CODE_DESCRIPTOR,
    LONG_FAR_CALL,
    LONG_RETURN,
    RETURN,
    far_call,
    far_pointer,
    return_frame,
    writes,
)

_SOURCE = "emulate_iret_real, em_call_far; Intel SDM vol. 2, IRET, CALL"
_CALL_OFFSET = PROGRAM_OFFSET + 0x80

# In real mode all is below 1 MiB, as for interrupts.
_CODE = Slot(2, 0x20, at("a", 1))
_TARGETS = Slot(3, 0x30, at("a", 2), pages=2)
_STACK = Slot(4, 0x8, at("a", 4))
_OTHER_STACK = Slot(4, 0x8, at("b", 1))
_TABLE = Slot(1, 0x10, at("a"))
_RETURN = real_interrupt(0x20, 0x10, 0x8)
_CALL = msgspec.structs.replace(_RETURN, address=0x20 * PAGE_SIZE_BYTES + _CALL_OFFSET)

_LONG = Tables("b", 0x100, (0x10, 0x20, 0x30, 0x31, 0x8), page=4, bits=USED)
_LONG_TABLES = Slot(5, 0x100, at("b", 4), pages=4)
_LONG_RETURN = _LONG.interrupt(1, 0, 4)
_FAR = Tables("b", 0x100, (0x20, 0x30, 0x10, 0x14, 0x8, 0x31, 0x102), page=4, bits=USED)
_FAR_TARGET, _FAR_TABLE, _FAR_STACK, _FAR_POINTER, _FAR_PAGE_TABLE = 1, 2, 4, 5, 6
_SPLIT = PAGE_SIZE_BYTES - ENTRY_BYTES // 2
"""The offset of a descriptor half of which is in the next page."""


def _in(page: Place, offset: int) -> Place:
    return Place(page.mapping, page.offset + offset)


def _frames(*targets: int, is_long: bool) -> Iterator[AnyOperation]:
    """Yield what writes stacks that return to code in pages, by the pages' addresses."""
    for target, page in zip(targets, (at("a", 4), at("b", 1)), strict=True):
        frame = return_frame(target * PAGE_SIZE_BYTES + STUB_OFFSET, is_long=is_long)
        yield from writes(_in(page, STACK_OFFSET), frame)


_REAL_RETURNS = (
    *writes(_in(at("a", 1), PROGRAM_OFFSET), RETURN),
    *_frames(0x30, 0x31, is_long=False),
    _CODE.create(),
    _TARGETS.create(),
)
_LONG_RETURNS = (
    *long_table(at("a"), 2),
    *writes(_in(at("a", 1), PROGRAM_OFFSET), LONG_RETURN),
    *_frames(2, 3, is_long=True),
    *_LONG.lay(),
    _LONG_TABLES.create(),
    _TABLE.create(),
    _CODE.create(),
    _TARGETS.create(),
)


def _changes(start: Start) -> tuple[AnyOperation, ...]:
    """Change stack and target one after the other, and return each time."""
    return (
        _STACK.change(LOG_DIRTY_PAGES),
        start,
        _STACK.log(),
        _STACK.delete(),
        _OTHER_STACK.create(),
        start,
        _TARGETS.delete(),
        Slot(3, 0x30, at("b", 2), pages=2).create(),
        start,
        _OTHER_STACK.move(0x40),
        Slot(6, 0x8, at("a", 4), flags=READONLY).create(),
        start,
    )


_REAL_CALLS: tuple[AnyOperation, ...] = (
    *writes(_in(at("a", 1), _CALL_OFFSET), far_call(0x31 * PAGE_SIZE_BYTES + STUB_OFFSET)),
    _CODE.create(),
    _TARGETS.create(),
)


def _far_calls() -> Iterator[AnyOperation]:
    """Yield far calls in 64-bit mode, by a descriptor that lies in two slots."""
    descriptor = FLAT_CODE_DESCRIPTOR.to_bytes(ENTRY_BYTES, "little")
    yield from writes(_in(at("a"), _SPLIT), descriptor[:4])
    yield from writes(at("b"), descriptor[4:])
    yield from writes(_in(at("a", 1), _CALL_OFFSET), LONG_FAR_CALL)
    pointer = far_pointer(_FAR.address(_FAR_TARGET) + STUB_OFFSET)
    yield from writes(_in(at("a", 3), PROGRAM_OFFSET), pointer)
    yield from _FAR.lay()
    yield from creates(_LONG_TABLES, _TABLE, Slot(6, 0x14, at("b")), _CODE, _TARGETS)
    call = Start(
        _FAR.address(0) + _CALL_OFFSET,
        _FAR.gpa,
        _FAR.address(_FAR_POINTER) + PROGRAM_OFFSET,
        stack=_FAR.address(_FAR_STACK) + STACK_OFFSET,
        interrupts=_FAR.address(_FAR_TABLE) + _SPLIT - CODE_SELECTOR,
    )
    yield from (_STACK.create(), call, _STACK.change(LOG_DIRTY_PAGES), call, _STACK.log())
    # KVM may have to emulate a write to a page table in use, here to entries that no walk uses.
    beside = _FAR.address(_FAR_PAGE_TABLE) + PAGE_SIZE_BYTES // 2
    yield from (msgspec.structs.replace(call, stack=beside), call)


_returns = Area(
    prefix="return-", tags=("start",), source=_SOURCE, needs=("readonly_mem",), survey="none"
)


SCENARIOS = (
    _returns(
        "from-an-interrupt",
        "iret goes where the stack says that is there now, be it READONLY, and writes nothing.",
        *_REAL_RETURNS,
        *_changes(_RETURN),
    ),
    _returns(
        "from-an-interrupt-in-64-bits",
        "In 64-bit mode iretq reads the stack and the descriptor that are there now, through page "
        "tables.",
        *_LONG_RETURNS,
        *_changes(_LONG_RETURN),
    ),
    _returns(
        "address-of-a-far-call",
        "A far call pushes CS and IP where the stack is now, and goes to the code that is there "
        "now.",
        *_REAL_CALLS,
        _STACK.change(LOG_DIRTY_PAGES),
        _CALL,
        _STACK.log(),
        _STACK.move(0x48, LOG_DIRTY_PAGES),
        Slot(7, 0x8, at("b", 1), flags=LOG_DIRTY_PAGES).create(),
        _TARGETS.delete(),
        Slot(3, 0x30, at("b", 2), pages=2).create(),
        _CALL,
        _STACK.log(),
        Slot(7, 0x8, at("b", 1)).log(),
    ),
    _returns(
        "address-of-a-far-call-in-a-hole",
        "Each of the two words that a far call pushes in a hole exits.",
        *_REAL_CALLS,
        _CALL,
        _STACK.create(),
        _CALL,
    ),
    _returns(
        "address-of-a-far-call-on-a-readonly-slot",
        "Each of the two words that a far call pushes onto a READONLY slot exits.",
        *_REAL_CALLS,
        _STACK.change(READONLY),
        _CALL,
    ),
    _returns(
        "address-of-a-far-call-in-64-bits",
        "A far call takes a descriptor that begins in one slot and ends in another, whether KVM "
        "emulates it or not.",
        *_far_calls(),
        source=f"{_SOURCE}; linear_read_system, kvm_read_guest_virt_helper",
    ),
)
"""All scenarios of returns from interrupts and of far calls."""
