"""A vCPU that starts at an address that the scenario chooses, as data."""

from vmm.scenario.operation import AsId, Hex, Operation
from vmm.scenario.paging import PagingKind

SMBASE = 0x30000
"""The SMBASE of a vCPU after a reset."""


class Start(Operation, frozen=True, tag="start", gc=False):
    """A vCPU runs code in a slot of the scenario from ``address`` on, in one KVM_RUN.

    With ``tables``, the gpa of page tables that the host has written to memory of the scenario, the
    vCPU is in 64-bit mode; without, in real mode, where an address is a gpa below 4 GiB. It uses
    nothing in the guest's own slot. It executes the code in every tagged page, or one of
    `vmm.scenario.programs`: those access the address in DI (``data``), and have ``value`` in CX.
    The outcome is the word that the code answers.

    ``interrupts`` is the address of an interrupt table, which in 64-bit mode is also the descriptor
    table; with it a program may raise an interrupt. The processor pushes below ``stack``, which in
    real mode is in the first 64 KiB, since some processors push with a 16-bit SP there.

    With ``smi``, in real mode, a system management interrupt (KVM_SMI) is pending when the vCPU
    starts. Its handler is at ``smbase`` + 0x8000 in as_id 1, and has to return (RSM): then the code
    in as_id 0 runs as without it. KVM saves the vCPU's state there, too, in the 512 bytes that end
    at ``smbase`` + 0x10000.

    With ``as_id`` 1, the host has put the vCPU in SMM before it starts: code, page tables and data
    are those of that address space.

    With ``paging`` "pae" or "two-level" it is in 32-bit mode, and the page tables are those of that
    mode, with pages of 4 MiB in "two-level". It executes the code in every tagged page there, or a
    program that reads or writes a word.

    >>> from vmm import operations
    >>> operations.Start(0x2800, tables=0x100000).tables is None
    False
    """

    address: Hex
    tables: Hex | None = None
    data: Hex = 0
    value: Hex = 0
    stack: Hex = 0
    interrupts: Hex | None = None
    smi: bool = False
    smbase: Hex = SMBASE
    vcpu: int = 0
    as_id: AsId = 0
    paging: PagingKind = "long"
