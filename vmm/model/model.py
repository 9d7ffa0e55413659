"""The oracle: which outcomes of an operation the rules allow, and the state after each.

It is written from the documented API and the kernel's source, never from what one host answers. If
the rules allow several outcomes, it returns all, and the observed one is adopted; if it does not
know, it returns none, and the verdict is inconclusive.
"""

import errno
from collections.abc import Container, Iterable, Iterator, Sequence
from functools import partial
from typing import Self

import msgspec

from vmm.model.allowed import HARNESS, Allowed
from vmm.model.apicpage import is_apic_page
from vmm.model.array import MemslotArray
from vmm.model.attributes import set_attributes
from vmm.model.backing import Backing, expected_of
from vmm.model.clocks import CLOCK_WRITES
from vmm.model.contents import Contents, PageKey
from vmm.model.ioapic import may_answer
from vmm.model.memfds import GuestMemfds
from vmm.model.races.calls import HostSide
from vmm.model.races.clocks import RaceClock, are_met
from vmm.model.races.flaw import Flaw
from vmm.model.races.judge import RaceJudge
from vmm.model.races.state import RaceState
from vmm.model.regions import Memslot
from vmm.model.rings import mapped, no_ring_to_reset
from vmm.model.rule import Rule, documented, source
from vmm.model.userend import UserEnd
from vmm.model.vmstate import NOTHING_USED_UP, VmState
from vmm.scenario import operations as ops
from vmm.scenario.clocks import ClockWrite
from vmm.scenario.features import Features
from vmm.scenario.history import Closed, Done, Event, Header, Inspected, Mmio, Raced, Refused
from vmm.scenario.hostpages import HostPages
from vmm.scenario.operations import PAGE_SIZE_BYTES, AnyOperation, Mapping, access_end
from vmm.scenario.plan import mappings_of
from vmm.scenario.reached import Reached, reached_pages

CONTENT = documented(
    "content",
    "memory changes where the guest or the host wrote, and nowhere else; content belongs to "
    "the host mapping",
)
VM_GONE = source(
    "vm-gone",
    "a closed VM leaves nothing behind in the process that made it",
    "103c763c72dd; kvm_arch_destroy_vm",
)


MMU_PAGES = source(
    "mmu-pages",
    "KVM_SET_NR_MMU_PAGES takes 64 and more, else EINVAL; how few page tables KVM may have changes "
    "nothing that a guest sees",
    "kvm_vm_ioctl_set_nr_mmu_pages: KVM_MIN_ALLOC_MMU_PAGES",
)
_LEAST_MMU_PAGES = 64

_BY_A_VCPU = (
    ops.Touch
    | ops.Sweep
    | ops.Execute
    | ops.Instruction
    | ops.Start
    | ops.HarvestDirtyRing
    | ops.PreFaultMemory
)


