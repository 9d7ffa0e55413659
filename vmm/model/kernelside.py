"""Compares the kernel's own slots with the model's, through one history (white box)."""

from vmm.model.array import Change
from vmm.model.heldslots import HeldSlots
from vmm.model.kernelarray import KERNEL_ARRAY, array_flaw
from vmm.model.kernelslots import (
    KERNEL_GENERATION,
    KERNEL_PAGE_COUNT,
    KERNEL_TREES,
    KernelFlaw,
    TreeRules,
    change_of,
    generation_flaw,
    page_count_flaw,
)
from vmm.model.model import Model
from vmm.model.regions import GFN_LIMIT, NO_MEMORY, Memslot
from vmm.model.rule import Rule
from vmm.model.slotstate import KERNEL_DIRTY, KERNEL_LARGE_PAGES, KERNEL_RMAPS, state_flaw
from vmm.scenario.history import Event
from vmm.scenario.kernelslots import KernelSlots, KernelTrees
from vmm.scenario.operations import SetUserMemoryRegion
from vmm.scenario.slots import as_id_of, id_of

_LATE = (GFN_LIMIT, NO_MEMORY)
"""Rules by which a call is refused when its slot may already be removed, and is put back."""


class KernelSide:
    """Checks events that have a ``kernel``; the caller makes the model follow them."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._held = HeldSlots(model.features.nr_memslots)
        self._trees = TreeRules(self._held)
        self._old: Memslot | None = None
        self.rules: frozenset[str] = frozenset()
        """The rules that were checked so far."""

    def before(self, event: Event) -> None:
        """Note the slot of an event, before the model follows the event."""
        self._old = self._present(event)

    def flaw(self, event: Event, decided: Rule) -> KernelFlaw | None:
        """Return what is wrong with the kernel's slots after an event that ``decided`` allows."""
        kernel, op = event.kernel, event.operation
        if kernel is None or not isinstance(op, SetUserMemoryRegion):
            return None
        spaces = self._model.spaces
        if as_id_of(op.slot) >= len(spaces):
            return None
        wanted = spaces[as_id_of(op.slot)]
        if isinstance(kernel, KernelTrees):
            self.rules = frozenset(
                (KERNEL_TREES.name, KERNEL_GENERATION.name, KERNEL_PAGE_COUNT.name)
            )
            flaw = self._trees.flaw(kernel, list(wanted)) or page_count_flaw(
                kernel, self._pages(kernel)
            )
        else:
            self.rules = frozenset((KERNEL_ARRAY.name, KERNEL_GENERATION.name))
            flaw = array_flaw(kernel, wanted, self._held)
        change = change_of(self._old, self._present(event))
        is_undone = self._old is not None and decided in _LATE
        return (
            flaw
            or generation_flaw(kernel, change, len(spaces), is_undone)
            or self._state_flaw(kernel, self._present(event), change)
        )

    def _pages(self, kernel: KernelTrees) -> int:
        """Return how many pages all slots have; each address space has the same internal ones."""
        found = [kernel.slots[node.slot] for node in kernel.active.gfn_tree]
        internal = sum(slot.npages for slot in found) - sum(
            slot.npages for slot in self._held.users(found)
        )
        spaces = self._model.spaces
        return len(spaces) * internal + sum(slot.npages for space in spaces for slot in space)

    def _state_flaw(
        self, kernel: KernelSlots, wanted: Memslot | None, change: Change | None
    ) -> KernelFlaw | None:
        """Return what is wrong with the metadata of the slot that the event is about."""
        state = kernel.changed
        if state is None or wanted is None:
            return None
        found = [slot for slot in kernel.slots if slot.slot_id == state.slot_id]
        if len(found) != 1 or state.slot_id != wanted.slot_id:
            return None
        self.rules |= {KERNEL_DIRTY.name, KERNEL_LARGE_PAGES.name}
        is_new = change in (Change.CREATE, Change.MOVE)
        if is_new and any(rmaps is not None for rmaps in state.rmaps):
            self.rules |= {KERNEL_RMAPS.name}
        return state_flaw(state, found[0], wanted, self._model.has_ring, is_new)

    def _present(self, event: Event) -> Memslot | None:
        op = event.operation
        if event.kernel is None or not isinstance(op, SetUserMemoryRegion):
            return None
        as_id, spaces = as_id_of(op.slot), self._model.spaces
        return spaces[as_id].get(id_of(op.slot)) if as_id < len(spaces) else None
