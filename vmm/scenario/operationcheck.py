"""Checks that one operation is safe to execute after those before it."""

import msgspec

from vmm.scenario import operations as ops
from vmm.scenario.clocks import LAYOUTS
from vmm.scenario.expected import expectation_problem
from vmm.scenario.hostchanges import HostChanges
from vmm.scenario.instructions import DATA_PORT, accessed, instruction_problem
from vmm.scenario.limits import (
    A_NAME,
    GUEST_PORTS,
    MAX_ALL_SLOT_PAGES,
    MAX_ATTRIBUTE_PAGES,
    MAX_BEFORE_THE_END,
    MAX_DEVICES,
    MAX_EVENTFDS,
    MAX_FAIL_NTH,
    MAX_SLOT_PAGES,
    MAX_SWEEP_BYTES,
    MAX_TIMES,
    MAX_TOUCHED_WINDOWS,
    MAX_ZERO_PAGES,
    NAME_LENGTH,
    unsigned_problem,
)
from vmm.scenario.mappings import place_problem
from vmm.scenario.memfd_operations import KEEP_SIZE, PUNCH_HOLE
from vmm.scenario.memfds import MemfdNames
from vmm.scenario.operations import (
    GUEST_SIZE_BYTES,
    MAX_GPA_BITS,
    MAX_VMS,
    NO_SLOT,
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    SMM,
    WINDOW_STEP_BYTES,
    AnyOperation,
    Place,
    Scenario,
    address_spaces,
    guest_count,
    pages_of,
)
from vmm.scenario.paging import KINDS
from vmm.scenario.programs import LAST_ADDRESS, LONG_FRAME_BYTES
from vmm.scenario.races import TWO_FILES, Changed, places_of, race_problem
from vmm.scenario.shown import is_plain
from vmm.scenario.slots import MAX_PAGES, USER_END, as_id_of, id_of
from vmm.scenario.standing import MayStand
from vmm.scenario.vapic_operations import PAGE_MSR_STEPS

_CLOCK_ALIGNMENT = 4
_MOST_PRIORITY, _VAPIC_BYTES = 0xFF, 4
_NO_SUCH_SPACE = ".as_id: guests look at as_id 1 where $.needs names smm"


_SEGMENT_END = 0xFFFF
_PORT_BYTES = 4
_MOST_VCPU_PAGES = 1 << 16
_PARAGRAPH_BYTES, _LAST_SMBASE = 0x10, REAL_MODE_END - 0x1_0000


