"""System calls on KVM's files and on the process's own mappings, typed.

The only importer of the compiled module: `Any` is tolerated here and nowhere else.
An address is an `int` throughout, and 0 is an address like any other.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any, Protocol

from kvm_abi._kvm import ffi as _ffi, lib as _lib
from kvm_abi.uapi import PAGE_SIZE_BYTES, Advice, Ioctl, MapFlag, Protection

# A pointer that cffi owns or a pointer that it was given; its fields are the structure's.
CData = Any


class Buffer(Protocol):
    """What `struct.unpack_from` reads, and slices copy: cffi's buffers are of this kind."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


PassedMmio = tuple[int, int, bytes, bool]
"""An MMIO exit after which the guest went on: (rip, gpa, data, is_write)."""

MAX_DIFFERENCES = 64
"""So many of them `differences` returns at most."""

MAX_PASSED = 64
"""So many MMIO exits `run_past_mmio` passes at most."""

_MAX_RENDERED_BYTES = 64
_PATH_MAX = 4096
_PASSED = Struct("<QQII8s")  # rip, gpa, length, whether it is a write, data

_new = _ffi.new
_FOUND = _ffi.typeof(f"uint64_t[{2 * MAX_DIFFERENCES}]")
_NEWS = Struct("<QQQ")  # the number of a stretch, offset, length
_NEWS_BLOCKS = 4
_NEWS_FOUND = _ffi.typeof(f"uint64_t[{3 * MAX_DIFFERENCES}]")
_PASSED_ROOM = _ffi.typeof(f"uint64_t[{4 * MAX_PASSED}]")
_COUNT = _ffi.typeof("uint32_t *")
_REGION = _ffi.typeof("struct kvm_userspace_memory_region *")
_typeof = _ffi.typeof
_sizeof = _ffi.sizeof
_buffer = _ffi.buffer
_ioctl_struct = _lib.abi_ioctl_struct
_ioctl_value = _lib.abi_ioctl_value
_run = _lib.abi_run
_run_past_mmio = _lib.abi_run_past_mmio
_harvest = _lib.abi_harvest
_AT_END = int(_lib.ABI_AT_END)

issue_region = _lib.abi_set_user_memory_region
"""Issue KVM_SET_USER_MEMORY_REGION: fd, slot, flags, guest_phys_addr, memory_size, userspace_addr.

It answers 0, or what `region_error` takes. It is issued more often than any other call, so it has
no function of Python's around it.
"""

# Looking these up in their enums is slow, and every ioctl or refusal asks for them.
_RUN = int(Ioctl.RUN)
_EINTR = errno.EINTR
_ANSWER_NUMBERS = frozenset(
    (
        Ioctl.GET_API_VERSION,
        Ioctl.CREATE_VM,
        Ioctl.CHECK_EXTENSION,
        Ioctl.GET_VCPU_MMAP_SIZE,
        Ioctl.CREATE_VCPU,
        Ioctl.CREATE_GUEST_MEMFD,
        Ioctl.RESET_DIRTY_RINGS,
        Ioctl.SET_MSRS,
    )
)
"""All others answer 0, or refuse."""

_MOST_INTERRUPTIONS = 1000
"""So many times in a row no signal comes: the kernel makes them up."""

_SIZES_BYTES = {request: request.size_bytes for request in Ioctl}

# The pointer type last seen with each request, whose size was found right.
_checked: dict[Ioctl, Any] = {}


