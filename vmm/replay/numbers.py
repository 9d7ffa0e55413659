"""Numbers and names in traces: requests, capabilities, and flags of system calls."""

import re

from kvm_abi.uapi import Cap, Ioctl, MemFlag

_KVM_TYPE = 0xAE
_DIRECTION_AND_NUMBER = 0xC000_00FF
_REQUESTS = {int(request) & _DIRECTION_AND_NUMBER: f"KVM_{request.name}" for request in Ioctl}
_IOC = re.compile(r"_IOC\(([A-Z_|0-9 ]+),\s*(0x[0-9a-f]+),\s*(0x[0-9a-f]+),\s*(?:0x)?[0-9a-f]+\)")
_DIRECTIONS = {"_IOC_NONE": 0, "_IOC_WRITE": 1, "_IOC_READ": 2}
_PLAIN = re.compile(r" ?(KVM_[A-Z0-9_]+)(?=[,)]|$)")
_NAME = re.compile(r"\bKVM_[A-Z0-9_]+")
_NUMBER = re.compile(r"\s*(0x[0-9a-f]+|\d+)\b")

REGION, REGION2 = "KVM_SET_USER_MEMORY_REGION", "KVM_SET_USER_MEMORY_REGION2"
CREATE_VM = "KVM_CREATE_VM"
CHECK_EXTENSION = "KVM_CHECK_EXTENSION"
SET_TSS_ADDR = "KVM_SET_TSS_ADDR"
SET_IDENTITY_MAP_ADDR = "KVM_SET_IDENTITY_MAP_ADDR"
ENABLE_CAP = "KVM_ENABLE_CAP"
CREATE_GUEST_MEMFD = "KVM_CREATE_GUEST_MEMFD"
SET_MEMORY_ATTRIBUTES = "KVM_SET_MEMORY_ATTRIBUTES"
CREATE_VCPU = "KVM_CREATE_VCPU"
RESET_RINGS = "KVM_RESET_DIRTY_RINGS"
PRE_FAULT = "KVM_PRE_FAULT_MEMORY"

CONCERNED = frozenset(
    f"KVM_{name}"
    for name in (
        *("GET_DIRTY_LOG", "CLEAR_DIRTY_LOG", "RESET_DIRTY_RINGS", "SET_IDENTITY_MAP_ADDR"),
        *("ENABLE_CAP", "CREATE_GUEST_MEMFD", "SET_MEMORY_ATTRIBUTES", "PRE_FAULT_MEMORY"),
    )
)
"""Requests that concern memslots, but take a pointer to a structure that strace does not print.

`vmm record` reads most of these structures.
"""

SLOT_REQUESTS = CONCERNED | {CREATE_VM, CREATE_VCPU, CHECK_EXTENSION, REGION, REGION2, SET_TSS_ADDR}
"""All requests that say something of slots: they are recorded, and their lines parsed."""

TOO_LITTLE = {
    RESET_RINGS: "which may be right or not: what was enabled is not in the trace",
    PRE_FAULT: "whose gpa or whose VM the trace does not show",
}
"""Calls whose answers depend on what a trace may not have, and why they cannot be judged then."""

MEM_FLAGS = {f"KVM_MEM_{flag.name}": int(flag) for flag in MemFlag}
CAPABILITIES = {f"KVM_CAP_{cap.name}": int(cap) for cap in Cap}

PROT_READ, PROT_WRITE = 1, 2
PROTECTIONS = {"PROT_NONE": 0, "PROT_READ": 1, "PROT_WRITE": 2, "PROT_EXEC": 4, "PROT_SEM": 8}
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_HUGETLB = 1, 2, 0x10, 0x20, 0x40000
MAP_FLAGS = {
    "MAP_SHARED": 1,
    "MAP_PRIVATE": MAP_PRIVATE,
    "MAP_SHARED_VALIDATE": 3,
    "MAP_FIXED": MAP_FIXED,
    "MAP_FIXED_NOREPLACE": 0x100000,
    "MAP_ANONYMOUS": MAP_ANONYMOUS,
    "MAP_HUGETLB": MAP_HUGETLB,
}
ADVICE = {
    "MADV_DONTNEED": 4,
    "MADV_REMOVE": 9,
    "MADV_HUGEPAGE": 14,
    "MADV_NOHUGEPAGE": 15,
    "MADV_DONTNEED_LOCKED": 24,
}
CLONE_VM, CLONE_FILES = 0x100, 0x400
MFD_HUGETLB = 4
FALLOC_FLAGS = {
    "FALLOC_FL_KEEP_SIZE": 1,
    "FALLOC_FL_PUNCH_HOLE": 2,
    "FALLOC_FL_NO_HIDE_STALE": 4,
    "FALLOC_FL_COLLAPSE_RANGE": 8,
    "FALLOC_FL_ZERO_RANGE": 16,
    "FALLOC_FL_INSERT_RANGE": 32,
    "FALLOC_FL_UNSHARE_RANGE": 64,
}


def literal(text: str) -> int:
    """Return a number as C writes it: decimal, octal or hexadecimal."""
    if text[:1] in "123456789":
        return int(text)  # The most usual ones come first.
    if text[:2] == "0x":
        return int(text, 16)
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    if digits[:2] in ("0x", "0X"):
        return sign * int(digits[2:], 16)
    is_octal = digits[:1] == "0" and not set(digits) & {"8", "9"}
    return sign * int(digits, 8 if is_octal else 10)


def is_of_64_bits(number: int) -> bool:
    """Whether a number can be one of a system call's, signed or not."""
    return -(1 << 63) <= number < 1 << 64


def request_in(text: str) -> str:
    """Return the name of the KVM request in the second argument of an ioctl; "" if it is none.

    strace writes it by name, as a number (-X raw), as both (-X verbose), or as `_IOC(...)`.
    """
    plain = _PLAIN.match(text)
    if plain is not None:
        return plain[1]
    head = text[:120]
    name = _NAME.search(head)
    ioc = _IOC.search(head)
    number = _NUMBER.match(head)
    if ioc is not None:
        return _named(bits_in(ioc[1], _DIRECTIONS) << 30 | int(ioc[2], 16) << 8 | int(ioc[3], 16))
    if number is not None:
        return _named(literal(number[1]))
    return name[0] if name is not None else ""


def _named(request: int) -> str:
    """Return the name of a request: KVM_ENABLE_CAP and KVM_GET_TSC_KHZ have the same number."""
    if request >> 8 & 0xFF != _KVM_TYPE:
        return ""
    known = _REQUESTS.get(request & _DIRECTION_AND_NUMBER)
    return known or f"KVM request {request & 0xFF:#x}"


def bits_in(text: str, names: dict[str, int]) -> int:
    """Return the flags in a text: numbers, and the names that are known."""
    total = 0
    for part in re.sub(r"/\*.*?\*/", "", text).split("|"):
        number = _NUMBER.match(part)
        total |= literal(number[1]) if number is not None else names.get(part.strip(), 0)
    return total
