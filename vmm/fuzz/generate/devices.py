"""Random coalesced ranges and ioeventfds where slots come and go, and writes at their borders."""

from collections.abc import Iterator
from typing import Literal

import msgspec

from vmm.fuzz.generate.dice import Dice
from vmm.fuzz.generate.looks import within_reach
from vmm.fuzz.generate.pools import Pools
from vmm.scenario.instructions import DATA_PORT
from vmm.scenario.limits import GUEST_PORTS
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    AnyOperation,
    CoalesceMmio,
    CollectMmio,
    Instruction,
    IoEventFd,
    SetCoalescedRing,
    Touch,
)

_replace = msgspec.structs.replace

_RANGES = ((0, PAGE_SIZE_BYTES), (0, 0x42), (0x40, 8), (0xF80, 0x90), (0x100, 1), (0xFFC, 4))
"""Offset in a page with an odd gfn, and size; one reaches into the next page, short of eventfds.

Different devices do not overlap: it would be unknown which of them a write meets.
"""

_EVENTS = ((0x40, 4), (0x100, 2), (0x180, 1), (0x200, 0), (0x300, 8), (0xFFC, 4))
"""Offset in a page with an even gfn, and length.

One of any length is not placed at the end of a range, where some kernels lose it: a known issue.
"""

_MATCHES = (None, None, 0, 1, 0x80)
_MATCHES_OF_8 = (None, 1, 1 << 32, 1 << 32 | 1)
_BAD_EVENTS = ((0, 3, None), (0x40, 16, None), (0x200, 0, 1), (0x40, 4, 1 << 32))
"""Offset, length and value that are refused, but for the last: no write matches it."""

_TOUCHES: dict[int, Literal[1, 2, 4]] = {1: 1, 2: 2, 4: 4}
_WIDTHS = (*_TOUCHES, 8)
_RING = 170
"""One write more than the ring holds."""

_BURST_SHARE, _PORTS_SHARE, _RING_SET_SHARE = 0.02, 0.04, 0.03
_RING_ENDS = (0, 0, 5, 169, 170)
"""Where the host lets the ring go on; the last is beyond its end."""

_VALUES = 1 << 32


