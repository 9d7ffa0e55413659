"""Judges what the kernel of a trace answered, without /dev/kvm.

A trace rarely says what its kernel can do. What it leaves open is assumed in the kernel's favour,
one feature at a time, and only if that explains the answers; the verdict names the assumptions.
"""

import errno
from collections.abc import Callable, Iterator

import msgspec

from kvm_abi.uapi import Cap, MemoryAttribute
from vmm.replay.answers import NO_MEMORY
from vmm.replay.build import Replay, scenario_name
from vmm.replay.memfds import is_known, is_private
from vmm.replay.order import Order
from vmm.replay.passes import KEPT, WINDOW, Pass, admits, event_of
from vmm.replay.steps import Step
from vmm.replay.trace import OTHER_FILE, Line
from vmm.replay.vm_calls import SHOWN
from vmm.scenario.features import Features
from vmm.scenario.history import Done, Header, History, Refused
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
_OLDER = "the VM is older than the trace: which slots it had is not known"
_SHORT = "the host of the trace was short of memory, or the call was interrupted"
_GUESSED = (
    "EIO is right if a forked child called: who made the thread is not in the trace "
    "(strace -f -e trace=ioctl,clone,clone3,fork,vfork)"
)
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
        self._vm = replay.vm
        self._summary = replay.summary
        self._seen = _Seen()
        for step in self._all():
            self._seen.note(step)
        few = self._seen.count <= KEPT
        self._scenario = Scenario(
            name=scenario_name(replay.trace, self._vm),
            operations=tuple(step.operation for step in self._steps()) if few else (),
            mappings=(Mapping(OTHER_FILE, 1, "memfd"), Mapping(SHOWN, 1, "guest_memfd")),
            vm_type=1 if is_private(self._vm) else 0,
        )
        self._features = _told(self._vm.capabilities, self._seen)
        self._assumptions = (*_ASSUMPTIONS, *_accepted(self._seen))
        self._order = Order(_Again(self._steps))
        self._assumed: list[str] = []
        self._supposed: list[tuple[Step, Features, int]] = []
        """The steps that an assumption explains, with what was assumed before."""

        self._unlikely: Line | None = None

    def judged(self) -> Judged:
        """Return the verdict."""
        found = self._pass(self._features)
        while (step := found.run()) is not None:
            explained = self._explained(found, step)
            if explained is None:
                return self._differing(*self._first_odd(found, step))
            found = explained
        return self._complete(found.judgement.verdict(""))

    def _first_odd(self, found: Pass, step: Step) -> tuple[Pass, Step]:
        """Return the step that differs and the pass that ends there.

        If a step was refused, and what explains that is why a later one differs, which the kernel
        has carried out, it is the one.
        """
        for odd, features, assumed in self._supposed:
            if not isinstance(odd.outcome, Refused):
                continue
            others = (each for each in self._steps() if each != odd)
            judgement = self._judgement(features)
            without = Pass(others, judgement, self._order)
            without.run(found.count)
            if without.count == found.count:
                self._features = features
                del self._assumed[assumed:]
                again = self._pass(features)
                return again, again.run() or odd
        return found, step

    def _all(self) -> Iterator[Step]:
        """Yield the steps until one that is not read, and may have changed slots."""
        end = self._summary.unread_change
        if end is None:
            return iter(self._replay.answers)
        limit = end.line.number
        return (step for step in self._replay.answers if step.line.number < limit)

    def _steps(self) -> Iterator[Step]:
        """Yield the steps that are judged."""
        return (step for step in self._all() if not _is_short_of_memory(step))

    def _pass(self, features: Features) -> Pass:
        return Pass(self._steps(), self._judgement(features), self._order)

    def _judgement(self, features: Features) -> Judgement:
        scenario = msgspec.structs.replace(self._scenario, operations=())
        return Judgement(Header(scenario, features))

    def _differing(self, found: Pass, step: Step) -> Judged:
        """Return the verdict on the first step that differs."""
        verdict = found.judgement.verdict("")
        assert verdict.difference is not None or verdict.status is Status.INCONCLUSIVE
        recent = found.recent()
        events = tuple(event_of(index, each) for index, each in enumerate(recent))
        scenario, last = self._scenario, len(events) - 1
        if not scenario.operations:
            operations = tuple(each.operation for each in recent)
            scenario = msgspec.structs.replace(scenario, operations=operations)
        history = History(Header(scenario, self._features), events, None)
        doubt = "" if verdict.difference is None else self._doubt(step, verdict.difference)
        if not doubt and len(recent) > 1 and _is_repeated(recent[-2], step):
            doubt = f"line {step.line.number} is the one before once more: it may stand twice"
        if doubt:
            verdict = msgspec.structs.replace(
                verdict, status=Status.INCONCLUSIVE, reason=doubt, difference=None
            )
        elif verdict.difference is not None:
            at = msgspec.structs.replace(verdict.difference, event=last, origin=last)
            verdict = msgspec.structs.replace(verdict, difference=at)
        return Judged(scenario, verdict, history, step.line, tuple(self._assumed))

    def _complete(self, verdict: Verdict) -> Judged:
        """Return the verdict if nothing differs: not a pass if something was not judged."""
        reason, line = self._weakness()
        if reason and verdict.status is Status.PASSED:
            verdict = msgspec.structs.replace(verdict, status=Status.INCONCLUSIVE, reason=reason)
        history = History(Header(self._scenario, self._features), (), None)
        return Judged(self._scenario, verdict, history, line, tuple(self._assumed))

    def _weakness(self) -> tuple[str, Line | None]:
        """Return why answers that agree are no pass, and the line; "" if they are one."""
        end, summary = self._summary.unread_change, self._summary
        if end is not None:
            return f"{end.name} is not read ({end.why}), and may change slots", end.line
        if summary.unread:
            return f"{summary.unread} refused calls are not read", summary.first_unread[0].line
        if self._unlikely is not None:
            return "the answer is right on a kernel of the assumed kind alone", self._unlikely
        if summary.guessed is not None:
            return _GUESSED, summary.guessed
        if self._vm.began_before:
            return _OLDER, self._seen.first
        if self._vm.unordered:
            return _UNORDERED, None
        if self._seen.short is not None:
            return _SHORT, self._seen.short
        return "", None

    def _explained(self, found: Pass, step: Step) -> Pass | None:
        """Assume a feature that explains the answer to a step; return a pass that goes on."""
        for assumption in self._assumptions:
            told = assumption.told_by
            if assumption.text in self._assumed or (
                told is not None and int(told) in self._vm.capabilities
            ):
                continue
            features = msgspec.structs.replace(self._features, **assumption.changes)
            if not self._may_explain(found, step, features):
                continue
            other = self._pass(features)
            other.run(found.count + 1)
            if other.count > found.count:
                self._supposed.append((step, self._features, len(self._assumed)))
                self._features = features
                self._assumed.append(assumption.text)
                if assumption.is_rare:
                    self._unlikely = self._unlikely or step.line
                return other
        return None

    def _may_explain(self, found: Pass, step: Step, features: Features) -> bool:
        """Whether features may explain why a step differs, which a whole pass would tell.

        What agrees so far has led to the same slots, whatever the kernel can do.
        """
        if found.count < WINDOW or features.address_spaces != self._features.address_spaces:
            return True
        supposed = found.judgement.supposing(features.of_vm(self._scenario.vm_type))
        return admits(supposed, found.count, step)

    def _doubt(self, step: Step, difference: Difference) -> str:
        """Return why an answer that differs may nevertheless be right."""
        if self._vm.began_before:
            return _OLDER
        if self._vm.unordered:
            return _UNORDERED
        if 0 < self._vm.cut_line <= step.line.number:
            return f"line {self._vm.cut_line} {self._vm.cut_why}"
        if self._vm.is_guessed:
            return "which VM some calls are on is not in the trace"
        if self._order.is_open(step):
            return "calls that were under way at the same time: their order is not known"
        op = step.operation
        if isinstance(op, _OF_LOGS) and self._vm.enables_unseen:
            return "which capabilities were enabled is not in the trace: `vmm record` reads it"
        if step.outcome == Refused(errno.EINVAL) and _is_early(op) and not self._seen.has_vcpu:
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
        if is_of_the_file and not self._vm.closes_seen:
            return "which descriptors were closed is not in the trace"
        return ""


