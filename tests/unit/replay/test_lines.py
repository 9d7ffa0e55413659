"""What kinds of files are read, and what is said of those that are not."""

import bz2
import gzip
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from tests.traced import KVM, content_of, region
from vmm.replay.calls import BESIDE
from vmm.replay.lines import Numbered, opened
from vmm.replay.reader import read_lines, read_trace
from vmm.replay.trace import Region, Trace, TraceError, Unread

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
        (b"   123.732 qemu-x8/23337 kvm:kvm_unmap_hva_range(start: 1, end: 2)\n", "perf trace"),
        (b"\n\nAnalyze events for all VMs, all VCPUs:\n", "perf kvm"),
        (b" 0)               |  kvm_vm_ioctl() {\n 0)   0.1 us    |    mutex_lock();\n", "ftrace"),
        (b" 1) ! 120.456 us  |    synchronize_srcu();\n", "ftrace"),
        (b"[pid 7] SYS_ioctl(8, 0x4020ae46, 0x7ffd0, 0)    = 0\n", "ltrace"),
        (b"type=SYSCALL msg=audit(1764366276.1:9): arch=c000003e syscall=16 a0=8\n", "audit"),
        (b"[21:44:36.123456789] (+?.?????????) host syscall_entry_ioctl: { fd = 8 }\n", "LTTng"),
        (b"SYSCALL[123,1](16) sys_ioctl ( 8, 0x4020ae46, 0x7ffd ) --> [async] ...\n", "valgrind"),
        (b"I1128 21:44:36.1 1 strace.go:576] [ 1: 1] runsc E ioctl(0x8, 0x4020ae46)\n", "gVisor"),
        (b'{"version": 2, "width": 80}\n[0.1, "o", "7 ioctl(3, 1)"]\n', "asciinema cat"),
        (b" Summary of events:\n\n vm (12), 30 events, 90.9%\n", "a summary of `perf trace`"),
        (b"Attaching 1 probe...\n", "bpftrace"),
        (b"Attached 1 probe\nioctl 4020ae46\n", "bpftrace"),
        (b"@ioctl[qemu-system-x86, 1084796486]: 12\n", "bpftrace"),
        (b"# DURATION     TID     FUNCTION\n", "uftrace"),
        (b"113 12:00:01.1 0 qemu (12) > ioctl fd=4 request=4020AE46 argument=7FFD\n", "sysdig"),
        (b"% time     seconds  usecs/call     calls    errors syscall\n", "strace -c"),
        (b"\x17\x08\x44tracing6\0", "trace.dat"),
        (b"\xff" * 8 + b"\xa4\x29\xb4\x0a", "simpletrace.py"),
        (b"\x28\xb5\x2f\xfd\x04\x58", "zstd"),
        (b"PK\x03\x04\x14", "unpack it"),
        ("1 ioctl".encode("utf-16"), "UTF-16"),
        (b'{\n  "format": 1,\n  "name": "x",\n', "vmm run"),
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


_PIECES = (
    region(1),
    "7     ioctl(9, KVM_RUN, 0) = 0",
    "[pid  7] 12:01:02.1 ioctl(9<anon_inode:kvm-vcpu:0>, KVM_RUN, 0) = 0 (KVM_EXIT_IO) <0.00003>",
    "ioctl(9, KVM_RUN, 0 <unfinished ...>",
    "<... ioctl resumed>) = 0",
    "ioctl(9, KVM_RUN, 0",
    ") = 0",
    '7 write(4, "munmap(\\1", 8) = 8',
    "7 ppoll([{fd=4, events=POLLIN}], 1, NULL, NULL, 8) = 1 ([{fd=4, revents=POLLIN}])",
    "7 futex(0x55d0, FUTEX_WAIT_PRIVATE, 0, NULL) = -1 EAGAIN (Resource temporarily unavailable)",
    "7 futex(0x55d0, FUTEX_WAIT_PRIVATE, ioctl(4, KVM_RUN) = 0",
    '7 read(4, ""..., 512) = 512\r',
    "7 close(8) = 0",
    "7 +++ exited with 0 +++",
    "",
    '\x1b[32m7 read(4, "", 0) = 0\x1b[0m',
    "ioctl(4, KVM_CREATE_VCPU, 0) = 9",
    "strace: Process 8 attached",
    "7 read(4, strace: Process 9 attached",
    "7 ioctl(4, KVM_CREATE_VCPU, 0) = ",
    "7 ioctl(4, KVM_CREATE_VCPU, 0)\x1b]0; = \x07",
)


def _result(read: Callable[[], Trace]) -> object:
    try:
        return content_of(read())
    except TraceError as error:
        return str(error)


@given(st.lists(st.sampled_from((*_PIECES, *[region(slot) for slot in range(4)])), max_size=40))
def test_what_is_left_out_of_a_file_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str]
) -> None:
    lines = [KVM, *pieces, region(7)]
    path = tmp_path_factory.mktemp("trace") / "trace"
    path.write_bytes(b"".join(line.encode() + b"\n" for line in lines))
    with opened(path) as stream:
        every = list(Numbered(stream))
    assert [number for number, _ in every] == [at for at, line in enumerate(lines, 1) if line]
    assert _result(lambda: read_trace(path)) == _result(lambda: read_lines(every, str(path)))


@pytest.mark.parametrize(("end", "rest"), [(" = ", "0"), ("\x1b]0; = \x07", " = 0")])
def test_a_call_whose_result_was_lost_is_not_joined_beyond_a_usual_line(
    end: str, rest: str, tmp_path: Path
) -> None:
    path = tmp_path / "trace"
    begun = region(1).rpartition(" = ")[0] + end
    path.write_text("\n".join([KVM, begun, _PIECES[11], rest, region(2)]) + "\n")
    lost, found = read_trace(path).vms[0].calls
    assert isinstance(lost, Unread)
    assert isinstance(found, Region)


def test_usual_lines_of_a_long_trace_are_left_out_many_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    usual = [_PIECES[1], _PIECES[2], _PIECES[9], _PIECES[11]]
    path.write_text("\n".join([KVM, *usual * 50_000, region(1)]) + "\n")
    with opened(path) as stream:
        lines = Numbered(stream)
        lines.leave_out(BESIDE)
        kept = list(lines)
    assert len(kept) < 20
    assert kept[-1] == (200_002, region(1))
    (call,) = read_trace(path).vms[0].calls
    assert call.line.number == 200_002
