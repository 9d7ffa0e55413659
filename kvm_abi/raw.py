"""System calls on KVM's files, typed; `mman` has those on memory, `notices` those of seccomp.

Only these three import the compiled module: `Any` is tolerated here and nowhere else.
Addresses are `int`; 0 is an address like any other.
"""

import errno
import os
from collections.abc import Iterable
from struct import Struct
from typing import Any, Protocol

from kvm_abi import _frequent
from kvm_abi._kvm import ffi as _ffi, lib as _lib
from kvm_abi.mman import checked_result
from kvm_abi.uapi import Cap, Ioctl, MapFlag, Protection

# A pointer, owned by cffi or not; its attributes are the fields of the structure.
CData = Any


class Buffer(Protocol):
    """A buffer, such as cffi's, for `struct.unpack_from`, that slices can be read from and set."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

    def __getitem__(self, part: slice, /) -> bytes: ...

    def __setitem__(self, part: slice, data: bytes, /) -> None: ...


PassedMmio = tuple[int, int, bytes, bool]
"""An MMIO exit that `MmioLoop` has passed: (rip, gpa, data, is_write)."""

MAX_PASSED = 64
"""The most MMIO exits that one call of `MmioLoop.run` passes."""

_MAX_RENDERED_BYTES = 64
_PASSED = Struct("<QQII8s")  # rip, gpa, length, whether it is a write, data

_new = _ffi.new
_PASSED_ROOM = _ffi.typeof(f"uint64_t[{4 * MAX_PASSED}]")
_COUNT = _ffi.typeof("uint32_t *")
_REGION = _ffi.typeof("struct kvm_userspace_memory_region *")
_REGIONS = _ffi.typeof("struct kvm_userspace_memory_region[]")
_typeof = _ffi.typeof
_sizeof = _ffi.sizeof
_buffer = _ffi.buffer
_ioctl_struct = _lib.abi_ioctl_struct
_ioctl_value = _lib.abi_ioctl_value
_run_past_mmio = _lib.abi_run_past_mmio
_harvest = _lib.abi_harvest
_AT_END = int(_lib.ABI_AT_END)
_WRITTEN_TO = int(_lib.ABI_WRITTEN_TO)

issue_region = _frequent.abi_set_user_memory_region
"""Issue KVM_SET_USER_MEMORY_REGION: fd, slot, flags, guest_phys_addr, memory_size, userspace_addr.

It returns 0, or what `region_error` takes. As the most frequent call it has no Python wrapper.
"""

issue_regions = _frequent.abi_set_user_memory_regions
"""Issue it for each structure in ``bytes``, as `packed_regions` makes them: fd, regions.

It stops at the first that is not done; returns how many were done, and the result of the last.
"""

issue_run = _frequent.abi_run
"""Issue KVM_RUN: fd, and the address of the vCPU's mapping of two pages or more.

It returns 0 for an exit, or a number from `EXIT_CODES` on that stands for all of that exit; or what
`run_error` takes.
"""

EXIT_CODES = 1 << 60

CLOSED = -errno.EBADF
"""What `issue_region` and `issue_run` return for a VM or vCPU that is closed: its fd is -1."""

# Enum lookups are slow, and every ioctl or refusal needs these.
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
"""The requests that return a number; all others return 0, or fail."""

_INTERRUPTIBLE = frozenset((Ioctl.CREATE_VM, Ioctl.PRE_FAULT_MEMORY, Ioctl.RESET_DIRTY_RINGS))
"""The requests besides KVM_RUN that a signal can interrupt.

KVM_CREATE_VM registers an MMU notifier, which takes all locks of the mm (mm_take_all_locks); the
others look for signals in their loops. All other requests wait so that only a fatal signal ends
them, which no caller lives to see.
"""

_WITHOUT_ARGUMENT = frozenset(
    {
        Ioctl.GET_API_VERSION,
        Ioctl.GET_VCPU_MMAP_SIZE,
        Ioctl.CREATE_IRQCHIP,
        Ioctl.RESET_DIRTY_RINGS,
        Ioctl.GET_STATS_FD,
        Ioctl.RUN,
        Ioctl.KVMCLOCK_CTRL,
        Ioctl.SMI,
    }
)
"""The requests whose argument says nothing: it has to be 0, or is not looked at."""

_FILTERED = frozenset((errno.EPERM, errno.EACCES, errno.ENOSYS))
"""What a filter of system calls answers in the kernel's place."""

