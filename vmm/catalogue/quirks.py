"""KVM_CAP_DISABLE_QUIRKS2: VMs on which a change of a slot zaps only the slot's own pages."""

from vmm.catalogue._area import Area
from vmm.catalogue._build import HUGE, WITHOUT_ZAP_ALL, A, B, Slot, at, read, write
from vmm.scenario.operations import SLOT_ZAP_ALL, EnableCap, Scenario

_NOT_A_QUIRK = 1 << 40
_SOURCE = "d012a06ab1d2, aa8d1f48d353; api.rst KVM_X86_QUIRK_SLOT_ZAP_ALL"

_ONE = Slot(1, 0x100, at("a"), pages=2)
_NEXT = Slot(2, 0x102, at("b"), pages=2)

_LOOK = tuple(
    touch
    for gfn in (0x1FF, 0x200, 0x201, *range(0x202, 0x3FF, 31), 0x3FF, 0x400, 0x401, 0x408, 0x409)
    for touch in (read(gfn), write(gfn, gfn, 0x300), read(gfn, 0x300))
)
"""Touches of pages of the two huge pages, at their borders and between."""

_without_quirk = Area(
    prefix="quirks-",
    tags=("quirks",),
    source=_SOURCE,
    needs=("slot_zap_all_quirk",),
    before=(WITHOUT_ZAP_ALL,),
)


SCENARIOS = (
    _without_quirk(
        "delete-one-slot",
        "With SLOT_ZAP_ALL disabled, deletion still removes all pages of the slot, and no others.",
        _NEXT.create(),
        _ONE.create(),
        _ONE.delete(),
        Slot(1, 0x100, at("b", 4), pages=2).create(),
    ),
    _without_quirk(
        "move-one-slot",
        "With SLOT_ZAP_ALL disabled, a move still removes the pages at the old place, but not the "
        "neighbour's.",
        _NEXT.create(),
        _ONE.create(),
        _ONE.move(0x108),
        _ONE.move(0x109),
        _ONE.move(0x100),
    ),
    _without_quirk(
        "move-out-of-huge-page-alignment",
        "With SLOT_ZAP_ALL disabled, a slot on huge pages is moved by one page, and deleted there.",
        Slot(1, 0x200, at("huge"), 520).create(),
        *_LOOK,
        Slot(1, 0x201, at("huge"), 520).create(),
        *_LOOK,
        Slot(1, 0x201, at("huge"), 520).delete(),
        *_LOOK,
        mappings=(HUGE,),
        survey="none",
    ),
    Scenario(
        name="quirks-refuse-unknown",
        why="Disabling an unknown quirk, or one with flags, is refused, and changes nothing.",
        source="api.rst KVM_CAP_DISABLE_QUIRKS2",
        tags=("quirks", "errno"),
        mappings=(A, B),
        operations=(
            _ONE.create(),
            EnableCap("DISABLE_QUIRKS2", _NOT_A_QUIRK),
            EnableCap("DISABLE_QUIRKS2", _NOT_A_QUIRK | SLOT_ZAP_ALL),
            EnableCap("DISABLE_QUIRKS2", 0, flags=1),
            _ONE.move(0x104),
        ),
    ),
)
"""All scenarios about quirks, except the races."""