class _Again:
    """Iterates over what a function yields, each time anew."""

    def __init__(self, steps: Callable[[], Iterator[Step]]) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[Step]:
        return self._steps()


class _Seen:
    """What all answers of a trace together say of its kernel."""

    def __init__(self) -> None:
        self.count = 0
        self.first: Line | None = None
        self.short: Line | None = None
        """The first call for which the host was short of memory, or that was interrupted."""

        self.has_vcpu = False
        self.done: set[type[AnyOperation]] = set()
        """The kinds of calls that the kernel has carried out, so that it can."""

        self.quirks, self.flags, self.attributes = 1, 0, int(MemoryAttribute.PRIVATE)

    def note(self, step: Step) -> None:
        """Note the next answer."""
        if _is_short_of_memory(step):
            self.short = self.short or step.line
            return
        self.count += 1
        self.first = self.first or step.line
        self.has_vcpu |= isinstance(step.operation, CreateVcpu)
        if step.outcome != Done():
            return
        self.done.add(type(step.operation))
        match step.operation:
            case EnableCap() if step.operation.cap == "DISABLE_QUIRKS2":
                self.quirks |= step.operation.argument
            case CreateGuestMemfd():
                self.flags |= step.operation.flags
            case SetMemoryAttributes():
                self.attributes |= step.operation.attributes


