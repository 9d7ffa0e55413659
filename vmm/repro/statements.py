"""The C statements of one step: the call, and what is expected of it."""

from collections.abc import Iterable
from typing import assert_never

from vmm.memslots.allowed import Allowed
from vmm.memslots.history import (
    AnyOutcome,
    DirtyPages,
    Done,
    Inspected,
    Mmio,
    PreFaulted,
    Refused,
    Stopped,
    Swept,
    Touched,
    Unmapped,
)
from vmm.memslots.operations import (
    REAL_MODE_END,
    ChangeHostMemory,
    Churn,
    ClearDirtyLog,
    CloseGuestMemfd,
    CloseVm,
    CreateGuestMemfd,
    CreateIrqchip,
    CreateVcpu,
    EnableCap,
    Execute,
    GetDirtyLog,
    HarvestDirtyRing,
    HostWrite,
    Inspect,
    Lives,
    MapGuestMemfd,
    NewVm,
    PreFaultMemory,
    Race,
    ResetDirtyRings,
    Scenario,
    SetIdentityMapAddr,
    SetTssAddr,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Sweep,
    Touch,
    UnmapInternalSlots,
    pages_of,
)
from vmm.memslots.regions import MAX_PAGES, as_id_of, id_of
from vmm.repro.expectations import Expectation
from vmm.repro.words import Words, data, error, flags, pages, unsigned

_UNKNOWN = -1

_FEW_SLOTS = 509
"""Every kernel has as many slots of its user's."""


class InexpressibleError(ValueError):
    """A step that has no form in a plain C program."""


