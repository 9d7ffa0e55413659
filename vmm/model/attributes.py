"""The outcomes of KVM_SET_MEMORY_ATTRIBUTES, and which gpas are private from then on."""

import errno
from functools import partial

from vmm.model.allowed import Allowed
from vmm.model.backing import Backing
from vmm.model.rule import Rule, documented, source
from vmm.scenario.features import Features
from vmm.scenario.history import Done, Refused
from vmm.scenario.operations import (
    ATTRIBUTE_PRIVATE,
    PAGE_SIZE_BYTES,
    SetMemoryAttributes,
    pages_of,
)

ATTRIBUTES = documented(
    "attributes",
    "KVM_SET_MEMORY_ATTRIBUTES sets the attributes of gpas, with a slot or without",
    "api.rst 4.141",
)
ATTRIBUTES_SUPPORTED = documented(
    "attributes-supported",
    "flags are 0, and attributes are those that KVM_CAP_MEMORY_ATTRIBUTES names for the VM, "
    "else EINVAL",
    "api.rst 4.141",
)
ATTRIBUTES_RANGE = documented(
    "attributes-range",
    "attributes are set on whole pages, more than none, that do not wrap, else EINVAL",
    "api.rst 4.141; kvm_vm_ioctl_set_mem_attributes",
)
ATTRIBUTES_KNOWN = source(
    "attributes-known",
    "without KVM_CAP_MEMORY_ATTRIBUTES the call is ENOTTY",
    "kvm_vm_ioctl: KVM_SET_MEMORY_ATTRIBUTES",
)


def set_attributes(
    op: SetMemoryAttributes, features: Features, vm_type: int, backing: Backing
) -> tuple[Allowed, ...]:
    """Return the allowed outcomes. Only VMs of a type with private memory accept attributes."""
    if not features.memory_attributes:
        return _refused(errno.ENOTTY, ATTRIBUTES_KNOWN)
    supported = features.memory_attributes if vm_type else 0
    if op.flags or op.attributes & ~supported:
        return _refused(errno.EINVAL, ATTRIBUTES_SUPPORTED)
    unaligned = op.address % PAGE_SIZE_BYTES or op.size % PAGE_SIZE_BYTES
    if unaligned or not op.size or op.address + op.size >= 1 << 64:
        return _refused(errno.EINVAL, ATTRIBUTES_RANGE)
    first = pages_of(op.address)
    gfns = range(first, first + pages_of(op.size))
    is_private = bool(op.attributes & ATTRIBUTE_PRIVATE)
    return (Allowed(Done(), ATTRIBUTES, partial(backing.convert, gfns, is_private)),)


def _refused(number: int, rule: Rule) -> tuple[Allowed, ...]:
    return (Allowed(Refused(number), rule),)
