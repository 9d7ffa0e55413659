"""Operations as data: what a scenario asks of the kernel and of the guest.

One operation mirrors one system call or one action of a guest or of the host. There is no
"create" and no "move" here: the model derives those from its state. So every operation is legal in
every state, and a failing scenario is minimised by leaving operations out.

Import all operations from here, those of the neighbouring modules, too.

    >>> from vmm import Place, operations
    >>> operations.SetUserMemoryRegion(slot=0, guest_phys_addr=0x10000, memory_size=0x3000,
    ...                                userspace_addr=Place("a")).flags
    0
"""

from typing import Literal

import msgspec

from vmm.scenario.clock_operations import (
    Clock as Clock,
    ClockOperation as ClockOperation,
    KvmclockCtrl as KvmclockCtrl,
    SetClockMsr as SetClockMsr,
)
from vmm.scenario.device_operations import (
    CoalesceMmio as CoalesceMmio,
    CollectMmio as CollectMmio,
    DeviceOperation as DeviceOperation,
    IoEventFd as IoEventFd,
    SetCoalescedRing as SetCoalescedRing,
)
from vmm.scenario.dirty_operations import (
    FIRST_RING_PAGE as FIRST_RING_PAGE,
    RING_ENTRY_BYTES as RING_ENTRY_BYTES,
    ClearDirtyLog as ClearDirtyLog,
    DirtyOperation as DirtyOperation,
    GetDirtyLog as GetDirtyLog,
    HarvestDirtyRing as HarvestDirtyRing,
    MapVcpuPages as MapVcpuPages,
    ResetDirtyRings as ResetDirtyRings,
)
from vmm.scenario.host_operations import (
    FILE_KINDS as FILE_KINDS,
    HUGE_KINDS as HUGE_KINDS,
    HUGE_PAGE_PAGES as HUGE_PAGE_PAGES,
    ChangeHostMemory as ChangeHostMemory,
    HostChangeKind as HostChangeKind,
    HostOperation as HostOperation,
    HostWrite as HostWrite,
    Hva as Hva,
    Inspect as Inspect,
    Mapping as Mapping,
    MappingKind as MappingKind,
    Place as Place,
)
from vmm.scenario.instruction_operation import Instruction as Instruction
from vmm.scenario.instructions import accessed
from vmm.scenario.memfd_operations import (
    ATTRIBUTE_PRIVATE as ATTRIBUTE_PRIVATE,
    MEMFD_INIT_SHARED as MEMFD_INIT_SHARED,
    MEMFD_MMAP as MEMFD_MMAP,
    UNSHARE_RANGE as UNSHARE_RANGE,
    ZERO_RANGE as ZERO_RANGE,
    CloseGuestMemfd as CloseGuestMemfd,
    CreateGuestMemfd as CreateGuestMemfd,
    MapGuestMemfd as MapGuestMemfd,
    MemfdOperation as MemfdOperation,
    PunchGuestMemfd as PunchGuestMemfd,
    ResizeGuestMemfd as ResizeGuestMemfd,
    SetMemoryAttributes as SetMemoryAttributes,
)
from vmm.scenario.operation import AsId as AsId, Hex, Operation
from vmm.scenario.start_operation import SMBASE as SMBASE, Start as Start
from vmm.scenario.vapic_operations import (
    PageMsr as PageMsr,
    SetApic as SetApic,
    SetPageMsr as SetPageMsr,
    SetVapicAddr as SetVapicAddr,
    VapicOperation as VapicOperation,
)
from vmm.scenario.vm_operations import (
    CHURN_GFNS as CHURN_GFNS,
    MAX_VMS as MAX_VMS,
    SLOT_ZAP_ALL as SLOT_ZAP_ALL,
    CapName as CapName,
    Churn as Churn,
    ChurnKind as ChurnKind,
    CloseVm as CloseVm,
    CreateIrqchip as CreateIrqchip,
    CreateVcpu as CreateVcpu,
    Death as Death,
    EnableCap as EnableCap,
    InternalOperation as InternalOperation,
    Lives as Lives,
    NewVm as NewVm,
    PreFaultMemory as PreFaultMemory,
    SetApicBase as SetApicBase,
    SetIdentityMapAddr as SetIdentityMapAddr,
    SetNrMmuPages as SetNrMmuPages,
    SetTssAddr as SetTssAddr,
    SwitchVm as SwitchVm,
    UnmapInternalSlots as UnmapInternalSlots,
    VmOperation as VmOperation,
)

PAGE_SIZE_BYTES = 4096
FORMAT = 1

LOG_DIRTY_PAGES = 1 << 0
READONLY = 1 << 1
GUEST_MEMFD = 1 << 2

GUEST_MAPPING = "guest"
"""The name of the mapping that holds the guest's code and mailbox; a scenario may not use it."""

