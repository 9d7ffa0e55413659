"""Calls of every kind, and slots and logs that they do not name: those stay as they are."""

from collections.abc import Iterator
from dataclasses import replace

import msgspec

from vmm.catalogue._area import Area
from vmm.catalogue._build import A, B, Slot, at, but, creates, read, second_form, write
from vmm.catalogue._dirty import clear
from vmm.scenario.features import Features
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    AnyOperation,
    ChangeHostMemory,
    ClearDirtyLog,
    Clock,
    CloseVm,
    CoalesceMmio,
    CollectMmio,
    CreateIrqchip,
    CreateVcpu,
    EnableCap,
    GetDirtyLog,
    HostChangeKind,
    HostWrite,
    IoEventFd,
    KvmclockCtrl,
    Mapping,
    NewVm,
    ResetDirtyRings,
    Scenario,
    SetClockMsr,
    SetIdentityMapAddr,
    SetTssAddr,
    SetUserMemoryRegion,
    SwitchVm,
)
from vmm.scenario.slots import MAX_PAGES, NO_LAST_GFN

_SIZE = PAGE_SIZE_BYTES
_C, _D, _E, _FILE = Mapping("c", 8), Mapping("d", 8), Mapping("e", 2), Mapping("file", 4, "memfd")

_LOWEST = Slot(9, 0xF0, at("c"), 2)
_LOGGED = Slot(1, 0x100, at("a"), 3, LOG_DIRTY_PAGES)
_CLEAN = Slot(6, 0x108, at("c", 4), 1, LOG_DIRTY_PAGES)
_READONLY = Slot(2, 0x110, at("b"), 2, READONLY)
_HIGHEST = Slot(11, 0x180, at("a", 4), 2)
_GONE = Slot(4, 0x118, at("b", 4))
_LEFT = Slot(7, 0x11C, at("b", 6))
_LAST_GFN = 0x11E
_NOTHING_THERE = ((_GONE.gfn, 0x101), (_LEFT.gfn, 0x100), (_LAST_GFN, 0x100))
_STANDING = (_LOWEST, _LOGGED, _CLEAN, _READONLY, _HIGHEST)


_ONE = Slot(10, 0x140, at("d"), 2)
"""What the calls are about. The ids beside its own stand."""


def _look() -> Iterator[AnyOperation]:
    """Look at all slots that were not named, at their logs, where two were before, and at gpa 0."""
    for slot in _STANDING:
        yield from (read(slot.gfn + page) for page in range(slot.pages))
    yield from (write(slot.gfn, 0x5EE, offset=0x20) for slot in (_LOWEST, _READONLY, _HIGHEST))
    yield from (read(gfn, offset) for gfn, offset in _NOTHING_THERE)
    yield read(0, offset=0)
    yield from (slot.log() for slot in (_LOGGED, _CLEAN, _READONLY, _HIGHEST))


def _around(*calls: AnyOperation) -> Iterator[AnyOperation]:
    """Make calls, each of them while one page or another is dirty, and look at the rest after."""
    for number, call in enumerate(calls):
        yield from (_dirtied(number), call, *_look())


def _dirtied(number: int) -> AnyOperation:
    """Write to a page of the logged slot; those beside it are clean."""
    return write(_LOGGED.gfn + number % _LOGGED.pages, 0xD1)


_area = Area(
    prefix="bystanders-of-",
    tags=("bystanders",),
    source="api.rst 4.8, 4.35",
    needs=("readonly_mem",),
    mappings=(A, B, _C, _D, _E, _FILE),
    survey="none",
    before=(
        *creates(_GONE, _LEFT, *_STANDING),
        *(_GONE.delete(), _LEFT.move(_LAST_GFN), _LEFT.move(_LAST_GFN, LOG_DIRTY_PAGES)),
        _LEFT.delete(),
        *_look(),
    ),
)

_STAY = "All slots and logs that are not named stay as they are"


def _lives_of(slot: Slot) -> Iterator[SetUserMemoryRegion]:
    """Do to a slot what can be done."""
    other = slot.flags ^ LOG_DIRTY_PAGES
    yield from (slot.create(), slot.create(), slot.change(other), slot.change(slot.flags))
    yield from (slot.move(slot.gfn + 1), slot.move(slot.gfn + 0x10, other), slot.delete())


