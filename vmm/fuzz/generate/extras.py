"""Operations that only some random scenarios have: on dirty rings, guest_memfds, host memory,
internal slots, pre-faulted memory and more. Each of these is a *subject*.

Having one subject at most also keeps them apart: code is executed only where none of its pages can
turn into zeros, which the guest would run through for ever.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import msgspec

from kvm_abi.uapi import IDENTITY_MAP_GPA, USUAL_TSS_GPA
from vmm.fuzz.generate.devices import Devices
from vmm.fuzz.generate.dice import Dice
from vmm.fuzz.generate.interrupts import Interrupts
from vmm.fuzz.generate.looks import within_reach
from vmm.fuzz.generate.pools import RING_FILLER, SHOWN, Pools
from vmm.fuzz.generate.smis import Smis
from vmm.fuzz.generate.starts import Starts
from vmm.fuzz.generate.world import World
from vmm.scenario.features import Features
from vmm.scenario.hostpages import CHANGES, EMPTIES, keeper_of
from vmm.scenario.instructions import INSTRUCTIONS
from vmm.scenario.operations import (
    ATTRIBUTE_PRIVATE,
    FIRST_RING_PAGE,
    GUEST_MEMFD,
    LOG_DIRTY_PAGES,
    MEMFD_INIT_SHARED,
    MEMFD_MMAP,
    PAGE_SIZE_BYTES,
    READONLY,
    SLOT_ZAP_ALL,
    UNSHARE_RANGE,
    ZERO_RANGE,
    AnyOperation,
    CapName,
    ChangeHostMemory,
    Clock,
    CloseGuestMemfd,
    CreateGuestMemfd,
    CreateIrqchip,
    CreateVcpu,
    Death,
    EnableCap,
    HarvestDirtyRing,
    HostChangeKind,
    HostWrite,
    Inspect,
    Instruction,
    KvmclockCtrl,
    Lives,
    MapGuestMemfd,
    Mapping,
    MapVcpuPages,
    NewVm,
    PageMsr,
    Place,
    PreFaultMemory,
    PunchGuestMemfd,
    ResetDirtyRings,
    ResizeGuestMemfd,
    SetApic,
    SetClockMsr,
    SetIdentityMapAddr,
    SetMemoryAttributes,
    SetNrMmuPages,
    SetPageMsr,
    SetTssAddr,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    SetVapicAddr,
    Sweep,
    SwitchVm,
    Touch,
    UnmapInternalSlots,
)
from vmm.scenario.slots import as_id_of
from vmm.scenario.vapic_operations import PAGE_MSR_STEPS

_replace = msgspec.structs.replace

_MOST_WRITES = 60
"""Writes between two resets of dirty rings.

Overruns are a known issue of kvm_pvm, which would be found over and over.
"""

_FILLS = 0.1
_AT_ONCE = 48
"""Writes in one KVM_RUN when a ring may get full: fewer than fit above its soft limit."""

_FILLER_GFN = 0x2000
_AIMED_CHANGES = 0.5
_LOOKS_BEFORE_CHANGES = 0.3
_SAME_PLACES = 0.4
_LOOKS_AFTER_CHANGES = 0.6
_CLOSES = 0.1
"""The share of switches to another VM that is closed then, and made anew."""

_LIVES = 0.08
"""Other VMs live and die that often in place of a switch: a life takes as long as a scenario."""

_DEATHS: tuple[Death, ...] = get_args(Death)

_MMU_PAGES = (0, 62, 64, 64, 100)
"""About how many page tables KVM may have: less than 64 are too few."""

_NOT_A_QUIRK = 1 << 62
_BAD_RING_SIZES = (0, 2048, 4097, 12288, 1 << 31)
_RING_CAPS: tuple[CapName, ...] = ("DIRTY_LOG_RING", "DIRTY_LOG_RING_ACQ_REL")
_MANUAL_OPTIONS = (0, 1, 1, 2, 3, 4, 5, 7, 1 << 32 | 1, 1 << 63)
_FILE_PAGES = (1, 2, 4, 8)
_OTHER_MODES = (1 << 2, 1 << 3, ZERO_RANGE, 1 << 5, UNSHARE_RANGE, 1 << 30)
_BAD_FILE_SIZES = (0, 0x200, PAGE_SIZE_BYTES + 1, 1 << 63)
_SHARED = "shared"
"""The guest_memfd that the mapping ``SHOWN`` maps."""

_TSS_GPAS = (USUAL_TSS_GPA, USUAL_TSS_GPA, 0xFFFB_8000, 1 << 32)
_IDENTITY_GPAS = (IDENTITY_MAP_GPA, 0xFFFB_B000)
"""Apart from each other and from the guest's memory, so that no vCPU is affected by them."""


