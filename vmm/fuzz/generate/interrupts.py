"""Random interrupts, returns from them and far calls, whose tables, stacks and code change.

Every page that slots show first is an interrupt table, a stack to return by, and code, each with
targets of its own: so whichever page is where a guest looks, it leads on, and shows which it was.
"""

from collections.abc import Iterator

from vmm.fuzz.generate.dice import Dice
from vmm.fuzz.generate.pools import TABLES, Pools
from vmm.fuzz.generate.world import World
from vmm.scenario.content import STUB_OFFSET
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    AnyOperation,
    HostWrite,
    Mapping,
    Place,
    SetUserMemoryRegion,
    Start,
)
from vmm.scenario.pagetables import PAGES, USED, Tables
from vmm.scenario.programs import (
    CODE_SELECTOR,
    ENTRY_BYTES,
    FLAT_CODE_DESCRIPTOR,
    INTERRUPT,
    LONG_FAR_CALL,
    LONG_GATE_BYTES,
    LONG_RETURN,
    REAL_GATE_BYTES,
    RETURN,
    VECTOR,
    far_call,
    far_pointer,
    long_gate,
    real_gate,
    return_frame,
    writes,
)

_RAISE_AT, _RETURN_AT, _CALL_AT, _POINTER_AT = 0x900, 0x910, 0x920, 0x930
_STACK_AT = 0x700
"""Where no touch is; an interrupt pushes below it, and a return pops from it on."""

_PREPARED_PAGES = 4
"""Pages of each of the first two mappings that are made tables, stacks and code."""

_TABLES_GFN = 0x200
_LAST_STACK_GFN = 0x10


class Interrupts:
    """Makes the tables, stacks and code of one scenario, and starts that use them."""

    def __init__(self, dice: Dice, pools: Pools, world: World) -> None:
        self._dice = dice
        self._pools = pools
        self._world = world
        self._tables: Tables | None = None

    def begin(self) -> Iterator[AnyOperation]:
        """Yield what the host writes, and the slots that show it."""
        dice, gfns = self._dice, self._pools.gfns
        prepared = self._pools.mappings[:2]
        self._tables = None
        if any(mapping.name == TABLES for mapping in self._pools.mappings) and dice.chance(0.5):
            self._tables = Tables(TABLES, _TABLES_GFN, gfns, bits=USED)
            yield from self._tables.lay()
            slot, *others = self._pools.slots
            yield self._create(slot, _TABLES_GFN, Mapping(TABLES, PAGES))
        else:
            others = list(self._pools.slots)
        for mapping in prepared:
            for page in range(_PREPARED_PAGES):
                yield from self._prepare(Place(mapping.name, page * PAGE_SIZE_BYTES))
        for slot, first, mapping in zip(others, (0, _PREPARED_PAGES), prepared, strict=False):
            yield self._create(slot, gfns[first], Mapping(mapping.name, _PREPARED_PAGES))

    def next(self) -> Iterator[AnyOperation]:
        """Yield an interrupt, a return from one, or a far call."""
        dice, tables = self._dice, self._tables
        code, table, stack = self._page(), self._page(), self._page(below=_LAST_STACK_GFN)
        yield Start(
            code + dice.pick((_RAISE_AT, _RETURN_AT, _CALL_AT)),
            tables=tables.gpa if tables else None,
            data=self._page() + _POINTER_AT if tables else 0,
            stack=stack + _STACK_AT,
            interrupts=table,
            vcpu=dice.below(self._pools.vcpus),
        )

    def _page(self, below: int = 1 << 20) -> int:
        """Return the address of a page: often of one that seems to be prepared."""
        gfns = [gfn for gfn in self._pools.gfns if gfn < below]
        held = [gfn for gfn in gfns if self._is_prepared(gfn)]
        gfn = self._dice.pick(held if held and self._dice.chance(0.95) else gfns)
        if self._tables is None:
            return gfn * PAGE_SIZE_BYTES
        return self._tables.address(self._pools.gfns.index(gfn))

    def _is_prepared(self, gfn: int) -> bool:
        shown = self._world.memory_at(gfn * PAGE_SIZE_BYTES, 0)
        names = {mapping.name for mapping in self._pools.mappings[:2]}
        return (
            shown is not None
            and shown.mapping in names
            and shown.offset // PAGE_SIZE_BYTES < _PREPARED_PAGES
        )

    def _prepare(self, page: Place) -> Iterator[AnyOperation]:
        """Yield what makes a page a table, a stack and code, each with a target of its own."""
        is_long = self._tables is not None
        yield from _at(page, _RAISE_AT, INTERRUPT)
        yield from _at(page, _RETURN_AT, LONG_RETURN if is_long else RETURN)
        yield from _at(page, _STACK_AT, return_frame(self._target(), is_long=is_long))
        if is_long:
            descriptor = FLAT_CODE_DESCRIPTOR.to_bytes(ENTRY_BYTES, "little")
            yield from _at(page, CODE_SELECTOR, descriptor)
            yield from _at(page, VECTOR * LONG_GATE_BYTES, long_gate(self._target()))
            yield from _at(page, _CALL_AT, LONG_FAR_CALL)
            yield from _at(page, _POINTER_AT, far_pointer(self._target()))
        else:
            gate = real_gate(self._target()).to_bytes(REAL_GATE_BYTES, "little")
            yield from _at(page, VECTOR * REAL_GATE_BYTES, gate)
            yield from _at(page, _CALL_AT, far_call(self._target()))

    def _target(self) -> int:
        """Return the address of the code in any page: in real mode, a gpa."""
        index = self._dice.below(2 * _PREPARED_PAGES)
        if self._tables is not None:
            return self._tables.address(index) + STUB_OFFSET
        return self._pools.gfns[index] * PAGE_SIZE_BYTES + STUB_OFFSET

    def _create(self, slot: int, gfn: int, shown: Mapping) -> SetUserMemoryRegion:
        size = shown.pages * PAGE_SIZE_BYTES
        call = SetUserMemoryRegion(slot, gfn * PAGE_SIZE_BYTES, size, Place(shown.name))
        self._world.apply(call)
        return call


def _at(page: Place, offset: int, data: bytes) -> Iterator[HostWrite]:
    return writes(Place(page.mapping, page.offset + offset), data)
