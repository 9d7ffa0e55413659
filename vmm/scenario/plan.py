"""Turns a scenario into the steps to execute: the guest's slot, surveys, looks, the end.

A survey consists of ordinary operations. Where it touches depends on the scenario alone: every page
that any of its regions names, and the pages next to those, before they are mapped, while they are,
and after. So a vCPU has always touched a place before it changes, and the kernel's answers do not
influence what is looked at.
"""

from collections.abc import Iterable, Iterator

import msgspec

from vmm.scenario.features import Features
from vmm.scenario.instructions import INSTRUCTIONS
from vmm.scenario.operations import (
    GUEST_MAPPING,
    GUEST_SIZE_BYTES,
    NO_SLOT,
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    AnyOperation,
    AsId,
    CloseVm,
    CreateIrqchip,
    CreateVcpu,
    EnableCap,
    Execute,
    Inspect,
    Instruction,
    Mapping,
    NewVm,
    Place,
    Race,
    Scenario,
    SetIdentityMapAddr,
    SetNrMmuPages,
    SetTssAddr,
    SetUserMemoryRegion,
    Start,
    Sweep,
    SwitchVm,
    Touch,
    access_end,
    address_spaces,
    guest_count,
    pages_of,
)
from vmm.scenario.requirements import missing
from vmm.scenario.survey import Survey

MAX_BATCH = 1023
"""The most touches in one KVM_RUN: a guest's mailbox holds no more."""


_ACCESSES = (Touch, Sweep, Execute, Race)
_SURVEYED = (SetUserMemoryRegion, Race)
_BEFORE_VCPUS = (
    EnableCap,
    SetNrMmuPages,
    SetTssAddr,
    SetIdentityMapAddr,
    CreateIrqchip,
    CreateVcpu,
)


ANYWHERE = 1 << 52
"""The first gpa that no x86 guest reaches: as a limit of touches it leaves out none."""


class Step(msgspec.Struct, frozen=True, gc=False):
    """One operation to execute, and the index of the scenario's operation that it stems from."""

    origin: int
    operation: AnyOperation


def steps(scenario: Scenario, touch_limit: int) -> Iterator[Step]:
    """Yield what the executor does for a scenario, in order.

    ``touch_limit`` is the first gpa that a guest cannot reach.
    """
    survey = Survey(scenario, touch_limit)
    slots = guest_slots(scenario)
    yield from (Step(-1, slot) for slot in slots)
    new, written = True, False
    vms = _Vms()
    for origin, operation in enumerate(scenario.operations):
        if new and not isinstance(operation, _BEFORE_VCPUS):
            # The first survey makes a vCPU, after which some of _BEFORE_VCPUS are refused.
            yield from (Step(origin - 1, touch) for touch in survey.round())
            new = False
        if isinstance(operation, Touch):  # The most frequent ones.
            yield Step(origin, operation)
            written = written or operation.access == "write"
            continue
        if isinstance(operation, _SURVEYED):
            if written:
                yield Step(origin, Inspect())
                written = False
            yield Step(origin, operation)
            yield from (Step(origin, touch) for touch in survey.round())
            continue
        yield Step(origin, operation)
        if vms.makes_one(operation):
            yield from (Step(origin, slot) for slot in slots)
            new = True
        written = _may_write(operation) or (written and not isinstance(operation, Inspect))
    yield Step(len(scenario.operations), Inspect())
    yield from (Step(len(scenario.operations), closing) for closing in vms.close_others())
    yield Step(len(scenario.operations), CloseVm())
    yield Step(len(scenario.operations), Inspect())


class _Vms:
    """The VMs that exist, and the current one."""

    def __init__(self) -> None:
        self._current = 0
        self._open = {0}

    def makes_one(self, op: AnyOperation) -> bool:
        """Note an operation; return whether it makes a VM, which has no slots yet."""
        is_new = isinstance(op, NewVm)
        if isinstance(op, SwitchVm):
            is_new = op.vm not in self._open
            self._current = op.vm
        if is_new:
            self._open.add(self._current)
        return is_new

    def close_others(self) -> Iterator[AnyOperation]:
        """Yield the operations that close all VMs but the current one."""
        last = self._current
        for vm in sorted(self._open - {last}):
            yield SwitchVm(vm)
            yield CloseVm()
        if len(self._open) > 1:
            yield SwitchVm(last)


