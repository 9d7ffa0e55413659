"""Conditions of the known issues of guests' page tables."""

from vmm.scenario.operations import AnyOperation, HostWrite, Scenario, Start
from vmm.scenario.programs import ENTRY_BYTES, remap

_WORD = 4
_PROGRAM = int.from_bytes(remap(0)[:_WORD], "little")


def writes_across_entries(scenario: Scenario) -> bool:
    """Whether a guest in 64-bit mode may write one word to two entries of its page tables."""
    return any(map(_is_across, scenario.operations)) and any(
        isinstance(op, HostWrite) and op.value == _PROGRAM for op in scenario.operations
    )


def is_written_across_entries(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether this is a start that may write so."""
    return _is_across(op)


def _is_across(op: AnyOperation) -> bool:
    if not isinstance(op, Start) or op.tables is None or op.paging != "long":
        return False
    return op.data % ENTRY_BYTES > ENTRY_BYTES - _WORD
