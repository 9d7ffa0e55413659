"""A trace as data: the calls of each VM that concern its memslots, with their lines."""

from collections import Counter
from collections.abc import Iterator, Mapping

import msgspec
from msgspec.structs import replace

from vmm.replay.spool import Spool, Store
from vmm.scenario.operations import AnyOperation, CreateGuestMemfd, HostChangeKind, MappingKind

MAX_TEXT = 240
"""How many characters of a line are kept, to be shown."""

MAX_VMS = 1000
MAX_NOTES = 100
MAX_MEMFDS = 1 << 18

CUT_OFF = "is cut off: which call it had is not known"
BEGINNING_LOST = "ends a call that began on a line that is lost"
DAMAGED = "has bytes of no text: what stood there is lost"
JOINED = "begins with two pids: what was between them is lost"
TORN = "is not one whole call: what stood before it, or within it, is lost"
TWO_EVENTS = "has two events: what stood between them may be lost"


class Line(msgspec.Struct, frozen=True, gc=False):
    """The place of a call: the line on which it ended, the one on which it began, and its text.

    If lines stand where calls began, ``until`` is the first one that began after this call's end.
    """

    number: int
    begin: int
    text: str = ""
    until: int = 0

    @property
    def end(self) -> int:
        """A call that began on this line, or after it, came later."""
        return self.until or self.number


OTHER_FILE = "another file"
"""The name of a descriptor that is open, but not of a guest_memfd."""


class Region(msgspec.Struct, frozen=True, gc=False, tag=True):
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
    """Whether a process that had inherited the VM from another one made the call."""

    is_readable: bool = True
    """Whether the kernel could read the structure."""

    returned: int = 0
    """The result if the call did not fail."""

    is_guessed: bool = False
    """Whether ``is_foreign`` follows from the answer alone, since the trace shows no fork."""

    memfd: str = ""
    """What the descriptor ``guest_memfd`` is: a name, OTHER_FILE, or "" if no trace has that."""


class MemoryChange(msgspec.Struct, frozen=True, gc=False, tag=True):
    """The VMM's process changed ``size`` bytes of its memory from ``start`` on.

    ``memfd`` and ``base`` as in `Memory`, if it has mapped a guest_memfd there.
    """

    line: Line
    start: int
    size: int
    how: HostChangeKind
    memfd: str = ""
    base: int = 0


class VmCall(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Another call on a VM that concerns memslots, as an operation, and its result.

    What is in a dirty log is in no trace: `operation` clears all pages of a range.
    """

    line: Line
    name: str
    operation: AnyOperation
    errno: int = 0
    returned: int = 0


class Unread(msgspec.Struct, frozen=True, gc=False, tag=True):
    """A call on memslots whose arguments or result are not in the trace.

    ``may_change`` says whether it may have changed slots.
    """

    line: Line
    name: str
    why: str
    may_change: bool = True


Call = Region | MemoryChange | VmCall | Unread
_CALLS: msgspec.msgpack.Decoder[list[Call]] = msgspec.msgpack.Decoder(list[Call])


class Calls(Spool[Call]):
    """The calls of a VM, in the order in which they ended: any number of them.

    ``ends`` has the lines until which calls may have been under way (`Line.until`), by the lines on
    which they stand.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store, _CALLS)
        self.ends: Mapping[int, int] = {}

    def __iter__(self) -> Iterator[Call]:
        if not self.ends:
            yield from super().__iter__()
            return
        for call in super().__iter__():
            until = self.ends.get(call.line.number, 0)
            yield replace(call, line=replace(call.line, until=until)) if until else call


class NoCalls(Calls):
    """The calls of a VM beyond MAX_VMS: none is kept."""

    def append(self, record: Call) -> None:
        pass


class Memory(msgspec.Struct, frozen=True, gc=False):
    """What the VMM had mapped in a range of addresses when a slot first used it.

    ``memfd`` is the guest_memfd there ("": none), whose first byte is, or would be, at ``base``.
    """

    start: int
    end: int
    kind: MappingKind
    memfd: str = ""
    base: int = 0


class TracedVm(msgspec.Struct):
    """One VM of a trace. ``began_before`` says that it is older than the trace.

    ``capabilities`` are answers of KVM_CHECK_EXTENSION, by the number of the capability.
    ``enables_unseen`` says that it enables capabilities of which the trace does not say which they
    are, ``unordered`` that the calls of its threads follow each other thread by thread,
    ``closes_seen`` that the trace has calls that close descriptors, ``is_guessed`` that some calls
    may be another VM's. ``cut_line`` is the first line that shows that something was lost, as one
    that is cut off before it says of which call it is (0: none); ``cut_why`` says what it shows.
    """

    name: str
    line: int
    calls: Calls
    vm_type: int = 0
    began_before: bool = False
    capabilities: dict[int, int] = {}
    memory: list[Memory] = []
    enables_unseen: bool = False
    unordered: bool = False
    closes_seen: bool = False
    is_guessed: bool = False
    cut_line: int = 0
    cut_why: str = CUT_OFF


class Trace(msgspec.Struct):
    """Everything that was understood of a trace.

    ``vms`` are in the order of their creation, ``memfds`` the guest_memfds of all of them.
    ``passed_over`` counts, by name, the calls that concern memory but cannot be replayed, and says
    why if not for want of their arguments; ``first_lines`` has the line of the first.
    ``strange`` is the first line that has a call on a memslot, but does not begin as strace's;
    ``cut_line`` is the first one that shows that something was lost, as one of which there is only
    the beginning, before any call (0: none); ``cut_why`` says what it shows.
    """

    name: str
    tool: str
    store: Store = msgspec.field(default_factory=Store)
    lines: int = 0
    vms: list[TracedVm] = []
    memfds: dict[str, CreateGuestMemfd] = {}
    passed_over: Counter[str] = msgspec.field(default_factory=Counter)
    first_lines: dict[str, int] = {}
    strange: Line | None = None
    cut_line: int = 0
    cut_why: str = CUT_OFF
    notes: list[str] = []

    def new_vm(self, line: int) -> TracedVm:
        """Return the next VM; it is one of the trace's, unless there are too many of them."""
        is_kept = len(self.vms) < MAX_VMS
        calls = (Calls if is_kept else NoCalls)(self.store)
        vm = TracedVm(str(len(self.vms) + 1), line, calls)
        if is_kept:
            self.vms.append(vm)
        else:
            beyond = f"VM, which is beyond the first {MAX_VMS}"
            self.passed_over[beyond] += 1
            self.first_lines.setdefault(beyond, line)
        return vm

    def note(self, text: str) -> None:
        """Add a note, unless there are too many to be read."""
        if len(self.notes) < MAX_NOTES:
            self.notes.append(text)

    def lacks(self, number: int, why: str) -> None:
        """Note a line that shows that something was lost, if it is the first one."""
        if not self.cut_line or number < self.cut_line:
            self.cut_line, self.cut_why = number, why


class TraceError(ValueError):
    """A trace that cannot be used; the text is one line with file and place."""


class NoMemslotsError(TraceError):
    """A whole trace without a call on a memslot."""
