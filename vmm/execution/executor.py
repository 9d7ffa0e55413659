"""Executes a scenario on the real kernel and records a history, without any expectation.

Consecutive touches by one vCPU share one KVM_RUN, but every operation has its own event.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import assert_never, cast

from kvm_abi.raw import KvmError, WrongAnswerError
from vmm.execution.callers import CallerDiedError, set_up_refused
from vmm.execution.churn import churn
from vmm.execution.guesttime import GUEST_LIMIT_S, GuestClock, GuestEndlessError
from vmm.execution.hostmemory import HostMemory
from vmm.execution.leftovers import Leftovers
from vmm.execution.lives import live
from vmm.execution.looking import Looks, look_at
from vmm.execution.machine import Machine
from vmm.execution.memfds import MemfdFiles
from vmm.execution.races import run_race
from vmm.kvm.memory import HostMapping
from vmm.kvm.system import Kvm
from vmm.scenario.endings import DIED, ENDLESS, REFUSED
from vmm.scenario.history import AnyOutcome, Closed, Done, Event, Inspected
from vmm.scenario.kernelslots import KernelSlots
from vmm.scenario.operations import (
    GUEST_SIZE_BYTES,
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
    Inspect,
    Instruction,
    IoEventFd,
    KvmclockCtrl,
    Lives,
    MapGuestMemfd,
    NewVm,
    PreFaultMemory,
    PunchGuestMemfd,
    Race,
    ResetDirtyRings,
    Scenario,
    SetClockMsr,
    SetIdentityMapAddr,
    SetMemoryAttributes,
    SetTssAddr,
    SetUserMemoryRegion,
    Start,
    Sweep,
    SwitchVm,
    Touch,
    UnmapInternalSlots,
    guest_count,
)
from vmm.scenario.plan import Step, batches, steps
from vmm.scenario.reached import reached_pages
from vmm.scenario.slots import as_id_of, id_of

Record = Callable[[Event], None]
Own = Callable[[], AbstractContextManager[None]]


def execute(
    kvm: Kvm,
    scenario: Scenario,
    touch_limit: int,
    record: Record,
    begin: Callable[[], None],
    guest_limit_s: float = GUEST_LIMIT_S,
    own: Own = nullcontext,
) -> str:
    """Execute a scenario; ``record`` gets each event as soon as it is complete.

    Returns why it ended early, for an `End`; empty if it did not.

    ``touch_limit`` is the first gpa that a guest cannot reach. A guest without an exit within
    ``guest_limit_s`` ends the scenario.

    ``own`` makes a context for this program's own work, which time limits do not count.

    ``begin`` is called before everything that may not return, to save what was recorded until then.
    Errors of the harness propagate; the kernel's refusals are outcomes, including those of calls
    that only this program needs.
    """
    clock = GuestClock(guest_limit_s)
    with own():
        mappings = HostMemory(scenario.mappings, reached_pages(scenario, touch_limit))
    with (
        mappings as memory,
        HostMapping.anonymous(guest_count(scenario) * GUEST_SIZE_BYTES) as guest,
        clock.ticking(),
    ):
        execution = _Execution(kvm, scenario, touch_limit, memory, guest, clock, own)
        try:
            for batch in batches(steps(scenario, touch_limit)):
                begin()
                try:
                    outcomes = execution.perform(batch)
                except (KvmError, WrongAnswerError) as error:
                    record(Event(batch[0].origin, batch[0].operation, set_up_refused(error)))
                    return f"{REFUSED}{error}"
                except GuestEndlessError as error:
                    return f"{ENDLESS}{error}"
                except CallerDiedError as error:
                    return f"{DIED}{error}, in the child that was to make the call"
                for step, outcome in zip(batch, outcomes, strict=True):
                    record(Event(step.origin, step.operation, outcome, execution.looked))
        finally:
            execution.close()
    return ""


class _Execution:
    """A scenario under way; ``NewVm`` replaces its machine."""

    def __init__(
        self,
        kvm: Kvm,
        scenario: Scenario,
        touch_limit: int,
        memory: HostMemory,
        guest: HostMapping,
        clock: GuestClock,
        own: Own,
    ) -> None:
        self._look_at = look_at()
        self._looks: Looks | None = None
        self.looked: KernelSlots | None = None
        """The kernel's own slots after the last operation, if it was a region operation."""
        self._clock = clock
        self._own = own
        self._kvm = kvm
        self._scenario = scenario
        self._touch_limit = touch_limit
        self._memory = memory
        self._guest = guest
        self._files = MemfdFiles(memory)
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
        return Machine(
            self._kvm,
            self._scenario,
            self._memory,
            self._guests.get(self._vm, self._guest),
            self._files,
            self._touch_limit,
            self._clock,
        )

    def _set_region(self, op: SetUserMemoryRegion) -> AnyOutcome:
        machine = self._machine
        if self._look_at is None or self._others:  # Only the newest VM can be looked at.
            return machine.set_region(op)
        self._looks = self._looks or self._look_at(os.getpid())
        as_id = as_id_of(op.slot)
        before = self._looks.generation(as_id)
        outcome = machine.set_region(op)
        if before is not None:
            self.looked = self._looks.slots(as_id, before, id_of(op.slot))
        return outcome

    def close(self) -> None:
        for machine in (self._made, *self._machines):
            if machine is not None:
                machine.close()
        self._files.close_all()
        for guest in self._guests.values():
            guest.close()

    def _switch(self, vm: int) -> Done:
        """Continue with another VM. Each has its own guest, in its own memory."""
        self._others[self._vm] = self._made
        self._vm, self._made = vm, self._others.pop(vm, None)
        if vm and vm not in self._guests:
            size_bytes = guest_count(self._scenario) * GUEST_SIZE_BYTES
            self._guests[vm] = HostMapping.anonymous(size_bytes)
        return Done()

    @property
    def _machines(self) -> tuple[Machine | None, ...]:
        """The machines of the other VMs."""
        return tuple(self._others.values())

    def perform(self, batch: list[Step]) -> list[AnyOutcome]:
        """Return the outcome of each step of a batch."""
        self.looked = None
        first = batch[0].operation
        if isinstance(first, Touch):
            touches = [step.operation for step in batch]
            return self._machine.touch(first.vcpu, cast(list[Touch], touches))
        match first:
            case SetUserMemoryRegion():
                return [self._set_region(first)]
            case Inspect():
                with self._own():
                    return [Inspected(tuple(self._memory.changes()))]
            case Sweep():
                return [self._machine.sweep(first)]
            case Execute():
                return [self._machine.execute(first)]
            case Instruction():
                return [self._machine.instruct(first)]
            case Start():
                return [self._machine.start(first)]
            case GetDirtyLog():
                return [self._machine.get_dirty_log(first)]
            case ClearDirtyLog():
                return [self._machine.clear_dirty_log(first)]
            case EnableCap():
                return [self._machine.enable_cap(first)]
            case HarvestDirtyRing():
                return [self._machine.harvest_dirty_ring(first)]
            case ResetDirtyRings():
                return [self._machine.rings.reset()]
            case Lives():
                return [live(self._kvm, first)]
            case Churn():
                return [churn(self._machine.vm, first, self._machine.read_by_a_vcpu)]
            case CreateGuestMemfd():
                return [self._files.create(self._machine.vm, first)]
            case CloseGuestMemfd():
                return [self._files.close(first)]
            case MapGuestMemfd():
                return [self._files.map(first)]
            case PunchGuestMemfd():
                return [self._files.punch(first)]
            case SetTssAddr() | SetIdentityMapAddr() | CreateIrqchip() | CreateVcpu():
                return [self._machine.set_up(first)]
            case UnmapInternalSlots():
                return [self._machine.unmap_internal_slots()]
            case SetMemoryAttributes():
                return [self._machine.set_memory_attributes(first)]
            case PreFaultMemory():
                return [self._machine.pre_fault(first)]
            case HostWrite():
                return [self._memory.write(first.place, first.value)]
            case ChangeHostMemory():
                return [self._memory.change(first)]
            case Race():
                return [run_race(first, self._machine, self._memory)]
            case CoalesceMmio():
                return [self._machine.devices.coalesce(first)]
            case IoEventFd():
                return [self._machine.devices.ioeventfd(first)]
            case SetClockMsr():
                return [self._machine.set_clock(first)]
            case KvmclockCtrl():
                return [self._machine.pause_clock(first)]
            case CollectMmio():
                return [self._machine.collect_mmio()]
            case SwitchVm():
                return [self._switch(first.vm)]
            case NewVm():
                self._memory.end_child()
                self._machine.close()
                self._looks = None
                self._made = self._new_machine()
                return [Done()]
            case CloseVm():
                self._memory.end_child()
                self._machine.close()
                alive = any(other is not None and not other.vm.closed for other in self._machines)
                return [Closed(() if alive else self._leftovers.found())]
            case _:
                assert_never(first)
