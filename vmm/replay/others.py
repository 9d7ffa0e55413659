"""Recognises files that are not traces of strace or QEMU, but are often taken for one."""

import re

_WANTED = (
    "what is read is `strace -f -o FILE`, QEMU's `-trace kvm_set_user_memory`, or `vmm record`"
)
_NOT_SAID = f"which does not say what a memslot call asked for: {_WANTED}"

_FTRACE = (
    r"# tracer: |CPU \d+ is empty$|cpus=\d+$|\s*\S.*-\d+ +(?:\(.{7}\) )?\[\d{3,}\] .*\d\.\d+: "
)
_PERF_TRACE = r"[^\"]*\bioctl\(fd: \d| *\d+\.\d+ +\S.*/\d+ \w+:\w+\("
_OTHERS = (
    (_PERF_TRACE, f"this is of `perf trace`, {_NOT_SAID}"),
    (r"Analyze events for all VMs", f"this is of `perf kvm`, {_NOT_SAID}"),
    (r" *\d+\) +(?:[#!+*@$]? *\d+\.\d+ us +)?\| ", f"this is of ftrace, {_NOT_SAID}"),
    (r"(?:\[pid +\d+\] )?(?:[\d:.]+ +)?SYS_[a-z]\w*\(", f"this is of ltrace, {_NOT_SAID}"),
    (r"(?:node=\S+ )?type=[A-Z_]+ msg=audit\(", f"this is of the audit log, {_NOT_SAID}"),
    (r"\[\d\d:\d\d:\d\d\.\d{9}\] \(\+", f"this is of LTTng, {_NOT_SAID}"),
    (r"(?:--\d+-- )?SYSCALL\[\d+,", f"this is of valgrind, {_NOT_SAID}"),
    (r"[DIW]\d{4} .*strace\.go:\d+\]", f"this is gVisor's log of its guest, {_NOT_SAID}"),
    (
        r"\{\"version\": \d, \"width\":",
        "this is asciinema's recording: `asciinema cat FILE | vmm replay -`",
    ),
    (_FTRACE, f"this is of ftrace or trace-cmd, {_NOT_SAID}"),
    (
        r"\s*\S.* \d+(?:/\d+)? +\[\d{3}\] +\d+\.\d+: +(?:\d+ )?[\w-]+:",
        f"this is of `perf script`, {_NOT_SAID}",
    ),
    (r"\s*Summary of events:$", f"this is a summary of `perf trace`, {_NOT_SAID}"),
    (r"Attach(?:ed|ing) \d+ probes?\b|@\w*\[.*\]: \d+$", f"this is of bpftrace, {_NOT_SAID}"),
    (r"# DURATION +TID +FUNCTION", f"this is of uftrace, {_NOT_SAID}"),
    (r"\d+ \S+ \d+ \S+ \(\d+(?:[.:]\d+)?\) [<>] ", f"this is of sysdig, {_NOT_SAID}"),
    (
        r"% time +seconds +usecs/call",
        "this is the summary of `strace -c`, which has no calls: trace without -c, or with -C",
    ),
    (r"PERFILE2", f"this is of `perf record`, {_NOT_SAID}"),
    (r"\x17\x08Dtracing", f"this is trace-cmd's trace.dat, {_NOT_SAID}"),
    (
        r"(?:\\xff){8}",
        "this is of QEMU's trace backend `simple`: its scripts/simpletrace.py makes text of it",
    ),
    (r"\(\\xb5/\\xfd", "this is packed by zstd: `zstd -dc FILE | vmm replay -`"),
    (
        r"PK\x03\x04|7z\\xbc\\xaf|\x04\"M\x18",
        "this is packed: unpack it first (gzip, bzip2 and xz are read)",
    ),
    (
        r"\\xff\\xfe|\\xfe\\xff",
        "this is UTF-16: `iconv -f utf-16 -t utf-8 FILE | vmm replay -`",
    ),
)
_COMPILED = [(re.compile(pattern), text) for pattern, text in _OTHERS]


def other_tool(line: str) -> str:
    """Return which other tool wrote a line, and what to do instead; "" if none is recognised."""
    return next((text for pattern, text in _COMPILED if pattern.match(line)), "")
