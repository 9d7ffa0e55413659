"""A vCPU that goes on at an address of the scenario's own, as data."""

from vmm.scenario.operation import Hex, Operation


class Start(Operation, frozen=True, tag="start", gc=False):
    """A vCPU goes on at an address, in code that stands in a slot, in one KVM_RUN.

    With ``tables`` it is in 64-bit mode, and they are the gpa of its page tables, which the host
    has written to memory of the scenario; without, in real mode, where an address is a gpa below
    4 GiB. Nothing of what it uses is in the guest's own slot. What it executes is the code that
    every tagged page carries, or one of `vmm.scenario.programs`: those find the address that they
    access in DI, and a ``value`` in CX. The outcome is the word that the code answers with.

    With ``interrupts``, which is the address of an interrupt table, and in 64-bit mode of a
    descriptor table in the same place, a program may raise one: what the processor pushes goes
    below ``stack``: in real mode within the first 64 KiB, as some push by 16 bits there.
    """

    address: Hex
    tables: Hex | None = None
    data: Hex = 0
    value: Hex = 0
    stack: Hex = 0
    interrupts: Hex | None = None
    vcpu: int = 0
