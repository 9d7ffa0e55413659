"""Operations and slots in words."""

from collections.abc import Iterable

from vmm.scenario import operations as ops
from vmm.scenario.hostpages import CHANGES
from vmm.scenario.instructions import INSTRUCTIONS
from vmm.scenario.operations import (
    ATTRIBUTE_PRIVATE,
    GUEST_MEMFD,
    LOG_DIRTY_PAGES,
    MEMFD_INIT_SHARED,
    MEMFD_MMAP,
    READONLY,
    AnyOperation,
    Hva,
    Place,
)
from vmm.scenario.paging import PagingKind
from vmm.scenario.shown import shown
from vmm.scenario.vapic_operations import enabling_bits

_FLAGS = (
    (LOG_DIRTY_PAGES, "LOG_DIRTY_PAGES"),
    (READONLY, "READONLY"),
    (GUEST_MEMFD, "GUEST_MEMFD"),
)
_CHURNS: dict[ops.ChurnKind, str] = {
    "changes": "slot {} is created, logged, moved, refused and deleted",
    "refused-creations": "refused creations of slot {} and the next",
    "refused-moves": "refused moves of slot {} and the next",
    "refused-bindings": "refused bindings of slot {} and the next",
    "refused-eventfds": "an ioeventfd, and refused ones for the same writes",
    "failing-changes": "changes of slot {} after each of their allocations failed",
}
_PAGING: dict[PagingKind, str] = {
    "long": "page tables",
    "pae": "page tables of PAE",
    "two-level": "page tables of two levels",
}
_MEMFD_FLAGS = ((MEMFD_MMAP, "MMAP"), (MEMFD_INIT_SHARED, "INIT_SHARED"))
_ATTRIBUTES = ((ATTRIBUTE_PRIVATE, "PRIVATE"),)
_CLOCK_MSRS = {
    "wall_clock": "WALL_CLOCK_NEW",
    "system_time": "SYSTEM_TIME_NEW",
    "steal_time": "STEAL_TIME",
}
_PAGE_MSRS = {
    "pv_eoi": "MSR_KVM_PV_EOI_EN",
    "assist_page": "HV_X64_MSR_VP_ASSIST_PAGE",
    "async_pf": "MSR_KVM_ASYNC_PF_EN",
}
_MANY = 8


def flags(value: int, names_of: tuple[tuple[int, str], ...] = _FLAGS) -> str:
    """Return flags by name, joined by ``|``; bits without a name in hexadecimal."""
    names = [name for bit, name in names_of if value & bit]
    rest = value & ~sum(bit for bit, _ in names_of)
    if rest or not names:
        names.append(hex(rest) if rest else "0")
    return "|".join(names)


def hva(value: Hva) -> str:
    """Return a userspace address: ``mapping+offset``, or a number."""
    if isinstance(value, Place):
        return f"{shown(value.mapping)}+{value.offset:#x}"
    return f"{value:#x}"


def counted(number: int, noun: str, several: str = "") -> str:
    """Return a number of things: 1 page, 2 pages; ``several`` is an irregular plural."""
    return f"{number} {noun if number == 1 else several or noun + 's'}"


def slot_number(value: int) -> str:
    """Return a slot id, with its as_id if that is not 0."""
    as_id, slot_id = value >> 16, value & 0xFFFF
    return f"{slot_id} of as_id {as_id}" if as_id else str(slot_id)


