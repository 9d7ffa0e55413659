"""One instruction of a guest's, as data: which one it is says the table in `instructions`."""

from typing import Literal

from vmm.scenario.operation import AsId, Hex, Operation

Width = Literal[1, 2, 4, 8, 16]
"""How many bytes an operand has."""


class Instruction(Operation, frozen=True, tag="instruction", gc=False):
    """The guest executes one instruction on ``width`` bytes of memory at a gpa, in one KVM_RUN.

    ``name`` is one of `vmm.scenario.instructions.INSTRUCTIONS`, which says what the other fields
    are to it. As a rule ``value`` is what it takes from BX, ``compare`` what AX holds; the high
    halves of both are in CX and DX. A string instruction goes over ``count`` elements from ``gpa``
    on, downward from the last one if ``down``, and copies from ``source``. In ``mode`` real gpas
    end with 4 GiB. What is ``forced`` KVM emulates, on whatever processor: it has a prefix that
    asks for it, which kvm.force_emulation_prefix allows.
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
