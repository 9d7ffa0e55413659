"""The one place that puts operations, outcomes and slots into words."""

import errno
from collections.abc import Iterable
from typing import assert_never

from vmm.scenario import operations as ops
from vmm.scenario.content import identify
from vmm.scenario.history import (
    AnyOutcome,
    Closed,
    DirtyPages,
    Done,
    HostChange,
    Inspected,
    Mmio,
    MmioKept,
    MsrsSet,
    PreFaulted,
    Raced,
    Ran,
    Refused,
    RingPages,
    RingsReset,
    SetUpRefused,
    Stopped,
    Swept,
    Touched,
    Unmapped,
)
from vmm.scenario.hostpages import CHANGES
from vmm.scenario.instruction_effects import AF, CF, OF, PF, SF, ZF
from vmm.scenario.instructions import INSTRUCTIONS
from vmm.scenario.operations import (
    ATTRIBUTE_PRIVATE,
    GUEST_MEMFD,
    LOG_DIRTY_PAGES,
    MEMFD_INIT_SHARED,
    MEMFD_MMAP,
    PAGE_SIZE_BYTES,
    READONLY,
    AnyOperation,
    Hva,
    Mapping,
    Place,
)
from vmm.scenario.shown import shown

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
_MEMFD_FLAGS = ((MEMFD_MMAP, "MMAP"), (MEMFD_INIT_SHARED, "INIT_SHARED"))
_ATTRIBUTES = ((ATTRIBUTE_PRIVATE, "PRIVATE"),)
_CLOCK_MSRS = {
    "wall_clock": "WALL_CLOCK_NEW",
    "system_time": "SYSTEM_TIME_NEW",
    "steal_time": "STEAL_TIME",
}
_REGISTERS = ("ax", "bx", "cx", "dx")
_POINTERS = ("sp", "bp", "si", "di")
_CPU_FLAGS = ((CF, "CF"), (PF, "PF"), (AF, "AF"), (ZF, "ZF"), (SF, "SF"), (OF, "OF"))
_MANY = 8
_MANY_BYTES = 64


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
            mode = "|".join(name for name, is_set in named.items() if is_set) or "0"
            where = f"offset={op.offset:#x}, len={op.size:#x}"
            return f"fallocate({shown(op.name)}, {mode}, {where})"


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
        case ops.UnmapInternalSlots():
            return "munmap on the memory of all internal slots"


def _of_device(op: ops.DeviceOperation) -> str:
    match op:
        case ops.CoalesceMmio():
            call = "REGISTER" if op.on else "UNREGISTER"
            return f"KVM_{call}_COALESCED_MMIO(addr={op.gpa:#x}, size={op.size:#x})"
        case ops.IoEventFd():
            match = "" if op.match is None else f", datamatch={op.match:#x}"
            off = "" if op.on else ", DEASSIGN"
            where = f"addr={op.gpa:#x}, len={op.length}{match}{off}"
            return f"KVM_IOEVENTFD({where}) for {shown(op.name)}"
        case ops.CollectMmio():
            return "host collects coalesced writes, and counts the signals of eventfds"


def _of_clock(op: ops.ClockOperation) -> str:
    match op:
        case ops.SetClockMsr():
            enable = " | 1" if op.on and op.clock != "wall_clock" else ""
            data = f"{op.gpa:#x}{enable}" if op.on else "0"
            return f"{_vcpu(op.vcpu)}: KVM_SET_MSRS(MSR_KVM_{_CLOCK_MSRS[op.clock]} = {data})"
        case ops.KvmclockCtrl():
            return f"{_vcpu(op.vcpu)}: KVM_KVMCLOCK_CTRL()"


def _of_vm(op: ops.VmOperation) -> str:
    match op:
        case ops.EnableCap():
            return f"KVM_ENABLE_CAP(cap=KVM_CAP_{op.cap}, args[0]={op.argument:#x})"
        case ops.Lives():
            looking = ", looking at the kernel's memory" if op.watch == "kernel" else ""
            how = op.death.replace("-", " ")
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


