"""Coalesced MMIO and ioeventfds: the kernel keeps a write outside of memory, or signals an eventfd.

Both are devices on a bus that KVM tries before an access exits (``vcpu_mmio_write``): at a gpa
without a slot, and for a write to a READONLY slot. KVM tries each fragment of an access, which lies
within a page, by itself.
"""

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import msgspec

from vmm.model.allowed import Allowed
from vmm.model.rule import documented, source
from vmm.scenario.features import Features
from vmm.scenario.history import Done, Mmio, MmioKept, Ran, Refused, Touched
from vmm.scenario.instructions import DATA_PORT
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    CoalesceMmio,
    CollectMmio,
    DeviceOperation,
    Instruction,
    IoEventFd,
    SetCoalescedRing,
)

COALESCED = documented(
    "coalesced",
    "a write to a coalesced range outside memory is kept in the ring, in order, and does not "
    "exit while there is room; in a slot it goes to memory",
    "api.rst 4.116 KVM_(UN)REGISTER_COALESCED_MMIO; coalesced_mmio_write",
)
PORTS_APART = documented(
    "coalesced-ports",
    "a coalesced range of ports takes no write to a gpa, and does not end with one of gpas, nor "
    "the other way round",
    "api.rst 4.116; 0804c849f1df, kvm_vm_ioctl_unregister_coalesced_mmio",
)
COALESCED_PORTS = documented(
    "coalesced-port-writes",
    "a write to a coalesced port is kept in the ring, as one to a port, and does not exit while "
    "there is room",
    "api.rst 4.116; 0804c849f1df, coalesced_mmio_write",
)
COALESCED_ENDS = source(
    "coalesced-ends",
    "what userspace writes to the ends of the ring of coalesced writes is where the kernel goes "
    "on, and beyond the ring's end it keeps no write, which exits",
    "coalesced_mmio_write; b60fe990c6b0",
)
DEVICES_MOST = source(
    "devices-most",
    "a VM has room for 1000 coalesced ranges of gpas, then ENOSPC; ioeventfds do not count",
    "kvm_io_bus_register_dev: NR_IOBUS_DEVS",
)
KIND = source(
    "coalesced-kind",
    "pio is 0 for a coalesced range of gpas and 1 for one of ports, else EINVAL",
    "kvm_vm_ioctl_register_coalesced_mmio, kvm_vm_ioctl_unregister_coalesced_mmio",
)
EVENT = documented(
    "ioeventfd",
    "a write of the right length and value to the gpa of an ioeventfd outside memory signals it, "
    "and does not exit; in a slot it goes to memory",
    "api.rst 4.59 KVM_IOEVENTFD; ioeventfd_in_range",
)
EVENT_ARGUMENT = source(
    "ioeventfd-argument",
    "the length of an ioeventfd is 0, 1, 2, 4 or 8, and without one there is no value to match: "
    "EINVAL",
    "kvm_assign_ioeventfd",
)
EVENT_TAKEN = source(
    "ioeventfd-taken",
    "an ioeventfd is EEXIST if one write could signal both it and an existing one",
    "ioeventfd_check_collision",
)
EVENT_ABSENT = source(
    "ioeventfd-absent",
    "deassigning an ioeventfd that does not exist is ENOENT",
    "kvm_deassign_ioeventfd_idx",
)
DEVICES_KNOWN = documented(
    "devices-known",
    "without KVM_CAP_COALESCED_MMIO a range cannot be coalesced, nor without KVM_CAP_IOEVENTFD "
    "an ioeventfd be assigned: ENOTTY or ENOSYS",
    "api.rst 4.59, 4.116; kvm_vm_ioctl",
)

RING_ENTRIES = 169
"""How many entries the ring holds: a page, minus its head and the entry that stays free."""

_MOST_RANGES, _MOST_OF_THE_KERNEL = 1000, 8

_UNKNOWN = tuple(Allowed(Refused(number), DEVICES_KNOWN) for number in (errno.ENOTTY, errno.ENOSYS))
_LENGTHS = (0, 1, 2, 4, 8)
_PART_BYTES = 8
_WRITING_ONCE = ("store", "store-vector")
"""Instructions whose exits, joined, are one write: others have one for each element."""

_END = 1 << 64

Range = tuple[int, int]
"""(gpa, size)."""


@dataclass(slots=True)
class Eventfd:
    """An ioeventfd."""

    name: str
    gpa: int
    length: int
    match: int | None

    def collides(self, other: "Eventfd") -> bool:
        """Whether one write could signal both."""
        if self.gpa != other.gpa:
            return False
        if not (self.length and other.length):
            return True
        return self.length == other.length and (
            None in (self.match, other.match) or self.match == other.match
        )

    def takes(self, gpa: int, data: bytes) -> bool:
        """Whether a write signals it."""
        if gpa != self.gpa or self.length not in (0, len(data)):
            return False
        return self.match is None or int.from_bytes(data, "little") == self.match


