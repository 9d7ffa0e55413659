"""The state of one VM: its slots, and the allowed outcomes of operations on it."""

import errno
from collections.abc import Callable
from functools import partial

import msgspec

from vmm.model.accesses import NO_MMU_PAGES, Accesses, inside_smm
from vmm.model.allowed import Allowed
from vmm.model.apicpage import AsEmulated, by_the_emulator, either, is_apic_page
from vmm.model.array import Change, MemslotArray
from vmm.model.backing import Backing
from vmm.model.clocks import Clocks
from vmm.model.contents import Contents
from vmm.model.devices import Devices, absorbed, sent
from vmm.model.dirty import Tracking
from vmm.model.instructions import outcomes
from vmm.model.internal import APIC_BASE, InternalSlots
from vmm.model.ioapic import REGISTERS, may_answer
from vmm.model.memfds import GUEST_MEMFD_OVERLAP, GuestMemfds
from vmm.model.prefault import end_of, refusal
from vmm.model.regions import HVA_USER, NO_MEMORY, Decision, Memslot, decide, refusal_by_argument
from vmm.model.rings import RING_EXACT
from vmm.model.rule import source
from vmm.model.starts import Starts
from vmm.model.userend import UserEnd
from vmm.model.vapics import Vapics
from vmm.scenario.features import Features
from vmm.scenario.history import Closed, Done, Refused, RingPages, Stopped, Touched
from vmm.scenario.instructions import accessed
from vmm.scenario.operations import (
    CHURN_GFNS,
    GUEST_MEMFD,
    PAGE_SIZE_BYTES,
    SMM,
    Churn,
    Execute,
    HarvestDirtyRing,
    Hva,
    Instruction,
    PreFaultMemory,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Start,
    Sweep,
    Touch,
    access_end,
    pages_of,
)
from vmm.scenario.slots import as_id_of, id_of

NOTHING_USED_UP = source(
    "nothing-used-up",
    "after any number of VMs, or of changes of slots, the kernel uses as much memory as before",
    "kvm_destroy_vm, kvm_free_memslot",
)


