"""Reads a trace of strace or QEMU: the first line that is recognised decides which."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from vmm.replay.lines import Numbered, opened, shown
from vmm.replay.merge import files_of, merged
from vmm.replay.others import other_tool
from vmm.replay.qemu import IS_EVENT, read_qemu
from vmm.replay.strace import IS_CALL, read_strace
from vmm.replay.trace import Region, Trace, TraceError, Unread


def read_trace(*paths: Path) -> Trace:
    """Read a trace. Raises TraceError if it cannot be used.

    Several files are those that `strace -ff -o NAME` writes; a folder of them, or NAME, works, too.
    """
    name, files = files_of(paths)
    if len(files) > 1:
        try:
            trace = read_lines(merged(files), name)
        except OSError as error:
            raise TraceError(f"{name}: damaged: {error}") from None
        trace.notes.append(
            f"{len(files)} files: lines are counted as `strace-log-merge {name}` prints them"
        )
        return trace
    (path,) = files
    with opened(path) as stream:
        lines = Numbered(stream)
        try:
            trace = read_lines(iter(lines), str(path))
        except TraceError as error:
            raise TraceError(f"{error}; {lines.cut}" if lines.cut else str(error)) from None
        except OSError as error:
            raise TraceError(f"{path}: damaged: {error}") from None
    if lines.cut:
        trace.notes.append(lines.cut)
    return trace


def read_lines(lines: Iterator[tuple[int, str]], name: str) -> Trace:
    """Read numbered lines; ``name`` stands for the file in errors. Raises TraceError."""
    first, last = "", 0
    for number, line in lines:
        first, last = first or line, number
        if IS_EVENT.search(line):  # QEMU's backend "ftrace" writes it, too.
            trace = Trace(name, "QEMU")
            read_qemu(chain([(number, line)], lines), trace)
            break
        other = other_tool(line)
        if other:
            raise TraceError(f"{name}:{number}: {other}")
        if IS_CALL.match(line):
            trace = Trace(name, "strace")
            read_strace(chain([(number, line)], lines), trace)
            break
    else:
        if not first:
            raise TraceError(f"{name}: empty")
        began = f"; it begins with {shown(first)!r}"
        raise TraceError(
            f"{name}: none of its {last} lines is of strace, or of QEMU's -trace "
            f"kvm_set_user_memory{began}"
        )
    if not any(vm.calls for vm in trace.vms):
        raise TraceError(
            f"{name}: {trace.lines} lines of {trace.tool}, and no call on a memslot: trace with "
            "`strace -f -e trace=ioctl`, or `vmm record`"
        )
    calls = [call for vm in trace.vms for call in vm.calls]
    if not any(isinstance(call, Region) for call in calls):
        unread = [call for call in calls if isinstance(call, Unread)]
        call = unread[0] if unread else calls[0]
        why = f" ({unread[0].why})" if unread else ""
        raise TraceError(
            f"{name}:{call.line.number}: no call on a memslot can be read here{why}, of "
            f"{len(calls)}: {shown(call.line.text)}"
        )
    return trace