@dataclass(slots=True)
class Devices:
    """The devices of one VM, its ring, and the counts of eventfds."""

    features: Features
    has_irqchip: Callable[[], bool] = lambda: False
    ranges: list[Range] = field(default_factory=list)
    events: list[Eventfd] = field(default_factory=list)
    ports: list[Range] = field(default_factory=list)
    kept: list[Mmio] = field(default_factory=list)
    of_ports: list[int] = field(default_factory=list)
    """Which of those that are kept are writes to a port."""
    counts: dict[str, int] = field(default_factory=dict)
    is_out: bool = False
    """Whether userspace has said that the ring goes on beyond its end."""

    @property
    def room(self) -> int:
        """How many more writes the ring holds."""
        return 0 if self.is_out else RING_ENTRIES - len(self.kept)

    @property
    def exist(self) -> bool:
        """Whether there are any."""
        return bool(self.ranges or self.events or self.ports)

    def allowed(self, op: DeviceOperation) -> tuple[Allowed, ...]:
        """Return the outcomes that the rules allow."""
        match op:
            case CoalesceMmio():
                return self._coalesce(op) if self.features.coalesced_mmio else _UNKNOWN
            case IoEventFd():
                return (self._ioeventfd(op),) if self.features.ioeventfd else _UNKNOWN
            case CollectMmio():
                return (self._collect(),)
            case SetCoalescedRing():
                return (Allowed(Done(), COALESCED_ENDS, partial(self._set_ring, op.index)),)

    def _coalesce(self, op: CoalesceMmio) -> tuple[Allowed, ...]:
        """Return the outcome of registering or unregistering a range."""
        if op.pio:  # Kernels before the capability ignore it.
            return (self._coalesce_ports(op),) if self.features.coalesced_pio else ()

        room = _MOST_RANGES - len(self.ranges)
        refused = Allowed(Refused(errno.ENOSPC), DEVICES_MOST)
        if op.on and room <= 0:
            return (refused,)

        def apply() -> None:
            if op.on:
                self.ranges.append((op.gpa, op.size))
            else:
                self.ranges = [each for each in self.ranges if not _holds(each, op.gpa, op.size)]

        done = Allowed(Done(), COALESCED, apply)
        # An in-kernel interrupt controller is a device, too.
        is_close = op.on and room <= _MOST_OF_THE_KERNEL and self.has_irqchip()
        return (done, refused) if is_close else (done,)

    def _coalesce_ports(self, op: CoalesceMmio) -> Allowed:
        if op.pio != 1:
            return Allowed(Refused(errno.EINVAL), KIND)

        def apply() -> None:
            if op.on:
                self.ports.append((op.gpa, op.size))
            else:
                self.ports = [each for each in self.ports if not _holds(each, op.gpa, op.size)]

        return Allowed(Done(), PORTS_APART, apply)

    def _ioeventfd(self, op: IoEventFd) -> Allowed:
        """Return the outcome of adding or removing an ioeventfd."""
        event = Eventfd(op.name, op.gpa, op.length, op.match)
        if not op.on:
            if event not in self.events:
                return Allowed(Refused(errno.ENOENT), EVENT_ABSENT)
            return Allowed(Done(), EVENT, lambda: self.events.remove(event))
        bad = op.length not in _LENGTHS or op.gpa + op.length >= _END
        if bad or (not op.length and op.match is not None):
            return Allowed(Refused(errno.EINVAL), EVENT_ARGUMENT)
        if any(event.collides(other) for other in self.events):
            return Allowed(Refused(errno.EEXIST), EVENT_TAKEN)
        return Allowed(Done(), EVENT, lambda: self.events.append(event))

    def _collect(self) -> Allowed:
        """Return what was kept and signalled since the last ``collect``."""
        events = tuple(sorted((name, count) for name, count in self.counts.items() if count))

        def apply() -> None:
            self.kept.clear()
            self.of_ports.clear()
            self.counts.clear()

        rule = EVENT if events and not self.kept else COALESCED
        rule = COALESCED_PORTS if self.of_ports else rule
        return Allowed(MmioKept(tuple(self.kept), events, tuple(self.of_ports)), rule, apply)

    def _set_ring(self, index: int) -> None:
        self.kept.clear()
        self.of_ports.clear()
        self.is_out = index > RING_ENTRIES

    def keep_of_port(self, port: int, data: bytes) -> None:
        """Note that a write to a port is kept."""
        self.of_ports.append(len(self.kept))
        self.kept.append(Mmio(port, True, data))

    def may_take(self, exits: tuple[Mmio, ...]) -> bool:
        """Whether a write among the exits overlaps a device."""
        writes = [(each.gpa, len(each.data)) for each in exits if each.write]
        return any(_meet(place, write) for write in writes for place in self._places)

    def may_hide(self, other: Range, reads: bool) -> bool:
        """Whether these may take what is written to another device, or hide it from reads."""
        met = [each for each in self._places if _meet(each, other)]
        return bool(met) and not (reads and set(met) == {other})

    def written(self, exit_: Mmio, kept: int = 0) -> "Taken | None":
        """Return which device takes a write within a page; None if that is unclear.

        ``kept``: how many writes it may have taken before, which are not in the ring yet.
        KVM bisects the bus, which may miss one of several devices that overlap.
        """
        near = [each for each in self._places if _meet(each, (exit_.gpa, len(exit_.data)))]
        group = [each for each in self._places if any(_meet(each, other) for other in near)]
        events = [event for event in self.events if (event.gpa, event.length) in group]
        if len(set(group)) > 1 or 0 < len(events) < len(group):
            return None
        event = next((each for each in events if each.takes(exit_.gpa, exit_.data)), None)
        holds = any(_holds(each, exit_.gpa, len(exit_.data)) for each in self.ranges)
        return Taken(event, holds and kept < self.room)

    def signal(self, event: Eventfd) -> None:
        """Note that an eventfd was signalled."""
        self.counts[event.name] = self.counts.get(event.name, 0) + 1

    @property
    def _places(self) -> list[Range]:
        return [*self.ranges, *((each.gpa, each.length) for each in self.events)]


