"""The calls on a VM besides those on slots, as operations: dirty logs, capabilities, addresses.

strace prints only pointers to their structures; `vmm record` has read those.
"""

import errno
import re
from collections.abc import Mapping
from typing import get_args

from vmm.replay.numbers import CAPABILITIES, ENABLE_CAP, SET_IDENTITY_MAP_ADDR, SET_TSS_ADDR
from vmm.replay.syntax import fields_of, number_of
from vmm.scenario.operations import (
    AnyOperation,
    ClearDirtyLog,
    EnableCap,
    GetDirtyLog,
    SetIdentityMapAddr,
    SetTssAddr,
)
from vmm.scenario.vm_operations import CapName

GET_LOG, CLEAR_LOG = "KVM_GET_DIRTY_LOG", "KVM_CLEAR_DIRTY_LOG"
AS_OPERATIONS = frozenset({GET_LOG, CLEAR_LOG, ENABLE_CAP, SET_IDENTITY_MAP_ADDR, SET_TSS_ADDR})

_CAPS: dict[int, CapName] = {CAPABILITIES[f"KVM_CAP_{name}"]: name for name in get_args(CapName)}
_FIRST = re.compile(r"\[(0x[0-9a-f]+|\d+)")


class NotOfSlots(Exception):  # noqa: N818  # Nothing is wrong with such a call.
    """The call enables a capability that does not concern memslots."""


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
        case _:
            return _clear(fields, error)


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
    if number not in _CAPS or number_of(fields.get("flags", "0")):
        raise NotOfSlots
    first = _FIRST.match(argument.partition("args=")[2])
    value = None if first is None else number_of(first[1])
    return None if value is None else EnableCap(_CAPS[number], value)
