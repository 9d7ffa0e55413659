"""Turns the calls of one VM in a trace into a scenario, and into what its kernel answered.

Overlapping userspace ranges of slots become one mapping of the true size. It has the kind of memory
that the trace shows, and the same offset within a 2 MiB page.
"""

import errno
import re
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from vmm.replay.memfds import Memfds, memfd_name, needs_private_vm
from vmm.replay.places import Places, guest_for
from vmm.replay.steps import Step
from vmm.replay.trace import Call, MemoryChange, Region, Trace, TracedVm, Unread, VmCall
from vmm.scenario.features import Features
from vmm.scenario.history import Done, Refused, RingsReset, SetUpRefused
from vmm.scenario.limits import MAX_MAPPED_PAGES
from vmm.scenario.operations import (
    GUEST_MEMFD,
    PAGE_SIZE_BYTES,
    READONLY,
    AnyOperation,
    ChangeHostMemory,
    CreateGuestMemfd,
    CreateVcpu,
    Guest,
    Hva,
    MapGuestMemfd,
    Mapping,
    Place,
    PreFaultMemory,
    ResetDirtyRings,
    Scenario,
    SetIdentityMapAddr,
    SetMemoryAttributes,
    SetTssAddr,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    pages_of,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.races import host_change_problem
from vmm.scenario.reached import MAX_PRE_FAULTED_PAGES, all_filled_pages
from vmm.scenario.slots import as_id_of

_NO_ROOM = "the slots leave no free id, or no free 64 KiB below 4 GiB, to a guest"
_NAME = re.compile(r"[^A-Za-z0-9._-]+")


class Replay(msgspec.Struct, frozen=True):
    """A VM of a trace as a scenario. Each step is the operation of the same index.

    ``unread`` are calls for which the trace says too little; ``notes`` say what was changed or left
    out; ``obstacle`` says why the scenario cannot be run ("": it can).
    """

    vm: TracedVm
    scenario: Scenario
    steps: tuple[Step, ...]
    unread: tuple[Unread, ...]
    notes: tuple[str, ...]
    obstacle: str = ""

    @property
    def regions(self) -> int:
        """The number of calls on slots that were read."""
        return sum(isinstance(step.asked, SetUserMemoryRegion) for step in self.steps)

    @property
    def refused(self) -> tuple[Step, ...]:
        """The calls that the kernel of the trace refused."""
        return tuple(step for step in self.steps if isinstance(step.outcome, Refused))


def replay_of(trace: Trace, vm: TracedVm, features: Features | None = None) -> Replay:
    """Return a VM of a trace as a scenario; ``features`` are those of the host that will run it."""
    builder = _Builder(vm, features, Memfds(trace, vm))
    steps = tuple(builder.steps())
    regions = [call for call in vm.calls if isinstance(call, Region)]
    stem = _NAME.sub("-", trace.name.rpartition("/")[2]).strip("-") or "trace"
    guest = guest_for(regions, _kernel_gpas(vm.calls))
    scenario = Scenario(
        name=f"{stem[:48]}-vm{vm.name}",
        why=f"Replayed from {trace.tool}'s trace, from line {vm.line} on.",
        operations=tuple(step.operation for step in steps),
        mappings=builder.places.mappings,
        needs=_needs(vm, regions, features),
        guest=guest or Guest(),
        vm_type=1 if needs_private_vm(vm) else 0,
    )
    unread = tuple(call for call in vm.calls if isinstance(call, Unread))
    if _fills_too_much(scenario):
        scenario = msgspec.structs.replace(scenario, mappings=_of_small_pages(scenario.mappings))
        builder.notes.append(
            "transparent huge pages are small ones here: too many pages would be filled"
        )
    obstacle = "" if guest is not None else _NO_ROOM
    return Replay(vm, scenario, steps, unread, tuple(builder.notes), obstacle)


def _fills_too_much(scenario: Scenario) -> bool:
    """Whether a scenario cannot run since each huge page that it touches is filled."""
    huge = sum(mapping.pages for mapping in scenario.mappings if mapping.kind == "thp")
    if huge <= MAX_MAPPED_PAGES // 2:  # The rest may be filled, too.
        return False
    try:
        return all_filled_pages(scenario) > MAX_MAPPED_PAGES
    except ScenarioError:
        return False


def _of_small_pages(mappings: Iterable[Mapping]) -> tuple[Mapping, ...]:
    return tuple(
        msgspec.structs.replace(each, kind="anonymous") if each.kind == "thp" else each
        for each in mappings
    )


def _needs(vm: TracedVm, regions: list[Region], features: Features | None) -> tuple[str, ...]:
    """Return the features that the calls need; smm only if ``features`` has it."""
    others = [call for call in vm.calls if isinstance(call, VmCall)]
    made = {type(call.operation) for call in others}
    done = {type(call.operation) for call in others if not call.errno}
    flags = 0
    for region in regions:
        flags |= 0 if region.errno else region.flags
    needs = ["readonly_mem"] if flags & READONLY else []
    needs += ["user_memory2"] if any(region.second_form for region in regions) else []
    needs += ["guest_memfd"] if flags & GUEST_MEMFD or CreateGuestMemfd in made else []
    needs += ["memory_attributes"] if SetMemoryAttributes in done else []
    if needs_private_vm(vm):
        needs.append("sw_protected")
    elif features is not None and features.smm and any(as_id_of(each.slot) for each in regions):
        needs.append("smm")
    return tuple(needs)


def _kernel_gpas(calls: Iterable[Call]) -> list[int]:
    made = [call.operation for call in calls if isinstance(call, VmCall)]
    return [op.gpa for op in made if isinstance(op, SetTssAddr | SetIdentityMapAddr)]


class _Builder:
    """Turns calls into steps, in order."""

    def __init__(self, vm: TracedVm, features: Features | None, memfds: Memfds) -> None:
        self._vm = vm
        self.places = Places(vm, features)
        self.notes: list[str] = list(self.places.notes)
        if needs_private_vm(vm) and vm.vm_type != 1:
            self.notes.append("the VM is one of type KVM_X86_SW_PROTECTED_VM here")
        self._memfds = memfds
        self._has_vcpu = False
        self._passed: dict[str, int] = {}
        self._vacated: set[tuple[str, int]] = set()

    def steps(self) -> Iterator[Step]:
        yield from self._memfds.of_other_vms()
        for call in self._vm.calls:
            match call:
                case Region():
                    yield from self._region(call)
                case MemoryChange():
                    yield from self._change(call)
                case VmCall():
                    yield from self._on_vm(call)
                case Unread():
                    pass
        for what, count in self._passed.items():
            self.notes.append(f"left out: {count} x {what}")

    def _on_vm(self, call: VmCall) -> Iterator[Step]:
        """Yield the step of another call on the VM, unless only the first one matters."""
        if isinstance(call.operation, CreateVcpu):
            if self._has_vcpu:
                return
            self._has_vcpu = True
        yield Step(call.line, self._here(call.operation), call.operation, _outcome(call, call.name))

    def _here(self, operation: AnyOperation) -> AnyOperation:
        """Return an operation as it can be carried out here."""
        match operation:
            case MapGuestMemfd():
                mapping = self.places.showing(operation.name)
                return msgspec.structs.replace(operation, mapping=mapping)
            case PreFaultMemory() if pages_of(operation.size) > MAX_PRE_FAULTED_PAGES:
                size = MAX_PRE_FAULTED_PAGES * PAGE_SIZE_BYTES
                return msgspec.structs.replace(operation, size=size)
        return operation

    def _region(self, call: Region) -> Iterator[Step]:
        yield from self._memfds.before(call)
        op = _operation(call, self.places.hva(call))
        name = f"KVM_SET_USER_MEMORY_REGION{'2' if call.second_form else ''}"
        yield Step(call.line, op, _operation(call, call.userspace_addr), _outcome(call, name))

    def _change(self, call: MemoryChange) -> Iterator[Step]:
        for mapping, offset, size in self.places.parts(call.start, call.size):
            first = -(-offset // PAGE_SIZE_BYTES)
            count = pages_of(offset + size) - first
            if count <= 0:
                continue
            place = Place(mapping.name, first * PAGE_SIZE_BYTES)
            op = ChangeHostMemory(place, count, call.how)
            problem = host_change_problem(op, {mapping.name: mapping})
            if problem:
                what = f"{call.how} of {mapping.kind} memory"
                self._passed[what] = self._passed.get(what, 0) + 1
            elif self._may(op, mapping):
                yield Step(call.line, op)

    def _may(self, op: ChangeHostMemory, mapping: Mapping) -> bool:
        """Whether a change is possible: some need pages of a memfd that are still mapped."""
        if mapping.kind != "memfd":
            return True
        first = op.place.offset // PAGE_SIZE_BYTES
        pages = {(mapping.name, page) for page in range(first, first + op.pages)}
        if op.how == "unmap":
            self._vacated |= pages
        elif op.how == "map":
            self._vacated -= pages
        return op.how not in ("allow", "punch") or not pages & self._vacated


def _operation(call: Region, hva: Hva) -> SetUserMemoryRegion:
    caller: Literal["owner", "forked-child"] = "forked-child" if call.is_foreign else "owner"
    argument: Literal["readable", "unreadable"] = "readable" if call.is_readable else "unreadable"
    if not call.second_form:
        return SetUserMemoryRegion(
            call.slot, call.guest_phys_addr, call.memory_size, hva, call.flags, caller, argument
        )
    return SetUserMemoryRegion2(
        call.slot,
        call.guest_phys_addr,
        call.memory_size,
        hva,
        call.flags,
        caller,
        argument,
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