_NO_FILE = -1

MOST_INTERRUPTIONS = 1000
"""If there are so many EINTRs in a row, the kernel makes them up."""

_SIZES_BYTES = {request: request.size_bytes for request in Ioctl}

_CAPABILITIES: dict[object, str] = {int(cap): cap.name for cap in Cap}

# The pointer type last seen with each request, whose size was right.
_checked: dict[Ioctl, Any] = {}


class KvmError(OSError):
    """A call that KVM refused: `errno`, `call`, and the arguments in its text.

    `call` is the name of the ioctl, or another call on a file of KVM. The text is made only on
    demand, since refusals are ordinary outcomes of a test run.

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
        self,
        number: int,
        call: Ioctl | str,
        ctype: Any,
        argument: bytes | int | str | tuple[int, ...],
    ) -> None:
        super().__init__(number, "")
        self.request = call if isinstance(call, Ioctl) else None
        self._call = call
        self._ctype = ctype
        self._argument = argument

    @property
    def call(self) -> str:
        """The call: `KVM_` and the name of the request, or `mmap of ...`."""
        return f"KVM_{self._call.name}" if isinstance(self._call, Ioctl) else self._call

    @property
    def arguments(self) -> str:
        """The arguments as `field=value, ...`, or one number, or the name of a capability."""
        if isinstance(self._argument, str):
            return self._argument
        if self.request is Ioctl.CHECK_EXTENSION and self._argument in _CAPABILITIES:
            return f"KVM_CAP_{_CAPABILITIES[self._argument]}"
        if isinstance(self._argument, int):
            says_nothing = not self._argument and self.request in _WITHOUT_ARGUMENT
            return "" if says_nothing else _number(self._argument)
        if isinstance(self._argument, tuple):
            copy = _new(self._ctype, self._argument)
        else:
            copy = _new(f"{self._ctype.item.cname} *")
            _buffer(copy)[:] = self._argument
        return _fields(copy[0], self._ctype.item)

    def __str__(self) -> str:
        number = self.errno or 0
        name = errno.errorcode.get(number, str(number))
        return f"{self.call}({self.arguments}): {name} {os.strerror(number)}"


class RegionsError(KvmError):
    """A change of several that KVM refused: those before it are made, it and the rest are not.

    `errno` and `arguments` are those of the refused one. `done` is how many were made before it,
    and so its index.

        >>> from vmm import Kvm, Region, RegionsError
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     try:
        ...         vm.set_user_memory_regions([Region(slot=0)])  # There is no slot to delete.
        ...     except RegionsError as error:
        ...         print(error.done, str(error).rpartition(": ")[2])
        0 EINVAL Invalid argument, as number 1 of 1
    """

    def __init__(self, number: int, region: tuple[int, ...], done: int, count: int) -> None:
        super().__init__(number, Ioctl.SET_USER_MEMORY_REGION, _REGION, region)
        self.done = done
        self._count = count

    def __str__(self) -> str:
        return f"{super().__str__()}, as number {self.done + 1} of {self._count}"


def _number(value: int) -> str:
    return hex(value) if value else "0"


class WrongAnswerError(RuntimeError):
    """A call that KVM did not refuse, but answered as no kernel may."""

    def __init__(self, call: str, answer: str, arguments: str = "") -> None:
        super().__init__(f"{call}({arguments}) answers {answer}")
        self.call = call
        self.arguments = arguments
        self.answer = answer


def refusal(error: KvmError, what: str, is_changed: bool) -> Exception:
    """Return what to raise for a refused call: a wrong answer if it has changed `what` even so.

    With EFAULT the kernel may have written a part.
    """
    if not is_changed or error.errno == errno.EFAULT:
        return error
    name = errno.errorcode.get(error.errno or 0, str(error.errno))
    return WrongAnswerError(error.call, f"{name}, and {what} was written to", error.arguments)


def new(declaration: str, *init: Any) -> CData:
    """Allocate a structure, zeroed or from a tuple, list or dictionary, and return its pointer.

    `declaration` is a C pointer or array type: `"struct kvm_regs *"`, `"uint8_t[64]"`. Raises
    `TypeError` or `OverflowError` for a value that does not fit, with the name of the field.
    """
    try:
        return _new(declaration, *init)
    except (TypeError, OverflowError) as error:
        raise misfit(error, _ffi.typeof(declaration), *init) from None


def misfit(error: Exception, declaration: Any, *init: Any) -> Exception:
    """Return what to raise where a structure cannot be made from a tuple: ``error`` with a field.

    It is ``error`` itself if no single field is at fault.
    """
    fields = getattr(declaration.item, "fields", None)
    values = init[0] if init and isinstance(init[0], tuple) else ()
    for (name, field), value in zip(fields or (), values, strict=False):
        try:
            _new(_ffi.getctype(field.type, "[1]"), [value])
        except (TypeError, OverflowError) as fault:
            return type(fault)(f"{name}={value!r}: {fault}")
    return error


def size_of(ctype: str | Any) -> int:
    """Return the size in bytes of a type, by its C name or description."""
    return int(_sizeof(ctype))


def cast(declaration: str, address: int) -> CData:
    """Return a pointer to `address`. The caller must keep its target alive."""
    return _ffi.cast(declaration, address)


def address_of(pointer: CData) -> int:
    """Return the address in a pointer, or of an array."""
    return int(_ffi.cast("uintptr_t", pointer))


def copy_to(pointer: CData, data: bytes) -> None:
    """Copy bytes to the memory at a pointer."""
    _ffi.memmove(pointer, data, len(data))


def room(data: bytearray) -> CData:
    """Return a pointer to bytes for the kernel to change. It keeps them at their address."""
    return _ffi.from_buffer(data)


def memory_of(pointer: CData, size_bytes: int) -> memoryview:
    """Return a writable view of the memory at a pointer. It keeps the pointer alive."""
    return memoryview(_buffer(pointer, size_bytes))


def bytes_of(pointer: CData, size_bytes: int, offset: int = 0) -> bytes:
    """Copy bytes out, from `offset` after a pointer."""
    return bytes(_buffer(pointer, offset + size_bytes)[offset:])


def shared_memory(address: int, size_bytes: int) -> Buffer:
    """Return memory as a buffer that is read in place; a slice of it is a copy, as `bytes`.

    The caller must keep the memory mapped.
    """
    buffer: Buffer = _buffer(_ffi.cast("char *", address), size_bytes)
    return buffer


def ioctl(fd: int, request: Ioctl, arg: CData | int = 0) -> int:
    """Issue `request` and return its result, 0 or positive.

    `arg` is a pointer to the structure that the request takes, or an exact `int` (not an enum). A
    number goes to the kernel as it is, even if the request takes a structure: then it is an
    address for which the caller is responsible.

    Raises `KvmError` with the kernel's errno, `OSError` where a filter of system calls (seccomp)
    answers in place of KVM, and `TypeError` if the size of the structure differs from that in the
    request's number. Calls that a signal can interrupt are issued again, except
    KVM_RUN; the EINTR of all others is an answer. Raises `WrongAnswerError` if a request that
    returns no number returns one, or if the kernel writes to a structure that it only reads.
    """
    if type(arg) is int:  # isinstance() would ask a structure for its class, field by field.
        result = _ioctl_value(fd, request, arg)
    else:
        if type(arg) is str:  # To cffi it is the name of a type.
            raise TypeError(f"KVM_{request.name} takes no text: {arg!r}")
        if _checked.get(request) is not _typeof(arg):
            _check_size(request, arg)
        result = _ioctl_struct(fd, request, arg)
        if result == _WRITTEN_TO:
            raise _wrong_answer(request, result, arg)
    if result == -_EINTR and request in _INTERRUPTIBLE:
        result = _again(fd, request, arg)
    if result > 0 and request not in _ANSWER_NUMBERS:
        raise _wrong_answer(request, result, arg)
    if result >= 0:
        return int(result)
    raise _refused(-result, request, arg)


def new_file(fd: int, request: Ioctl, arg: CData | int = 0) -> int:
    """Issue a request that opens a file, and return the descriptor.

    Raises what `ioctl` does, and `WrongAnswerError` for a number that is not the descriptor of a
    new file: those of VMs and vCPUs are close-on-exec, unlike standard input and output. Raises
    `OSError` if the host does not let it be looked at (fcntl).
    """
    opened = ioctl(fd, request, arg)
    try:
        is_kept = os.get_inheritable(opened) and request is not Ioctl.CREATE_GUEST_MEMFD
    except OSError as error:
        if error.errno != errno.EBADF:
            # The host denies the question, which says nothing about the file.
            raise PermissionError(errno.EPERM, f"fcntl: {error.strerror}") from None
        is_kept = True
    if is_kept:
        call = _error(0, request, arg)
        raise WrongAnswerError(call.call, f"{opened}, which is no new file", call.arguments)
    return opened


def _again(fd: int, request: Ioctl, arg: CData | int) -> int:
    """Issue a request until it is not interrupted, and return the kernel's answer."""
    issue = _ioctl_value if type(arg) is int else _ioctl_struct
    result = -_EINTR
    for _ in range(MOST_INTERRUPTIONS):
        result = issue(fd, request, arg)
        if result != -_EINTR:
            break
    return int(result)


