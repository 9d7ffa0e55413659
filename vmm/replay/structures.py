"""The structures of KVM's requests as text, as strace would print them if it decoded them."""

from struct import Struct

from kvm_abi.uapi import Cap, Ioctl

_FORMS = {
    Ioctl.SET_USER_MEMORY_REGION2: (
        Struct("<II4QiI112x"),
        "{slot=%d, flags=%#x, guest_phys_addr=%#x, memory_size=%d, userspace_addr=%#x, "
        "guest_memfd_offset=%#x, guest_memfd=%d, pad1=%#x}",
    ),
    Ioctl.GET_DIRTY_LOG: (Struct("<IIQ"), "{slot=%d, padding1=%#x, dirty_bitmap=%#x}"),
    Ioctl.CLEAR_DIRTY_LOG: (
        Struct("<IIQQ"),
        "{slot=%d, num_pages=%d, first_page=%d, dirty_bitmap=%#x}",
    ),
    Ioctl.SET_IDENTITY_MAP_ADDR: (Struct("<Q"), "[%#x]"),
    Ioctl.SET_MEMORY_ATTRIBUTES: (
        Struct("<4Q"),
        "{address=%#x, size=%d, attributes=%#x, flags=%#x}",
    ),
    Ioctl.PRE_FAULT_MEMORY: (Struct("<3Q40x"), "{gpa=%#x, size=%d, flags=%#x}"),
    Ioctl.CREATE_GUEST_MEMFD: (Struct("<QQ48x"), "{size=%d, flags=%#x}"),
}
_CAP = Struct("<II4Q64x")
_CAP_NAMES = {int(cap): f"KVM_CAP_{cap.name}" for cap in Cap}

DECODED = (*_FORMS, Ioctl.ENABLE_CAP)
"""The requests whose structures are printed here: strace prints only pointers to them."""


def structure_text(request: int, data: bytes) -> str:
    """Return a structure as text; "" if it could not be read, or is of another request."""
    if request == Ioctl.ENABLE_CAP and len(data) == _CAP.size:
        cap, flags, *arguments = _CAP.unpack(data)
        numbers = ", ".join(f"{each:#x}" for each in arguments)
        return f"{{cap={_CAP_NAMES.get(cap, cap)}, flags={flags:#x}, args=[{numbers}]}}"
    form = next((form for known, form in _FORMS.items() if known == request), None)
    if form is None or len(data) != form[0].size:
        return ""
    return form[1] % form[0].unpack(data)
