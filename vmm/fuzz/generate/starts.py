"""Random guests that start with page tables of their own, in slots that change."""

from collections.abc import Iterator

import msgspec

from vmm.fuzz.generate.dice import Dice
from vmm.fuzz.generate.pools import REACH, TABLES, Pools
from vmm.fuzz.generate.world import World
from vmm.scenario.content import STUB_OFFSET
from vmm.scenario.operations import (
    GUEST_MEMFD,
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    REAL_MODE_END,
    SMM,
    AnyOperation,
    AsId,
    Place,
    SetUserMemoryRegion,
    Start,
)
from vmm.scenario.pagetables import PLAIN, USED, Tables
from vmm.scenario.paging import KINDS, Paging, PagingKind
from vmm.scenario.programs import (
    LOAD,
    STORE,
    copy,
    entries,
    remap,
    remap_both,
    writes,
)

_CODE_PAGES = 4
"""How many addresses map pages with code; those after them map any gpa."""

_ALL_PAGES = 2 * _CODE_PAGES
"""Those with code, and as many before them with page tables."""

_OTHERS = 4
_FIRST_ENTRY_AT = 0x80
_UPPER_INDEX = 3
"""Where the entries of the first mapped address are in its tables: no touch writes there."""

_KINDS: tuple[PagingKind, ...] = ("long", "long", "pae", "two-level")

_STORE_AT, _LOAD_AT, _REMAP_AT, _COPY_AT = 0x900, 0x980, 0xA00, 0xA80
_REMAP_BOTH_AT = 0xB00
_ACCESSES = (_LOAD_AT, _LOAD_AT, _STORE_AT, _STORE_AT, _COPY_AT)
"""The last is one of 64-bit mode only."""

_OFFSETS = (0x40, 0x100, 0xFFC)
"""Where in a page a program accesses a word."""

_EXCHANGES, _RELOADS = 0.4, 0.3

_WITH_CODE = ("a", "b", TABLES)
"""The mappings of most slots: they hold the same programs, so that code may be replaced."""


