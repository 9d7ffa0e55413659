"""What QEMU's `-trace kvm_set_user_memory` wrote.

Until QEMU 8.2 a line begins with `Slot#N`, the as_id in N's upper half; from 9.0 on with
`AddrSpace#A Slot#N`, and it names a guest_memfd. scripts/simpletrace.py writes the same fields by
their own names. What a log puts in front of the event, a pid or a time, does not matter.
"""

import re
from collections.abc import Iterable

from vmm.replay.lines import shown
from vmm.replay.numbers import literal
from vmm.replay.trace import MAX_VMS, Line, Region, Trace, TracedVm, Unread
from vmm.scenario.operations import READONLY

EVENT = "kvm_set_user_memory"
IS_EVENT = re.compile(rf"(?:^|[\s:]){EVENT}\s+(?=.*(?:gpa|guest_phys_addr)=)")
"""What a line of QEMU's looks like, for finding out what a file is."""

_EVENT = re.compile(rf"(?:^|[\s:]){EVENT}\s+(.*)$")
_PID = re.compile(r"(\d+)@\d|\bpid=(\d+)")
_FIELD = re.compile(r"\b([A-Za-z_]+)[=#](-?(?:0x[0-9a-fA-F]+|\d+))(?![0-9a-zA-Z])")
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
    """Add what the lines of a QEMU trace say to a trace."""
    reader = _Reader(trace)
    for number, line in lines:
        trace.lines = number
        found = _EVENT.search(line)
        if found is not None:
            reader.take(Line(number, number, shown(line)), line[: found.start(1)], found[1])


class _Reader:
    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._vms: dict[str, TracedVm] = {}
        self._readonly: dict[tuple[str, int], bool] = {}

    def take(self, line: Line, head: str, text: str) -> None:
        fields = {_NAMES.get(name, name): literal(value) for name, value in _FIELD.findall(text)}
        pid = _PID.search(head) or _PID.search(text)
        vm = self._vm(line, pid[0] if pid is not None else "")
        missing = [name for name in _NEEDED if name not in fields]
        if missing:
            why = f"the line is cut off, or lacks {', '.join(missing)}"
            vm.add(Unread(line, EVENT, why))
            return
        region = _region(line, fields)
        hidden = self._hidden_delete(vm, region)
        if hidden is not None:
            vm.add(hidden)
        vm.add(region)

    def _vm(self, line: Line, key: str) -> TracedVm:
        vm = self._vms.get(key)
        if vm is None:
            vm = TracedVm(str(len(self._vms) + 1), line.number, calls=[], memory=[])
            if len(self._vms) < MAX_VMS:
                self._vms[key] = vm
                self._trace.vms.append(vm)
        return vm

    def _hidden_delete(self, vm: TracedVm, region: Region) -> Region | None:
        """Return the deletion that QEMU makes, and does not trace, where READONLY changes."""
        key = (vm.name, region.slot)
        before = self._readonly.get(key)
        if region.errno:
            return None
        if not region.memory_size:
            self._readonly.pop(key, None)
            return None
        now = bool(region.flags & READONLY)
        self._readonly[key] = now
        if before is None or before == now:
            return None
        return Region(
            region.line,
            region.slot,
            region.flags,
            region.guest_phys_addr,
            0,
            region.userspace_addr,
            second_form=region.second_form,
        )


def _region(line: Line, fields: dict[str, int]) -> Region:
    memfd = fields.get("guest_memfd", -1)
    memfd = -1 if memfd == 0xFFFF_FFFF else memfd
    returned = fields["ret"]
    if returned >= 1 << 31:  # As simpletrace.py writes a negative number.
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
        bool(flags & 4),
        memfd,
        fields.get("guest_memfd_offset", 0),
    )