class Followed(msgspec.Struct, frozen=True, gc=False):
    """The model's answer to an event: the ``allowed`` outcomes, and the ``chosen`` one.

    For a race it has instead a ``flaw``, or the rules that decided it (``raced``).
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
        """Whether the model does not know which outcomes are allowed."""
        return not (self.fits or self.allowed or self.flaw)


class Model:
    """The state of VMs, and of the host memory that they share.

    ``allowed`` changes nothing; the ``adopt`` of a returned outcome changes the state.
    """

    @classmethod
    def of(cls, header: Header) -> Self:
        """Return the model for a history's header, before its first event."""
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
        self._others: dict[int, VmState] = {}
        self._number = 0
        self._reset()

    def _reset(self) -> None:
        """Forget every slot; host memory stays as it is."""
        self._vm = VmState(
            self.features, self._backing, self._contents, self._memfds, self._user_end
        )
        self._memfds.new_vm()
        self._backing.forget_attributes()

    def _close(self) -> None:
        """Close the VM, which loads each vCPU once more."""
        self._vm.clocks.may_write()
        self._reset()

    def _switch(self, number: int) -> None:
        """Continue with another VM, and keep the state of this one."""
        self._others[self._number] = self._vm
        self._number = number
        other = self._others.pop(number, None)
        if other is None:
            self._reset()
        else:
            self._vm = other

    def slots(self, as_id: int = 0) -> MemslotArray[Memslot]:
        """Return the memslots of an address space, from the highest gfn down."""
        return self._vm.spaces[as_id]

    @property
    def spaces(self) -> tuple[MemslotArray[Memslot], ...]:
        """The memslots of each address space, by as_id."""
        return self._vm.spaces

    @property
    def has_ring(self) -> bool:
        """Whether dirty rings replace dirty bitmaps."""
        return self._vm.tracking.ring is not None

    def allowed(self, operation: AnyOperation) -> tuple[Allowed, ...]:
        """Return the outcomes that the rules allow in this state; none if they are unknown."""
        vm = self._vm
        match operation:
            case ops.Touch():
                return vm.touch(operation)
            case ops.SetUserMemoryRegion():
                return vm.region(operation)
            case ops.Inspect():
                return (self._inspect(),)
            case ops.Sweep() | ops.Execute() | ops.Instruction():
                return vm.access(operation)
            case ops.Start():
                return vm.by_vcpu(operation.vcpu, vm.start(operation))
            case ops.PreFaultMemory():
                return vm.by_vcpu(operation.vcpu, vm.pre_fault(operation))
            case ops.SetMemoryAttributes():
                return set_attributes(operation, self.features, self._vm_type, self._backing)
            case ops.Race():
                return ()  # Its outcomes depend on what happened: see ``race``.
        if isinstance(operation, ops.HostOperation):
            return (self._by_host(operation),)
        if isinstance(operation, ops.DirtyOperation):
            return self._of_dirty_pages(operation)
        if isinstance(operation, ops.MemfdOperation):
            return self._memfds.allowed(operation)
        if isinstance(operation, ops.InternalOperation):
            return (vm.internal.allowed(operation),)
        if isinstance(operation, ops.DeviceOperation):
            found = vm.mmio.allowed(operation)
            if isinstance(operation, ops.SetCoalescedRing):
                return vm.by_vcpu(operation.vcpu, found)
            return found
        if isinstance(operation, ops.ClockOperation):
            return vm.by_vcpu(operation.vcpu, vm.clocks.allowed(operation))
        if isinstance(operation, ops.VapicOperation):
            return vm.by_vcpu(operation.vcpu, vm.vapics.allowed(operation))
        return self._of_vm(operation)

    def why_unknown(self, operation: AnyOperation) -> str:
        """Return why an operation has no known outcome; "" if there is no more to say."""
        return self._vm.why_unknown(operation) if isinstance(operation, ops.Start) else ""

    def _by_host(self, op: ops.HostWrite | ops.ChangeHostMemory) -> Allowed:
        match op:
            case ops.HostWrite():
                return self._host_write(op)
            case ops.ChangeHostMemory():
                came, rule = expected_of(op)
                return Allowed(came, rule, partial(self._change_memory, op))

    def _of_dirty_pages(self, op: ops.DirtyOperation) -> tuple[Allowed, ...]:
        tracking = self._vm.tracking
        match op:
            case ops.GetDirtyLog():
                return tracking.get(op)
            case ops.ClearDirtyLog():
                return tracking.clear(op)
            case ops.HarvestDirtyRing():
                return self._vm.by_vcpu(op.vcpu, (self._vm.harvest(op),))
            case ops.ResetDirtyRings():
                ring = tracking.ring
                return no_ring_to_reset(self.features) if ring is None else (ring.reset(),)
            case ops.MapVcpuPages():
                ring = tracking.ring
                found = mapped(op, 0 if ring is None else ring.size_bytes)
                return self._vm.by_vcpu(op.vcpu, found)

    def _of_vm(self, op: ops.VmOperation) -> tuple[Allowed, ...]:
        match op:
            case ops.EnableCap():
                return self._vm.tracking.enable(op)
            case ops.SetNrMmuPages():
                return (_with_page_tables(op),)
            case ops.Lives():
                rule = VM_GONE if op.watch == "process" else NOTHING_USED_UP
                return (Allowed(Closed(), rule),)
            case ops.Churn():
                return self._vm.churn(op)
            case ops.SwitchVm():
                return (Allowed(Done(), HARNESS, partial(self._switch, op.vm)),)
            case ops.NewVm():
                return (Allowed(Done(), HARNESS, self._close),)
            case ops.CloseVm():
                return (Allowed(Closed(), VM_GONE, self._close),)

    def only_looks(self, operation: AnyOperation) -> bool:
        """Whether an operation changes nothing but what later looks, logs and rings may show."""
        if isinstance(operation, ops.Touch):
            return operation.access == "read" and self._vm.is_plain_for(operation.vcpu)
        return isinstance(operation, ops.Inspect | ops.GetDirtyLog | ops.ClearDirtyLog)

    def follow(self, event: Event) -> Followed:
        """Adopt the first allowed outcome that admits the event's own.

        If none does, the state stays as it was, except that a vCPU may now have been used.
        """
        operation, outcome = event.operation, event.outcome
        if isinstance(outcome, Raced) and isinstance(operation, ops.Race):
            return self._follow_race(operation, outcome)
        allowed = self.allowed(operation)
        for choice in allowed:
            # Equal outcomes are always admitted, and comparing is quicker.
            if choice.outcome == outcome or choice.outcome.admits(outcome):
                choice.adopt()
                return Followed(allowed, choice)
        if not allowed and isinstance(operation, _BY_A_VCPU):
            self._vm.internal.use_vcpu(operation.vcpu)
            self._vm.clocks.may_write(operation.vcpu)
            self._vm.vapics.may_run(operation.vcpu)
        return Followed(allowed)

    def prefer(self, operation: AnyOperation) -> tuple[Allowed, ...]:
        """Adopt the first allowed outcome, and return all of them."""
        allowed = self.allowed(operation)
        if allowed:
            allowed[0].adopt()
        return allowed

    def begin_race(self, race: ops.Race) -> tuple[HostSide, tuple[RaceClock, ...]] | None:
        """Return the `HostSide` that applies a race's calls, and the clocks that KVM writes.

        None if the model does not know the outcome of the race.
        """
        for vcpu in range(len(race.guests)):
            self._vm.internal.use_vcpu(vcpu)
        clocks = self._vm.clocks.in_race()
        gfns = [clock.gpa // PAGE_SIZE_BYTES for clock in clocks]
        host = HostSide(race, self._race_state(), gfns)
        maps_ahead = any(
            isinstance(op, ops.PreFaultMemory) for g in race.guests for op in g.program
        )
        if (
            host.unclear
            or are_met(race, clocks)
            or (maps_ahead and not self.features.pre_fault)
            or self._is_unknown(race, clocks)
        ):
            return None
        return host, clocks

    def end_race(
        self,
        written: Iterable[tuple[str, int]],
        emptied: Iterable[PageKey],
        clocks: Iterable[ClockWrite] = (),
        size: int = 4,
    ) -> None:
        """Go to the state after a race that was not run, once its calls are applied.

        ``written`` are the words that are unknown then, by mapping and offset; ``emptied`` are
        the pages that are zeros now, ``clocks`` what KVM may have written.
        """
        for mapping, page in emptied:
            if self._backing.store(mapping, page)[0] != self._backing.file_of(mapping):
                self._contents.hide(mapping, page)
            else:
                self._contents.write(mapping, page * PAGE_SIZE_BYTES, bytes(PAGE_SIZE_BYTES))
        for mapping, offset in written:
            page = offset // PAGE_SIZE_BYTES
            if self._backing.store(mapping, page)[0] == self._backing.file_of(mapping):
                self._contents.blur(mapping, offset, size)
        self._contents.forget_changes()
        for write in clocks:
            self._contents.kernel_writes(write, surely=False)
        for slot in (slot for space in self._vm.spaces for slot in space):
            if slot.dirty is not None:
                slot.dirty, slot.perhaps = set(), set(range(slot.npages))

    def _follow_race(self, race: ops.Race, outcome: Raced) -> Followed:
        for vcpu in range(len(race.guests)):
            self._vm.internal.use_vcpu(vcpu)
        clocks = self._vm.clocks.in_race()
        judge = RaceJudge(race, self._race_state(), clocks)
        is_blurred = self._contents.is_blurred
        flaw = judge.flaw(outcome)
        if judge.unknown or is_blurred or self._is_unknown(race, clocks):
            return Followed()
        return Followed(flaw=flaw, raced=frozenset() if flaw else frozenset(judge.rules))

    def _race_state(self) -> RaceState:
        vm = self._vm
        return RaceState(vm.spaces, self._backing, self._contents, vm.tracking, self.allowed)

    def _is_unknown(self, race: ops.Race, clocks: Sequence[RaceClock]) -> bool:
        """Whether the model does not know what becomes of the VM's rings or devices in a race."""
        has_clocks_and_ring = bool(clocks) and self._vm.tracking.ring is not None
        internal = self._vm.internal
        is_met = internal.irqchip and (bool(internal.apic_bases) or _meets_device(race))
        takes = self._vm.mmio.may_take(tuple(_written(race)))
        return has_clocks_and_ring or is_met or takes or self._vm.vapics.exist

    def _inspect(self) -> Allowed:
        hidden = self._backing.absent
        changes = self._contents.changes(hidden)
        room, due = self._contents.room(hidden), self._contents.due(hidden)
        is_clocks = bool(due) or (bool(room) and not self._contents.is_blurred)
        rule = CLOCK_WRITES if is_clocks else self._vm.vapics.wrote or CONTENT
        outcome = Inspected(changes, room, due)
        return Allowed(outcome, rule, partial(self._inspected, hidden))

    def _inspected(self, hidden: Container[PageKey]) -> None:
        self._contents.forget_changes(hidden)
        self._vm.vapics.wrote = None
        if self._vm.tracking.ring is not None:
            self._vm.tracking.ring.rest()

    def _change_memory(self, op: ops.ChangeHostMemory) -> None:
        self._backing.changed(op)
        self._contents.change(op)

    def _host_write(self, op: ops.HostWrite) -> Allowed:
        mapping, offset = op.place.mapping, op.place.offset
        if self._backing.locate(op.place, 0) is None:
            return Allowed(Refused(errno.EFAULT), HARNESS)
        data = op.value.to_bytes(4, "little")
        return Allowed(Done(), HARNESS, partial(self._contents.write, mapping, offset, data))


def _with_page_tables(op: ops.SetNrMmuPages) -> Allowed:
    if op.pages < _LEAST_MMU_PAGES:
        return Allowed(Refused(errno.EINVAL), MMU_PAGES)
    return Allowed(Done(), MMU_PAGES)


def _written(race: ops.Race) -> Iterator[Mmio]:
    """Yield what guests of a race write, as if no slot were there."""
    for guest in race.guests:
        for op in guest.program:
            if isinstance(op, ops.Touch) and op.access == "write":
                yield Mmio(op.gpa, True, bytes(op.width))


def _meets_device(race: ops.Race) -> bool:
    """Whether a guest of a race may access an in-kernel interrupt controller."""
    return any(
        may_answer(op.gpa, end) or is_apic_page(op.gpa, end)
        for guest in race.guests
        for op in guest.program
        if (end := access_end(op))
    )
