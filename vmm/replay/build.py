"""Turns the calls of one VM in a trace into a scenario, and into what its kernel answered.

Overlapping userspace ranges of slots become one mapping of the true size. It has the kind of memory
that the trace shows, and the same offset within a 2 MiB page.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice

import msgspec

from vmm.replay.answers import Answers, Summary
from vmm.replay.memfds import needs_private_vm
from vmm.replay.places import OTHER_THAN_MEMFD, Places, guest_for
from vmm.replay.ranges import Ranges
from vmm.replay.steps import Step
from vmm.replay.trace import Call, MemoryChange, Region, Trace, TracedVm, VmCall
from vmm.scenario.features import Features
from vmm.scenario.limits import MAX_MAPPED_PAGES, MAX_OPERATIONS
from vmm.scenario.operations import (
    GUEST_MEMFD,
    PAGE_SIZE_BYTES,
    READONLY,
    AnyOperation,
    ChangeHostMemory,
    CreateGuestMemfd,
    Guest,
    MapGuestMemfd,
    Mapping,
    Place,
    PreFaultMemory,
    Scenario,
    SetIdentityMapAddr,
    SetMemoryAttributes,
    SetTssAddr,
    SetUserMemoryRegion,
    pages_of,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.races import host_change_problem
from vmm.scenario.reached import MAX_PRE_FAULTED_PAGES, all_filled_pages
from vmm.scenario.slots import as_id_of

_NO_ROOM = "the slots leave no free id, or no free 64 KiB below 4 GiB, to a guest"
_NAME = re.compile(r"[^A-Za-z0-9._-]+")


class Replay:
    """A VM of a trace: what its calls ask for and were answered, and a scenario of them.

    The scenario is made when it is asked for; ``features`` are those of the host that will run it.
    """

    def __init__(self, trace: Trace, vm: TracedVm, features: Features | None = None) -> None:
        self.trace = trace
        self.vm = vm
        self._features = features
        self.answers = Answers(trace, vm)
        self.summary = Summary.of(self.answers)

    @cached_property
    def built(self) -> "Built":
        """The scenario, and what belongs to it; it is empty if there are too many calls."""
        return _built(self.trace, self.vm, self.answers, self._features)


class Built(msgspec.Struct, frozen=True):
    """A VM of a trace as a scenario. Each step is the operation of the same index.

    ``notes`` say what was changed or left out; ``obstacle`` says why the scenario cannot be run
    ("": it can).
    """

    scenario: Scenario
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()
    obstacle: str = ""


def scenario_name(trace: Trace, vm: TracedVm) -> str:
    """Return what the scenario of a VM is called."""
    stem = _NAME.sub("-", trace.name.rpartition("/")[2]).strip("-") or "trace"
    return f"{stem[:48]}-vm{vm.name}"


def _built(trace: Trace, vm: TracedVm, answers: Answers, features: Features | None) -> Built:
    name = scenario_name(trace, vm)
    if len(vm.calls) > MAX_OPERATIONS:
        return Built(Scenario(name, ()), obstacle=_too_many(vm))
    builder = _Builder(vm, features, answers)
    steps = tuple(builder.steps())
    regions = [call for call in vm.calls if isinstance(call, Region)]
    guest = guest_for(regions, _kernel_gpas(vm.calls))
    scenario = Scenario(
        name=name,
        why=f"Replayed from {trace.tool}'s trace, from line {vm.line} on.",
        operations=tuple(step.operation for step in steps),
        mappings=builder.places.mappings,
        needs=_needs(vm, regions, features),
        guest=guest or Guest(),
        vm_type=1 if needs_private_vm(vm) else 0,
    )
    if _fills_too_much(scenario):
        scenario = msgspec.structs.replace(scenario, mappings=_of_small_pages(scenario.mappings))
        builder.notes.append(
            "transparent huge pages are small ones here: too many pages would be filled"
        )
    return Built(scenario, steps, tuple(builder.notes), "" if guest is not None else _NO_ROOM)


def _too_many(vm: TracedVm) -> str:
    """Return why so many calls do not run here, and how a part of them does."""
    last = next(islice(vm.calls, MAX_OPERATIONS - 1, None)).line.number
    return (
        f"VM {vm.name} makes {len(vm.calls):,} calls, and {MAX_OPERATIONS:,} run here at most: "
        f"`head -n {last} TRACE | vmm replay -` runs the first of them"
    )


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

    def __init__(self, vm: TracedVm, features: Features | None, answers: Answers) -> None:
        self._vm = vm
        self.places = Places(vm, features)
        self.notes: list[str] = list(self.places.notes)
        if needs_private_vm(vm) and vm.vm_type != 1:
            self.notes.append("the VM is one of type KVM_X86_SW_PROTECTED_VM here")
        self._answers = answers
        self._passed: dict[str, int] = {}
        self._vacated: dict[str, Ranges[bool]] = {}

    def steps(self) -> Iterator[Step]:
        for each in self._answers.with_changes():
            if isinstance(each, MemoryChange):
                yield from self._change(each)
            else:
                yield msgspec.structs.replace(each, operation=self._here(each.operation))
        for what, count in self._passed.items():
            self.notes.append(f"left out: {count} x {what}")

    def _here(self, operation: AnyOperation) -> AnyOperation:
        """Return an operation as it can be carried out here."""
        match operation:
            case SetUserMemoryRegion(userspace_addr=int(address)):
                hva = self.places.hva(address, operation.memory_size)
                return msgspec.structs.replace(operation, userspace_addr=hva)
            case MapGuestMemfd():
                mapping = self.places.showing(operation.name)
                return msgspec.structs.replace(operation, mapping=mapping)
            case PreFaultMemory() if pages_of(operation.size) > MAX_PRE_FAULTED_PAGES:
                size = MAX_PRE_FAULTED_PAGES * PAGE_SIZE_BYTES
                return msgspec.structs.replace(operation, size=size)
        return operation

    def _change(self, call: MemoryChange) -> Iterator[Step]:
        for mapping, offset, size in self.places.parts(call.start, call.size):
            first = -(-offset // PAGE_SIZE_BYTES)
            count = pages_of(offset + size) - first
            if count <= 0:
                continue
            place = Place(mapping.name, first * PAGE_SIZE_BYTES)
            op = ChangeHostMemory(place, count, call.how)
            if call.memfd and self.places.shows(mapping, call):
                continue  # It is what is there already.
            if call.memfd and OTHER_THAN_MEMFD not in self.notes:
                self.notes.append(OTHER_THAN_MEMFD)
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
        begin = op.place.offset
        end = begin + op.pages * PAGE_SIZE_BYTES
        vacated = self._vacated.setdefault(mapping.name, Ranges())
        if op.how == "unmap":
            vacated.put(begin, end, value=True)
        elif op.how == "map":
            vacated.clear(begin, end)
        return op.how not in ("allow", "punch") or not any(vacated.within(begin, end))