def region_misfit(error: Exception, *region: Any) -> Exception:
    """Return what to raise where `issue_region` raises; ``region`` are its arguments after fd."""
    return misfit(error, _REGION, region)


def packed_regions(regions: Iterable[tuple[int, int, int, int, int]]) -> bytes:
    """Return the structures for `issue_regions`.

    Raises `TypeError` or `OverflowError` for a value that does not fit, with the name of the field.
    """
    wanted = list(regions)
    try:
        return bytes(_buffer(_new(_REGIONS, wanted)))
    except (TypeError, OverflowError) as error:
        for region in wanted:
            fault = misfit(error, _REGION, region)
            if fault is not error:
                raise fault from None
        raise


def region_error(result: int, *region: int) -> Exception:
    """Return the error for a result of `issue_region`; ``region`` are its arguments after fd."""
    number = -result
    if number > 0 and number not in _FILTERED:  # Its text is rarely wanted, and made when it is.
        return KvmError(number, Ioctl.SET_USER_MEMORY_REGION, _REGION, region)
    arg = _new(_REGION, region)
    if result > 0:
        return _wrong_answer(Ioctl.SET_USER_MEMORY_REGION, result, arg)
    return _refused(number, Ioctl.SET_USER_MEMORY_REGION, arg)


def regions_error(result: int, region: tuple[int, ...], done: int, count: int) -> Exception:
    """Return the error for a result of `issue_regions`; ``region`` is that which was not done."""
    error = region_error(result, *region)
    if isinstance(error, KvmError):
        return RegionsError(error.errno or 0, region, done, count)
    error.add_note(f"It was number {done + 1} of {count}.")
    return error


