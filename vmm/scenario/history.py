"""What happened: one event for each operation that was executed.

A history is self-contained: scenario, features of the kernel, every operation with its outcome. It
can be judged again, elsewhere and later, without a kernel. Nothing in it can be part of a reference
cycle, so the garbage collector does not track it (``gc=False``).

    >>> from vmm import Scenario, history, operations, record_scenario
    >>> recorded = record_scenario(Scenario("nobody", (operations.Touch(0x1000),)))
    >>> outcomes = [event.outcome for event in recorded.events]
    >>> next(each.mmio[0].gpa for each in outcomes if isinstance(each, history.Touched))
    4096
"""

from collections.abc import Iterable

import msgspec

from vmm.scenario.clocks import ClockWrite, Room, fit
from vmm.scenario.features import Features
from vmm.scenario.kernelslots import KernelSlots
from vmm.scenario.operations import FORMAT, AnyOperation, Scenario


class Outcome(msgspec.Struct, frozen=True, tag_field="is", omit_defaults=True, gc=False):
    """What all outcomes share: the ``is`` field that tells them apart in JSON.

    The model makes outcomes, too. Some of those allow more than one observation: see ``admits``.

    >>> from vmm import history
    >>> history.Refused(22).admits(history.Refused(17))
    False
    """

    def admits(self, observed: "AnyOutcome") -> bool:
        """Whether this outcome of the model allows what was observed.

        Raises nothing.

        >>> from vmm import history
        >>> history.Refused(22).admits(history.Refused(22))
        True
        """
        return self == observed


class Done(Outcome, frozen=True, tag="done", gc=False):
    """The system call succeeded, or the host's action was done.

    >>> from vmm import history
    >>> history.Done() == history.Done()
    True
    """


class Refused(Outcome, frozen=True, tag="refused", gc=False):
    """The system call failed with ``errno``.

    >>> from vmm import history
    >>> history.Refused(errno=22).errno
    22
    """

    errno: int