def operation(op: AnyOperation) -> str:
    """Return one line that describes an operation."""
    if isinstance(op, ops.GuestOperation):
        return _by_guest(op)
    if isinstance(op, ops.HostOperation):
        return _by_host(op)
    if isinstance(op, ops.DirtyOperation):
        return _of_dirty_pages(op)
    if isinstance(op, ops.MemfdOperation):
        return _of_memfd(op)
    if isinstance(op, ops.InternalOperation):
        return _of_internal_slots(op)
    if isinstance(op, ops.DeviceOperation):
        return _of_device(op)
    if isinstance(op, ops.ClockOperation):
        return _of_clock(op)
    if isinstance(op, ops.VapicOperation):
        return _of_vapic(op)
    if isinstance(op, ops.VmOperation):
        return _of_vm(op)
    match op:
        case ops.SetUserMemoryRegion():
            return _region(op)
        case ops.SetMemoryAttributes():
            given = flags(op.attributes, _ATTRIBUTES)
            where = f"address={op.address:#x}, size={op.size:#x}"
            return f"KVM_SET_MEMORY_ATTRIBUTES({where}, attributes={given}, flags={op.flags:#x})"
        case ops.PreFaultMemory():
            where = f"gpa={op.gpa:#x}, size={op.size:#x}, flags={op.flags:#x}"
            return f"{_vcpu(op.vcpu)}: KVM_PRE_FAULT_MEMORY({where})"
        case ops.Race():
            hosts, guests = counted(len(op.hosts), "host thread"), counted(len(op.guests), "vCPU")
            return f"{hosts} and {guests} act at the same time"


def _by_guest(op: ops.GuestOperation) -> str:
    match op:
        case ops.Touch():
            what = f"reads {counted(op.width, 'byte')}" if op.access == "read" else _writing(op)
            return f"{_vcpu(op.vcpu)} {what} at gpa {op.gpa:#x}{_mode(op.as_id)}"
        case ops.Sweep():
            what = "reads" if op.access == "read" else f"fills with {op.value:#x}"
            size = f"{op.count} x {op.width} bytes"
            where = f"from gpa {op.gpa:#x}{_mode(op.as_id)}"
            return f"{_vcpu(op.vcpu)} {what} {size} {where} (string instruction)"
        case ops.Execute():
            return f"{_vcpu(op.vcpu)} executes the page at gpa {op.gpa:#x}{_mode(op.as_id)}"
        case ops.Instruction():
            return _instruction(op)
        case ops.Start():
            return _start(op)


def _by_host(op: ops.HostOperation) -> str:
    match op:
        case ops.HostWrite():
            return f"host writes {op.value:#x} to {hva(op.place)}"
        case ops.ChangeHostMemory():
            source = "" if op.source is None else f" ({hva(op.source)})"
            call = f"{CHANGES[op.how].call}{source}"
            return f"{call} on {counted(op.pages, 'page')} at {hva(op.place)}"
        case ops.Inspect():
            return "host looks for changed bytes in its mappings"


def _of_dirty_pages(op: ops.DirtyOperation) -> str:
    match op:
        case ops.GetDirtyLog():
            pointer = ", dirty_bitmap=<unwritable>" if op.bitmap == "unwritable" else ""
            return f"KVM_GET_DIRTY_LOG(slot={slot_number(op.slot)}{pointer})"
        case ops.ClearDirtyLog():
            return _clear(op)
        case ops.HarvestDirtyRing():
            return f"host harvests the dirty ring of {_vcpu(op.vcpu)}"
        case ops.ResetDirtyRings():
            return "KVM_RESET_DIRTY_RINGS()"
        case ops.MapVcpuPages():
            how = f"{op.sharing}{', executable' if op.executable else ''}"
            where = f"{counted(op.pages, 'page')} of {_vcpu(op.vcpu)}'s file from page"
            return f"host maps {where} {op.first_page} on ({how})"


def _of_memfd(op: ops.MemfdOperation) -> str:
    match op:
        case ops.CreateGuestMemfd():
            given = flags(op.flags, _MEMFD_FLAGS)
            return f"{shown(op.name)} = KVM_CREATE_GUEST_MEMFD(size={op.size:#x}, flags={given})"
        case ops.CloseGuestMemfd():
            return f"close the guest_memfd {shown(op.name)}"
        case ops.MapGuestMemfd():
            names = f"{shown(op.name)} over {shown(op.mapping)}"
            return f"host maps the guest_memfd {names} ({op.sharing})"
        case ops.PunchGuestMemfd():
            named = {"PUNCH_HOLE": op.punch, "KEEP_SIZE": op.keep_size}
            named[f"{op.others:#x}"] = bool(op.others)
            mode = "|".join(name for name, is_set in named.items() if is_set) or "0"
            where = f"offset={op.offset:#x}, len={op.size:#x}"
            return f"fallocate({shown(op.name)}, {mode}, {where})"
        case ops.ResizeGuestMemfd():
            return f"ftruncate({shown(op.name)}, {op.size:#x})"


