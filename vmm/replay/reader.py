"""Reads a trace of strace or QEMU: the first line that is recognised decides which."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from vmm.replay.calls import BESIDE
from vmm.replay.lines import Numbered, name_of, opened, shown
from vmm.replay.merge import Merged, files_of
from vmm.replay.others import other_tool
from vmm.replay.qemu import IS_EVENT, read_qemu
from vmm.replay.strace import is_of_strace, read_strace
from vmm.replay.trace import DAMAGED, NoMemslotsError, Region, Trace, TraceError, Unread
from vmm.scenario.endings import HOST_SHORT
from vmm.scenario.kinds import other_than
from vmm.scenario.reading import EMPTY

_TELLING_LINES = 3
"""So many show that this is a file of ours: a result has its `status` in the third."""


def read_trace(*paths: Path) -> Trace:
    """Read a trace. Raises TraceError if it cannot be used.

    Several files are those that `strace -ff -o NAME` writes; a folder of them, or NAME, works, too.
    """
    name, files = files_of(paths)
    if len(files) > 1:
        try:
            lines = Merged(files)
            trace = read_lines(lines, name)
            for vm in trace.vms:
                vm.calls.ends = lines.ends
        except OSError as error:
            raise _damaged(name, error) from None
        trace.notes.append(
            f"{len(files)} files: lines are counted as `strace-log-merge {name}` prints them"
        )
        return trace
    return _of_one_file(files[0])


def _of_one_file(path: Path) -> Trace:
    with opened(path) as stream:
        lines = Numbered(stream)
        try:
            trace = read_lines(lines, name_of(path))
        except TraceError as error:
            if not lines.cut:
                raise
            raise TraceError(f"{error}; {lines.cut}") from None
        except OSError as error:
            raise _damaged(name_of(path), error) from None
    if lines.cut:
        trace.notes.append(lines.cut)
    return trace


def _damaged(name: str, error: OSError) -> Exception:
    """Return what to raise for a trace that cannot be read or unpacked."""
    return error if error.errno in HOST_SHORT else TraceError(f"{name}: damaged: {error}")


def read_lines(numbered: Iterable[tuple[int, str]], name: str) -> Trace:
    """Read numbered lines; ``name`` stands for the file in errors. Raises TraceError."""
    first, last, begun = "", 0, b""
    lines = iter(numbered)
    for number, line in lines:
        first, last = first or line, number
        if IS_EVENT.search(line):  # QEMU's backend "ftrace" writes it, too.
            trace = Trace(name, "QEMU")
            read_qemu(chain([(number, line)], lines), trace)
            break
        begun += f"{line}\n".encode() if number <= _TELLING_LINES else b""
        other = other_than("a trace", begun)
        if other:
            raise TraceError(f"{name}: {other}")
        other = other_tool(line)
        if other:
            raise TraceError(f"{name}:{number}: {other}")
        if is_of_strace(line):
            trace = Trace(name, "strace")
            if isinstance(numbered, Numbered):
                numbered.leave_out(BESIDE)
            read_strace(chain([(number, line)], lines), trace)
            break
    else:
        if not first:
            raise TraceError(f"{name}: {EMPTY}")
        began = f"; it begins with {shown(first)!r}"
        raise TraceError(
            f"{name}: none of its {last} lines is of strace, or of QEMU's -trace "
            f"kvm_set_user_memory{began}"
        )
    if isinstance(numbered, Numbered):
        trace.lines = numbered.number
        if numbered.damaged:
            trace.lacks(numbered.damaged, DAMAGED)
    for vm in trace.vms:
        vm.cut_line, vm.cut_why = trace.cut_line, trace.cut_why
    _require_calls(trace)
    return trace


def _require_calls(trace: Trace) -> None:
    """Raise TraceError if a trace has no call on a memslot that can be read."""
    if any(isinstance(call, Region) for vm in trace.vms for call in vm.calls):
        return
    unread = [call for vm in trace.vms for call in vm.calls if isinstance(call, Unread)]
    strange = trace.strange
    if strange is not None:
        raise TraceError(
            f"{trace.name}:{strange.number}: a call on a memslot, but what stands before it is not "
            f"strace's: {strange.text}"
        )
    if unread:
        call = unread[0]
        raise TraceError(
            f"{trace.name}:{call.line.number}: no call on a memslot can be read here ({call.why}), "
            f"of {len(unread)}: {call.line.text}"
        )
    lines = f"{trace.lines} line{'s' * (trace.lines != 1)} of {trace.tool}"
    raise NoMemslotsError(
        f"{trace.name}: {lines}, and no call on a memslot: trace with `strace -f -e trace=ioctl`, "
        "or `vmm record`"
    )
