"""The C statements of one step: the call, and the check of its outcome."""

from collections.abc import Iterable

from vmm.repro.accesses import access, instruction, start, writes
from vmm.repro.account import Account
from vmm.repro.answers import InexpressibleError
from vmm.repro.clocks import clock_writes, set_clock
from vmm.repro.cnames import CNames, create_vm, data, flags, unsigned
from vmm.repro.expectations import Expectation
from vmm.repro.hostchanges import changes
from vmm.repro.raceforms import race
from vmm.repro.tracking import clear_log, enable, get_log, harvest
from vmm.repro.vapics import of_vapic
from vmm.scenario import operations as ops
from vmm.scenario.history import Inspected, MmioKept, PreFaulted, Refused, Unmapped
from vmm.scenario.hostpages import HostPages
from vmm.scenario.operations import MEMFD_INIT_SHARED, HostAction, Place, Scenario, pages_of
from vmm.scenario.slots import MAX_PAGES

_DEATHS = {
    "closed": ("closed", "closed"),
    "closed-by-another-thread": ("byanother", "closed_by_another_thread"),
    "closed-while-running": ("whilerunning", "closed_while_running"),
    "held-by-a-child": ("heldbyachild", "held_by_a_child"),
    "killed": ("killed", "killed"),
    "killed-while-closing": ("killedclosing", "killed_while_closing"),
}
"""For each way in which a VM ends: the part of the runtime, and its function."""

_TURNS = {"refused": "refuse", "failing": "fail"}
"""How the functions that a churn repeats begin."""


_OfMemory = (
    ops.SetUserMemoryRegion
    | ops.SetUserMemoryRegion2
    | ops.SetMemoryAttributes
    | ops.PreFaultMemory
    | ops.ClockOperation
    | ops.Race
)


