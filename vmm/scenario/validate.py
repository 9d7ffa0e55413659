"""What makes a scenario safe to run: checked before anything is mapped or executed.

A scenario can name its own mappings, address 0 and addresses that no process owns; and what it
takes is bounded. Everything else about its operations is legal: a refusal is an outcome.
"""

from collections.abc import Sequence
from typing import assert_never

import msgspec

from vmm.scenario.expected import expectation_problem
from vmm.scenario.features import NEEDS
from vmm.scenario.hostpages import CHANGES
from vmm.scenario.instructions import accessed, instruction_problem
from vmm.scenario.operations import (
    GUEST_MAPPING,
    GUEST_SIZE_BYTES,
    MAX_GPA_BITS,
    MAX_VMS,
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    WINDOW_STEP_BYTES,
    AnyOperation,
    ChangeHostMemory,
    Churn,
    ClearDirtyLog,
    CloseGuestMemfd,
    CloseVm,
    CoalesceMmio,
    CollectMmio,
    CreateGuestMemfd,
    CreateIrqchip,
    CreateVcpu,
    EnableCap,
    Execute,
    GetDirtyLog,
    HarvestDirtyRing,
    HostWrite,
    Inspect,
    Instruction,
    IoEventFd,
    Lives,
    MapGuestMemfd,
    Mapping,
    NewVm,
    Place,
    PreFaultMemory,
    PunchGuestMemfd,
    Race,
    ResetDirtyRings,
    Scenario,
    SetIdentityMapAddr,
    SetMemoryAttributes,
    SetTssAddr,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Sweep,
    SwitchVm,
    Touch,
    UnmapInternalSlots,
    address_spaces,
    guest_count,
    pages_of,
)
from vmm.scenario.problem import ScenarioError as ScenarioError
from vmm.scenario.races import host_change_problem, race_problem
from vmm.scenario.reached import (
    MAX_PRE_FAULTED_PAGES,
    SPARSE_PAGES,
    filled_pages,
    is_sparse,
    reached_pages,
)
from vmm.scenario.shown import is_plain
from vmm.scenario.slots import MAX_PAGES, MAX_SLOTS, USER_END, as_id_of, id_of
from vmm.scenario.standing import MayStand

MAX_OPERATIONS = 200_000
MAX_BEFORE_THE_END = 4
"""So many pages before the end of user addresses a slot may begin that reaches beyond it."""
MAX_MAPPINGS = 255
MAX_MAPPED_PAGES = 1 << 17
"""Pages that are filled, in all mappings together: of a large one those that are reached."""

MAX_SPARSE_PAGES = 1 << 24
"""Pages of one mapping: 64 GiB, of which nothing exists that is not reached."""

MAX_SLOT_PAGES = 1 << 24
"""Pages of one slot: without TDP its metadata are allocated at once, about 10 bytes a page."""

MAX_ALL_SLOT_PAGES = 1 << 28
"""Pages of all slots that a scenario could create, each operation counted."""

MAX_ATTRIBUTE_PAGES = 1 << 18
"""Pages of one call that sets attributes: the kernel keeps an entry for each."""

MAX_ZERO_PAGES = 16
MAX_SWEEP_BYTES = 0x4000
MAX_TOUCHED_WINDOWS = 128
"""Stretches of 2 MiB from 4 GiB on that a scenario touches besides its surveys."""

MAX_VCPUS = 8
MAX_DEVICES = 400
"""Ranges that are coalesced, and eventfds on gpas: a kernel has room for 1000."""

MAX_EVENTFDS = 16
MAX_TIMES = 10_000
MAX_FAIL_NTH = 100
_NAME_LENGTH = 64
_A_NAME = f"1 to {_NAME_LENGTH} printable characters are needed"