class KvmError(OSError):
    """A call that KVM refused: `errno`, `call`, and the arguments in its text.

    `call` is the name of the ioctl, or what else was asked of a file of KVM. The text is made when
    it is asked for: refusals are ordinary outcomes of a test run.

        >>> import errno
        >>> from vmm import Kvm, KvmError
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     try:
        ...         vm.set_user_memory_region(0, 0, 0, 0, 0)  # There is no slot to delete.
        ...     except KvmError as error:
        ...         print(error.call, error.errno == errno.EINVAL)
        KVM_SET_USER_MEMORY_REGION True
    """

    def __init__(
        self, number: int, call: Ioctl | str, ctype: Any, argument: bytes | int | str
    ) -> None:
        super().__init__(number, "")
        self.request = call if isinstance(call, Ioctl) else None
        self._call = call
        self._ctype = ctype
        self._argument = argument

    @property
    def call(self) -> str:
        """What was called: `KVM_` and the name of the request, or `mmap of ...`."""
        return f"KVM_{self._call.name}" if isinstance(self._call, Ioctl) else self._call

    @property
    def arguments(self) -> str:
        """The arguments as `field=value, ...`, or one number."""
        if isinstance(self._argument, str):
            return self._argument
        if isinstance(self._argument, int):
            return hex(self._argument) if self._argument else ""
        copy = _new(f"{self._ctype.item.cname} *")
        _buffer(copy)[:] = self._argument
        return _fields(copy[0], self._ctype.item)

    def __str__(self) -> str:
        number = self.errno or 0
        name = errno.errorcode.get(number, str(number))
        return f"{self.call}({self.arguments}): {name} {os.strerror(number)}"


class WrongAnswerError(RuntimeError):
    """A call that KVM did not refuse, but answered in a way that no kernel may."""

    def __init__(self, call: str, answer: str, arguments: str = "") -> None:
        super().__init__(f"{call}({arguments}) answers {answer}")
        self.call = call
        self.arguments = arguments
        self.answer = answer


def new(declaration: str, *init: Any) -> CData:
    """Allocate a structure, zeroed or from a tuple, list or dictionary, and return its pointer.

    `declaration` is C, of the pointer or of an array: `"struct kvm_regs *"`, `"uint8_t[64]"`.
    """
    return _new(declaration, *init)


def size_of(ctype: str | Any) -> int:
    """Return the size in bytes of a type, by its C name or description."""
    return int(_sizeof(ctype))


def cast(declaration: str, address: int) -> CData:
    """Return a pointer to `address`. Its target is the caller's to keep alive."""
    return _ffi.cast(declaration, address)


def address_of(pointer: CData) -> int:
    """Return the address that a pointer or an array holds."""
    return int(_ffi.cast("uintptr_t", pointer))


def copy_to(pointer: CData, data: bytes) -> None:
    """Copy bytes to the memory at a pointer."""
    _ffi.memmove(pointer, data, len(data))


def room(data: bytearray) -> CData:
    """Return a pointer to bytes that the kernel is to change. It keeps them where they are."""
    return _ffi.from_buffer(data)


def memory_of(pointer: CData, size_bytes: int) -> memoryview:
    """Return a writable view of the memory at a pointer. It keeps the pointer alive."""
    return memoryview(_buffer(pointer, size_bytes))


def bytes_of(pointer: CData, size_bytes: int, offset: int = 0) -> bytes:
    """Copy bytes out, from `offset` after a pointer."""
    return bytes(_buffer(pointer, offset + size_bytes)[offset:])


def shared_memory(address: int, size_bytes: int) -> Buffer:
    """Return memory as a buffer that is read in place; a slice of it is a copy, as `bytes`.

    The memory is the caller's to keep mapped.
    """
    buffer: Buffer = _buffer(_ffi.cast("char *", address), size_bytes)
    return buffer


def ioctl(fd: int, request: Ioctl, arg: CData | int = 0) -> int:
    """Issue `request` and return its result, 0 or positive.

    `arg` is a pointer to the structure that the request takes, or an `int` proper (not an
    enum). A number goes to the kernel as it is, even when the request takes a structure: then
    it is an address that the caller answers for.

    Raises `KvmError` with the kernel's errno, and `TypeError` when the size of the structure
    is not the one that the request's number states. Interrupted calls are issued again
    (after Python's signal handlers have run), but for KVM_RUN, whose EINTR is an answer.
    Raises `WrongAnswerError` for a number from a request that has none to give.
    """
    if type(arg) is int:  # isinstance() would ask a structure for its class, field by field.
        result = _ioctl_value(fd, request, arg)
    else:
        if _checked.get(request) is not _typeof(arg):
            _check_size(request, arg)
        result = _ioctl_struct(fd, request, arg)
    if result == -_EINTR and request != _RUN:
        result = _again(fd, request, arg)
    if result > 0 and request not in _ANSWER_NUMBERS:
        raise _wrong_answer(request, result, arg)
    if result >= 0:
        return int(result)
    raise _error(-result, request, arg)


