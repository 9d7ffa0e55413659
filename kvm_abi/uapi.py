"""The constants of KVM's ABI as enums; they need no compiled code.

Names are the kernel's without their prefix. Source: Documentation/virt/kvm/api.rst.
"""

import errno
from enum import IntEnum, IntFlag

API_VERSION = 12
PAGE_SIZE_BYTES = 4096

# MISC_MAJOR and KVM_MINOR (linux/miscdevice.h), wherever the device is.
DEVICE_NUMBER = (10, 232)

SYNC_X86_REGS = 1  # In kvm_valid_regs and kvm_dirty_regs: the general registers
SYNC_X86_SREGS = 2  # the special registers
APIC_GPA = 0xFEE0_0000
"""The page of the local APIC (APIC_DEFAULT_PHYS_BASE)."""

IOAPIC_GPA = 0xFEC0_0000
IOAPIC_SIZE_BYTES = 0x100
"""The registers of the in-kernel I/O APIC (IOAPIC_MEM_LENGTH)."""

TSS_PAGES = 3
USUAL_TSS_GPA = 0xFFFB_D000
"""Where VMMs usually place the TSS of KVM_SET_TSS_ADDR: after the page of the identity map."""

IDENTITY_MAP_GPA = 0xFFFB_C000
"""The default gpa of the identity map (VMX_EPT_IDENTITY_PAGETABLE_ADDR)."""

DIRTY_LOG_PAGE_OFFSET = 64  # pages into the mmap of a vCPU where its dirty ring starts

_KVMIO = 0xAE
_WRITE = 1  # the kernel reads the argument
_READ = 2  # the kernel writes the argument


def _io(number: int) -> int:
    return _KVMIO << 8 | number


def _ioc(direction: int, number: int, size_bytes: int) -> int:
    return direction << 30 | size_bytes << 16 | _io(number)


class Ioctl(IntEnum):
    """The request numbers. The third argument of `_ioc` is the size of the structure."""

    # Hashing an Enum runs Python code, and every ioctl looks up its request.
    __hash__ = int.__hash__

    GET_API_VERSION = _io(0x00)
    CREATE_VM = _io(0x01)
    CHECK_EXTENSION = _io(0x03)
    GET_VCPU_MMAP_SIZE = _io(0x04)
    GET_SUPPORTED_CPUID = _ioc(_READ | _WRITE, 0x05, 8)

    CREATE_VCPU = _io(0x41)
    GET_DIRTY_LOG = _ioc(_WRITE, 0x42, 16)
    SET_USER_MEMORY_REGION = _ioc(_WRITE, 0x46, 32)
    SET_NR_MMU_PAGES = _io(0x44)
    SET_TSS_ADDR = _io(0x47)
    SET_IDENTITY_MAP_ADDR = _ioc(_WRITE, 0x48, 8)
    SET_USER_MEMORY_REGION2 = _ioc(_WRITE, 0x49, 160)
    CREATE_IRQCHIP = _io(0x60)
    REGISTER_COALESCED_MMIO = _ioc(_WRITE, 0x67, 16)
    UNREGISTER_COALESCED_MMIO = _ioc(_WRITE, 0x68, 16)
    IOEVENTFD = _ioc(_WRITE, 0x79, 64)
    ENABLE_CAP = _ioc(_WRITE, 0xA3, 104)
    CLEAR_DIRTY_LOG = _ioc(_READ | _WRITE, 0xC0, 24)
    RESET_DIRTY_RINGS = _io(0xC7)
    GET_STATS_FD = _io(0xCE)
    SET_MEMORY_ATTRIBUTES = _ioc(_WRITE, 0xD2, 32)
    CREATE_GUEST_MEMFD = _ioc(_READ | _WRITE, 0xD4, 64)

    RUN = _io(0x80)
    GET_REGS = _ioc(_READ, 0x81, 144)
    SET_REGS = _ioc(_WRITE, 0x82, 144)
    GET_SREGS = _ioc(_READ, 0x83, 312)
    SET_SREGS = _ioc(_WRITE, 0x84, 312)
    GET_MSRS = _ioc(_READ | _WRITE, 0x88, 8)
    SET_MSRS = _ioc(_WRITE, 0x89, 8)
    GET_LAPIC = _ioc(_READ, 0x8E, 1024)
    SET_LAPIC = _ioc(_WRITE, 0x8F, 1024)
    SET_CPUID2 = _ioc(_WRITE, 0x90, 8)
    SET_VAPIC_ADDR = _ioc(_WRITE, 0x93, 8)
    GET_MP_STATE = _ioc(_READ, 0x98, 4)
    SET_MP_STATE = _ioc(_WRITE, 0x99, 4)
    GET_VCPU_EVENTS = _ioc(_READ, 0x9F, 64)
    SET_VCPU_EVENTS = _ioc(_WRITE, 0xA0, 64)
    KVMCLOCK_CTRL = _io(0xAD)
    SMI = _io(0xB7)
    PRE_FAULT_MEMORY = _ioc(_READ | _WRITE, 0xD5, 64)

    @property
    def size_bytes(self) -> int:
        """The size of the structure that the request takes (`_IOC_SIZE`); 0 for a value."""
        return self >> 16 & 0x3FFF


