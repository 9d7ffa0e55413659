"""VMs that exist at the same time, on the same memory, each with its own slots."""

from vmm.catalogue._area import Area
from vmm.catalogue._build import Slot, at, creates, read, write
from vmm.scenario.features import Features
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    AnyOperation,
    ChangeHostMemory,
    CloseVm,
    EnableCap,
    HarvestDirtyRing,
    HostWrite,
    Inspect,
    NewVm,
    ResetDirtyRings,
    Scenario,
    SwitchVm,
)

_GFN = 0x100
_FIRST, _SECOND = SwitchVm(0), SwitchVm(1)
_HERE = Slot(1, _GFN, at("a"), 4)
_THERE = Slot(1, _GFN, at("b"), 4)
_PAGES = range(4)
_LOGGED = Slot(1, _GFN, at("a"), 4, LOG_DIRTY_PAGES)
_SOURCE = "api.rst 4.35; kvm->memslots is a VM's own"


def _reads(gfn: int = _GFN) -> tuple[AnyOperation, ...]:
    return tuple(read(gfn + page) for page in _PAGES)


def _writes(turn: int, gfn: int = _GFN) -> tuple[AnyOperation, ...]:
    return tuple(write(gfn + page, (turn << 16) + page, 0x200) for page in _PAGES)


_scenario = Area(prefix="vms-", tags=("vms",), source=_SOURCE, survey="none")


def _slots() -> tuple[Scenario, ...]:
    return (
        _scenario(
            "share-memory",
            "The guest of one VM reads what the guest of another writes to the same memory.",
            _HERE.create(),
            *_reads(),
            _SECOND,
            Slot(7, _GFN + 8, at("a"), 4).create(),
            *_reads(_GFN + 8),
            *_writes(1, _GFN + 8),
            _FIRST,
            *(read(_GFN + page, 0x200) for page in _PAGES),
            *_writes(2),
            _SECOND,
            *(read(_GFN + 8 + page, 0x200) for page in _PAGES),
            *_reads(),
        ),
        _scenario(
            "have-slots-of-their-own",
            "The same ids and gpas show other memory in each VM, whatever changes in the other.",
            _HERE.create(),
            *_writes(1),
            _SECOND,
            *_reads(),
            _THERE.create(),
            *_reads(),
            *_writes(2),
            _FIRST,
            *_reads(),
            _HERE.move(_GFN + 2),
            *(read(_GFN + page) for page in range(6)),
            _SECOND,
            *(read(_GFN + page) for page in range(6)),
            _THERE.delete(),
            *_reads(),
            _FIRST,
            *_reads(_GFN + 2),
            Inspect(),
        ),
    )


_SAME_PLACE = Slot(7, _GFN, at("a"), 4)
_CHANGES = (
    *(_HERE.create(), _HERE.delete()),
    *(_SAME_PLACE.create(), _SAME_PLACE.move(_GFN + 8), _SAME_PLACE.delete()),
    *(_LOGGED.create(), _HERE.create(), _HERE.move(_GFN + 8), _HERE.create(), _HERE.delete()),
)


def _alike() -> tuple[Scenario, ...]:
    """Have slots in both VMs with the same gpa and hva, and with the same id or another."""
    return (
        _scenario(
            "with-the-same-slots",
            "A slot stays as it is while another VM creates, changes, moves and deletes one with "
            "its gpa and its hva.",
            *creates(_HERE, Slot(2, _GFN + 8, at("b"), 4)),
            *_reads(),
            *(
                operation
                for turn, change in enumerate(_CHANGES, 1)
                for operation in (_SECOND, change, *_reads(), _FIRST, *_reads(), *_writes(turn))
            ),
            *_reads(_GFN + 8),
        ),
    )


def _refusals() -> tuple[Scenario, ...]:
    return (
        _scenario(
            "are-refused-for-themselves",
            "Only a VM's own slots decide whether a slot overlaps or is absent.",
            *creates(_HERE, Slot(2, _GFN + 8, at("b"), 2)),
            _SECOND,
            _HERE.delete(),
            Slot(2, _GFN + 2, at("b"), 4).create(),
            _HERE.create(),
            Slot(2, _GFN + 9, at("b"), 4).create(),
            _FIRST,
            Slot(2, _GFN + 3, at("b"), 2).create(),
            Slot(3, _GFN + 9, at("b"), 2).create(),
            _SECOND,
            *_reads(_GFN + 8),
        ),
    )