def _again(fd: int, request: Ioctl, arg: CData | int) -> int:
    """Issue a request until it is not interrupted, and return what the kernel answers."""
    issue = _ioctl_value if type(arg) is int else _ioctl_struct
    result = -_EINTR
    for _ in range(_MOST_INTERRUPTIONS):
        result = issue(fd, request, arg)
        if result != -_EINTR:
            break
    return int(result)


def region_error(result: int, *region: int) -> Exception:
    """Return what `issue_region`, with this slot and the numbers after it, has to raise."""
    arg = _new(_REGION, region)
    if result > 0:
        return _wrong_answer(Ioctl.SET_USER_MEMORY_REGION, result, arg)
    return _error(-result, Ioctl.SET_USER_MEMORY_REGION, arg)


def harvest(entries: CData, count: int, first: int) -> list[tuple[int, int]]:
    """Return (slot, page) of each dirty entry of a ring from `first` on, and mark it for the reset.

    `entries` is the `struct kvm_dirty_gfn *` of a ring of `count` entries, a power of two.
    """
    words = _new("uint64_t[]", 2 * count)
    found = _harvest(entries, count, first % count, words)
    numbers = _ffi.unpack(words, 2 * found)
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def run_vcpu(fd: int) -> None:
    """Issue KVM_RUN: what `ioctl` does with it, as the shortest way there is."""
    result = _run(fd)
    if result:
        if result > 0:
            raise _wrong_answer(Ioctl.RUN, result, 0)
        raise KvmError(-result, Ioctl.RUN, None, 0)


class PassedRoom:
    """Room for the MMIO exits that one vCPU passes in one call."""

    __slots__ = ("buffer", "count", "words")

    def __init__(self) -> None:
        self.words, self.count = _new(_PASSED_ROOM), _new(_COUNT)
        self.buffer = _buffer(self.words)


def run_past_mmio(
    fd: int,
    run: CData,
    answer: int,
    end_port: int,
    passed: list[PassedMmio],
    here: PassedRoom,
    most: int = MAX_PASSED,
) -> bool | None:
    """Issue KVM_RUN again and again until an exit that is not MMIO, or after `most` of those.

    Returns True at `end_port`, False at another exit, and None where there may be more MMIO.
    `run` is the `struct kvm_run *` of the vCPU. The guest's reads are answered with bytes of
    `answer`. Each exit that was passed is appended to `passed`, those before an error too; its
    `rip` is true of a vCPU that shares its registers. The last one is completed by the next
    KVM_RUN.

    Raises `KvmError` as `ioctl` does.
    """
    count = here.count
    result = _run_past_mmio(fd, run, answer, end_port, here.words, most, count)
    number = count[0]
    if number:
        records = _PASSED.iter_unpack(here.buffer[: number * _PASSED.size])
        passed += [(rip, gpa, data[:size], write != 0) for rip, gpa, size, write, data in records]
    if not result:
        return None if number == most else False
    if result == _AT_END:
        return True
    if result > 0:
        raise _wrong_answer(Ioctl.RUN, result, 0)
    raise _error(-result, Ioctl.RUN, 0)


def _error(number: int, request: Ioctl, arg: CData | int) -> KvmError:
    if type(arg) is int:
        return KvmError(number, request, None, arg)
    return KvmError(number, request, _typeof(arg), bytes(_buffer(arg, _SIZES_BYTES[request])))


def _wrong_answer(request: Ioctl, result: int, arg: CData | int) -> WrongAnswerError:
    call = _error(0, request, arg)
    answer = f"{result}, and not 0"
    if result == _lib.ABI_WRITTEN_TO:
        answer = "its argument, which it only reads, was written to"
    return WrongAnswerError(call.call, answer, call.arguments)


def _check_size(request: Ioctl, arg: CData) -> None:
    ctype = _typeof(arg)
    if ctype.kind != "pointer":
        raise TypeError(f"KVM_{request.name} takes a pointer, not {ctype.cname}")
    size_bytes = _sizeof(ctype.item)
    if size_bytes != request.size_bytes:
        raise TypeError(
            f"KVM_{request.name} takes {request.size_bytes} bytes, "
            f"{ctype.item.cname} has {size_bytes}"
        )
    _checked[request] = ctype


