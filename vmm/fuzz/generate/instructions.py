"""Single instructions in random scenarios: any row of the table, on data that is likely there."""

from collections.abc import Iterator

import msgspec

from vmm.fuzz.generate.dice import Dice
from vmm.fuzz.generate.pools import Pools
from vmm.fuzz.generate.world import World
from vmm.model.model import Model
from vmm.scenario.content import MMIO_FILL, identity
from vmm.scenario.features import Features
from vmm.scenario.history import AnyOutcome, Header, Ran, Stopped, Touched
from vmm.scenario.instruction_effects import MXCSR_OFFSET, RESET_MXCSR
from vmm.scenario.instructions import CODE_OFFSET, INSTRUCTIONS, MAX_STRING_BYTES, Mode, Row
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    READONLY,
    REAL_MODE_END,
    AnyOperation,
    AsId,
    Execute,
    HostWrite,
    Instruction,
    MappingKind,
    Place,
    Race,
    Scenario,
    SetUserMemoryRegion,
    Start,
    Sweep,
)
from vmm.scenario.plan import steps

_STATES = ("fxsave", "fxsave64", "fxrstor64")
_IN_MEMORY = tuple(
    row
    for row in INSTRUCTIONS.values()
    if row.cannot_exit or row.name in ("pusha", "popa", "ret", *_STATES)
)
"""Outside memory these meet known issues of KVM's emulator, or have unknown effects."""

_IN_MEMORY_NAMES = frozenset(row.name for row in _IN_MEMORY)

_ROWS = tuple(row for row in INSTRUCTIONS.values() if row not in _IN_MEMORY)

_MODES: tuple[Mode, ...] = ("real", "long")
_ROWS_OF = {mode: tuple(row for row in _ROWS if row.widths(mode)) for mode in _MODES}
_IN_MEMORY_OF = {mode: tuple(row for row in _IN_MEMORY if row.widths(mode)) for mode in _MODES}
_IN_MEMORY_SHARE = 0.08
_FORCED_SHARE = 0.25
"""The share that KVM emulates although the processor could execute it, where KVM can."""

_STATE_OFFSETS = (0xA00, 0xA00, 0xC00, 0xF00)
"""Where FPU state is saved: other places are read often, so their content must stay known."""

_PLAIN: tuple[MappingKind, ...] = ("anonymous", "shared", "memfd", "thp", "hugetlb")

_VALUES = 1 << 32
_FILLED = MMIO_FILL * 0x0101_0101