def _of_internal_slots(op: ops.InternalOperation) -> str:
    match op:
        case ops.SetTssAddr():
            return f"KVM_SET_TSS_ADDR({op.gpa:#x})"
        case ops.SetIdentityMapAddr():
            return f"KVM_SET_IDENTITY_MAP_ADDR({op.gpa:#x})"
        case ops.CreateIrqchip():
            return "KVM_CREATE_IRQCHIP()"
        case ops.CreateVcpu():
            return f"KVM_CREATE_VCPU({op.vcpu})"
        case ops.SetApicBase():
            return f"{_vcpu(op.vcpu)}: KVM_SET_SREGS(apic_base={op.gpa:#x})"
        case ops.UnmapInternalSlots():
            return "munmap on the memory of all internal slots"


def _of_device(op: ops.DeviceOperation) -> str:
    match op:
        case ops.CoalesceMmio():
            call = "REGISTER" if op.on else "UNREGISTER"
            ports = f", pio={int(op.pio)}" if op.pio else ""
            return f"KVM_{call}_COALESCED_MMIO(addr={op.gpa:#x}, size={op.size:#x}{ports})"
        case ops.IoEventFd():
            match = "" if op.match is None else f", datamatch={op.match:#x}"
            off = "" if op.on else ", DEASSIGN"
            where = f"addr={op.gpa:#x}, len={op.length}{match}{off}"
            return f"KVM_IOEVENTFD({where}) for {shown(op.name)}"
        case ops.CollectMmio():
            return "host collects coalesced writes, and counts the signals of eventfds"
        case ops.SetCoalescedRing():
            return f"host lets the ring of coalesced writes go on at {op.index}"


def _of_clock(op: ops.ClockOperation) -> str:
    match op:
        case ops.SetClockMsr():
            enable = " | 1" if op.on and op.clock != "wall_clock" else ""
            data = f"{op.gpa:#x}{enable}" if op.on else "0"
            return f"{_vcpu(op.vcpu)}: KVM_SET_MSRS(MSR_KVM_{_CLOCK_MSRS[op.clock]} = {data})"
        case ops.KvmclockCtrl():
            return f"{_vcpu(op.vcpu)}: KVM_KVMCLOCK_CTRL()"


def _of_vapic(op: ops.VapicOperation) -> str:
    vcpu = _vcpu(op.vcpu)
    match op:
        case ops.SetVapicAddr():
            return f"{vcpu}: KVM_SET_VAPIC_ADDR({op.gpa:#x})"
        case ops.SetApic():
            priority = "" if op.priority is None else f", TPR={op.priority:#x}"
            enabled = "enabled" if op.enabled else "disabled"
            return f"{vcpu}: KVM_SET_LAPIC({enabled} by software{priority})"
        case ops.SetPageMsr():
            data = f"{op.gpa:#x} | {enabling_bits(op.msr)}" if op.on else "0"
            return f"{vcpu}: KVM_SET_MSRS({_PAGE_MSRS[op.msr]} = {data})"


def _of_vm(op: ops.VmOperation) -> str:
    match op:
        case ops.EnableCap():
            flags = f", flags={op.flags:#x}" if op.flags else ""
            return f"KVM_ENABLE_CAP(cap=KVM_CAP_{op.cap}{flags}, args[0]={op.argument:#x})"
        case ops.SetNrMmuPages():
            return f"KVM_SET_NR_MMU_PAGES({op.pages})"
        case ops.Lives():
            looking = ", looking at the kernel's memory" if op.watch == "kernel" else ""
            how = op.death.replace("-", " ")
            if op.times == 1:
                return f"another VM lives, and is {how}{looking}"
            return f"{op.times} other VMs live, one after the other, and are {how}{looking}"
        case ops.Churn():
            slot = slot_number(op.slot)
            return f"{_CHURNS[op.what].format(slot)}, {op.times} times"
        case ops.SwitchVm():
            return f"continue with VM {op.vm}"
        case ops.NewVm():
            return "close the VM and make a new one"
        case ops.CloseVm():
            return "close the VM"


