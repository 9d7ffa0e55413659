"""What kinds of files are read, and what is said of those that are not."""

import bz2
import gzip
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.traced import KVM, region
from vmm.replay.reader import read_trace
from vmm.replay.trace import TraceError

TEXT = "\n".join([KVM, *(region(slot, gpa=0x10000 * slot) for slot in range(200))]) + "\n"


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_what_is_packed_is_unpacked(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(pack(TEXT.encode()))
    assert len(read_trace(path).vms[0].calls) == 200


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_of_a_packed_file_that_is_cut_off_the_beginning_is_read(
    pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    noise = random.Random(1).randbytes(200_000).hex().encode()
    path = tmp_path / "trace"
    path.write_bytes(pack(TEXT.encode() + noise)[:100_000])
    trace = read_trace(path)
    assert len(trace.vms[0].calls) == 200
    (note,) = trace.notes
    assert "cut off after line 202" in note


def test_a_packed_file_that_is_damaged_is_refused(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(TEXT.encode()))
    packed[len(packed) // 2] ^= 0xFF
    path = tmp_path / "trace"
    path.write_bytes(packed)
    with pytest.raises(TraceError, match="damaged"):
        read_trace(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"  0.1 ( 0.2 ms): m/63 ioctl(fd: 3, cmd: KVM_CREATE_VM)    = 4\n", "perf trace"),
        (b"# tracer: nop\n", "trace-cmd"),
        (b" qemu-123   [001] d..1.   123.456789: kvm_entry: vcpu 0\n", "trace-cmd"),
        (b"qemu 12/13 [001] 5.123456: kvm:kvm_exit: reason\n", "perf script"),
        (b"Attaching 1 probe...\n", "bpftrace"),
        (b"\x17\x08\x44tracing6\0", "trace.dat"),
        (b"\xff" * 8 + b"\xa4\x29\xb4\x0a", "simpletrace.py"),
        (b"\x28\xb5\x2f\xfd\x04\x58", "zstd"),
        (b"PK\x03\x04\x14", "unpack it"),
        ("1 ioctl".encode("utf-16"), "UTF-16"),
        (b'{\n  "format": 1,\n', "vmm run"),
        (b'{"type":"history","scenario":{}}\n', "vmm judge"),
    ],
)
def test_what_is_no_trace_is_named_with_what_to_do(
    content: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "trace"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=said):
        read_trace(path)