def outcome(result: AnyOutcome, mappings: tuple[Mapping, ...] = ()) -> str:
    """Return one line that describes an outcome.

    With ``mappings``, words that are the identity of a page are named as such.
    """
    match result:
        case Done():
            return "success"
        case Refused(number):
            return errno.errorcode.get(number, f"errno {number}")
        case Touched(value, mmio, unknown):
            word = _word(value, mappings) if not unknown else f"{value:#x} or other {unknown:#x}"
            return f"{word}, {_mmio(mmio)}" if mmio else f"{word}, no exit"
        case Ran():
            return _ran(result)
        case Swept(runs, mmio):
            words = _some(f"{_word(value, mappings)} x{times}" for value, times in runs)
            return f"[{words}], {_mmio(mmio)}" if mmio else f"[{words}], no exit"
        case Stopped(reason, detail):
            return f"the vCPU stops: {shown(reason)}" + (f" ({shown(detail)})" if detail else "")
        case DirtyPages():
            return _log(result)
        case RingPages():
            return _ring(result)
        case RingsReset():
            return _reset(result)
        case PreFaulted(gpa, size):
            return f"success, {size:#x} bytes are left from gpa {gpa:#x} on"
        case Inspected():
            return _inspected(result)
        case Raced(calls, windows):
            seen = counted(sum(map(len, windows)), "window")
            return f"{counted(sum(map(len, calls)), 'call')}, {seen}"
        case Closed(left):
            things = _some(map(shown, left), "; ")
            return f"left behind: {things}" if left else "nothing left behind"
        case MmioKept():
            return _kept(result)
        case MsrsSet(number):
            return f"{counted(number, 'MSR')} set"
        case Unmapped(mappings=number):
            return f"{counted(number, 'mapping')} unmapped"
        case SetUpRefused(call, arguments, number, answer):
            came = answer or errno.errorcode.get(number, f"errno {number}")
            return f"{shown(call)}({shown(arguments)}): {shown(came)}"
        case _:
            assert_never(result)


def _kept(result: MmioKept) -> str:
    writes = f"kept: {_mmio(result.writes)}" if result.writes else "no write kept"
    events = [f"{shown(name)} signalled {times} times" for name, times in result.events]
    return ", ".join([writes, *events])


def _inspected(result: Inspected) -> str:
    changes = _some(map(_change, result.changes))
    texts = [f"changed: {changes}" if changes else "no byte changed"]
    texts += [
        f"{each.clock} written at {shown(each.mapping)}+{each.offset:#x}" for each in result.due
    ]
    if result.room:
        places = _some(
            f"{shown(name)}+{offset:#x} ({size} bytes)" for name, offset, size in result.room
        )
        texts.append(f"perhaps written by KVM: {places}")
    return ", ".join(texts)


def amiss(observed: AnyOutcome, allowed: Iterable[AnyOutcome]) -> str:
    """Return which pages a log or ring lacks or has too many, to end a text with; else empty."""
    for right in allowed:
        match observed, right:
            case DirtyPages(), DirtyPages():
                missing = _ranges(sorted({*right.pages} - {*observed.pages}))
                beyond = _ranges(sorted({*observed.pages} - {*right.pages, *right.perhaps}))
            case RingPages(), RingPages():
                missing = _by_slot(sorted({*right.pages} - {*observed.pages}))
                beyond = _by_slot(sorted({*observed.pages} - {*right.pages, *right.perhaps}))
            case _:
                continue
        lacks = f"; missing {{{missing}}}" if missing else ""
        return lacks + (f"; too many {{{beyond}}}" if beyond else "")
    return ""


def _start(op: ops.Start) -> str:
    pending = " with an SMI pending" if op.smi else ""
    where = f"{_vcpu(op.vcpu)}{pending} starts at {op.address:#x}"
    if op.interrupts is not None:
        where += f", with interrupts at {op.interrupts:#x} and a stack at {op.stack:#x},"
    if op.tables is None:
        return f"{where} in real mode"
    given = [
        f"{name}={value:#x}" for name, value in (("data", op.data), ("value", op.value)) if value
    ]
    details = f" ({', '.join(given)})" if given else ""
    return f"{where} with page tables at gpa {op.tables:#x}{details}"


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