class Statements:
    """Writes the statements of steps, and keeps account of what they use."""

    def __init__(self, words: Words) -> None:
        self.used: set[str] = {"mapping", "region", "at"}
        self.files: set[str] = set()
        self.names_many_slots = False
        self.names_spaces = False
        self._words = words
        self._children = 0
        self._as_ids: dict[int, int] = {}
        self._functions: list[str] = []

    def declarations(self) -> str:
        """Return the variables and functions that the statements refer to."""
        files = "".join(f"static int {name} = 1 << 30;\n" for name in sorted(self.files))
        before = "static int traces_before;\n" if "leftovers" in self.used else ""
        return f"{files}{before}\n" + "".join(self._functions)

    def dirty_words(self, scenario: Scenario) -> int:
        """Return how many words a bitmap has that is larger than any slot's."""
        sizes = [
            pages_of(op.memory_size)
            for op in scenario.operations
            if isinstance(op, SetUserMemoryRegion) and pages_of(op.memory_size) <= MAX_PAGES
        ]
        return max(sizes, default=0) // 64 + 18

    def of(self, step: Expectation) -> str:
        """Return the statements of a step. Raises InexpressibleError."""
        return "".join(f"\t{line}\n" for line in self._lines(step))

    def _lines(self, step: Expectation) -> Iterable[str]:
        op = step.operation
        match op:
            case SetUserMemoryRegion():
                return [self._checked(self._region(op), step.allowed)]
            case Touch():
                return [*self._mode(op, step), self._touch(op), *self._accessed(step)]
            case Sweep():
                return [*self._mode(op, step), self._sweep(op), *self._accessed(step)]
            case Execute():
                self._use("execute")
                call = f"guest_executes({op.vcpu}, {_gpa(op.gpa, 4096)});"
                return [*self._mode(op, step), call, *self._accessed(step)]
            case HostWrite():
                if isinstance(step.chosen, Refused):
                    return ["/* Nothing is mapped there, so nothing is written. */"]
                self._use("hostwrite")
                place = f"{self._words.variable(op.place.mapping)}, {op.place.offset:#x}"
                return [f"host_writes({place}, {unsigned(op.value)});"]
            case Inspect():
                return self._inspect(step)
            case GetDirtyLog():
                return self._get_log(op, step)
            case ClearDirtyLog():
                return self._clear_log(op, step)
            case EnableCap():
                self._use("cap")
                call = f"enable_cap(KVM_CAP_{op.cap}, {unsigned(op.argument)})"
                return [self._checked(call, step.allowed)]
            case CreateGuestMemfd():
                file = self._file(op.name)
                call = f"create_guest_memfd(&{file}, {unsigned(op.size)}, {unsigned(op.flags)})"
                return [self._checked(call, step.allowed)]
            case CloseGuestMemfd():
                self._use("closememfd")
                return [self._checked(f"close_guest_memfd(&{self._file(op.name)})", step.allowed)]
            case SetTssAddr():
                self._use("simple")
                call = f"vm_ioctl(KVM_SET_TSS_ADDR, {unsigned(op.gpa)})"
                return [self._checked(call, step.allowed)]
            case CreateIrqchip():
                self._use("simple")
                return [self._checked("vm_ioctl(KVM_CREATE_IRQCHIP, 0)", step.allowed)]
            case SetIdentityMapAddr():
                self._use("identity")
                call = f"set_identity_map_addr({unsigned(op.gpa)})"
                return [self._checked(call, step.allowed)]
            case CreateVcpu():
                self._use("newvcpu")
                return [self._checked(f"create_vcpu({op.vcpu})", step.allowed)]
            case UnmapInternalSlots():
                self._use("internal")
                numbers = [
                    a.outcome.mappings for a in step.allowed if isinstance(a.outcome, Unmapped)
                ]
                return [f"expect(unmap_internal_slots() - {number}, 0);" for number in numbers]
            case PreFaultMemory():
                return self._pre_fault(op, step)
            case NewVm():
                self._use("newvm")
                self._as_ids.clear()
                return ["close_vm();", 'vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");']
            case CloseVm():
                self._use("newvm", "leftovers")
                return ["close_vm();", "expect(traces() - traces_before, 0);"]
            case (
                MapGuestMemfd()
                | HarvestDirtyRing()
                | ResetDirtyRings()
                | Lives()
                | Churn()
                | ChangeHostMemory()
                | Race()
            ):
                raise InexpressibleError(f"{type(op).__name__} has no form in a C program yet")
            case _:
                assert_never(op)

    def _use(self, *parts: str) -> None:
        self.used.update(parts)

    def _file(self, name: str) -> str:
        self._use("memfd")
        file = self._words.file(name)
        self.files.add(file)
        return file

    def _checked(self, call: str, allowed: tuple[Allowed, ...]) -> str:
        """Return a call with the errnos that it may answer."""
        numbers = list(dict.fromkeys(_errno(each.outcome) for each in allowed))
        if not numbers:
            return f"{call};"
        if len(numbers) == 1:
            return f"expect({call}, {error(numbers[0])});"
        self._use("either")
        return f"expect_either({call}, {error(numbers[0])}, {error(numbers[1])});"

    def _region(self, op: SetUserMemoryRegion) -> str:
        self.names_many_slots |= id_of(op.slot) >= _FEW_SLOTS - 1
        self.names_spaces |= as_id_of(op.slot) > 0
        call = self._region_call(op)
        if op.caller == "owner":
            return call
        self._use("child")
        self._children += 1
        name = f"call_{self._children}"
        self._functions.append(f"static int {name}(void)\n{{\n\treturn {call};\n}}\n\n")
        return f"in_a_child({name})"

    def _region_call(self, op: SetUserMemoryRegion) -> str:
        second = isinstance(op, SetUserMemoryRegion2)
        if op.argument == "unreadable":
            self._use("badpointer")
            return "set_region_from_nowhere(KVM_SET_USER_MEMORY_REGION)"
        fields = (
            f"{unsigned(op.slot) if op.slot >> 16 else op.slot}, {flags(op.flags)}, "
            f"{unsigned(op.guest_phys_addr)}, {unsigned(op.memory_size)}, "
            f"{self._words.hva(op.userspace_addr)}"
        )
        if not isinstance(op, SetUserMemoryRegion2):
            return f"set_region({fields})"
        assert second
        self._use("region2")
        file = "-1" if op.guest_memfd == -1 else self._memfd(op.guest_memfd)
        return f"set_region2({fields}, {file}, {unsigned(op.guest_memfd_offset)})"

    def _memfd(self, name: str) -> str:
        """Return the file of a call: a guest_memfd, or that of a mapping."""
        if any(mapping.name == name for mapping in self._words.mappings):
            return self._words.file(name)
        return self._file(name)

    def _mode(self, op: Touch | Sweep | Execute, step: Expectation) -> list[str]:
        """Return the switch to the address space of an access, if the vCPU sees another one."""
        known = self._as_ids.get(op.vcpu, 0)
        # A vCPU that stops may leave system management mode by itself.
        may_stop = any(isinstance(each.outcome, Stopped) for each in step.allowed)
        self._as_ids[op.vcpu] = _UNKNOWN if op.as_id and may_stop else op.as_id
        if known == op.as_id:
            return []
        self._use("smm")
        return [f"set_smm({op.vcpu}, {'true' if op.as_id else 'false'});"]

    def _touch(self, op: Touch) -> str:
        where = f"{op.vcpu}, {_gpa(op.gpa, op.width)}, {op.width}"
        if op.access == "read":
            self._use("read")
            return f"guest_reads({where});"
        self._use("write")
        return f"guest_writes({where}, {unsigned(op.value & (1 << 8 * op.width) - 1)});"

    def _sweep(self, op: Sweep) -> str:
        where = f"{op.vcpu}, {_gpa(op.gpa, op.count * op.width)}, {op.count}, {op.width}"
        if op.access == "read":
            self._use("copies")
            return f"guest_copies({where});"
        self._use("fills")
        return f"guest_fills({where}, {unsigned(op.value)});"

    def _accessed(self, step: Expectation) -> list[str]:
        """Return what is expected of an access; hardware and emulators may stop differently."""
        outcomes = [each.outcome for each in step.allowed]
        stops = [each.reason for each in outcomes if isinstance(each, Stopped)]
        usual = [each for each in outcomes if isinstance(each, Touched | Swept)]
        if not outcomes:
            return []
        if not usual:
            self._use("cannotfetch")
            return ["expect_no_fetch();"]
        lines = self._usual(step, usual[0])
        if not stops:
            return lines
        self._use("stopped")
        inner = [f"\t{line}" for line in lines]
        return [f'if (!stopped("{stops[0]}")) {{', *inner, "}"]

    def _usual(self, step: Expectation, outcome: Touched | Swept) -> list[str]:
        self._use("value", *(("mmio",) if outcome.mmio else ()))
        lines = [_mmio(each) for each in outcome.mmio]
        if isinstance(outcome, Touched):
            return [*lines, f"expect_value({unsigned(outcome.value)});"]
        lines.append("expect_value(0);")
        assert isinstance(step.operation, Sweep)
        first = 0
        for value, times in outcome.runs:
            width = step.operation.width
            lines.append(f"expect_elements({first}, {times}, {width}, {unsigned(value)});")
            first += times
        return lines

    def _inspect(self, step: Expectation) -> list[str]:
        lines = []
        for outcome in (each.outcome for each in step.allowed):
            if isinstance(outcome, Inspected):
                for change in outcome.changes:
                    self._use("change")
                    name = self._words.variable(change.mapping)
                    where = f"{name}, {change.offset:#x}, {len(change.data)}"
                    lines.append(f"expect_change({where}, {data(change.data)});")
        self._use("look")
        looks = [
            f"look_at({self._words.variable(mapping.name)});"
            for mapping in self._words.mappings[:-1]
        ]
        return [*lines, *looks]

    def _get_log(self, op: GetDirtyLog, step: Expectation) -> list[str]:
        self._use("dirty", "getdirty")
        self.names_spaces |= as_id_of(op.slot) > 0
        self.names_many_slots |= id_of(op.slot) >= _FEW_SLOTS - 1
        bitmap = "dirty"
        if op.bitmap == "unwritable":
            self._use("nowhere")
            bitmap = "nowhere()"
        lines = [self._checked(f"get_dirty_log({op.slot}, {bitmap})", step.allowed)]
        logs = [each.outcome for each in step.allowed if isinstance(each.outcome, DirtyPages)]
        if logs:
            self._use("expectdirty")
            optional = {page for log in logs for page in (*log.pages, *log.perhaps)}
            sure = set.intersection(*(set(log.pages) for log in logs))
            maybe = tuple(sorted(optional - sure))
            lines.append(f"expect_dirty({pages(tuple(sorted(sure)))}, {pages(maybe)});")
        return lines

    def _clear_log(self, op: ClearDirtyLog, step: Expectation) -> list[str]:
        self._use("dirty", "cleardirty", "markall" if op.pages == "all" else "mark")
        bitmap = "dirty"
        if op.bitmap == "unreadable":
            self._use("nowhere")
            bitmap = "nowhere()"
        if op.pages == "all":
            marks = "mark_all();"
        else:
            bits = tuple(page - op.first_page for page in op.pages)
            marks = f"mark({pages(bits)});"
        call = f"clear_dirty_log({op.slot}, {unsigned(op.first_page)}, {op.num_pages}, {bitmap})"
        return [marks, self._checked(call, step.allowed)]

    def _pre_fault(self, op: PreFaultMemory, step: Expectation) -> list[str]:
        self._use("prefault")
        where = f"{op.vcpu}, {unsigned(op.gpa)}, {unsigned(op.size)}, {unsigned(op.flags)}"
        lines = [self._checked(f"pre_fault({where})", step.allowed)]
        for outcome in (each.outcome for each in step.allowed):
            if isinstance(outcome, PreFaulted):
                self._use("left")
                lines.append(f"expect_left({unsigned(outcome.gpa)}, {unsigned(outcome.size)});")
        return lines


def _errno(outcome: AnyOutcome) -> int:
    match outcome:
        case Refused(number):
            return number
        case Done() | DirtyPages() | PreFaulted():
            return 0
        case _:
            raise InexpressibleError(f"a call that comes to {type(outcome).__name__}")


def _gpa(gpa: int, length: int) -> str:
    if gpa + length > REAL_MODE_END:
        raise InexpressibleError(f"gpa {gpa:#x} is out of reach of real mode")
    return unsigned(gpa)


def _mmio(each: Mmio) -> str:
    write = "true" if each.write else "false"
    return f"expect_mmio({write}, {unsigned(each.gpa)}, {len(each.data)}, {data(each.data)});"