def _seen(calls: Iterator[SetUserMemoryRegion]) -> Iterator[AnyOperation]:
    """Make calls on a slot, and look at its own pages, too, and at what is beyond them."""
    for number, call in enumerate(calls):
        first = call.guest_phys_addr // _SIZE or _ONE.gfn
        yield from (_dirtied(number), call, *_look())
        yield from (read(first + page) for page in range(_FOUR.pages + 1))


_FOUR = replace(_ONE, pages=4)
_RANGES = (
    replace(_ONE, gfn=_LOGGED.gfn + 1),
    replace(_ONE, gfn=_READONLY.gfn, flags=LOG_DIRTY_PAGES),
    replace(_ONE, gfn=_HIGHEST.gfn - 1, flags=READONLY),
    replace(_ONE, gfn=_HIGHEST.gfn + 1, flags=LOG_DIRTY_PAGES),
    replace(_ONE, gfn=_LOWEST.gfn + 1, slot=0),
)


def _refused(features: Features) -> Iterator[AnyOperation]:
    """Make calls that are refused, for each reason, about a slot that is there or is not."""
    ids = (_HIGHEST.slot, _ONE.slot)
    beyond_ids = (0xFFFF, *(features.nr_memslots + number for number in ids))
    beyond = features.last_gfn + 1 if features.last_gfn < NO_LAST_GFN else 0
    yield from (taken.create() for taken in _RANGES)
    yield from (_ONE.delete(), but(_ONE.delete(), userspace_addr=_ONE.hva))
    yield from (but(_ONE.delete(), flags=flags) for flags in (READONLY, LOG_DIRTY_PAGES))
    yield _ONE.create()
    yield from (replace(taken, slot=_ONE.slot).create() for taken in _RANGES[:1])
    yield from (_ONE.move(taken.gfn - 1) for taken in _STANDING)
    yield second_form(_ONE.move(_READONLY.gfn + 1, LOG_DIRTY_PAGES))
    yield _ONE.move(_HIGHEST.gfn + 1)
    yield from (
        replace(_ONE, pages=1).create(),
        replace(_ONE, pages=3).move(0x150, LOG_DIRTY_PAGES),
        replace(_ONE, hva=at("d", 1)).create(),
        _ONE.change(READONLY),
        _ONE.move(0x150, READONLY | LOG_DIRTY_PAGES),
        second_form(_ONE.change(READONLY)),
        second_form(replace(_ONE, hva=at("d", 1)).create()),
        second_form(_ONE.move(_HIGHEST.gfn)),
        but(_ONE.create(), memory_size=_TOO_MANY_PAGES),
        but(_ONE.create(), memory_size=_TOO_MANY_PAGES, flags=LOG_DIRTY_PAGES),
        *(replace(_ONE, slot=slot).move(beyond) for slot in (_ONE.slot, 20) if beyond),
    )
    for call in (_ONE.create(), _ONE.delete()):
        yield from (
            but(call, flags=1 << 4),
            but(call, guest_phys_addr=_ONE.gfn * _SIZE + 8),
            but(call, memory_size=_SIZE // 2),
            but(call, userspace_addr=1 << 63),
            *(msgspec.structs.replace(call, slot=number) for number in beyond_ids),
            msgspec.structs.replace(call, slot=0xFFFF << 16 | _ONE.slot),
            msgspec.structs.replace(call, argument="unreadable"),
        )
    wraps = but(_ONE.create(), guest_phys_addr=(1 << 64) - _SIZE)
    yield from (wraps, second_form(wraps), msgspec.structs.replace(wraps, slot=20))
    yield _ONE.delete()


_TOO_MANY_PAGES = (MAX_PAGES + 1) * _SIZE
_LOG = replace(_ONE, flags=LOG_DIRTY_PAGES)


def _of_logs() -> Iterator[AnyOperation]:
    yield from (_LOG.create(), write(_LOG.gfn, 1), _LOG.log(), _LOG.log())
    yield from (GetDirtyLog(_LOG.slot, "unwritable"), GetDirtyLog(_HIGHEST.slot))
    yield from (GetDirtyLog(20), GetDirtyLog(0xFFFF), GetDirtyLog(0xFFFF << 16 | _LOGGED.slot))
    yield from (_LOG.log(), _LOG.delete())


def _of_clearing() -> Iterator[AnyOperation]:
    yield from (_LOG.create(), write(_LOG.gfn, 1), clear(_LOG, 0, 2), clear(_LOG, 0, 2, 0))
    yield ClearDirtyLog(_LOG.slot, 0, 2, bitmap="unreadable")
    yield from (ClearDirtyLog(_LOG.slot, *range_) for range_ in ((1, 1), (64, 2), (0, 3), (0, 1)))
    yield from (ClearDirtyLog(slot, 0, 2) for slot in (_HIGHEST.slot, 20, 0xFFFF))
    yield from (EnableCap("MANUAL_DIRTY_LOG_PROTECT2", bits) for bits in (2, 1 << 32, 0))
    yield ResetDirtyRings()
    yield from (_LOG.log(), _LOG.delete())


def _of_vms() -> Iterator[AnyOperation]:
    """Do something in another VM, with the same ids and gpas and others, and end it."""
    yield from _around(CreateVcpu(1), CreateVcpu(1))
    yield from _around(*(read(gfn, vcpu=1) for gfn in (_HIGHEST.gfn + 1, _GONE.gfn)))
    yield from (_dirtied(0), SwitchVm(1), SwitchVm(0), *_look())
    same = replace(_LOGGED, hva=at("d"))
    lives: tuple[tuple[AnyOperation, ...], ...] = (
        (same.create(), same.log(), _ONE.create()),
        (write(_ONE.gfn, 3), write(same.gfn, 4), read(_GONE.gfn)),
        (same.move(_LOWEST.gfn), replace(same, gfn=_LOWEST.gfn, flags=0).create(), same.create()),
        (same.log(), _GONE.delete(), _ONE.move(0x150)),
        (same.delete(), _ONE.delete()),
        (replace(_READONLY, flags=0).create(), replace(_HIGHEST, flags=READONLY).create()),
        (CloseVm(),),
    )
    for number, calls in enumerate(lives):
        yield from (_dirtied(number), SwitchVm(1), *calls, SwitchVm(0), *_look())


_RANGE_GPA = 0x160 * _SIZE


def _of_devices() -> Iterator[AnyOperation]:
    for size in (_SIZE, 2 * _SIZE):
        yield from (CoalesceMmio(_RANGE_GPA, size), write(0x160, 0xC0), CollectMmio())
        yield CoalesceMmio(_RANGE_GPA, size, on=False)
    yield _ONE.create()
    for gpa in (_ONE.gfn * _SIZE, _HIGHEST.gfn * _SIZE + 0x800):
        yield from (IoEventFd("within", gpa, on=on) for on in (True, False))
        yield from (CoalesceMmio(gpa, 0x100, on) for on in (True, False))
    yield _ONE.delete()
    for name, match in (("one", None), ("two", 5), ("two", 5)):
        yield IoEventFd(name, _RANGE_GPA + 0x400, 4, match)
    yield from (write(0x160, 5, offset=0x400), CollectMmio())
    for name, match in (("two", 5), ("one", None), ("one", None)):
        yield IoEventFd(name, _RANGE_GPA + 0x400, 4, match, on=False)


_CLOCKS: tuple[Clock, ...] = ("wall_clock", "system_time", "steal_time")


def _of_clocks() -> Iterator[AnyOperation]:
    yield _ONE.create()
    for number, clock in enumerate(_CLOCKS):
        yield SetClockMsr(clock, _ONE.gfn * _SIZE + 0x400 * number)
    yield KvmclockCtrl()
    yield from (SetClockMsr(clock, 0, on=False) for clock in _CLOCKS[1:])
    yield _ONE.delete()


_FOLLOWED = Slot(12, 0x170, at("file"), 4)


def _of_host_memory() -> Iterator[AnyOperation]:
    """Change memory of slots of their own, and that of none."""
    kinds: tuple[HostChangeKind, ...] = (
        *("drop", "forbid", "allow", "write_protect", "allow", "map_fresh", "unmap", "map"),
        "page_out",
    )
    for slot in (_ONE, _FOLLOWED):
        yield slot.create()
    yield HostWrite(at("d", 1), 0xD00D)
    for how in kinds:
        yield ChangeHostMemory(at("d", 1), 1, how)
    for how in kinds[:2]:
        yield ChangeHostMemory(at("d", 4), 2, how)
    yield from (ChangeHostMemory(at("file", 2), 2, how) for how in ("truncate", "extend"))
    yield ChangeHostMemory(at("file"), 1, "punch")
    yield from (ChangeHostMemory(at("e"), 1, how) for how in ("move_away", "move_back"))
    yield from (ChangeHostMemory(at("d"), 1, how) for how in ("fork", "reap"))
    yield from (_ONE.delete(), _FOLLOWED.delete())


def _before_a_vcpu() -> Iterator[AnyOperation]:
    """Ask for internal slots where that can succeed: before any vCPU, when no page is dirty."""
    asked: tuple[tuple[AnyOperation, ...], ...] = (
        (SetTssAddr(0xFFFB_D000), SetIdentityMapAddr(0xFFFB_C000)),
        (CreateIrqchip(),),
    )
    for calls in asked:
        yield from (NewVm(), *creates(_GONE, *_STANDING), _GONE.delete(), *calls, *_look())


def _of_internal_slots() -> Iterator[AnyOperation]:
    yield from (SetTssAddr(0xFFFB_D000), SetTssAddr(0xFFFF_FFFF))
    yield from (SetIdentityMapAddr(0xFFFB_C000), CreateIrqchip())


_SCENARIOS: tuple[Scenario, ...] = (
    *(
        _area(
            f"calls-on-{name}-slot",
            f"{_STAY} when another one is made, logged, moved and deleted.",
            *_seen(_lives_of(slot)),
        )
        for name, slot in (
            ("an-ordinary", _FOUR),
            ("a-readonly", replace(_FOUR, flags=READONLY)),
            ("a-logged", replace(_FOUR, flags=LOG_DIRTY_PAGES)),
        )
    ),
    _area(
        "the-second-form",
        f"{_STAY} when the second form of the call makes, logs, moves and deletes one.",
        *_seen(second_form(call) for call in _lives_of(_FOUR)),
    ),
    _area(
        "dirty-logs",
        f"{_STAY} when another log is read, or cannot be.",
        *_around(*_of_logs()),
        tags=("dirty",),
    ),
    _area(
        "clearing",
        f"{_STAY} when another log is cleared, or cannot be, and when capabilities are refused.",
        *_around(*_of_clearing()),
        tags=("dirty", "clear"),
        needs=("manual_dirty_log",),
    ),
    _area(
        "vcpus-and-vms",
        f"{_STAY} when vCPUs and another VM come, change their slots, and go.",
        *_of_vms(),
        tags=("vcpus",),
        vcpus=2,
    ),
    _area(
        "devices",
        f"{_STAY} when ranges and eventfds come and go.",
        *_around(*_of_devices()),
        tags=("devices",),
        needs=("coalesced_mmio", "ioeventfd"),
    ),
    _area(
        "clocks",
        f"{_STAY} when KVM is told to write clocks elsewhere, and writes them.",
        *_around(*_of_clocks()),
        tags=("clocks",),
        needs=("kvmclock", "kvmclock_ctrl", "steal_time"),
    ),
    _area(
        "host-memory",
        f"{_STAY} when the host changes other memory.",
        *_around(*_of_host_memory()),
        tags=("host",),
    ),
    _area(
        "internal-slots",
        f"{_STAY} when internal slots are asked for.",
        *_around(*_of_internal_slots()),
        *_before_a_vcpu(),
        tags=("internal",),
    ),
)


def scenarios(features: Features) -> tuple[Scenario, ...]:
    """Return the scenarios whose looks are at what the calls were not about."""
    refusals = _area(
        "refusals",
        f"{_STAY} when a call is refused, for whatever reason.",
        *_around(*_refused(features)),
        tags=("errno",),
    )
    return (*_SCENARIOS, refusals)