def _may_write(op: AnyOperation) -> bool:
    """Whether an operation other than a touch may change host memory: all but looks may."""
    if isinstance(op, Sweep):
        return op.access == "write"
    return not isinstance(op, Inspect)


def batches(plan: Iterable[Step]) -> Iterator[list[Step]]:
    """Yield the steps in order, in groups that are executed and recorded together.

    Consecutive touches of one vCPU in one address space are one KVM_RUN; other steps stand alone.
    """
    batch: list[Step] = []
    before: tuple[int, AsId] | None = None
    for step in plan:
        op = step.operation
        toucher = (op.vcpu, op.as_id) if isinstance(op, Touch) else None
        if batch and (toucher is None or toucher != before or len(batch) == MAX_BATCH):
            yield batch
            batch = []
        batch.append(step)
        before = toucher
    if batch:
        yield batch


def guest_mapping(scenario: Scenario) -> Mapping:
    """Return the host memory that all guests of a scenario live in."""
    return Mapping(GUEST_MAPPING, guest_count(scenario) * pages_of(GUEST_SIZE_BYTES))


def mappings_of(scenario: Scenario) -> tuple[Mapping, ...]:
    """Return all host memory of a scenario, the guests' own last."""
    return (*scenario.mappings, guest_mapping(scenario))


def guest_slots(scenario: Scenario) -> list[SetUserMemoryRegion]:
    """Return the operations that create the memslots which guests live in."""
    if scenario.guest.slot == NO_SLOT:
        return []
    return [
        guest_slot(scenario, number, as_id)
        for as_id in address_spaces(scenario)
        for number in range(guest_count(scenario))
    ]


def guest_slot(scenario: Scenario, number: int = 0, as_id: AsId = 0) -> SetUserMemoryRegion:
    """Return the operation that creates the memslot of a guest in an address space.

    Only races use more than the first guest; the others live below it, one after the other.
    """
    return SetUserMemoryRegion(
        slot=as_id << 16 | scenario.guest.slot + number,
        guest_phys_addr=scenario.guest.gpa - number * GUEST_SIZE_BYTES,
        memory_size=GUEST_SIZE_BYTES,
        userspace_addr=Place(GUEST_MAPPING, number * GUEST_SIZE_BYTES),
    )


def needs_cpuid(scenario: Scenario) -> bool:
    """Return whether vCPUs need KVM_SET_CPUID2.

    They do if a survey or an access may use 64-bit mode, or if KVM's emulator looks up an
    instruction in CPUID.
    """
    return any(_is_looked_up(op) or _is_beyond_real_mode(op) for op in scenario.operations)


def why_not(scenario: Scenario, features: Features) -> str:
    """Return what a scenario lacks on a kernel, as one phrase; empty if it can run there."""
    return missing(scenario, features) or out_of_reach(scenario, features.touch_limit)


def out_of_reach(scenario: Scenario, touch_limit: int) -> str:
    """Return what a scenario's accesses need and guests cannot reach, as a phrase."""
    accesses = (op for op in scenario.operations if isinstance(op, _ACCESSES))
    highest = max(map(access_end, accesses), default=0)
    if highest <= touch_limit:
        if touch_limit <= REAL_MODE_END and any(map(_is_long, scenario.operations)):
            return "guests in 64-bit mode"
        return ""
    return f"a guest that reaches gpa {highest - 1:#x} (here they end at {touch_limit:#x})"


def _is_long(op: AnyOperation) -> bool:
    if isinstance(op, Start):
        return op.tables is not None
    return isinstance(op, Instruction) and op.mode == "long"


def _is_looked_up(op: AnyOperation) -> bool:
    return isinstance(op, Instruction) and INSTRUCTIONS[op.name].needs_cpuid


def _is_beyond_real_mode(op: AnyOperation) -> bool:
    if _is_long(op):
        return True
    if isinstance(op, SetUserMemoryRegion):
        # The page after a region is surveyed, too.
        return op.guest_phys_addr + op.memory_size + PAGE_SIZE_BYTES > REAL_MODE_END
    return access_end(op) > REAL_MODE_END
