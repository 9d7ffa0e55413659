"""Judges what the kernel of a trace answered, without /dev/kvm.

A trace rarely says what its kernel can do. What it leaves open is assumed in the kernel's favour,
one feature at a time, and only if that explains the answers; the verdict names the assumptions.
"""

import errno
from collections.abc import Iterator, Sequence
from itertools import permutations

import msgspec

from kvm_abi.uapi import Cap, MemoryAttribute
from vmm.replay.build import NO_MEMORY, Replay
from vmm.replay.memfds import is_known, is_private
from vmm.replay.order import MOST_AT_ONCE, Order, is_possible
from vmm.replay.steps import Step
from vmm.replay.trace import OTHER_FILE, Line, Region, Unread
from vmm.replay.vm_calls import SHOWN
from vmm.scenario.features import Features
from vmm.scenario.history import (
    AnyOutcome,
    DirtyPages,
    Done,
    Event,
    Header,
    History,
    PreFaulted,
    Refused,
)
from vmm.scenario.operations import (
    GUEST_MEMFD,
    PAGE_SIZE_BYTES,
    AnyOperation,
    ClearDirtyLog,
    CreateGuestMemfd,
    CreateVcpu,
    EnableCap,
    GetDirtyLog,
    Mapping,
    PreFaultMemory,
    ResetDirtyRings,
    Scenario,
    SetIdentityMapAddr,
    SetMemoryAttributes,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
)
from vmm.verdict.judge import Difference, Expected, Judgement, Status, Verdict

_MOST_IDS, _MOST_SPACES = 1 << 16, 16
"""More than any kernel has, since a trace may say anything."""

_OF_THE_SLOT = ("guest-memfd-immutable", "guest-memfd-offset")
"""Rules for slots with a guest_memfd that do not depend on the file."""

_OF_LOGS = GetDirtyLog | ClearDirtyLog | EnableCap | ResetDirtyRings
"""Operations whose answers depend on the capabilities that were enabled."""

_OWN_PAGES = (0xFEE0_0000, 0xFFFB_C000)
"""Pages of possible internal slots: the APIC page and the identity map."""


class Judged(msgspec.Struct, frozen=True):
    """The verdict on a trace; ``line`` is where it differs or ends, if it does.

    ``scenario`` holds the calls that were judged, with the addresses of the trace. ``assumed``
    says what was assumed about the trace's kernel. ``history`` is what was judged up to a
    difference; it has no events without one.
    """

    scenario: Scenario
    verdict: Verdict
    history: History
    line: Line | None = None
    assumed: tuple[str, ...] = ()


class _Assumption(msgspec.Struct, frozen=True):
    """A feature that a kernel may have or lack, unless the trace has the answer for ``told_by``.

    ``is_rare`` says that hardly any kernel is like that: a trace that needs it does not pass.
    """

    text: str
    changes: dict[str, int]
    told_by: Cap | None = None
    is_rare: bool = False


_UNORDERED = "what each thread did stands together: the order of calls is not known (`strace -f`)"
_NO_READONLY = "no KVM_CAP_READONLY_MEM (before Linux 3.7)"
_RINGS = {
    "dirty_ring_bytes": PAGE_SIZE_BYTES,
    "dirty_ring_max_bytes": 1 << 20,
    "dirty_ring_acq_rel": True,
}
_ASSUMPTIONS = (
    _Assumption("KVM_CAP_MULTI_ADDRESS_SPACE of 2", {"address_spaces": 2}, Cap.MULTI_ADDRESS_SPACE),
    _Assumption(_NO_READONLY, {"readonly_mem": False}, Cap.READONLY_MEM, is_rare=True),
    _Assumption("KVM_CAP_USER_MEMORY2", {"user_memory2": True}, Cap.USER_MEMORY2),
    _Assumption("KVM_CAP_GUEST_MEMFD", {"guest_memfd": True}, Cap.GUEST_MEMFD),
    _Assumption("KVM_CAP_NR_MEMSLOTS of 509", {"nr_memslots": 509}, Cap.NR_MEMSLOTS),
    _Assumption(
        "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
        {"manual_dirty_log": True, "dirty_log_initially_set": True},
        Cap.MANUAL_DIRTY_LOG_PROTECT2,
    ),
    _Assumption("KVM_CAP_DIRTY_LOG_RING", _RINGS, Cap.DIRTY_LOG_RING),
    _Assumption("KVM_CAP_DIRTY_LOG_RING_ACQ_REL", _RINGS, Cap.DIRTY_LOG_RING_ACQ_REL),
    _Assumption("dirty rings of at least 16 KiB (PML)", {"dirty_ring_bytes": 1 << 14}),
    _Assumption("KVM_CAP_PRE_FAULT_MEMORY", {"pre_fault": True}, Cap.PRE_FAULT_MEMORY),
    _Assumption("an internal slot for the TSS", {"internal_tss": True}),
    _Assumption("gpas of 52 bits", {"last_gfn": (1 << 40) - 1}),
    _Assumption("gpas of 46 bits", {"last_gfn": (1 << 34) - 1}),
    _Assumption("gpas of 39 bits", {"last_gfn": (1 << 27) - 1}),
    _Assumption("gpas of 36 bits", {"last_gfn": (1 << 24) - 1}),
    _Assumption("no last gfn (before Linux 5.18)", {"last_gfn": (1 << 52) - 1}),
)


