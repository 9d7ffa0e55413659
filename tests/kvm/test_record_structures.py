"""`vmm record` with real calls whose structures strace does not print."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

PROGRAM = """
import fcntl, mmap, os, struct
kvm = os.open("/dev/kvm", os.O_RDWR)
vm = fcntl.ioctl(kvm, 0xAE01, 0)
memory = mmap.mmap(-1, 0x2000)
import ctypes
hva = ctypes.addressof(ctypes.c_char.from_buffer(memory))
bitmap = ctypes.create_string_buffer(8)
def call(request, data):
    try:
        return fcntl.ioctl(vm, request, bytearray(data))
    except OSError as error:
        return error.errno
print(call(0x4068AEA3, struct.pack("<II4Q64x", 168, 0, 1, 0, 0, 0)))
print(call(0x40A0AE49, struct.pack("<II4QI4x112x", 0, 1, 0x10000, 0x2000, hva, 0, 0)))
log = struct.pack("<IIQ", 0, 0, ctypes.addressof(bitmap))
print(call(0x4010AE42, log))
print(call(0x4010AE42, b"\\x01" + log[1:]))
print(call(0xC018AEC0, struct.pack("<IIQQ", 0, 2, 0, ctypes.addressof(bitmap))))
"""

PRIVATE = (
    PROGRAM
    + """
memfd = call(0xC040AED4, struct.pack("<QQ48x", 0x4000, 0))
print("made" if memfd > kvm else "not made")
bind = lambda slot, offset: struct.pack(
    "<II4QI4x112x", slot, 4, slot << 16, 0x2000, hva, offset, memfd
)
print(call(0x40A0AE49, bind(2, 0)), call(0x40A0AE49, bind(3, 0x2000)))
print(call(0x40A0AE49, bind(4, 0x1000)) in (17, 22))
print(call(0x4020AED2, struct.pack("<4Q", 0x90000, 0x1001, 0, 0)))
print(call(0x4068AEA3, struct.pack("<II4Q64x", 213, 0, 1 << 63, 0, 0, 0)))
fcntl.ioctl(vm, 0xAE41, 0)
print(call(0x4068AEA3, struct.pack("<II4Q64x", 223, 0, 65536, 0, 0, 0)))
os.close(memfd)
print(call(0x40A0AE49, bind(5, 0)))
"""
)


def vmm(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [str(ROOT / "scripts" / "vmm"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def recorded(file: Path, program: str) -> "subprocess.CompletedProcess[str]":
    """Record a program into a file, or skip the test where the host denies its structures."""
    result = vmm("record", "-o", file, "--", "python3", "-c", program)
    if "are not read: the host" in result.stderr:
        pytest.skip(result.stderr)
    return result


def assert_found(file: Path, lines: list[str], altered: int) -> None:
    """Judge a trace of which one line is altered: that line differs."""
    file.write_text("\n".join(lines))
    result = vmm("replay", "--judge-only", file)
    assert result.returncode == 1, result.stdout
    assert f"{file}:{altered + 1}: " in result.stdout


def test_what_such_calls_ask_for_is_in_their_lines_and_judged(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    result = recorded(file, PROGRAM)
    if not result.stdout.startswith("0\n0\n0\n2\n0\n"):
        pytest.skip(f"the kernel lacks something: {result.stdout}")
    assert result.returncode == 0, result.stdout
    assert "PASSED       as traced: 5 events" in result.stdout
    assert "PASSED       VM 1, run here" in result.stdout
    text = file.read_text()
    assert "{slot=0, flags=0x1, guest_phys_addr=0x10000, memory_size=8192, userspace_addr=" in text
    assert "KVM_ENABLE_CAP, {cap=KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, flags=0x0, args=[0x1," in text
    lines = text.splitlines()
    (at,) = (at for at, line in enumerate(lines) if "{slot=1, padding1" in line)
    lines[at] = lines[at].replace("-1 ENOENT (No such file or directory)", "0")
    assert_found(file, lines, at)


def test_guest_memfds_and_what_is_refused_to_a_vm_with_a_vcpu_are_judged(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    result = recorded(file, PRIVATE)
    if "\nmade\n0 0\nTrue\n" not in result.stdout:
        pytest.skip(f"the kernel lacks something: {result.stdout}")
    assert result.returncode == 0, result.stdout
    assert "says too little" not in result.stdout
    assert "PASSED       as traced: 17 events" in result.stdout
    assert "PASSED       VM 1, run here" in result.stdout
    lines = file.read_text().splitlines()
    (at,) = (at for at, line in enumerate(lines) if "offset=0x1000" in line)
    lines[at] = lines[at].rpartition(" = ")[0] + " = 0"
    assert_found(file, lines, at)


def test_what_a_command_has_left_running_is_ended_too() -> None:
    left = "sh -c 'sleep 100; true' & exit 0"
    command = [str(ROOT / "scripts" / "vmm"), "record", "--judge-only", "--", "sh", "-c", left]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(3)
    assert process.poll() is None  # It waits as strace does.
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 2  # Nothing of it was on KVM.
