"""Reads strace's output: the system calls on KVM, and those on the memory of slots."""

import errno
import re
from collections.abc import Iterable
from functools import lru_cache

from msgspec.structs import replace

from vmm.replay.calls import lines_of_calls
from vmm.replay.lines import shown
from vmm.replay.memory_calls import MEMORY_CALLS, memory_of
from vmm.replay.numbers import (
    CAPABILITIES,
    CHECK_EXTENSION,
    CLONE_FILES,
    CLONE_VM,
    CONCERNED,
    CREATE_VM,
    ENABLE_CAP,
    MEM_FLAGS,
    PRE_FAULT,
    REGION,
    REGION2,
    RESET_RINGS,
    SET_TSS_ADDR,
    TOO_LITTLE,
    bits_in,
    request_in,
)
from vmm.replay.processes import MAX_CAPABILITIES, File, Process, Processes
from vmm.replay.syntax import (
    MAKERS,
    MAX_BEGUN,
    ON_A_SLOT,
    Begun,
    Called,
    Exited,
    Item,
    Joiner,
    Unparsed,
    fields_of,
    file_of,
    is_whole,
    number_of,
    split,
    unnamed,
)
from vmm.replay.trace import (
    MAX_MEMFDS,
    MAX_VMS,
    OTHER_FILE,
    Line,
    NoCalls,
    Region,
    Trace,
    TracedVm,
    Unread,
    VmCall,
)
from vmm.replay.vm_calls import (
    AS_OPERATIONS,
    NotOfSlots,
    mapping_of,
    operation_of,
    pre_fault_of,
    punch_of,
)
from vmm.scenario.operations import (
    GUEST_MEMFD,
    AnyOperation,
    CloseGuestMemfd,
    CreateGuestMemfd,
    CreateVcpu,
)
from vmm.scenario.slots import USER_END

_CALL = re.compile(r"[^\"]*?\b[a-z_][a-z0-9_]*\(.*\)\s*=\s+(?:-?\d|0x|\?)|.*<unfinished \.\.\.>")

_ALONE = "if `strace -ff -ttt` wrote a file for each thread, `strace-log-merge` joins them"
_ON_SLOTS = (REGION, REGION2, SET_TSS_ADDR)
_BEGINNINGS = (*_ON_SLOTS, "op=")
_STRUCTURE = "{slot="
_POINTER = {
    REGION: "only a pointer is here: strace 4.21 and later print the structure, without -e raw",
    REGION2: "strace prints only a pointer: QEMU's -trace kvm_set_user_memory has the rest",
}
_COMMENT = re.compile(r"/\*.*?\*/")
_MISSING = "a field of the structure is missing, or damaged"
_CUT_OFF = "the line is cut off"
_DAMAGED = "its name is damaged"
_STRANGE = "what stands before the call is not strace's"
_NO_OPERATION = "which no operation is like"
_NO_RESULT = "the result is not there"
_INJECTED = "strace made its result up (INJECTED)"
_MOST_BROKEN = 4
"""How many calls are looked for in a line whose calls are broken into."""

_NOT_A_VM = ("ENOTTY", "EBADF")
_CLONES = {**dict.fromkeys(MAKERS, 0), "vfork": CLONE_VM}
_WITH_FLAGS = ("clone", "clone3")
_CLONE_FLAGS = {"CLONE_VM": CLONE_VM, "CLONE_FILES": CLONE_FILES}
_FIELDS = ("slot", "guest_phys_addr", "memory_size", "userspace_addr")
_USUAL = re.compile(
    r"\{slot=(\d{1,10}), flags=([^,{}]*), guest_phys_addr=(0|0x[0-9a-f]{1,16}), "
    r"memory_size=(0|[1-9]\d{0,18}), userspace_addr=(0x[0-9a-f]{1,16})\}$"
)
"""Matches the structure as strace prints it, which is read quickly."""

_BY_ITSELF = (errno.EFAULT, errno.ENOTTY, errno.EIO)
"""Errors that do not depend on the content of the structure."""


def is_of_strace(line: str) -> bool:
    """Whether a line is one of strace's, or has a call on a slot."""
    return _CALL.match(line) is not None or ON_A_SLOT.search(line) is not None


