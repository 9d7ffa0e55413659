"""What a vCPU's program does in a window; the executor and the judge share it."""

from typing import TypeVar

import msgspec

from vmm.scenario.operations import Execute, PreFaultMemory, Touch

Step = TypeVar("Step", bound=Touch | Execute | PreFaultMemory)


def in_window(step: Step, number: int) -> Step:
    """Return a step as the window with this number runs it: each writes a different value."""
    if not isinstance(step, Touch) or step.access == "read":
        return step
    return msgspec.structs.replace(step, value=(step.value + number) & 0xFFFF_FFFF)
