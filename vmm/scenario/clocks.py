"""What KVM writes to guest memory by itself, byte by byte.

The structures are part of the ABI between KVM and its guests (Documentation/virt/kvm/x86/msr.rst).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from vmm.scenario.clock_operations import Clock

STEAL_TIME_BYTES = 64
"""MSR_KVM_STEAL_TIME takes a gpa that is a multiple of this."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A structure of ``size`` bytes, the offset of its version, and the (first, end) KVM writes."""

    size: int
    version: int
    written: tuple[tuple[int, int], ...]


LAYOUTS: dict[Clock, Layout] = {
    # version, sec, nsec
    "wall_clock": Layout(12, 0, ((0, 12),)),
    # version, pad, tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift, flags, pad
    "system_time": Layout(32, 0, ((0, 32),)),
    # steal, version, flags, preempted, pad
    "steal_time": Layout(STEAL_TIME_BYTES, 8, ((0, 12), (16, 17))),
}
_VERSION_BYTES = 4
_FLAGS_AT = 29
_GUEST_STOPPED = 1 << 1  # PVCLOCK_GUEST_STOPPED
_NANOSECONDS_END = 11
_MOST_OF_A_SECOND = 999_999_999 >> 24

Bytes = Mapping[tuple[str, int], int]
"""Each byte that changed, by mapping and offset."""


class ClockWrite(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A structure that KVM must have written since the last look, at an offset into a mapping.

    With ``stopped`` the structure must also say that the vCPU was paused.

    >>> from vmm import history
    >>> history.ClockWrite("a", offset=0x400, clock="system_time").stopped
    False
    """

    mapping: str
    offset: int
    clock: Clock
    stopped: bool = False


Room = tuple[str, int, int]
"""Bytes that may or may not have changed: (mapping, offset, length)."""


def fit(wanted: Bytes, seen: Bytes, room: Iterable[Room], due: Iterable[ClockWrite]) -> bool:
    """Whether ``seen`` equals ``wanted`` outside of ``room``, and everything due was written."""
    free = {(name, at) for name, offset, size in room for at in range(offset, offset + size)}
    plain = {key: byte for key, byte in seen.items() if key not in free}
    if plain != {key: byte for key, byte in wanted.items() if key not in free}:
        return False
    return all(_is_written(each, seen) for each in due)


def _is_written(write: ClockWrite, seen: Bytes) -> bool:
    """Whether the version changed and is even (no update in progress), and the fields fit."""

    def at(offset: int) -> int | None:
        return seen.get((write.mapping, write.offset + offset))

    version = LAYOUTS[write.clock].version
    if all(at(version + byte) is None for byte in range(_VERSION_BYTES)):
        return False
    if (at(version) or 0) % 2:
        return False
    if write.clock == "wall_clock":
        return (at(_NANOSECONDS_END) or 0) <= _MOST_OF_A_SECOND
    flags = at(_FLAGS_AT)
    return not write.stopped or flags is None or bool(flags & _GUEST_STOPPED)
