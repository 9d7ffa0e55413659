"""Reads the array of an address space's memslots (Linux 5.7 to 5.16)."""

from array import array

from vmm.scenario.kernelslots import KernelArray
from vmm.whitebox.layout import ArrayLayout
from vmm.whitebox.reading import MOST_SLOTS, S32, U64, Look, Read, TooManyError, slot_from
from vmm.whitebox.state import read_state

_UNUSED = -1


def read_array(read: Read, layout: ArrayLayout, vm: int, active: int, look: Look) -> KernelArray:
    """Return the array at address ``active``, with the metadata of the slot looked for.

    Raises TooManyError, and OSError.
    """
    head = read(active, layout.set_entries)
    used = int(S32.unpack_from(head, layout.set_used_slots)[0])
    if used > MOST_SLOTS:
        raise TooManyError
    entries = (
        read(active + layout.set_entries, max(used, 0) * layout.slot_size) if used > 0 else b""
    )
    slots = tuple(slot_from(entries, layout, at * layout.slot_size) for at in range(max(used, 0)))
    start = layout.set_id_to_index
    table = array("h", head[start : start + 2 * layout.set_ids])
    found = [number for number, slot in enumerate(slots) if slot.slot_id == look.slot_id]
    state = None
    if len(found) == 1:
        at = found[0] * layout.slot_size
        state = read_state(read, layout, vm, entries[at : at + layout.slot_size])
    return KernelArray(
        before=look.before,
        as_id=look.as_id,
        slots=slots,
        generation=int(U64.unpack_from(head, layout.set_generation)[0]),
        used_slots=used,
        lru_slot=int(S32.unpack_from(head, layout.set_lru_slot)[0]),
        id_to_index=_used_ids(table, [slot.slot_id for slot in slots]),
        changed=state,
    )


def _used_ids(table: "array[int]", likely: list[int]) -> tuple[tuple[int, int], ...]:
    """Return (id, index) for each index that is not -1; usually these are the entries' ids."""
    ids = sorted({each for each in likely if each in range(len(table)) and table[each] != _UNUSED})
    if len(table) - table.count(_UNUSED) != len(ids):
        ids = [each for each, index in enumerate(table) if index != _UNUSED]
    return tuple((each, table[each]) for each in ids)
