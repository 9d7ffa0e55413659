"""Random VMs without a guest of our own: their only slots are those that operations create.

Without its code and mailbox in memory no guest touches anything. Its vCPUs execute the pages
instead that the guests of another random scenario touch, whose code nobody changes.
"""

from collections.abc import Iterator

import msgspec

from vmm.scenario.operations import (
    NO_SLOT,
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    AnyOperation,
    ChangeHostMemory,
    Execute,
    Guest,
    HostWrite,
    Instruction,
    Race,
    Scenario,
    Start,
    Sweep,
    Touch,
)
from vmm.scenario.validate import is_valid

_LEFT_OUT = (ChangeHostMemory, HostWrite, Instruction, Race, Start)


def without_a_guest(scenario: Scenario) -> Scenario:
    """Return a scenario on a VM whose guest has no slot of its own.

    Returns the scenario itself if that is not possible.
    """
    made = msgspec.structs.replace(
        scenario, operations=tuple(_executed(scenario)), guest=Guest(slot=NO_SLOT)
    )
    return made if is_valid(made) else scenario


def _executed(scenario: Scenario) -> Iterator[AnyOperation]:
    for op in scenario.operations:
        if isinstance(op, Touch | Sweep):
            page = op.gpa & -PAGE_SIZE_BYTES
            if page < REAL_MODE_END:
                yield Execute(page, op.vcpu, op.as_id)
        elif not isinstance(op, _LEFT_OUT):
            yield op
