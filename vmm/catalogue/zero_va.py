"""Userspace address 0, which is legal with and without memory; and addresses without memory."""

from vmm.catalogue._build import (
    NOWHERE,
    ZERO,
    A,
    B,
    Slot,
    at,
    creates,
    read,
    write,
)
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    AnyOperation,
    Execute,
    Scenario,
    Touch,
)

_REVIEW = "api.rst 4.35; e0135a104c52"
_AT_ZERO = Slot(1, 0x100, at("zero"), pages=2)
_ABOVE = Slot(1, 0x100, at("zero", 1), pages=2)
_EMPTY = Slot(1, 0x100, 0, pages=2)
_LOST = Slot(1, 0x100, at("nowhere"), pages=2)
_OTHER = Slot(2, 0x104, at("b"), pages=2)


def _mapped(
    name: str, why: str, *operations: AnyOperation, needs: tuple[str, ...] = ()
) -> Scenario:
    return Scenario(
        name=name,
        why=why,
        source=_REVIEW,
        tags=("zero-va",),
        mappings=(ZERO, B),
        needs=("zero_page", *needs),
        operations=operations,
    )


_MAPPED = (
    _mapped(
        "zero-va-create-and-touch",
        "The guest reads back what it writes to memory at address 0.",
        _AT_ZERO.create(),
        write(0x100, 0x0BADF00D, offset=0),
        read(0x100, offset=0),
        write(0x101, 0x600DF00D),
        read(0x101),
    ),
    _mapped(
        "zero-va-move",
        "A slot at address 0 can move: its userspace_addr does not make it an unused entry.",
        *creates(_AT_ZERO, _OTHER),
        _AT_ZERO.move(0x106),
        _AT_ZERO.move(0x102),
    ),
    _mapped(
        "zero-va-delete",
        "A slot at address 0 can be deleted, but only once.",
        *creates(_AT_ZERO, _OTHER),
        _AT_ZERO.delete(),
        _AT_ZERO.delete(),
    ),
    _mapped(
        "zero-va-create-again",
        "After deletion the same slot can be created again, at address 0 and then elsewhere.",
        _AT_ZERO.create(),
        _AT_ZERO.delete(),
        _AT_ZERO.create(),
        _AT_ZERO.delete(),
        Slot(1, 0x100, at("b"), pages=2).create(),
    ),
    _mapped(
        "zero-va-is-immutable",
        "A slot at address 0 keeps its userspace_addr, and a slot elsewhere cannot change to "
        "address 0.",
        *creates(_AT_ZERO, _OTHER),
        Slot(1, 0x100, at("b", 4), pages=2).create(),
        Slot(2, 0x104, at("zero"), pages=2).create(),
    ),
    _mapped(
        "zero-va-flags",
        "A slot at address 0 counts as existing for a change of flags and for a nop.",
        _AT_ZERO.create(),
        _AT_ZERO.change(LOG_DIRTY_PAGES),
        _AT_ZERO.change(LOG_DIRTY_PAGES),
        _AT_ZERO.change(0),
    ),
    _mapped(
        "zero-va-two-slots",
        "Two slots may both be at address 0; one is deleted, and the other stays.",
        *creates(_AT_ZERO, Slot(3, 0x110, at("zero"), pages=2)),
        _AT_ZERO.delete(),
    ),
    _mapped(
        "zero-va-and-the-pages-above",
        "The pages above address 0, far below any other mapping, are memory like all.",
        *creates(_ABOVE, Slot(3, 0x110, at("zero", 3))),
        _ABOVE.move(0x102),
        _ABOVE.change(LOG_DIRTY_PAGES),
        _ABOVE.delete(),
        _ABOVE.create(),
    ),
    _mapped(
        "zero-va-gpa-0-slot-0",
        "A slot whose id, gpa and hva are all 0 can be created, moved and deleted.",
        Slot(0, 0, at("zero"), pages=1).create(),
        Slot(0, 0, at("zero"), pages=1).move(2),
        Slot(0, 0, at("zero"), pages=1).move(0),
        Slot(0, 0, 0).delete(),
        Slot(0, 0, 0).delete(),
    ),
    _mapped(
        "zero-va-execute",
        "Instructions are fetched from address 0, before and after a move.",
        _AT_ZERO.create(),
        Execute(0x101 * PAGE_SIZE_BYTES),
        _AT_ZERO.move(0x102),
        Execute(0x103 * PAGE_SIZE_BYTES),
    ),
)


