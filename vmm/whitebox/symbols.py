"""The address of the kernel's list of VMs, from /proc/kallsyms, or from the module's file and /sys.

With CONFIG_KALLSYMS_ALL, /proc/kallsyms has it among a hundred thousand symbols, which takes
seconds on an emulated machine; the module's file has its offset in a section, and /sys the
section's address.
"""

from pathlib import Path
from struct import Struct

import msgspec

from vmm.whitebox.errors import CannotLookError

SYMBOLS = Path("/proc/kallsyms")
SECTIONS = Path("/sys/module/kvm/sections")
_NAME = b"vm_list"
_BLOCK = 1 << 20
_HEADER = Struct("<16xHHIQQQIHHHHHH")
_SECTION = Struct("<IIQQQQIIQQ")
_SYMBOL = Struct("<IBBHQQ")
_SYMTAB = 2


class Within(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place in a section of the module."""

    section: str
    offset: int

    def address(self, sections: Path = SECTIONS) -> int:
        """Return its address in the running kernel. Raises CannotLookError."""
        place = sections / self.section
        try:
            start = int(place.read_text(), 16)
        except (OSError, ValueError) as error:
            raise CannotLookError(f"{place}: {error}") from None
        if not start:
            raise CannotLookError(f"{place} hides addresses: be root, kptr_restrict < 2")
        return start + self.offset


def within(module: bytes) -> Within | None:
    """Return where the list of VMs is in a kvm.ko; None if it is not such a module."""
    if len(module) < _HEADER.size or module[:6] != b"\x7fELF\x02\x01":
        return None
    _, _, _, _, _, table, _, _, _, _, size, count, names = _HEADER.unpack_from(module)
    if size != _SECTION.size or table + size * count > len(module):
        return None
    sections = [_SECTION.unpack_from(module, table + size * number) for number in range(count)]

    def text(strings: int, at: int) -> bytes:
        start = sections[strings][4] + at
        return module[start : module.find(b"\0", start)]

    for section in sections:
        if section[1] != _SYMTAB:
            continue
        # Find the name first, then its symbol among thousands.
        strings = sections[section[6]]
        found = module.find(b"\0" + _NAME + b"\0", strings[4], strings[4] + strings[5])
        for at in range(section[4], section[4] + section[5], _SYMBOL.size) if found >= 0 else ():
            name_at, _, _, owner, value, _ = _SYMBOL.unpack_from(module, at)
            if name_at == found + 1 - strings[4] and 0 < owner < count:
                return Within(text(names, sections[owner][0]).decode(), value)
    return None


def vm_list_in(symbols: Path = SYMBOLS) -> int:
    """Return the address of the list of VMs from /proc/kallsyms. Raises CannotLookError."""
    rest = b""
    try:
        with symbols.open("rb", buffering=_BLOCK) as file:
            while block := file.read(_BLOCK):
                lines = rest + block
                end = lines.rfind(b"\n") + 1
                address = _address_in(lines[:end])
                if address is not None:
                    if address:
                        return address
                    raise CannotLookError(f"{symbols} hides addresses: be root, kptr_restrict < 2")
                rest = lines[end:]
    except OSError as error:
        raise CannotLookError(f"{symbols}: {error.strerror}") from None
    raise CannotLookError(f"{symbols} does not name vm_list: CONFIG_KALLSYMS_ALL, and kvm loaded")


def _address_in(lines: bytes) -> int | None:
    at = lines.find(b" " + _NAME)
    while at >= 0:
        end = lines.find(b"\n", at)
        address, _, name, *_ = lines[lines.rfind(b"\n", 0, at) + 1 : end].split()
        if name == _NAME:
            return int(address, 16)
        at = lines.find(b" " + _NAME, end)
    return None
