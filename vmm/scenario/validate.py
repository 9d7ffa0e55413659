"""Checks that a scenario is safe to run, before anything is mapped or executed.

A scenario can name its own mappings, address 0 and addresses that no process owns, and its size is
bounded. Everything else about its operations is legal: a refusal is an outcome.
"""

from vmm.scenario.features import NEEDS
from vmm.scenario.limits import A_NAME, MAX_OPERATIONS, MAX_VCPUS, NAME_LENGTH
from vmm.scenario.mappings import check_large_mappings, check_mappings
from vmm.scenario.memfd_operations import MEMFD_INIT_SHARED, MEMFD_MMAP
from vmm.scenario.operationcheck import OperationChecker
from vmm.scenario.operations import (
    GUEST_SIZE_BYTES,
    NO_SLOT,
    REAL_MODE_END,
    AnyOperation,
    ChangeHostMemory,
    Churn,
    CloseGuestMemfd,
    CloseVm,
    CreateGuestMemfd,
    CreateIrqchip,
    Execute,
    HostWrite,
    Inspect,
    Instruction,
    Lives,
    MapGuestMemfd,
    NewVm,
    PunchGuestMemfd,
    Race,
    ResizeGuestMemfd,
    Scenario,
    SetIdentityMapAddr,
    SetMemoryAttributes,
    SetTssAddr,
    Start,
    Sweep,
    SwitchVm,
    Touch,
    UnmapInternalSlots,
    access_end,
    guest_count,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.shown import is_plain
from vmm.scenario.slots import MAX_SLOTS


def validate(scenario: Scenario) -> None:
    """Raise ScenarioError, with the place, unless the scenario is safe to run."""
    if not is_plain(scenario.name, NAME_LENGTH):
        raise ScenarioError(f"$.name: {A_NAME}")
    if not 1 <= scenario.vcpus <= MAX_VCPUS:
        raise ScenarioError(f"$.vcpus: {scenario.vcpus} is not within 1 to {MAX_VCPUS}")
    for need in scenario.needs:
        if need not in NEEDS:
            raise ScenarioError(f"$.needs: {need!r} is none of {', '.join(sorted(NEEDS))}")
    if scenario.vm_type and "sw_protected" not in scenario.needs:
        raise ScenarioError("$.vm_type: 1 needs 'sw_protected' in $.needs")
    _check_guest(scenario)
    check_mappings(scenario.mappings)
    if len(scenario.operations) > MAX_OPERATIONS:
        raise ScenarioError(f"$.operations: more than {MAX_OPERATIONS}")
    check_large_mappings(scenario)
    checker = OperationChecker(scenario)
    closed: set[int] = set()
    vm = 0
    switches = any(isinstance(operation, SwitchVm) for operation in scenario.operations)
    for index, operation in enumerate(scenario.operations):
        problem = checker.problem(operation)
        if vm in closed and not isinstance(operation, _WITHOUT_A_VM):
            problem = ": the VM is closed; begin with another one (new_vm) before this"
        if isinstance(operation, SwitchVm):
            vm = operation.vm
        elif isinstance(operation, CloseVm):
            closed.add(vm)
        elif isinstance(operation, NewVm):
            closed.discard(vm)
        if switches and (scenario.vm_type or isinstance(operation, _OF_ONE_VM)):
            problem = ": this is for scenarios of one VM (switch_vm)"
        if scenario.vm_type and _executes(operation):
            problem = ": zeros could be executed ($.vm_type)"
        if scenario.vm_type and isinstance(operation, CreateGuestMemfd):
            problem = problem or _shared_memfd_problem(operation)
        if problem:
            raise ScenarioError(f"$.operations[{index}]{problem}")


def _shared_memfd_problem(op: CreateGuestMemfd) -> str:
    """Say what is wrong with a guest_memfd in a VM with private memory."""
    if op.flags & (MEMFD_MMAP | MEMFD_INIT_SHARED):
        return ".flags: neither MMAP nor INIT_SHARED can be had ($.vm_type)"
    return ""


def is_valid(scenario: Scenario) -> bool:
    """Whether the scenario is safe to run."""
    try:
        validate(scenario)
    except ScenarioError:
        return False
    return True


def _check_guest(scenario: Scenario) -> None:
    guest = scenario.guest
    if guest.gpa % GUEST_SIZE_BYTES or not 0 <= guest.gpa < REAL_MODE_END:
        raise ScenarioError("$.guest.gpa: a multiple of 0x10000 below 4 GiB is needed")
    if guest.gpa < (guest_count(scenario) - 1) * GUEST_SIZE_BYTES:
        raise ScenarioError("$.guest.gpa: the guests of a race live below it, 64 KiB each")
    if guest.slot == NO_SLOT:
        _check_without_guest(scenario)
        return
    last = MAX_SLOTS - guest_count(scenario)
    if not 0 <= guest.slot <= last:
        raise ScenarioError(f"$.guest.slot: not within 0 to {last}: no kernel has more slots")


def _check_without_guest(scenario: Scenario) -> None:
    """Check that nothing needs a slot for the guest's own code and data."""
    if scenario.survey != "none":
        raise ScenarioError("$.survey: 'none' is needed, as $.guest.slot says that there is none")
    for index, op in enumerate(scenario.operations):
        if isinstance(op, Touch | Sweep | Instruction | Race) or access_end(op) > REAL_MODE_END:
            raise ScenarioError(
                f"$.operations[{index}]: it takes a guest that lives somewhere, and $.guest.slot "
                "says that there is none; execute (below 4 GiB) and start take none"
            )


_OF_ONE_VM = (
    *(CreateGuestMemfd, MapGuestMemfd, SetMemoryAttributes, Churn, UnmapInternalSlots),
    *(SetTssAddr, SetIdentityMapAddr, CreateIrqchip),
)
"""Operations that do not say which VM they are for, or use memory that one VM has to itself."""

_WITHOUT_A_VM = (
    *(CloseVm, NewVm, SwitchVm, Lives, Inspect, HostWrite, ChangeHostMemory),
    *(CloseGuestMemfd, MapGuestMemfd, PunchGuestMemfd, ResizeGuestMemfd),
)
"""Operations that need no VM, so that they may come between ``close_vm`` and ``new_vm``."""


def _executes(op: AnyOperation) -> bool:
    """Whether a guest executes code that it finds in memory of the scenario."""
    if isinstance(op, Race):
        return any(isinstance(step, Execute) for guest in op.guests for step in guest.program)
    return isinstance(op, Execute | Start)