def _unmapped(
    name: str, why: str, *operations: AnyOperation, needs: tuple[str, ...] = ()
) -> Scenario:
    return Scenario(
        name=name,
        why=why,
        source="hva_to_pfn; kvm_handle_error_pfn",
        tags=("unmapped", "zero-va") if "zero" in name else ("unmapped",),
        mappings=(A, B, NOWHERE),
        needs=needs,
        operations=operations,
    )


_UNMAPPED = (
    _unmapped(
        "unmapped-zero-va",
        "Creation at address 0 succeeds without memory there; only the guest's access fails.",
        *creates(_EMPTY, _OTHER),
    ),
    _unmapped(
        "unmapped-zero-va-with-each-flag",
        "At address 0 a slot may have any flags, is moved with them, and is created again.",
        *(
            call
            for flags in (LOG_DIRTY_PAGES, READONLY, READONLY | LOG_DIRTY_PAGES)
            for slot in (Slot(1, 0x100, 0, pages=2, flags=flags),)
            for call in (slot.create(), slot.move(0x101), slot.create(), slot.delete())
        ),
        needs=("readonly_mem",),
    ),
    _unmapped(
        "unmapped-zero-va-move-and-delete",
        "A slot without memory can be moved and deleted, and is then absent.",
        _EMPTY.create(),
        _EMPTY.move(0x102),
        _EMPTY.delete(),
        _EMPTY.delete(),
    ),
    _unmapped(
        "unmapped-zero-va-takes-its-place",
        "A slot at address 0 is not overlooked when another is created at its gpas, or with its "
        "id.",
        _EMPTY.create(),
        Slot(2, 0x101, at("b")).create(),
        Slot(1, 0x100, at("a"), pages=2).create(),
    ),
    _unmapped(
        "unmapped-hva",
        "An address range without memory is a legal userspace_addr.",
        *creates(_LOST, _OTHER),
        Touch(0x100 * PAGE_SIZE_BYTES, width=1),
    ),
    _unmapped(
        "unmapped-hva-in-place-of-memory",
        "When a slot is created again without memory at its hva, and again with memory, the "
        "guest sees each in turn.",
        Slot(1, 0x100, at("a"), pages=2).create(),
        _LOST.delete(),
        _LOST.create(),
        _LOST.delete(),
        Slot(1, 0x100, at("a"), pages=2).create(),
    ),
    _unmapped(
        "unmapped-hva-readonly",
        "A write to a READONLY slot is MMIO, even if its hva has no memory.",
        Slot(1, 0x100, at("nowhere"), 2, READONLY).create(),
        needs=("readonly_mem",),
    ),
    _unmapped(
        "unmapped-hva-is-never-dirty",
        "A page that could not be written is not in the dirty log.",
        Slot(1, 0x100, at("nowhere"), 2, LOG_DIRTY_PAGES).create(),
        write(0x101, 0x12345678),
        _LOST.log(),
    ),
    _unmapped(
        "unmapped-hva-cannot-be-executed",
        "A vCPU that executes a page without memory stops, and can run again elsewhere.",
        *creates(_LOST, _OTHER),
        Execute(0x100 * PAGE_SIZE_BYTES),
        read(0x104),
    ),
)

SCENARIOS = (*_MAPPED, *_UNMAPPED)
"""All slots at address 0, and all slots without host memory."""
