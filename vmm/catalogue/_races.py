"""Helpers for scenarios of races."""

from typing import Unpack

from vmm.catalogue._area import Area, Own
from vmm.catalogue._build import at, read, write
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    AnyOperation,
    ChangeHostMemory,
    Execute,
    GuestThread,
    HostAction,
    HostChangeKind,
    HostThread,
    Race,
    Scenario,
    Touch,
)

_VALUES = 0x4000_0000
"""The first value that vCPU 0 writes; each further vCPU starts 2^24 higher."""


def reader(vcpu: int, *gfns: int) -> GuestThread:
    """Return a vCPU that reads a word of each page."""
    return GuestThread(tuple(read(gfn, vcpu=vcpu) for gfn in gfns))


def writer(vcpu: int, *gfns: int) -> GuestThread:
    """Return a vCPU that reads and writes its own word in each page, and reads its identity."""
    offset = 0x200 + 0x10 * vcpu
    program: list[Touch] = []
    for number, gfn in enumerate(gfns):
        value = _VALUES + (vcpu << 24) + (number << 20)
        program += [read(gfn, offset, vcpu), write(gfn, value, offset, vcpu), read(gfn, 0x40, vcpu)]
    return GuestThread(tuple(program))


def executor(vcpu: int, gfn: int) -> GuestThread:
    """Return a vCPU that executes the code in a page."""
    return GuestThread((Execute(gfn * PAGE_SIZE_BYTES, vcpu),))


def host(*operations: HostAction, rounds: int, pause: int = 1) -> HostThread:
    """Return a thread that repeats operations, and by default waits for the vCPUs after each."""
    return HostThread(operations, rounds, pause)


def change(how: HostChangeKind, mapping: str, page: int, pages: int = 1) -> ChangeHostMemory:
    """Change pages of a mapping."""
    return ChangeHostMemory(at(mapping, page), pages, how)


_race = Area(prefix="racing-", tags=("racing", "slow"), source="", survey="read")


def race(
    name: str,
    why: str,
    before: tuple[AnyOperation, ...],
    hosts: tuple[HostThread, ...],
    guests: tuple[GuestThread, ...],
    *after: AnyOperation,
    **own: Unpack[Own],
) -> Scenario:
    """Return a scenario of one race, with what comes before it and after it."""
    own.setdefault("vcpus", len(guests))
    return _race(name, why, *before, Race(hosts, guests), *after, **own)
