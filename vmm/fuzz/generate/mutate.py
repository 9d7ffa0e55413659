"""Mutations: curated scenarios, or those of the corpus, with a few operations changed."""

from collections.abc import Sequence

import msgspec

from vmm.fuzz.generate import pools
from vmm.fuzz.generate.calls import Calls
from vmm.fuzz.generate.dice import Dice
from vmm.fuzz.generate.looks import Looks, reads
from vmm.fuzz.generate.world import World
from vmm.scenario.features import Features
from vmm.scenario.instructions import INSTRUCTIONS
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    AnyOperation,
    Churn,
    HarvestDirtyRing,
    Instruction,
    Lives,
    Mapping,
    NewVm,
    Race,
    Scenario,
    SetUserMemoryRegion,
    address_spaces,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.requirements import missing
from vmm.scenario.validate import validate

MAX_BASE_OPERATIONS = 600
"""Scenarios with more operations are not mutated: they are about quantity."""

_MAX_BASE_PAGES = 160
_TRIES = 8
_SLOW = (Lives, Churn)
_ROUNDS = (1, 1, 2, 4, 8)

_Operations = list[AnyOperation]


def can_be_mutated(scenario: Scenario, features: Features) -> bool:
    """Return whether mutations of a scenario are cheap enough, and can run at all."""
    return (
        len(scenario.operations) <= MAX_BASE_OPERATIONS
        and sum(_pages(op) for op in scenario.operations) <= _MAX_BASE_PAGES * 8
        and scenario.guest == pools.GUEST
        and not any(isinstance(op, _SLOW) for op in scenario.operations)
        and not any(isinstance(op, Race) for op in scenario.operations)
        # Longer guest runs would overrun a ring on kvm_pvm: a known issue, found over and over.
        and not any(isinstance(op, HarvestDirtyRing) for op in scenario.operations)
        and not any(_meets_known_issue(op) for op in scenario.operations)
        and not missing(scenario, features)
    )


def _meets_known_issue(op: AnyOperation) -> bool:
    """Whether KVM's emulator is known to get this instruction wrong outside memory."""
    return isinstance(op, Instruction) and (
        INSTRUCTIONS[op.name].stores_table or op.name in ("pusha", "enter")
    )


def mutate(dice: Dice, base: Scenario, features: Features, name: str) -> Scenario:
    """Return a valid mutation of a scenario under another name; the scenario if none is found."""
    for _ in range(_TRIES):
        mutation = _Mutation(dice, base, features)
        for _ in range(dice.pick(_ROUNDS)):
            mutation.change()
        mutant = mutation.scenario(name)
        try:
            validate(mutant)
        except ScenarioError:
            continue
        return mutant
    return msgspec.structs.replace(base, name=name)


class _Mutation:
    """The operations of a scenario, being changed."""

    def __init__(self, dice: Dice, base: Scenario, features: Features) -> None:
        self._dice = dice
        self._base = base
        self._operations: _Operations = list(base.operations)
        drawn = pools.draw(dice, features)
        self._pools = _pools_of(base, drawn)
        self._world = World(features.last_gfn)
        self._calls = Calls(dice, features, self._pools, self._world)

    def change(self) -> None:
        """Remove, repeat, swap, alter or add an operation."""
        operations, dice = self._operations, self._dice
        what = dice.below(6)
        at = dice.below(len(operations) + 1)
        if what == 0 and operations:
            del operations[min(at, len(operations) - 1)]
        elif what == 1 and operations:
            operations.insert(at, dice.pick(operations))
        elif what == 2 and len(operations) > 1:
            other = dice.below(len(operations))
            at = min(at, len(operations) - 1)
            operations[at], operations[other] = operations[other], operations[at]
        elif what == 3 and operations:
            self._alter(min(at, len(operations) - 1))
        else:
            self._replay(at)
            operations.insert(at, self._calls.next())

    def scenario(self, name: str) -> Scenario:
        """Return the mutation; if a survey would cost too much, with looks of its own instead."""
        base = self._base
        survey = base.survey
        operations = tuple(self._operations)
        regions = [op for op in operations if isinstance(op, SetUserMemoryRegion)]
        pages = sum(_pages(op) + 2 for op in regions)
        if survey == "write" and len(regions) * pages > _MAX_BASE_PAGES:
            survey = "none"
            operations = tuple(self._looking(operations))
        return msgspec.structs.replace(
            base,
            name=name,
            operations=operations,
            survey=survey,
            why=f"A mutation of {base.name}.",
            source="vmm fuzz",
            tags=("fuzz",),
        )

    def _alter(self, at: int) -> None:
        """Give one field of a region call the value that it has in another one."""
        regions = [op for op in self._operations if isinstance(op, SetUserMemoryRegion)]
        victim = self._operations[at]
        if not regions or not isinstance(victim, SetUserMemoryRegion):
            return
        field = self._dice.pick(("slot", "guest_phys_addr", "memory_size", "flags"))
        value = getattr(self._dice.pick(regions), field)
        self._operations[at] = msgspec.structs.replace(victim, **{field: value})

    def _replay(self, end: int) -> None:
        """Apply the operations before ``end`` to the world."""
        self._world.clear()
        for op in self._operations[:end]:
            if isinstance(op, SetUserMemoryRegion):
                self._world.apply(op)
            elif isinstance(op, NewVm):
                self._world.clear()

    def _looking(self, operations: Sequence[AnyOperation]) -> _Operations:
        """Return the operations with touches after each region call, and everywhere at the end."""
        self._replay(0)
        looks = Looks(self._dice, self._pools, self._world)
        result: _Operations = []
        for op in operations:
            result.append(op)
            if isinstance(op, SetUserMemoryRegion):
                self._world.apply(op)
                result += looks.after(op)
        self._world.clear()
        return [*result, *reads(dict.fromkeys(self._world.former), self._pools)]


def _pools_of(base: Scenario, drawn: pools.Pools) -> pools.Pools:
    """Return pools with the scenario's own slots, gfns and mappings."""
    regions = [op for op in base.operations if isinstance(op, SetUserMemoryRegion)]
    slots = [op.slot for op in regions if pools.is_free(op.slot)]
    gfns = [op.guest_phys_addr // PAGE_SIZE_BYTES for op in regions]
    mappings: tuple[Mapping, ...] = base.mappings or drawn.mappings
    return pools.Pools(
        tuple(dict.fromkeys(slots)) or drawn.slots,
        drawn.far_slots,
        tuple(dict.fromkeys(gfns)) or drawn.gfns,
        drawn.far_gfns,
        drawn.sizes,
        mappings,
        drawn.flags,
        base.vcpus,
        spaces=address_spaces(base),
    )


def _pages(op: AnyOperation) -> int:
    if isinstance(op, SetUserMemoryRegion) and op.memory_size < 1 << 32:
        return op.memory_size // PAGE_SIZE_BYTES
    return 0