def read_strace(lines: Iterable[tuple[int, str]], trace: Trace) -> None:
    """Read the lines of strace into ``trace``."""
    reader = _Reader(trace)
    joiner = Joiner()
    for number, line in lines_of_calls(lines, trace):
        item = joiner.item(number, line)
        for lost in joiner.lost():
            reader.take(lost)
        if item is not None:
            reader.take(item)
    for item in joiner.left():
        reader.take(item)
    for lacking, why in joiner.lacking():
        trace.lacks(lacking, why)


class _Reader:
    """Processes calls in the order in which they ended."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._processes = Processes()
        self._ended = 0
        self._memfds = 0

    def take(self, item: Item) -> None:
        match item:
            case Called():
                self._call(item)
            case Begun() if item.name not in _WITH_FLAGS or "flags=" in item.arguments:
                self._processes.cloning(item.pid, **_shared(item.name, item.arguments))
            case Exited():
                self._processes.exited(item.pid)
                self._ended = self._ended if item.pid else item.number
            case Unparsed():
                self._cut_off(item)

    def _call(self, call: Called) -> None:
        if call.name == "ioctl":
            self._ioctl(call)
        elif self._is_on_memfd(call):
            pass
        elif call.returned is None or call.error or call.is_injected:
            if call.name in _CLONES:
                self._processes.not_cloned(call.pid)
        elif call.name in MEMORY_CALLS:
            process = self._processes.of(call.pid)
            line = _line(call)
            MEMORY_CALLS[call.name](process, call, line, lambda name: self._passed(name, call))
        elif call.name in _CLONES:
            self._clone(call)
        elif call.name == "execve":
            self._processes.replaced(call.pid)
        elif call.name in ("close", "close_range"):
            self._close(call)
        elif call.name in ("dup", "dup2", "dup3", "fcntl"):
            self._duplicate(call)

    def _clone(self, call: Called) -> None:
        if call.returned:
            shared = _shared(call.name, call.arguments)
            self._processes.cloned(call.pid, call.returned, **shared)

    def _close(self, call: Called) -> None:
        process = self._processes.of(call.pid)
        for vm in process.vms:
            vm.closes_seen = True
        for file in process.closed(_descriptors(call)):
            if file.owner is not None and not file.is_foreign:
                file.owner.calls.append(VmCall(_line(call), call.name, CloseGuestMemfd(file.memfd)))

    def _is_on_memfd(self, call: Called) -> bool:
        """Note a call on a guest_memfd; return whether there is nothing else to note."""
        if call.name == "mmap":
            return self._is_of_memfd(call) and bool(call.error)
        return call.name == "fallocate" and self._is_allocating(call)

    def _is_allocating(self, call: Called) -> bool:
        """Note fallocate(2) on a guest_memfd; return whether it is on one."""
        opened = file_of(call.arguments)
        file = None if opened is None else self._processes.of(call.pid).files.get(opened[0])
        if opened is None or file is None or not file.memfd or file.owner is None:
            return False
        punch = punch_of(file.memfd, opened[2])
        if punch is None or call.returned is None or call.is_injected:
            self._passed(f"fallocate of a guest_memfd, {_NO_OPERATION}", call)
        else:
            file.owner.calls.append(
                VmCall(_line(call), "fallocate", punch, call.error, call.returned)
            )
        return True

    def _is_of_memfd(self, call: Called) -> bool:
        """Note mmap(2) of a guest_memfd; return whether it is one."""
        opened = file_of((split(call.arguments) + [""] * 5)[4])
        file = None if opened is None else self._processes.of(call.pid).files.get(opened[0])
        if file is None or not file.memfd or file.owner is None:
            return False
        mapped = mapping_of(file.memfd, call)
        if mapped is None or call.returned is None or call.is_injected or file.is_foreign:
            self._passed(f"mmap of a guest_memfd, {_NO_OPERATION}", call)
        else:
            file.owner.calls.append(VmCall(_line(call), "mmap", mapped, call.error))
        return True

    def _duplicate(self, call: Called) -> None:
        process = self._processes.of(call.pid)
        opened = file_of(call.arguments)
        if opened is None or call.returned is None:
            return
        is_dup = (
            call.name != "fcntl"
            or "F_DUPFD" in opened[2]
            or re.match(r"\s*(?:0x0|0|0x406|1030)\b", opened[2])
        )
        file = process.files.get(opened[0])
        if is_dup and file is not None:
            process.open(call.returned, file)
        elif is_dup:
            process.files.pop(call.returned, None)

    def _ioctl(self, call: Called) -> None:
        opened = file_of(call.arguments)
        if opened is None:
            return
        fd, _, rest = opened
        request = request_in(rest)
        if not request:
            return
        argument = split(rest)[-1] if "," in rest else ""
        if request in (REGION, REGION2):
            self._region(call, fd, request, argument)
        elif request == CREATE_VM:
            self._create_vm(call, argument)
        elif request == CHECK_EXTENSION:
            self._check_extension(call, fd, argument)
        elif request in AS_OPERATIONS:
            self._on_vm(call, fd, request, argument)
        elif request == PRE_FAULT:
            self._pre_fault(call, fd, argument)
        elif request in CONCERNED:
            why = TOO_LITTLE.get(request, "")
            self._passed(f"{request}, {why}" if why else request, call)
        elif _is_begun(request):
            self._damaged(call, fd)

    def _create_vm(self, call: Called, argument: str) -> None:
        if call.returned is None or call.error or call.returned < 0:
            return
        process = self._processes.maker_of(call.pid, call.returned)
        self._new_vm(process, call.returned, call.number, number_of(argument) or 0)

    def _new_vm(
        self, process: Process, fd: int, number: int, vm_type: int = 0, began_before: bool = False
    ) -> File:
        vm = self._trace.new_vm(number)
        vm.vm_type, vm.began_before = vm_type, began_before
        vm.capabilities = dict(process.capabilities)
        if not isinstance(vm.calls, NoCalls):
            process.vms.append(vm)
        file = File(vm)
        process.open(fd, file)
        return file

    def _check_extension(self, call: Called, fd: int, argument: str) -> None:
        if call.returned is None or call.error:
            return
        name = argument.split("/*")[-1].strip(" */")
        number = CAPABILITIES.get(name, number_of(argument))
        if number is None:
            return
        process = self._processes.user_of(call.pid, fd)
        file = process.files.get(fd)
        if file is not None and file.vm is not None:
            if len(file.vm.capabilities) < MAX_CAPABILITIES:
                file.vm.capabilities[number] = call.returned
        else:
            process.learn(number, call.returned)

    def _on_vm(self, call: Called, fd: int, request: str, argument: str) -> None:
        """Note another call on a VM; one by a forked child changes nothing, and is EIO."""
        file = self._processes.user_of(call.pid, fd).files.get(fd)
        try:
            operation = operation_of(request, argument, call.error)
        except NotOfSlots:
            return
        if file is None or file.vm is None:
            self._passed(request, call)
        elif self._processes.is_foreign(call.pid, file, call.error == errno.EIO):
            self._passed(f"{request} by a forked child, which changes nothing", call)
        elif request == RESET_RINGS and file.vm.enables_unseen:
            self._passed(f"{request}, {TOO_LITTLE[request]}", call)
        elif operation is not None and call.returned is not None and not call.is_injected:
            process = self._processes.user_of(call.pid, fd)
            operation = self._opening(process, call, file.vm, operation)
            file.vm.calls.append(
                VmCall(_line(call), request, operation, call.error, max(0, call.returned))
            )
        elif request == SET_TSS_ADDR:
            file.vm.calls.append(Unread(_line(call), request, _NO_RESULT, may_change=False))
        else:
            file.vm.enables_unseen |= request == ENABLE_CAP
            self._passed(request, call)

    def _pre_fault(self, call: Called, fd: int, argument: str) -> None:
        """Note what is mapped ahead, if the trace shows it, and to which VM the vCPU belongs."""
        file = self._processes.user_of(call.pid, fd).files.get(fd)
        operation = pre_fault_of(argument)
        is_told = call.returned is not None and not call.is_injected
        if file is None or file.owner is None or file.memfd or operation is None or not is_told:
            self._passed(f"{PRE_FAULT}, {TOO_LITTLE[PRE_FAULT]}", call)
        elif self._processes.is_foreign(call.pid, file, call.error == errno.EIO):
            self._passed(f"{PRE_FAULT} by a forked child, which changes nothing", call)
        else:
            file.owner.calls.append(VmCall(_line(call), PRE_FAULT, operation, call.error))

    def _opening(
        self, process: Process, call: Called, vm: TracedVm, operation: AnyOperation
    ) -> AnyOperation:
        """Note what a call on a VM has opened; return its operation, with the name of that."""
        if isinstance(operation, CreateVcpu):
            process.open(call.returned or 0, File(owner=vm))
        if not isinstance(operation, CreateGuestMemfd):
            return operation
        self._memfds += 1
        named = replace(operation, name=f"guest_memfd {self._memfds}")
        fd = call.returned or 0
        if call.error:
            return named
        if len(self._trace.memfds) < MAX_MEMFDS:
            self._trace.memfds[named.name] = named
            process.open(fd, File(memfd=named.name, owner=vm))
        else:
            process.files.pop(fd, None)
        return named

    def _region(self, call: Called, fd: int, request: str, argument: str) -> None:
        file = self._file(call, fd)
        if file is None or file.vm is None:
            return
        is_foreign = self._processes.is_foreign(call.pid, file, call.error == errno.EIO)
        region = _region(call, request, argument, is_foreign)
        if isinstance(region, Region) and is_foreign and not file.is_foreign:
            region = replace(region, is_guessed=True)
        if isinstance(region, Region):
            process = self._processes.user_of(call.pid, fd)
            if region.flags & GUEST_MEMFD and region.guest_memfd in process.files:
                known = process.files[region.guest_memfd]
                region = replace(region, memfd=known.memfd or OTHER_FILE)
            self._note_memory(process, file.vm, region)
        file.vm.calls.append(region)

    def _damaged(self, call: Called, fd: int) -> None:
        file = self._file(call, fd)
        if file is not None and file.vm is not None:
            file.vm.calls.append(Unread(_line(call), REGION, _DAMAGED, not call.error))

    def _note_memory(self, process: Process, vm: TracedVm, region: Region) -> None:
        start, end = region.userspace_addr, region.userspace_addr + region.memory_size
        if not region.errno and start < end <= USER_END:
            if not any(True for _ in process.slots.within(start, end)) or len(vm.memory) < MAX_VMS:
                vm.memory += memory_of(process, start, end)
            process.slots.put(start, end, True)

    def _file(self, call: Called, fd: int) -> File | None:
        """Return a VM's file; if the trace did not create it, the VM is older than the trace."""
        process = self._processes.user_of(call.pid, fd)
        file = process.files.get(fd)
        if file is not None and file.vm is not None:
            if not call.pid and file.vm.line < self._ended:  # Its process goes on: a thread ended.
                file.vm.unordered = True
            return file
        if call.error and any(name in call.text[-60:] for name in _NOT_A_VM):
            return None
        if len(process.vms) == 1 and not process.vms[0].began_before and fd not in process.files:
            self._trace.note(f"line {call.number}: fd {fd} is taken for the only VM of its process")
            file = File(process.vms[0])
            process.open(fd, file)
            return file
        if not call.pid:
            self._trace.note(_ALONE)
        return self._new_vm(process, fd, call.number, began_before=True)

    def _cut_off(self, item: Unparsed) -> None:
        """Note a cut-off call that may have changed slots, if its VM is known."""
        if item.name in _CLONES:
            self._processes.not_cloned(item.pid)
        if item.name not in ("ioctl", ""):
            return
        line = Line(item.number, item.number, shown(item.text))
        if item.is_strange:
            self._trace.strange = self._trace.strange or line
        why = _STRANGE if item.is_strange else _CUT_OFF
        head, *calls = item.text.rsplit("ioctl(", _MOST_BROKEN)
        for begun in reversed(calls or [head]):
            if self._is_cut_off_within(item.pid, line, begun, why):
                return

    def _is_cut_off_within(self, pid: int, line: Line, begun: str, why: str) -> bool:
        """Note a call of which the arguments have begun; return whether it is one on slots."""
        parts = split(unnamed(begun[:MAX_BEGUN]))
        opened = file_of(parts[0]) if len(parts) > 1 else None
        if opened is None:  # Even the descriptor may be cut off.
            files = list(self._processes.of(pid).files.values())
        else:
            process = self._processes.user_of(pid, opened[0])
            files = [process.files[opened[0]]] if opened[0] in process.files else []
            if _STRUCTURE in begun and not any(file.vm for file in files):
                files = list(process.files.values())  # It is another call's descriptor.
        request = REGION if _STRUCTURE in begun else _request_begun(parts[1:])
        vms = [file.vm for file in files if request and file.vm is not None]
        for vm in {id(vm): vm for vm in vms}.values():
            vm.calls.append(Unread(line, request, why))
        return bool(vms)

    def _passed(self, name: str, call: Called) -> None:
        self._trace.passed_over[name] += 1
        self._trace.first_lines.setdefault(name, call.number)


