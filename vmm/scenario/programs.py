"""Code that the host writes to a page for a vCPU to start at, and page tables for it to use.

A program is a few bytes, so that the model recognises it in memory. Each ends by writing EAX to the
port of the *execute* guest.
"""

from collections.abc import Iterator, Mapping
from itertools import product

from vmm.scenario.operations import PAGE_SIZE_BYTES, SMBASE, HostWrite, Place

LOAD = bytes.fromhex("8b07 e7e1 f4")
"""mov (%rdi), %eax: the guest reads a word."""

STORE = bytes.fromhex("890f 8b07 e7e1 f4")
"""mov %ecx, (%rdi), then as LOAD: the guest writes a word, and reads it back."""

_REMAP, _REMAP_END = bytes.fromhex("890f 48bf"), bytes.fromhex("0f013f 8b07 e7e1 f4")
"""mov %ecx, (%rdi); mov $address, %rdi; invlpg (%rdi), then as LOAD: the guest writes half of an
entry of its page tables, and reads a word at an address."""

_EXCHANGE = bytes.fromhex("870f 48bf")
"""xchg %ecx, (%rdi) in place of that mov: the guest exchanges half of an entry, which is atomic."""

_RELOAD_END = bytes.fromhex("0f20d8 0f22d8 8b07 e7e1 f4")
"""mov %cr3, %rax; mov %rax, %cr3 in place of that invlpg: the guest invalidates all addresses."""

_REMAP_BOTH, _REMAP_BOTH_END = (
    bytes.fromhex("890f 894f08 48bf"),
    bytes.fromhex("0f013f 0f01bf00100000 8b07 8b8700100000 e7e1 f4"),
)
"""mov %ecx, (%rdi); mov %ecx, 8(%rdi); mov $address, %rdi; invlpg (%rdi); invlpg 4096(%rdi); mov
(%rdi), %eax; mov 4096(%rdi), %eax: the guest writes half of two entries, and reads at an address
and a page further."""

_COPY, _COPY_END = bytes.fromhex("48be"), bytes.fromhex("a5 8b47fc e7e1 f4")
"""mov $address, %rsi; movsl; mov -4(%rdi), %eax: the guest copies a word, and reads the copy."""

_ADDRESS_BYTES = 8
PROGRAM_BYTES = len(_REMAP_BOTH) + _ADDRESS_BYTES + len(_REMAP_BOTH_END)
"""How long the longest program is that accesses data."""

INTERRUPT = bytes.fromhex("cd20 f4")
"""int $0x20: the guest raises an interrupt, whose handler is the code in a page."""

RETURN, LONG_RETURN = bytes.fromhex("cf f4"), bytes.fromhex("48cf f4")
"""iret and iretq: the guest returns to code that a page carries, by what its stack holds."""

SMM_RETURN = bytes.fromhex("0faa")
"""rsm: the handler of a system management interrupt returns to what it interrupted."""

_SMM_STORE = bytes.fromhex("6766c705")
"""movl $value, address in real mode; both follow."""

SMM_HANDLER_OFFSET = 0x8000
SMM_HANDLER = SMBASE + SMM_HANDLER_OFFSET
"""The gpa, in as_id 1, where a vCPU begins in SMM if its SMBASE is that after a reset."""

SMM_STATE_OFFSET, SMM_STATE_BYTES = 0xFE00, 0x200
SMM_STATE = SMBASE + SMM_STATE_OFFSET
"""Where, in as_id 1, such a vCPU's state is saved when it enters SMM."""

FAR_CALL = b"\x9a"
"""lcall $cs, $ip in real mode: the guest calls code that a page carries."""

FAR_CALL_BYTES, FAR_CALL_FRAME_BYTES = 5, 4
"""The length of the call in real mode, and of what it pushes: CS and IP."""

LONG_FAR_CALL = bytes.fromhex("ff1f f4")
"""lcall *(%rdi) in 64-bit mode: the guest calls code whose address and selector are in memory."""

LONG_FAR_CALL_BYTES = 2
POINTER_BYTES = 6
"""What a far call in 64-bit mode reads: a word and a selector."""

INTERRUPT_BYTES = 2
VECTOR = INTERRUPT[1]
REAL_GATE_BYTES, LONG_GATE_BYTES = 4, 16
"""An entry of an interrupt table: ip and cs in real mode, a gate in 64-bit mode."""

CODE_SELECTOR, STACK_SELECTOR = 0x08, 0x10
"""CS and SS in 64-bit mode; an interrupt reloads the descriptor of CS."""

CODE_DESCRIPTOR = 0x0020_9B00_0000_0000
FLAT_CODE_DESCRIPTOR = CODE_DESCRIPTOR | 0x008F_0000_0000_FFFF
"""The same with a limit of 4 GiB, which emulated processors may look at in 64-bit mode, too."""

_INTERRUPT_GATE = 0x8E00
FLAGS = 0x2

REAL_FRAME_BYTES, LONG_FRAME_BYTES = 6, 40

PRESENT, WRITABLE, LARGE = 1 << 0, 1 << 1, 1 << 7
ACCESSED, DIRTY = 1 << 5, 1 << 6
"""Bits of a page table entry; the processor sets the last two."""

ENTRY_BYTES = 8
LAST_ADDRESS = (1 << 47) - PAGE_SIZE_BYTES
"""The last address in use: one page before the first that is not canonical."""

_INDEX_BITS = 9
"""Bits of an address that are its index at each level in 64-bit mode."""

_PAGE_BITS = 12