class Devices:
    """Makes the devices of one scenario, and writes at their borders."""

    def __init__(self, dice: Dice, pools: Pools) -> None:
        self._dice = dice
        self._pools = pools
        self._ranges: list[CoalesceMmio] = []
        self._events: list[IoEventFd] = []

    def next(self) -> Iterator[AnyOperation]:
        """Yield a device, its end, or writes where one is or was, which are then collected."""
        dice = self._dice
        gfn, what = dice.pick(self._pools.gfns), dice.random()
        if what < _PORTS_SHARE and self._pools.has_ports and self._ranges:
            yield from self._data_port() if dice.chance(0.5) else self._ports()
        elif what < 0.3:
            yield self._range(gfn) if gfn % 2 else self._event(gfn)
        elif what < 0.4:
            yield self._end_of_range() if self._ranges else self._range(gfn | 1)
        elif what < 0.5:
            yield self._end_of_event() if self._events else self._event(gfn & ~1)
        elif what < 0.5 + _BURST_SHARE and self._ranges:
            yield from self._burst(dice.pick(self._ranges))
        else:
            for _ in range(dice.between(1, 4)):
                yield from self._write()
            if dice.chance(0.7):
                yield CollectMmio()
            if dice.chance(_RING_SET_SHARE):
                yield SetCoalescedRing(dice.pick(_RING_ENDS), dice.below(self._pools.vcpus))

    def _range(self, gfn: int) -> CoalesceMmio:
        offset, size = _RANGES[gfn // 2 % len(_RANGES)]
        made = CoalesceMmio(gfn * PAGE_SIZE_BYTES + offset, size)
        self._ranges.append(made)
        return made

    def _end_of_range(self) -> CoalesceMmio:
        """Return the end of a range; or of a part, which ends it; or of more, which does not."""
        dice = self._dice
        known = dice.pick(self._ranges)
        offset, size = 0, known.size
        if dice.chance(0.5):
            offset, size = dice.pick(
                ((0, max(size // 2, 1)), (size // 2, size - size // 2), (0, size + 1), (size, 1))
            )
        return _replace(known, gpa=known.gpa + offset, size=size, on=False)

    def _ports(self) -> Iterator[AnyOperation]:
        """Yield a range of ports that has the numbers of one of gpas, or its end."""
        ports = _replace(self._dice.pick(self._ranges), pio=True, on=self._dice.chance(0.5))
        if ports.gpa >= GUEST_PORTS.stop:
            yield ports

    def _data_port(self) -> Iterator[AnyOperation]:
        """Yield a range at the port that outs writes to, writes there, and perhaps its end."""
        dice = self._dice
        made = CoalesceMmio(DATA_PORT, 4, pio=True)
        yield made
        gpa = dice.pick(self._pools.gfns) * PAGE_SIZE_BYTES + 0x40
        for _ in range(dice.between(1, 3)):
            width = _TOUCHES[dice.pick((1, 2, 4))]
            vcpu = dice.below(self._pools.vcpus)
            if within_reach(gpa, width, self._pools.reach) and gpa < REAL_MODE_END:
                yield Instruction("outs", gpa, width, vcpu=vcpu)
        if dice.chance(0.5):
            yield _replace(made, on=False)
        yield CollectMmio()

    def _event(self, gfn: int) -> IoEventFd:
        dice = self._dice
        gpa, name = gfn * PAGE_SIZE_BYTES, dice.pick(("x", "y"))
        if dice.chance(0.03):
            offset, length, match = dice.pick(_BAD_EVENTS)
            return IoEventFd(name, gpa + offset, length, match)
        offset, length = dice.pick(_EVENTS)
        match = dice.pick(_MATCHES_OF_8 if length == 8 else _MATCHES) if length else None
        made = IoEventFd(name, gpa + offset, length, match)
        self._events.append(made)
        return made

    def _end_of_event(self) -> IoEventFd:
        """Return the end of an ioeventfd, or of one that differs in its value or its eventfd."""
        dice = self._dice
        known = dice.pick(self._events)
        if known.length and dice.chance(0.2):
            matches = _MATCHES_OF_8 if known.length == 8 else _MATCHES
            known = _replace(known, match=dice.pick(matches))
        if dice.chance(0.1):
            known = _replace(known, name=dice.pick(("x", "y")))
        return _replace(known, on=False)

    def _write(self) -> Iterator[AnyOperation]:
        """Yield a write to a device that was made, or just beside one."""
        dice = self._dice
        if self._events and (not self._ranges or dice.chance(0.5)):
            event = dice.pick(self._events)
            width = event.length or dice.pick(_WIDTHS)
            value = event.match if event.match is not None else dice.below(_VALUES)
            if dice.chance(0.3):
                value ^= 1 << dice.pick((0, 7, 8 * width - 1))
            if dice.chance(0.2):
                width = dice.pick(_WIDTHS)
            yield from self._store(event.gpa, width, value)
        elif self._ranges:
            known, width = dice.pick(self._ranges), dice.pick(_WIDTHS)
            last = known.size - width
            offset = dice.pick((0, 0, last, last, last + 1, known.size, -width, known.size // 2))
            yield from self._store(known.gpa + offset, width, self._value())

    def _store(self, gpa: int, width: int, value: int) -> Iterator[AnyOperation]:
        """Yield a write that stays within a page, if guests reach it."""
        vcpu = self._dice.below(self._pools.vcpus)
        crosses = gpa % PAGE_SIZE_BYTES + width > PAGE_SIZE_BYTES
        if crosses or not within_reach(gpa, width, self._pools.reach):
            return
        if touched := _TOUCHES.get(width):
            yield Touch(gpa, "write", touched, value & (1 << 8 * width) - 1, vcpu)
        elif self._pools.has_long:
            yield Instruction("store", gpa, 8, value, mode="long", vcpu=vcpu)

    def _burst(self, known: CoalesceMmio) -> Iterator[AnyOperation]:
        """Yield more writes than the ring holds, so that the last exits; then it is emptied."""
        for _ in range(_RING):
            yield from self._store(known.gpa, 1, self._value())
        yield CollectMmio()

    def _value(self) -> int:
        return self._dice.below(_VALUES) << 32 | self._dice.below(_VALUES)
