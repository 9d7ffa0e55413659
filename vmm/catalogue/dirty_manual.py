"""Manual protection: a log that only KVM_CLEAR_DIRTY_LOG clears, and how it begins."""

from dataclasses import replace

from vmm.catalogue._build import A, B, Slot, at, creates, write
from vmm.catalogue._dirty import (
    API_MANUAL,
    INITIALLY_SET,
    MANUAL,
    MANUAL_OFF,
    clear,
    clearing,
    clearing_initially_set,
    writes,
)
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    EnableCap,
    GetDirtyLog,
    Mapping,
    NewVm,
)

_SLOT = Slot(1, 0x200, at("memory"), 130, LOG_DIRTY_PAGES)
_SMALL = Slot(1, 0x100, at("a"), 4, LOG_DIRTY_PAGES)
_PLAIN = replace(_SMALL, flags=0)
_OTHER = Slot(2, 0x104, at("b"), 4, LOG_DIRTY_PAGES)
_SIZED = tuple(
    Slot(number, 0x100 * number, at("sized"), pages, LOG_DIRTY_PAGES)
    for number, pages in enumerate((1, 63, 64, 65, 130), 1)
)


_initially_set = replace(
    clearing_initially_set, source=API_MANUAL, mappings=(A, B), before=(INITIALLY_SET,)
)

_as_offered = replace(clearing, needs=(), mappings=(A,))
_RING_BYTES = 1 << 16


SCENARIOS = (
    _as_offered(
        "dirty-tracking-as-the-capabilities-say",
        "Manual protection and dirty rings are enabled if their capabilities say so; else EINVAL.",
        MANUAL,
        NewVm(),
        EnableCap("DIRTY_LOG_RING", _RING_BYTES),
        NewVm(),
        EnableCap("DIRTY_LOG_RING_ACQ_REL", _RING_BYTES),
        NewVm(),
        _SMALL.create(),
        *writes(_SMALL, 1),
        _SMALL.log(),
        source="kvm_vm_ioctl_enable_cap",
    ),
    clearing(
        "manual-protection-keeps-the-log",
        "With manual protection, reading the log clears nothing.",
        MANUAL,
        _SLOT.create(),
        *writes(_SLOT, 1, 64),
        _SLOT.log(),
        _SLOT.log(),
        *writes(_SLOT, 2),
        _SLOT.log(),
        source=API_MANUAL,
    ),
    clearing(
        "manual-protection-and-an-unwritable-bitmap",
        "With manual protection, a log that could not be copied to userspace is kept.",
        MANUAL,
        _SLOT.create(),
        *writes(_SLOT, 1, 64),
        GetDirtyLog(1, bitmap="unwritable"),
        _SLOT.log(),
        source="kvm_get_dirty_log_protect",
    ),
    clearing(
        "manual-protection-switched",
        "Manual protection can be switched on and off at any time, also after vCPUs have run.",
        _SLOT.create(),
        *writes(_SLOT, 1),
        MANUAL,
        _SLOT.log(),
        _SLOT.log(),
        MANUAL_OFF,
        _SLOT.log(),
        _SLOT.log(),
        *writes(_SLOT, 2),
        _SLOT.log(),
        _SLOT.log(),
        source="kvm_vm_ioctl_enable_cap_generic",
    ),
    clearing(
        "manual-protection-options",
        "INITIALLY_SET needs MANUAL_PROTECT_ENABLE, and there is no other option: EINVAL; nor is "
        "it one where the capability does not say so. Flags of the call have to be 0.",
        EnableCap("MANUAL_DIRTY_LOG_PROTECT2", 2),
        EnableCap("MANUAL_DIRTY_LOG_PROTECT2", 4),
        EnableCap("MANUAL_DIRTY_LOG_PROTECT2", 5),
        EnableCap("MANUAL_DIRTY_LOG_PROTECT2", 1 << 63 | 1),
        EnableCap("MANUAL_DIRTY_LOG_PROTECT2", 1, flags=1),
        EnableCap("MANUAL_DIRTY_LOG_PROTECT2", 1, flags=1 << 31),
        _SLOT.create(),
        *writes(_SLOT, 1),
        _SLOT.log(),
        _SLOT.log(),
        NewVm(),
        INITIALLY_SET,
        _SLOT.create(),
        _SLOT.log(),
        source=API_MANUAL,
    ),
    clearing(
        "manual-protection-of-one-vm",
        "A new VM begins without manual protection.",
        MANUAL,
        _SMALL.create(),
        *writes(_SMALL, 1),
        NewVm(),
        _SMALL.create(),
        *writes(_SMALL, 2),
        _SMALL.log(),
        _SMALL.log(),
        source=API_MANUAL,
        mappings=(A, B),
    ),
    _initially_set(
        "initially-set",
        "With INITIALLY_SET, a log begins with all pages, and is exact once they are cleared.",
        _SMALL.create(),
        _SMALL.log(),
        *writes(_SMALL, 1),
        clear(_SMALL, 0, 4, 0, 1),
        _SMALL.log(),
        clear(_SMALL, 0, 4),
        _SMALL.log(),
        *writes(_SMALL, 1),
        _SMALL.log(),
    ),
    _initially_set(
        "initially-set-of-every-size",
        "With INITIALLY_SET, a log begins with all pages, whether it ends within a word or with "
        "one, and no page is left once they are cleared.",
        *creates(*_SIZED),
        *(slot.log() for slot in _SIZED),
        *(
            operation
            for slot in _SIZED
            for operation in (clear(slot, 0, slot.pages), *writes(slot, slot.pages - 1), slot.log())
        ),
        mappings=(Mapping("sized", max(slot.pages for slot in _SIZED)),),
        survey="none",
    ),
    _initially_set(
        "initially-set-by-flags-only",
        "With INITIALLY_SET, all pages are dirty whenever logging is switched on, whether mapped "
        "or not.",
        _PLAIN.create(),
        *writes(_SMALL, 1, 2),
        _SMALL.create(),
        _SMALL.log(),
        clear(_SMALL, 0, 4),
        *writes(_SMALL, 2),
        _SMALL.log(),
        _PLAIN.create(),
        _SMALL.create(),
        _SMALL.log(),
    ),
    _initially_set(
        "initially-set-and-moved",
        "With INITIALLY_SET, a move keeps the log, and a move that switches logging on begins "
        "with all pages.",
        _SMALL.create(),
        clear(_SMALL, 0, 4, 0, 1, 2),
        _SMALL.move(0x108),
        _SMALL.log(),
        _SMALL.move(0x100, flags=0),
        _SMALL.move(0x108),
        _SMALL.log(),
        clear(_SMALL, 0, 4),
        write(0x10B, 1),
        _SMALL.log(),
    ),
    _initially_set(
        "initially-set-for-new-slots-only",
        "An existing log stays as it is when INITIALLY_SET is switched on and off.",
        MANUAL,
        _SMALL.create(),
        *writes(_SMALL, 1),
        INITIALLY_SET,
        _SMALL.log(),
        _OTHER.create(),
        MANUAL,
        _OTHER.log(),
        _SMALL.log(),
    ),
)
"""All scenarios about manual protection."""
