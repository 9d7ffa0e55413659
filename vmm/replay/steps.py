"""A step of a replay: an operation, and what the kernel of the trace answered."""

import msgspec

from vmm.replay.trace import Line
from vmm.scenario.history import Done, Refused, RingsReset, SetUpRefused
from vmm.scenario.operations import AnyOperation


class Step(msgspec.Struct, frozen=True, gc=False):
    """One operation, its line in the trace, and what the trace's kernel answered.

    ``outcome`` is None if it is not a call on slots.
    """

    line: Line
    operation: AnyOperation
    outcome: Done | Refused | RingsReset | SetUpRefused | None = None
