"""Random system management interrupts: handler and saved state lie in slots of as_id 1 that change.

Every page that may be at the handler's gpa holds one, which returns at once, or writes a word of
its own first.
"""

from collections.abc import Iterator

from vmm.fuzz.generate.dice import Dice
from vmm.fuzz.generate.pools import CODE_GFNS, SMRAM_GFNS, WORD_GFNS, Pools
from vmm.fuzz.generate.world import World
from vmm.scenario.content import STUB_OFFSET
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    SMBASE,
    SMM,
    AnyOperation,
    AsId,
    GetDirtyLog,
    Inspect,
    Place,
    SetUserMemoryRegion,
    Start,
)
from vmm.scenario.programs import SMM_HANDLER, SMM_RETURN, SMM_STATE, smm_store, writes

_WORD_OFFSET = 0x40
_PREPARED = ("a", "b")
_VALUES = 1 << 32
_FURTHER = (0, 0x10, 0x100, 0x1F0)
"""With a page after the state's own, how far both may be: the state ends in that page."""


class Smis:
    """Makes the slots of one scenario's SMM, and interrupts."""

    def __init__(self, dice: Dice, pools: Pools, world: World) -> None:
        self._dice = dice
        self._pools = pools
        self._world = world
        self._pages = [
            Place(mapping.name, page * PAGE_SIZE_BYTES)
            for mapping in pools.mappings
            if mapping.name in _PREPARED
            for page in range(mapping.pages)
        ]

    def begin(self) -> Iterator[AnyOperation]:
        """Yield the handlers, the slots that hold one and the state, and one with code."""
        for page in self._pages:
            yield from self._handler(page)
        yield from self._smram()
        yield from self._code()

    def next(self) -> Iterator[AnyOperation]:
        """Yield an interrupt where handler, state and code seem to be in memory, or a slot there.

        What a vCPU does without them is not known.
        """
        dice, world = self._dice, self._world
        handler, state = world.memory_at(SMM_HANDLER, SMM), world.slot_at(SMM_STATE, SMM)
        if handler is None or handler.mapping not in _PREPARED:
            yield from self._smram()
            return
        if state is None or state.flags & READONLY or not self._is_prepared(SMM_STATE, SMM):
            return
        code = [gfn * PAGE_SIZE_BYTES for gfn in CODE_GFNS]
        code = [gpa for gpa in code if self._is_prepared(gpa, 0)]
        if not code:
            yield from self._code()
            return
        at = dice.pick(code)
        further = self._further()
        used = (self._page(SMM_STATE, SMM), self._page(SMM_STATE + PAGE_SIZE_BYTES, SMM))
        begin = Place(handler.mapping, handler.offset + further)
        yield from self._handler(begin, (handler, *used, self._page(at, 0)))
        vcpu = dice.below(self._pools.vcpus)
        yield Start(at + STUB_OFFSET, smi=True, smbase=SMBASE + further, vcpu=vcpu)
        if dice.chance(0.5):
            yield Inspect()
        if dice.chance(0.3):
            slots = [slot.slot for slot in world.slots.values() if slot.flags & LOG_DIRTY_PAGES]
            yield from (GetDirtyLog(slot) for slot in slots[:2])

    def _further(self) -> int:
        """Return how far handler and state are from where they are after a reset."""
        state = self._world.slot_at(SMM_STATE + PAGE_SIZE_BYTES, SMM)
        is_memory = state is not None and not state.flags & READONLY
        if not is_memory or not self._is_prepared(SMM_STATE + PAGE_SIZE_BYTES, SMM):
            return 0
        return self._dice.pick(_FURTHER)

    def _handler(self, page: Place, used: tuple[Place | None, ...] = ()) -> Iterator[AnyOperation]:
        """Yield the host's writes of a handler to a page; it writes to none that is ``used``."""
        dice = self._dice
        gpa = dice.pick(WORD_GFNS) * PAGE_SIZE_BYTES
        slot, shown = self._world.slot_at(gpa, SMM), self._page(gpa, SMM)
        may_store = slot is None or (self._is_prepared(gpa, SMM) and not slot.flags & READONLY)
        if may_store and (shown is None or shown not in used) and dice.chance(0.7):
            return writes(page, smm_store(gpa + _WORD_OFFSET, dice.below(_VALUES)))
        return writes(page, SMM_RETURN)

    def _page(self, gpa: int, as_id: AsId) -> Place | None:
        """Return the page that probably shows at a gpa."""
        shown = self._world.memory_at(gpa, as_id)
        if shown is None:
            return None
        return Place(shown.mapping, shown.offset & -PAGE_SIZE_BYTES)

    def _smram(self) -> Iterator[AnyOperation]:
        """Yield a slot of as_id 1 from the handler to the state, or one for each of them."""
        if self._dice.chance(0.7):
            yield from self._create(SMM, SMRAM_GFNS[0], len(SMRAM_GFNS))
        else:
            yield from self._create(SMM, SMRAM_GFNS[0], 1)
            yield from self._create(SMM, SMRAM_GFNS[-1], self._dice.pick((1, 2)))

    def _code(self) -> Iterator[AnyOperation]:
        return self._create(0, CODE_GFNS[0], len(CODE_GFNS))

    def _create(self, as_id: AsId, gfn: int, pages: int) -> Iterator[SetUserMemoryRegion]:
        """Yield the creation of a slot with pages that were prepared, if there is a free id."""
        dice, world = self._dice, self._world
        ids = dict.fromkeys(slot & 0xFFFF for slot in self._pools.slots)
        free = [each for each in ids if as_id << 16 | each not in world.slots]
        first = [page for page in self._pages if self._has_room(page, pages)]
        if not free or not first:
            return
        call = SetUserMemoryRegion(
            as_id << 16 | dice.pick(free),
            gfn * PAGE_SIZE_BYTES,
            pages * PAGE_SIZE_BYTES,
            dice.pick(first),
            dice.pick((0, LOG_DIRTY_PAGES)),
        )
        world.apply(call)
        yield call

    def _has_room(self, page: Place, pages: int) -> bool:
        last = Place(page.mapping, page.offset + (pages - 1) * PAGE_SIZE_BYTES)
        return last in self._pages

    def _is_prepared(self, gpa: int, as_id: AsId) -> bool:
        shown = self._world.memory_at(gpa, as_id)
        return shown is not None and shown.mapping in _PREPARED
