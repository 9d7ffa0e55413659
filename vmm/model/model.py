"""The oracle: which outcomes of an operation the rules allow, and what each of them means.

Written from the documented API and the kernel's source, never from what one host answers. Where
the rules allow several outcomes all are returned, and the one observed is adopted; where the
model does not know, it returns none, and the verdict is inconclusive.
"""

import errno
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Self, assert_never

import msgspec

from vmm.model.accesses import Accesses, inside_smm
from vmm.model.allowed import HARNESS, Allowed
from vmm.model.apicpage import AsEmulated, either, is_apic_page
from vmm.model.array import Change, MemslotArray
from vmm.model.attributes import set_attributes
from vmm.model.backing import Backing
from vmm.model.contents import Contents
from vmm.model.devices import Devices, absorbed
from vmm.model.dirty import Tracking
from vmm.model.instructions import outcomes
from vmm.model.internal import InternalSlots
from vmm.model.ioapic import may_answer
from vmm.model.memfds import GUEST_MEMFD_OVERLAP, GuestMemfds
from vmm.model.prefault import end_of, refusal
from vmm.model.races.flaw import Flaw
from vmm.model.races.judge import RaceJudge
from vmm.model.regions import (
    HVA_USER,
    NO_MEMORY,
    Decision,
    Memslot,
    decide,
    refusal_by_argument,
)
from vmm.model.rings import RING_EXACT, no_ring_to_reset
from vmm.model.rule import Rule, documented, source
from vmm.model.userend import UserEnd
from vmm.scenario.features import Features
from vmm.scenario.history import Closed, Done, Event, Header, Inspected, Raced, Refused, RingPages
from vmm.scenario.hostpages import HostPages
from vmm.scenario.instructions import accessed
from vmm.scenario.operations import (
    CHURN_GFNS,
    GUEST_MEMFD,
    SMM,
    AnyOperation,
    ChangeHostMemory,
    Churn,
    ClearDirtyLog,
    CloseGuestMemfd,
    CloseVm,
    CoalesceMmio,
    CollectMmio,
    CreateGuestMemfd,
    CreateIrqchip,
    CreateVcpu,
    EnableCap,
    Execute,
    GetDirtyLog,
    HarvestDirtyRing,
    HostWrite,
    Hva,
    Inspect,
    Instruction,
    IoEventFd,
    Lives,
    MapGuestMemfd,
    Mapping,
    NewVm,
    PreFaultMemory,
    PunchGuestMemfd,
    Race,
    ResetDirtyRings,
    SetIdentityMapAddr,
    SetMemoryAttributes,
    SetTssAddr,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Sweep,
    SwitchVm,
    Touch,
    UnmapInternalSlots,
    access_end,
    pages_of,
)
from vmm.scenario.plan import mappings_of
from vmm.scenario.reached import Reached, reached_pages
from vmm.scenario.slots import as_id_of, id_of

CONTENT = documented(
    "content",
    "memory changes where the guest or the host wrote, and nowhere else; content belongs to "
    "the host mapping",
)
COPIED = source(
    "copied",
    "what a guest writes to memory that a forked child shares is copied first: the child sees none "
    "of it",
    "hva_to_pfn: FOLL_WRITE; do_wp_page; mmu_notifier_invalidate_range_start",
)
VM_GONE = source(
    "vm-gone",
    "a closed VM leaves nothing behind in the process that made it",
    "103c763c72dd; kvm_arch_destroy_vm",
)
NOTHING_USED_UP = source(
    "nothing-used-up",
    "after any number of VMs, or of changes of slots, the kernel's memory is where it was",
    "kvm_destroy_vm, kvm_free_memslot",
)


_BY_A_VCPU = Touch | Sweep | Execute | Instruction | HarvestDirtyRing | PreFaultMemory


class Followed(msgspec.Struct, frozen=True, gc=False):
    """What the model makes of an event: the ``allowed`` outcomes, and the one that was ``chosen``.

    Of a race there is a ``flaw`` in their place, or the rules that decided it (``raced``).
    """

    allowed: tuple[Allowed, ...] = ()
    chosen: Allowed | None = None
    flaw: Flaw | None = None
    raced: frozenset[Rule] = frozenset()

    @property
    def fits(self) -> bool:
        """Whether the rules allow what happened."""
        return self.chosen is not None or bool(self.raced)

    @property
    def unknown(self) -> bool:
        """Whether the model does not know what may happen there."""
        return not (self.fits or self.allowed or self.flaw)


class _Vm(NamedTuple):
    """What a VM has for itself."""

    spaces: tuple[MemslotArray[Memslot], ...]
    tracking: Tracking
    internal: InternalSlots
    mmio: Devices
    accesses: tuple[Accesses, ...]
    emulated: tuple[Accesses, ...]