_CLOCKS: tuple[Clock, ...] = ("system_time", "steal_time", "steal_time", "wall_clock")
_CLOCK_OFFSETS = (0x400, 0x400, 0x710, 0x7C0, 0xF80)
"""Where there is no touch and no code; one of them is not aligned as steal time must be."""

_VAPIC_OFFSETS = (0x400, 0x400, 0x404, 0x711, 0xF80)
"""Where there is no touch and no code."""

_PAGE_MSRS: tuple[PageMsr, ...] = get_args(PageMsr)

_IDLE_GPA = 0x7000_0040
"""A touch here lets a vCPU run; random scenarios have no slot here."""

_BACK: dict[HostChangeKind, HostChangeKind] = {
    "unmap": "map",
    "forbid": "allow",
    "write_protect": "allow",
    "map_fresh": "map",
    "map_file": "map",
    "truncate": "extend",
    "move_away": "move_back",
    "fetch_later": "settle",
    "guard": "settle",
}
_PAGED: tuple[HostChangeKind, ...] = ("fetch_later", "guard")
_NEVER_FIRST = ("map", "allow", "extend", "move_back", "settle", "fork", "reap")
_IMMOVABLE = ("unmap", "forbid", "write_protect", "map_file")
"""After these a mapping's pages are not moved: it is no longer a single mapping."""


