"""What system calls do to a process's memory, as far as it concerns the memory of slots."""

from collections.abc import Callable

from msgspec.structs import replace

from vmm.replay.numbers import (
    ADVICE,
    FALLOC_FLAGS,
    MAP_ANONYMOUS,
    MAP_FLAGS,
    MAP_HUGETLB,
    MAP_SHARED,
    MFD_HUGETLB,
    PROT_READ,
    PROT_WRITE,
    PROTECTIONS,
    bits_in,
)
from vmm.replay.processes import File, Mapped, Process
from vmm.replay.syntax import Called, file_of, number_of, split
from vmm.replay.trace import Line, Memory, MemoryChange
from vmm.scenario.memfd_operations import PUNCH_HOLE
from vmm.scenario.operations import HostChangeKind, MappingKind

PassOver = Callable[[str], None]
"""Takes the name of a call that concerns the memory of slots, but cannot be expressed."""

_LAST = 1 << 64
_MADV_FREE = 8


def mmap(process: Process, call: Called, line: Line, _: PassOver) -> None:
    """Note new memory, and a change if it replaces memory of slots."""
    size, prot, flags, descriptor, offset = (split(call.arguments) + [""] * 6)[1:6]
    length, start = number_of(size), call.returned
    if length is None or start is None:
        return
    bits = bits_in(flags, MAP_FLAGS)
    opened = file_of(descriptor)
    file = None if opened is None or bits & MAP_ANONYMOUS else process.files.get(opened[0])
    is_huge = bool(bits & MAP_HUGETLB) or (file is not None and file.is_huge)
    is_huge = is_huge or (opened is not None and "hugepages/" in opened[1])
    allows = bits_in(prot, PROTECTIONS)
    mapped = Mapped(
        _kind(bits, is_huge), start, bool(allows & PROT_READ), file, number_of(offset) or 0
    )
    process.memory.put(start, start + length, mapped)
    how: HostChangeKind = "map" if allows & PROT_READ else "unmap"
    memfd = "" if file is None else file.memfd
    _change(process, MemoryChange(line, start, length, how, memfd, start - mapped.offset))


def _kind(flags: int, is_huge: bool) -> MappingKind:
    if is_huge:
        return "hugetlb"
    if flags & MAP_SHARED:
        return "shared" if flags & MAP_ANONYMOUS else "memfd"
    return "anonymous"


def munmap(process: Process, call: Called, line: Line, _: PassOver) -> None:
    """Note that memory is gone."""
    start, length = _range(call)
    process.memory.clear(start, start + length)
    _change(process, MemoryChange(line, start, length, "unmap"))


def mremap(process: Process, call: Called, line: Line, pass_over: PassOver) -> None:
    """Note that memory was moved or resized."""
    old, old_size, new_size = ([number_of(each) for each in split(call.arguments)] + [None] * 3)[:3]
    if old is None or old_size is None or new_size is None or call.returned is None:
        return
    parts = list(process.memory.within(old, old + old_size))
    process.memory.clear(old, old + old_size)
    if parts:
        process.memory.put(call.returned, call.returned + new_size, parts[0][2])
    if call.returned != old:
        _change(process, MemoryChange(line, old, old_size, "unmap"))
        if any(process.slots.within(call.returned, call.returned + new_size)):
            pass_over("mremap onto the memory of a slot")


def madvise(process: Process, call: Called, line: Line, pass_over: PassOver) -> None:
    """Note what is dropped, and what should have huge pages."""
    start, length = _range(call)
    advice = split(call.arguments)[2:3]
    value = bits_in(advice[0] if advice else "", ADVICE)
    if value in (ADVICE["MADV_DONTNEED"], ADVICE["MADV_DONTNEED_LOCKED"]):
        _change(process, MemoryChange(line, start, length, "drop"))
    elif value == ADVICE["MADV_REMOVE"]:
        _change(process, MemoryChange(line, start, length, "punch"))
    elif value == ADVICE["MADV_HUGEPAGE"]:
        for begin, end, mapped in list(process.memory.within(start, start + length)):
            if mapped.kind == "anonymous":
                process.memory.put(begin, end, replace(mapped, kind="thp"))
    elif value == _MADV_FREE and any(process.slots.within(start, start + length)):
        pass_over("madvise(MADV_FREE) on the memory of a slot")


def mprotect(process: Process, call: Called, line: Line, pass_over: PassOver) -> None:
    """Note what becomes unreadable, and what becomes readable again."""
    start, length = _range(call)
    allows = bits_in((split(call.arguments) + [""] * 3)[2], PROTECTIONS)
    is_readable = bool(allows & PROT_READ)
    for begin, end, mapped in list(process.memory.within(start, start + length)):
        process.memory.put(begin, end, replace(mapped, is_readable=is_readable))
    if not is_readable:
        _change(process, MemoryChange(line, start, length, "forbid"))
    elif allows & PROT_WRITE:
        _change(process, MemoryChange(line, start, length, "allow"))
    elif any(process.slots.within(start, start + length)):
        pass_over("mprotect(PROT_READ) on the memory of a slot")


def fallocate(process: Process, call: Called, line: Line, _: PassOver) -> None:
    """Note what is punched out of a file, in all its mappings."""
    opened = file_of(call.arguments)
    if opened is None:
        return
    mode, offset, length = (split(opened[2]) + [""] * 3)[:3]
    begin, size = number_of(offset), number_of(length)
    file = process.files.get(opened[0])
    if not bits_in(mode, FALLOC_FLAGS) & PUNCH_HOLE or begin is None or size is None:
        return
    for start, end, mapped in list(process.memory.within(0, _LAST)):
        if file is None or mapped.file is not file:
            continue
        at = mapped.offset + start - mapped.start
        first, last = max(begin, at), min(begin + size, at + end - start)
        if first < last:
            _change(process, MemoryChange(line, start + first - at, last - first, "punch"))


def memfd_create(process: Process, call: Called, _: Line, __: PassOver) -> None:
    """Note a new memfd."""
    flags = split(call.arguments)[-1]
    bits = bits_in(flags, {"MFD_HUGETLB": MFD_HUGETLB})
    if call.returned is not None:
        process.open(call.returned, File(is_huge=bool(bits & MFD_HUGETLB)))


MemoryCall = Callable[[Process, Called, Line, PassOver], None]

MEMORY_CALLS: dict[str, MemoryCall] = {
    "mmap": mmap,
    "mmap2": mmap,  # From 32-bit programs; strace prints its offset in bytes, too.
    "munmap": munmap,
    "mremap": mremap,
    "madvise": madvise,
    "mprotect": mprotect,
    "fallocate": fallocate,
    "memfd_create": memfd_create,
}
"""The handlers of successful system calls, by name."""


def memory_of(process: Process, start: int, end: int) -> list[Memory]:
    """Return what a process has mapped in a range, as far as the trace shows it."""
    return [
        Memory(
            begin,
            stop,
            mapped.kind if mapped.is_readable else "unmapped",
            "" if mapped.file is None else mapped.file.memfd,
            mapped.start - mapped.offset,
        )
        for begin, stop, mapped in process.memory.within(start, end)
    ]


def _range(call: Called) -> tuple[int, int]:
    start, length = ([number_of(each) for each in split(call.arguments)[:2]] + [None, None])[:2]
    return (start, -(-length // 4096) * 4096) if start is not None and length else (0, 0)


def _change(process: Process, change: MemoryChange) -> None:
    """Add a change to all VMs of the process, if their slots have had memory there."""
    touched = any(True for _ in process.slots.within(change.start, change.start + change.size))
    for vm in process.vms if touched else ():
        vm.calls.append(change)