def validate(scenario: Scenario) -> None:
    """Raise ScenarioError, with the place, unless the scenario is safe to run."""
    if not is_plain(scenario.name, _NAME_LENGTH):
        raise ScenarioError(f"$.name: {_A_NAME}")
    if not 1 <= scenario.vcpus <= MAX_VCPUS:
        raise ScenarioError(f"$.vcpus: {scenario.vcpus} is not within 1 to {MAX_VCPUS}")
    for need in scenario.needs:
        if need not in NEEDS:
            raise ScenarioError(f"$.needs: {need!r} is none of {', '.join(sorted(NEEDS))}")
    if scenario.vm_type and "sw_protected" not in scenario.needs:
        raise ScenarioError("$.vm_type: 1 needs 'sw_protected' in $.needs")
    _check_guest(scenario)
    _check_mappings(scenario.mappings)
    if len(scenario.operations) > MAX_OPERATIONS:
        raise ScenarioError(f"$.operations: more than {MAX_OPERATIONS}")
    _check_large(scenario)
    checker = _Checker(scenario)
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
        if scenario.vm_type and isinstance(operation, Execute | Race):
            problem = ": zeros could be executed, and races are not judged ($.vm_type)"
        if scenario.vm_type and isinstance(operation, CreateGuestMemfd) and operation.flags:
            problem = ".flags: 0 is needed ($.vm_type)"
        if problem:
            raise ScenarioError(f"$.operations[{index}]{problem}")


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
    last = MAX_SLOTS - guest_count(scenario)
    if not 0 <= guest.slot <= last:
        raise ScenarioError(f"$.guest.slot: not within 0 to {last}: no kernel has more slots")


def _check_second_view(place: str, mapping: Mapping, before: Sequence[Mapping]) -> None:
    """A mapping of another one's file shows pages that are there, all of them filled."""
    file = next((each for each in before if each.name == mapping.of), None)
    if file is None or file.kind != "memfd" or file.of or is_sparse(file):
        raise ScenarioError(
            f"{place}.of: {mapping.of!r} is no mapping of kind memfd that stands before, "
            f"with a file of its own of at most {SPARSE_PAGES} pages"
        )
    if mapping.kind not in ("memfd", "private_file"):
        raise ScenarioError(f"{place}.kind: memfd or private_file is needed, as it shows a file")
    if mapping.pages > file.pages:
        raise ScenarioError(f"{place}.pages: {mapping.of!r} has {file.pages}")


def _check_mappings(mappings: Sequence[Mapping]) -> None:
    names = {GUEST_MAPPING}
    total = 0
    for index, mapping in enumerate(mappings):
        place = f"$.mappings[{index}]"
        if index >= MAX_MAPPINGS:
            raise ScenarioError(f"{place}: more than {MAX_MAPPINGS} mappings")
        if not is_plain(mapping.name, _NAME_LENGTH):
            raise ScenarioError(f"{place}.name: {_A_NAME}")
        if mapping.name in names:
            raise ScenarioError(f"{place}.name: {mapping.name!r} is taken or reserved")
        names.add(mapping.name)
        is_free = is_sparse(mapping) or mapping.kind == "unmapped"
        total += 0 if is_free else mapping.pages
        limit = MAX_ZERO_PAGES if mapping.kind == "zero" else MAX_MAPPED_PAGES
        if is_free and mapping.pages > 0:
            if mapping.pages > MAX_SPARSE_PAGES:
                raise ScenarioError(f"{place}.pages: at most {MAX_SPARSE_PAGES} are possible")
        elif not 1 <= mapping.pages <= limit or total > MAX_MAPPED_PAGES:
            raise ScenarioError(
                f"{place}.pages: {mapping.pages} is not within 1 to {limit} (all mappings together)"
            )
        if mapping.kind == "hugetlb" and mapping.pages % 512:
            raise ScenarioError(f"{place}.pages: hugetlb memory comes in multiples of 512 pages")
        if mapping.kind == "private_file" and is_sparse(mapping):
            raise ScenarioError(f"{place}.pages: a private_file has {SPARSE_PAGES} at the most")
        if mapping.of:
            _check_second_view(place, mapping, mappings[:index])
    if sum(mapping.kind == "zero" for mapping in mappings) > 1:
        raise ScenarioError("$.mappings: only one mapping can be at virtual address 0")


_OF_ONE_VM = (
    *(CreateGuestMemfd, MapGuestMemfd, SetMemoryAttributes, Churn, UnmapInternalSlots),
    *(SetTssAddr, SetIdentityMapAddr, CreateIrqchip),
)
"""What says nothing of which VM it is about, or takes memory that a VM has to itself."""

_WITHOUT_A_VM = (
    *(CloseVm, NewVm, SwitchVm, Lives, Inspect, HostWrite, ChangeHostMemory),
    *(CloseGuestMemfd, MapGuestMemfd, PunchGuestMemfd),
)
"""What takes no VM, so that it may come between ``close_vm`` and ``new_vm``."""


