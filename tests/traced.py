"""Traces for tests, made from lines."""

from collections.abc import Iterable
from pathlib import Path

from msgspec.structs import asdict

from vmm.replay.build import Replay
from vmm.replay.reader import read_lines
from vmm.replay.spool import Store
from vmm.replay.trace import Call, Calls, Trace

TRACES = Path(__file__).parent / "traces"

KVM = "7 ioctl(3, KVM_CREATE_VM, 0) = 8"


def region(
    slot: int = 0,
    gpa: int = 0x10000,
    size: int = 0x2000,
    hva: int = 0x7F0000000000,
    flags: str = "0",
    result: str = "0",
    head: str = "7 ",
    fd: str = "8",
    name: str = "KVM_SET_USER_MEMORY_REGION",
) -> str:
    """Return strace's line for one call."""
    return (
        f"{head}ioctl({fd}, {name}, {{slot={slot}, flags={flags}, guest_phys_addr={gpa:#x}, "
        f"memory_size={size}, userspace_addr={hva:#x}}}) = {result}"
    )


EINVAL = "-1 EINVAL (Invalid argument)"
EEXIST = "-1 EEXIST (File exists)"
EFAULT = "-1 EFAULT (Bad address)"
EIO = "-1 EIO (Input/output error)"
ENOENT = "-1 ENOENT (No such file or directory)"
ENOTTY = "-1 ENOTTY (Inappropriate ioctl for device)"


def trace_of(*lines: str) -> Trace:
    """Return the trace with these lines."""
    return read_lines(iter(enumerate(lines, 1)), "trace")


def replay_in(*lines: str) -> Replay:
    """Return the only VM of a trace as a scenario."""
    trace = trace_of(*lines)
    (vm,) = trace.vms
    return Replay(trace, vm)


def calls_of(every: Iterable[Call]) -> Calls:
    """Return calls as a VM has them."""
    calls = Calls(Store())
    for each in every:
        calls.append(each)
    return calls


def content_of(trace: Trace) -> dict[str, object]:
    """Return everything that a trace says, to be compared."""
    vms = [{**asdict(vm), "calls": [*vm.calls]} for vm in trace.vms]
    return {**asdict(trace), "vms": vms, "store": None}
