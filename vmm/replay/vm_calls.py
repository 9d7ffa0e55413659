"""The calls on a VM besides those on slots, as operations: dirty logs, capabilities, guest_memfds.

strace prints only pointers to their structures; `vmm record` has read those.
"""

import errno
import re
from collections.abc import Mapping
from typing import Literal, get_args

from vmm.replay.numbers import (
    CAPABILITIES,
    CREATE_GUEST_MEMFD,
    CREATE_VCPU,
    ENABLE_CAP,
    FALLOC_FLAGS,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FLAGS,
    MAP_PRIVATE,
    MAP_SHARED,
    RESET_RINGS,
    SET_IDENTITY_MAP_ADDR,
    SET_MEMORY_ATTRIBUTES,
    SET_TSS_ADDR,
    bits_in,
)
from vmm.replay.syntax import Called, fields_of, number_of, split
from vmm.scenario.memfd_operations import KEEP_SIZE, PUNCH_HOLE
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    AnyOperation,
    ClearDirtyLog,
    CreateGuestMemfd,
    CreateVcpu,
    EnableCap,
    GetDirtyLog,
    MapGuestMemfd,
    PreFaultMemory,
    PunchGuestMemfd,
    ResetDirtyRings,
    SetIdentityMapAddr,
    SetMemoryAttributes,
    SetTssAddr,
)
from vmm.scenario.slots import USER_END
from vmm.scenario.vm_operations import CapName

GET_LOG, CLEAR_LOG = "KVM_GET_DIRTY_LOG", "KVM_CLEAR_DIRTY_LOG"
AS_OPERATIONS = frozenset(
    {
        *(GET_LOG, CLEAR_LOG, ENABLE_CAP, SET_IDENTITY_MAP_ADDR, SET_TSS_ADDR),
        *(CREATE_GUEST_MEMFD, SET_MEMORY_ATTRIBUTES, CREATE_VCPU, RESET_RINGS),
    }
)

MOST_PRE_FAULTED_BYTES = 1 << 30
SHOWN = "shown"
"""What a mapping is called that shows a guest_memfd, and that no slot uses."""

_NORESERVE = 0x4000
_MOST_MAPPED_BYTES = 1 << 46
"""More may be refused for want of addresses."""

_CAPS: dict[int, CapName] = {CAPABILITIES[f"KVM_CAP_{name}"]: name for name in get_args(CapName)}
_FIRST = re.compile(r"\[(0x[0-9a-f]+|\d+)")


class NotOfSlots(Exception):  # noqa: N818  # Nothing is wrong with such a call.
    """The call does not concern memslots: it enables something else, or has made no vCPU."""


def operation_of(request: str, argument: str, error: int) -> AnyOperation | None:
    """Return a call as an operation; None if its argument is not in the trace.

    Raises NotOfSlots.
    """
    fields = fields_of(argument)
    match request:
        case "KVM_SET_TSS_ADDR":
            gpa = number_of(argument)
            return None if gpa is None else SetTssAddr(gpa)
        case "KVM_SET_IDENTITY_MAP_ADDR":
            found = _FIRST.match(argument)
            gpa = None if found is None else number_of(found[1])
            return None if gpa is None else SetIdentityMapAddr(gpa)
        case "KVM_ENABLE_CAP":
            return _cap(argument, fields)
        case "KVM_GET_DIRTY_LOG":
            slot = number_of(fields.get("slot", ""))
            if slot is None:
                return None
            return GetDirtyLog(slot, "unwritable" if error == errno.EFAULT else "writable")
        case "KVM_CREATE_GUEST_MEMFD":
            numbers = _numbers(fields, "size", "flags")
            return None if numbers is None else CreateGuestMemfd("", *numbers)
        case "KVM_SET_MEMORY_ATTRIBUTES":
            numbers = _numbers(fields, "address", "size", "attributes", "flags")
            return None if numbers is None else SetMemoryAttributes(*numbers)
        case "KVM_RESET_DIRTY_RINGS":
            return ResetDirtyRings()
        case "KVM_CREATE_VCPU":
            if error:
                raise NotOfSlots
            return CreateVcpu(0)  # That there is one is all that matters.
        case _:
            return _clear(fields, error)