GUEST_SIZE_BYTES = 64 << 10

REAL_MODE_END = 1 << 32
"""The first gpa that real mode does not reach: for this and higher ones guests use 64-bit mode."""

SMM: Literal[1] = 1
"""The as_id that a vCPU sees in system management mode; outside of SMM it sees as_id 0."""

WINDOW_STEP_BYTES = 1 << 21
"""A guest in 64-bit mode maps gpas in stretches of this size, of which it has a limited number."""

MAX_GPA_BITS = 52
"""The most bits of a gpa on x86."""


class SetUserMemoryRegion(Operation, frozen=True, tag="set_user_memory_region", gc=False):
    """KVM_SET_USER_MEMORY_REGION, field by field.

    ``slot`` holds the as_id in its upper 16 bits. ``caller`` and ``argument`` say who issues the
    call and with what pointer, for the refusals that depend on them. ``fail_nth`` n (1 to 100)
    makes the n-th allocation of the call fail, if the call makes that many.

    >>> from vmm import Place, operations
    >>> operations.SetUserMemoryRegion(0, 0x10000, 0x3000, Place("a")).memory_size // 4096
    3
    """

    slot: int
    guest_phys_addr: Hex = 0
    memory_size: Hex = 0
    userspace_addr: Hva = 0
    flags: Hex = 0
    caller: Literal["owner", "forked-child"] = "owner"
    argument: Literal["readable", "unreadable"] = "readable"
    fail_nth: int = 0


class SetUserMemoryRegion2(
    SetUserMemoryRegion, frozen=True, tag="set_user_memory_region2", gc=False
):
    """KVM_SET_USER_MEMORY_REGION2: the same fields and a place in a guest_memfd.

    ``guest_memfd`` is -1, the name of a guest_memfd (passed as a bad fd while it is not open), or
    the name of a mapping of kind ``memfd``, whose file is not a guest_memfd.

    >>> from vmm import operations
    >>> operations.SetUserMemoryRegion2(0, 0x10000, 0x1000, flags=4, guest_memfd="g").guest_memfd
    'g'
    """

    guest_memfd: Literal[-1] | str = -1
    guest_memfd_offset: Hex = 0


class Touch(Operation, frozen=True, tag="touch", gc=False):
    """The guest reads or writes ``width`` bytes at a gpa, in one instruction.

    For this and every other access, ``as_id`` is the address space it goes to: for 1, the vCPU is
    in system management mode.

    >>> from vmm import operations
    >>> operations.Touch(0x10FFE, "write", width=4, value=0x11223344).gpa // 4096
    16
    """

    gpa: Hex
    access: Literal["read", "write"] = "read"
    width: Literal[1, 2, 4] = 4
    value: Hex = 0
    vcpu: int = 0
    as_id: AsId = 0


class Sweep(Operation, frozen=True, tag="sweep", gc=False):
    """The guest reads or fills ``count`` elements with one string instruction.

    >>> from vmm import operations
    >>> operations.Sweep(0x100000, count=1024, access="write", value=7).width
    4
    """

    gpa: Hex
    count: int
    access: Literal["read", "write"] = "read"
    width: Literal[1, 2, 4] = 4
    value: Hex = 0
    vcpu: int = 0
    as_id: AsId = 0


class Execute(Operation, frozen=True, tag="execute", gc=False):
    """The guest executes the code in a tagged host page, which answers the page's identity.

    ``gpa`` is page aligned.

    >>> from vmm import operations
    >>> operations.Execute(gpa=0x100000, vcpu=1).vcpu
    1
    """

    gpa: Hex
    vcpu: int = 0
    as_id: AsId = 0


HostAction = (
    SetUserMemoryRegion
    | SetUserMemoryRegion2
    | GetDirtyLog
    | ClearDirtyLog
    | HarvestDirtyRing
    | ResetDirtyRings
    | HostWrite
    | ChangeHostMemory
    | CloseGuestMemfd
    | PunchGuestMemfd
    | SetMemoryAttributes
)


