"""Traces of `strace -N` (6.17 and later), which puts its name in front of each argument."""

import msgspec

from tests.traced import KVM, region, trace_of
from vmm.replay.trace import MemoryChange, Region, Unread

HVA = 0x7F0000000000
_PLAIN = (
    KVM,
    '7 memfd_create("ram", MFD_CLOEXEC) = 5',
    "7 clone(child_stack=NULL, flags=CLONE_VM|CLONE_FILES, parent_tid=0x1, tls=0x2) = 9",
    f"7 mmap(NULL, 16384, PROT_READ|PROT_WRITE, MAP_SHARED, 5, 0) = {HVA:#x}",
    region(size=0x4000, head="9 "),
    "7 fcntl(8, F_DUPFD_CLOEXEC, 0) = 12",
    "7 fallocate(5, FALLOC_FL_KEEP_SIZE|FALLOC_FL_PUNCH_HOLE, 4096, 4096) = 0",
    f"7 madvise({HVA:#x}, 8192, MADV_DONTNEED) = 0",
    f"7 mprotect({HVA:#x}, 4096, PROT_NONE) = 0",
    region(size=0, fd="12", name="0x4020ae46"),
    f"7 mremap({HVA:#x}, 16384, 16384, MREMAP_MAYMOVE|MREMAP_FIXED, {HVA * 2:#x}) = {HVA * 2:#x}",
    f"7 munmap({HVA:#x}, 4096) = 0",
)
_NAMES = {
    "ioctl": ("fd", "op", "argp"),
    "memfd_create": ("name", "flags"),
    "mmap": ("addr", "length", "prot", "flags", "fd", "offset"),
    "fcntl": ("fd", "op", "arg"),
    "fallocate": ("fd", "mode", "offset", "len"),
    "madvise": ("addr", "length", "advice"),
    "mprotect": ("addr", "length", "prot"),
    "mremap": ("old_address", "old_size", "new_size", "flags", "new_address"),
    "munmap": ("addr", "length"),
}


def _named(line: str) -> str:
    """Return a line with names of its arguments."""
    head, begun, rest = line.partition("(")
    names = _NAMES.get(head.split()[-1])
    if names is None:
        return line
    parts = rest.split(", ", len(names) - 1)
    return (
        head + begun + ", ".join(f"{name}={part}" for name, part in zip(names, parts, strict=True))
    )


def test_named_arguments_say_the_same() -> None:
    plain, named = trace_of(*_PLAIN), trace_of(*map(_named, _PLAIN))
    calls = [msgspec.to_builtins([*each.calls]) for each in (plain.vms[0], named.vms[0])]
    for call in (*calls[0], *calls[1]):
        del call["line"]
    assert calls[0] == calls[1]
    kinds = [type(call) for call in named.vms[0].calls]
    assert kinds.count(Region) == 2
    assert kinds.count(MemoryChange) == 5
    assert named.vms[0].memory == plain.vms[0].memory


def test_a_call_with_named_arguments_that_is_cut_off_anywhere_may_have_changed_slots() -> None:
    whole = _named(region())
    for end in range(len("9 "), len(whole) - len(" = 0")):
        *_, last = trace_of(KVM, region(), f"{whole[:end]} <unfinished ...>").vms[0].calls
        assert isinstance(last, Unread), whole[:end]


def test_another_request_with_named_arguments_that_is_cut_off_says_nothing() -> None:
    cut = "7 ioctl(fd=8, op=KVM_IRQ_LINE, argp=0x7ff <unfinished ...>"
    (only,) = trace_of(KVM, region(), cut).vms[0].calls
    assert isinstance(only, Region)
