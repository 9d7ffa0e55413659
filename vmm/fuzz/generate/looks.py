"""Where the guest looks: at borders, at what just changed, and at what used to be there."""

from collections.abc import Collection, Iterator
from typing import Literal

from vmm.fuzz.generate.dice import Dice
from vmm.fuzz.generate.instructions import Instructions
from vmm.fuzz.generate.pools import GUEST, INTERNAL_PLACES, REACH, Pools
from vmm.fuzz.generate.world import World
from vmm.scenario.instructions import accessed
from vmm.scenario.operations import (
    GUEST_SIZE_BYTES,
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    SMM,
    AnyOperation,
    AsId,
    ClearDirtyLog,
    Execute,
    GetDirtyLog,
    HostWrite,
    Instruction,
    Place,
    SetUserMemoryRegion,
    Sweep,
    Touch,
)
from vmm.scenario.slots import as_id_of

_OFFSETS = (0, 0x40, 0x40, 0x100, 0xFFC)
"""Offsets in a page to touch, away from its code, which may be executed."""

_STRADDLING = (0xFFD, 0xFFE, 0xFFF)
_WIDTHS: tuple[Literal[1, 2, 4], ...] = (4, 4, 4, 2, 1)
_WORD_BORDERS = (63, 64)
"""Pages next to which another word of a dirty bitmap begins."""

_FIRST_INTERNAL = min(start for start, _ in INTERNAL_PLACES)
_ALL_LIMIT = 600
_GUEST_END = GUEST.gpa + GUEST_SIZE_BYTES
_VALUES = 1 << 32