def _ran(ran: Ran) -> str:
    """Return the registers that are not 0, and the flags by name."""
    registers = [f"{name}={getattr(ran, name):#x}" for name in _REGISTERS if getattr(ran, name)]
    registers += [f"{name}{getattr(ran, name):+#x}" for name in _POINTERS if getattr(ran, name)]
    names = [name for bit, name in _CPU_FLAGS if ran.flags & ~ran.undefined & bit]
    undefined = [f"{name}?" for bit, name in _CPU_FLAGS if ran.undefined & bit]
    port = [f"sent={ran.sent.hex()}"] if ran.sent else []
    port += [f"taken={ran.taken:#x}"] if ran.taken else []
    text = " ".join([*registers, *port, f"flags {{{' '.join([*names, *undefined])}}}"])
    return f"{text}, {_mmio(ran.mmio)}" if ran.mmio else f"{text}, no exit"


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
    bits = "all" if op.pages == "all" else f"{{{_ranges(op.pages)}}}"
    bitmap = bits if op.bitmap == "readable" else "<unreadable>"
    return (
        f"KVM_CLEAR_DIRTY_LOG(slot={slot_number(op.slot)}, first_page={op.first_page}, "
        f"num_pages={op.num_pages}, dirty_bitmap={bitmap})"
    )


def _log(result: DirtyPages) -> str:
    bitmap = "" if result.words is None else f", in a bitmap of {result.words * 64} bits"
    return f"dirty pages {{{_ranges(result.pages)}}}{_perhaps(_ranges(result.perhaps))}{bitmap}"


def _reset(result: RingsReset) -> str:
    if result == RingsReset():
        return "as many entries reset as were harvested"
    return f"{result.entries} entries reset, of {result.harvested} harvested"


def _ring(result: RingPages) -> str:
    perhaps = _some(f"{slot}:{page}" for slot, page in result.perhaps)
    stops = f", full {counted(result.full, 'time')}" if result.full else ""
    if result.may_be_full:
        stops += " or more" if stops else ", full or not"
    return f"dirty ring {{{_by_slot(result.pages)}}}{_perhaps(perhaps)}{stops}"


def _by_slot(found: Iterable[tuple[int, int]]) -> str:
    """Return the pages of each slot of (slot, page)."""
    by_slot: dict[int, list[int]] = {}
    for slot, page in found:
        by_slot.setdefault(slot, []).append(page)
    return _some((f"slot {slot}: {_ranges(pages)}" for slot, pages in by_slot.items()), "; ")


def _perhaps(text: str) -> str:
    return f", perhaps {{{text}}}" if text else ""


def _ranges(pages: Iterable[int]) -> str:
    """Return ascending numbers with consecutive ones as ranges: 0-3, 7."""
    runs: list[list[int]] = []
    for page in pages:
        if runs and runs[-1][1] == page - 1:
            runs[-1][1] = page
        else:
            runs.append([page, page])
    return _some(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _writing(op: ops.Touch) -> str:
    return f"writes {op.value & ((1 << 8 * op.width) - 1):#x} ({counted(op.width, 'byte')})"


def _vcpu(index: int) -> str:
    return f"vCPU {index}"


def _mode(as_id: int) -> str:
    return " in SMM" if as_id else ""


def _word(value: int, mappings: tuple[Mapping, ...]) -> str:
    index, page = identify(value)
    if 0 <= index < len(mappings) and page < mappings[index].pages:
        return f"{value:#010x} (page {page} of {shown(mappings[index].name)})"
    return f"{value:#x}"


def _mmio(exits: tuple[Mmio, ...]) -> str:
    return "MMIO " + _some(
        f"{'write' if e.write else 'read'} {e.gpa:#x}+{len(e.data)} {e.data[:16].hex()}"
        for e in exits
    )


def _change(change: HostChange) -> str:
    where = hva(Place(change.mapping, change.offset))
    return f"{where} (page {change.offset // PAGE_SIZE_BYTES}) = {_bytes(change.data)}"


def _bytes(data: bytes) -> str:
    """Return bytes in hexadecimal; if there are many, the first ones and the count."""
    if len(data) <= _MANY_BYTES:
        return data.hex()
    return f"{data[:_MANY_BYTES].hex()}... ({len(data)} bytes)"


def _some(texts: Iterable[str], separator: str = ", ") -> str:
    every = list(texts)
    rest = len(every) - _MANY
    return separator.join(every[:_MANY]) + (f"{separator}and {rest} more" if rest > 0 else "")
