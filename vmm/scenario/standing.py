"""Which slots may be in the way of a `Churn`, as far as a scenario's operations alone tell."""

from vmm.scenario.operations import (
    CHURN_GFNS,
    PAGE_SIZE_BYTES,
    Churn,
    SetUserMemoryRegion,
    pages_of,
)
from vmm.scenario.slots import MAX_SLOTS

_FIRST, _COUNT = CHURN_GFNS


class MayStand:
    """Each slot that may exist, and whether it may hold gpas that `Churn` uses.

    A churn uses two slot ids and some gpas of its own. If they were in use, its calls would be
    refused, and it could not restore what it found.
    """

    def __init__(self, guest_ids: range, guest_gpas: range) -> None:
        self._guest_ids = guest_ids
        self._guest_gpas = guest_gpas
        self._places: dict[int, bool] = {}

    def note(self, op: SetUserMemoryRegion, *, once: bool) -> None:
        """Note a call. In a race (not ``once``) calls repeat, so a deletion proves nothing."""
        if op.memory_size:
            self._places[op.slot] = _meets_churn(op) or self._places.get(op.slot, False)
        elif once and op == SetUserMemoryRegion(op.slot):
            self._places.pop(op.slot, None)

    def forget(self) -> None:
        """Forget all slots: the VM is new."""
        self._places.clear()

    def problem(self, op: Churn) -> str:
        """Return what is in the way of a churn, beginning with the field; empty if nothing."""
        if not 0 <= op.slot <= MAX_SLOTS - 2:
            return f".slot: it and the next one have to be within 0 to {MAX_SLOTS - 1}"
        for slot in (op.slot, op.slot + 1):
            if slot in self._guest_ids:
                return f".slot: {slot} is the guest's own; two other ids are needed"
            if slot in self._places:
                return (
                    f".slot: {slot} may be in use; two ids are needed that were deleted, or never"
                )
        if self._guest_is_there() or any(self._places.values()):
            end = (_FIRST + _COUNT) * PAGE_SIZE_BYTES
            return f": another slot may be within gpa {_FIRST * PAGE_SIZE_BYTES:#x} to {end:#x}"
        return ""

    def _guest_is_there(self) -> bool:
        return _overlap(self._guest_gpas.start // PAGE_SIZE_BYTES, len(self._guest_gpas))


def _meets_churn(op: SetUserMemoryRegion) -> bool:
    return _overlap(op.guest_phys_addr // PAGE_SIZE_BYTES, op.memory_size)


def _overlap(first: int, size_bytes: int) -> bool:
    return first < _FIRST + _COUNT and first + pages_of(size_bytes) > _FIRST
