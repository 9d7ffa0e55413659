"""Random VMs with private memory: other random scenarios, without what such a VM cannot do.

Nothing in memory is executed, since a guest_memfd has no code, and the effect of instructions on
private memory is not modelled.
"""

import msgspec

from vmm.fuzz.generate.dice import Dice
from vmm.scenario.operations import (
    ATTRIBUTE_PRIVATE,
    GUEST_MEMFD,
    PAGE_SIZE_BYTES,
    AnyOperation,
    ChangeHostMemory,
    CreateGuestMemfd,
    Execute,
    HostAction,
    HostThread,
    Instruction,
    MapGuestMemfd,
    Scenario,
    SetMemoryAttributes,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Start,
    Sweep,
    SwitchVm,
)
from vmm.scenario.validate import is_valid

FILE = "file0"
_LEFT_OUT = (Execute, Start, Instruction, Sweep, SwitchVm, MapGuestMemfd, ChangeHostMemory)


def with_private_memory(dice: Dice, scenario: Scenario) -> Scenario:
    """Return a scenario on a VM with private memory, some of it private from the start.

    Returns the scenario itself if that is not possible.
    """
    if "smm" in scenario.needs:
        return scenario
    kept = tuple(op for op in scenario.operations if not _is_left_out(op))
    first = next((op for op in kept if isinstance(op, SetUserMemoryRegion2)), None)
    begin: tuple[AnyOperation, ...] = ()
    if first is not None and dice.chance(0.7):
        gpa = first.guest_phys_addr & -PAGE_SIZE_BYTES
        begin = (SetMemoryAttributes(gpa, 4 * PAGE_SIZE_BYTES, ATTRIBUTE_PRIVATE),)
    made = _protected(scenario, (*begin, *kept))
    return made if is_valid(made) else scenario


def racing_attributes(
    dice: Dice, hosts: tuple[HostThread, ...], gpas: range
) -> tuple[HostThread, ...]:
    """Return threads whose first one converts gpas of its own, on a slot with a guest_memfd."""
    first, *others = hosts
    operations: list[HostAction] = []
    for op in first.operations:
        operations.append(bound(op) if isinstance(op, SetUserMemoryRegion) else op)
        if dice.chance(0.6):
            gpa = gpas[dice.below(len(gpas))]
            size = dice.between(1, 2) * PAGE_SIZE_BYTES
            attributes = dice.pick((0, ATTRIBUTE_PRIVATE, ATTRIBUTE_PRIVATE))
            operations.append(SetMemoryAttributes(gpa, size, attributes))
    return (msgspec.structs.replace(first, operations=tuple(operations)), *others)


def bound(op: SetUserMemoryRegion) -> SetUserMemoryRegion:
    """Return a call for the same slot, bound to a guest_memfd; a deletion is not changed."""
    if not op.memory_size:
        return op
    return SetUserMemoryRegion2(
        op.slot,
        op.guest_phys_addr,
        op.memory_size,
        op.userspace_addr,
        GUEST_MEMFD,
        guest_memfd=FILE,
    )


def _protected(scenario: Scenario, operations: tuple[AnyOperation, ...]) -> Scenario:
    needs = tuple(dict.fromkeys((*scenario.needs, "sw_protected", "user_memory2")))
    return msgspec.structs.replace(scenario, operations=operations, needs=needs, vm_type=1)


def _is_left_out(op: AnyOperation) -> bool:
    is_shared = isinstance(op, CreateGuestMemfd) and bool(op.flags)
    return is_shared or isinstance(op, _LEFT_OUT)