def judged(replay: Replay) -> Judged:
    """Return the verdict on what the kernel of a trace answered."""
    return _Judging(replay).judged()


class _Judging:
    """Judges the answers in order; if one differs, it looks for an explanation."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._steps = [step for step in replay.steps if step.outcome is not None]
        self._end = _unread_change(replay)
        if self._end is not None:
            limit = self._end.line.number
            self._steps = [step for step in self._steps if step.line.number < limit]
        self._short = [step for step in self._steps if _is_short_of_memory(step)]
        self._steps = [step for step in self._steps if not _is_short_of_memory(step)]
        asked = tuple(step.asked for step in self._steps if step.asked is not None)
        self._scenario = Scenario(
            name=replay.scenario.name,
            operations=asked,
            mappings=(
                *(each for each in replay.scenario.mappings if each.name == OTHER_FILE),
                Mapping(SHOWN, 1, "guest_memfd"),
            ),
            vm_type=1 if is_private(replay.vm) else 0,
        )
        self._features = _told(replay.vm.capabilities, self._steps)
        self._assumptions = (*_ASSUMPTIONS, *_accepted(self._steps))
        self._order = Order(self._steps)
        self._assumed: list[str] = []
        self._unlikely: Line | None = None

    def judged(self) -> Judged:
        """Return the verdict."""
        verdict, index = self._run(self._steps, self._features)
        while verdict.difference is not None and (self._reordered(index) or self._explained(index)):
            verdict, index = self._run(self._steps, self._features)
        if verdict.difference is None:
            return self._complete(verdict)
        step = self._steps[index]
        doubt = self._doubt(step, index, verdict.difference)
        if doubt:
            verdict = msgspec.structs.replace(
                verdict, status=Status.INCONCLUSIVE, reason=doubt, difference=None
            )
        return self._found(verdict, step.line, self._steps[: index + 1])

    def _found(self, verdict: Verdict, line: Line | None, until: Sequence[Step] = ()) -> Judged:
        events = tuple(
            Event(index, step.asked, step.outcome)
            for index, step in enumerate(until)
            if step.asked is not None and step.outcome is not None
        )
        history = History(Header(self._scenario, self._features), events, None)
        return Judged(self._scenario, verdict, history, line, tuple(self._assumed))

    def _complete(self, verdict: Verdict) -> Judged:
        """Return the verdict if nothing differs: not a pass if something was not judged."""
        reason, line = "", None
        if self._end is not None:
            line = self._end.line
            reason = f"{self._end.name} is not read ({self._end.why}), and may change slots"
        elif self._replay.unread:
            line = self._replay.unread[0].line
            reason = f"{len(self._replay.unread)} refused calls are not read"
        elif self._unlikely is not None:
            line = self._unlikely
            reason = "the answer is right on a kernel of the assumed kind alone"
        elif (guessed := _guessed(self._replay)) is not None:
            line = guessed
            reason = (
                "EIO is right if a forked child called: who made the thread is not in the trace "
                "(strace -f -e trace=ioctl,clone,clone3,fork,vfork)"
            )
        elif self._replay.vm.began_before:
            line = self._steps[0].line if self._steps else None
            reason = "the VM is older than the trace: which slots it had is not known"
        elif self._replay.vm.unordered:
            reason = _UNORDERED
        elif self._short:
            line = self._short[0].line
            reason = "the host of the trace was short of memory, or the call was interrupted"
        elif self._replay.vm.left_out:
            left, first = self._replay.vm.left_out, self._replay.vm.left_from
            reason = (
                f"the first {len(self._replay.vm.calls):,} calls agree with the model; {left:,} "
                f"more, from line {first} on, are not judged"
            )
        if reason and verdict.status is Status.PASSED:
            verdict = msgspec.structs.replace(verdict, status=Status.INCONCLUSIVE, reason=reason)
        return self._found(verdict, line)

    def _run(self, steps: Sequence[Step], features: Features) -> tuple[Verdict, int]:
        """Judge steps in order; return the verdict, and how many agreed with the model."""
        judgement = Judgement(Header(self._scenario, features))
        for index, step in enumerate(steps):
            if isinstance(step.asked, PreFaultMemory) and not judgement.allowed(step.asked):
                continue  # It depends on memory that no trace shows.
            if not judgement.admits(_event(index, step, judgement)):
                return judgement.verdict(""), index
        return judgement.verdict(""), len(steps)

    def _explained(self, index: int) -> bool:
        """Assume a feature that explains the answer at an index; return whether there is one."""
        until = self._steps[: index + 1]
        for assumption in self._assumptions:
            told = assumption.told_by
            if assumption.text in self._assumed or (
                told is not None and int(told) in self._replay.vm.capabilities
            ):
                continue
            features = msgspec.structs.replace(self._features, **assumption.changes)
            if self._run(until, features)[1] > index:
                self._features = features
                self._assumed.append(assumption.text)
                if assumption.is_rare:
                    self._unlikely = self._unlikely or self._steps[index].line
                return True
        return False

    def _reordered(self, index: int) -> bool:
        """Reorder the calls that may have overtaken one; return whether another order fits."""
        group = self._order.rivals(self._steps, index)
        if not 2 <= len(group) <= MOST_AT_ONCE:
            return False
        first, last = group[0], group[-1] + 1
        # What lies between has nothing to do with them.
        others = [self._steps[at] for at in range(first, last) if at not in group]
        for order in permutations([self._steps[at] for at in group]):
            if is_possible(order):
                steps = [*self._steps[:first], *others, *order]
                if self._run(steps, self._features)[1] == last:
                    self._steps[first:last] = [*others, *order]
                    return True
        return False

    def _doubt(self, step: Step, index: int, difference: Difference) -> str:
        """Return why an answer that differs may nevertheless be right."""
        if self._replay.vm.began_before:
            return "the VM is older than the trace: which slots it had is not known"
        if self._replay.vm.unordered:
            return _UNORDERED
        if 0 < self._replay.vm.cut_line <= step.line.number:
            return f"line {self._replay.vm.cut_line} {self._replay.vm.cut_why}"
        if self._replay.vm.is_guessed:
            return "which VM some calls are on is not in the trace"
        if len(self._order.rivals(self._steps, index)) > 1:
            return "calls that were under way at the same time: their order is not known"
        op = step.asked
        if isinstance(op, _OF_LOGS) and self._replay.vm.enables_unseen:
            return "which capabilities were enabled is not in the trace: `vmm record` reads it"
        if step.outcome == Refused(errno.EINVAL) and _is_early(op) and not self._has_vcpus:
            return "whether there is a vCPU is not in the trace"
        if isinstance(op, PreFaultMemory) and op.size and _is_of_the_kernel(op.gpa, op.size):
            return "the kernel may have a slot of its own there"
        if isinstance(op, SetUserMemoryRegion):
            begin, end = op.guest_phys_addr, op.guest_phys_addr + op.memory_size
            if step.outcome == Refused(errno.EEXIST) and _is_of_the_kernel(begin, end - begin):
                return "the kernel may have a slot of its own there"
        if (
            isinstance(op, SetUserMemoryRegion2)
            and op.flags & GUEST_MEMFD
            and not all(map(_is_of_the_slot, difference.expected))
        ):
            return self._doubt_of_memfd(str(op.guest_memfd), step)
        return ""

    def _doubt_of_memfd(self, name: str, step: Step) -> str:
        """Return why the descriptor of a slot may be of another file than the trace says."""
        if not is_known(name):
            return "what became of the guest_memfd is not in the trace"
        is_of_the_file = step.outcome in (Refused(errno.EBADF), Refused(errno.EINVAL))
        if is_of_the_file and not self._replay.vm.closes_seen:
            return "which descriptors were closed is not in the trace"
        return ""

    @property
    def _has_vcpus(self) -> bool:
        """Whether the trace shows that a vCPU is created, at some time."""
        return any(isinstance(step.asked, CreateVcpu) for step in self._replay.steps)


_HWPOISON = 133
_NO_HOST_MEMORY = Refused(errno.EFAULT)
_MAPPED_OR_NOT = (Done(), _NO_HOST_MEMORY, Refused(_HWPOISON))


def _event(index: int, step: Step, judgement: Judgement) -> Event:
    assert step.asked is not None
    assert step.outcome is not None
    outcome: AnyOutcome = step.outcome
    if isinstance(step.asked, GetDirtyLog) and outcome == Done():
        # The bitmap is not in the trace: any that the model allows.
        allowed = [each.outcome for each in judgement.allowed(step.asked)]
        outcome = next((each for each in allowed if isinstance(each, DirtyPages)), outcome)
    elif isinstance(step.asked, PreFaultMemory) and outcome in _MAPPED_OR_NOT:
        # How far it came is not in the trace, nor whether there is memory behind a slot.
        allowed = [each.outcome for each in judgement.allowed(step.asked)]
        is_slot = (
            each for each in allowed if each == _NO_HOST_MEMORY or isinstance(each, PreFaulted)
        )
        outcome = next(is_slot, outcome)
    return Event(index, step.asked, outcome)


def _is_of_the_kernel(gpa: int, size: int) -> bool:
    """Whether the kernel may have a slot of its own in a range."""
    return any(gpa < page + PAGE_SIZE_BYTES and page < gpa + size for page in _OWN_PAGES)


def _has_done(steps: Sequence[Step], kind: type[AnyOperation]) -> bool:
    """Whether a kernel has carried out a call of some kind, so that it can."""
    return any(isinstance(each.asked, kind) for each in steps if _is_done(each))


def _is_done(step: Step) -> bool:
    return step.outcome == Done()


def _is_early(op: AnyOperation | None) -> bool:
    """Whether a call is refused once there is a vCPU."""
    is_ring = isinstance(op, EnableCap) and op.cap.startswith("DIRTY_LOG_RING")
    return is_ring or isinstance(op, SetIdentityMapAddr)


def _accepted(steps: Sequence[Step]) -> Iterator[_Assumption]:
    """Yield assumptions that the kernel knows the bits that it accepted, and no others."""
    quirks, flags, attributes = 1, 0, int(MemoryAttribute.PRIVATE)
    for op in (step.asked for step in steps if _is_done(step)):
        match op:
            case EnableCap() if op.cap == "DISABLE_QUIRKS2":
                quirks |= op.argument
            case CreateGuestMemfd():
                flags |= op.flags
            case SetMemoryAttributes():
                attributes |= op.attributes
    for cap, field, bits in (
        (Cap.DISABLE_QUIRKS2, "quirks", quirks),
        (Cap.GUEST_MEMFD_FLAGS, "guest_memfd_flags", flags),
        (Cap.MEMORY_ATTRIBUTES, "memory_attributes", attributes),
    ):
        yield _Assumption(f"KVM_CAP_{cap.name} of {bits:#x}", {field: bits}, cap)


def _is_of_the_slot(expected: Expected) -> bool:
    """Whether the expected refusal is due to slot and gpa, whatever the guest_memfd is."""
    return expected.rule in _OF_THE_SLOT or expected.outcome == "EEXIST"


def _is_short_of_memory(step: Step) -> bool:
    return isinstance(step.outcome, Refused) and step.outcome.errno in NO_MEMORY


def _unread_change(replay: Replay) -> Unread | None:
    return next((call for call in replay.unread if call.may_change), None)


def _guessed(replay: Replay) -> Line | None:
    """Return the line of the first call that is taken for a forked child's by its answer alone."""
    calls = replay.vm.calls
    return next((each.line for each in calls if isinstance(each, Region) and each.is_guessed), None)


