"""Why KVM_RUN returned: one value for each exit reason, copied out of `kvm_run`.

A value stays valid when the vCPU runs again. An unknown reason becomes `Unsupported`, so that
newer kernels work, too.

    >>> from vmm import exits
    >>> match exits.Mmio(gpa=0x2000, data=b"\\xff", is_write=True):
    ...     case exits.Mmio(gpa, data, is_write=True):
    ...         print(f"the guest wrote {data.hex()} at {gpa:#x}")
    the guest wrote ff at 0x2000
"""

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import ClassVar

import msgspec

from kvm_abi import uapi
from kvm_abi.raw import Buffer, CData, WrongAnswerError
from kvm_abi.uapi import EmulationFlag, ExitReason, IoDirection

_MAX_MMIO_BYTES = 8
_MAX_INTERNAL_DATA = 16
_OUT = int(IoDirection.OUT)
_IO_EXIT, _MMIO_EXIT = int(ExitReason.IO), int(ExitReason.MMIO)

# The fields of `struct kvm_run` for the two most frequent exits, unpacked at once.
_IO = Struct("<8xI20xBBHIQ")  # exit_reason, direction, size, port, count, data_offset
_MMIO = Struct("<32xQ8sIB")  # phys_addr, data, len, is_write
_UNPACKED_IO, _UNPACKED_MMIO = _IO.unpack_from, _MMIO.unpack_from


class Mmio(msgspec.Struct, frozen=True, gc=False):
    r"""The guest accessed a gpa without a usable slot. For a read, `data` is zeros.

    >>> from vmm import exits
    >>> exits.Mmio(gpa=0x2000, data=b"\xff", is_write=True)
    Mmio(gpa=0x2000, data=b'\xff', is_write=True)
    """

    name: ClassVar[str] = "mmio"
    gpa: int
    data: bytes
    is_write: bool

    def __repr__(self) -> str:
        return f"Mmio(gpa={self.gpa:#x}, data={self.data!r}, is_write={self.is_write})"


class Io(msgspec.Struct, frozen=True, gc=False):
    """The guest accessed a port, `count` times with `size_bytes` each.

    >>> from vmm import exits
    >>> exits.Io(port=0x3f8, data=b"ok", is_write=True, size_bytes=1, count=2).data.decode()
    'ok'
    """

    name: ClassVar[str] = "io"
    port: int
    data: bytes
    is_write: bool
    size_bytes: int
    count: int

    def __repr__(self) -> str:
        return (
            f"Io(port={self.port:#x}, data={self.data!r}, is_write={self.is_write}, "
            f"size_bytes={self.size_bytes}, count={self.count})"
        )


@dataclass(frozen=True, slots=True)
class Hlt:
    """The guest halted.

    >>> from vmm import exits
    >>> exits.Hlt()
    Hlt()
    """

    name: ClassVar[str] = "hlt"


@dataclass(frozen=True, slots=True)
class Shutdown:
    """The guest had a triple fault.

    >>> from vmm import exits
    >>> exits.Shutdown().name
    'shutdown'
    """

    name: ClassVar[str] = "shutdown"


@dataclass(frozen=True, slots=True)
class Intr:
    """A signal arrived.

    >>> from vmm import exits
    >>> exits.Intr().name
    'intr'
    """

    name: ClassVar[str] = "intr"


@dataclass(frozen=True, slots=True)
class DirtyRingFull:
    """The vCPU's dirty ring reached its soft limit.

    >>> from vmm import exits
    >>> exits.DirtyRingFull().name
    'dirty-ring-full'
    """

    name: ClassVar[str] = "dirty-ring-full"


@dataclass(frozen=True, slots=True)
class FailEntry:
    """The processor refused to enter the guest.

    >>> from vmm import exits
    >>> hex(exits.FailEntry(hardware_reason=0x80000021, cpu=0).hardware_reason)
    '0x80000021'
    """

    name: ClassVar[str] = "fail-entry"
    hardware_reason: int
    cpu: int

    def __repr__(self) -> str:
        return f"FailEntry(hardware_reason={self.hardware_reason:#x}, cpu={self.cpu})"


@dataclass(frozen=True, slots=True)
class InternalError:
    """KVM gave up. `suberror` is an `uapi.InternalError`, if known.

    `instruction` has the bytes that could not be emulated, if KVM reports them.

    >>> from vmm import exits
    >>> exits.InternalError(suberror=1, data=(), instruction=bytes([0x0f, 0x0b])).instruction.hex()
    '0f0b'
    """

    name: ClassVar[str] = "internal-error"
    suberror: int
    data: tuple[int, ...]
    instruction: bytes


@dataclass(frozen=True, slots=True)
class MemoryFault:
    """A fault, as on guest_memfd memory, that userspace must resolve. KVM_RUN fails with EFAULT.

    >>> from vmm import exits
    >>> exits.MemoryFault(gpa=0x1000, size_bytes=0x1000, flags=8)
    MemoryFault(gpa=0x1000, size_bytes=0x1000, flags=0x8)
    """

    name: ClassVar[str] = "memory-fault"
    gpa: int
    size_bytes: int
    flags: int

    def __repr__(self) -> str:
        return (
            f"MemoryFault(gpa={self.gpa:#x}, size_bytes={self.size_bytes:#x}, "
            f"flags={self.flags:#x})"
        )