def _logs() -> tuple[Scenario, ...]:
    return (
        _scenario(
            "have-logs-of-their-own",
            "A dirty log names what the guest of its own VM wrote, and nothing that another wrote.",
            _LOGGED.create(),
            write(_GFN + 1, 1),
            _SECOND,
            _LOGGED.create(),
            write(_GFN + 2, 2),
            _FIRST,
            _LOGGED.log(),
            write(_GFN + 3, 3),
            _SECOND,
            _LOGGED.log(),
            _LOGGED.log(),
            _FIRST,
            _LOGGED.log(),
        ),
        _scenario(
            "change-beside-a-log",
            "A dirty log names what its guest wrote, however another VM's slots on the same "
            "memory change meanwhile.",
            _LOGGED.create(),
            write(_GFN + 1, 1),
            _SECOND,
            _LOGGED.create(),
            _LOGGED.move(_GFN + 8),
            _LOGGED.delete(),
            _FIRST,
            _LOGGED.log(),
            write(_GFN + 2, 2),
            _SECOND,
            _HERE.create(),
            _LOGGED.create(),
            _HERE.create(),
            _FIRST,
            _LOGGED.log(),
            write(_GFN + 3, 3),
            _SECOND,
            CloseVm(),
            _FIRST,
            _LOGGED.log(),
        ),
    )


def _rings(enable: EnableCap) -> tuple[Scenario, ...]:
    return (
        _scenario(
            "have-rings-of-their-own",
            "One VM may have dirty rings and another none; each ring names what its own VM wrote.",
            enable,
            _LOGGED.create(),
            write(_GFN + 1, 1),
            _SECOND,
            _LOGGED.create(),
            write(_GFN + 2, 2),
            _LOGGED.log(),
            _FIRST,
            HarvestDirtyRing(),
            ResetDirtyRings(),
            write(_GFN + 3, 3),
            _SECOND,
            ResetDirtyRings(),
            _LOGGED.log(),
            _FIRST,
            HarvestDirtyRing(),
            needs=("dirty_ring_bytes",),
        ),
    )


def _host_memory() -> tuple[Scenario, ...]:
    return (
        _scenario(
            "all-follow-the-host",
            "Guests of all VMs follow the host's changes to memory that they share.",
            _HERE.create(),
            *_reads(),
            _SECOND,
            Slot(2, _GFN + 8, at("a"), 4).create(),
            *_reads(_GFN + 8),
            ChangeHostMemory(at("a", 1), 2),
            *_reads(_GFN + 8),
            _FIRST,
            *_reads(),
            ChangeHostMemory(at("a", 2), 2, "forbid"),
            *_reads(),
            *_writes(1),
            _SECOND,
            *_reads(_GFN + 8),
            ChangeHostMemory(at("a", 2), 2, "allow"),
            HostWrite(at("b"), 5),
            *_reads(_GFN + 8),
            _FIRST,
            *_reads(),
            needs=("sync_mmu",),
            source="KVM_CAP_SYNC_MMU: each VM has an mmu_notifier",
        ),
    )


def _ends() -> tuple[Scenario, ...]:
    return (
        _scenario(
            "outlive-each-other",
            "When one VM is closed, or created again, another keeps its slots.",
            _HERE.create(),
            *_writes(1),
            _SECOND,
            _HERE.create(),
            *_writes(2),
            CloseVm(),
            _FIRST,
            *_reads(),
            _HERE.move(_GFN + 8),
            *_writes(3, _GFN + 8),
            _SECOND,
            NewVm(),
            *_reads(),
            _HERE.create(),
            *_reads(),
            _FIRST,
            NewVm(),
            *_reads(_GFN + 8),
            _SECOND,
            *_writes(4),
            source="kvm_destroy_vm",
        ),
    )


def _four() -> tuple[Scenario, ...]:
    return (
        _scenario(
            "of-which-there-are-four",
            "Four VMs show one host page at different gpas.",
            *(
                op
                for vm in range(4)
                for op in (SwitchVm(vm), Slot(vm, _GFN + vm, at("a"), 1).create(), *_reads())
            ),
            *(op for vm in range(4) for op in (SwitchVm(vm), write(_GFN + vm, vm + 1), *_reads())),
            SwitchVm(2),
            Slot(2, _GFN + 2, at("a"), 1).delete(),
            *(op for vm in range(4) for op in (SwitchVm(vm), *_reads())),
        ),
    )


def scenarios(features: Features) -> tuple[Scenario, ...]:
    """Return all scenarios of several VMs at the same time."""
    enable = EnableCap("DIRTY_LOG_RING", features.dirty_ring_bytes)
    return (
        *_slots(),
        *_alike(),
        *_refusals(),
        *_logs(),
        *_rings(enable),
        *_host_memory(),
        *_ends(),
        *_four(),
    )
