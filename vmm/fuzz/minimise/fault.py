"""Which findings belong to one fault: the same calls, shown by different looks at memory.

A slot that stays at its old place after a move is seen by a read, a write, a string instruction or
code: four kinds of difference, one fault. Their minimised scenarios share the calls; looks are left
out. This is a guess, so nothing is thrown away because of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from vmm.scenario import words
from vmm.scenario.operations import (
    AnyOperation,
    EnableCap,
    Execute,
    Inspect,
    Instruction,
    Scenario,
    SetUserMemoryRegion,
    Sweep,
    Touch,
)
from vmm.verdict.identity import Identity

_LOOKS = (Touch, Sweep, Execute, Instruction, Inspect)
_NAMES = {kind.__name__ for kind in _LOOKS}


@dataclass(frozen=True, slots=True)
class Fault:
    """What findings of one fault share; ``identity`` is None if a look shows the fault."""

    calls: tuple[str, ...]
    identity: Identity | None = None


def fault_of(scenario: Scenario, identity: Identity) -> Fault:
    """Return the fault that a minimised scenario probably shows."""
    calls = tuple(_calls(scenario))
    is_seen = identity.operation in _NAMES and bool(calls) and scenario.survey == "none"
    return Fault(calls, None if is_seen else identity.cause)


def _calls(scenario: Scenario) -> Iterator[str]:
    """Yield what a scenario does besides looking; for region calls, what they do on success."""
    slots: dict[int, SetUserMemoryRegion] = {}
    for operation in scenario.operations:
        if isinstance(operation, SetUserMemoryRegion):
            yield _change(operation, slots.get(operation.slot))
            slots[operation.slot] = operation
            if not operation.memory_size:
                del slots[operation.slot]
        elif not isinstance(operation, _LOOKS):
            yield _name(operation)


def _change(operation: SetUserMemoryRegion, old: SetUserMemoryRegion | None) -> str:
    if not operation.memory_size:
        return "delete"
    flags = f" {words.flags(operation.flags)}" if operation.flags else ""
    if old is None:
        return f"create{flags}"
    return f"move{flags}" if operation.guest_phys_addr != old.guest_phys_addr else f"keep{flags}"


def _name(operation: AnyOperation) -> str:
    name = type(operation).__name__
    return f"{name} {operation.cap}" if isinstance(operation, EnableCap) else name
