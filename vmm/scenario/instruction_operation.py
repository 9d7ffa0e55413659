"""One instruction of a guest, as data; the table is in `instructions`."""

from typing import Literal

from vmm.scenario.operation import AsId, Hex, Operation

Width = Literal[1, 2, 4, 8, 16]
"""The bytes of an operand."""


class Instruction(Operation, frozen=True, tag="instruction", gc=False):
    """The guest executes one instruction on ``width`` bytes of memory at a gpa, in one KVM_RUN.

    ``name`` is one of `vmm.scenario.instructions.INSTRUCTIONS`, where the row says how the
    instruction uses the other fields. As a rule ``value`` is in BX and ``compare`` in AX; the high
    halves of both are in CX and DX. A string instruction works on ``count`` elements from ``gpa``
    on, downward from the last one if ``down``, and copies from ``source``; a port that it reads
    gives ``value`` for each. In ``mode`` real, gpas end at 4 GiB. If ``forced``, KVM emulates the
    instruction on every processor: a prefix asks for it, which kvm.force_emulation_prefix enables.

    >>> from vmm import operations
    >>> operations.Instruction("lock-xadd", gpa=0x100040, width=8, value=1, mode="long").width
    8
    """

    name: str
    gpa: Hex
    width: Width = 4
    value: Hex = 0
    compare: Hex = 0
    value_high: Hex = 0
    compare_high: Hex = 0
    source: Hex = 0
    count: int = 1
    down: bool = False
    mode: Literal["real", "long"] = "real"
    forced: bool = False
    vcpu: int = 0
    as_id: AsId = 0