def _check_large(scenario: Scenario) -> None:
    """What is filled of large mappings depends on what is reached: bound that."""
    if not any(map(is_sparse, scenario.mappings)):
        return
    for index, op in enumerate(scenario.operations):
        place = f"$.operations[{index}]"
        if isinstance(op, Race):
            raise ScenarioError(f"{place}: races take no mapping of more than {SPARSE_PAGES} pages")
        if isinstance(op, PreFaultMemory) and pages_of(op.size) > MAX_PRE_FAULTED_PAGES:
            limit = f"{MAX_PRE_FAULTED_PAGES} pages with a mapping of more than {SPARSE_PAGES}"
            raise ScenarioError(f"{place}.size: at most {limit}")
    reached = reached_pages(scenario, 1 << MAX_GPA_BITS)
    filled = sum(
        filled_pages(mapping, reached)
        for mapping in scenario.mappings
        if mapping.kind not in ("unmapped", "guest_memfd")
    )
    if filled > MAX_MAPPED_PAGES:
        raise ScenarioError(
            f"$.mappings: {filled} pages would be filled where the guest looks, and at most "
            f"{MAX_MAPPED_PAGES} may be (thp: whole huge pages)"
        )


_ITS_FILE, _VACATED, _HIDDEN = range(3)
"""What a page of a mapping of a file shows."""


