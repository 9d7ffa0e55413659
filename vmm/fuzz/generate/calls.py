"""Random region calls: each kind of change, and each way to have one refused."""

from collections.abc import Callable
from typing import Literal

import msgspec

from vmm.fuzz.generate.dice import Dice
from vmm.fuzz.generate.pools import Pools
from vmm.fuzz.generate.world import World
from vmm.scenario.features import Features
from vmm.scenario.limits import MAX_ZERO_PAGES
from vmm.scenario.operations import (
    GUEST_MEMFD,
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    Hva,
    Mapping,
    Place,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
)
from vmm.scenario.slots import KERNEL_HALF, MAX_PAGES

_replace = msgspec.structs.replace

_HALF_PAGE = PAGE_SIZE_BYTES // 2
_TOP_GPA = (1 << 64) - PAGE_SIZE_BYTES
_BEHIND_MAX_PAGES = (MAX_PAGES + 1) * PAGE_SIZE_BYTES
_UNKNOWN_FLAGS = (1 << 2, 1 << 3, 1 << 31, 0xFFFF_FFF0)
_NO_FILE: Literal[-1] = -1
_IGNORED_OFFSETS = (PAGE_SIZE_BYTES, 0x200, (1 << 64) - PAGE_SIZE_BYTES)
_MAX_WEIGHT = 6

Call = Callable[[], SetUserMemoryRegion]


