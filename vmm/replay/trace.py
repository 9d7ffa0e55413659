"""What a trace says, as data: the calls of each VM that bear on its memslots, with their lines."""

from collections import Counter

import msgspec

from vmm.scenario.operations import HostChangeKind, MappingKind

MAX_TEXT = 240
"""So much of a line of the trace is kept, to be shown."""

MAX_CALLS = 200_000
"""So many calls of one VM are kept, as many as a scenario may have operations."""

MAX_VMS = 1000


class Line(msgspec.Struct, frozen=True, gc=False):
    """Where a call stands: the line on which it ended, the one on which it began, and its text."""

    number: int
    begin: int
    text: str = ""


class Region(msgspec.Struct, frozen=True, gc=False):
    """KVM_SET_USER_MEMORY_REGION or ..._REGION2 and its result: an errno, or 0."""

    line: Line
    slot: int
    flags: int
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int
    errno: int = 0
    second_form: bool = False
    guest_memfd: int = -1
    guest_memfd_offset: int = 0
    is_foreign: bool = False
    """Whether a process made the call that had inherited the VM from another."""

    is_readable: bool = True
    """Whether the kernel could read the structure."""

    returned: int = 0
    """The result where the call did not fail."""


class HostChange(msgspec.Struct, frozen=True, gc=False):
    """The VMM's process changed ``size`` bytes of its memory from ``start`` on."""

    line: Line
    start: int
    size: int
    how: HostChangeKind


class TssAddr(msgspec.Struct, frozen=True, gc=False):
    """KVM_SET_TSS_ADDR and its result."""

    line: Line
    gpa: int
    errno: int = 0
    returned: int = 0


class Unread(msgspec.Struct, frozen=True, gc=False):
    """A call on memslots of which the trace does not say what was asked, or the answer.

    ``may_change`` says whether slots may be other ones afterwards.
    """

    line: Line
    name: str
    why: str
    may_change: bool = True


Call = Region | HostChange | TssAddr | Unread


class Memory(msgspec.Struct, frozen=True, gc=False):
    """What the VMM had mapped at a range of addresses when a slot first reached it."""

    start: int
    end: int
    kind: MappingKind


class TracedVm(msgspec.Struct):
    """One VM of a trace. ``began_before`` says that it is older than the trace.

    ``capabilities`` are answers of KVM_CHECK_EXTENSION, by the number of the capability.
    ``left_out`` counts the calls that are beyond what is kept.
    """

    name: str
    line: int
    vm_type: int = 0
    began_before: bool = False
    capabilities: dict[int, int] = {}
    calls: list[Call] = []
    memory: list[Memory] = []
    left_out: int = 0

    def add(self, call: Call) -> None:
        """Keep a call, unless there are too many of them."""
        if len(self.calls) < MAX_CALLS:
            self.calls.append(call)
        else:
            self.left_out += 1


class Trace(msgspec.Struct):
    """All that was understood of a trace.

    ``vms`` are in the order in which they were made. ``passed_over`` counts the calls, by name,
    that bear on memory and say too little, with the line of the first.
    """

    name: str
    tool: str
    lines: int = 0
    vms: list[TracedVm] = []
    passed_over: Counter[str] = msgspec.field(default_factory=Counter)
    first_lines: dict[str, int] = {}
    notes: list[str] = []


class TraceError(ValueError):
    """A trace of which nothing can be made; the text is one line with file and place."""