class Starts:
    """Makes page tables, and starts of vCPUs with them."""

    def __init__(self, dice: Dice, pools: Pools, world: World) -> None:
        self._dice = dice
        self._pools = pools
        self._world = world
        self._as_id: AsId = 0
        """The address space that has the tables, and that all starts are in."""
        self._tables: Tables | None = None
        self._paging = KINDS["long"]
        self._word = 0
        self._way = False, False
        """Whether a guest that changes an entry exchanges it, and whether it loads CR3 then."""
        hidden = ("unmapped", "guest_memfd")
        self._shown = {each.name for each in pools.mappings if each.kind not in hidden}

    def begin(self) -> Iterator[AnyOperation]:
        """Yield what the host writes, and the slots that map it."""
        dice = self._dice
        self._way = dice.chance(_EXCHANGES), dice.chance(_RELOADS)
        if SMM in self._pools.spaces and dice.chance(0.5):
            self._as_id = SMM
        first = min(dice.pick(self._pools.gfns), self._pools.reach // PAGE_SIZE_BYTES - _ALL_PAGES)
        code = range(first + _CODE_PAGES, first + _ALL_PAGES)
        apart = [gfn for gfn in self._pools.gfns if not first <= gfn < first + _CODE_PAGES]
        others = [dice.pick(apart or code) for _ in range(_OTHERS)]
        kind = self._kind()
        self._paging = KINDS[kind]
        bits, start = dice.pick((PLAIN, USED)), _first_address(self._paging)
        self._tables = Tables(TABLES, first, tuple(code), 0, bits, USED, start, kind)
        yield from self._tables.lay()
        # Whether accessed and dirty bits are set outside memory is unknown, so all are set here.
        after = self._paging.index_of(start, 0) + _CODE_PAGES
        last = len(self._paging.shifts) - 1
        mapped = (*others, first + last)  # The last address is that of the entries.
        values = {after + n: gfn * PAGE_SIZE_BYTES | USED for n, gfn in enumerate(mapped)}
        table = Place(TABLES, last * PAGE_SIZE_BYTES)
        yield from entries(table, values, self._paging.entry_bytes)
        self._word = self._tables.address(_CODE_PAGES + dice.below(_OTHERS)) + dice.pick(_OFFSETS)
        programs = self._programs()
        for mapping in self._pools.mappings:
            begin = _CODE_PAGES if mapping.name == TABLES else 0
            if mapping.name in _WITH_CODE:
                for page in range(begin, min(mapping.pages, begin + _ALL_PAGES)):
                    for at, program in programs:
                        place = Place(mapping.name, page * PAGE_SIZE_BYTES + at)
                        yield from writes(place, program)
        if dice.chance(0.5):
            yield self._slot(first, 0, _ALL_PAGES)
        else:
            yield self._slot(first, 0, _CODE_PAGES)
            yield self._slot(first + _CODE_PAGES, _CODE_PAGES, _CODE_PAGES)

    def next(self) -> Iterator[AnyOperation]:
        """Yield a start: at a page's code, at a program, or in real mode."""
        for start in self._next():
            yield msgspec.structs.replace(start, as_id=self._as_id)

    def _next(self) -> Iterator[Start]:
        dice, tables = self._dice, self._tables
        if tables is None or not self._may_start(tables.gfn):
            return
        vcpu = dice.below(self._pools.vcpus)
        what = dice.random()
        page = dice.below(_CODE_PAGES)
        data = dice.below(_CODE_PAGES + _OTHERS)
        if what < 0.9 and not self._leads_on(tables, page, writes=False):
            return
        if what < 0.35:
            yield tables.run(page, vcpu)
        elif what < 0.45 and self._may_map_anew():
            yield self._map_anew(tables, page)
        elif what < 0.9:
            program = dice.pick(_ACCESSES if tables.paging == "long" else _ACCESSES[:-1])
            if data < _CODE_PAGES and not self._leads_on(tables, data, program != _LOAD_AT):
                return
            value = dice.below(1 << 32) if program == _STORE_AT else 0
            address = tables.address(data) + dice.pick(_OFFSETS)
            yield self._start(tables, page, program, address, value, vcpu)
        else:
            gpa = (tables.gfn + _CODE_PAGES + page) * PAGE_SIZE_BYTES + STUB_OFFSET
            if gpa < REAL_MODE_END:
                yield Start(gpa, vcpu=vcpu)

    def _kind(self) -> PagingKind:
        """Return which page tables a scenario has: those of 32-bit mode lie below 4 GiB."""
        is_low = self._pools.reach <= REACH
        return self._dice.pick(_KINDS) if self._pools.starts_32_bit and is_low else "long"

    def _start(
        self, tables: Tables, page: int, program: int, data: int, value: int, vcpu: int = 0
    ) -> Start:
        """Return a start at a program in a page."""
        address = tables.address(page) + program
        return Start(address, tables.gpa, data, value, vcpu=vcpu, paging=tables.paging)

    def _programs(self) -> tuple[tuple[int, bytes], ...]:
        """Return the programs of every page with code, and their offsets."""
        return (
            *((_STORE_AT, STORE), (_LOAD_AT, LOAD)),
            *((_REMAP_AT, remap(self._word, *self._way)), (_COPY_AT, copy(self._word))),
            (_REMAP_BOTH_AT, remap_both(self._word)),
        )

    def _may_map_anew(self) -> bool:
        """Whether no other vCPU may know the old mapping, and four bytes of an entry are enough."""
        return self._pools.vcpus == 1 and max(self._pools.gfns) * PAGE_SIZE_BYTES < REACH

    def _map_anew(self, tables: Tables, page: int) -> Start:
        """Return a start in which the guest maps an address, or two, to a gpa, and reads there.

        In 32-bit mode it just writes the entry, and reads that.
        """
        entry = self._paging.index_of(self._word, 0) * self._paging.entry_bytes
        last = tables.address(_CODE_PAGES + _OTHERS)
        is_followed = self._word + PAGE_SIZE_BYTES < last  # By an address that may change, too.
        code = _REMAP_BOTH_AT if is_followed and self._dice.chance(0.3) else _REMAP_AT
        if tables.paging != "long":
            code = _STORE_AT
        value = self._dice.pick(self._pools.gfns) * PAGE_SIZE_BYTES | USED
        return self._start(tables, page, code, last + entry, value)

    def _leads_on(self, tables: Tables, page: int, writes: bool) -> bool:
        """Whether a page seems to be in memory, or the walk to it sets no bits."""
        gpa = tables.gfns[page] * PAGE_SIZE_BYTES
        if tables.bits == USED:
            return True
        slot = self._world.slot_at(gpa, self._as_id)
        return (
            slot is not None
            and not slot.flags & (GUEST_MEMFD | (READONLY if writes else 0))
            and isinstance(slot.userspace_addr, Place)
            and slot.userspace_addr.mapping in self._shown
        )

    def _may_start(self, gfn: int) -> bool:
        """Whether no other memory seems to be where the page tables are: its content is unknown."""
        for page in range(_CODE_PAGES):
            gpa = (gfn + page) * PAGE_SIZE_BYTES
            wanted = Place(TABLES, page * PAGE_SIZE_BYTES)
            if (
                self._world.slot_at(gpa, self._as_id)
                and self._world.memory_at(gpa, self._as_id) != wanted
            ):
                return False
        return True

    def _slot(self, gfn: int, page: int, pages: int) -> SetUserMemoryRegion:
        """Return the creation of a slot that maps pages of the tables' memory."""
        flags = self._dice.pick((0, 0, LOG_DIRTY_PAGES))
        if READONLY in self._pools.flags and self._dice.chance(0.1):
            flags = READONLY
        call = SetUserMemoryRegion(
            self._as_id << 16 | self._dice.pick(self._pools.slots) & 0xFFFF,
            gfn * PAGE_SIZE_BYTES,
            pages * PAGE_SIZE_BYTES,
            Place(TABLES, page * PAGE_SIZE_BYTES),
            flags,
        )
        self._world.apply(call)
        return call


def _first_address(paging: Paging) -> int:
    """Return the first address that page tables map."""
    upper = sum(_UPPER_INDEX << shift for shift in paging.shifts[1:])
    return upper | _FIRST_ENTRY_AT // paging.entry_bytes << paging.shifts[0]