def _fields(value: CData, ctype: Any) -> str:
    """Render a structure; arms of a union that hold nothing but room are left out."""
    if ctype.kind == "primitive":
        return hex(value)
    return ", ".join(
        f"{name}={_rendered(getattr(value, name), field.type)}"
        for name, field in _named_fields(ctype)
        if not name.startswith(("pad", "reserved"))
    )


def _named_fields(ctype: Any) -> list[tuple[str, Any]]:
    """Return the fields that can be asked for by name: those of unnamed arms included."""
    fields: list[tuple[str, Any]] = []
    for name, field in ctype.fields:
        fields.extend(_named_fields(field.type) if not name else [(name, field)])
    return fields


def _rendered(value: CData, ctype: Any) -> str:
    match ctype.kind:
        case "primitive":
            return hex(value)
        case "pointer":
            return hex(address_of(value))
        case "struct" | "union":
            return "{" + _fields(value, ctype) + "}"
        case "array" if ctype.length is None:
            return "[...]"
        case _:
            shown = bytes(_buffer(value))[:_MAX_RENDERED_BYTES].hex()
            return f"0x{shown}"


def map_memory(
    address: int,
    size_bytes: int,
    protection: Protection,
    flags: MapFlag,
    fd: int = -1,
    offset_bytes: int = 0,
) -> int:
    """Call mmap(2) and return the address of the mapping. Raises `OSError`."""
    result = _lib.abi_mmap(address, size_bytes, protection, flags, fd, offset_bytes)
    return _checked_result("mmap", result)


def unmap_memory(address: int, size_bytes: int) -> None:
    """Call munmap(2). Raises `OSError`."""
    _checked_result("munmap", _lib.abi_munmap(address, size_bytes))


def protect_memory(address: int, size_bytes: int, protection: Protection) -> None:
    """Call mprotect(2). Raises `OSError`."""
    _checked_result("mprotect", _lib.abi_mprotect(address, size_bytes, protection))


def advise_memory(address: int, size_bytes: int, advice: Advice) -> None:
    """Call madvise(2). Raises `OSError`."""
    _checked_result("madvise", _lib.abi_madvise(address, size_bytes, advice))


def move_pages(address: int, pages: int, to: int) -> None:
    """Call mremap(2) for each page: what they hold is at `to` then. Raises `OSError`.

    Where they were, private memory of zeros is left.
    """
    _checked_result("mremap", _lib.abi_move_pages(address, pages, to))


def fallocate(
    fd: int, offset: int, size_bytes: int, *, punch: bool = True, keep_size: bool = True
) -> None:
    """Call fallocate(2) with FALLOC_FL_PUNCH_HOLE and FALLOC_FL_KEEP_SIZE. Raises `OSError`.

    Offset and size are taken as the 64 bits that the kernel gets.
    """
    _checked_result("fallocate", _lib.abi_fallocate(fd, punch, keep_size, offset, size_bytes))