def harvest(entries: CData, count: int, first: int) -> list[tuple[int, int]]:
    """Return (slot, page) of each dirty entry of a ring from `first` on, and mark it for reset.

    `entries` is the `struct kvm_dirty_gfn *` of a ring of `count` entries, a power of two.
    """
    words = _new("uint64_t[]", 2 * count)
    found = _harvest(entries, count, first % count, words)
    numbers = _ffi.unpack(words, 2 * found)
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def run_error(result: int) -> Exception:
    """Return the error for a result of `issue_run` that is neither 0 nor an exit's number."""
    if result > 0:
        return _wrong_answer(Ioctl.RUN, result, 0)
    return _refused(-result, Ioctl.RUN, 0)


class MmioLoop:
    """Issues KVM_RUN for the vCPU of ``fd``, past its MMIO exits."""

    __slots__ = ("_buffer", "_count", "_fd", "_words")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._words, self._count = _new(_PASSED_ROOM), _new(_COUNT)
        self._buffer = _buffer(self._words)

    def run(
        self,
        run: CData,
        answer: int,
        end_port: int,
        passed: list[PassedMmio],
        most: int = MAX_PASSED,
    ) -> bool | None:
        """Issue KVM_RUN repeatedly, until an exit that is not MMIO, or `most` MMIO exits.

        Returns True at `end_port`, False at another exit (or MMIO that neither reads nor writes),
        and None if there may be more MMIO. `run` is the `struct kvm_run *` of the vCPU. MMIO reads
        are answered with bytes of `answer`. Each passed exit is appended to `passed`, even before
        an error; its `rip` is valid if the vCPU shares its registers. The next KVM_RUN completes
        the last exit.

        Raises `KvmError` as `ioctl` does.
        """
        count = self._count
        result = _run_past_mmio(self._fd, run, answer, end_port, self._words, most, count)
        number = count[0]
        if number:
            records = _PASSED.iter_unpack(self._buffer[: number * _PASSED.size])
            passed += [
                (rip, gpa, data[:size], write != 0) for rip, gpa, size, write, data in records
            ]
        if not result:
            return None if number == most else False
        if result == _AT_END:
            return True
        if result > 0:
            raise _wrong_answer(Ioctl.RUN, result, 0)
        raise _refused(-result, Ioctl.RUN, 0)


