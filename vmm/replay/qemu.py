"""Reads the output of QEMU's `-trace kvm_set_user_memory`.

Until QEMU 8.2 a line begins with `Slot#N`, the as_id in N's upper half; from 9.0 on with
`AddrSpace#A Slot#N`, and it names a guest_memfd. scripts/simpletrace.py writes the same fields by
their own names, and the process. A log with timestamps has the *thread* before the event; which
threads belong to one process must be inferred from their calls.
"""

import re
from collections.abc import Iterable

from msgspec.structs import replace

from vmm.replay.lines import shown
from vmm.replay.numbers import is_of_64_bits, literal
from vmm.replay.ranges import Ranges
from vmm.replay.trace import (
    CUT_OFF,
    MAX_VMS,
    TORN,
    TWO_EVENTS,
    Line,
    Region,
    Trace,
    TracedVm,
    Unread,
)
from vmm.scenario.events import MAX_ERRNO
from vmm.scenario.operations import GUEST_MEMFD, READONLY

MAX_THREADS = 1 << 16
EVENT = "kvm_set_user_memory"
IS_EVENT = re.compile(
    rf"(?:^|[\s:]){EVENT}\s+(?=.*(?:gpa|guest_phys_addr)=|AddrSpace#|Slot#)"
    r"|Slot#\d+ flags=0x[0-9a-f]+ gpa=0x"
)
"""Matches a line of QEMU's trace, to recognise the file."""

_EVENT = re.compile(rf"(?:^|[\s:]){EVENT}\s+(.*)$")
_REMAINS = re.compile(
    r"^\d+@[\d.]*:?$|(?:^|[\s:])kvm_(?:s[a-z_]*)?$|Slot#\d+ flags=|size=0x[0-9a-f]+ ua=0x"
    r"|=0x[0-9a-f]+ (?:guest_memfd\S* guest_memfd_\S* )?ret="
)
"""Matches what is left of an event if another program has written into its line, or it is cut."""

_REST = re.compile(r"^\S* ?(?:r?et|t)?=-?\d+$|^(?:\S+=)?[0-9a-fx]+ ret=")
"""Matches the end of an event whose beginning is lost."""

_BEFORE = re.compile(r"@.*@|kvm_s[a-z_]*\d+@")
"""Matches what stands before an event if another one was cut off there."""

_PID = re.compile(r"\bpid=(\d+)")
_THREAD = re.compile(r"(?:^|\s)(\d{1,10})@\d+\.\d+:")
_LOGGED = re.compile(r"(?:^|\s)[\w.-]+\[(\d{1,10})\]:\s")
"""Matches the program and its pid, as a system log has them in front of a line."""

_FIELD = re.compile(r"\b([A-Za-z_]+)[=#](-?(?:0x[0-9a-fA-F]+|0|[1-9]\d*))(?=[\s,;)]|$)")
_WORD = re.compile(r"[A-Za-z]")
_NAMES = {
    "AddrSpace": "as",
    "Slot": "slot",
    "guest_phys_addr": "gpa",
    "memory_size": "size",
    "userspace_addr": "ua",
    "fd": "guest_memfd",
    "fd_offset": "guest_memfd_offset",
}
_NEEDED = ("slot", "flags", "gpa", "size", "ua", "ret")


def read_qemu(lines: Iterable[tuple[int, str]], trace: Trace) -> None:
    """Read the lines of a QEMU trace into ``trace``."""
    reader = _Reader(trace)
    for number, line in lines:
        trace.lines = number
        found = _EVENT.search(line)
        if found is not None:
            head = line[: found.start(1)]
            if _BEFORE.search(head) is not None:
                reader.take(Line(number, number, shown(line)), head, "")
            texts = found[1].split(EVENT)
            if len(texts) > 1:
                trace.lacks(number, TWO_EVENTS)
            for text in texts:  # Several, if two threads wrote into one line.
                reader.take(Line(number, number, shown(line)), head, text)
                head = text
        elif _REMAINS.search(line) is not None:
            reader.take(Line(number, number, shown(line)), line, "")
        elif line.strip().isdecimal() or EVENT.startswith(line):
            trace.lacks(number, CUT_OFF)
        elif _REST.search(line) is not None:
            trace.lacks(number, TORN)


class _Machine:
    """One VM of a trace, with its slots."""

    def __init__(self, vm: TracedVm) -> None:
        self.vm = vm
        self.slots: dict[int, Region] = {}
        """The last successful calls on the existing slots, by slot number."""

    def note(self, region: Region) -> None:
        """Note the effect of a successful call."""
        if region.memory_size:
            self.slots[region.slot] = region
        else:
            self.slots.pop(region.slot, None)


