"""What of a vCPU's interrupts is in guest memory: its task priority, and where their end is told.

KVM reaches all of it at a gpa, as it is mapped in as_id 0 at that moment, not as it was mapped
when userspace named the gpa.
"""

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from vmm.model.allowed import Allowed
from vmm.model.backing import Backing
from vmm.model.clocks import Clocks, Target
from vmm.model.contents import Contents
from vmm.model.dirty import Tracking
from vmm.model.rule import Rule, documented, source
from vmm.scenario.history import Done, MsrsSet, Refused
from vmm.scenario.instructions import accessed
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    Execute,
    Instruction,
    PageMsr,
    SetApic,
    SetPageMsr,
    SetVapicAddr,
    Sweep,
    Touch,
    VapicOperation,
    access_end,
)

VAPIC = source(
    "vapic",
    "the task priority of a vCPU with KVM_SET_VAPIC_ADDR is read, and with an enabled local APIC "
    "written, where the gpa is mapped at that moment, and nowhere else",
    "kvm_lapic_sync_from_vapic, kvm_lapic_sync_to_vapic; fda4e2e85589",
)
VAPIC_ADDR = source(
    "vapic-addr",
    "KVM_SET_VAPIC_ADDR takes 0, or the gpa of four bytes in slots that are not READONLY, else "
    "EINVAL",
    "kvm_lapic_set_vapic_addr; fda4e2e85589",
)
VAPIC_APIC = documented(
    "vapic-apic",
    "KVM_SET_VAPIC_ADDR, KVM_GET_LAPIC and KVM_SET_LAPIC are for vCPUs with a local APIC in the "
    "kernel, else EINVAL",
    "api.rst 4.57, 4.58; kvm_arch_vcpu_ioctl",
)
PV_EOI = documented(
    "pv-eoi",
    "the gpa of MSR_KVM_PV_EOI_EN is a multiple of four in a slot that is not READONLY, else "
    "KVM_SET_MSRS does not set the MSR",
    "x86/msr.rst MSR_KVM_PV_EOI_EN; kvm_lapic_set_pv_eoi",
)
ASYNC_PF = documented(
    "async-pf",
    "MSR_KVM_ASYNC_PF_EN, for a vCPU with a local APIC in the kernel, takes the gpa of 64 bytes in "
    "a slot that is not READONLY, else KVM_SET_MSRS does not set the MSR",
    "x86/msr.rst MSR_KVM_ASYNC_PF_EN; kvm_pv_enable_async_pf",
)
ASSIST_PAGE = source(
    "assist-page",
    "HV_X64_MSR_VP_ASSIST_PAGE, where KVM has it, is set if the gpa is in a slot that is not "
    "READONLY; KVM clears the first four bytes there, and nothing else",
    "kvm_hv_set_msr: hv_vp_assist_page",
)

_RULES: dict[PageMsr, Rule] = {
    "pv_eoi": PV_EOI,
    "assist_page": ASSIST_PAGE,
    "async_pf": ASYNC_PF,
}
_WORD_BYTES, _TOKENS_BYTES = 4, 8
_ALL_OF_A_CR8 = 0xF0
"""What of a task priority CR8 has, which is all that may be kept when a vCPU runs."""

Word = tuple[int, int]
"""Bytes of a word within a page: (gpa, length)."""


@dataclass(slots=True)
class _Apic:
    """A vCPU's local APIC, and where its priority is in memory (0: nowhere).

    ``priority`` is None if unknown. ``given`` is what it was given at last, which a change of the
    vCPU's mode makes it again. ``is_due`` says that KVM writes it at the next entry.
    """

    gpa: int = 0
    is_sure: bool = True
    enabled: bool = False
    priority: int | None = 0
    given: int | None = 0
    is_due: bool = False