def _descriptors(call: Called) -> range:
    """Return the descriptors that close(2) or close_range(2) closes."""
    first, last, *others = (number_of(each) for each in [*split(call.arguments), "", "0"][:3])
    if call.name == "close":
        opened = file_of(call.arguments)
        return range(0) if opened is None else range(opened[0], opened[0] + 1)
    is_later = any(others)  # CLOSE_RANGE_CLOEXEC closes nothing now.
    return range(0) if first is None or last is None or is_later else range(first, last + 1)


def _shared(name: str, arguments: str) -> dict[str, bool]:
    """Return what a new thread or process shares with its maker."""
    found = re.search(r"flags=([^,}]*)", arguments)
    flags = bits_in(found[1], _CLONE_FLAGS) if found is not None else _CLONES[name]
    return {"files": bool(flags & CLONE_FILES), "memory": bool(flags & CLONE_VM)}


def _request_begun(arguments: list[str]) -> str:
    """Return the request on slots that an ioctl's cut-off arguments may name; "" if none."""
    if not arguments:
        return REGION
    begun = arguments[0]
    request = request_in(begun)
    if request in _ON_SLOTS:
        return request
    if len(arguments) > 1:
        return ""
    is_number = begun.startswith(("_IOC", "0"))
    left = begun.rstrip("0123456789 ")  # Without the pid of a line that was written into it.
    return REGION if is_number or any(name.startswith(left) for name in _BEGINNINGS) else ""