class Looks:
    """Makes the touches of one scenario, and other looks at memory."""

    def __init__(self, dice: Dice, pools: Pools, world: World) -> None:
        self._dice = dice
        self._pools = pools
        self._world = world
        self._eagerness = dice.pick((4, 8, 12))
        self._writes = dice.pick((0.1, 0.4, 0.4, 0.7))
        self._other = dice.pick((0.0, 0.05, 0.2))
        self._logs = dice.pick((0.05, 0.3, 0.6))
        self._instructions = 0.0
        self._is_plain = not pools.subjects.isdisjoint(("clocks", "devices", "vapics"))
        """Whether guests only touch, within a page: near clocks or devices only that is judged."""
        if pools.subjects.isdisjoint(("memfds", "internal")) and not self._is_plain:
            self._instructions = dice.pick((0.0, 0.05, 0.2, 0.5))
        self._one = Instructions(dice, pools, world)
        self._clears = pools.manual_log or dice.chance(0.1)
        # Code that could be zeros is not executed, nor hlt if an in-kernel APIC would wait there.
        zeros = ("memfds", "host", "internal", "starts", "interrupts")
        self._executes = pools.subjects.isdisjoint(zeros)

    def after(self, call: SetUserMemoryRegion) -> Iterator[AnyOperation]:
        """Yield looks at what a call changed, or should have left alone."""
        dice = self._dice
        pages = self._around(call)
        for _ in range(dice.between(1, self._eagerness)):
            yield from self._touch(dice.pick(pages), self._as_id(call))
        if dice.chance(self._logs):
            logged = [s for s in self._world.slots.values() if s.flags & LOG_DIRTY_PAGES]
            slot = dice.pick(logged).slot if logged else dice.pick(self._pools.slots)
            yield GetDirtyLog(slot, "unwritable" if dice.chance(0.02) else "writable")
            if self._clears and dice.chance(0.5):
                yield self._clear(slot)
        if dice.chance(self._other):
            yield from self._something_else(dice.pick(pages), self._as_id(call))

    def everywhere(self) -> Iterator[Touch]:
        """Yield a read of every page that matters: of present and former slots, and the window."""
        pages = dict.fromkeys([*self._world.pages(), *self._world.former, *self._window()])
        return reads(list(pages)[:_ALL_LIMIT], self._pools)

    def _window(self) -> Iterator[int]:
        return (gfn * PAGE_SIZE_BYTES for gfn in self._pools.gfns)

    def _around(self, call: SetUserMemoryRegion) -> list[int]:
        """Return pages worth a look, likelier ones more than once."""
        world, dice = self._world, self._dice
        start = call.guest_phys_addr & -PAGE_SIZE_BYTES
        last = start + max(call.memory_size & -PAGE_SIZE_BYTES, PAGE_SIZE_BYTES) - PAGE_SIZE_BYTES
        pages = [start, start, last, last, start - PAGE_SIZE_BYTES, last + PAGE_SIZE_BYTES]
        pages += self._inside(call)
        if world.left is not None:
            pages += self._inside(world.left)
        pages += world.former[-4:]
        if world.slots:
            others = list(world.slots.values())
            for _ in range(3):
                other = dice.pick(others)
                pages += (
                    other.guest_phys_addr,
                    other.guest_phys_addr + other.memory_size - PAGE_SIZE_BYTES,
                )
        if world.former:
            pages.append(dice.pick(world.former))
        usable = [page for page in pages if within_reach(page, PAGE_SIZE_BYTES, self._pools.reach)]
        return usable or [dice.pick(self._pools.gfns) * PAGE_SIZE_BYTES]

    def _inside(self, region: SetUserMemoryRegion) -> Iterator[int]:
        """Yield a page of a region, neither first nor last, often at a bitmap's word border."""
        npages = region.memory_size // PAGE_SIZE_BYTES
        if npages > 2:
            page = self._dice.pick((1, npages - 2, *_WORD_BORDERS, self._dice.below(npages)))
            yield (region.guest_phys_addr & -PAGE_SIZE_BYTES) + page % npages * PAGE_SIZE_BYTES

    def _as_id(self, call: SetUserMemoryRegion) -> AsId:
        """Return the address space to look at, of two more often that of the call."""
        spaces = self._pools.spaces
        if len(spaces) == 1:
            return spaces[0]
        return SMM if (as_id_of(call.slot) == SMM) is self._dice.chance(0.6) else 0

    def _touch(self, page: int, as_id: AsId) -> Iterator[AnyOperation]:
        dice = self._dice
        if self._instructions and dice.chance(self._instructions):
            yield from self._instruction(page, as_id)
            return
        width = dice.pick(_WIDTHS)
        straddles = dice.chance(0.1) and not self._is_plain
        gpa = page + dice.pick(_STRADDLING if straddles else _OFFSETS)
        if not within_reach(gpa, width, self._pools.reach):
            return
        if dice.chance(self._writes):
            yield Touch(gpa, "write", width, dice.below(_VALUES), self._vcpu(), as_id)
            if dice.chance(0.2):
                yield Touch(gpa, width=width, vcpu=self._vcpu(), as_id=as_id)
        else:
            yield Touch(gpa, width=width, vcpu=self._vcpu(), as_id=as_id)

    def _instruction(self, page: int, as_id: AsId) -> Iterator[AnyOperation]:
        """Yield an instruction, if it is within reach, and perhaps a look at its effect."""
        operations = tuple(self._one.at(page, self._vcpu(), as_id))
        operation, reach = operations[-1], self._pools.reach
        assert isinstance(operation, Instruction)
        if all(within_reach(gpa, length, reach) for gpa, length in accessed(operation)):
            yield from operations
            if self._dice.chance(0.3):
                gpa = min(operation.gpa, reach - 4)
                if within_reach(gpa, 4, reach):
                    yield Touch(gpa, vcpu=self._vcpu(), as_id=as_id)

    def _vcpu(self) -> int:
        """Return which vCPU touches: usually the first."""
        if self._pools.vcpus == 1 or self._dice.chance(0.7):
            return 0
        return self._dice.below(self._pools.vcpus)

    def _clear(self, slot: int) -> ClearDirtyLog:
        """Return a clear of part of a log: from the first page, to the end, or beyond it."""
        dice = self._dice
        known = self._world.slots.get(slot)
        npages = known.memory_size // PAGE_SIZE_BYTES if known else 1
        first = dice.pick((0, 0, 0, 64, 1, 128)) if npages > 64 else dice.pick((0, 0, 0, 0, 64))
        count = dice.pick((max(npages - first, 0), 64, npages, npages + 1, 128, 1, 0))
        last = min(count, npages - first) - 1
        if dice.chance(0.02):
            return ClearDirtyLog(slot, first, count, bitmap="unreadable")
        if last < 0 or dice.chance(0.5):
            return ClearDirtyLog(slot, first, count, () if dice.chance(0.25) else "all")
        pages = {first + dice.between(0, last) for _ in range(dice.between(1, 3))}
        return ClearDirtyLog(slot, first, count, tuple(sorted(pages)))

    def _something_else(self, page: int, as_id: AsId) -> Iterator[AnyOperation]:
        dice = self._dice
        what = 1 if self._is_plain else dice.below(4)
        reach = self._pools.reach
        if what == 0 and self._executes and within_reach(page, PAGE_SIZE_BYTES, reach):
            yield Execute(page, self._vcpu(), as_id)
        elif what == 1:
            mapping = self._pools.mappings[0]
            offset = dice.below(mapping.pages) * PAGE_SIZE_BYTES + 0x40
            yield HostWrite(Place(mapping.name, offset), dice.below(_VALUES))
        else:
            gpa = page + PAGE_SIZE_BYTES - 0x10
            count, width = dice.between(1, 12), dice.pick(_WIDTHS)
            # One instruction that overruns a dirty ring is a known issue of kvm_pvm.
            if dice.chance(0.2) and "rings" not in self._pools.subjects:
                count = dice.pick((64, 256, 400))
            if within_reach(gpa, width * count, reach):
                access: Literal["read", "write"] = "write" if dice.chance(0.4) else "read"
                value = dice.below(_VALUES)
                yield Sweep(gpa, count, access, width, value, self._vcpu(), as_id)


def within_reach(gpa: int, length: int, reach: int = REACH) -> bool:
    """Return whether the guest may touch these bytes: below ``reach``, outside its own slot.

    Where the kernel may have slots of its own the model does not know what there is.
    """
    if not 0 <= gpa <= reach - length:
        return False
    if gpa + length > _FIRST_INTERNAL and any(
        start < gpa + length and gpa < end for start, end in INTERNAL_PLACES
    ):
        return False
    return gpa >= _GUEST_END or gpa + length <= GUEST.gpa


def reads(pages: Collection[int], pools: Pools) -> Iterator[Touch]:
    """Yield a read of each page that is within reach, in each address space."""
    return (
        Touch(page + 0x40, as_id=as_id)
        for as_id in pools.spaces
        for page in pages
        if within_reach(page + 0x40, 4, pools.reach)
    )