class Statements:
    """Writes the statements of steps; ``account`` records what they use."""

    def __init__(self, names: CNames, vm_type: int) -> None:
        self.account = Account(names)
        self._names = names
        self._vm_type = vm_type
        self._vm = 0
        self._events: dict[tuple[int, str], int] = {}
        self._next_event = 0
        self._coalesces = False
        self._races = 0
        self._alive = {0}
        self._as_ids: dict[int, dict[int, int]] = {0: {}}
        self._host = HostPages(names.mappings)

    def declarations(self) -> str:
        """Return the variables and functions that the statements refer to."""
        account = self.account
        files = "".join(f"static int {name} = 1 << 30;\n" for name in sorted(account.files))
        before = "static int traces_before;\n" if "traces" in account.used else ""
        return f"{files}{before}\n" + "".join(account.functions)

    def dirty_words(self, scenario: Scenario) -> int:
        """Return the size in words of a bitmap that is larger than any slot's."""
        sizes = [
            pages_of(op.memory_size)
            for op in scenario.operations
            if isinstance(op, ops.SetUserMemoryRegion) and pages_of(op.memory_size) <= MAX_PAGES
        ]
        return max(sizes, default=0) // 64 + 18

    def of(self, step: Expectation) -> str:
        """Return the statements of a step. Raises InexpressibleError."""
        return "".join(f"\t{line}\n" for line in self._lines(step))

    def of_writes(self, group: list[Expectation]) -> str:
        """Return the statements of plain writes in one KVM_RUN."""
        return "".join(f"\t{line}\n" for line in writes(self.account, group))

    def _lines(self, step: Expectation) -> Iterable[str]:
        op = step.operation
        if isinstance(op, ops.GuestOperation):
            return self._by_guest(op, step)
        if isinstance(op, ops.HostOperation):
            return self._by_host(op, step)
        if isinstance(op, ops.DirtyOperation):
            return self._of_dirty_pages(op, step)
        if isinstance(op, ops.MemfdOperation):
            return [self.account.checked(self._memfd(op), step)]
        if isinstance(op, ops.InternalOperation):
            return self._of_internal_slots(op, step)
        if isinstance(op, ops.DeviceOperation):
            return self._of_device(op, step)
        if isinstance(op, ops.VapicOperation):
            return of_vapic(self.account, op, step)
        if isinstance(op, ops.VmOperation):
            return self._of_vm(op, step)
        return self._of_memory(op, step)

    def _by_guest(self, op: ops.GuestOperation, step: Expectation) -> Iterable[str]:
        account = self.account
        match op:
            case ops.Touch() | ops.Sweep() | ops.Execute():
                return access(account, op, step)
            case ops.Instruction():
                return instruction(account, op, step)
            case ops.Start():
                return start(account, op, step)

    def _by_host(self, op: ops.HostOperation, step: Expectation) -> Iterable[str]:
        account = self.account
        match op:
            case ops.HostWrite():
                if isinstance(step.chosen, Refused):
                    return ["/* Nothing is mapped there, so nothing is written. */"]
                account.use("hostwrite")
                place = f"{self._names.variable(op.place.mapping)}, {op.place.offset:#x}"
                return [f"host_writes({place}, {unsigned(op.value)});"]
            case ops.ChangeHostMemory():
                return changes(account, self._host, op)
            case ops.Inspect():
                return self._inspect(step)

    def _of_dirty_pages(self, op: ops.DirtyOperation, step: Expectation) -> Iterable[str]:
        account = self.account
        match op:
            case ops.GetDirtyLog():
                return get_log(account, op, step)
            case ops.ClearDirtyLog():
                return clear_log(account, op, step)
            case ops.HarvestDirtyRing():
                return harvest(account, op, step)
            case ops.ResetDirtyRings():
                account.use("resetrings")
                return [account.checked("reset_dirty_rings()", step)]
            case ops.MapVcpuPages():
                account.use("mapvcpu")
                protection = "PROT_READ | PROT_EXEC" if op.executable else "PROT_READ"
                flag = "MAP_SHARED" if op.sharing == "shared" else "MAP_PRIVATE"
                where = f"{op.vcpu}, {op.first_page}, {op.pages}"
                return [account.checked(f"map_vcpu_pages({where}, {protection}, {flag})", step)]

    def _of_internal_slots(self, op: ops.InternalOperation, step: Expectation) -> Iterable[str]:
        account = self.account
        match op:
            case ops.SetTssAddr():
                account.use("simple")
                call = f"vm_ioctl(KVM_SET_TSS_ADDR, {unsigned(op.gpa)})"
                return [account.checked(call, step)]
            case ops.SetIdentityMapAddr():
                account.use("identity")
                call = f"set_identity_map_addr({unsigned(op.gpa)})"
                return [account.checked(call, step)]
            case ops.CreateIrqchip():
                account.use("simple")
                return [account.checked("vm_ioctl(KVM_CREATE_IRQCHIP, 0)", step)]
            case ops.CreateVcpu():
                account.use("makevcpu")
                return [account.checked(f"create_vcpu({op.vcpu})", step)]
            case ops.SetApicBase():
                account.use("apicbase")
                return [f"set_apic_base({op.vcpu}, {unsigned(op.gpa)});"]
            case ops.UnmapInternalSlots():
                account.use("unmapinternal")
                numbers = [
                    a.outcome.mappings for a in step.allowed if isinstance(a.outcome, Unmapped)
                ]
                return [f"expect(unmap_internal_slots() - {number}, 0);" for number in numbers]

    def _of_device(self, op: ops.DeviceOperation, step: Expectation) -> Iterable[str]:
        account = self.account
        match op:
            case ops.CoalesceMmio():
                account.use("coalesce")
                self._coalesces = True
                request = (
                    "KVM_REGISTER_COALESCED_MMIO" if op.on else "KVM_UNREGISTER_COALESCED_MMIO"
                )
                place = f"{unsigned(op.gpa)}, {unsigned(op.size)}, {int(op.pio)}"
                call = f"coalesce_mmio({request}, {place})"
                return [account.checked(call, step)]
            case ops.IoEventFd():
                return [account.checked(self._ioeventfd(op), step)]
            case ops.CollectMmio():
                return self._collect(step)
            case ops.SetCoalescedRing():
                account.use("setring")
                return [f"set_coalesced_ring({op.vcpu}, {op.index}u);"]

    def _of_vm(self, op: ops.VmOperation, step: Expectation) -> Iterable[str]:
        account = self.account
        match op:
            case ops.EnableCap():
                return enable(account, op, step)
            case ops.SetNrMmuPages():
                account.use("simple")
                call = f"vm_ioctl(KVM_SET_NR_MMU_PAGES, {unsigned(op.pages)})"
                return [account.checked(call, step)]
            case ops.Lives():
                return self._lives(op)
            case ops.Churn():
                return self._churn(op, step)
            case ops.SwitchVm():
                return self._switch(op.vm)
            case ops.NewVm():
                self._alive.add(self._vm)
                account.left_logs.clear()
                account.use("newvm")
                account.as_ids.clear()
                self._forget_events()
                return ["close_vm();", create_vm(self._vm_type)]
            case ops.CloseVm():
                self._alive.discard(self._vm)
                account.use("newvm")
                if self._alive:
                    return ["close_vm();"]
                account.use("traces")
                return ["close_vm();", "expect_traces(traces_before);"]

    def _of_memory(self, op: _OfMemory, step: Expectation) -> Iterable[str]:
        account = self.account
        match op:
            case ops.SetUserMemoryRegion():
                account.left_logs.discard(op.slot)
                return [account.checked(self._region(op), step)]
            case ops.SetMemoryAttributes():
                return [account.checked(self._attributes(op), step)]
            case ops.PreFaultMemory():
                return self._pre_fault(op, step)
            case ops.SetClockMsr():
                return set_clock(account, op, step)
            case ops.KvmclockCtrl():
                account.use("pauseclock")
                return [account.checked(f"pause_clock({op.vcpu})", step)]
            case ops.Race():
                return self._race(step)

    def _race(self, step: Expectation) -> list[str]:
        if step.tables is None:
            return ["/* What this race may result in is not known. */"]
        self._races += 1
        account = self.account
        account.left_logs.clear()
        if not step.tables.has_ring:
            account.left_logs.update(slot for slot, _ in step.tables.slot_pages)
        return race(account, self._host, step.tables, self._races, self._host_call)

    def _host_call(self, op: HostAction) -> str:
        match op:
            case ops.SetUserMemoryRegion():
                return self._region(op)
            case ops.CloseGuestMemfd() | ops.PunchGuestMemfd():
                return self._memfd(op)
            case ops.SetMemoryAttributes():
                return self._attributes(op)
            case _:
                raise InexpressibleError(f"{type(op).__name__} in a race")

    def _attributes(self, op: ops.SetMemoryAttributes) -> str:
        self.account.use("attributes")
        fields = (op.address, op.size, op.attributes, op.flags)
        return f"set_memory_attributes({', '.join(map(unsigned, fields))})"

    def _ioeventfd(self, op: ops.IoEventFd) -> str:
        self.account.use("ioeventfd")
        key = self._vm, op.name
        if key not in self._events:
            self._events[key] = self._next_event
            self._next_event += 1
        number = self._events[key]
        names = ["KVM_IOEVENTFD_FLAG_DATAMATCH"] if op.match is not None else []
        names += [] if op.on else ["KVM_IOEVENTFD_FLAG_DEASSIGN"]
        flags_ = " | ".join(names) or "0"
        where = f"{unsigned(op.gpa)}, {unsigned(op.length)}, {unsigned(op.match or 0)}"
        return f"io_eventfd({number}, {where}, {flags_})"

    def _forget_events(self) -> None:
        """Forget the eventfds of the current VM: a new one replaces it."""
        self._events = {key: number for key, number in self._events.items() if key[0] != self._vm}

    def _collect(self, step: Expectation) -> list[str]:
        """Check the current VM's eventfds: one that no outcome names was not signalled."""
        lines = []
        for outcome in (each.outcome for each in step.allowed):
            if not isinstance(outcome, MmioKept):
                continue
            if self._coalesces:
                self.account.use("coalesced")
                for n, each in enumerate(outcome.writes):
                    self.account.use("coalescedwrite")
                    arguments = f"{unsigned(each.gpa)}, {len(each.data)}, {data(each.data)}"
                    arguments += f", {int(n in outcome.ports)}"
                    lines.append(f"expect_coalesced({arguments});")
                lines.append("expect_no_more_coalesced();")
            counts = dict(outcome.events)
            for (vm, name), number in self._events.items():
                if vm == self._vm:
                    self.account.use("signals")
                    lines.append(f"expect_signals({number}, {counts.get(name, 0)});")
        return lines

    def _switch(self, vm: int) -> list[str]:
        """Switch to another VM. All VMs share the guest's memory, since only one runs at a time."""
        account = self.account
        account.use("switchvm")
        account.left_logs.clear()
        self._as_ids[self._vm] = dict(account.as_ids)
        is_new = vm not in self._as_ids
        account.as_ids.clear()
        account.as_ids.update(self._as_ids.get(vm, {}))
        self._vm = vm
        self._alive.update({vm} if is_new else ())
        self._as_ids.setdefault(vm, {})
        return [f"switch_vm({vm});", *((create_vm(self._vm_type),) if is_new else ())]

    def _region(self, op: ops.SetUserMemoryRegion) -> str:
        account = self.account
        account.name_slot(op.slot)
        call = self._region_call(op)
        if op.fail_nth:
            account.use("failnth")
            call = f"with_failing_allocation({account.function(call)}, {op.fail_nth})"
        if op.caller == "forked-child":
            account.use("child")
            call = f"in_a_child({account.function(call)})"
        return call

    def _region_call(self, op: ops.SetUserMemoryRegion) -> str:
        if op.argument == "unreadable":
            self.account.use("badpointer")
            return "set_region_from_nowhere(KVM_SET_USER_MEMORY_REGION)"
        if isinstance(op.userspace_addr, Place):
            self.account.use("at")
        fields = (
            f"{unsigned(op.slot) if op.slot >> 16 else op.slot}, {flags(op.flags)}, "
            f"{unsigned(op.guest_phys_addr)}, {unsigned(op.memory_size)}, "
            f"{self._names.hva(op.userspace_addr)}"
        )
        if not isinstance(op, ops.SetUserMemoryRegion2):
            self.account.use("region")
            return f"set_region({fields})"
        self.account.use("region2")
        file = "-1" if op.guest_memfd == -1 else self._file(op.guest_memfd)
        return f"set_region2({fields}, {file}, {unsigned(op.guest_memfd_offset)})"

    def _file(self, name: str) -> str:
        """Return the file of a call: a guest_memfd, or a mapping's memfd."""
        if any(mapping.name == name for mapping in self._names.mappings):
            return self._names.file(name)
        return self.account.memfd(name)

    def _memfd(self, op: ops.MemfdOperation) -> str:
        account = self.account
        file = account.memfd(op.name)
        match op:
            case ops.CreateGuestMemfd():
                if op.flags & MEMFD_INIT_SHARED:
                    account.shared.add(op.name)
                return f"create_guest_memfd(&{file}, {unsigned(op.size)}, {unsigned(op.flags)})"
            case ops.CloseGuestMemfd():
                account.use("closememfd")
                return f"close_guest_memfd(&{file})"
            case ops.MapGuestMemfd():
                account.use("mapmemfd")
                sharing = "MAP_PRIVATE" if op.sharing == "private" else "MAP_SHARED"
                is_shared = "true" if op.name in account.shared else "false"
                mapping = self._names.variable(op.mapping)
                return f"map_guest_memfd({file}, {mapping}, {sharing}, {is_shared})"
            case ops.PunchGuestMemfd():
                account.use("punchmemfd")
                named = {"FALLOC_FL_PUNCH_HOLE": op.punch, "FALLOC_FL_KEEP_SIZE": op.keep_size}
                named[unsigned(op.others)] = bool(op.others)
                mode = " | ".join(name for name, is_set in named.items() if is_set) or "0"
                where = f"{unsigned(op.offset)}, {unsigned(op.size)}"
                return f"fallocate_guest_memfd({file}, {mode}, {where})"
            case ops.ResizeGuestMemfd():
                account.use("resizememfd")
                return f"resize_guest_memfd({file}, {unsigned(op.size)})"

    def _inspect(self, step: Expectation) -> list[str]:
        lines = []
        for outcome in (each.outcome for each in step.allowed):
            if isinstance(outcome, Inspected):
                for change in outcome.changes:
                    self.account.use("change")
                    name = self._names.variable(change.mapping)
                    where = f"{name}, {change.offset:#x}, {len(change.data)}"
                    lines.append(f"expect_change({where}, {data(change.data)});")
                lines += clock_writes(self.account, outcome)
        looks = [
            f"look_at({self._names.variable(mapping.name)});"
            for mapping in self._names.mappings[:-1]
        ]
        if looks:
            self.account.use("look")
        return [*lines, *looks]

    def _lives(self, op: ops.Lives) -> list[str]:
        part, function = _DEATHS[op.death]
        repeat = ("growth", "expect_no_growth") if op.watch == "kernel" else ("again", "again")
        self.account.use(part, repeat[0], "traces")
        before = f"traces_before_{len(self.account.functions)}"
        self.account.functions.append(f"static int {before};\n\n")
        return [
            f"{before} = traces();",
            f"{repeat[1]}({function}, {op.times});",
            f"expect_traces({before});",
        ]

    def _churn(self, op: ops.Churn, step: Expectation) -> list[str]:
        if not step.allowed:
            raise InexpressibleError("a slot churns whose place, or id, is in use")
        if op.what == "changes":
            self.account.use("churn")
            return [f"churned = {op.slot};", f"expect_no_growth(churn, {op.times});"]
        verb, _, what = op.what.partition("-")
        turn = _TURNS[verb]
        self.account.use(f"{turn}{what}")
        return [
            f"prepare_{what}({op.slot});",
            f"expect_no_growth({turn}_{what}, {op.times});",
            "delete_both();",
            *(["end_eventfds();"] if what == "eventfds" else []),
        ]

    def _pre_fault(self, op: ops.PreFaultMemory, step: Expectation) -> list[str]:
        self.account.use("prefaultcall")
        where = f"{op.vcpu}, {unsigned(op.gpa)}, {unsigned(op.size)}, {unsigned(op.flags)}"
        lines = [self.account.checked(f"pre_fault({where})", step)]
        for outcome in (each.outcome for each in step.allowed):
            if isinstance(outcome, PreFaulted):
                self.account.use("left")
                lines.append(f"expect_left({unsigned(outcome.gpa)}, {unsigned(outcome.size)});")
        return lines
