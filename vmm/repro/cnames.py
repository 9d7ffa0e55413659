"""The C names of a scenario's mappings, and literals."""

import errno
import re

from vmm.scenario.operations import GUEST_MAPPING, Hva, Mapping

_ESCAPES = tuple(f"\\x{byte:02x}" for byte in range(256))


class CNames:
    """Valid C names, whatever a scenario calls its mappings and files."""

    def __init__(self, mappings: tuple[Mapping, ...]) -> None:
        self.mappings = mappings
        self._names: dict[str, str] = {GUEST_MAPPING: "guest"}
        for mapping in mappings:
            self._name(mapping.name)

    def _name(self, name: str) -> str:
        if name not in self._names:
            plain = "mem_" + re.sub(r"[^A-Za-z0-9]", "_", name)
            taken = set(self._names.values())
            while plain in taken:
                plain += "_"
            self._names[name] = plain
        return self._names[name]

    def variable(self, name: str) -> str:
        """Return a pointer to the variable of a mapping."""
        return f"&{self._names[name]}"

    def file(self, name: str) -> str:
        """Return the variable of the file descriptor of a memfd or guest_memfd."""
        return f"file_{self._name(name).removeprefix('mem_')}"

    def hva(self, hva: Hva) -> str:
        """Return a userspace address as an expression."""
        if isinstance(hva, int):
            return unsigned(hva)
        return f"at({self.variable(hva.mapping)}, {hva.offset:#x})"

    def _of(self, mapping: Mapping) -> str:
        return f", .of = {self.variable(mapping.of)}" if mapping.of else ""

    def declarations(self) -> str:
        """Return the variables of all mappings except the guest's own."""
        return "".join(
            f"static struct mapping {self._names[mapping.name]} = "
            f'{{.name = "{_plain(mapping.name)}", .number = {number}, .pages = {mapping.pages}'
            f"{self._of(mapping)}}};\n"
            for number, mapping in enumerate(self.mappings)
            if mapping.name != GUEST_MAPPING
        )


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9 _.-]", "?", text)


def create_vm(vm_type: int) -> str:
    """Return the statement that creates a VM of a type."""
    kind = f"{vm_type} /* KVM_X86_SW_PROTECTED_VM */" if vm_type else "0"
    return f'vm = must(ioctl(kvm, KVM_CREATE_VM, {kind}), "KVM_CREATE_VM");'


def unsigned(value: int) -> str:
    """Return a number as a C literal: hexadecimal, with a suffix if needed."""
    if value == 0:
        return "0"
    return f"{value:#x}" + ("ull" if value >= 1 << 32 else "u" if value >= 1 << 31 else "")


def error(number: int) -> str:
    """Return the name of an errno; 0 is success."""
    return errno.errorcode.get(number, str(number)) if number else "SUCCESS"


def data(content: bytes) -> str:
    """Return bytes as a string literal."""
    return '"' + "".join(map(_ESCAPES.__getitem__, content)) + '"'


def flags(value: int) -> str:
    """Return the flags of a memory region by name."""
    names = [
        name
        for bit, name in ((1, "KVM_MEM_LOG_DIRTY_PAGES"), (2, "KVM_MEM_READONLY"))
        if value & bit
    ]
    rest = value & ~3
    return " | ".join([*names, unsigned(rest)] if rest or not names else names)


def pages(numbers: tuple[int, ...]) -> str:
    """Return two arguments: the count of page numbers, and an array of them."""
    if not numbers:
        return "0, NULL"
    return f"{len(numbers)}, (uint32_t[]){{{', '.join(map(str, numbers))}}}"


def slot_pages(numbers: tuple[tuple[int, int], ...]) -> str:
    """Return two arguments: the count of (slot number, page) pairs, and an array of them."""
    if not numbers:
        return "0, NULL"
    entries = ", ".join(f"{{{unsigned(slot)}, {page}}}" for slot, page in numbers)
    return f"{len(numbers)}, (struct slot_page[]){{{entries}}}"
