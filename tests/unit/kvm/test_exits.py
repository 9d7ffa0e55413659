import pytest

from kvm_abi import raw
from kvm_abi.raw import CData
from kvm_abi.uapi import ExitReason, InternalError
from vmm.kvm import exits
from vmm.kvm.exits import VcpuExit, decode as decoded

PAGE = 4096


def decode(run: CData) -> VcpuExit:
    """Return what the pages at a `kvm_run` say."""
    return decoded(run, raw.shared_memory(raw.address_of(run), 2 * PAGE))


@pytest.fixture
def pages() -> CData:
    """Room for a `kvm_run` and a page of port data after it, as in a vCPU's mapping."""
    return raw.new("uint8_t[]", 2 * PAGE)


@pytest.fixture
def run(pages: CData) -> CData:
    """A `struct kvm_run *` at the start of `pages`."""
    return raw.cast("struct kvm_run *", raw.address_of(pages))


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (ExitReason.HLT, exits.Hlt()),
        (ExitReason.SHUTDOWN, exits.Shutdown()),
        (ExitReason.INTR, exits.Intr()),
        (ExitReason.DIRTY_RING_FULL, exits.DirtyRingFull()),
        (ExitReason.X86_BUS_LOCK, exits.Unsupported(33)),
        (4000, exits.Unsupported(4000)),
    ],
)
def test_plain_reasons(run: CData, reason: int, expected: VcpuExit) -> None:
    run.exit_reason = reason
    assert decode(run) == expected


def test_every_reason_has_a_name_of_its_own(run: CData) -> None:
    names = []
    for reason in ExitReason:
        run.exit_reason = reason
        names.append(decode(run).name)
    assert names == [reason.name.lower().replace("_", "-") for reason in ExitReason]
    assert exits.Unsupported(4000).name == "exit-4000"


def test_mmio(run: CData) -> None:
    run.exit_reason = ExitReason.MMIO
    run.mmio = (0xFEE00000, b"\1\2\3\4\5\6\7\x08", 4, 1)
    assert decode(run) == exits.Mmio(0xFEE00000, b"\1\2\3\4", True)
    run.mmio.is_write = 0
    assert decode(run) == exits.Mmio(0xFEE00000, bytes(4), False)
    run.mmio.len = 1000
    assert decode(run) == exits.Mmio(0xFEE00000, bytes(8), False)


def test_an_access_of_neither_direction_is_no_exit(run: CData) -> None:
    run.exit_reason = ExitReason.MMIO
    run.mmio = (0x1000, b"", 4, 2)
    with pytest.raises(raw.WrongAnswerError, match=r"KVM_RUN.*an exit with mmio.is_write=2"):
        decode(run)
    run.exit_reason = ExitReason.IO
    run.io = (2, 1, 0x80, 1, PAGE)
    with pytest.raises(raw.WrongAnswerError, match=r"an exit of a port with io.direction=2"):
        decode(run)


def test_io(run: CData) -> None:
    raw.memory_of(run, 2 * PAGE)[PAGE : PAGE + 4] = b"abcd"
    run.exit_reason = ExitReason.IO
    run.io = (1, 2, 0xE0, 2, PAGE)
    assert decode(run) == exits.Io(0xE0, b"abcd", True, 2, 2)


def test_values_are_copies(run: CData) -> None:
    run.exit_reason = ExitReason.MMIO
    run.mmio = (0x1000, b"abcdefgh", 8, 1)
    value = decode(run)
    run.mmio = (0x2000, b"ABCDEFGH", 8, 0)
    assert value == exits.Mmio(0x1000, b"abcdefgh", True)


def test_internal_error_with_its_instruction(run: CData) -> None:
    run.exit_reason = ExitReason.INTERNAL_ERROR
    code = bytes(range(15))
    run.emulation_failure = (InternalError.EMULATION, 3, 1, 4, code)
    decoded = decode(run)
    assert isinstance(decoded, exits.InternalError)
    assert (decoded.suberror, len(decoded.data), decoded.instruction) == (1, 3, code[:4])
    run.emulation_failure.flags = 0
    assert decode(run) == exits.InternalError(1, (0, *decoded.data[1:]), b"")


def test_fail_entry_and_memory_fault(run: CData) -> None:
    run.exit_reason = ExitReason.FAIL_ENTRY
    run.fail_entry = (0x80000021, 3)
    assert decode(run) == exits.FailEntry(0x80000021, 3)
    run.exit_reason = ExitReason.MEMORY_FAULT
    run.memory_fault = (8, 0x10000, 0x1000)
    assert decode(run) == exits.MemoryFault(0x10000, 0x1000, 8)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (exits.Mmio(20480, b"a", True), "Mmio(gpa=0x5000, data=b'a', is_write=True)"),
        (
            exits.Io(0x3F8, b"ab", False, 1, 2),
            "Io(port=0x3f8, data=b'ab', is_write=False, size_bytes=1, count=2)",
        ),
        (exits.FailEntry(0x80000021, 3), "FailEntry(hardware_reason=0x80000021, cpu=3)"),
        (exits.MemoryFault(4096, 4096, 8), "MemoryFault(gpa=0x1000, size_bytes=0x1000, flags=0x8)"),
    ],
)
def test_addresses_are_shown_in_hexadecimal(value: VcpuExit, text: str) -> None:
    assert repr(value) == text


def test_hypercall_and_system_event(run: CData) -> None:
    run.exit_reason = ExitReason.HYPERCALL
    run.hypercall = (12, [1, 2, 3, 4, 5, 6])
    assert decode(run) == exits.Hypercall(12, (1, 2, 3, 4, 5, 6))
    run.exit_reason = ExitReason.SYSTEM_EVENT
    run.system_event = {"type": 2, "ndata": 1, "data": [9]}
    assert decode(run) == exits.SystemEvent(2, (9,))
