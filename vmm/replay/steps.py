"""A step of a replay: an operation, and what the kernel of the trace answered."""

import msgspec

from vmm.replay.trace import Line
from vmm.scenario.history import Done, Refused, RingsReset, SetUpRefused
from vmm.scenario.operations import AnyOperation


class Step(msgspec.Struct, frozen=True):
    """One operation of a scenario, and its line in the trace.

    ``asked`` is the same operation with the addresses of the trace, and ``outcome`` what its kernel
    answered; both are None if it is not a call on slots.
    """

    line: Line
    operation: AnyOperation
    asked: AnyOperation | None = None
    outcome: Done | Refused | RingsReset | SetUpRefused | None = None
