"""What KVM_SET_MEMORY_ATTRIBUTES may come to: which gpas are private from then on."""

import errno
from functools import partial

from vmm.model.allowed import Allowed
from vmm.model.backing import Backing
from vmm.scenario.features import Features
from vmm.scenario.history import Done, Refused
from vmm.scenario.operations import (
    ATTRIBUTE_PRIVATE,
    PAGE_SIZE_BYTES,
    SetMemoryAttributes,
    pages_of,
)


def set_attributes(
    op: SetMemoryAttributes, features: Features, vm_type: int, backing: Backing
) -> tuple[Allowed, ...]:
    """Return what the call may come to. Only VMs whose type has private memory take attributes."""
    if not features.memory_attributes:
        return _refused(errno.ENOTTY, "attributes-known")
    supported = features.memory_attributes if vm_type else 0
    if op.flags or op.attributes & ~supported:
        return _refused(errno.EINVAL, "attributes-supported")
    unaligned = op.address % PAGE_SIZE_BYTES or op.size % PAGE_SIZE_BYTES
    if unaligned or not op.size or op.address + op.size >= 1 << 64:
        return _refused(errno.EINVAL, "attributes-range")
    first = pages_of(op.address)
    gfns = range(first, first + pages_of(op.size))
    is_private = bool(op.attributes & ATTRIBUTE_PRIVATE)
    return (Allowed(Done(), "attributes", partial(backing.convert, gfns, is_private)),)


def _refused(number: int, rule: str) -> tuple[Allowed, ...]:
    return (Allowed(Refused(number), rule),)