def _is_begun(request: str) -> bool:
    """Whether a name is the beginning of a request on slots: the line is damaged."""
    return any(name.startswith(request) for name in _ON_SLOTS)


def _region(call: Called, request: str, argument: str, is_foreign: bool) -> Region | Unread:
    """Return a call on a slot; if its structure is not printed, the errno may be enough."""
    line, second = _line(call), request == REGION2
    usual = None if second else _usual_region(call, argument, is_foreign)
    if usual is not None:
        return usual
    fields = fields_of(argument)
    if fields and not is_whole(_COMMENT.sub("", argument)):
        return Unread(line, request, _MISSING, not call.error and not call.is_injected)
    flags = _flags(fields.get("flags", "?"))
    numbers = [number_of(fields.get(name, "")) for name in _FIELDS]
    is_given = flags is not None and all(each is not None and each >= 0 for each in numbers)
    slot, gpa, size, hva = numbers
    why = _INJECTED if call.is_injected else _NO_RESULT if call.returned is None else ""
    if not why and not fields and call.error in _BY_ITSELF:
        is_readable = call.error != errno.EFAULT
        return Region(line, 0, 0, 0, 0, 0, call.error, second, -1, 0, is_foreign, is_readable)
    if why or not is_given:
        why = why or (_MISSING if fields else _POINTER[request])
        return Unread(line, request, why, not call.error and not call.is_injected)
    memfd = number_of(fields.get("guest_memfd", ""))
    return Region(
        line,
        slot or 0,
        flags or 0,
        gpa or 0,
        size or 0,
        hva or 0,
        call.error,
        second,
        -1 if memfd is None else memfd,
        number_of(fields.get("guest_memfd_offset", "")) or 0,
        is_foreign,
        returned=max(0, call.returned or 0),
    )


def _usual_region(call: Called, argument: str, is_foreign: bool) -> Region | None:
    """Return a successful call on a slot, read quickly; None if something is unusual."""
    usual = _USUAL.match(argument)
    flags = None if usual is None else _flags(usual[2])
    if usual is None or flags is None or call.returned != 0 or call.is_injected:
        return None
    slot, gpa, size, hva = int(usual[1]), int(usual[3], 16), int(usual[4]), int(usual[5], 16)
    return Region(_line(call), slot, flags, gpa, size, hva, is_foreign=is_foreign)


@lru_cache(maxsize=256)
def _flags(text: str) -> int | None:
    """Return the flags of a slot; None if there is another word among them: it is damaged."""
    words = {word.strip() for word in re.sub(r"/\*.*?\*/", "", text).split("|")}
    is_whole = all(number_of(word) is not None for word in words - set(MEM_FLAGS))
    return bits_in(text, MEM_FLAGS) if is_whole else None


def _line(call: Called) -> Line:
    return Line(call.number, call.begin, shown(call.text))