def shift_of(level: int) -> int:
    """Return the lowest bit of a level's index in an address; level 0 is that of pages."""
    return _PAGE_BITS + _INDEX_BITS * level


def index_of(address: int, level: int) -> int:
    """Return the index of an address in the table of a level."""
    return address >> shift_of(level) & (1 << _INDEX_BITS) - 1


def remap(address: int, is_atomic: bool = False, reloads: bool = False) -> bytes:
    """Return a program that writes CX to the entry at DI, invalidates an address, reads there.

    ``is_atomic``: it exchanges CX with the entry; ``reloads``: it invalidates all by loading CR3.
    """
    begin = _EXCHANGE if is_atomic else _REMAP
    end = _RELOAD_END if reloads else _REMAP_END
    return begin + address.to_bytes(_ADDRESS_BYTES, "little") + end


def remap_both(address: int) -> bytes:
    """Return a program that writes CX to two entries, as `remap` does to one, and reads twice.

    The second entry is the one after that at DI, and the second address is one page further.
    """
    return _REMAP_BOTH + address.to_bytes(_ADDRESS_BYTES, "little") + _REMAP_BOTH_END


def copy(address: int) -> bytes:
    """Return a program that copies a word from an address to DI, and reads it there."""
    return _COPY + address.to_bytes(_ADDRESS_BYTES, "little") + _COPY_END


def remapped_by(code: bytes) -> tuple[int, ...]:
    """Return each address that a program of `remap` or `remap_both` invalidates, and reads at.

    It writes as many entries. None for another program.
    """
    address = _address_in(code, _REMAP)
    ways = product((False, True), repeat=2)
    if any(code.startswith(remap(address, *way)) for way in ways):
        return (address,)
    address = _address_in(code, _REMAP_BOTH)
    if code.startswith(remap_both(address)):
        return address, address + PAGE_SIZE_BYTES
    return ()


def _address_in(code: bytes, begin: bytes) -> int:
    """Return what follows the begin of a program."""
    return int.from_bytes(code[len(begin) : len(begin) + _ADDRESS_BYTES], "little")


def copied_by(code: bytes) -> int | None:
    """Return the address that a program of `copy` reads; None if it is another program."""
    address = _address_in(code, _COPY)
    return address if code.startswith(copy(address)) else None


def smm_store(gpa: int, value: int) -> bytes:
    """Return a handler of a system management interrupt that writes a word, and returns."""
    return _SMM_STORE + gpa.to_bytes(4, "little") + value.to_bytes(4, "little") + SMM_RETURN


SMM_STORE_BYTES = len(smm_store(0, 0))


def smm_stored_by(code: bytes) -> tuple[int, int] | None:
    """Return the gpa and the word that a handler of `smm_store` writes; None if it is another."""
    begin = len(_SMM_STORE)
    gpa, value = (int.from_bytes(code[at : at + 4], "little") for at in (begin, begin + 4))
    return (gpa, value) if code.startswith(smm_store(gpa, value)) else None


def far_pointer(address: int) -> bytes:
    """Return what a far call in 64-bit mode reads for code at an address below 4 GiB."""
    return address.to_bytes(4, "little") + CODE_SELECTOR.to_bytes(2, "little")


def far_call(gpa: int) -> bytes:
    """Return a program that calls code at a gpa below 1 MiB."""
    return FAR_CALL + real_gate(gpa).to_bytes(REAL_GATE_BYTES, "little") + b"\xf4"


def return_frame(address: int, *, is_long: bool) -> bytes:
    """Return what a stack holds for a return to an address: a gpa below 1 MiB in real mode."""
    if not is_long:
        return real_gate(address).to_bytes(REAL_GATE_BYTES, "little") + FLAGS.to_bytes(2, "little")
    quads = (address, CODE_SELECTOR, FLAGS, 0, 0)
    return b"".join(quad.to_bytes(8, "little") for quad in quads)


def real_gate(gpa: int) -> int:
    """Return an entry of a real-mode table whose handler is at a gpa below 1 MiB."""
    return (gpa & -PAGE_SIZE_BYTES) >> 4 << 16 | gpa % PAGE_SIZE_BYTES


def long_gate(address: int) -> bytes:
    """Return a gate of 64-bit mode whose handler is at an address below 4 GiB."""
    low = address & 0xFFFF | CODE_SELECTOR << 16 | _INTERRUPT_GATE << 32
    return (low | address >> 16 << 48).to_bytes(8, "little") + bytes(8)


def handler_of(entry: bytes) -> int | None:
    """Return the address of an entry's handler, in real mode a gpa; None if not a valid gate."""
    if len(entry) == REAL_GATE_BYTES:
        return (int.from_bytes(entry[2:], "little") << 4) + int.from_bytes(entry[:2], "little")
    low = int.from_bytes(entry[:8], "little")
    address = low & 0xFFFF | (low >> 48) << 16
    return address if entry == long_gate(address) else None


def writes(place: Place, data: bytes) -> Iterator[HostWrite]:
    """Yield the operations that write bytes to host memory, padded with zeros to whole words."""
    for at in range(0, len(data), 4):
        value = int.from_bytes(data[at : at + 4], "little")
        yield HostWrite(Place(place.mapping, place.offset + at), value)


def entries(
    table: Place, values: Mapping[int, int], width: int = ENTRY_BYTES
) -> Iterator[HostWrite]:
    """Yield the operations that write entries of 8 or 4 bytes, by index, to a page of zeros."""
    for index, value in values.items():
        for at, word in ((0, value & 0xFFFF_FFFF), (4, value >> 32)):
            if word:
                yield HostWrite(Place(table.mapping, table.offset + index * width + at), word)