class VmState:
    """The state that a VM has for itself. All VMs share the host memory that slots show.

    Methods that return `Allowed` change nothing; their ``adopt`` does.
    """

    def __init__(
        self,
        features: Features,
        backing: Backing,
        contents: Contents,
        memfds: GuestMemfds,
        user_end: UserEnd,
    ) -> None:
        self._features = features
        self._backing = backing
        self._contents = contents
        self._memfds = memfds
        self._user_end = user_end
        self.spaces = tuple(MemslotArray[Memslot]() for _ in range(features.address_spaces))
        self.tracking = Tracking(self.spaces, features)
        self.mmio = Devices(features, self._has_irqchip)
        self.clocks = Clocks(self.spaces, backing, contents, self.tracking)
        self.vapics = Vapics(self.clocks, backing, contents, self.tracking, self._has_irqchip)
        self.internal = InternalSlots(features, self.tracking.vcpus, self._is_taken)
        self._accesses, self._emulated = (
            tuple(
                Accesses(slots, shown, contents, self.tracking, self._has_irqchip)
                for slots in self.spaces
            )
            for shown in (backing, AsEmulated(backing))
        )
        self._had_slots = False
        self._starts = tuple(Starts(seen, contents, self.internal) for seen in self._accesses)

    def _has_irqchip(self) -> bool:
        return self.internal.irqchip

    def by_vcpu(self, vcpu: int, allowed: tuple[Allowed, ...]) -> tuple[Allowed, ...]:
        """Return the outcomes of an operation by a vCPU, which is created at its first use."""
        if vcpu in self.tracking.vcpus:
            return allowed
        return tuple(
            msgspec.structs.replace(each, adopt=partial(self._use_first, vcpu, each.adopt))
            for each in allowed
        )

    def _use_first(self, vcpu: int, adopt: Callable[[], None]) -> None:
        self.internal.use_vcpu(vcpu)
        adopt()

    def touch(self, op: Touch) -> tuple[Allowed, ...]:
        """Return the allowed outcomes of a touch; none if they are unknown.

        The common case comes first: a touch outside of SMM, with nothing but user slots.
        """
        if (
            op.as_id == 0
            and self.is_plain_for(op.vcpu)
            and not is_apic_page(op.gpa, op.gpa + op.width)
        ):
            return self._accesses[0].touch(op)
        return self.access(op)

    def is_plain_for(self, vcpu: int) -> bool:
        """Whether a vCPU has run, and there are only user slots, whose content is known."""
        return (
            vcpu in self.tracking.vcpus
            and not (self.internal.slots or self.mmio.ranges or self.mmio.events)
            and not (self.clocks.exist or self.vapics.apics)
            and not self.internal.apic_bases
            and self._contents.knows_all
        )

    def access(self, op: Touch | Sweep | Execute | Instruction) -> tuple[Allowed, ...]:
        """Return the allowed outcomes of a guest's access; none if they are unknown."""
        if self._meets_another_device(op):
            return ()
        accesses = self._access(op)
        if self.mmio.exist:
            name = op.name if isinstance(op, Instruction) else ""
            accesses = absorbed(self.mmio, accesses, name)
            if isinstance(op, Instruction):
                accesses = sent(self.mmio, accesses, op)
        if self.clocks.exist or not self._contents.knows_all:
            accesses = self.clocks.met(op, accesses)
        if self.vapics.apics:
            accesses = self.vapics.met(op, accesses)
        return self.by_vcpu(op.vcpu, accesses)

    def _meets_another_device(self, op: Touch | Sweep | Execute | Instruction) -> bool:
        """Whether a device lies over the I/O APIC's registers, and may hide them from an access.

        KVM bisects the bus: reads pass by what takes only writes, if it lies over all of them.
        """
        if not (self.internal.irqchip and self.mmio.exist) or isinstance(op, Instruction):
            return False
        end = op.gpa + op.width if isinstance(op, Touch) else access_end(op)
        reads = isinstance(op, Touch) and op.access == "read"
        return may_answer(op.gpa, end) and self.mmio.may_hide(REGISTERS, reads)

    def _access(self, op: Touch | Sweep | Execute | Instruction) -> tuple[Allowed, ...]:
        if op.as_id >= len(self.spaces):
            return ()
        if isinstance(op, Instruction):
            return self._instruction(op)
        end = op.gpa + op.width if isinstance(op, Touch) else access_end(op)
        if self.internal.reached(op.vcpu, op.gpa, end - op.gpa):
            return ()
        accesses = self._accesses[op.as_id]
        if self.internal.apic_bases and is_apic_page(op.gpa, end, self.internal.apic_base(op.vcpu)):
            return self._registers(op)
        if isinstance(op, Touch):
            usual = accesses.touch(op)
        else:
            usual = self._before_slots(_outcomes(accesses, op))
        if op.as_id == SMM:
            usual = inside_smm(usual)
        if not is_apic_page(op.gpa, end):
            return usual
        if self.internal.irqchip and op.vcpu not in self.internal.apic_bases:
            return ()
        return either(usual, _outcomes(self._emulated[op.as_id], op))

    def _registers(self, op: Touch | Sweep | Execute) -> tuple[Allowed, ...]:
        """Return the outcomes of an access to registers of a local APIC: reads do not exit."""
        base = self.internal.apic_base(op.vcpu)
        if not isinstance(op, Touch) or op.access == "write" or op.gpa < base:
            return ()
        pieces = self._accesses[op.as_id].pieces(op.gpa, op.width)
        if op.gpa + op.width > base + PAGE_SIZE_BYTES or any(p.kind != "hole" for p in pieces):
            return ()
        return (Allowed(Touched(0, (), (1 << 8 * op.width) - 1), APIC_BASE),)

    def start(self, op: Start) -> tuple[Allowed, ...]:
        """Return the allowed outcomes of a start; none if they are unknown."""
        if op.as_id >= len(self.spaces) or (self._contents.is_blurred and op.tables is not None):
            return ()
        if self.vapics.exist or not self._runs_in_its_mode(op):
            return ()
        usual = self._before_slots(self._starts[op.as_id].outcomes(op, self._in_smm(op)))
        return inside_smm(usual) if op.as_id == SMM else usual

    def why_unknown(self, op: Start) -> str:
        """Return why a start has no known outcome."""
        if op.as_id >= len(self.spaces):
            return "there is no such address space"
        if self._contents.is_blurred and op.tables is not None:
            return "what its page tables hold is not known"
        if not self._runs_in_its_mode(op):
            return "guests with page tables do not run in 32-bit mode here"
        if self.vapics.exist:
            return "KVM writes priorities to memory meanwhile"
        return self._starts[op.as_id].why_unknown(op, self._in_smm(op))

    def _runs_in_its_mode(self, op: Start) -> bool:
        """Whether guests run in the mode that a start is in."""
        return op.paging == "long" or self._features.starts_32_bit

    def _in_smm(self, op: Start) -> Accesses | None:
        return self._accesses[SMM] if op.smi and self._features.smm else None

    def _before_slots(self, allowed: tuple[Allowed, ...]) -> tuple[Allowed, ...]:
        """Return outcomes, with ENOSPC added if the VM has never had a slot."""
        if self._had_slots or not allowed:
            return allowed
        return (*allowed, Allowed(Stopped("ENOSPC"), NO_MMU_PAGES))

    def _instruction(self, op: Instruction) -> tuple[Allowed, ...]:
        places = accessed(op)
        if any(self.internal.reached(op.vcpu, gpa, length) for gpa, length in places):
            return ()
        accesses = self._accesses[op.as_id]
        irqchip = self.internal.irqchip
        base = self.internal.apic_base(op.vcpu)
        if irqchip and any(is_apic_page(gpa, gpa + length, base) for gpa, length in places):
            return ()
        if not any(is_apic_page(gpa, gpa + length) for gpa, length in places):
            usual = outcomes(accesses, op, irqchip)
        elif irqchip or not (op.forced or any(map(partial(_is_hole, accesses), places))):
            return ()
        else:
            usual = by_the_emulator(outcomes(self._emulated[op.as_id], op, irqchip))
        return inside_smm(usual) if op.as_id == SMM else usual

    def pre_fault(self, op: PreFaultMemory) -> tuple[Allowed, ...]:
        """Return the allowed outcomes of pre-faulting; none if they are unknown."""
        refused = refusal(op, self._features)
        if refused:
            return refused
        allowed = self._accesses[0].pre_fault(op)
        # The obstacle may be an internal slot.
        in_the_way = (each.outcome for each in allowed)
        reached = any(self.internal.reached(op.vcpu, end_of(op, o), 1) for o in in_the_way)
        return () if reached else allowed

    def region(self, op: SetUserMemoryRegion) -> tuple[Allowed, ...]:
        """Return the allowed outcomes of a region call."""
        hva = self._backing.normal(op.userspace_addr)
        decision = refusal_by_argument(op, self._features) or self._decide(op, hva)
        usual = self._outcome(op, hva, decision)
        if decision.rule is not HVA_USER:
            refused = Refused(errno.EINVAL)
            found = self._user_end.allowed(op.userspace_addr, op.memory_size, usual, refused)
            if found != (usual,):
                return found
        if op.fail_nth:
            return (usual, Allowed(Refused(errno.ENOMEM), NO_MEMORY))
        if decision.rule is GUEST_MEMFD_OVERLAP:
            return (usual, Allowed(Refused(errno.EINVAL), decision.rule))
        return (usual,)

    def _decide(self, op: SetUserMemoryRegion, hva: Hva) -> Decision:
        slots = self.spaces[as_id_of(op.slot)]
        present = slots.get(id_of(op.slot))

        def in_the_way(base_gfn: int, npages: int, besides: int) -> Memslot | None:
            return slots.overlapping(base_gfn, npages, besides) or self.internal.overlapping(
                base_gfn, npages
            )

        return decide(op, hva, present, in_the_way, self._memfds.refusal, self._features)

    def _outcome(self, op: SetUserMemoryRegion, hva: Hva, decision: Decision) -> Allowed:
        if decision.errno:
            return Allowed(Refused(decision.errno), decision.rule)
        if decision.change is None:
            return Allowed(Done(), decision.rule)
        return Allowed(Done(), decision.rule, partial(self._apply, op, hva, decision.change))

    def _apply(self, op: SetUserMemoryRegion, hva: Hva, change: Change) -> None:
        as_id, slot_id = as_id_of(op.slot), id_of(op.slot)
        slots = self.spaces[as_id]
        self._had_slots = True
        if change is Change.DELETE:
            slots.delete(slot_id)
            self._memfds.unbind(op.slot)
            self.tracking.changed(op.slot)
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
        self.tracking.begin(new, old)
        self.tracking.changed(op.slot, new, old)
        if op.flags & GUEST_MEMFD and isinstance(op, SetUserMemoryRegion2):
            new.memfd, new.memfd_offset = self._memfds.bind(op), op.guest_memfd_offset
        slots.update(new, change)

    def _is_taken(self, base_gfn: int, npages: int) -> bool:
        return any(slots.overlapping(base_gfn, npages) is not None for slots in self.spaces)

    def churn(self, op: Churn) -> tuple[Allowed, ...]:
        """Return the outcome of a churn if its slots and gpas are free; else it is unknown."""
        slots = self.spaces[0]
        first, count = CHURN_GFNS
        taken = slots.get(op.slot) or slots.get(op.slot + 1)
        if taken or slots.overlapping(first, count, op.slot):
            return ()
        if op.slot + 1 >= self._features.nr_memslots:
            return ()
        return (Allowed(Closed(), NOTHING_USED_UP),)

    def harvest(self, op: HarvestDirtyRing) -> Allowed:
        """Return what a vCPU's dirty ring may hold."""
        ring = self.tracking.ring
        return Allowed(RingPages(), RING_EXACT) if ring is None else ring.harvest(op.vcpu)


def _outcomes(accesses: Accesses, op: Touch | Sweep | Execute) -> tuple[Allowed, ...]:
    match op:
        case Touch():
            return accesses.touch(op)
        case Sweep():
            return accesses.sweep(op)
        case Execute():
            return accesses.execute(op)


def _is_hole(accesses: Accesses, place: tuple[int, int]) -> bool:
    """Whether no slot is at a range of gpas: KVM emulates an instruction that accesses it."""
    return all(piece.kind == "hole" for piece in accesses.pieces(*place))