class HostThread(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A thread of the host: it repeats its operations ``rounds`` times.

    After each operation it waits until every vCPU has begun and ended ``pause`` windows, so that
    guests see the settled state; with 0 it does not wait. With ``rounds`` 0 it repeats them until
    all threads with a number of rounds have ended.

    >>> from vmm import operations
    >>> operations.HostThread((operations.SetUserMemoryRegion(slot=1),), rounds=10).rounds
    10
    """

    operations: tuple[HostAction, ...]
    rounds: int = 1
    pause: int = 0


class GuestThread(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A thread that runs a vCPU: it repeats a program of touches, or of one execution.

    Between touches the program may pre-fault pages, one at a time.

    One run of the program is a *window*. The n-th window, from 0, writes ``value`` + n, so that all
    writes differ. The thread ends with the last host thread, or after ``windows`` windows. With
    ``migrates`` n the vCPU moves to another thread after every n windows.

    >>> from vmm import operations
    >>> operations.GuestThread((operations.Touch(0x100000),), windows=100).windows
    100
    """

    program: tuple[Touch | Execute | PreFaultMemory, ...]
    windows: int = 20_000
    migrates: int = 0


class Race(Operation, frozen=True, tag="race"):
    """Threads of the host, and vCPUs, that act at the same time.

    The n-th of ``guests`` runs on vCPU n, in SMM for steps whose ``as_id`` is 1. No two host
    threads change the same slot, the same gpas of an address space or the same pages, harvest the
    same ring or reset rings, so that the order of the changes to each of these is known. The thread
    of a vCPU that stops at a full ring harvests it and resets all rings; at the end all rings are
    harvested.

    >>> from vmm import operations
    >>> operations.Race((), (operations.GuestThread((operations.Touch(0),)),)).hosts
    ()
    """

    hosts: tuple[HostThread, ...] = ()
    guests: tuple[GuestThread, ...] = ()


GuestOperation = Touch | Sweep | Execute | Instruction | Start

AnyOperation = (
    SetUserMemoryRegion
    | SetUserMemoryRegion2
    | SetMemoryAttributes
    | PreFaultMemory
    | Race
    | GuestOperation
    | HostOperation
    | DirtyOperation
    | MemfdOperation
    | InternalOperation
    | DeviceOperation
    | ClockOperation
    | VapicOperation
    | VmOperation
)

Survey = Literal["write", "read", "none"]


class Guest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The memslot that the guest itself lives in: an ordinary one, 64 KiB, anywhere below 4 GiB.

    ``slot`` is its id in each address space that guests access. With -1 there is no such slot: only
    those of the scenario exist, and vCPUs only ``execute`` and ``start`` in them.

    >>> from vmm import operations
    >>> operations.Guest(gpa=0xE0000).slot is None
    False
    """

    slot: int = 400
    gpa: Hex = 0xFFFF_0000


NO_SLOT = -1
"""The slot of a scenario without guest."""

SOMEWHERE = Guest()
"""The default guest. `placed` moves this object out of the way, but no equal one."""


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Operations on one VM, and the host memory that they use.

    ``survey`` says what the guest does after every region operation: ``write`` reads and writes
    every page that any operation of the scenario names, and its neighbours; ``read`` only reads
    them (for exact dirty logs); ``none`` does nothing.
    ``vm_type`` 1 is KVM_X86_SW_PROTECTED_VM, which has private memory.
    ``needs`` names features without which the scenario is skipped. With ``smm`` among them, guests
    have a slot in both address spaces, and surveys visit both.

        >>> from vmm import Mapping, Place, Scenario, operations, run_scenario
        >>> create = operations.SetUserMemoryRegion(0, 0x10000, 0x3000, Place("a"))
        >>> move = operations.SetUserMemoryRegion(0, 0x11000, 0x3000, Place("a"))
        >>> scenario = Scenario("move-by-a-page", (create, move), (Mapping("a", 3),))
        >>> run_scenario(scenario).verdict.status.value
        'passed'
    """

    name: str
    operations: tuple[AnyOperation, ...]
    mappings: tuple[Mapping, ...] = ()
    why: str = ""
    source: str = ""
    tags: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    survey: Survey = "write"
    vcpus: int = 1
    guest: Guest = SOMEWHERE
    vm_type: Literal[0, 1] = 0


def guest_count(scenario: Scenario) -> int:
    """Return how many guests run at the same time: each needs a memslot of its own to live in."""
    if Race not in map(type, scenario.operations):  # The quickest test, true of nearly all.
        return 1
    return max(len(op.guests) for op in scenario.operations if isinstance(op, Race))


def address_spaces(scenario: Scenario) -> tuple[AsId, ...]:
    """Return the address spaces that the guests of a scenario access."""
    return (0, SMM) if "smm" in scenario.needs else (0,)


def pages_of(size_bytes: int) -> int:
    """Return the number of whole pages in a size."""
    return size_bytes // PAGE_SIZE_BYTES


def access_end(operation: AnyOperation) -> int:
    """Return the gpa after the last byte that a guest accesses; 0 if it accesses none."""
    match operation:
        case Touch():
            return operation.gpa + operation.width
        case Sweep():
            return operation.gpa + operation.count * operation.width
        case Execute():
            return operation.gpa + PAGE_SIZE_BYTES
        case Instruction():
            return max((gpa + length for gpa, length in accessed(operation)), default=0)
        case Race():
            return max(access_end(op) for guest in operation.guests for op in guest.program)
        case _:
            return 0