def map_kvm_file(what: str, fd: int, size_bytes: int, offset_bytes: int = 0) -> int:
    """Map memory that a file of KVM shares with userspace, and return its address.

    `what` names it in the `KvmError` that a refusal raises: here the answer is KVM's own.
    """
    protection, flags = Protection.READ | Protection.WRITE, MapFlag.SHARED
    result = int(_lib.abi_mmap(0, size_bytes, protection, flags, fd, offset_bytes))
    if result < 0:
        raise KvmError(-result, f"mmap of {what}", None, f"{size_bytes:#x} at {offset_bytes:#x}")
    return result


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent`, which has forked it, is gone.

    More exactly: when the thread that forked it is. Raises `OSError`.
    """
    _checked_result("prctl(PR_SET_PDEATHSIG)", _lib.abi_die_with_parent(parent))


def owned_memory(address: int, size_bytes: int) -> memoryview:
    """Return a view of a mapping that is unmapped when no view or slice of it is left."""
    owner = _ffi.gc(_ffi.cast("char *", address), lambda _: unmap_memory(address, size_bytes))
    return memoryview(_buffer(owner, size_bytes))


def differences(address: int, data: bytes | memoryview, block_bytes: int) -> list[tuple[int, int]]:
    """Return where memory differs from `data`: (offset, length) in bytes, ascending.

    A stretch ends where a block ends. Of more than `MAX_DIFFERENCES` only the first are returned.
    """
    found = _new(_FOUND)
    count = _lib.abi_differences(
        address, _ffi.from_buffer(data), len(data), block_bytes, found, MAX_DIFFERENCES
    )
    return [(found[2 * index], found[2 * index + 1]) for index in range(count)]


class Watched:
    """Stretches of memory, each with a copy of what it was, that are compared in one call.

    A stretch is its address and the copy, whole blocks of `block_bytes`. The memory is the caller's
    to keep mapped.
    """

    def __init__(self, stretches: Sequence[tuple[int, memoryview]], block_bytes: int) -> None:
        copies = [_ffi.from_buffer(copy) for _, copy in stretches]
        words: list[int] = []
        for (address, _), copy in zip(stretches, copies, strict=True):
            words += address, address_of(copy), len(copy)
        self._copies = copies  # Kept where they are.
        self._words = _new("uint64_t[]", words)
        self._block_bytes = block_bytes
        self._place = _new("uint64_t[2]")
        self._found = _new(_NEWS_FOUND)
        self._data = _new("char[]", _NEWS_BLOCKS * block_bytes)

    def news(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield (number of the stretch, offset, bytes) of what differs, and take note of it.

        It ascends; what reaches from one block into the next is told as two.
        """
        self._place[0] = self._place[1] = 0
        while self._place[0] < len(self._copies):
            count = self._more()
            at = 0
            for number, offset, length in _NEWS.iter_unpack(
                _buffer(self._found, count * _NEWS.size)
            ):
                yield number, offset, _buffer(self._data + at, length)[:]
                at += length

    def _more(self) -> int:
        count: int = _lib.abi_news(
            *(self._words, len(self._copies), self._place, self._block_bytes),
            *(self._found, MAX_DIFFERENCES, self._data, len(self._data)),
        )
        return count


class Pager:
    """userfaultfd on private anonymous memory, answered by a thread.

    With ``guards``, who writes to a page is held up first; else pages are dropped, and what they
    held is fetched when somebody meets them. The memory is the caller's to keep mapped.
    """

    def __init__(self, address: int, size_bytes: int, *, guards: bool) -> None:
        """Begin. Raises `OSError`."""
        self._pages = size_bytes // PAGE_SIZE_BYTES
        started = _new("void **")
        result = _lib.abi_pager_start(address, self._pages, guards, started)
        self._started = started[0]
        if result and self._started != _ffi.NULL:
            self.stop()
        _checked_result("userfaultfd", result)

    def stop(self) -> list[int]:
        """End, all pages being fetched; return those that changed with nobody being held up.

        Raises `OSError`.
        """
        bad = _new("unsigned char[]", self._pages)
        started, self._started = self._started, _ffi.NULL
        _checked_result("userfaultfd", _lib.abi_pager_stop(started, bad))
        return [page for page in range(self._pages) if bad[page]]


def can_page() -> bool:
    """Return whether userfaultfd can be had for what the kernel itself touches, too."""
    return bool(_lib.abi_can_page() == 0)


def shared_mappings(fd: int) -> list[tuple[int, int, str]]:
    """Return (start, end, name) of a process's shared mappings, ascending.

    `fd` is its `/proc/PID/maps`. Raises `OSError`: ENOTTY before Linux 6.11 (PROCMAP_QUERY).
    """
    found: list[tuple[int, int, str]] = []
    place, name = _new("uint64_t[2]"), _new("char[]", _PATH_MAX)
    while True:
        result = _lib.abi_next_shared_mapping(fd, place[1], place, name, _PATH_MAX)
        if result == -errno.ENOENT:
            return found
        _checked_result("PROCMAP_QUERY", result)
        found.append((place[0], place[1], os.fsdecode(_ffi.string(name))))


def _checked_result(call: str, result: int) -> int:
    if result < 0:
        raise OSError(-result, f"{call}: {os.strerror(-result)}")
    return int(result)
