"""Single instructions of random scenarios: any row of the table, on what is likely to be there."""

from vmm.fuzz.dice import Dice
from vmm.fuzz.pools import Pools
from vmm.fuzz.world import World
from vmm.scenario.content import MMIO_FILL, identity
from vmm.scenario.instructions import INSTRUCTIONS, MAX_STRING_BYTES, Mode, Row
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    AsId,
    Instruction,
    Place,
)
from vmm.scenario.slots import as_id_of

_ROWS = tuple(row for row in INSTRUCTIONS.values() if not row.stores_table and row.name != "pusha")
"""Outside of memory the others meet known issues of KVM's emulator, and some of them hang there."""

_VALUES = 1 << 32
_FILLED = MMIO_FILL * 0x0101_0101


class Instructions:
    """Makes the instructions of one scenario."""

    def __init__(self, dice: Dice, pools: Pools, world: World) -> None:
        self._dice = dice
        self._pools = pools
        self._world = world
        self._modes: tuple[Mode, ...] = ("real", "real", "long") if pools.has_long else ("real",)

    def at(self, page: int, vcpu: int, as_id: AsId) -> Instruction:
        """Return an instruction on a page, or over one of its borders."""
        dice = self._dice
        mode = dice.pick(self._modes)
        if self._pools.has_long and not _is_low(page):
            mode = "long"
        row = dice.pick([row for row in _ROWS if row.widths(mode)])
        widths = [w for w in row.widths(mode) if (row.name, w) != ("enter", 2)]
        width = dice.pick(widths)
        offset = dice.pick((0, 0x40, 0x40, 0x100))
        if dice.chance(0.25) and not row.is_aligned:
            offset = PAGE_SIZE_BYTES - dice.between(1, max(width - 1, 1))
        count = self._count(row, width)
        word = self._word(page, as_id) if dice.chance(0.6) else dice.below(_VALUES)
        data = (word.to_bytes(4, "little") * 8)[offset % 4 :]
        half = width // 2 if row.is_pair else width
        return Instruction(
            row.name,
            page + offset,
            width,
            value=self._value(),
            compare=int.from_bytes(data[: min(half, 8)], "little"),
            value_high=self._value(),
            compare_high=int.from_bytes(data[half : 2 * half], "little") if row.is_pair else 0,
            source=self._source(mode) if row.copies else 0,
            count=count,
            down=row.repeats and dice.chance(0.4),
            mode=mode,
            vcpu=vcpu,
            as_id=as_id,
        )

    def _count(self, row: Row, width: int) -> int:
        if not row.repeats:
            return 1
        # One instruction that overruns a dirty ring is a known issue of kvm_pvm.
        few = self._dice.between(1, 12)
        return few if "rings" in self._pools.tastes else min(few, MAX_STRING_BYTES // width)

    def _value(self) -> int:
        dice = self._dice
        return dice.below(_VALUES) << 32 | dice.below(_VALUES)

    def _source(self, mode: Mode) -> int:
        pages = [gfn * PAGE_SIZE_BYTES for gfn in self._pools.gfns]
        usable = [page for page in pages if mode == "long" or _is_low(page)]
        return (self._dice.pick(usable) if usable else 0) + 0x40

    def _word(self, page: int, as_id: AsId) -> int:
        """Return what a fresh page holds that is probably there, or a hole."""
        for slot in self._world.slots.values():
            start = slot.guest_phys_addr
            hva = slot.userspace_addr
            if as_id_of(slot.slot) == as_id and start <= page < start + slot.memory_size:
                if not isinstance(hva, Place):
                    break
                names = [mapping.name for mapping in self._pools.mappings]
                if hva.mapping in names:
                    number = (hva.offset + page - start) // PAGE_SIZE_BYTES
                    return identity(names.index(hva.mapping), number)
        return _FILLED


def _is_low(page: int) -> bool:
    """Whether real mode reaches a page and the one after it."""
    return page + 2 * PAGE_SIZE_BYTES <= REAL_MODE_END