TAKEN = (Ioctl.CREATE_VM, errno.EBUSY)
"""The answer of a kernel on whose CPU another hypervisor uses the extensions: none may run here."""


class MemFlag(IntFlag):
    """Flags of a memory region (`KVM_MEM_*`).

    >>> from vmm import MemFlag
    >>> int(MemFlag.LOG_DIRTY_PAGES | MemFlag.READONLY)
    3
    """

    LOG_DIRTY_PAGES = 1 << 0
    READONLY = 1 << 1
    GUEST_MEMFD = 1 << 2


class Cap(IntEnum):
    """Capabilities that concern memslots (`KVM_CAP_*`), for KVM_CHECK_EXTENSION.

    >>> from vmm import Cap, Kvm
    >>> with Kvm.open() as kvm:
    ...     kvm.check_extension(Cap.USER_MEMORY)
    1
    """

    IRQCHIP = 0
    USER_MEMORY = 3
    SET_TSS_ADDR = 4
    EXT_CPUID = 7
    NR_VCPUS = 9
    NR_MEMSLOTS = 10
    MP_STATE = 14
    COALESCED_MMIO = 15
    SYNC_MMU = 16
    DESTROY_MEMORY_REGION_WORKS = 21
    JOIN_MEMORY_REGIONS_WORKS = 30
    IOEVENTFD = 36
    SET_IDENTITY_MAP_ADDR = 37
    INTERNAL_ERROR_DATA = 40
    VCPU_EVENTS = 41
    MAX_VCPUS = 66
    SYNC_REGS = 74
    KVMCLOCK_CTRL = 76
    READONLY_MEM = 81
    ENABLE_CAP_VM = 98
    CHECK_EXTENSION_VM = 105
    DISABLE_QUIRKS = 116
    X86_SMM = 117
    MULTI_ADDRESS_SPACE = 118
    SPLIT_IRQCHIP = 121
    MAX_VCPU_ID = 128
    IMMEDIATE_EXIT = 136
    COALESCED_PIO = 162
    MANUAL_DIRTY_LOG_PROTECT2 = 168
    SMALLER_MAXPHYADDR = 185
    DIRTY_LOG_RING = 192
    BINARY_STATS_FD = 203
    EXIT_ON_EMULATION_FAILURE = 204
    VM_GPA_BITS = 207
    DISABLE_QUIRKS2 = 213
    VM_DISABLE_NX_HUGE_PAGES = 220
    DIRTY_LOG_RING_ACQ_REL = 223
    USER_MEMORY2 = 231
    MEMORY_FAULT_INFO = 232
    MEMORY_ATTRIBUTES = 233
    GUEST_MEMFD = 234
    VM_TYPES = 235
    PRE_FAULT_MEMORY = 236
    GUEST_MEMFD_FLAGS = 244


class ClockMsr(IntEnum):
    """The MSRs that hold the gpas to which KVM writes the time (`MSR_KVM_*`)."""

    WALL_CLOCK_NEW = 0x4B564D00
    SYSTEM_TIME_NEW = 0x4B564D01
    STEAL_TIME = 0x4B564D03


class ParavirtualFeature(IntEnum):
    """Bits of EAX of the CPUID leaf `PARAVIRTUAL_LEAF` (`KVM_FEATURE_*`)."""

    CLOCKSOURCE2 = 3
    STEAL_TIME = 5


PARAVIRTUAL_LEAF = 0x4000_0001


class VmType(IntEnum):
    """Types of a VM on x86 (`KVM_X86_*_VM`), the argument of KVM_CREATE_VM.

    >>> from vmm import Kvm, VmType
    >>> with Kvm.open() as kvm, kvm.create_vm(VmType.DEFAULT_VM) as vm:
    ...     vm.closed
    False
    """

    DEFAULT_VM = 0
    SW_PROTECTED_VM = 1