class Extras:
    """Makes the operations of a scenario's subjects."""

    def __init__(self, dice: Dice, features: Features, pools: Pools, world: World) -> None:
        self._dice = dice
        self._features = features
        self._pools = pools
        self._world = world
        self._writes = 0
        self._fills = False
        self._files: dict[str, int] = {}
        self._made = 0
        self._taken: dict[str, ChangeHostMemory] = {}
        self._is_forked = False
        self._moves = dice.chance(0.3)
        self._starts = Starts(dice, pools, world)
        self._interrupts = Interrupts(dice, pools, world)
        self._smis = Smis(dice, pools, world)
        makers = {
            "rings": self._ring,
            "memfds": self._memfd,
            "host": self._followed_change,
            "internal": self._internal,
            "ahead": self._pre_fault,
            "vms": self._switch,
            "clocks": self._clock,
            "vapics": self._vapic,
            "devices": Devices(dice, pools).next,
            "starts": self._starts.next,
            "interrupts": self._interrupts.next,
            "smis": self._smis.next,
        }
        self._makers: list[Callable[[], Iterator[AnyOperation]]] = [
            makers[subject] for subject in makers if subject in pools.subjects
        ]

    def begin(self) -> Iterator[AnyOperation]:
        """Yield what has to come before any vCPU of a VM."""
        dice, features = self._dice, self._features
        self._writes = 0
        self._is_forked = False
        if dice.chance(0.15):
            for _ in range(dice.between(1, 4)):
                yield self._odd_cap()
        if features.slot_zap_all_quirk and dice.chance(0.1):
            yield EnableCap("DISABLE_QUIRKS2", SLOT_ZAP_ALL)
        if "internal" in self._pools.subjects:
            for _ in range(dice.between(1, 4)):
                yield from self._internal()
        if "rings" in self._pools.subjects:
            if dice.chance(0.2):
                yield EnableCap("DIRTY_LOG_RING", dice.pick(_BAD_RING_SIZES))
            acquire = features.dirty_ring_acq_rel and dice.chance(0.3)
            size_bytes = features.dirty_ring_bytes * dice.pick((1, 1, 2))
            yield EnableCap("DIRTY_LOG_RING_ACQ_REL" if acquire else "DIRTY_LOG_RING", size_bytes)
        if "vapics" in self._pools.subjects and dice.chance(0.9):
            yield CreateIrqchip()
        if "starts" in self._pools.subjects:
            yield from self._starts.begin()
        if "interrupts" in self._pools.subjects:
            yield from self._interrupts.begin()
        if "smis" in self._pools.subjects:
            yield from self._smis.begin()

    def after(self) -> Iterator[AnyOperation]:
        """Yield, now and then, an operation of a subject."""
        if self._makers and self._dice.chance(0.5):
            yield from self._dice.pick(self._makers)()
        elif self._dice.chance(0.005):
            stray: tuple[AnyOperation, ...] = (
                CreateVcpu(),
                HarvestDirtyRing(),
                ResetDirtyRings(),
                self._odd_cap(),
                self._odd_cap(),
            )
            yield self._dice.pick(stray)

    @property
    def has_rings(self) -> bool:
        """Whether the scenario uses dirty rings."""
        return "rings" in self._pools.subjects

    def meanwhile(self, operation: AnyOperation) -> Iterator[AnyOperation]:
        """Yield the emptying of dirty rings that ``operation`` may have nearly filled."""
        if self._fills:
            return
        if isinstance(operation, Instruction):
            # What it reads and what it writes, each possibly across a page border.
            self._writes += 4 * INSTRUCTIONS[operation.name].times * operation.count
        elif not isinstance(operation, Touch | Sweep):
            return
        elif operation.access == "write" or self._features.reads_make_dirty:
            self._writes += operation.count if isinstance(operation, Sweep) else 1
        if self._writes >= _MOST_WRITES:
            self._writes = 0
            yield from self._harvest_all()
            yield ResetDirtyRings()

    def end(self) -> Iterator[AnyOperation]:
        """Yield the last operations."""
        if "rings" in self._pools.subjects:
            yield from self._harvest_all()
        looks = self._features.process_files
        if looks and "internal" in self._pools.subjects and self._dice.chance(0.5):
            yield UnmapInternalSlots()

    def _harvest_all(self) -> Iterator[HarvestDirtyRing]:
        return (HarvestDirtyRing(vcpu) for vcpu in range(self._pools.vcpus))

    def _odd_cap(self) -> EnableCap | SetNrMmuPages:
        """Return an enabled capability with arguments that most kernels refuse, or another limit.

        Of ring sizes only the largest is valid: a small ring that nobody empties would overrun.
        """
        dice, features = self._dice, self._features
        what = dice.random()
        if what < 0.4:
            flags = 0 if what >= 0.1 else 1 if what >= 0.05 else 1 << 31
            return EnableCap("MANUAL_DIRTY_LOG_PROTECT2", dice.pick(_MANUAL_OPTIONS), flags)
        if what < 0.6:
            offered = features.quirks & -features.quirks
            next_one = ~features.quirks & features.quirks + 1
            quirks = (0, offered, next_one, offered | next_one, _NOT_A_QUIRK)
            return EnableCap("DISABLE_QUIRKS2", dice.pick(quirks))
        if what >= 0.9:
            return SetNrMmuPages(dice.pick(_MMU_PAGES) + dice.below(3))
        most = max(features.dirty_ring_max_bytes, PAGE_SIZE_BYTES)
        sizes = (most, 2 * most, most + PAGE_SIZE_BYTES, most - PAGE_SIZE_BYTES, 1 << 32 | most)
        return EnableCap(dice.pick(_RING_CAPS), dice.pick((*sizes, *_BAD_RING_SIZES)))

    def _ring(self) -> Iterator[AnyOperation]:
        dice = self._dice
        if dice.chance(_FILLS):
            yield from self._fill()
        if dice.chance(0.6):
            yield HarvestDirtyRing(dice.below(self._pools.vcpus))
        if dice.chance(0.4):
            yield ResetDirtyRings()
        if dice.chance(0.03):
            yield EnableCap("DIRTY_LOG_RING", self._features.dirty_ring_bytes)
        if dice.chance(0.05):
            yield self._vcpu_mapping()

    def _vcpu_mapping(self) -> MapVcpuPages:
        """Return a mapping of pages of a vCPU's file, about the ends of its smallest ring."""
        dice = self._dice
        ring_pages = max(self._features.dirty_ring_bytes // PAGE_SIZE_BYTES, 1)
        first = dice.pick((0, FIRST_RING_PAGE - 1, FIRST_RING_PAGE))
        pages = dice.pick((1, 2, FIRST_RING_PAGE, ring_pages, ring_pages + 1))
        sharing: Literal["shared", "private"] = "private" if dice.chance(0.5) else "shared"
        vcpu = dice.below(self._pools.vcpus)
        return MapVcpuPages(first, pages, sharing, dice.chance(0.3), vcpu)

    def _fill(self) -> Iterator[AnyOperation]:
        """Yield writes to more pages than a ring has entries, if there is a mapping for that."""
        dice, pools = self._dice, self._pools
        filler = next((each for each in pools.mappings if each.name == RING_FILLER), None)
        if filler is None:
            return
        size = filler.pages * PAGE_SIZE_BYTES
        gpa = _FILLER_GFN * PAGE_SIZE_BYTES
        flags = LOG_DIRTY_PAGES
        call = SetUserMemoryRegion(dice.pick(pools.slots), gpa, size, Place(RING_FILLER), flags)
        self._fills = True
        yield from (SetUserMemoryRegion(call.slot), call)
        self._world.apply(SetUserMemoryRegion(call.slot))
        self._world.apply(call)
        vcpu, value = dice.below(pools.vcpus), dice.below(1 << 31)
        for page in range(filler.pages - dice.pick((0, 0, 1, 30))):
            yield Touch(gpa + page * PAGE_SIZE_BYTES + 0x40, "write", 4, value + page, vcpu)
            if page % _AT_ONCE == _AT_ONCE - 1:
                yield Inspect()
        yield from self._harvest_all()
        yield ResetDirtyRings()
        self._writes, self._fills = 0, False

    def _internal(self) -> Iterator[AnyOperation]:
        dice, pools = self._dice, self._pools
        what = dice.below(4)
        if what == 0:
            yield SetTssAddr(dice.pick(_TSS_GPAS))
        elif what == 1:
            yield SetIdentityMapAddr(dice.pick(_IDENTITY_GPAS))
        elif what == 2 and pools.vcpus == 1:
            yield CreateIrqchip()
        else:
            yield CreateVcpu(dice.below(pools.vcpus))

    def _pre_fault(self) -> Iterator[AnyOperation]:
        dice = self._dice
        size = dice.pick((1, 1, 2, 4)) * PAGE_SIZE_BYTES
        gpa = dice.pick(self._pools.gfns) * PAGE_SIZE_BYTES
        if dice.chance(0.1):
            gpa, size = dice.pick(((gpa + 1, size), (gpa, 0), (gpa, size + 1)))
        flags = 1 if dice.chance(0.03) else 0
        yield PreFaultMemory(gpa, size, flags, dice.below(self._pools.vcpus))

    def _followed_change(self) -> Iterator[AnyOperation]:
        """Yield a change of host memory, and often reads of what slots show of it."""
        for change in self._host_change():
            if self._dice.chance(_LOOKS_BEFORE_CHANGES):
                yield from self._shown(change)
            yield change
            if self._dice.chance(_LOOKS_AFTER_CHANGES):
                yield from self._shown(change)

    def _shown(self, change: ChangeHostMemory) -> Iterator[Touch]:
        """Yield reads of the first and last page of a change, and of the next, in each slot."""
        first, spaces = change.place.offset, self._pools.spaces
        pages = (first, first + (change.pages - 1) * PAGE_SIZE_BYTES)
        for slot in self._world.slots.values():
            hva, as_id = slot.userspace_addr, as_id_of(slot.slot)
            if not isinstance(hva, Place) or hva.mapping != change.place.mapping:
                continue
            for page in (*dict.fromkeys(pages), pages[-1] + PAGE_SIZE_BYTES):
                gpa = slot.guest_phys_addr + page - hva.offset + 0x40
                inside = 0 <= page - hva.offset < slot.memory_size
                if inside and within_reach(gpa, 4, self._pools.reach):
                    yield from (Touch(gpa, as_id=each) for each in spaces if each == as_id)

    def _host_change(self) -> Iterator[ChangeHostMemory]:
        """Yield a change of some pages, or undo the last change of a mapping.

        The first mapping keeps its pages, since the host writes there.
        """
        dice = self._dice
        mappings = self._pools.mappings
        mapping = dice.pick([each for each in mappings if _changes(each, mappings)])
        taken = self._taken.pop(mapping.name, None)
        if taken is not None:
            yield _replace(taken, how=_BACK[taken.how], source=None)
            return
        is_paged = any(each.how in _PAGED for each in self._taken.values())
        can_fork = mapping.kind in CHANGES["fork"].kinds and self._features.process_files
        if dice.chance(0.1) and not is_paged and can_fork:
            self._is_forked = not self._is_forked
            yield ChangeHostMemory(Place(mapping.name), 1, "fork" if self._is_forked else "reap")
            return
        how = dice.pick([how for how in _changes(mapping, mappings) if self._may(how)])
        if mapping.kind == "thp" and self._features.collapse and dice.chance(0.3):
            how = "collapse"
        files = [each for each in mappings if each.kind == "memfd" and not each.of]
        if (how in _BACK and mapping is mappings[0]) or (how == "map_file" and not files):
            how = "drop"
        first, pages = self._changed_pages(mapping)
        source = None
        if how == "truncate":
            pages = mapping.pages - first
        elif how == "map_file":
            file = dice.pick(files)
            pages = min(pages, file.pages)
            source = Place(file.name, dice.below(file.pages - pages + 1) * PAGE_SIZE_BYTES)
        change = ChangeHostMemory(Place(mapping.name, first * PAGE_SIZE_BYTES), pages, how, source)
        if how in _BACK:
            self._taken[mapping.name] = change
        yield change

    def _changed_pages(self, mapping: Mapping) -> tuple[int, int]:
        """Return the first page to change, and how many: often the first or last of a slot's."""
        dice = self._dice
        first = dice.below(min(mapping.pages, 8))
        pages = dice.between(1, min(mapping.pages - first, 4))
        ends = list(self._ends(mapping))
        if not ends or not dice.chance(_AIMED_CHANGES):
            return first, pages
        start, end = dice.pick(ends)
        if dice.chance(0.5):
            return start, min(pages, end - start)
        return max(start, end - pages), min(pages, end - start)

    def _ends(self, mapping: Mapping) -> Iterator[tuple[int, int]]:
        """Yield the first page that a slot shows of a mapping, and the page after its last."""
        for slot in self._world.slots.values():
            hva = slot.userspace_addr
            if isinstance(hva, Place) and hva.mapping == mapping.name:
                start = hva.offset // PAGE_SIZE_BYTES
                end = min(start + slot.memory_size // PAGE_SIZE_BYTES, mapping.pages)
                if start < end:
                    yield start, end

    def _clock(self) -> Iterator[AnyOperation]:
        """Yield the start or end of a clock, a pause, and a run with a look at memory after it."""
        dice, pools = self._dice, self._pools
        vcpu = dice.below(pools.vcpus)
        gpa = dice.pick(pools.gfns) * PAGE_SIZE_BYTES + dice.pick(_CLOCK_OFFSETS)
        if dice.chance(0.5) and within_reach(gpa, PAGE_SIZE_BYTES, pools.reach):
            clock = dice.pick(_CLOCKS)
            yield SetClockMsr(clock, gpa, dice.chance(0.9), vcpu)
        if dice.chance(0.6):
            yield KvmclockCtrl(vcpu)
        yield Touch(_IDLE_GPA, vcpu=vcpu)
        if dice.chance(0.5):
            yield Inspect()

    def _vapic(self) -> Iterator[AnyOperation]:
        """Yield what concerns a local APIC in memory, and a run with a look at memory after it."""
        dice, pools = self._dice, self._pools
        gpa = dice.pick(pools.gfns) * PAGE_SIZE_BYTES + dice.pick(_VAPIC_OFFSETS)
        is_near = within_reach(gpa, PAGE_SIZE_BYTES, pools.reach)
        what = dice.below(6)
        if what < 3 and is_near:
            yield SetVapicAddr(gpa if dice.chance(0.9) else 0)
        elif what == 3 and is_near:
            msr = dice.pick(_PAGE_MSRS if pools.spaces == (0,) else ("pv_eoi",))
            yield SetPageMsr(msr, gpa - gpa % PAGE_MSR_STEPS[msr], dice.chance(0.8))
        elif what == 4 and self._world.slots:
            mapping = dice.pick(pools.mappings)
            page = dice.below(min(mapping.pages, 8))
            place = Place(mapping.name, page * PAGE_SIZE_BYTES + dice.pick(_VAPIC_OFFSETS))
            if place.offset + 4 <= mapping.pages * PAGE_SIZE_BYTES:
                yield HostWrite(place, dice.below(1 << 32) & ~0xF)
        priority = dice.below(16) << 4 | dice.pick((0, 0, 0, 3))
        yield SetApic(dice.chance(0.7), dice.pick((None, priority)))
        yield Touch(_IDLE_GPA)
        if dice.chance(0.5):
            yield Inspect()

    def _switch(self) -> Iterator[AnyOperation]:
        """Yield a switch to another VM, which may be closed while the first one goes on, or lives.

        What this generator knows of slots is then only a guess. A slot of another VM may be created
        here, too, at the same gpa and on the same memory.
        """
        dice = self._dice
        if self._features.process_files and dice.chance(_LIVES):
            yield Lives(dice.pick(_DEATHS), dice.between(1, 2))
            return
        yield SwitchVm(dice.below(3))
        if dice.chance(_CLOSES):
            yield NewVm()
        if self._world.slots and dice.chance(_SAME_PLACES):
            known = dice.pick(list(self._world.slots.values()))
            yield _replace(known, slot=dice.pick((known.slot, dice.pick(self._pools.slots))))

    def _may(self, how: HostChangeKind) -> bool:
        needed = {"collapse": self._features.collapse, "merge": self._features.ksm}
        if how == "merge" and not self._dice.chance(0.1):
            return False  # It is slow, since it waits for the kernel.
        if how in _PAGED:  # Their pages must be present, and not shared with a child.
            return self._features.userfaultfd and self._moves and not self._is_forked
        return needed.get(how, True) and how not in (_IMMOVABLE if self._moves else ("move_away",))

    def _memfd(self) -> Iterator[AnyOperation]:
        dice = self._dice
        what = dice.random()
        if not self._files or what < 0.2:
            yield from self._create()
        elif what < 0.3:
            yield CloseGuestMemfd(dice.pick(list(self._files)))
        elif what < 0.35 and _SHARED in self._files:
            yield MapGuestMemfd(_SHARED, SHOWN, "private" if dice.chance(0.5) else "shared")
        elif what < 0.4:
            yield self._convert()
        elif what < 0.48:
            yield self._hole(dice.pick(list(self._files)))
        elif what < 0.5:
            size = dice.pick((*_FILE_PAGES, 0)) * PAGE_SIZE_BYTES
            yield ResizeGuestMemfd(dice.pick(list(self._files)), size)
        else:
            yield self._bind(dice.pick(list(self._files)))

    def _hole(self, name: str) -> PunchGuestMemfd:
        """Return a hole in a file, now and then with invalid arguments."""
        dice = self._dice
        first = dice.below(self._files[name])
        offset, size = first * PAGE_SIZE_BYTES, dice.pick((1, 1, 2, 4)) * PAGE_SIZE_BYTES
        if dice.chance(0.1):
            offset, size = dice.pick(((offset + 1, size), (offset, 0), (1 << 63, size)))
        others = dice.pick(_OTHER_MODES) if dice.chance(0.05) else 0
        keep_size, punch = not dice.chance(0.05), not dice.chance(0.1)
        return PunchGuestMemfd(name, offset, size, keep_size, punch, others)

    def _convert(self) -> SetMemoryAttributes:
        """Return a change of private attributes, which VMs without private memory refuse."""
        dice = self._dice
        address = dice.pick(self._pools.gfns) * PAGE_SIZE_BYTES
        size = dice.pick((1, 1, 2, 4)) * PAGE_SIZE_BYTES
        if dice.chance(0.1):
            address, size = dice.pick(((address + 1, size), (address, 0), (address, size + 1)))
        attributes = dice.pick((0, ATTRIBUTE_PRIVATE, ATTRIBUTE_PRIVATE, 1))
        return SetMemoryAttributes(address, size, attributes, int(dice.chance(0.05)))

    def _create(self) -> Iterator[AnyOperation]:
        """Yield the creation of a file; the one shared with the host is mapped at once."""
        dice = self._dice
        pages = dice.pick(_FILE_PAGES)
        shown = next((m for m in self._pools.mappings if m.name == SHOWN), None)
        if shown and _SHARED not in self._files:
            self._files[_SHARED] = max(pages, shown.pages)
            size = self._files[_SHARED] * PAGE_SIZE_BYTES
            yield CreateGuestMemfd(_SHARED, size, MEMFD_MMAP | MEMFD_INIT_SHARED)
            yield MapGuestMemfd(_SHARED, SHOWN)
            return
        self._made += 1
        name = f"file{self._made}"
        if dice.chance(0.15):
            bad_flags = dice.chance(0.5)
            size = PAGE_SIZE_BYTES if bad_flags else dice.pick(_BAD_FILE_SIZES)
            yield CreateGuestMemfd(name, size, 1 << 40 if bad_flags else 0)
            return
        self._files[name] = pages
        yield CreateGuestMemfd(name, pages * PAGE_SIZE_BYTES)

    def _bind(self, name: str) -> SetUserMemoryRegion2:
        """Return a slot on some pages of a file; of the shared file, at the address that maps it.

        With any other address it would be unknown what the guest reaches.
        """
        dice, pools = self._dice, self._pools
        known, is_shown = self._files[name], name == _SHARED
        first = dice.below(known)
        pages = min(dice.pick(pools.sizes), known - first) or 1
        offset = first * PAGE_SIZE_BYTES
        mapping = next(m for m in pools.mappings if m.name == (SHOWN if is_shown else "a"))
        flags = GUEST_MEMFD
        if dice.chance(0.05):
            flags |= dice.pick((LOG_DIRTY_PAGES, READONLY))
        odd = dice.random()
        if not is_shown and odd < 0.1:
            offset = dice.pick((known * PAGE_SIZE_BYTES, offset + 0x200, 1 << 40))
        pages = max(min(pages, mapping.pages - (first if is_shown else 0)), 0)
        call = SetUserMemoryRegion2(
            dice.pick(pools.slots),
            dice.pick(pools.gfns) * PAGE_SIZE_BYTES,
            pages * PAGE_SIZE_BYTES,
            Place(mapping.name, first * PAGE_SIZE_BYTES if is_shown and pages else 0),
            flags,
            guest_memfd=name,
            guest_memfd_offset=offset,
        )
        self._world.apply(call)
        return call


def _changes(mapping: Mapping, mappings: Sequence[Mapping]) -> tuple[HostChangeKind, ...]:
    """Return the changes that a mapping may begin with, among all mappings."""
    is_kept = bool(keeper_of(mapping, mappings))
    return tuple(
        how
        for how, change in CHANGES.items()
        if mapping.kind in change.kinds
        and how not in _NEVER_FIRST
        and not (how == "truncate" and mapping.of)
        and not (how in EMPTIES and is_kept)
    )
