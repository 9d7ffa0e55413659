"""The files of `strace -ff`, one a thread, are read as one trace, in the order of their times."""

from pathlib import Path

import pytest

from tests.traced import EEXIST
from vmm.replay.build import Replay
from vmm.replay.judging import judged
from vmm.replay.merge import Merged, files_of
from vmm.replay.reader import read_trace
from vmm.replay.trace import Region, TraceError
from vmm.verdict.judge import Status

HVA = 0x7F0000000000


def region(slot: int, gpa: int = 0) -> str:
    return (
        f"ioctl(8, KVM_SET_USER_MEMORY_REGION, {{slot={slot}, flags=0, guest_phys_addr={gpa:#x}, "
        f"memory_size=4096, userspace_addr={HVA:#x}}}) = 0"
    )


def written(folder: Path, **files: str) -> Path:
    """Write x.PID for each; a keyword is a letter and the pid."""
    for name, text in files.items():
        (folder / f"x.{name[1:]}").write_text(text)
    return folder / "x"


def threads(folder: Path) -> Path:
    """Three threads: one makes the VM and another slots; the last one's lines lie between."""
    return written(
        folder,
        p100=(
            "1700000000.000001 ioctl(3, KVM_CREATE_VM, 0) = 8\n"
            "1700000000.000002 clone(flags=CLONE_VM|CLONE_FILES) = 101\n"
            f"1700000000.000005 {region(2, 0x2000)}\n"
        ),
        p101=f"1700000000.000003 {region(0)}\n1700000000.000006 {region(3, 0x3000)}\n",
        p99=f"1700000000.000004 {region(1, 0x1000)}\n",
    )


def slots(*paths: Path) -> list[int]:
    (vm,) = read_trace(*paths).vms
    return [call.slot for call in vm.calls if isinstance(call, Region)]


def test_threads_are_one_trace_in_the_order_of_their_times(tmp_path: Path) -> None:
    name = threads(tmp_path)
    assert slots(name) == [0, 1, 2, 3]
    assert slots(tmp_path) == [0, 1, 2, 3]
    assert slots(*sorted(tmp_path.glob("x.*"))) == [0, 1, 2, 3]
    trace = read_trace(name)
    assert trace.name == str(name)
    assert trace.lines == 6
    (call,) = [c for c in trace.vms[0].calls if isinstance(c, Region) and c.slot == 2]
    assert call.line.number == 5
    assert call.line.text.startswith("100 1700000000.000005 ")
    assert "strace-log-merge" in trace.notes[-1]


def test_times_of_the_day_go_on_after_midnight(tmp_path: Path) -> None:
    name = written(
        tmp_path,
        p1="23:59:59.999998 one() = 0\n00:00:00.000002 three() = 0\n",
        p2="23:59:59.999999 two() = 0\n00:00:00.000003 four() = 0\n",
    )
    texts = [text.split()[2] for _, text in Merged(files_of([name])[1])]
    assert texts == ["one()", "two()", "three()", "four()"]


def test_a_line_without_a_time_goes_with_the_one_before(tmp_path: Path) -> None:
    name = written(tmp_path, p1="9.5 x\n", p2="y\n")
    with pytest.raises(TraceError, match=r"x\.1:1: no exact time, .* `strace -ff -ttt"):
        list(Merged(files_of([name])[1]))
    name = written(tmp_path, p1="1700000000.2 a() = 0\n > libc.so\n", p2="1700000000.3 b() = 0\n")
    assert [text for _, text in Merged(files_of([name])[1])] == [
        "1 1700000000.2 a() = 0",
        "1  > libc.so",
        "2 1700000000.3 b() = 0",
    ]


@pytest.mark.parametrize("time", ["", "18:48:02 ", "     0.000123 "])
def test_without_exact_times_the_order_is_not_guessed(tmp_path: Path, time: str) -> None:
    name = written(tmp_path, p1=f"{time}{region(0)}\n", p2=f"{time}{region(1)}\n")
    with pytest.raises(TraceError, match="the order of what threads did is not known"):
        read_trace(name)


def test_what_is_no_trace_of_threads_is_refused_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="a folder, and not one of what one `strace -ff"):
        read_trace(tmp_path)
    one, other = tmp_path / "x.1", tmp_path / "y.2"
    for file in (one, other):
        file.write_text("")
    with pytest.raises(TraceError, match="a folder, and not one of what one `strace -ff"):
        read_trace(tmp_path)
    with pytest.raises(TraceError, match="one trace at a time"):
        read_trace(one, other)
    with pytest.raises(TraceError, match="No such file"):
        read_trace(tmp_path / "none")


def at_once(folder: Path, took: str = "", later: str = "4") -> Path:
    """A call is overtaken by another thread's, which began while it was under way."""
    return written(
        folder,
        p100=(
            "1700000000.000001 ioctl(3, KVM_CREATE_VM, 0) = 8\n"
            "1700000000.000002 clone(flags=CLONE_VM|CLONE_FILES) = 101\n"
            f"1700000000.000003 {region(0)[:-1]}{EEXIST}{took}\n"
            f"1700000000.00000{later} getpid() = 100\n"
            "1700000000.000009 getpid() = 100\n"
        ),
        p101=f"1700000000.000005 {region(1)}\n1700000000.000008 getpid() = 100\n",
    )


@pytest.mark.parametrize(
    ("took", "later", "status"),
    [
        ("", "6", Status.PASSED),  # The first one was perhaps under way until then.
        ("", "4", Status.DIFFERS),
        (" <0.000001>", "6", Status.DIFFERS),  # strace -T knows when it ended.
        (" <0.000003>", "6", Status.PASSED),
    ],
)
def test_calls_of_threads_may_overtake_each_other(
    tmp_path: Path, took: str, later: str, status: Status
) -> None:
    trace = read_trace(at_once(tmp_path, took, later))
    found = judged(Replay(trace, trace.vms[0]))
    assert found.verdict.status is status
    assert [call.line.number for call in trace.vms[0].calls] == [3, 4 + (later == "4")]


def test_the_files_of_threads_one_after_the_other_are_not_in_order(tmp_path: Path) -> None:
    file = tmp_path / "all"
    ended = "+++ exited with 0 +++"
    lines = ["ioctl(3, KVM_CREATE_VM, 0) = 8", region(0), ended, region(1, 0x1000), ended]
    file.write_text("\n".join(lines))
    trace = read_trace(file)
    found = judged(Replay(trace, trace.vms[0]))
    assert found.verdict.status is Status.INCONCLUSIVE
    assert "the order of calls is not known" in found.verdict.reason


def test_runs_that_strace_has_appended_to_a_file_are_in_order(tmp_path: Path) -> None:
    file = tmp_path / "all"
    run = ["ioctl(3, KVM_CREATE_VM, 0) = 8", region(0), "+++ exited with 0 +++"]
    file.write_text("\n".join([*run, *run]))
    trace = read_trace(file)
    for vm in trace.vms:
        assert judged(Replay(trace, vm)).verdict.status is Status.PASSED