def _told(capabilities: dict[int, int], steps: Sequence[Step]) -> Features:
    """Return the features that a trace tells, and defaults for the rest."""
    usual = Features()
    has_second = _has_done(steps, SetUserMemoryRegion2)
    has_memfds = _has_done(steps, CreateGuestMemfd)

    def answer(cap: Cap, otherwise: int) -> int:
        return capabilities.get(int(cap), otherwise)

    rings = answer(Cap.DIRTY_LOG_RING, 0) or answer(Cap.DIRTY_LOG_RING_ACQ_REL, 0)
    return msgspec.structs.replace(
        usual,
        nr_memslots=_within(answer(Cap.NR_MEMSLOTS, usual.nr_memslots) or 32, _MOST_IDS),
        address_spaces=_within(answer(Cap.MULTI_ADDRESS_SPACE, 1), _MOST_SPACES),
        readonly_mem=bool(answer(Cap.READONLY_MEM, 1)),
        user_memory2=bool(answer(Cap.USER_MEMORY2, int(has_second))),
        guest_memfd=bool(answer(Cap.GUEST_MEMFD, int(has_memfds))),
        guest_memfd_flags=answer(Cap.GUEST_MEMFD_FLAGS, 0),
        memory_attributes=answer(Cap.MEMORY_ATTRIBUTES, 0),
        pre_fault=bool(answer(Cap.PRE_FAULT_MEMORY, int(_has_done(steps, PreFaultMemory)))),
        quirks=answer(Cap.DISABLE_QUIRKS2, 0),
        manual_dirty_log=bool(answer(Cap.MANUAL_DIRTY_LOG_PROTECT2, 0)),
        dirty_log_initially_set=bool(answer(Cap.MANUAL_DIRTY_LOG_PROTECT2, 0) & 2),
        dirty_ring_bytes=PAGE_SIZE_BYTES if rings else 0,
        dirty_ring_max_bytes=rings or usual.dirty_ring_max_bytes,
        dirty_ring_acq_rel=bool(answer(Cap.DIRTY_LOG_RING_ACQ_REL, 0)),
    )


def _within(number: int, most: int) -> int:
    return max(1, min(number, most))