def punch_of(name: str, arguments: str) -> PunchGuestMemfd | None:
    """Return fallocate(2) on a guest_memfd; None for arguments that are no numbers.

    ``arguments`` are those after the descriptor.
    """
    mode, offset, length = (split(arguments) + [""] * 3)[:3]
    begin, size, bits = number_of(offset), number_of(length), bits_in(mode, FALLOC_FLAGS)
    if begin is None or size is None or begin < 0 or size < 0:
        return None
    keep_size, punch = bool(bits & KEEP_SIZE), bool(bits & PUNCH_HOLE)
    others = bits & ~(KEEP_SIZE | PUNCH_HOLE)
    return PunchGuestMemfd(name, begin, size, keep_size, punch, others)


def pre_fault_of(argument: str) -> PreFaultMemory | None:
    """Return KVM_PRE_FAULT_MEMORY; None if the structure is not in the trace, or asks for a lot."""
    numbers = _numbers(fields_of(argument), "gpa", "size", "flags")
    if numbers is None or numbers[1] > MOST_PRE_FAULTED_BYTES:
        return None
    return PreFaultMemory(*numbers)


def mapping_of(name: str, call: Called) -> MapGuestMemfd | None:
    """Return mmap(2) of a guest_memfd; None for one whose answer does not depend on the file alone.

    From which offset it is mapped does not matter, nor where.
    """
    address, size, _, flags, _, offset = (split(call.arguments) + [""] * 6)[:6]
    bits, length = bits_in(flags, MAP_FLAGS), number_of(size)
    if not length or not 0 < length < _MOST_MAPPED_BYTES:
        return None
    places = (number_of(address), USER_END - length), (number_of(offset), _MOST_MAPPED_BYTES)
    if any(at is None or at % PAGE_SIZE_BYTES or not 0 <= at <= last for at, last in places):
        return None
    if call.error not in (0, errno.ENODEV, errno.EINVAL) or bits & MAP_ANONYMOUS:
        return None
    kinds: dict[int, Literal["shared", "private"]] = {MAP_SHARED: "shared", MAP_PRIVATE: "private"}
    kind = kinds.get(bits & (MAP_SHARED | MAP_PRIVATE))
    known = MAP_SHARED | MAP_PRIVATE | MAP_FIXED | MAP_FLAGS["MAP_FIXED_NOREPLACE"] | _NORESERVE
    return MapGuestMemfd(name, SHOWN, kind) if kind and not bits & ~known else None


def _numbers(fields: Mapping[str, str], *names: str) -> list[int] | None:
    """Return these fields as unsigned numbers; None if one is not there."""
    found = [number_of(fields.get(name, "")) for name in names]
    numbers = [each for each in found if each is not None and each >= 0]
    return numbers if len(numbers) == len(names) else None


def _clear(fields: Mapping[str, str], error: int) -> ClearDirtyLog | None:
    """Return a clearing of all pages in its range: which of them had a bit is not in a trace."""
    names = ("slot", "first_page", "num_pages")
    slot, first, count = (number_of(fields.get(name, "")) for name in names)
    if slot is None or first is None or count is None:
        return None
    is_readable = error != errno.EFAULT
    return ClearDirtyLog(slot, first, count, bitmap="readable" if is_readable else "unreadable")


def _cap(argument: str, fields: Mapping[str, str]) -> EnableCap | None:
    text = fields.get("cap", "")
    number = CAPABILITIES.get(text, number_of(text))
    if number is None:
        return None
    if number not in _CAPS:
        raise NotOfSlots
    flags = number_of(fields.get("flags", "0"))
    first = _FIRST.match(argument.partition("args=")[2])
    value = None if first is None else number_of(first[1])
    if value is None or flags is None:
        return None
    return EnableCap(_CAPS[number], value, flags)