@dataclass(slots=True)
class Vapics:
    """The local APICs of one VM, by vCPU, as far as they are in guest memory."""

    clocks: Clocks
    backing: Backing
    contents: Contents
    tracking: Tracking
    has_irqchip: Callable[[], bool]
    apics: dict[int, _Apic] = field(default_factory=dict)
    wrote: Rule | None = None
    """The rule by which KVM has written to memory since the last look at it, if it has."""

    @property
    def exist(self) -> bool:
        """Whether KVM reads or writes a priority when a vCPU runs."""
        return any(each.gpa for each in self.apics.values())

    def allowed(self, op: VapicOperation) -> tuple[Allowed, ...]:
        """Return the outcomes that the rules allow; none if they are unknown."""
        if isinstance(op, SetPageMsr):
            return self._page_msr(op)
        if not self.has_irqchip():
            return (Allowed(Refused(errno.EINVAL), VAPIC_APIC),)
        if isinstance(op, SetApic):
            return (Allowed(Done(), VAPIC_APIC, partial(self._set_apic, op)),)
        if op.gpa and None in self._places(op.gpa):
            return (Allowed(Refused(errno.EINVAL), VAPIC_ADDR, partial(self._refuse, op.vcpu)),)
        return (Allowed(Done(), VAPIC_ADDR, partial(self._set_addr, op)),)

    def _set_addr(self, op: SetVapicAddr) -> None:
        apic = self._apic(op.vcpu)
        apic.gpa, apic.is_sure = op.gpa, True

    def _refuse(self, vcpu: int) -> None:
        """Doubt the address before: KVM may not reach it again until slots change."""
        self._apic(vcpu).is_sure = False

    def _set_apic(self, op: SetApic) -> None:
        apic = self._apic(op.vcpu)
        apic.enabled = op.enabled
        if op.priority is not None:
            apic.priority = op.priority
        if apic.priority is not None and apic.priority & ~_ALL_OF_A_CR8:
            apic.priority = None  # It may be cut to what CR8 has.
        apic.given = apic.priority
        apic.is_due = op.enabled

    def _apic(self, vcpu: int) -> _Apic:
        return self.apics.setdefault(vcpu, _Apic())

    def _page_msr(self, op: SetPageMsr) -> tuple[Allowed, ...]:
        rule = _RULES[op.msr]
        done, none = Allowed(MsrsSet(1), rule), Allowed(MsrsSet(0), rule)
        if not op.on:
            return (done, none) if op.msr == "assist_page" else (done,)
        if op.msr == "async_pf":  # Kernels before 2635b5c4a0e4 do not deliver them as interrupts.
            is_right = self.has_irqchip() and None not in self._places(op.gpa, _TOKENS_BYTES)
            return (done, none) if is_right else (none,)
        if op.msr == "pv_eoi":
            is_right = not op.gpa % _WORD_BYTES and None not in self._places(op.gpa, 1)
            return (done if is_right else none,)
        if any(self.clocks.spaces[1:]):
            return ()  # KVM looks in the address space that the vCPU is in.
        (place,) = self._places(op.gpa - op.gpa % PAGE_SIZE_BYTES, _WORD_BYTES)
        if place is None or not place.can_be_written:
            return (none,)
        return (Allowed(MsrsSet(1), rule, partial(self._clear, op.vcpu, place)), none)

    def _clear(self, vcpu: int, place: Target) -> None:
        self.wrote = ASSIST_PAGE
        self.contents.write(place.mapping, place.offset, bytes(_WORD_BYTES))
        self.tracking.kernel_wrote(vcpu, place.slot, place.page, surely=True)

    def met(
        self, op: Touch | Sweep | Execute | Instruction, usual: tuple[Allowed, ...]
    ) -> tuple[Allowed, ...]:
        """Return the outcomes of an access, around which KVM writes and reads the priority.

        There is none if the access may be to the priority itself.
        """
        if not usual or any(self._is_at(at, size, op.as_id) for at, size in _accessed(op)):
            return ()
        return tuple(each.followed_by(partial(self.ran, op.vcpu)) for each in usual)

    def ran(self, vcpu: int) -> None:
        """Note that a vCPU ran: KVM wrote the priority before, perhaps, and read it after that."""
        apic = self.apics.get(vcpu)
        if apic is None:
            return
        is_due, apic.is_due = apic.is_due, False
        places = self._places(apic.gpa) if apic.gpa else [None]
        known = [place for place in places if place is not None]
        if len(known) == len(places):
            if apic.enabled:
                self._write(vcpu, apic, known, surely=is_due)
            self._read(apic, known[0])
        elif apic.priority != apic.given:  # Where KVM reaches no memory it stays, or comes back.
            apic.priority = None

    def may_run(self, vcpu: int) -> None:
        """Note that a vCPU may have run in a way that is not known."""
        apic = self.apics.get(vcpu)
        if apic is None or not apic.gpa:
            return
        apic.is_due, apic.priority = False, None
        for place in filter(None, self._places(apic.gpa)):
            if apic.enabled:
                self._blur(vcpu, place)

    def _write(self, vcpu: int, apic: _Apic, places: list[Target], *, surely: bool) -> None:
        self.wrote = VAPIC
        is_clear = apic.is_sure and all(each.is_sure and each.can_be_written for each in places)
        priority = apic.priority
        if not is_clear or priority is None or priority != apic.given:
            for place in places:
                self._blur(vcpu, place)
            return
        word = bytes((priority, 0, 0, 0))
        if not surely and self._shown(places) != word:
            for place in places:
                self._blur(vcpu, place)
            return
        for place in places:
            data, word = word[: place.size], word[place.size :]
            self.contents.write(place.mapping, place.offset, data)
            self.tracking.kernel_wrote(vcpu, place.slot, place.page, surely=surely)

    def _blur(self, vcpu: int, place: Target) -> None:
        if place.can_be_written:
            self.contents.blur(place.mapping, place.offset, place.size)
        self.tracking.kernel_wrote(vcpu, place.slot, place.page, surely=False)

    def _read(self, apic: _Apic, place: Target) -> None:
        is_known = apic.is_sure and place.is_sure and place.can_be_written
        if is_known and not self.contents.is_vague(place.mapping, place.offset, 1):
            apic.priority = self.contents.read(place.mapping, place.offset, 1)[0]
        else:
            apic.priority = None

    def _shown(self, places: list[Target]) -> bytes | None:
        """Return the bytes of a word in memory; None if some are unknown."""
        if any(self.contents.is_vague(each.mapping, each.offset, each.size) for each in places):
            return None
        return b"".join(self.contents.read(p.mapping, p.offset, p.size) for p in places)

    def _places(self, gpa: int, length: int = _WORD_BYTES) -> list[Target | None]:
        """Return where the parts of a word are; None for a part without a writable slot."""
        return [self.clocks.place(at, size) for at, size in _parts(gpa, length)]

    def _is_at(self, gpa: int, length: int, as_id: int) -> bool:
        """Whether some bytes may be those of a priority."""
        words = [
            place
            for apic in self.apics.values()
            if apic.gpa
            for place in self._places(apic.gpa)
            if place is not None
        ]
        pieces = self.backing.pieces(self.clocks.spaces[as_id], gpa, length)
        return any(
            (place.mapping == piece.mapping or not self.contents.is_plain)
            and place.offset < piece.offset + piece.length
            and piece.offset < place.offset + place.size
            for piece in pieces
            if piece.kind == "memory"
            for place in words
        )


def _parts(gpa: int, length: int) -> Iterator[Word]:
    """Yield the parts of a word, page by page."""
    first = min(length, PAGE_SIZE_BYTES - gpa % PAGE_SIZE_BYTES)
    yield gpa, first
    if first < length:
        yield gpa + first, length - first


def _accessed(op: Touch | Sweep | Execute | Instruction) -> Iterator[Word]:
    if isinstance(op, Instruction):
        yield from accessed(op)
    else:
        yield op.gpa, access_end(op) - op.gpa
