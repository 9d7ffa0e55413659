"""Exits in words, as an outcome and a message name them."""

from kvm_abi import uapi
from vmm.kvm.exits import InternalError, VcpuExit


def in_words(leaving: VcpuExit) -> str:
    """Return the name of an exit, and its fields if it has any.

    >>> from vmm import exits
    >>> in_words(exits.Hlt())
    'hlt'
    >>> in_words(exits.FailEntry(hardware_reason=0x80000021, cpu=1))
    'fail-entry (hardware_reason=0x80000021, cpu=0x1)'
    """
    fields = fields_in_words(leaving)
    return f"{leaving.name} ({fields})" if fields else leaving.name


def fields_in_words(leaving: VcpuExit) -> str:
    """Return the fields of an exit: numbers and bytes in hexadecimal, what is empty left out.

    >>> from vmm import exits
    >>> fields_in_words(exits.Mmio(gpa=0x2000, data=b"\\xff", is_write=True))
    'gpa=0x2000, data=ff, is_write=True'
    >>> fields_in_words(exits.InternalError(suberror=1, data=(), instruction=b"\\x0f\\x0b"))
    'suberror=0x1 (EMULATION), instruction=0f0b'
    """
    fields = [
        f"{name}={_value(value)}"
        for name in type(leaving).__match_args__
        if (value := getattr(leaving, name)) not in ((), b"")
    ]
    if isinstance(leaving, InternalError) and leaving.suberror in _SUBERRORS:
        fields[0] += f" ({_SUBERRORS[leaving.suberror]})"
    return ", ".join(fields)


_SUBERRORS = {int(error): error.name for error in uapi.InternalError}


def _value(value: object) -> str:
    match value:
        case bool():
            return str(value)
        case int():
            return f"{value:#x}"
        case bytes():
            return value.hex()
        case tuple():
            return " ".join(map(_value, value))
        case _:
            raise AssertionError(f"an exit with a field {value!r}")