class Quirk(IntFlag):
    """The quirk that concerns memslots (`KVM_X86_QUIRK_*`), for `Cap.DISABLE_QUIRKS2`."""

    SLOT_ZAP_ALL = 1 << 7


class DirtyLogManual(IntFlag):
    """Arguments of `Cap.MANUAL_DIRTY_LOG_PROTECT2` (`KVM_DIRTY_LOG_*`)."""

    MANUAL_PROTECT_ENABLE = 1 << 0
    INITIALLY_SET = 1 << 1


class GuestMemfdFlag(IntFlag):
    """Flags of KVM_CREATE_GUEST_MEMFD (`GUEST_MEMFD_FLAG_*`)."""

    MMAP = 1 << 0
    INIT_SHARED = 1 << 1


class MemoryAttribute(IntFlag):
    """Attributes for KVM_SET_MEMORY_ATTRIBUTES (`KVM_MEMORY_ATTRIBUTE_*`)."""

    PRIVATE = 1 << 3


class MemoryExitFlag(IntFlag):
    """Flags of KVM_EXIT_MEMORY_FAULT (`KVM_MEMORY_EXIT_FLAG_*`)."""

    PRIVATE = 1 << 3


class IoEventFdFlag(IntFlag):
    """Flags of an ioeventfd (`KVM_IOEVENTFD_FLAG_*`)."""

    DATAMATCH = 1 << 0
    DEASSIGN = 1 << 2


class VcpuEventFlag(IntFlag):
    """Which fields of `struct kvm_vcpu_events` are valid (`KVM_VCPUEVENT_VALID_*`)."""

    SMM = 1 << 3


class ExitReason(IntEnum):
    """Why KVM_RUN returned (`KVM_EXIT_*`), as far as x86 uses them."""

    __hash__ = int.__hash__

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    HYPERCALL = 3
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    SET_TPR = 11
    TPR_ACCESS = 12
    NMI = 16
    INTERNAL_ERROR = 17
    WATCHDOG = 21
    SYSTEM_EVENT = 24
    IOAPIC_EOI = 26
    HYPERV = 27
    X86_RDMSR = 29
    X86_WRMSR = 30
    DIRTY_RING_FULL = 31
    AP_RESET_HOLD = 32
    X86_BUS_LOCK = 33
    XEN = 34
    NOTIFY = 37
    MEMORY_FAULT = 39


class IoDirection(IntEnum):
    """The direction of a port access (`KVM_EXIT_IO_*`)."""

    IN = 0
    OUT = 1


class InternalError(IntEnum):
    """The `suberror` of KVM_EXIT_INTERNAL_ERROR (`KVM_INTERNAL_ERROR_*`)."""

    EMULATION = 1
    SIMUL_EX = 2
    DELIVERY_EV = 3
    UNEXPECTED_EXIT_REASON = 4


class EmulationFlag(IntFlag):
    """Which fields of an emulation failure are valid (`KVM_INTERNAL_ERROR_EMULATION_FLAG_*`)."""

    INSTRUCTION_BYTES = 1 << 0


class SystemEvent(IntEnum):
    """The `type` of KVM_EXIT_SYSTEM_EVENT (`KVM_SYSTEM_EVENT_*`)."""

    SHUTDOWN = 1
    RESET = 2
    CRASH = 3
    WAKEUP = 4
    SUSPEND = 5
    SEV_TERM = 6


class Protection(IntFlag):
    """The protection of a mapping (`PROT_*` of mmap(2)).

    >>> from vmm import HostMapping, Protection
    >>> with HostMapping.anonymous(0x1000) as memory:
    ...     memory.protect(0, 0x1000, Protection.READ)
    """

    NONE = 0
    READ = 1 << 0
    WRITE = 1 << 1
    EXEC = 1 << 2


class MapFlag(IntFlag):
    """How memory is mapped (`MAP_*` of mmap(2), the values of x86)."""

    SHARED = 0x1
    PRIVATE = 0x2
    FIXED = 0x10
    ANONYMOUS = 0x20
    NORESERVE = 0x4000
    POPULATE = 0x8000
    HUGETLB = 0x40000
    FIXED_NOREPLACE = 0x100000


class Advice(IntEnum):
    """Advice about memory (`MADV_*` of madvise(2))."""

    DONTNEED = 4
    REMOVE = 9
    HUGEPAGE = 14
    MERGEABLE = 12
    NOHUGEPAGE = 15
    PAGEOUT = 21
    POPULATE_WRITE = 23
    COLLAPSE = 25
