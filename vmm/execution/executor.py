"""Executes a scenario on the real kernel and records a history, without any expectation.

Consecutive touches by one vCPU share one KVM_RUN, but every operation has its own event.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import cast

from kvm_abi.raw import KvmError, WrongAnswerError
from vmm.execution.callers import CallerDiedError, set_up_refused
from vmm.execution.churn import churn
from vmm.execution.guesttime import GUEST_LIMIT_S, GuestClock, GuestEndlessError
from vmm.execution.hostmemory import HostMemory
from vmm.execution.leftovers import Leftovers
from vmm.execution.lives import live
from vmm.execution.looking import SlotReader, look_at
from vmm.execution.machine import Machine, Shared
from vmm.execution.memfds import MemfdFiles
from vmm.execution.races import run_race
from vmm.kvm.closing import Closing
from vmm.kvm.memory import HostMapping
from vmm.kvm.system import Kvm
from vmm.scenario import operations as ops
from vmm.scenario.endings import DIED, ENDLESS, REFUSED
from vmm.scenario.history import AnyOutcome, Closed, Done, Event, Inspected
from vmm.scenario.kernelslots import KernelSlots
from vmm.scenario.operations import GUEST_SIZE_BYTES, AnyOperation, Scenario, guest_count
from vmm.scenario.plan import Step, batches, steps
from vmm.scenario.reached import reached_pages
from vmm.scenario.slots import as_id_of, id_of

Record = Callable[[Event], None]
Own = Callable[[], AbstractContextManager[None]]


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Recorder:
    """Where an execution records what happens.

    ``record`` gets each event as soon as it is complete. ``begin`` is called before everything that
    may not return, to save what was recorded until then. ``own`` makes a context for this program's
    own work, which time limits do not count.
    """

    record: Record
    begin: Callable[[], None] = _nothing
    own: Own = nullcontext


def execute(
    kvm: Kvm,
    scenario: Scenario,
    touch_limit: int,
    recorder: Recorder,
    guest_limit_s: float = GUEST_LIMIT_S,
) -> str:
    """Execute a scenario, and record its events.

    Returns why it ended early, for an `End`; empty if it did not.

    ``touch_limit`` is the first gpa that a guest cannot reach. A guest without an exit within
    ``guest_limit_s`` ends the scenario. Errors of the harness propagate; the kernel's refusals are
    outcomes, including those of calls that only this program needs.
    """
    clock, record = GuestClock(guest_limit_s), recorder.record
    with recorder.own():
        mappings = HostMemory(scenario.mappings, reached_pages(scenario, touch_limit))
    with (
        mappings as memory,
        HostMapping.anonymous(guest_count(scenario) * GUEST_SIZE_BYTES) as guest,
        clock.ticking(),
    ):
        shared = Shared(kvm, scenario, touch_limit, memory, MemfdFiles(memory), clock)
        under_way: Step | None = None
        try:
            # Closing at the end is a call of the last step's, too.
            with _Execution(shared, guest, recorder.own) as execution:
                for batch in batches(steps(scenario, touch_limit)):
                    under_way = batch[0]
                    recorder.begin()
                    outcomes, looked = execution.perform(batch), execution.looked
                    for step, outcome in zip(batch, outcomes, strict=True):
                        record(Event(step.origin, step.operation, outcome, looked))
                recorder.begin()
        except (KvmError, WrongAnswerError) as error:
            if under_way is None:
                raise
            refused = set_up_refused(error)
            recorder.record(Event(under_way.origin, under_way.operation, refused))
            return f"{REFUSED}{error}"
        except GuestEndlessError as error:
            return f"{ENDLESS}{error}"
        except CallerDiedError as error:
            return f"{DIED}{error}"
    return ""


class _Execution(Closing):
    """A scenario under way; ``NewVm`` replaces its machine."""

    def __init__(self, shared: Shared, guest: HostMapping, own: Own) -> None:
        self._look_at = look_at()
        self._reader: SlotReader | None = None
        self.looked: KernelSlots | None = None
        """The kernel's own slots after the last operation, if it was a region operation."""
        self._shared = shared
        self._own = own
        self._guest = guest
        self._leftovers = Leftovers()
        self._made: Machine | None = None
        self._vm = 0
        self._others: dict[int, Machine | None] = {}
        self._guests: dict[int, HostMapping] = {}

    @property
    def _machine(self) -> Machine:
        """The machine, created when the first operation needs it."""
        if self._made is None:
            self._made = self._new_machine()
        return self._made

    def _new_machine(self) -> Machine:
        return Machine(self._shared, self._guests.get(self._vm, self._guest))

    def _set_region(self, op: ops.SetUserMemoryRegion) -> AnyOutcome:
        machine = self._machine
        if self._look_at is None or self._others:  # Only the newest VM can be looked at.
            return machine.set_region(op)
        self._reader = self._reader or self._look_at(os.getpid())
        as_id = as_id_of(op.slot)
        before = self._reader.generation(as_id)
        outcome = machine.set_region(op)
        if before is not None:
            self.looked = self._reader.slots(as_id, before, id_of(op.slot))
        return outcome

    def close(self) -> None:
        """Close the VMs, and then what they use. Raises `KvmError` if KVM refuses to close one."""
        with ExitStack() as stack:
            for guest in self._guests.values():
                stack.callback(guest.close)
            stack.callback(self._shared.files.close_all)
            for machine in filter(None, (self._made, *self._other_machines)):
                stack.callback(machine.close)

    def _switch(self, vm: int) -> Done:
        """Continue with another VM. Each has its own guest, in its own memory."""
        self._others[self._vm] = self._made
        self._vm, self._made = vm, self._others.pop(vm, None)
        if vm and vm not in self._guests:
            size_bytes = guest_count(self._shared.scenario) * GUEST_SIZE_BYTES
            self._guests[vm] = HostMapping.anonymous(size_bytes)
        return Done()

    @property
    def _other_machines(self) -> tuple[Machine | None, ...]:
        """The machines of the other VMs."""
        return tuple(self._others.values())

    def perform(self, batch: list[Step]) -> list[AnyOutcome]:
        """Return the outcome of each step of a batch."""
        self.looked = None
        first = batch[0].operation
        if isinstance(first, ops.Touch):
            touches = [step.operation for step in batch]
            return self._machine.touch(first.vcpu, cast(list[ops.Touch], touches))
        return [self._perform(first)]

    def _perform(self, op: AnyOperation) -> AnyOutcome:
        match op:  # The most frequent ones come first.
            case ops.SetUserMemoryRegion():
                return self._set_region(op)
            case ops.Inspect():
                with self._own():
                    return Inspected(self._shared.memory.changes())
            case ops.Instruction():
                return self._machine.instruct(op)
        if isinstance(op, ops.HostOperation):
            return self._by_host(op)
        if isinstance(op, ops.DirtyOperation):
            return self._of_dirty_pages(op)
        if isinstance(op, ops.MemfdOperation):
            return self._of_memfd(op)
        if isinstance(op, ops.DeviceOperation):
            return self._of_device(op)
        if isinstance(op, ops.VmOperation):
            return self._of_vm(op)
        if isinstance(op, ops.VapicOperation):
            return self._machine.of_vapic(op)
        match op:
            case ops.SetMemoryAttributes():
                return self._machine.set_memory_attributes(op)
            case ops.PreFaultMemory():
                return self._machine.pre_fault(op)
            case ops.Touch():
                return self._machine.touch(op.vcpu, [op])[0]
            case ops.Sweep():
                return self._machine.sweep(op)
            case ops.Execute():
                return self._machine.execute(op)
            case ops.Start():
                return self._machine.start(op)
            case ops.UnmapInternalSlots():
                return self._machine.unmap_internal_slots()
            case ops.SetClockMsr():
                return self._machine.set_clock(op)
            case ops.KvmclockCtrl():
                return self._machine.pause_clock(op)
            case ops.Race():
                return run_race(op, self._machine, self._shared.memory)
            case _:
                return self._machine.set_up(op)

    def _by_host(self, op: ops.HostWrite | ops.ChangeHostMemory) -> AnyOutcome:
        memory = self._shared.memory
        match op:
            case ops.HostWrite():
                return memory.write(op.place, op.value)
            case ops.ChangeHostMemory():
                return memory.change(op)

    def _of_dirty_pages(self, op: ops.DirtyOperation) -> AnyOutcome:
        match op:
            case ops.GetDirtyLog():
                return self._machine.get_dirty_log(op)
            case ops.ClearDirtyLog():
                return self._machine.clear_dirty_log(op)
            case ops.HarvestDirtyRing():
                return self._machine.harvest_dirty_ring(op)
            case ops.ResetDirtyRings():
                return self._machine.rings.reset()
            case ops.MapVcpuPages():
                return self._machine.map_vcpu_pages(op)

    def _of_memfd(self, op: ops.MemfdOperation) -> AnyOutcome:
        files = self._shared.files
        match op:
            case ops.CreateGuestMemfd():
                return files.create(self._machine.vm, op)
            case ops.CloseGuestMemfd():
                return files.close(op)
            case ops.MapGuestMemfd():
                return files.map(op)
            case ops.PunchGuestMemfd():
                return files.punch(op)
            case ops.ResizeGuestMemfd():
                return files.resize(op)

    def _of_device(self, op: ops.DeviceOperation) -> AnyOutcome:
        match op:
            case ops.CoalesceMmio():
                return self._machine.devices.coalesce(op)
            case ops.IoEventFd():
                return self._machine.devices.ioeventfd(op)
            case ops.SetCoalescedRing():
                return self._machine.set_coalesced_ring(op)
            case ops.CollectMmio():
                return self._machine.collect_mmio()

    def _of_vm(self, op: ops.VmOperation) -> AnyOutcome:
        match op:
            case ops.EnableCap():
                return self._machine.enable_cap(op)
            case ops.SetNrMmuPages():
                return self._machine.set_nr_mmu_pages(op)
            case ops.Lives():
                return live(self._shared.kvm, op)
            case ops.Churn():
                return churn(self._machine.vm, op, self._machine.read_by_a_vcpu)
            case ops.SwitchVm():
                return self._switch(op.vm)
            case ops.NewVm():
                self._close_vm()
                self._reader = None
                self._made = self._new_machine()
                return Done()
            case ops.CloseVm():
                self._close_vm()
                alive = any(
                    other is not None and not other.vm.closed for other in self._other_machines
                )
                held = self._shared.files.are_open
                return Closed(() if alive else self._leftovers.found(held=held))

    def _close_vm(self) -> None:
        self._shared.memory.end_child()
        self._machine.close()
