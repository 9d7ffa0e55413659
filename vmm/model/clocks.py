"""What KVM itself writes to guest memory: wall clock, system time and steal time.

KVM writes them to a gpa, as it is mapped in as_id 0 at that moment, not as it was mapped before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import msgspec

from vmm.model.allowed import Allowed
from vmm.model.array import MemslotArray
from vmm.model.backing import Backing
from vmm.model.contents import Contents
from vmm.model.dirty import Tracking
from vmm.model.races.clocks import RaceClock
from vmm.model.regions import Memslot
from vmm.model.rule import documented, source
from vmm.scenario.clocks import LAYOUTS, STEAL_TIME_BYTES, ClockWrite
from vmm.scenario.history import AnyOutcome, Done, MsrsSet, Refused, Touched
from vmm.scenario.instructions import accessed
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    READONLY,
    Clock,
    ClockOperation,
    Execute,
    Instruction,
    KvmclockCtrl,
    SetClockMsr,
    Sweep,
    Touch,
)

CLOCK_WRITES = documented(
    "clock-writes",
    "wall clock, system time and steal time are written where the gpa is mapped at that moment, "
    "with an even version, and nowhere else",
    "x86/msr.rst; kvm_setup_guest_pvclock, record_steal_time, kvm_write_wall_clock; c3c28d24d910",
)
CLOCK_MSRS = documented(
    "clock-msrs",
    "KVM_SET_MSRS takes the MSRs of the clocks",
    "api.rst 4.19; x86/msr.rst",
)
SYSTEM_TIME_INSIDE = documented(
    "system-time-inside",
    "a system time that reaches from a page into a gpa without a slot is written nowhere, and "
    "KVM_KVMCLOCK_CTRL says that there is none",
    "x86/msr.rst MSR_KVM_SYSTEM_TIME_NEW: it must be in guest RAM; kvm_gpc_is_valid_len",
)
STEAL_TIME_ALIGNED = documented(
    "steal-time-aligned",
    "the steal time is at a multiple of 64 bytes, else KVM_SET_MSRS does not set the MSR",
    "x86/msr.rst MSR_KVM_STEAL_TIME",
)
STEAL_TIME_MAPPED = source(
    "steal-time-mapped",
    "if the gpa of the steal time has no slot, KVM_SET_MSRS may set the MSR or not",
    "kvm_set_msr_common, before and since b043138246a4",
)
KVMCLOCK_CTRL = documented(
    "kvmclock-ctrl",
    "KVM_KVMCLOCK_CTRL succeeds if the vCPU has a system time, else EINVAL",
    "api.rst 4.69; kvm_set_guest_paused",
)
_EINVAL = 22


@dataclass(slots=True)
class _Clock:
    """A clock of a vCPU.

    ``is_sure`` says that KVM certainly accepted its gpa, ``asked`` that an update is pending, and
    ``stopped`` that the update must report a pause.
    """

    gpa: int
    is_sure: bool
    asked: bool = True
    stopped: bool = False


class Target(NamedTuple):
    """Where KVM writes a structure, or, if not sure, may write it: in a slot, and in a mapping."""

    slot: Memslot
    page: int
    mapping: str
    offset: int
    size: int
    is_sure: bool
    can_be_written: bool


class Clocks:
    """The clocks of one VM, by vCPU."""

    def __init__(
        self,
        spaces: tuple[MemslotArray[Memslot], ...],
        backing: Backing,
        contents: Contents,
        tracking: Tracking,
    ) -> None:
        self.spaces = spaces
        self._slots = spaces[0]
        self._backing = backing
        self._contents = contents
        self._tracking = tracking
        self._clocks: dict[tuple[int, Clock], _Clock] = {}
        self.exist = False
        """Whether KVM may write anything when a vCPU runs."""

    def allowed(self, op: ClockOperation) -> tuple[Allowed, ...]:
        """Return the outcomes that the rules allow."""
        return self._msr(op) if isinstance(op, SetClockMsr) else self._ctrl(op)

    def _msr(self, op: SetClockMsr) -> tuple[Allowed, ...]:
        """Return the allowed outcomes of KVM_SET_MSRS."""
        adopt = partial(self._set, op)
        if op.on and op.clock == "system_time" and (across := _next_page(op)) is not None:
            # Some kernels write it where both pages have memory, and some keep the one before.
            if self._slots.find(across) is not None or (op.vcpu, op.clock) in self._clocks:
                return ()
            return (Allowed(MsrsSet(1), SYSTEM_TIME_INSIDE),)
        if op.clock != "steal_time" or not op.on:
            return (Allowed(MsrsSet(1), CLOCK_MSRS, adopt),)
        if op.gpa % STEAL_TIME_BYTES:
            return (Allowed(MsrsSet(0), STEAL_TIME_ALIGNED),)
        done = Allowed(MsrsSet(1), CLOCK_MSRS, adopt)
        if self._target(op.clock, op.gpa) is not None:
            return (done,)
        return (done, Allowed(MsrsSet(0), STEAL_TIME_MAPPED))

    def _ctrl(self, op: KvmclockCtrl) -> tuple[Allowed, ...]:
        """Return the allowed outcomes of KVM_KVMCLOCK_CTRL."""
        clock = self._clocks.get((op.vcpu, "system_time"))
        refused = Allowed(Refused(_EINVAL), KVMCLOCK_CTRL)
        if clock is None:
            return (refused,)
        done = Allowed(Done(), KVMCLOCK_CTRL, partial(self._pause, clock))
        return (done,) if clock.is_sure else (done, refused)

    def ran(self, vcpu: int) -> None:
        """Note that a vCPU ran: KVM updates its clocks before it enters the guest."""
        for kind, clock in self._of(vcpu):
            is_due = clock.is_sure and (clock.asked or kind == "steal_time")
            self._write(vcpu, kind, clock, surely=is_due)
            clock.asked = clock.stopped = False

    def may_write(self, vcpu: int | None = None) -> None:
        """Note that a vCPU (None: any) was loaded: KVM may write later that it was preempted."""
        for number, _ in tuple(self._clocks):
            if vcpu is None or number == vcpu:
                for kind, clock in self._of(number):
                    self._write(number, kind, clock, surely=False)

    def in_race(self) -> tuple[RaceClock, ...]:
        """Return all clocks; after a race nobody knows whether their updates are pending."""
        for clock in self._clocks.values():
            clock.asked = clock.stopped = False
        return tuple(
            RaceClock(vcpu, kind, clock.gpa) for (vcpu, kind), clock in self._clocks.items()
        )

    def met(
        self, op: Touch | Sweep | Execute | Instruction, usual: tuple[Allowed, ...]
    ) -> tuple[Allowed, ...]:
        """Return the outcomes of an access, before which KVM writes the vCPU's clocks.

        What a guest reads there is unknown; no outcome is returned if more depends on it.
        """
        unknown = 0
        if not usual:
            return ()
        if isinstance(op, Touch):
            if op.access == "read" and self._is_veiled(op.gpa, op.width, op.as_id):
                unknown = sum(
                    0xFF << 8 * index
                    for index in range(op.width)
                    if self._is_veiled(op.gpa + index, 1, op.as_id)
                )
        elif any(self._is_veiled(gpa, length, op.as_id) for gpa, length in self._accessed(op)):
            return ()
        if unknown:
            usual = tuple(
                msgspec.structs.replace(each, outcome=_unknown(each.outcome, unknown))
                for each in usual
            )
        return tuple(each.followed_by(partial(self.ran, op.vcpu)) for each in usual)

    def _set(self, op: SetClockMsr) -> None:
        self.may_write(op.vcpu)
        key = op.vcpu, op.clock
        self._clocks.pop(key, None)
        self.exist = bool(self._clocks)
        if not op.on:
            return
        target = self._target(op.clock, op.gpa)
        clock = _Clock(op.gpa, is_sure=target is not None and target.is_sure)
        if op.clock == "wall_clock":  # KVM writes it now, and never again.
            if op.gpa and _room(op.gpa) < LAYOUTS[op.clock].size:
                self._write_across(op.vcpu, op.clock, op.gpa)
            elif op.gpa:
                self._write(op.vcpu, op.clock, clock, surely=clock.is_sure)
            return
        if op.clock == "steal_time":
            clock.is_sure = True  # KVM looks up the gpa at each write.
        else:  # Linux 6.18 writes a new version at once if it must no longer say "stable".
            self._write(op.vcpu, op.clock, clock, surely=False)
        self._clocks[key] = clock
        self.exist = True

    def _pause(self, clock: _Clock) -> None:
        clock.asked = clock.stopped = True

    def _of(self, vcpu: int) -> Iterator[tuple[Clock, _Clock]]:
        for (number, kind), clock in self._clocks.items():
            if number == vcpu:
                yield kind, clock

    def _write(self, vcpu: int, kind: Clock, clock: _Clock, *, surely: bool) -> None:
        target = self.place(clock.gpa, LAYOUTS[kind].size)
        if target is None:
            return
        surely = surely and target.is_sure
        if not target.can_be_written:  # It may be logged nevertheless (record_steal_time).
            self._tracking.kernel_wrote(vcpu, target.slot, target.page, surely=False)
            return
        write = ClockWrite(target.mapping, target.offset, kind, clock.stopped)
        self._contents.kernel_writes(write, surely=surely)
        self._tracking.kernel_wrote(vcpu, target.slot, target.page, surely=surely)

    def _write_across(self, vcpu: int, kind: Clock, gpa: int) -> None:
        """Write a structure that crosses into the next page, page by page (kvm_write_guest)."""
        first = _room(gpa)
        pieces = ((gpa, first), (gpa + first, LAYOUTS[kind].size - first))
        places = [(self.place(at, size), size) for at, size in pieces]
        (one, _), (other, _) = places
        if (
            one is not None
            and other is not None
            and all(each.is_sure and each.can_be_written for each in (one, other))
            and (other.mapping, other.offset) == (one.mapping, one.offset + first)
        ):
            self._contents.kernel_writes(ClockWrite(one.mapping, one.offset, kind), surely=True)
            for place in (one, other):
                self._tracking.kernel_wrote(vcpu, place.slot, place.page, surely=True)
            return
        for target, size in places:  # KVM may stop at the first page that it cannot write.
            if target is not None:
                self._tracking.kernel_wrote(vcpu, target.slot, target.page, surely=False)
            if target is not None and target.can_be_written:
                self._contents.blur(target.mapping, target.offset, size)

    def _target(self, kind: Clock, gpa: int) -> Target | None:
        """Return where KVM would write a structure at a gpa; None if it cannot."""
        target = self.place(gpa, min(LAYOUTS[kind].size, _room(gpa)))
        return target if target is not None and target.can_be_written else None

    def place(self, gpa: int, size: int) -> Target | None:
        """Return where bytes of a page are mapped; None without a writable slot."""
        gfn, at = divmod(gpa, PAGE_SIZE_BYTES)
        slot = self._slots.find(gfn)
        if slot is None or slot.flags & READONLY:
            return None
        page = gfn - slot.base_gfn
        place = self._backing.locate(slot.userspace_addr, page * PAGE_SIZE_BYTES + at)
        if place is None:
            return Target(slot, page, "", 0, size, is_sure=False, can_be_written=False)
        mapping, offset = place.mapping, place.offset
        can_be_written = self._backing.access(mapping, offset // PAGE_SIZE_BYTES) == "everything"
        (piece,) = self._backing.pieces(self._slots, gpa, size)
        # KVM reaches private memory, and slots with a guest_memfd, through the hva if at all.
        is_sure = slot.memfd is None and not piece.private
        return Target(slot, page, mapping, offset, size, is_sure, can_be_written)

    def _is_veiled(self, gpa: int, length: int, as_id: int) -> bool:
        """Whether some bytes are unknown when a vCPU reads them."""
        targets = [
            (target, LAYOUTS[kind].size)
            for (_, kind), clock in self._clocks.items()
            if (target := self._target(kind, clock.gpa)) is not None
        ]
        for piece in self._backing.pieces(self.spaces[as_id], gpa, length):
            if piece.kind != "memory":
                continue
            start, end = piece.offset, piece.offset + piece.length
            if self._contents.is_vague(piece.mapping, start, piece.length):
                return True
            for target, size in targets:
                is_there = target.mapping == piece.mapping or not self._contents.is_plain
                if is_there and target.offset < end and start < target.offset + size:
                    return True
        return False

    def _accessed(self, op: Sweep | Execute | Instruction) -> Iterator[tuple[int, int]]:
        """Yield (gpa, length) of what an access reads, also before it writes it."""
        match op:
            case Sweep():
                if op.access == "read":
                    yield op.gpa, op.count * op.width
            case Execute():
                yield op.gpa, PAGE_SIZE_BYTES
            case Instruction():
                if self.exist:  # Without clocks, `Simulation` has checked for unknown bytes.
                    yield from accessed(op)


def _unknown(outcome: AnyOutcome, unknown: int) -> AnyOutcome:
    if not isinstance(outcome, Touched):
        return outcome
    return Touched(outcome.value & ~unknown, outcome.mmio, outcome.unknown | unknown)


def _room(gpa: int) -> int:
    """Return how many bytes there are from a gpa to the end of its page."""
    return PAGE_SIZE_BYTES - gpa % PAGE_SIZE_BYTES


def _next_page(op: SetClockMsr) -> int | None:
    """Return the gfn into which a structure crosses; None if it is in one page."""
    is_across = _room(op.gpa) < LAYOUTS[op.clock].size
    return op.gpa // PAGE_SIZE_BYTES + 1 if is_across else None