class Model:
    """The state of one VM and of the host memory that backs it.

    ``allowed`` changes nothing; what it returns brings the model on, by ``adopt``.
    """

    @classmethod
    def of(cls, header: Header) -> Self:
        """Return the model of what a history's header says, before its first event."""
        scenario = header.scenario
        reached = reached_pages(scenario, header.features.touch_limit)
        return cls(mappings_of(scenario), header.features, scenario.vm_type, reached)

    def __init__(
        self,
        mappings: tuple[Mapping, ...],
        features: Features,
        vm_type: int = 0,
        reached: Reached | None = None,
    ) -> None:
        self.features = features.of_vm(vm_type)
        self._vm_type = vm_type
        host = HostPages(mappings, reached)
        self._backing = Backing(mappings, host)
        self._contents = Contents(mappings, host)
        memfds = frozenset(mapping.name for mapping in mappings if mapping.kind == "memfd")
        self._memfds = GuestMemfds(self.features, memfds, self._backing, self._contents)
        self._user_end = UserEnd()
        self._others: dict[int, _Vm] = {}
        self._vm = 0
        self._reset()

    def _reset(self) -> None:
        """Forget every slot; host memory stays as it is."""
        self._spaces = tuple(MemslotArray[Memslot]() for _ in range(self.features.address_spaces))
        self._tracking = Tracking(self._spaces, self.features)
        self._mmio = Devices()
        self._internal = InternalSlots(self.features, self._tracking.vcpus, self._is_taken)
        self._accesses, self._emulated = (
            tuple(
                Accesses(slots, backing, self._contents, self._tracking, self._has_irqchip)
                for slots in self._spaces
            )
            for backing in (self._backing, AsEmulated(self._backing))
        )
        self._memfds.new_vm()
        self._backing.forget_attributes()

    def _switch(self, vm: int) -> None:
        """Go on with another VM, and keep what this one is like."""
        self._others[self._vm] = _Vm(
            *(self._spaces, self._tracking, self._internal, self._mmio),
            *(self._accesses, self._emulated),
        )
        self._vm = vm
        other = self._others.pop(vm, None)
        if other is None:
            self._reset()
        else:
            self._spaces, self._tracking, self._internal, self._mmio = other[:4]
            self._accesses, self._emulated = other[4:]

    def slots(self, as_id: int = 0) -> MemslotArray[Memslot]:
        """Return the memslots of an address space, from the highest gfn down."""
        return self._spaces[as_id]

    @property
    def spaces(self) -> tuple[MemslotArray[Memslot], ...]:
        """The memslots of each address space, by as_id."""
        return self._spaces

    @property
    def has_ring(self) -> bool:
        """Whether a dirty ring is in the place of dirty bitmaps."""
        return self._tracking.ring is not None

    def allowed(self, operation: AnyOperation) -> tuple[Allowed, ...]:
        """Return the outcomes that the rules allow in this state; none where they are unknown."""
        match operation:
            case Touch() | Sweep() | Execute() | Instruction():
                accesses = self._access(operation)
                if self._mmio.exist:
                    accesses = absorbed(self._mmio, accesses)
                if operation.vcpu in self._tracking.vcpus:  # As it nearly always is.
                    return accesses
                return self._by_vcpu(operation.vcpu, accesses)
            case SetUserMemoryRegion():
                return self._region(operation)
            case Inspect():
                return (self._inspect(),)
            case GetDirtyLog():
                return self._tracking.get(operation)
            case ClearDirtyLog():
                return self._tracking.clear(operation)
            case EnableCap():
                return self._tracking.enable(operation)
            case HarvestDirtyRing():
                return self._by_vcpu(operation.vcpu, (self._harvest(operation),))
            case ResetDirtyRings():
                ring = self._tracking.ring
                return no_ring_to_reset(self.features) if ring is None else (ring.reset(),)
            case Lives():
                rule = VM_GONE if operation.watch == "process" else NOTHING_USED_UP
                return (Allowed(Closed(), rule),)
            case Churn():
                return self._churn(operation)
            case SetTssAddr():
                return (self._internal.set_tss(operation),)
            case SetIdentityMapAddr():
                return (self._internal.set_identity_map(operation),)
            case CreateIrqchip():
                return (self._internal.create_irqchip(operation),)
            case CreateVcpu():
                return (self._internal.create_vcpu(operation),)
            case UnmapInternalSlots():
                return (self._internal.unmap(),)
            case CreateGuestMemfd():
                return self._memfds.create(operation)
            case CloseGuestMemfd():
                return self._memfds.close(operation)
            case MapGuestMemfd():
                return self._memfds.map(operation)
            case PunchGuestMemfd():
                return self._memfds.punch(operation)
            case PreFaultMemory():
                return self._by_vcpu(operation.vcpu, self._pre_fault(operation))
            case SetMemoryAttributes():
                return set_attributes(operation, self.features, self._vm_type, self._backing)
            case HostWrite():
                return (self._host_write(operation),)
            case ChangeHostMemory():
                came = Inspected(()) if operation.how == "reap" else Done()
                rule = COPIED if operation.how == "reap" else HARNESS
                return (Allowed(came, rule, partial(self._change_memory, operation)),)
            case Race():
                return ()  # Its outcomes depend on what happened: see ``race``.
            case CoalesceMmio():
                return (self._mmio.coalesce(operation),)
            case IoEventFd():
                return (self._mmio.ioeventfd(operation),)
            case CollectMmio():
                return (self._mmio.collect(),)
            case SwitchVm():
                return (Allowed(Done(), HARNESS, partial(self._switch, operation.vm)),)
            case NewVm():
                return (Allowed(Done(), HARNESS, self._reset),)
            case CloseVm():
                return (Allowed(Closed(), VM_GONE, self._reset),)
            case _:
                assert_never(operation)

    def follow(self, event: Event) -> Followed:
        """Come to the state after an event, by the first outcome that leaves room for its own.

        Where no outcome does, the state stays as it was, but that a vCPU was used may count.
        """
        operation, outcome = event.operation, event.outcome
        if isinstance(outcome, Raced) and isinstance(operation, Race):
            return self._follow_race(operation, outcome)
        allowed = self.allowed(operation)
        for choice in allowed:
            # What is equal is admitted, whatever the kind of outcome, and found out sooner.
            if choice.outcome == outcome or choice.outcome.admits(outcome):
                choice.adopt()
                return Followed(allowed, choice)
        if not allowed and isinstance(operation, _BY_A_VCPU):
            self._internal.use_vcpu(operation.vcpu)
        return Followed(allowed)

    def prefer(self, operation: AnyOperation) -> tuple[Allowed, ...]:
        """Come to the state that the first allowed outcome leads to, and return all of them."""
        allowed = self.allowed(operation)
        if allowed:
            allowed[0].adopt()
        return allowed

    def _has_irqchip(self) -> bool:
        return self._internal.irqchip

    def _follow_race(self, race: Race, outcome: Raced) -> Followed:
        for vcpu in range(len(race.guests)):
            self._internal.use_vcpu(vcpu)
        slots = self._spaces[0]
        judge = RaceJudge(race, slots, self._backing, self._contents, self._tracking, self.allowed)
        flaw = judge.flaw(outcome)
        if judge.unknown or (self._internal.irqchip and _meets_device(race)):
            return Followed()
        return Followed(flaw=flaw, raced=frozenset() if flaw else frozenset(judge.rules))

    def _inspect(self) -> Allowed:
        hidden = self._backing.absent
        changes = Inspected(self._contents.changes(hidden))
        return Allowed(changes, CONTENT, partial(self._contents.forget_changes, hidden))

    def _change_memory(self, op: ChangeHostMemory) -> None:
        self._backing.changed(op)
        self._contents.change(op)

    def _churn(self, op: Churn) -> tuple[Allowed, ...]:
        """Return its outcome where slots and place are free; else it is not known."""
        slots = self._spaces[0]
        first, count = CHURN_GFNS
        taken = slots.get(op.slot) or slots.get(op.slot + 1)
        if taken or slots.overlapping(first, count, op.slot):
            return ()
        if op.slot + 1 >= self.features.nr_memslots:
            return ()
        return (Allowed(Closed(), NOTHING_USED_UP),)

    def _by_vcpu(self, vcpu: int, allowed: tuple[Allowed, ...]) -> tuple[Allowed, ...]:
        """Return what a vCPU may come to, which is made where it has not been used yet."""
        if vcpu in self._tracking.vcpus:
            return allowed
        return tuple(
            msgspec.structs.replace(each, adopt=partial(self._use_first, vcpu, each.adopt))
            for each in allowed
        )

    def _use_first(self, vcpu: int, adopt: Callable[[], None]) -> None:
        self._internal.use_vcpu(vcpu)
        adopt()

    def _access(self, op: Touch | Sweep | Execute | Instruction) -> tuple[Allowed, ...]:
        if op.as_id >= len(self._spaces):
            return ()
        if isinstance(op, Instruction):
            return self._instruction(op)
        end = op.gpa + op.width if isinstance(op, Touch) else access_end(op)
        if self._internal.reached(op.vcpu, op.gpa, end - op.gpa):
            return ()
        accesses = self._accesses[op.as_id]
        usual = accesses.touch(op) if isinstance(op, Touch) else _outcomes(accesses, op)
        if op.as_id == SMM:
            usual = inside_smm(usual)
        if not is_apic_page(op.gpa, end):
            return usual
        if self._internal.irqchip:
            return ()
        return either(usual, _outcomes(self._emulated[op.as_id], op))

    def _instruction(self, op: Instruction) -> tuple[Allowed, ...]:
        for gpa, length in accessed(op):
            if self._internal.reached(op.vcpu, gpa, length) or is_apic_page(gpa, gpa + length):
                return ()
        usual = outcomes(self._accesses[op.as_id], op, self._internal.irqchip)
        return inside_smm(usual) if op.as_id == SMM else usual

    def _pre_fault(self, op: PreFaultMemory) -> tuple[Allowed, ...]:
        refused = refusal(op, self.features)
        if refused:
            return refused
        allowed = self._accesses[0].pre_fault(op)
        # What stands in the way may be a slot of the kernel's own.
        in_the_way = (each.outcome for each in allowed)
        reached = any(self._internal.reached(op.vcpu, end_of(op, o), 1) for o in in_the_way)
        return () if reached else allowed

    def _region(self, op: SetUserMemoryRegion) -> tuple[Allowed, ...]:
        hva = self._backing.normal(op.userspace_addr)
        verdict = refusal_by_argument(op, self.features) or self._decide(op, hva)
        usual = self._outcome(op, hva, verdict)
        if verdict.rule is not HVA_USER:
            refused = Refused(errno.EINVAL)
            found = self._user_end.allowed(op.userspace_addr, op.memory_size, usual, refused)
            if found != (usual,):
                return found
        if op.fail_nth:
            return (usual, Allowed(Refused(errno.ENOMEM), NO_MEMORY))
        if verdict.rule is GUEST_MEMFD_OVERLAP:
            return (usual, Allowed(Refused(errno.EINVAL), verdict.rule))
        return (usual,)

    def _decide(self, op: SetUserMemoryRegion, hva: Hva) -> Decision:
        slots = self._spaces[as_id_of(op.slot)]
        present = slots.get(id_of(op.slot))

        def in_the_way(base_gfn: int, npages: int, besides: int) -> Memslot | None:
            return slots.overlapping(base_gfn, npages, besides) or self._internal.overlapping(
                base_gfn, npages
            )

        return decide(op, hva, present, in_the_way, self._memfds.refusal, self.features)

    def _is_taken(self, base_gfn: int, npages: int) -> bool:
        return any(slots.overlapping(base_gfn, npages) is not None for slots in self._spaces)

    def _outcome(self, op: SetUserMemoryRegion, hva: Hva, verdict: Decision) -> Allowed:
        if verdict.errno:
            return Allowed(Refused(verdict.errno), verdict.rule)
        if verdict.change is None:
            return Allowed(Done(), verdict.rule)
        return Allowed(Done(), verdict.rule, partial(self._apply, op, hva, verdict.change))

    def _apply(self, op: SetUserMemoryRegion, hva: Hva, change: Change) -> None:
        as_id, slot_id = as_id_of(op.slot), id_of(op.slot)
        slots = self._spaces[as_id]
        if change is Change.DELETE:
            slots.delete(slot_id)
            self._memfds.unbind(op.slot)
            self._tracking.changed(op.slot)
            return
        old = slots.get(slot_id)
        new = Memslot(
            slot_id,
            pages_of(op.guest_phys_addr),
            pages_of(op.memory_size),
            hva,
            op.flags,
            as_id=as_id,
        )
        self._tracking.begin(new, old)
        self._tracking.changed(op.slot, new, old)
        if op.flags & GUEST_MEMFD and isinstance(op, SetUserMemoryRegion2):
            new.memfd, new.memfd_offset = self._memfds.bind(op), op.guest_memfd_offset
        slots.update(new, change)

    def _host_write(self, op: HostWrite) -> Allowed:
        mapping, offset = op.place.mapping, op.place.offset
        if self._backing.locate(op.place, 0) is None:
            return Allowed(Refused(errno.EFAULT), HARNESS)
        data = op.value.to_bytes(4, "little")
        return Allowed(Done(), HARNESS, partial(self._contents.write, mapping, offset, data))

    def _harvest(self, op: HarvestDirtyRing) -> Allowed:
        ring = self._tracking.ring
        return Allowed(RingPages(), RING_EXACT) if ring is None else ring.harvest(op.vcpu)


def _meets_device(race: Race) -> bool:
    """Whether a guest of a race may ask an interrupt controller in the kernel."""
    return any(
        may_answer(op.gpa, end) or is_apic_page(op.gpa, end)
        for guest in race.guests
        for op in guest.program
        if (end := access_end(op))
    )


def _outcomes(accesses: Accesses, op: Touch | Sweep | Execute) -> tuple[Allowed, ...]:
    match op:
        case Touch():
            return accesses.touch(op)
        case Sweep():
            return accesses.sweep(op)
        case Execute():
            return accesses.execute(op)