class _Reader:
    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._machines: dict[str, _Machine] = {}
        self._threads: dict[str, _Machine] = {}
        self._memory: Ranges[_Machine] = Ranges()
        """Whose slots had memory at an address, by which new threads are recognised."""

    def take(self, line: Line, head: str, text: str) -> None:
        found = [(_NAMES.get(name, name), literal(value)) for name, value in _FIELD.findall(text)]
        fields = dict(found)
        missing = [name for name in _NEEDED if name not in fields]
        missing += [name for name, value in found if not is_of_64_bits(value)]
        if not missing and text.count("=") + text.count("#") > len(fields):
            missing = ["what was between two events"]  # Both have left some of their fields.
        elif not missing and _WORD.search(_FIELD.sub("", text[: text.rfind("ret=")])) is not None:
            missing = ["a part of a field"]
        region = None if missing else _region(line, fields)
        if region is not None and region.errno > MAX_ERRNO:
            region, missing = None, ["a possible result"]
        machine = self._machine(line, head, text, region)
        if region is None:
            why = f"the line is cut off, or lacks {', '.join(missing)}"
            machine.vm.calls.append(Unread(line, EVENT, why))
            return
        if region.errno:
            machine.vm.calls.append(region)
            return
        if _deletes_before(machine, region):
            machine.vm.calls.append(replace(region, memory_size=0))
        machine.vm.calls.append(region)
        machine.note(region)
        if region.memory_size:
            start = region.userspace_addr
            self._memory.put(start, start + region.memory_size, machine)

    def _machine(self, line: Line, head: str, text: str, region: Region | None) -> _Machine:
        process, thread = _PID.search(text), _THREAD.search(head)
        if process is not None:
            return self._of_process(process[1], line, region)
        if thread is None:
            logged = _LOGGED.search(head)
            if logged is not None:
                return self._of_process(f"[{logged[1]}]", line, region)
            if self._threads or len(self._machines) > 1 or self._is_of_another(region):
                return self._of_new_thread(line, region)
            return self._of_process("", line, region)
        if thread[1] not in self._threads:
            machine = self._of_new_thread(line, region)
            if len(self._threads) >= MAX_THREADS:
                return machine
            self._threads[thread[1]] = machine
        return self._threads[thread[1]]

    def _of_process(self, key: str, line: Line, region: Region | None) -> _Machine:
        """Return the VM of a process; if QEMU has not begun with slot 0, it is older."""
        machine = self._machines.get(key)
        if machine is None:
            machine = _Machine(self._trace.new_vm(line.number))
            machine.vm.began_before = region is not None and not _begins(region)
            if len(self._machines) < MAX_VMS:
                self._machines[key] = machine
        return machine

    def _is_of_another(self, region: Region | None) -> bool:
        """Whether a log without threads has a call that only another QEMU can have made.

        The first call for a new VM creates slot 0, with memory that no VM knows.
        """
        if "" not in self._machines or region is None or region.errno:
            return False
        before = self._machines[""].slots.get(0)
        if not _begins(region) or before is None or self._knower(region) is not None:
            return False
        self._trace.note(
            f"line {region.line.number}: slot 0 exists, and is made of other memory: taken for "
            "another QEMU's (-msg timestamp=on tells them apart)"
        )
        return True

    def _of_new_thread(self, line: Line, region: Region | None) -> _Machine:
        """Return the VM of a new thread: the one that knows the memory of its first call.

        If none does, it is a new VM, or the one whose memory is the nearest.
        """
        known = next(reversed(self._machines.values()), None)
        if region is None:
            return known or self._of_process("VM 0", line, region)
        knower = self._knower(region)
        if knower is not None:
            return knower
        if known is not None and not _begins(region):
            if len(self._machines) == 1:
                return known
            for each in self._machines.values():
                each.vm.is_guessed = True
            return self._memory.nearest(region.userspace_addr) or known
        return self._of_process(f"VM {len(self._machines)}", line, region)

    def _knower(self, region: Region) -> _Machine | None:
        """Return the VM that has had memory at a call's address."""
        address = region.userspace_addr
        return next((each for _, _, each in self._memory.within(address, address + 1)), None)


def _begins(region: Region) -> bool:
    """Whether QEMU may begin with a call: it takes the first slot that is free."""
    return region.slot == 0 and bool(region.memory_size)


def _deletes_before(machine: _Machine, region: Region) -> bool:
    """Whether QEMU has deleted the slot without tracing it: it does if only READONLY changes."""
    before = machine.slots.get(region.slot)
    return (
        before is not None
        and _place_of(before) == _place_of(region)
        and bool((before.flags ^ region.flags) & READONLY)
    )


def _place_of(region: Region) -> tuple[int, int, int]:
    return region.guest_phys_addr, region.memory_size, region.userspace_addr


def _region(line: Line, fields: dict[str, int]) -> Region:
    memfd = fields.get("guest_memfd", -1)
    memfd = -1 if memfd == 0xFFFF_FFFF else memfd
    returned = fields["ret"]
    if returned >= 1 << 31:  # simpletrace.py writes negative numbers as unsigned.
        returned -= 1 << (64 if returned >= 1 << 32 else 32)
    flags = fields["flags"]
    return Region(
        line,
        fields.get("as", 0) << 16 | fields["slot"],
        flags,
        fields["gpa"],
        fields["size"],
        fields["ua"],
        max(0, -returned),
        bool(flags & GUEST_MEMFD) and "guest_memfd" in fields,
        memfd,
        fields.get("guest_memfd_offset", 0),
        returned=max(0, returned),
    )