@dataclass(slots=True)
class Taken:
    """What takes a write: an eventfd, the ring, or nothing."""

    event: Eventfd | None
    is_kept: bool


def _holds(each: Range, gpa: int, length: int) -> bool:
    return each[0] <= gpa and gpa + length <= each[0] + each[1] and gpa + length < _END


def _meet(one: Range, other: Range) -> bool:
    """Whether two ranges overlap; one without a length counts as one byte."""
    return one[0] < other[0] + max(other[1], 1) and other[0] < one[0] + max(one[1], 1)


def absorbed(
    devices: Devices, usual: tuple[Allowed, ...], instruction: str = ""
) -> tuple[Allowed, ...]:
    """Return the outcomes of an access after devices took their part; none if that is unclear."""
    found = [_absorbed(devices, each, instruction) for each in usual]
    return tuple(each for each in found if each is not None) if None not in found else ()


def sent(devices: Devices, usual: tuple[Allowed, ...], op: Instruction) -> tuple[Allowed, ...]:
    """Return the outcomes of an instruction whose port is perhaps coalesced; none if unclear."""
    near = {each for each in devices.ports if _meet(each, (DATA_PORT, op.width))}
    if not near or not any(isinstance(each.outcome, Ran) and each.outcome.sent for each in usual):
        return usual
    if len(near) > 1:
        return ()  # KVM bisects the bus, which may miss one of several that overlap.
    if not _holds(near.pop(), DATA_PORT, op.width):
        return usual
    return tuple(_sent(devices, each, op.width) for each in usual)


def _sent(devices: Devices, allowed: Allowed, width: int) -> Allowed:
    """Return an outcome in which what is written to the port is kept while there is room."""
    outcome = allowed.outcome
    if not isinstance(outcome, Ran):
        return allowed
    kept = [outcome.sent[at : at + width] for at in range(0, len(outcome.sent), width)]
    kept = kept[: devices.room]

    def adopt() -> None:
        allowed.adopt()
        for each in kept:
            devices.keep_of_port(DATA_PORT, each)

    left = outcome.sent[len(kept) * width :]
    return Allowed(msgspec.structs.replace(outcome, sent=left), COALESCED_PORTS, adopt)


def _absorbed(devices: Devices, allowed: Allowed, instruction: str) -> Allowed | None:
    outcome = allowed.outcome
    exits: tuple[Mmio, ...] = getattr(outcome, "mmio", ())
    if not exits or not devices.may_take(exits):
        return allowed
    is_one_write = isinstance(outcome, Touched) or instruction in _WRITING_ONCE
    if not isinstance(outcome, Touched | Ran) or not is_one_write:
        return None
    if len(exits) != 1 or _crosses_a_page(exits[0]):
        return None
    taken: list[tuple[Taken, Mmio]] = []
    left: tuple[Mmio, ...] = exits
    for part in _parts(exits[0]):
        by = devices.written(part, len(taken))
        if by is None:
            return None
        if by.event is None and not by.is_kept:
            break
        taken.append((by, part))
        left = _after(left[0], part)
    if not taken:
        return allowed

    def adopt() -> None:
        allowed.adopt()
        for by, part in taken:
            if by.event is not None:
                devices.signal(by.event)
            else:
                devices.kept.append(part)

    rule = EVENT if taken[0][0].event else COALESCED
    return Allowed(msgspec.structs.replace(outcome, mmio=left), rule, adopt)


def _parts(exit_: Mmio) -> Iterator[Mmio]:
    """Yield the parts in which KVM offers a write to the bus, until one is not taken."""
    for at in range(0, len(exit_.data), _PART_BYTES):
        yield Mmio(exit_.gpa + at, exit_.write, exit_.data[at : at + _PART_BYTES])


def _after(exit_: Mmio, part: Mmio) -> tuple[Mmio, ...]:
    """Return what of an exit comes after its first part."""
    rest = exit_.data[len(part.data) :]
    return (Mmio(exit_.gpa + len(part.data), exit_.write, rest),) if rest else ()


def _crosses_a_page(exit_: Mmio) -> bool:
    last = exit_.gpa + len(exit_.data) - 1
    return exit_.gpa // PAGE_SIZE_BYTES != last // PAGE_SIZE_BYTES