def _refused(number: int, request: Ioctl, arg: CData | int) -> OSError:
    """Return the error for a refused call: KVM's, or that of a filter, which KVM never saw."""
    if number in _FILTERED and _ioctl_value(_NO_FILE, request, 0) == -number:  # Else it is EBADF.
        what = f"KVM_{request.name} is denied by a filter of system calls"
        return OSError(number, f"{what}: {os.strerror(number)}")
    return _error(number, request, arg)


def _error(number: int, request: Ioctl, arg: CData | int) -> KvmError:
    if type(arg) is int:
        return KvmError(number, request, None, arg)
    return KvmError(number, request, _typeof(arg), bytes(_buffer(arg, _SIZES_BYTES[request])))


def _wrong_answer(request: Ioctl, result: int, arg: CData | int) -> WrongAnswerError:
    call = _error(0, request, arg)
    answer = f"{result}, and not 0"
    if result == _WRITTEN_TO:
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
    """Render a structure, without padding and reserved fields."""
    if ctype.kind == "primitive":
        return hex(value)
    return ", ".join(
        f"{name}={_rendered(getattr(value, name), field.type)}"
        for name, field in _named_fields(ctype)
        if not name.startswith(("pad", "reserved"))
    )


def _named_fields(ctype: Any) -> list[tuple[str, Any]]:
    """Return the named fields, including those of unnamed unions and structures."""
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


def map_kvm_file(
    what: str,
    fd: int,
    size_bytes: int,
    offset_bytes: int = 0,
    flags: MapFlag = MapFlag.SHARED,
) -> int:
    """Map memory that a file of KVM shares with userspace, and return its address.

    A refusal is KVM's own, so it raises `KvmError`, in which `what` names the memory.
    """
    protection = Protection.READ | Protection.WRITE
    result = int(_lib.abi_mmap(0, size_bytes, protection, flags, fd, offset_bytes))
    if result < 0:
        raise KvmError(-result, f"mmap of {what}", None, f"{size_bytes:#x} at {offset_bytes:#x}")
    return result


def close_kvm_file(what: str, fd: int) -> None:
    """Close a file of KVM, which never refuses that. `what` names it in the `KvmError` if it does.

    The descriptor is free then, too.
    """
    try:
        os.close(fd)
    except OSError as error:
        raise KvmError(error.errno or 0, "close", None, what) from None


def die_with_parent(parent: int) -> None:
    """Make the kernel kill this process when `parent`, which has forked it, ends.

    More precisely: when the thread that forked it ends. Raises `OSError`.
    """
    checked_result("prctl(PR_SET_PDEATHSIG)", _lib.abi_die_with_parent(parent))


def name_process(name: str) -> None:
    """Set the name of this thread, and of what it forks, to 15 bytes of a name.

    Raises `OSError`.
    """
    checked_result("prctl(PR_SET_NAME)", _lib.abi_name_process(name.encode()))
