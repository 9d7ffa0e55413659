"""Outcomes that are wrong by as little as possible."""

import msgspec

from vmm.scenario.history import (
    AnyOutcome,
    Closed,
    DirtyPages,
    Done,
    HostChange,
    Inspected,
    Mmio,
    MmioKept,
    MsrsSet,
    PreFaulted,
    Raced,
    Ran,
    Refused,
    RingPages,
    RingsReset,
    SetUpRefused,
    Stopped,
    Swept,
    Touched,
    Unmapped,
)


def wrong(outcome: AnyOutcome) -> AnyOutcome:
    """Return an outcome of the same kind that differs in as little as possible."""
    match outcome:
        case Done():
            return Refused(22)
        case Refused():
            return Done()
        case Touched(value, mmio):
            return Touched(value ^ 1, mmio)
        case Ran():
            return msgspec.structs.replace(outcome, bx=outcome.bx ^ 1)
        case Swept(runs, mmio):
            return Swept(runs[:-1], mmio)
        case Stopped():
            return Touched(0)
        case DirtyPages(pages):
            return DirtyPages(pages[1:] or (0,))
        case RingPages(pages):
            return RingPages(pages[1:] or ((0, 1),))
        case RingsReset(entries, harvested):
            return RingsReset(entries + 1, harvested)
        case PreFaulted(gpa, size):
            return PreFaulted(gpa, size + 1)
        case Inspected(changes):
            return Inspected((*changes, HostChange("a", 0, b"\0")))
        case Raced():
            return Done()
        case Closed():
            return Closed(("open file 9 anon_inode:kvm-vm",))
        case MsrsSet(number):
            return MsrsSet(number + 1)
        case Unmapped(number):
            return Unmapped(number + 1)
        case MmioKept(writes, events):
            return MmioKept(writes[1:] or (Mmio(0, True, b"\0"),), events)
        case SetUpRefused():
            return Done()
