"""What some random races have besides: cleared logs, dirty rings, guest_memfds, code, children.

A twist is added to a race that is whole without it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from kvm_abi.uapi import DirtyLogManual
from vmm.fuzz.generate.dice import Dice
from vmm.scenario.features import Features
from vmm.scenario.hostpages import CHANGES
from vmm.scenario.operations import (
    GUEST_MEMFD,
    PAGE_SIZE_BYTES,
    AnyOperation,
    ChangeHostMemory,
    ClearDirtyLog,
    CloseGuestMemfd,
    CreateGuestMemfd,
    EnableCap,
    Execute,
    GetDirtyLog,
    GuestThread,
    HarvestDirtyRing,
    HostAction,
    HostThread,
    Place,
    PunchGuestMemfd,
    ResetDirtyRings,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
)

TWISTS = ("clears", "rings", "files", "code", "child")
WITHOUT_CLOCKS = ("rings", "code")
"""Those whose outcome is unknown where KVM writes a clock."""

_FILE_PAGES = 4
_FILES = ("closed", "punched")
_FILE_SLOT = 9
_FILE_GFN = 0x180
"""Where no vCPU looks: what a guest reaches in a guest_memfd needs private memory."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a race is made of: operations before it and after it, and its threads."""

    hosts: tuple[HostThread, ...]
    guests: tuple[GuestThread, ...]
    before: tuple[AnyOperation, ...] = ()
    after: tuple[AnyOperation, ...] = ()
    needs: tuple[str, ...] = ()


def twisted(dice: Dice, features: Features, twist: str, parts: Parts) -> Parts:
    """Return the parts of a race with a twist, if the kernel has what that takes."""
    if twist == "clears" and features.manual_dirty_log:
        return _clears(dice, features, parts)
    if twist == "rings" and features.dirty_ring_bytes:
        return _rings(features, parts)
    if twist == "files" and features.guest_memfd and features.user_memory2:
        return _files(dice, parts)
    if twist == "code":
        return _code(dice, parts)
    if twist == "child" and features.sync_mmu and features.process_files:
        return _child(parts)
    return parts


def _clears(dice: Dice, features: Features, parts: Parts) -> Parts:
    """Let the dirty log be cleared by hand, some of its pages or all."""
    options = DirtyLogManual.MANUAL_PROTECT_ENABLE
    needs: tuple[str, ...] = ("manual_dirty_log",)
    if features.dirty_log_initially_set and dice.chance(0.3):
        options |= DirtyLogManual.INITIALLY_SET
        needs = (*needs, "dirty_log_initially_set")
    hosts = tuple(_with_clears(dice, host) for host in parts.hosts)
    begin = EnableCap("MANUAL_DIRTY_LOG_PROTECT2", options)
    return replace(parts, hosts=hosts, before=(begin, *parts.before), needs=needs)


def _with_clears(dice: Dice, host: HostThread) -> HostThread:
    first = host.operations[0]
    assert isinstance(first, SetUserMemoryRegion)
    pages = first.memory_size // PAGE_SIZE_BYTES
    operations: list[HostAction] = []
    for op in host.operations:
        operations.append(op)
        if isinstance(op, GetDirtyLog) or dice.chance(0.2):
            some = tuple(page for page in range(pages) if dice.chance(0.6))
            clear = ClearDirtyLog(first.slot, 0, pages)
            if some and dice.chance(0.5):
                clear = ClearDirtyLog(first.slot, 0, pages, some)
            operations.append(clear)
    return msgspec.structs.replace(host, operations=tuple(operations))


def _rings(features: Features, parts: Parts) -> Parts:
    """Let a thread harvest and reset dirty rings, in place of dirty logs."""
    harvests = tuple(HarvestDirtyRing(vcpu) for vcpu in range(len(parts.guests)))
    hosts = tuple(_only(host, _is_no_log) for host in parts.hosts)
    harvesting = HostThread((*harvests, ResetDirtyRings()), 8, 1)
    begin = EnableCap("DIRTY_LOG_RING", features.dirty_ring_bytes)
    return Parts(
        (*hosts, harvesting),
        parts.guests,
        (begin, *parts.before, *harvests, ResetDirtyRings()),
        (ResetDirtyRings(), *harvests, ResetDirtyRings(), *filter(_is_no_log, parts.after)),
        ("dirty_ring_bytes",),
    )