def _start(op: ops.Start) -> str:
    pending = " with an SMI pending" if op.smi else ""
    if op.smbase != ops.SMBASE:
        pending += f" and SMBASE {op.smbase:#x}"
    where = f"{_vcpu(op.vcpu)}{pending} starts at {op.address:#x}"
    if op.interrupts is not None:
        where += f", with interrupts at {op.interrupts:#x} and a stack at {op.stack:#x},"
    if op.tables is None:
        return f"{where} in real mode{_mode(op.as_id)}"
    given = [
        f"{name}={value:#x}" for name, value in (("data", op.data), ("value", op.value)) if value
    ]
    details = f" ({', '.join(given)})" if given else ""
    kind = _PAGING[op.paging]
    return f"{where} with {kind} at gpa {op.tables:#x}{_mode(op.as_id)}{details}"


def _instruction(op: ops.Instruction) -> str:
    fields = (
        *(("value", op.value), ("compare", op.compare)),
        *(("value_high", op.value_high), ("compare_high", op.compare_high)),
    )
    given = [f"{name}={number:#x}" for name, number in fields if number]
    row = INSTRUCTIONS.get(op.name)
    if row is not None and row.copies:
        given.append(f"from gpa {op.source:#x}")
    if row is not None and row.repeats:
        given.append(f"{counted(op.count, 'time')}{' downward' if op.down else ''}")
    details = f" ({', '.join(given)})" if given else ""
    where = f"{counted(op.width, 'byte')} at gpa {op.gpa:#x}{_mode(op.as_id)}"
    is_long = " in 64-bit mode" if op.mode == "long" else ""
    verb = "has KVM emulate" if op.forced else "executes"
    return f"{_vcpu(op.vcpu)} {verb} {shown(op.name)} on {where}{is_long}{details}"


def _region(op: ops.SetUserMemoryRegion) -> str:
    second = isinstance(op, ops.SetUserMemoryRegion2)
    memfd = (
        f", guest_memfd={shown(str(op.guest_memfd))}, guest_memfd_offset={op.guest_memfd_offset:#x}"
        if isinstance(op, ops.SetUserMemoryRegion2)
        else ""
    )
    notes: list[str] = []
    if op.caller != "owner":
        notes.append(op.caller)
    if op.argument != "readable":
        notes.append("unreadable argument")
    if op.fail_nth:
        notes.append(f"allocation {op.fail_nth} fails")
    return (
        f"KVM_SET_USER_MEMORY_REGION{'2' if second else ''}(slot={slot_number(op.slot)}, "
        f"flags={flags(op.flags)}, guest_phys_addr={op.guest_phys_addr:#x}, "
        f"memory_size={op.memory_size:#x}, userspace_addr={hva(op.userspace_addr)}{memfd})"
        + (f" [{', '.join(notes)}]" if notes else "")
    )


def _clear(op: ops.ClearDirtyLog) -> str:
    bits = "all" if op.pages == "all" else f"{{{ranges(op.pages)}}}"
    bitmap = bits if op.bitmap == "readable" else "<unreadable>"
    return (
        f"KVM_CLEAR_DIRTY_LOG(slot={slot_number(op.slot)}, first_page={op.first_page}, "
        f"num_pages={op.num_pages}, dirty_bitmap={bitmap})"
    )


def ranges(pages: Iterable[int]) -> str:
    """Return ascending numbers with consecutive ones as ranges: 0-3, 7."""
    runs: list[list[int]] = []
    for page in pages:
        if runs and runs[-1][1] == page - 1:
            runs[-1][1] = page
        else:
            runs.append([page, page])
    return some(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _writing(op: ops.Touch) -> str:
    return f"writes {op.value & ((1 << 8 * op.width) - 1):#x} ({counted(op.width, 'byte')})"


def _vcpu(index: int) -> str:
    return f"vCPU {index}"


def _mode(as_id: int) -> str:
    return " in SMM" if as_id else ""


def some(texts: Iterable[str], separator: str = ", ") -> str:
    """Return the first of several texts, and how many more there are."""
    every = list(texts)
    rest = len(every) - _MANY
    return separator.join(every[:_MANY]) + (f"{separator}and {rest} more" if rest > 0 else "")