def _is_repeated(before: Step, step: Step) -> bool:
    """Whether a deletion's line is the same as the line before it, with its time, if it has one."""
    op, line = step.operation, step.line
    if not isinstance(op, SetUserMemoryRegion) or op.memory_size:
        return False  # Another call that is made twice changes nothing more.
    follows = before.line.number == line.number - 1 and line.begin == line.number
    return follows and before.line.text == line.text


def _is_of_the_kernel(gpa: int, size: int) -> bool:
    """Whether the kernel may have a slot of its own in a range."""
    return any(gpa < page + PAGE_SIZE_BYTES and page < gpa + size for page in _OWN_PAGES)


def _is_early(op: AnyOperation | None) -> bool:
    """Whether a call is refused once there is a vCPU."""
    is_ring = isinstance(op, EnableCap) and op.cap.startswith("DIRTY_LOG_RING")
    return is_ring or isinstance(op, SetIdentityMapAddr)


def _accepted(seen: _Seen) -> Iterator[_Assumption]:
    """Yield assumptions that the kernel knows the bits that it accepted, and no others."""
    for cap, field, bits in (
        (Cap.DISABLE_QUIRKS2, "quirks", seen.quirks),
        (Cap.GUEST_MEMFD_FLAGS, "guest_memfd_flags", seen.flags),
        (Cap.MEMORY_ATTRIBUTES, "memory_attributes", seen.attributes),
    ):
        yield _Assumption(f"KVM_CAP_{cap.name} of {bits:#x}", {field: bits}, cap)


def _is_of_the_slot(expected: Expected) -> bool:
    """Whether the expected refusal is due to slot and gpa, whatever the guest_memfd is."""
    return expected.rule in _OF_THE_SLOT or expected.outcome == "EEXIST"


def _is_short_of_memory(step: Step) -> bool:
    return isinstance(step.outcome, Refused) and step.outcome.errno in NO_MEMORY


def _told(capabilities: dict[int, int], seen: _Seen) -> Features:
    """Return the features that a trace tells, and defaults for the rest."""
    usual = Features()
    has_second = SetUserMemoryRegion2 in seen.done
    has_memfds = CreateGuestMemfd in seen.done

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
        pre_fault=bool(answer(Cap.PRE_FAULT_MEMORY, int(PreFaultMemory in seen.done))),
        quirks=answer(Cap.DISABLE_QUIRKS2, 0),
        manual_dirty_log=bool(answer(Cap.MANUAL_DIRTY_LOG_PROTECT2, 0)),
        dirty_log_initially_set=bool(answer(Cap.MANUAL_DIRTY_LOG_PROTECT2, 0) & 2),
        dirty_ring_bytes=PAGE_SIZE_BYTES if rings else 0,
        dirty_ring_max_bytes=rings or usual.dirty_ring_max_bytes,
        dirty_ring_acq_rel=bool(answer(Cap.DIRTY_LOG_RING_ACQ_REL, 0)),
    )


def _within(number: int, most: int) -> int:
    return max(1, min(number, most))