def _is_no_log(op: AnyOperation) -> bool:
    return not isinstance(op, GetDirtyLog)


def _files(dice: Dice, parts: Parts) -> Parts:
    """Let a slot leave a guest_memfd that is closed meanwhile, for one with holes."""
    size = _FILE_PAGES * PAGE_SIZE_BYTES
    made = tuple(CreateGuestMemfd(name, size) for name in _FILES)
    operations: list[HostAction] = [SetUserMemoryRegion(_FILE_SLOT)]
    for _ in range(dice.between(1, 3)):
        first = dice.below(_FILE_PAGES)
        pages = dice.between(1, _FILE_PAGES - first)
        hole = PunchGuestMemfd(_FILES[1], first * PAGE_SIZE_BYTES, pages * PAGE_SIZE_BYTES)
        operations += (_bind(dice, _FILES[1]), hole, SetUserMemoryRegion(_FILE_SLOT))
    closes = HostThread((CloseGuestMemfd(_FILES[0]),), pause=dice.pick((0, 1)))
    binds = HostThread(tuple(operations), dice.between(2, 6), dice.pick((0, 1)))
    before = (*made, _bind(dice, _FILES[0]), *parts.before)
    needs = ("guest_memfd", "user_memory2")
    return replace(parts, hosts=(*parts.hosts[:2], closes, binds), before=before, needs=needs)


def _bind(dice: Dice, name: str) -> SetUserMemoryRegion2:
    pages = dice.between(1, _FILE_PAGES)
    return SetUserMemoryRegion2(
        _FILE_SLOT,
        _FILE_GFN * PAGE_SIZE_BYTES,
        pages * PAGE_SIZE_BYTES,
        Place("kept"),
        GUEST_MEMFD,
        guest_memfd=name,
        guest_memfd_offset=dice.below(_FILE_PAGES - pages + 1) * PAGE_SIZE_BYTES,
    )


def _code(dice: Dice, parts: Parts) -> Parts:
    """Let the last vCPU execute the code in a page, which then has to keep its content."""
    last = len(parts.guests) - 1
    page = next(op.gpa for op in parts.guests[last].program) & -PAGE_SIZE_BYTES
    code = GuestThread((Execute(page, last),), migrates=dice.pick((0, 0, 3)))
    hosts = tuple(_only(host, _keeps_content) for host in parts.hosts)
    return replace(parts, hosts=hosts, guests=(*parts.guests[:last], code))


def _child(parts: Parts) -> Parts:
    """Let a thread fork a child, which shares memory with guests until the end of the round."""
    first, *others = (_only(host, _leaves_memory) for host in parts.hosts)
    fork = ChangeHostMemory(Place("kept"), 1, "fork")
    reap = ChangeHostMemory(Place("kept"), 1, "reap")
    forking = msgspec.structs.replace(first, operations=(fork, *first.operations, reap))
    return replace(parts, hosts=(forking, *others))


def _leaves_memory(op: AnyOperation) -> bool:
    if not isinstance(op, ChangeHostMemory):
        return True
    return CHANGES[op.how].leaves_pages and op.how not in ("fetch_later", "guard", "settle")


def _keeps_content(op: AnyOperation) -> bool:
    if not isinstance(op, ChangeHostMemory):
        return True
    return CHANGES[op.how].keeps and op.how not in ("move_away", "move_back")


def _only(host: HostThread, stays: Callable[[AnyOperation], bool]) -> HostThread:
    """Return a thread with those of its operations that stay."""
    return msgspec.structs.replace(host, operations=tuple(filter(stays, host.operations)))