class OperationChecker:
    """Checks one operation at a time."""

    def __init__(self, scenario: Scenario) -> None:
        self._mappings = {mapping.name: mapping for mapping in scenario.mappings}
        self._guest = scenario.guest
        self._vcpus = scenario.vcpus
        self._slot_pages = 0
        self._races = False
        self._named: dict[int, list[Changed]] = {}
        self._windows: set[int] = set()
        self._devices = 0
        self._events: set[str] = set()
        self._guests = guest_count(scenario)
        self._guest_ids = range(self._guest.slot, self._guest.slot + self._guests)
        self._spaces = address_spaces(scenario)
        begin = self._guest.gpa - (self._guests - 1) * GUEST_SIZE_BYTES
        self._guest_gpas = range(begin, self._guest.gpa + GUEST_SIZE_BYTES)
        if self._guest.slot == NO_SLOT:
            self._guest_ids = self._guest_gpas = range(0)
        self._standing = MayStand(self._guest_ids, self._guest_gpas)
        self._changes = HostChanges(scenario.mappings)
        self._memfds = MemfdNames(scenario)

    def problem(self, op: AnyOperation) -> str:
        """Return what is wrong, beginning with the field; empty if nothing is."""
        if op.expect:
            found = expectation_problem(op, self._races)
            if found:
                return found
        if isinstance(op, ops.GuestOperation):
            return self._by_guest(op)
        if isinstance(op, ops.HostOperation):
            return self._by_host(op)
        if isinstance(op, ops.DirtyOperation):
            return self._of_dirty_pages(op)
        if isinstance(op, ops.MemfdOperation):
            return self._of_memfd(op)
        if isinstance(op, ops.InternalOperation):
            return self._of_internal_slots(op)
        if isinstance(op, ops.DeviceOperation):
            return self._of_device(op)
        if isinstance(op, ops.ClockOperation):
            return self._clock(op) if isinstance(op, ops.SetClockMsr) else self._vcpu(op.vcpu)
        if isinstance(op, ops.VapicOperation):
            return self._of_vapic(op)
        if isinstance(op, ops.VmOperation):
            return self._of_vm(op)
        match op:
            case ops.SetUserMemoryRegion():
                return self._region(op)
            case ops.SetMemoryAttributes():
                return _attributes(op)
            case ops.PreFaultMemory():
                return unsigned_problem(op, "gpa", "size", "flags") or self._vcpu(op.vcpu)
            case ops.Race():
                return self._race(op)

    def _by_guest(self, op: ops.GuestOperation) -> str:
        match op:
            case ops.Touch():
                return self._access(op, op.width, op.value)
            case ops.Sweep():
                if not 1 <= op.count * op.width <= MAX_SWEEP_BYTES:
                    return f".count: a sweep is 1 to {MAX_SWEEP_BYTES:#x} bytes long"
                return self._access(op, op.count * op.width, op.value)
            case ops.Execute():
                if op.gpa % PAGE_SIZE_BYTES:
                    return ".gpa: a page aligned address is needed"
                return self._access(op, PAGE_SIZE_BYTES, 0)
            case ops.Instruction():
                return instruction_problem(op) or self._accesses(op)
            case ops.Start():
                if op.smi and SMM not in self._spaces:
                    return ".smi: guests enter SMM where $.needs names smm"
                if op.as_id not in self._spaces:
                    return _NO_SUCH_SPACE
                return _start_problem(op) or self._vcpu(op.vcpu)

    def _by_host(self, op: ops.HostOperation) -> str:
        match op:
            case ops.HostWrite():
                if not 0 <= op.value < 1 << 32:
                    return ".value: an unsigned 32-bit number is needed"
                if op.place.mapping in self._changes.taken:
                    return f".place: an operation takes pages of {op.place.mapping!r} away"
                return place_problem(op.place, 4, ".place", self._mappings)
            case ops.ChangeHostMemory():
                return self._changes.problem(op)
            case ops.Inspect():
                return ""

    def _of_dirty_pages(self, op: ops.DirtyOperation) -> str:
        match op:
            case ops.GetDirtyLog():
                return "" if 0 <= op.slot < 1 << 32 else ".slot: 32 bits are needed"
            case ops.ClearDirtyLog():
                return self._clear(op)
            case ops.HarvestDirtyRing():
                return self._vcpu(op.vcpu)
            case ops.ResetDirtyRings():
                return ""
            case ops.MapVcpuPages():
                return _mapping_problem(op) or self._vcpu(op.vcpu)

    def _of_memfd(self, op: ops.MemfdOperation) -> str:
        match op:
            case ops.CreateGuestMemfd():
                return self._memfds.created(op)
            case ops.CloseGuestMemfd():
                return self._memfds.known(op.name)
            case ops.MapGuestMemfd():
                return self._memfds.known(op.name) or self._memfds.shown(op)
            case ops.PunchGuestMemfd():
                return self._memfds.known(op.name) or _hole_problem(op)
            case ops.ResizeGuestMemfd():
                if not 0 <= op.size < 1 << 63:
                    return ".size: 63 bits are needed"
                return self._memfds.known(op.name)

    def _of_internal_slots(self, op: ops.InternalOperation) -> str:
        match op:
            case ops.SetTssAddr() | ops.SetIdentityMapAddr():
                return "" if 0 <= op.gpa < 1 << 64 else ".gpa: 64 bits are needed"
            case ops.CreateIrqchip():
                return "" if self._vcpus == 1 else ": $.vcpus must be 1, others would wait"
            case ops.CreateVcpu():
                return self._vcpu(op.vcpu)
            case ops.SetApicBase():
                if op.gpa % PAGE_SIZE_BYTES or not 0 <= op.gpa < REAL_MODE_END:
                    return ".gpa: a page below 4 GiB is needed"
                if op.gpa in self._guest_gpas:
                    return ".gpa: the guest's own memory is there; move $.guest.gpa"
                return self._vcpu(op.vcpu)
            case ops.UnmapInternalSlots():
                return ""

    def _of_device(self, op: ops.DeviceOperation) -> str:
        match op:
            case ops.CoalesceMmio():
                return self._coalesced(op)
            case ops.IoEventFd():
                return self._ioeventfd(op)
            case ops.SetCoalescedRing():
                if not 0 <= op.index < 1 << 32:
                    return ".index: an unsigned 32-bit number is needed"
                return self._vcpu(op.vcpu)
            case ops.CollectMmio():
                return ""

    def _of_vm(self, op: ops.VmOperation) -> str:
        match op:
            case ops.EnableCap():
                if not 0 <= op.flags < 1 << 32:
                    return ".flags: 32 bits are needed"
                return "" if 0 <= op.argument < 1 << 64 else ".argument: 64 bits are needed"
            case ops.SetNrMmuPages():
                return "" if 0 <= op.pages < 1 << 32 else ".pages: 32 bits are needed"
            case ops.Lives():
                return "" if 1 <= op.times <= MAX_TIMES else f".times: not within 1 to {MAX_TIMES}"
            case ops.Churn():
                if not 1 <= op.times <= MAX_TIMES:
                    return f".times: not within 1 to {MAX_TIMES}"
                return self._standing.problem(op)
            case ops.SwitchVm():
                return "" if 0 <= op.vm < MAX_VMS else f".vm: not within 0 to {MAX_VMS - 1}"
            case ops.NewVm() | ops.CloseVm():
                self._changes.new_vm()
                self._standing.forget()
                return ""

    def _race(self, op: ops.Race) -> str:
        if self._changes.is_paged:
            return ": pages that userfaultfd is in charge of have to 'settle' first"
        if self._changes.hides:
            what = "races take no mapping of a copy, nor one with other memory over it"
            return f": {what}: {TWO_FILES}"
        self._races = True
        found = race_problem(
            op, self._vcpus, self._mappings, self._spaces, self._named, self.problem
        )
        self._races = False
        for action in (each for host in op.hosts for each in host.operations):
            if isinstance(action, ops.SetUserMemoryRegion):
                self._name(action)
        return found

    def _name(self, op: ops.SetUserMemoryRegion) -> None:
        """Note what a slot may hold from now on: another thread must not take it in a race."""
        self._named.setdefault(op.slot, []).extend(places_of(op))

    def _coalesced(self, op: ops.CoalesceMmio) -> str:
        self._devices += 1
        if self._devices > MAX_DEVICES:
            return f": more than {MAX_DEVICES} of these and of ioeventfd"
        if not 0 <= op.size < 1 << 32:
            return ".size: an unsigned 32-bit number is needed"
        if not 0 <= op.pio < 1 << 32:
            return ".pio: an unsigned 32-bit number is needed"
        is_data = op.gpa >= DATA_PORT and op.gpa + op.size <= DATA_PORT + _PORT_BYTES
        is_guests = op.gpa < GUEST_PORTS.stop and op.gpa + op.size > GUEST_PORTS.start
        if op.pio and is_guests and not is_data:
            ports = f"{GUEST_PORTS.start:#x} to {GUEST_PORTS.stop - 1:#x}"
            return f".gpa: guests use ports {ports}, and only outs writes to {DATA_PORT:#x}"
        return unsigned_problem(op, "gpa")

    def _clear(self, op: ops.ClearDirtyLog) -> str:
        """Check that bits are within the words that the kernel reads, and those in our bitmap."""
        for field, bits in (("slot", 32), ("first_page", 64), ("num_pages", 32)):
            if not 0 <= getattr(op, field) < 1 << bits:
                return f".{field}: an unsigned {bits}-bit number is needed"
        if op.pages == "all":
            return ""
        words = min(-(-op.num_pages // 64), MAX_SLOT_PAGES // 64)
        if any(not 0 <= page - op.first_page < words * 64 for page in op.pages):
            return ".pages: not within the words that hold first_page to first_page + num_pages"
        return ""

    def _vcpu(self, vcpu: int) -> str:
        return "" if 0 <= vcpu < self._vcpus else f".vcpu: $.vcpus allows 0 to {self._vcpus - 1}"

    def _clock(self, op: ops.SetClockMsr) -> str:
        """Check that KVM does not overwrite the guest; the steal time may not cross pages."""
        size = LAYOUTS[op.clock].size
        is_across = op.gpa % PAGE_SIZE_BYTES + size > PAGE_SIZE_BYTES
        if op.gpa % _CLOCK_ALIGNMENT or (is_across and op.clock == "steal_time"):
            return f".gpa: a multiple of {_CLOCK_ALIGNMENT} with {size} bytes before its page's end"
        if not 0 <= op.gpa < 1 << MAX_GPA_BITS:
            return f".gpa: an address has {MAX_GPA_BITS} bits at the most"
        if op.gpa < self._guest_gpas.stop and op.gpa + size > self._guest_gpas.start:
            return f".gpa: the guest's own memory is at {self._guest.gpa:#x}; move $.guest.gpa"
        return self._vcpu(op.vcpu)

    def _of_vapic(self, op: ops.VapicOperation) -> str:
        match op:
            case ops.SetApic():
                if op.priority is not None and not 0 <= op.priority <= _MOST_PRIORITY:
                    return f".priority: not within 0 to {_MOST_PRIORITY:#x}"
            case ops.SetVapicAddr() | ops.SetPageMsr():
                size = PAGE_SIZE_BYTES if isinstance(op, ops.SetPageMsr) else _VAPIC_BYTES
                if not 0 <= op.gpa <= (1 << MAX_GPA_BITS) - size:
                    return f".gpa: an address has {MAX_GPA_BITS} bits at the most"
                if isinstance(op, ops.SetPageMsr) and op.gpa % PAGE_MSR_STEPS[op.msr]:
                    return f".gpa: a multiple of {PAGE_MSR_STEPS[op.msr]:#x} is needed"
                names_memory = op.on if isinstance(op, ops.SetPageMsr) else op.gpa != 0
                own = self._guest_gpas
                if names_memory and op.gpa < own.stop and op.gpa + size > own.start:
                    gpa = self._guest.gpa
                    return f".gpa: the guest's own memory is at {gpa:#x}; move $.guest.gpa"
        return self._vcpu(op.vcpu)

    def _ioeventfd(self, op: ops.IoEventFd) -> str:
        self._devices += 1
        self._events.add(op.name)
        if self._devices > MAX_DEVICES:
            return f": more than {MAX_DEVICES} of these and of coalesce_mmio"
        if len(self._events) > MAX_EVENTFDS:
            return f".name: more than {MAX_EVENTFDS} eventfds"
        if not is_plain(op.name, NAME_LENGTH):
            return f".name: {A_NAME}"
        if not 0 <= op.length < 1 << 32:
            return ".length: an unsigned 32-bit number is needed"
        if op.match is not None and not 0 <= op.match < 1 << 64:
            return ".match: an unsigned 64-bit number is needed"
        return unsigned_problem(op, "gpa")

    def _region(self, op: ops.SetUserMemoryRegion) -> str:
        self._standing.note(op, once=not self._races)
        if not self._races:
            self._name(op)
        for field in ("slot", "flags"):
            if not 0 <= getattr(op, field) < 1 << 32:
                return f".{field}: an unsigned 32-bit number is needed"
        problem = unsigned_problem(op, "guest_phys_addr", "memory_size")
        if problem:
            return problem
        if not 0 <= op.fail_nth <= MAX_FAIL_NTH:
            return f".fail_nth: not within 0 to {MAX_FAIL_NTH}"
        if as_id_of(op.slot) in self._spaces and id_of(op.slot) in self._guest_ids:
            return f".slot: {op.slot} is the guest's own; take another one, or move $.guest.slot"
        if MAX_SLOT_PAGES < pages_of(op.memory_size) <= MAX_PAGES:
            return f".memory_size: a slot has at most {MAX_SLOT_PAGES} pages here"
        if pages_of(op.memory_size) <= MAX_PAGES:
            self._slot_pages += pages_of(op.memory_size)
        if self._slot_pages > MAX_ALL_SLOT_PAGES:
            return f".memory_size: more than {MAX_ALL_SLOT_PAGES} pages in all slots together"
        if isinstance(op, ops.SetUserMemoryRegion2):
            if op.guest_memfd != -1 and not self._memfds.is_file(op.guest_memfd):
                return (
                    f".guest_memfd: {op.guest_memfd!r} is neither -1, nor a guest_memfd of the "
                    "scenario, nor a mapping of kind memfd"
                )
            if not 0 <= op.guest_memfd_offset < 1 << 64:
                return ".guest_memfd_offset: an unsigned 64-bit number is needed"
        return self._hva(op)

    def _hva(self, op: ops.SetUserMemoryRegion) -> str:
        """Check that an hva stays inside its mapping if a kernel could accept the size."""
        size = op.memory_size if pages_of(op.memory_size) <= MAX_PAGES else 0
        if isinstance(op.userspace_addr, Place):
            return place_problem(op.userspace_addr, size, ".userspace_addr", self._mappings)
        if USER_END <= op.userspace_addr < 1 << 64:
            return ""
        # Where a kernel accepts it, the guest may reach the top of this process's stack.
        few = USER_END - op.userspace_addr <= MAX_BEFORE_THE_END * PAGE_SIZE_BYTES
        if few and op.userspace_addr + size >= USER_END:
            return ""
        if op.userspace_addr == 0 and pages_of(size) <= MAX_ZERO_PAGES:
            return ""
        return (
            f".userspace_addr: {op.userspace_addr:#x} is neither 0 (up to {MAX_ZERO_PAGES} pages) "
            f"nor {USER_END:#x} or more (nor does it reach that from up to "
            f"{MAX_BEFORE_THE_END} pages before); name a place in a mapping"
        )

    def _accesses(self, op: ops.Instruction) -> str:
        at, *others = accessed(op)
        found = self._access(op, at[1], 0)
        for gpa, length in () if found else others:
            found = self._access(msgspec.structs.replace(op, gpa=gpa), length, 0)
            found = found.replace(".gpa", ".source", 1)
        return found

    def _access(
        self, op: ops.Touch | ops.Sweep | ops.Execute | ops.Instruction, length: int, value: int
    ) -> str:
        gpa = op.gpa
        if op.as_id not in self._spaces:
            return _NO_SUCH_SPACE
        if not 0 <= gpa <= (1 << MAX_GPA_BITS) - length:
            return f".gpa: an address has {MAX_GPA_BITS} bits at the most"
        if gpa + length > REAL_MODE_END or (isinstance(op, ops.Instruction) and op.mode == "long"):
            self._windows.add(gpa // WINDOW_STEP_BYTES)
            if len(self._windows) > MAX_TOUCHED_WINDOWS:
                return f".gpa: more than {MAX_TOUCHED_WINDOWS} stretches of 2 MiB from 4 GiB on"
        if gpa < self._guest_gpas.stop and gpa + length > self._guest_gpas.start:
            return f".gpa: the guest's own memory is at {self._guest.gpa:#x}; move $.guest.gpa"
        if not 0 <= value < 1 << 32:
            return ".value: an unsigned 32-bit number is needed"
        return self._vcpu(op.vcpu)


def _start_problem(op: ops.Start) -> str:
    """Check that addresses are canonical, in the lower half, and page tables are whole pages."""
    if not 0 <= op.value < 1 << 32:
        return ".value: an unsigned 32-bit number is needed"
    if op.stack and op.interrupts is None:
        return ".stack: an interrupt uses it, and those take a table ('interrupts')"
    if op.smi and op.tables is not None:
        return ".smi: a vCPU that starts with page tables gets no system management interrupt"
    if op.smi and op.as_id == SMM:
        return ".smi: in SMM a vCPU takes no other system management interrupt"
    if op.smbase != ops.SMBASE and not op.smi:
        return ".smbase: only a system management interrupt uses it"
    if op.smbase % _PARAGRAPH_BYTES or not 0 <= op.smbase <= _LAST_SMBASE:
        return f".smbase: a multiple of 16 within 0 to {_LAST_SMBASE:#x} is needed"
    if op.paging != "long" and (op.tables is None or op.interrupts is not None):
        return ".paging: in 32-bit mode a vCPU starts with page tables, and no interrupts"
    last = REAL_MODE_END - PAGE_SIZE_BYTES if op.tables is None else LAST_ADDRESS
    if op.interrupts is not None:
        # In real mode some processors push with 16-bit SP, whatever the stack segment says.
        end = _SEGMENT_END if op.tables is None else LAST_ADDRESS
        for field, least, most in (("stack", LONG_FRAME_BYTES, end), ("interrupts", 0, last)):
            if not least <= getattr(op, field) <= most:
                return f".{field}: an address within {least:#x} to {most:#x} is needed"
    if op.tables is None:
        if op.data or op.value:
            return ".tables: in real mode a vCPU starts at what accesses no data"
        return "" if 0 <= op.address < REAL_MODE_END else ".address: real mode ends with 4 GiB"
    return _tables_problem(op, op.tables)


def _tables_problem(op: ops.Start, tables: int) -> str:
    is_long = op.paging == "long"
    paging = KINDS[op.paging]
    bits = MAX_GPA_BITS if is_long else REAL_MODE_END.bit_length() - 1
    if tables % paging.alignment or not 0 <= tables < 1 << bits:
        what = "the gpa of a page" if is_long else f"a multiple of {paging.alignment:#x}"
        return f".tables: {what} is needed, of {bits} bits at the most"
    last = LAST_ADDRESS if is_long else REAL_MODE_END - PAGE_SIZE_BYTES
    for field in ("address", "data"):
        if not 0 <= getattr(op, field) <= last:
            return f".{field}: an address within 0 to {last:#x} is needed"
    return ""


def _mapping_problem(op: ops.MapVcpuPages) -> str:
    for field, least in (("first_page", 0), ("pages", 1)):
        if not least <= getattr(op, field) <= _MOST_VCPU_PAGES:
            return f".{field}: not within {least} to {_MOST_VCPU_PAGES}"
    return ""


def _hole_problem(op: ops.PunchGuestMemfd) -> str:
    if not 0 <= op.others < 1 << 31 or op.others & (KEEP_SIZE | PUNCH_HOLE):
        return ".others: bits of an int other than FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE"
    return unsigned_problem(op, "offset", "size")


def _attributes(op: ops.SetMemoryAttributes) -> str:
    """Bound the pages: the kernel takes memory and time for each gfn."""
    if pages_of(op.size) > MAX_ATTRIBUTE_PAGES and op.address + op.size < 1 << 64:
        return f".size: at most {MAX_ATTRIBUTE_PAGES} pages at once"
    return unsigned_problem(op, "address", "size", "attributes", "flags")
