"""What the calls of a VM in a trace ask for, and what their kernel answered."""

import errno
from collections.abc import Iterator
from typing import Literal

import msgspec

from vmm.replay.memfds import Memfds, memfd_name
from vmm.replay.steps import Step
from vmm.replay.trace import Line, MemoryChange, Region, Trace, TracedVm, Unread, VmCall
from vmm.scenario.history import Done, Refused, RingsReset, SetUpRefused
from vmm.scenario.operations import (
    GUEST_MEMFD,
    CreateGuestMemfd,
    CreateVcpu,
    ResetDirtyRings,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
)

_SHOWN = 5
"""How many calls of a kind are shown."""


class Answers:
    """The steps of a VM, any number of them; their operations have the addresses of the trace.

    They can be iterated over repeatedly.
    """

    def __init__(self, trace: Trace, vm: TracedVm) -> None:
        self._trace = trace
        self.vm = vm

    def __iter__(self) -> Iterator[Step]:
        return (each for each in self.with_changes() if isinstance(each, Step))

    def with_changes(self) -> Iterator[Step | MemoryChange]:
        """Yield the steps, and between them what the VMM did to the memory of slots."""
        memfds = Memfds(self._trace, self.vm)
        has_vcpu = False
        yield from memfds.of_other_vms()
        for call in self.vm.calls:
            match call:
                case Region():
                    yield from memfds.before(call)
                    name = f"KVM_SET_USER_MEMORY_REGION{'2' if call.second_form else ''}"
                    yield Step(call.line, _operation(call), _outcome(call, name))
                case VmCall():
                    is_vcpu = isinstance(call.operation, CreateVcpu)
                    if not (is_vcpu and has_vcpu):  # Only the first one matters.
                        yield Step(call.line, call.operation, _outcome(call, call.name))
                    has_vcpu |= is_vcpu
                case MemoryChange():
                    yield call
                case Unread():
                    pass


class Summary(msgspec.Struct):
    """How many calls a VM makes, and the first ones that are to be shown.

    ``regions`` are calls on slots, ``refused`` and ``unread`` any. ``unread_change`` is the first
    call that may have changed slots, and for which the trace says too little; ``guessed`` the line
    of the first one that is taken for a forked child's by its answer alone.
    """

    regions: int = 0
    refused: int = 0
    first_refused: list[Step] = []
    unread: int = 0
    first_unread: list[Unread] = []
    unread_change: Unread | None = None
    guessed: Line | None = None

    @classmethod
    def of(cls, answers: Answers) -> "Summary":
        """Return the summary of a VM's calls."""
        summary = cls()
        for step in answers:
            summary.regions += isinstance(step.operation, SetUserMemoryRegion)
            if isinstance(step.outcome, Refused):
                summary.refused += 1
                summary.first_refused += [step] if summary.refused <= _SHOWN else []
        for call in answers.vm.calls:
            if isinstance(call, Unread):
                summary.unread += 1
                summary.first_unread += [call] if summary.unread <= _SHOWN else []
                if call.may_change:
                    summary.unread_change = summary.unread_change or call
            elif isinstance(call, Region) and call.is_guessed:
                summary.guessed = summary.guessed or call.line
        return summary


def _operation(call: Region) -> SetUserMemoryRegion:
    caller: Literal["owner", "forked-child"] = "forked-child" if call.is_foreign else "owner"
    argument: Literal["readable", "unreadable"] = "readable" if call.is_readable else "unreadable"
    place = (call.slot, call.guest_phys_addr, call.memory_size, call.userspace_addr)
    region = (*place, call.flags, caller, argument)
    if not call.second_form:
        return SetUserMemoryRegion(*region)
    return SetUserMemoryRegion2(
        *region,
        guest_memfd=memfd_name(call) if call.flags & GUEST_MEMFD else -1,
        guest_memfd_offset=call.guest_memfd_offset,
    )


def _outcome(call: Region | VmCall, name: str) -> Done | Refused | RingsReset | SetUpRefused:
    if call.errno:
        return Refused(call.errno)
    operation = call.operation if isinstance(call, VmCall) else None
    if isinstance(operation, ResetDirtyRings):
        # What was harvested before is not in a trace: the kernel is taken at its word.
        return RingsReset(call.returned, call.returned)
    opens = isinstance(operation, CreateGuestMemfd | CreateVcpu)
    # If the others succeed, they return 0 and nothing else.
    return SetUpRefused(name, answer=str(call.returned)) if call.returned and not opens else Done()


NO_MEMORY = (errno.ENOMEM, errno.EINTR, errno.EMFILE, errno.ENFILE)
"""Errors that say nothing about a kernel's rules, only about its host."""