class _Checker:
    """Looks at one operation at a time."""

    def __init__(self, scenario: Scenario) -> None:
        self._mappings = {mapping.name: mapping for mapping in scenario.mappings}
        self._guest = scenario.guest
        self._vcpus = scenario.vcpus
        self._slot_pages = 0
        self._races = False
        self._windows: set[int] = set()
        self._taken: set[str] = set()
        self._vacated: dict[str, bytearray] = {}
        self._cut: set[str] = set()
        self._immovable: set[str] = set()
        self._away: dict[str, bytearray] = {}
        self._is_forked = False
        self._devices = 0
        self._events: set[str] = set()
        self._aliases = any(m.of or m.kind == "private_file" for m in scenario.mappings)
        self._views = {m.name: {m.name} for m in scenario.mappings}
        for mapping in scenario.mappings:
            self._views[mapping.of or mapping.name].add(mapping.name)
        self._guests = guest_count(scenario)
        self._guest_ids = range(self._guest.slot, self._guest.slot + self._guests)
        self._spaces = address_spaces(scenario)
        begin = self._guest.gpa - (self._guests - 1) * GUEST_SIZE_BYTES
        self._guest_gpas = range(begin, self._guest.gpa + GUEST_SIZE_BYTES)
        self._standing = MayStand(self._guest_ids, self._guest_gpas)
        self._memfds = {
            op.name: op for op in scenario.operations if isinstance(op, CreateGuestMemfd)
        }
        self._created: set[str] = set()
        self._shown: dict[str, str] = {}

    def problem(self, op: AnyOperation) -> str:
        """Return what is wrong, beginning with the field; empty if nothing is."""
        if op.expect:
            found = expectation_problem(op, self._races)
            if found:
                return found
        match op:
            case SetUserMemoryRegion():
                return self._region(op)
            case Touch():
                return self._access(op, op.width, op.value)
            case Sweep():
                if not 1 <= op.count * op.width <= MAX_SWEEP_BYTES:
                    return f".count: a sweep is 1 to {MAX_SWEEP_BYTES:#x} bytes long"
                return self._access(op, op.count * op.width, op.value)
            case Execute():
                if op.gpa % PAGE_SIZE_BYTES:
                    return ".gpa: a page aligned address is needed"
                return self._access(op, PAGE_SIZE_BYTES, 0)
            case Instruction():
                return instruction_problem(op) or self._accesses(op)
            case SetTssAddr() | SetIdentityMapAddr():
                return "" if 0 <= op.gpa < 1 << 64 else ".gpa: 64 bits are needed"
            case CreateIrqchip():
                return "" if self._vcpus == 1 else ": $.vcpus must be 1, others would wait"
            case CreateVcpu():
                return self._vcpu(op.vcpu)
            case SetMemoryAttributes():
                return _attributes(op)
            case PreFaultMemory():
                return _unsigned(op, "gpa", "size", "flags") or self._vcpu(op.vcpu)
            case HostWrite():
                if not 0 <= op.value < 1 << 32:
                    return ".value: an unsigned 32-bit number is needed"
                if op.place.mapping in self._taken:
                    return f".place: an operation takes pages of {op.place.mapping!r} away"
                return self._place(op.place, 4, ".place")
            case ChangeHostMemory():
                return self._change(op)
            case Race():
                if self._aliases:
                    return ": races take no mapping that shows another one's file, or its copy"
                self._races = True
                found = race_problem(op, self._vcpus, self._mappings, self.problem)
                self._races = False
                return found
            case GetDirtyLog():
                return "" if 0 <= op.slot < 1 << 32 else ".slot: 32 bits are needed"
            case ClearDirtyLog():
                return self._clear(op)
            case EnableCap():
                return "" if 0 <= op.argument < 1 << 64 else ".argument: 64 bits are needed"
            case HarvestDirtyRing():
                return self._vcpu(op.vcpu)
            case Lives():
                return "" if 1 <= op.times <= MAX_TIMES else f".times: not within 1 to {MAX_TIMES}"
            case Churn():
                if not 1 <= op.times <= MAX_TIMES:
                    return f".times: not within 1 to {MAX_TIMES}"
                return self._standing.problem(op)
            case NewVm() | CloseVm():
                self._is_forked = False
                self._standing.forget()
                return ""
            case CoalesceMmio():
                self._devices += 1
                if self._devices > MAX_DEVICES:
                    return f": more than {MAX_DEVICES} of these and of ioeventfd"
                if not 0 <= op.size < 1 << 32:
                    return ".size: an unsigned 32-bit number is needed"
                return _unsigned(op, "gpa")
            case IoEventFd():
                return self._ioeventfd(op)
            case CollectMmio():
                return ""
            case SwitchVm():
                return "" if 0 <= op.vm < MAX_VMS else f".vm: not within 0 to {MAX_VMS - 1}"
            case CreateGuestMemfd():
                return self._memfd(op)
            case CloseGuestMemfd():
                return self._known_memfd(op.name)
            case MapGuestMemfd():
                return self._known_memfd(op.name) or self._shown_memfd(op)
            case PunchGuestMemfd():
                return self._known_memfd(op.name) or _unsigned(op, "offset", "size")
            case Inspect() | ResetDirtyRings() | UnmapInternalSlots():
                return ""
            case _:
                assert_never(op)

    def _change(self, op: ChangeHostMemory) -> str:
        """What the host has taken away it must not write."""
        problem = self._place(op.place, op.pages * PAGE_SIZE_BYTES, ".place")
        problem = problem or host_change_problem(op, self._mappings)
        problem = problem or self._odd_change_problem(op)
        if problem:
            return problem
        problem = self._elsewhere_problem(op)
        if op.how in ("unmap", "forbid", "write_protect", "move_away"):
            self._taken.add(op.place.mapping)
        if op.how in ("unmap", "forbid", "write_protect", "map_file"):
            self._immovable.add(op.place.mapping)
        return problem or self._mapped_problem(op)

    def _elsewhere_problem(self, op: ChangeHostMemory) -> str:
        """What was moved away is moved back before anything else; so it is with a forked child."""
        if op.how in ("fork", "reap"):
            if self._is_forked is (op.how == "fork"):
                return ".how: 'fork' and 'reap' take turns"
            self._is_forked = op.how == "fork"
            return ""
        name = op.place.mapping
        if op.how == "move_away" and name in self._immovable:
            return f".how: an operation takes pages of {name!r} away in another way"
        if op.how == "move_away":
            self._away.setdefault(name, bytearray(self._mappings[name].pages))
        away = self._away.get(name)
        if away is None:
            return "" if op.how != "move_back" else ".how: nothing was moved away"
        first = op.place.offset // PAGE_SIZE_BYTES
        pages = slice(first, first + op.pages)
        if away.count(op.how == "move_back", first, pages.stop) != op.pages:
            return ".how: pages that were moved away are moved back first, and no others"
        if op.how in ("move_away", "move_back"):
            away[pages] = bytes((op.how == "move_away",)) * op.pages
        return ""

    def _odd_change_problem(self, op: ChangeHostMemory) -> str:
        """A change may show other memory than a mapping was made for, or cut its file."""
        name = op.place.mapping
        if (op.source is not None) is not (op.how == "map_file"):
            return ".source: what 'map_file' maps, and nothing else, has one"
        if op.how in ("drop", "punch", "unmap", "map", "forbid", "allow"):
            return ""
        mapping = self._mappings[name]
        self._aliases |= not CHANGES[op.how].keeps
        if is_sparse(mapping):
            return f".how: {op.how!r} takes a mapping of at most {SPARSE_PAGES} pages"
        if op.source is not None:
            source = op.source.mapping
            problem = self._place(op.source, op.pages * PAGE_SIZE_BYTES, ".source")
            if problem:
                return problem
            file = self._mappings[source]
            if file.kind != "memfd" or file.of or is_sparse(file):
                return f".source: {source!r} is no memfd of its own of at most {SPARSE_PAGES} pages"
            if op.source.offset % PAGE_SIZE_BYTES:
                return ".source: a whole page is needed"
            self._views[source].add(name)
            self._taken.update(self._views[source] if source in self._cut else ())
        if op.how in ("truncate", "extend"):
            if mapping.of:
                return f".place: the file is that of {mapping.of!r}"
            if pages_of(op.place.offset) + op.pages != mapping.pages:
                return ".pages: the last pages are needed, all of them"
        if op.how == "truncate":
            self._cut.add(name)
            self._taken |= self._views[name]
        return ""

    def _mapped_problem(self, op: ChangeHostMemory) -> str:
        """A file's page that is unmapped, or hidden, is not there again before it is mapped."""
        mapping = self._mappings[op.place.mapping]
        if mapping.kind not in ("memfd", "private_file"):
            return ""
        shown = self._vacated.setdefault(mapping.name, bytearray(mapping.pages))
        first = op.place.offset // PAGE_SIZE_BYTES
        pages = slice(first, first + op.pages)
        marks = {"unmap": _VACATED, "map": _ITS_FILE, "map_fresh": _HIDDEN, "map_file": _HIDDEN}
        if op.how in marks:
            shown[pages] = bytes((marks[op.how],)) * op.pages
        elif op.how in ("allow", "write_protect") and shown.find(_VACATED, first, pages.stop) >= 0:
            return f".how: {op.how!r} takes pages that are mapped: 'map' those that were unmapped"
        elif op.how == "punch" and shown.count(_ITS_FILE, first, pages.stop) != op.pages:
            return ".how: 'punch' takes pages of the mapping's own file: 'map' them first"
        return ""

    def _clear(self, op: ClearDirtyLog) -> str:
        """A bit is within the words that the kernel reads, and those are within our bitmap."""
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
        return "" if 0 <= vcpu < self._vcpus else f".vcpu: there are {self._vcpus} ($.vcpus)"

    def _memfd(self, op: CreateGuestMemfd) -> str:
        """Each file has a name of its own, so that leaving operations out keeps names true."""
        if not is_plain(op.name, _NAME_LENGTH):
            return f".name: {_A_NAME}"
        if op.name in self._created or op.name in self._mappings:
            return f".name: {op.name!r} is taken"
        self._created.add(op.name)
        return _unsigned(op, "size", "flags")

    def _ioeventfd(self, op: IoEventFd) -> str:
        self._devices += 1
        self._events.add(op.name)
        if self._devices > MAX_DEVICES:
            return f": more than {MAX_DEVICES} of these and of coalesce_mmio"
        if len(self._events) > MAX_EVENTFDS:
            return f".name: more than {MAX_EVENTFDS} eventfds"
        if not is_plain(op.name, _NAME_LENGTH):
            return f".name: {_A_NAME}"
        if not 0 <= op.length < 1 << 32:
            return ".length: an unsigned 32-bit number is needed"
        if op.match is not None and not 0 <= op.match < 1 << 64:
            return ".match: an unsigned 64-bit number is needed"
        return _unsigned(op, "gpa")

    def _known_memfd(self, name: str) -> str:
        return "" if name in self._memfds else f".name: no operation creates {name!r}"

    def _shown_memfd(self, op: MapGuestMemfd) -> str:
        """A mapping shows one file only, and lies within it: beyond its end is SIGBUS."""
        mapping = self._mappings.get(op.mapping)
        if mapping is None or mapping.kind != "guest_memfd":
            return f".mapping: {op.mapping!r} is no mapping of kind guest_memfd"
        if self._shown.setdefault(op.mapping, op.name) != op.name:
            return f".mapping: {op.mapping!r} shows another guest_memfd"
        if sum(name == op.name for name in self._shown.values()) > 1:
            return f".name: {op.name!r} is shown by another mapping"
        if mapping.pages * PAGE_SIZE_BYTES > self._memfds[op.name].size:
            return f".mapping: {op.mapping!r} is larger than {op.name!r}"
        return ""

    def _region(self, op: SetUserMemoryRegion) -> str:
        self._standing.note(op, once=not self._races)
        for field in ("slot", "flags"):
            if not 0 <= getattr(op, field) < 1 << 32:
                return f".{field}: an unsigned 32-bit number is needed"
        problem = _unsigned(op, "guest_phys_addr", "memory_size")
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
        if isinstance(op, SetUserMemoryRegion2):
            if op.guest_memfd != -1 and not self._is_file(op.guest_memfd):
                return (
                    f".guest_memfd: {op.guest_memfd!r} is neither -1, nor a guest_memfd of the "
                    "scenario, nor a mapping of kind memfd"
                )
            if not 0 <= op.guest_memfd_offset < 1 << 64:
                return ".guest_memfd_offset: an unsigned 64-bit number is needed"
        return self._hva(op)

    def _is_file(self, name: str) -> bool:
        mapping = self._mappings.get(name)
        return name in self._memfds or (mapping is not None and mapping.kind == "memfd")

    def _hva(self, op: SetUserMemoryRegion) -> str:
        """An hva must stay inside its mapping, wherever a kernel could accept the size."""
        size = op.memory_size if pages_of(op.memory_size) <= MAX_PAGES else 0
        if isinstance(op.userspace_addr, Place):
            return self._place(op.userspace_addr, size, ".userspace_addr")
        if USER_END <= op.userspace_addr < 1 << 64:
            return ""
        # A kernel that takes it lets the guest reach what may be the top of this process's stack.
        few = USER_END - op.userspace_addr <= MAX_BEFORE_THE_END * PAGE_SIZE_BYTES
        if few and op.userspace_addr + size > USER_END:
            return ""
        if op.userspace_addr == 0 and pages_of(size) <= MAX_ZERO_PAGES:
            return ""
        return (
            f".userspace_addr: {op.userspace_addr:#x} is neither 0 (up to {MAX_ZERO_PAGES} pages) "
            f"nor {USER_END:#x} or more (nor does it reach beyond that from up to "
            f"{MAX_BEFORE_THE_END} pages before); name a place in a mapping"
        )

    def _place(self, place: Place, size: int, field: str) -> str:
        mapping = self._mappings.get(place.mapping)
        if mapping is None:
            return (
                f"{field}.mapping: no mapping is named {place.mapping!r}; declare it in $.mappings"
            )
        if not place.offset >= 0 or place.offset + size > mapping.pages * PAGE_SIZE_BYTES:
            return f"{field}.offset: not within the {mapping.pages} pages of {place.mapping!r}"
        return ""

    def _accesses(self, op: Instruction) -> str:
        at, *others = accessed(op)
        found = self._access(op, at[1], 0)
        for gpa, length in () if found else others:
            found = self._access(msgspec.structs.replace(op, gpa=gpa), length, 0)
            found = found.replace(".gpa", ".source", 1)
        return found

    def _access(self, op: Touch | Sweep | Execute | Instruction, length: int, value: int) -> str:
        gpa = op.gpa
        if op.as_id not in self._spaces:
            return ".as_id: guests look at as_id 1 where $.needs names smm"
        if not 0 <= gpa <= (1 << MAX_GPA_BITS) - length:
            return f".gpa: an address has {MAX_GPA_BITS} bits at the most"
        if gpa + length > REAL_MODE_END or (isinstance(op, Instruction) and op.mode == "long"):
            self._windows.add(gpa // WINDOW_STEP_BYTES)
            if len(self._windows) > MAX_TOUCHED_WINDOWS:
                return f".gpa: more than {MAX_TOUCHED_WINDOWS} stretches of 2 MiB from 4 GiB on"
        if gpa < self._guest_gpas.stop and gpa + length > self._guest_gpas.start:
            return f".gpa: the guest's own memory is at {self._guest.gpa:#x}; move $.guest.gpa"
        if not 0 <= value < 1 << 32:
            return ".value: an unsigned 32-bit number is needed"
        return self._vcpu(op.vcpu)


def _unsigned(op: AnyOperation, *fields: str) -> str:
    """Return which field of an operation is no unsigned 64-bit number; empty if all are."""
    for field in fields:
        if not 0 <= getattr(op, field) < 1 << 64:
            return f".{field}: an unsigned 64-bit number is needed"
    return ""


def _attributes(op: SetMemoryAttributes) -> str:
    """The kernel takes memory for each gfn, and time."""
    if pages_of(op.size) > MAX_ATTRIBUTE_PAGES and op.address + op.size < 1 << 64:
        return f".size: at most {MAX_ATTRIBUTE_PAGES} pages at once"
    return _unsigned(op, "address", "size", "attributes", "flags")