class Instructions:
    """Makes the instructions of one scenario."""

    def __init__(self, dice: Dice, pools: Pools, world: World) -> None:
        self._dice = dice
        self._pools = pools
        self._world = world
        self._modes: tuple[Mode, ...] = ("real", "real", "long") if pools.has_long else ("real",)

    def at(self, page: int, vcpu: int, as_id: AsId) -> Iterator[AnyOperation]:
        """Yield an instruction on a page or across one of its borders, and what it needs first."""
        dice = self._dice
        mode = dice.pick(self._modes)
        if self._pools.has_long and not _is_low(page):
            mode = "long"
        place = self._memory(page, as_id) if dice.chance(_IN_MEMORY_SHARE) else None
        row = dice.pick((_ROWS_OF if place is None else _IN_MEMORY_OF)[mode])
        operation = self._make(row, mode, page, vcpu, as_id)
        if row.name == "fxrstor64" and place is not None:  # Another MXCSR would be a fault.
            offset = place.offset + operation.gpa - page + MXCSR_OFFSET
            yield HostWrite(Place(place.mapping, offset), RESET_MXCSR)
        if row.name == "ret":  # Another return address would lead to unknown code.
            address = CODE_OFFSET + len(row.code(operation))
            yield msgspec.structs.replace(operation, name="store", value=address)
        yield operation

    def _make(self, row: Row, mode: Mode, page: int, vcpu: int, as_id: AsId) -> Instruction:
        dice = self._dice
        widths = [w for w in row.widths(mode) if (row.name, w) != ("enter", 2)]
        width = dice.pick(widths)
        offset = dice.pick(_STATE_OFFSETS if row.name in _STATES else (0, 0x40, 0x40, 0x100))
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
            # A downward ins that exits reads the port too often: a known issue.
            down=row.repeats and row.port != "from" and dice.chance(0.4),
            mode=mode,
            forced=self._pools.forces and row.is_emulated and dice.chance(_FORCED_SHARE),
            vcpu=vcpu,
            as_id=as_id,
        )

    def _memory(self, page: int, as_id: AsId) -> Place | None:
        """Return the memory of a page, if it and the next are probably in a writable slot."""
        if self._pools.subjects:
            return None
        kinds = {mapping.name: mapping.kind for mapping in self._pools.mappings}
        slot = self._world.slot_at(page, as_id)
        shown = self._world.memory_at(page, as_id)
        if slot is None or slot.flags & READONLY or shown is None:
            return None
        is_whole = page + 2 * PAGE_SIZE_BYTES <= slot.guest_phys_addr + slot.memory_size
        return shown if is_whole and kinds.get(shown.mapping) in _PLAIN else None

    def _count(self, row: Row, width: int) -> int:
        if not row.repeats:
            return 1
        # One instruction that overruns a dirty ring is a known issue of kvm_pvm.
        few = self._dice.between(1, 12)
        return few if "rings" in self._pools.subjects else min(few, MAX_STRING_BYTES // width)

    def _value(self) -> int:
        dice = self._dice
        return dice.below(_VALUES) << 32 | dice.below(_VALUES)

    def _source(self, mode: Mode) -> int:
        pages = [gfn * PAGE_SIZE_BYTES for gfn in self._pools.gfns]
        usable = [page for page in pages if mode == "long" or _is_low(page)]
        return (self._dice.pick(usable) if usable else 0) + 0x40

    def _word(self, page: int, as_id: AsId) -> int:
        """Return the word that a fresh page probably holds there, or that a hole reads as."""
        shown = self._world.memory_at(page, as_id)
        names = [mapping.name for mapping in self._pools.mappings]
        if shown is None or shown.mapping not in names:
            return _FILLED
        return identity(names.index(shown.mapping), shown.offset // PAGE_SIZE_BYTES)


def certain(scenario: Scenario, features: Features) -> Scenario:
    """Return a scenario without instructions and interrupts that might leave memory but must not.

    Nor does it then read what is unknown. Where an SMI cannot save a vCPU's state KVM gives the VM
    up, so that which slots exist has to be known: no allocation fails there.
    """
    scenario = _without_failures(scenario)
    is_private = bool(scenario.vm_type)
    if not (is_private or any(map(_is_risky, scenario.operations))):
        return scenario
    model = Model.of(Header(scenario, features))
    doubtful: set[int] = set()
    for step in steps(scenario, features.touch_limit):
        op = step.operation
        if not is_private and model.only_looks(op):
            continue
        allowed = model.allowed(op)
        # For example across a border of private memory.
        if is_private and not allowed and not isinstance(op, Race):
            doubtful.add(step.origin)
        elif isinstance(op, Instruction | Sweep | Execute) or _is_risky(op):
            may_exit = isinstance(op, Start) and op.smi  # Its handler may write to a hole.
            exits = not may_exit and any(_leaves_memory(each.outcome) for each in allowed)
            if not allowed or (_is_risky(op) and (exits or _stops(op, allowed[0].outcome))):
                doubtful.add(step.origin)
                continue
        if allowed:
            allowed[0].adopt()
    operations = (op for at, op in enumerate(scenario.operations) if at not in doubtful)
    return msgspec.structs.replace(scenario, operations=tuple(operations))


def _without_failures(scenario: Scenario) -> Scenario:
    """Return a scenario with SMIs without the failures of allocations."""
    if not any(isinstance(op, Start) and op.smi for op in scenario.operations):
        return scenario
    operations = (
        msgspec.structs.replace(op, fail_nth=0)
        if isinstance(op, SetUserMemoryRegion) and op.fail_nth
        else op
        for op in scenario.operations
    )
    return msgspec.structs.replace(scenario, operations=tuple(operations))


def _is_risky(op: AnyOperation) -> bool:
    """Whether what an operation does outside memory is a known issue, or unknown."""
    if isinstance(op, Start):
        return op.smi or op.interrupts is not None
    return isinstance(op, Instruction) and (op.forced or op.name in _IN_MEMORY_NAMES)


def _stops(op: AnyOperation, outcome: AnyOutcome) -> bool:
    return isinstance(op, Start) and isinstance(outcome, Stopped)


def _leaves_memory(outcome: AnyOutcome) -> bool:
    return isinstance(outcome, Ran | Touched) and bool(outcome.mmio)


def _is_low(page: int) -> bool:
    """Whether real mode reaches a page and the one after it."""
    return page + 2 * PAGE_SIZE_BYTES <= REAL_MODE_END