@dataclass(frozen=True, slots=True)
class Hypercall:
    """The guest made a hypercall that KVM forwards to userspace.

    >>> from vmm import exits
    >>> exits.Hypercall(number=12, arguments=(0x1000, 1, 0, 0, 0, 0)).number
    12
    """

    name: ClassVar[str] = "hypercall"
    number: int
    arguments: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SystemEvent:
    """The guest asked for a shutdown, a reset or the like.

    >>> from vmm import exits
    >>> exits.SystemEvent(type=1, data=()).name
    'system-event'
    """

    name: ClassVar[str] = "system-event"
    type: int
    data: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unsupported:
    """Any other exit reason, by its number.

    >>> from vmm import exits
    >>> exits.Unsupported(10_000).name
    'exit-10000'
    """

    reason: int

    @property
    def name(self) -> str:
        """The reason in the form of the other names, or `exit-<number>`."""
        try:
            return ExitReason(self.reason).name.lower().replace("_", "-")
        except ValueError:
            return f"exit-{self.reason}"


VcpuExit = (
    Mmio
    | Io
    | Hlt
    | Shutdown
    | Intr
    | DirtyRingFull
    | FailEntry
    | InternalError
    | MemoryFault
    | Hypercall
    | SystemEvent
    | Unsupported
)


def decode(run: CData, memory: Buffer) -> VcpuExit:
    """Return the last exit, from a `struct kvm_run *`.

    `memory` is all memory from the structure on; the data of port accesses follows it.

    An unknown reason is `Unsupported`. Raises `WrongAnswerError` for a direction of an access that
    is neither of the two there are.

    >>> from vmm import Kvm
    >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
    ...     vm.create_vcpu(0).last_exit()  # It calls decode(); the vCPU has not run yet.
    Unsupported(reason=0)
    """
    reason, direction, size_bytes, port, count, offset = _UNPACKED_IO(memory)
    if reason == _IO_EXIT:
        if direction > _OUT:
            raise WrongAnswerError("KVM_RUN", f"an exit of a port with io.direction={direction}")
        data = memory[offset : offset + size_bytes * count]
        return Io(port, data, direction == _OUT, size_bytes, count)
    if reason == _MMIO_EXIT:
        gpa, data, size_bytes, is_write = _UNPACKED_MMIO(memory)
        if is_write > 1:
            raise WrongAnswerError("KVM_RUN", f"an exit with mmio.is_write={is_write}")
        if size_bytes > _MAX_MMIO_BYTES:
            size_bytes = _MAX_MMIO_BYTES
        return Mmio(gpa, data[:size_bytes] if is_write else bytes(size_bytes), is_write != 0)
    decoder = _DECODERS.get(reason)
    return decoder(run) if decoder else Unsupported(reason)


def _internal_error(run: CData) -> InternalError:
    internal = run.internal
    data = tuple(internal.data[0 : min(internal.ndata, _MAX_INTERNAL_DATA)])
    failure = run.emulation_failure
    instruction = b""
    if (
        internal.suberror == uapi.InternalError.EMULATION
        and internal.ndata > 0
        and failure.flags & EmulationFlag.INSTRUCTION_BYTES
    ):
        instruction = bytes(failure.insn_bytes)[: failure.insn_size]
    return InternalError(internal.suberror, data, instruction)


def _fail_entry(run: CData) -> FailEntry:
    return FailEntry(run.fail_entry.hardware_entry_failure_reason, run.fail_entry.cpu)


def _memory_fault(run: CData) -> MemoryFault:
    fault = run.memory_fault
    return MemoryFault(fault.gpa, fault.size, fault.flags)


def _hypercall(run: CData) -> Hypercall:
    return Hypercall(run.hypercall.nr, tuple(run.hypercall.args))


def _system_event(run: CData) -> SystemEvent:
    event = run.system_event
    return SystemEvent(event.type, tuple(event.data[0 : min(event.ndata, _MAX_INTERNAL_DATA)]))


_BY_REASON: dict[ExitReason, Callable[[CData], VcpuExit]] = {
    ExitReason.HLT: lambda _: Hlt(),
    ExitReason.SHUTDOWN: lambda _: Shutdown(),
    ExitReason.INTR: lambda _: Intr(),
    ExitReason.DIRTY_RING_FULL: lambda _: DirtyRingFull(),
    ExitReason.FAIL_ENTRY: _fail_entry,
    ExitReason.INTERNAL_ERROR: _internal_error,
    ExitReason.MEMORY_FAULT: _memory_fault,
    ExitReason.HYPERCALL: _hypercall,
    ExitReason.SYSTEM_EVENT: _system_event,
}
_DECODERS = {int(reason): decoder for reason, decoder in _BY_REASON.items()}
