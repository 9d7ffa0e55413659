"""Where the known issue of page frames that the host forbids itself may show."""

from collections.abc import Iterator

from vmm.scenario import operations as ops
from vmm.scenario.hostpages import CHANGES
from vmm.scenario.instructions import accessed
from vmm.scenario.operations import (
    AnyOperation,
    ChangeHostMemory,
    Place,
    Scenario,
    access_end,
    pages_of,
)
from vmm.scenario.races import gfns_of

_Pages = set[tuple[str, int]]


def forbids_page_frames(scenario: Scenario) -> bool:
    """Whether the host forbids itself page frames that are mapped as a driver maps a device's."""
    return any(op.how == "forbid" for op in _changes_of_frames(scenario, scenario.operations))


def may_read_forbidden_frames(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether this may read page frames, through a slot, that the host forbids itself then.

    A slot counts wherever it was once put. A start counts whatever it reads: its page tables say.
    """
    before = scenario.operations[: origin + 1]
    forbidden = _forbidden(scenario, before)
    if isinstance(op, ops.Start):
        return bool(forbidden)
    read = _gfns_read(op)
    return any(
        gfn in gfns
        for call in before
        if isinstance(call, ops.SetUserMemoryRegion) and isinstance(call.userspace_addr, Place)
        for gfn in _gfns_showing(call, call.userspace_addr, forbidden)
        for gfns in read
    )


def _forbidden(scenario: Scenario, before: tuple[AnyOperation, ...]) -> _Pages:
    """Return the pages of page frames that operations leave forbidden."""
    found = _Pages()
    for op in _changes_of_frames(scenario, before):
        first = pages_of(op.place.offset)
        pages = {(op.place.mapping, page) for page in range(first, first + op.pages)}
        if op.how == "forbid":
            found |= pages
        elif CHANGES[op.how].access is not None:
            found -= pages
    return found


def _changes_of_frames(
    scenario: Scenario, operations: tuple[AnyOperation, ...]
) -> Iterator[ChangeHostMemory]:
    frames = {mapping.name for mapping in scenario.mappings if mapping.kind == "pfnmap"}
    for op in operations:
        if isinstance(op, ChangeHostMemory) and op.place.mapping in frames:
            yield op


def _gfns_read(op: AnyOperation) -> list[range]:
    """Return the gfns that an operation reads, as far as it names them."""
    match op:
        case ops.Touch() | ops.Sweep():
            spans = [(op.gpa, access_end(op))] if op.access == "read" else []
        case ops.Execute():
            spans = [(op.gpa, access_end(op))]
        case ops.Instruction():
            spans = [(gpa, gpa + length) for gpa, length in accessed(op)]
        case ops.PreFaultMemory():
            spans = [(op.gpa, op.gpa + op.size)]
        case _:
            spans = []
    return [range(pages_of(gpa), pages_of(end - 1) + 1) for gpa, end in spans]


def _gfns_showing(call: ops.SetUserMemoryRegion, place: Place, pages: _Pages) -> Iterator[int]:
    """Yield the gfns at which a call may show some pages of mappings."""
    first, gfns = pages_of(place.offset), gfns_of(call)
    for mapping, page in pages:
        if mapping == place.mapping and page - first in range(len(gfns)):
            yield gfns.start + page - first