class Calls:
    """Makes the region calls of one scenario, each kind with a random weight."""

    def __init__(self, dice: Dice, features: Features, pools: Pools, world: World) -> None:
        self._dice = dice
        self._features = features
        self._pools = pools
        self._world = world
        # A mapping of a guest_memfd is for slots that are bound to it.
        ordinary = tuple(each for each in pools.mappings if each.kind != "guest_memfd")
        self._mappings = ordinary or pools.mappings
        self._files = tuple(each.name for each in pools.mappings if each.kind == "memfd")
        self._mixture = self._mix()
        self._second_form = features.user_memory2 and dice.chance(0.1)

    def next(self) -> SetUserMemoryRegion:
        """Return a call, and apply its likely effect to the world."""
        call = self._dice.pick(self._mixture)()
        if self._second_form and self._dice.chance(0.3):
            call = self._second(call)
        if self._features.failing_allocations and self._dice.chance(0.02):
            call = _replace(call, fail_nth=self._dice.between(1, 8))
        self._world.apply(call)
        return call

    def _second(self, call: SetUserMemoryRegion) -> SetUserMemoryRegion2:
        """Return a call in the second form, whose own fields are ignored without GUEST_MEMFD."""
        if isinstance(call, SetUserMemoryRegion2):
            return call
        offset = 0
        file: Literal[-1] | str = _NO_FILE
        if not call.flags & GUEST_MEMFD and self._dice.chance(0.2):
            offset = self._dice.pick(_IGNORED_OFFSETS)
            file = self._dice.pick((_NO_FILE, *self._files))
        return SetUserMemoryRegion2(
            call.slot,
            call.guest_phys_addr,
            call.memory_size,
            call.userspace_addr,
            call.flags,
            call.caller,
            call.argument,
            guest_memfd=file,
            guest_memfd_offset=offset,
        )

    def create_at(self, slot: int, gfn: int) -> SetUserMemoryRegion:
        """Return the creation of a slot of one page, and apply it to the world."""
        call = self._region(slot, gfn, 1)
        self._world.apply(call)
        return call

    def _mix(self) -> list[Call]:
        """Return the kinds of calls to pick from, repeated by their weights."""
        usual: tuple[Call, ...] = (self._create, self._move, self._delete, self._flags)
        rare: tuple[Call, ...] = (self._again, self._altered, self._overlapping, self._invalid)
        mixture = list(usual)
        for call in usual:
            mixture += [call] * self._dice.below(_MAX_WEIGHT)
        for call in rare:
            mixture += [call] * self._dice.below(_MAX_WEIGHT // 2)
        return mixture

    def _create(self) -> SetUserMemoryRegion:
        """Return a creation, of a slot id that is unused if possible; else it is for a used one."""
        pools, dice = self._pools, self._dice
        slot = dice.pick(pools.slots)
        if slot in self._world.slots:
            slot = dice.pick(pools.slots)
        return self._region(slot, self._gfn(), dice.pick(pools.sizes))

    def _move(self) -> SetUserMemoryRegion:
        old = self._used()
        if old is None:
            return self._create()
        gpa = self._destination(old) * PAGE_SIZE_BYTES
        flags = old.flags ^ LOG_DIRTY_PAGES if self._dice.chance(0.15) else old.flags
        return _replace(old, guest_phys_addr=gpa, flags=flags)

    def _delete(self) -> SetUserMemoryRegion:
        old = self._used()
        if old is None or self._dice.chance(0.05):
            return SetUserMemoryRegion(self._dice.pick(self._pools.slots))
        how = self._dice.random()
        if how < 0.5:
            return SetUserMemoryRegion(old.slot)
        if how < 0.7:
            return _replace(old, memory_size=0)
        # What a deletion ignores may have any legal value.
        other = self._region(old.slot, self._gfn(), 1)
        return _replace(other, memory_size=0)

    def _flags(self) -> SetUserMemoryRegion:
        old = self._used()
        if old is None:
            return self._create()
        return _replace(old, flags=old.flags ^ LOG_DIRTY_PAGES)

    def _again(self) -> SetUserMemoryRegion:
        return self._used() or self._create()

    def _altered(self) -> SetUserMemoryRegion:
        """Return a call that changes a slot's hva, size or READONLY bit, which is refused."""
        old = self._used()
        if old is None:
            return self._create()
        what = self._dice.below(3)
        if what == 0:
            return _replace(old, flags=old.flags ^ READONLY)
        pages = old.memory_size // PAGE_SIZE_BYTES
        if what == 1 and pages > 1:
            return _replace(old, memory_size=old.memory_size - PAGE_SIZE_BYTES)
        return self._region(old.slot, old.guest_phys_addr // PAGE_SIZE_BYTES, pages)

    def _overlapping(self) -> SetUserMemoryRegion:
        """Return a creation or a move onto a present slot, which is refused."""
        other = self._used()
        if other is None:
            return self._create()
        first = other.guest_phys_addr // PAGE_SIZE_BYTES
        last = first + other.memory_size // PAGE_SIZE_BYTES - 1
        gfn = self._dice.pick((first, last))
        mover = self._used()
        if mover is not None and mover.slot != other.slot and self._dice.chance(0.5):
            return _replace(mover, guest_phys_addr=gfn * PAGE_SIZE_BYTES)
        return self._region(self._dice.pick(self._pools.slots), gfn, 1)

    def _invalid(self) -> SetUserMemoryRegion:
        """Return a call that one of the checks refuses, for a present slot if there is one."""
        dice, pools = self._dice, self._pools
        base = self._used() or self._create()
        if dice.chance(0.3):
            base = _replace(base, memory_size=0)
        match dice.below(12):
            case 0:
                # Smaller than the slot, so that it stays within its mapping.
                size = max(base.memory_size, PAGE_SIZE_BYTES) - _HALF_PAGE // 4
                return _replace(base, memory_size=size)
            case 1:
                return _replace(base, guest_phys_addr=base.guest_phys_addr + _HALF_PAGE)
            case 2:
                return self._unaligned(base)
            case 3:
                return _replace(base, userspace_addr=KERNEL_HALF + dice.pick((0, 0x7FFF << 48)))
            case 4:
                return _replace(base, flags=base.flags | dice.pick(_UNKNOWN_FLAGS))
            case 5 | 6:
                return _replace(base, slot=dice.pick(pools.far_slots))
            case 7:
                return _replace(base, guest_phys_addr=_TOP_GPA)
            case 8:
                return _replace(base, memory_size=_BEHIND_MAX_PAGES)
            case 9:
                return SetUserMemoryRegion(dice.pick(pools.slots))
            case 10:
                return _replace(base, argument="unreadable")
            case _:
                return self._beyond(base)

    def _unaligned(self, base: SetUserMemoryRegion) -> SetUserMemoryRegion:
        mapping = self._pools.mappings[0]
        size = min(base.memory_size, (mapping.pages - 1) * PAGE_SIZE_BYTES)
        return _replace(base, userspace_addr=Place(mapping.name, _HALF_PAGE), memory_size=size)

    def _beyond(self, base: SetUserMemoryRegion) -> SetUserMemoryRegion:
        """Return a call beyond the last gfn, which the kernel finds late if it is a move."""
        if self._dice.chance(0.1):
            return _replace(base, caller="forked-child")
        gfn = self._features.last_gfn + self._dice.pick((0, 1))
        pages = max(base.memory_size, PAGE_SIZE_BYTES) // PAGE_SIZE_BYTES
        used = self._world.slots.get(base.slot, base)
        first = min(gfn + 2 - pages, (1 << 52) - 1)  # A gpa has 64 bits.
        return _replace(used, guest_phys_addr=first * PAGE_SIZE_BYTES)

    def _used(self) -> SetUserMemoryRegion | None:
        slots = self._world.slots
        return self._dice.pick(list(slots.values())) if slots else None

    def _gfn(self) -> int:
        """Return a gfn: in the window, next to a slot, of a former slot, or out of reach."""
        dice, world = self._dice, self._world
        how = dice.random()
        if how < 0.15 and world.former:
            return dice.pick(world.former) // PAGE_SIZE_BYTES
        if how < 0.3:
            other = self._used()
            if other is not None:
                start = other.guest_phys_addr // PAGE_SIZE_BYTES
                return dice.pick((start + other.memory_size // PAGE_SIZE_BYTES, max(start - 1, 0)))
        if how < 0.34:
            return dice.pick(self._pools.far_gfns)
        return dice.pick(self._pools.gfns)

    def _destination(self, old: SetUserMemoryRegion) -> int:
        """Return the gfn to move a slot to: often one page away, or past its neighbours."""
        gfn = old.guest_phys_addr // PAGE_SIZE_BYTES
        if self._dice.chance(0.15):
            return gfn + 1 if gfn == 0 or self._dice.chance(0.5) else gfn - 1
        return self._gfn()

    def _region(self, slot: int, gfn: int, pages: int) -> SetUserMemoryRegion:
        hva, pages = self._hva(pages)
        return SetUserMemoryRegion(
            slot,
            gfn * PAGE_SIZE_BYTES,
            pages * PAGE_SIZE_BYTES,
            hva,
            self._dice.pick(self._pools.flags),
        )

    def _hva(self, pages: int) -> tuple[Hva, int]:
        """Return an address, and how many of the wanted pages fit from there on."""
        if self._dice.chance(0.04):
            return 0, min(pages, MAX_ZERO_PAGES)
        mapping: Mapping = self._dice.pick(self._mappings)
        pages = min(pages, mapping.pages)
        page = self._dice.below(min(mapping.pages - pages + 1, 8))
        return Place(mapping.name, page * PAGE_SIZE_BYTES), pages