class Mmio(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Bytes that the guest read from or wrote to userspace by MMIO; adjacent exits are joined.

    >>> from vmm import history
    >>> history.Mmio(gpa=0x5000, write=True, data=bytes([7])).data[0]
    7
    """

    gpa: int
    write: bool
    data: bytes


class Touched(Outcome, frozen=True, tag="touched", gc=False):
    """A touch or an execution ended. ``value`` is what the guest read (0 for a write).

    ``unknown`` is 0 in an observation; in the model's outcome it has the bits that may be anything.

    >>> from vmm import history
    >>> history.Touched(0xFF, (history.Mmio(0x5000, False, bytes([0xFF])),)).value
    255
    """

    value: int
    mmio: tuple[Mmio, ...] = ()
    unknown: int = 0

    def admits(self, observed: "AnyOutcome") -> bool:
        """Whether the exits are the same, and all bits outside of ``unknown``.

        Raises nothing.

        >>> from vmm import history
        >>> history.Touched(0x10, unknown=0xf).admits(history.Touched(0x17))
        True
        """
        if not self.unknown:
            return self == observed
        return (
            isinstance(observed, Touched)
            and observed.mmio == self.mmio
            and not (observed.value ^ self.value) & ~self.unknown
        )


class Ran(Outcome, frozen=True, tag="ran", gc=False):
    """An instruction ended.

    ``ax``, ``bx``, ``cx`` and ``dx`` are the values of those registers, ``sp``, ``si`` and ``di``
    how far those moved. ``bp`` is how far BP is from where `instructions.bp_begin` says: from
    ``value_high``, or, if the instruction makes a frame, from where SP was. ``flags`` are the
    arithmetic flags, ``sent`` the bytes written to a port, ``taken`` how many were read from it. In
    the model's outcome ``undefined`` has the flags that may be anything, ``unknown_bp`` says that
    BP may be anything, and ``unknown_exits`` that the data of exits may.

    >>> from vmm import history
    >>> history.Ran(ax=5, flags=0x40).ax
    5
    """

    ax: int = 0
    bx: int = 0
    cx: int = 0
    dx: int = 0
    sp: int = 0
    si: int = 0
    di: int = 0
    flags: int = 0
    mmio: tuple[Mmio, ...] = ()
    undefined: int = 0
    unknown_exits: bool = False
    bp: int = 0
    unknown_bp: bool = False
    sent: bytes = b""
    taken: int = 0

    def admits(self, observed: "AnyOutcome") -> bool:
        """Whether the same was observed, apart from what this outcome leaves open.

        Raises nothing.

        >>> from vmm import history
        >>> history.Ran(flags=0, undefined=0x10).admits(history.Ran(flags=0x10))
        True
        """
        return isinstance(observed, Ran) and self._known(self) == self._known(observed)

    def _known(self, of: "Ran") -> "Ran":
        """Return an outcome without what this one leaves open."""
        mmio = of.mmio
        if self.unknown_exits:
            mmio = tuple(Mmio(each.gpa, each.write, bytes(len(each.data))) for each in mmio)
        return msgspec.structs.replace(
            of,
            flags=of.flags & ~self.undefined,
            bp=0 if self.unknown_bp else of.bp,
            mmio=mmio,
            undefined=0,
            unknown_exits=False,
            unknown_bp=False,
        )


class Swept(Outcome, frozen=True, tag="swept", gc=False):
    """A sweep ended. ``runs`` is what it read: (element, count), in order.

    >>> from vmm import history
    >>> history.Swept(runs=((7, 1024),)).mmio
    ()
    """

    runs: tuple[tuple[int, int], ...] = ()
    mmio: tuple[Mmio, ...] = ()


class Stopped(Outcome, frozen=True, tag="stopped", gc=False):
    """The vCPU could not continue: the name of an errno or exit, and its detail.

    >>> from vmm import history
    >>> history.Stopped("EFAULT").reason
    'EFAULT'
    """

    reason: str
    detail: str = ""

    def admits(self, observed: "AnyOutcome") -> bool:
        """Whether the reason is the same; the detail may be any. Raises nothing.

        >>> from vmm import history
        >>> history.Stopped("intr").admits(history.Stopped("intr", "a signal"))
        True
        """
        return isinstance(observed, Stopped) and observed.reason == self.reason


def joined(exits: Iterable[Mmio]) -> tuple[Mmio, ...]:
    """Join adjacent exits: kernels split accesses differently."""
    found: list[Mmio] = []
    for each in exits:
        last = found[-1] if found else None
        if last is not None and last.write == each.write and last.gpa + len(last.data) == each.gpa:
            found[-1] = Mmio(last.gpa, last.write, last.data + each.data)
        else:
            found.append(each)
    return tuple(found)


def private_fault(gpa: int, size: int) -> Stopped:
    """Return the outcome of an access to a private gpa without private memory.

    It is EFAULT with KVM_EXIT_MEMORY_FAULT.
    """
    return Stopped(f"private memory-fault at {gpa:#x}+{size:#x}")


class DirtyPages(Outcome, frozen=True, tag="dirty_pages", gc=False):
    """The dirty log: page numbers within the slot, ascending.

    ``perhaps`` is empty in an observation; in the model's outcome it has pages that may be reported
    besides. ``words`` is how many 64-bit words of the bitmap were written, None if nobody looked.

    >>> from vmm import history
    >>> history.DirtyPages(pages=(0, 63), words=1).pages
    (0, 63)
    """

    pages: tuple[int, ...]
    perhaps: tuple[int, ...] = ()
    words: int | None = None

    def admits(self, observed: "AnyOutcome") -> bool:
        """Whether all of ``pages``, nothing beyond ``perhaps``, and all ``words`` were reported.

        Raises nothing.

        >>> from vmm import history
        >>> history.DirtyPages((1,), perhaps=(2,)).admits(history.DirtyPages((1, 2)))
        True
        """
        if not isinstance(observed, DirtyPages) or not self.fills(observed):
            return False
        if not self.perhaps:
            return self.pages == observed.pages
        return set(self.pages) <= set(observed.pages) <= {*self.pages, *self.perhaps}

    def fills(self, observed: "DirtyPages") -> bool:
        """Whether as many words of the bitmap were written as observed, if both are known.

        Raises nothing.

        >>> from vmm import history
        >>> history.DirtyPages(()).fills(history.DirtyPages((), words=1))
        True
        """
        return None in (self.words, observed.words) or self.words == observed.words


class RingPages(Outcome, frozen=True, tag="ring_pages", gc=False):
    """What a dirty ring held: (slot, page) without repetition, ascending.

    ``full`` is how often the vCPU stopped at a full ring since the last harvest; ``entries`` is how
    many entries there were. The model does not know ``entries``; its ``full`` is a minimum if
    ``may_be_full``, and ``perhaps`` has the pages that it allows besides.

    >>> from vmm import history
    >>> history.RingPages(pages=((1, 0), (1, 5)), full=2).full  # Pages 0 and 5 of slot 1.
    2
    """

    pages: tuple[tuple[int, int], ...] = ()
    full: int = 0
    perhaps: tuple[tuple[int, int], ...] = ()
    may_be_full: bool = False
    entries: int = 0

    def admits(self, observed: "AnyOutcome") -> bool:
        """Whether all of ``pages`` and nothing beyond ``perhaps`` was found, and ``full`` fits.

        Raises nothing.

        >>> from vmm import history
        >>> history.RingPages(((0, 1),)).admits(history.RingPages(((0, 1), (0, 2))))
        False
        """
        return (
            isinstance(observed, RingPages)
            and set(self.pages) <= set(observed.pages) <= {*self.pages, *self.perhaps}
            and self.full <= observed.full
            and (self.may_be_full or observed.full == self.full)
        )


class RingsReset(Outcome, frozen=True, tag="rings_reset", gc=False):
    """How many entries the kernel says it reset, and how many were harvested since the last reset.

    The model knows neither number; it requires that they are equal. In a race ``harvested`` is 0:
    what was harvested by then follows from the moments.

    >>> from vmm import history
    >>> history.RingsReset(entries=3, harvested=3).entries
    3
    """

    entries: int = 0
    harvested: int = 0

    def admits(self, observed: "AnyOutcome") -> bool:
        """Whether as many entries were reset as harvested. Raises nothing.

        >>> from vmm import history
        >>> history.RingsReset(0, 0).admits(history.RingsReset(3, 3))
        True
        """
        return isinstance(observed, RingsReset) and observed.entries == observed.harvested


class PreFaulted(Outcome, frozen=True, tag="pre_faulted", gc=False):
    """KVM_PRE_FAULT_MEMORY succeeded; the kernel says that ``size`` bytes from ``gpa`` are left.

    >>> from vmm import history
    >>> history.PreFaulted(gpa=0x101000, size=0x1000).size  # Left to do.
    4096
    """

    gpa: int
    size: int = 0


class HostChange(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Bytes of a mapping that differ from what they were at the last look.

    >>> from vmm import history
    >>> history.HostChange("a", offset=0x1010, data=bytes([7])).offset // 4096
    1
    """

    mapping: str
    offset: int
    data: bytes


class Inspected(Outcome, frozen=True, tag="inspected", gc=False):
    """All changes since the last look, ordered by mapping and offset.

    ``room`` and ``due`` are empty in an observation; in the model's outcome ``room`` has the bytes
    that KVM itself may have written, and ``due`` the structures that it must have written.

    >>> from vmm import history
    >>> history.Inspected((history.HostChange("a", 0x1010, bytes([7])),)).room
    ()
    """

    changes: tuple[HostChange, ...] = ()
    room: tuple[Room, ...] = ()
    due: tuple[ClockWrite, ...] = ()

    def admits(self, observed: "AnyOutcome") -> bool:
        """Whether the same bytes changed outside of ``room``, and all of ``due`` was written.

        Raises nothing.

        >>> from vmm import history
        >>> history.Inspected(()).admits(history.Inspected(()))
        True
        """
        if not (self.room or self.due):
            return self == observed
        return isinstance(observed, Inspected) and fit(
            bytes_of(self.changes), bytes_of(observed.changes), self.room, self.due
        )


def bytes_of(changes: Iterable[HostChange]) -> dict[tuple[str, int], int]:
    """Return each byte that changed, by mapping and offset."""
    return {
        (change.mapping, change.offset + index): byte
        for change in changes
        for index, byte in enumerate(change.data)
    }


class MsrsSet(Outcome, frozen=True, tag="msrs_set", gc=False):
    """How many MSRs KVM_SET_MSRS has set: it stops at the first one that it refuses.

    >>> from vmm import history
    >>> history.MsrsSet(number=1).number
    1
    """

    number: int


class Closed(Outcome, frozen=True, tag="closed", gc=False):
    """The VM is closed. ``left`` names what it left behind in the process.

    >>> from vmm import history
    >>> history.Closed().left
    ()
    """

    left: tuple[str, ...] = ()


class Unmapped(Outcome, frozen=True, tag="unmapped", gc=False):
    """How many mappings of the kernel's making the host found, and unmapped.

    >>> from vmm import history
    >>> history.Unmapped(mappings=3).mappings
    3
    """

    mappings: int


class MmioKept(Outcome, frozen=True, tag="mmio_kept", gc=False):
    """The writes that the kernel kept, in order, and how often each eventfd was signalled.

    ``ports`` are those of the writes that went to a port, counted from 0; the others to a gpa.

    >>> from vmm import history
    >>> history.MmioKept(events=(("bell", 2),)).writes
    ()
    """

    writes: tuple[Mmio, ...] = ()
    events: tuple[tuple[str, int], ...] = ()
    ports: tuple[int, ...] = ()


class SetUpRefused(Outcome, frozen=True, tag="set_up_refused", gc=False):
    """A call that the executor needs for the operation was refused, or answered wrongly.

    It is not the operation's own call, but one that every VMM needs, such as KVM_SET_SREGS. If the
    wrong answer is no errno, ``answer`` has it and ``errno`` is 0. The operation was not executed,
    and the scenario ends with it.

    >>> from vmm import history
    >>> history.SetUpRefused("KVM_CREATE_VCPU", "0", errno=12).errno
    12
    """

    call: str
    arguments: str = ""
    errno: int = 0
    answer: str = ""


CallOutcome = Done | Refused | DirtyPages | RingPages | RingsReset | Inspected


class Call(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A call of a host thread, with the moments of its invocation and response.

    Moments are numbers from one sequence that all threads of a race share: if the response of one
    call has a lower number than the invocation of another, the one was over before the other began.

    >>> from vmm import history
    >>> history.Call(begin=3, end=7, outcome=history.Done()).end
    7
    """

    begin: int
    end: int
    outcome: CallOutcome


class Window(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One run of a vCPU's program. ``seen`` is the index of its outcomes in ``Raced.seen``.

    >>> from vmm import history
    >>> history.Window(begin=2, end=9, seen=0).begin
    2
    """

    begin: int
    end: int
    seen: int


Met = Touched | Stopped | PreFaulted | Refused
"""The possible outcomes of a step of a vCPU's program."""

Seen = tuple[Met, ...]


class Raced(Outcome, frozen=True, tag="raced", gc=False):
    """The outcome of a race: the calls of each host thread and the windows of each vCPU, in order.

    ``seen`` are the outcomes of each vCPU's windows, each sequence once; ``changes`` is what
    changed in the mappings since the last look. ``helped`` are the harvests and resets that each
    vCPU's thread made at its full ring, ``rings`` what was left in each ring at the end.

    >>> from vmm import history
    >>> history.Raced().calls
    ()
    """

    calls: tuple[tuple[Call, ...], ...] = ()
    windows: tuple[tuple[Window, ...], ...] = ()
    seen: tuple[tuple[Seen, ...], ...] = ()
    changes: tuple[HostChange, ...] = ()
    helped: tuple[tuple[Call, ...], ...] = ()
    rings: tuple[RingPages, ...] = ()


AnyOutcome = (
    Done
    | Refused
    | Touched
    | Ran
    | Swept
    | Stopped
    | DirtyPages
    | RingPages
    | RingsReset
    | PreFaulted
    | Inspected
    | Raced
    | Closed
    | Unmapped
    | MmioKept
    | MsrsSet
    | SetUpRefused
)


class Event(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One operation and its outcome.

    ``origin`` is the index of the scenario's operation that this is, or that it follows; -1 before
    the first one. ``kernel`` has the kernel's own slots after a region operation; None if nobody
    looked.

    >>> from vmm import history, operations
    >>> history.Event(0, operations.Touch(0x1000), history.Touched(7)).origin
    0
    """

    origin: int
    operation: AnyOperation
    outcome: AnyOutcome
    kernel: KernelSlots | None = None


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="history"):
    """The first line of a history file.

    >>> from vmm import Features, Scenario, history
    >>> history.Header(Scenario("empty", ()), Features()).format
    1
    """

    scenario: Scenario
    features: Features
    host: dict[str, str] = {}
    format: int = FORMAT


class End(msgspec.Struct, frozen=True, tag="end"):
    """The last line. ``reason`` is empty if the scenario ran to its end.

    >>> from vmm import history
    >>> history.End("", events=3).events
    3
    """

    reason: str = ""
    events: int = 0


class History(msgspec.Struct, frozen=True):
    """A whole history. ``end`` is None if it was cut off.

    >>> from vmm import Scenario, operations, record_scenario
    >>> history = record_scenario(Scenario("nobody", (operations.Touch(0x1000),)))
    >>> history.header.scenario.name, history.end.reason
    ('nobody', '')
    """

    header: Header
    events: tuple[Event, ...]
    end: End | None
