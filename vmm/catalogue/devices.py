"""Coalesced MMIO and ioeventfds at gpas where slots are created and deleted."""

from typing import Literal

import msgspec

from vmm.catalogue._build import A, Slot, at, read, write
from vmm.scenario.instruction_operation import Width
from vmm.scenario.instructions import DATA_PORT
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    AnyOperation,
    CoalesceMmio,
    CollectMmio,
    Instruction,
    IoEventFd,
    NewVm,
    Scenario,
    SetCoalescedRing,
    SwitchVm,
    Touch,
)

_WIDTHS: dict[int, Literal[1, 2, 4]] = {1: 1, 2: 2, 4: 4}

_GFN = 0x100
_GPA = _GFN * PAGE_SIZE_BYTES
_HIGH_GPA = 0x7_0010_0000
_EIGHT = 0x8796_A5B4_F0E1_D2C3
_SLOT = Slot(1, _GFN, at("a"), 4)
_ELSEWHERE = Slot(1, _GFN + 0x10, at("a"), 4)
_COALESCED = "api.rst 4.116; coalesced_mmio_write"
_EVENTFD = "api.rst 4.59; ioeventfd_write"
_RING_ENTRIES = 169
_MOST_RANGES = 1000


def _zone(page: int = 0, pages: int = 4, *, on: bool = True) -> CoalesceMmio:
    return CoalesceMmio(_GPA + page * PAGE_SIZE_BYTES, pages * PAGE_SIZE_BYTES, on)


def _ports(*, on: bool = True, kind: bool | int = True) -> CoalesceMmio:
    return msgspec.structs.replace(_zone(on=on), pio=kind)


def _data_port(size: int, *, on: bool = True) -> CoalesceMmio:
    return CoalesceMmio(DATA_PORT, size, on, pio=True)


def _out(width: Width, count: int = 1) -> Instruction:
    """Let the guest write elements of a slot's memory to the port."""
    name = "outs" if count == 1 else "rep-outs"
    return Instruction(name, 0x200 * PAGE_SIZE_BYTES + 0x40, width, count=count)


def _event(
    offset: int = 0x100,
    length: int = 4,
    match: int | None = None,
    *,
    on: bool = True,
    name: str = "event",
) -> IoEventFd:
    return IoEventFd(name, _GPA + offset, length, match, on)


def _write(offset: int, width: int, value: int) -> Touch:
    return Touch(_GPA + offset, "write", _WIDTHS[width], value)


def _store(offset: int, value: int) -> Instruction:
    """Write eight bytes, which takes a guest in 64-bit mode."""
    return Instruction("store", _GPA + offset, 8, value, mode="long")


def _writes(turn: int) -> tuple[AnyOperation, ...]:
    """Write and read around the borders of the zone, and at the eventfd."""
    pages = (-1, 0, 1, 3, 4)
    return (
        *(write(_GFN + page, (turn << 8) + page & 0xFFFF) for page in pages),
        *(read(_GFN + page) for page in pages),
        CollectMmio(),
    )


def _scenario(
    name: str,
    why: str,
    source: str,
    *operations: AnyOperation,
    needs: tuple[str, ...] = ("coalesced_mmio",),
    tags: tuple[str, ...] = ("devices",),
) -> Scenario:
    return Scenario(
        name=f"devices-{name}",
        why=why,
        source=source,
        tags=tags,
        needs=needs,
        mappings=(A,),
        survey="none",
        operations=operations,
    )


def _becomes_memory(device: AnyOperation, end: AnyOperation) -> tuple[AnyOperation, ...]:
    """Put a slot over a device's gpas, move it away and back, and delete it."""
    calls = (
        device,
        _SLOT.create(),
        _SLOT.move(_ELSEWHERE.gfn),
        _SLOT.create(),
        _SLOT.change(LOG_DIRTY_PAGES),
        _SLOT.delete(),
        end,
    )
    return tuple(op for turn, call in enumerate(calls, 1) for op in (call, *_writes(turn)))


def _under_readonly(device: AnyOperation) -> tuple[AnyOperation, ...]:
    """Put a READONLY slot over a device's gpas, and delete it."""
    slot = Slot(1, _GFN, at("a"), 2, READONLY)
    return (device, slot.create(), *_writes(1), slot.delete(), *_writes(2))


_EVENTFDS = ("ioeventfd",)
_IN_ANY_ORDER = (0x500, 0x300, 0x700, 0x100, 0x600, 0x400, 0x200)


def _taken_away(offset: int) -> tuple[AnyOperation, ...]:
    """Take one of the eventfds away, and write to all."""
    return (
        _event(offset, name=f"at-{offset:x}", on=False),
        *(_write(each, 4, 2) for each in _IN_ANY_ORDER),
        CollectMmio(),
    )


_MANY: tuple[CoalesceMmio | IoEventFd, ...] = (
    *(CoalesceMmio(_GPA + 0x100 * number, 0x10) for number in range(3)),
    *(_event(0x800 + 0x100 * number, name=f"event-{number}") for number in range(2)),
)


def _to_each() -> tuple[AnyOperation, ...]:
    """Write to each of many devices, and look at what they took."""
    return (*(Touch(device.gpa, "write", 4, device.gpa) for device in _MANY), CollectMmio())


_LOW, _HIGH = 0x0807_0605_0403_0201, 0x100F_0E0D_0C0B_0A09

SCENARIOS = (
    _scenario(
        "as-the-capabilities-say",
        "Ranges are coalesced, and ioeventfds assigned, if the capabilities say so; else such a "
        "call is not known.",
        "kvm_vm_ioctl",
        _zone(),
        _zone(on=False),
        _event(),
        _event(on=False),
        needs=(),
    ),
    _scenario(
        "coalesced-until-a-slot-is-there",
        "Writes to a coalesced range are kept in the ring where there is no slot, and only there.",
        _COALESCED,
        *_writes(0),
        *_becomes_memory(_zone(), _zone(on=False)),
    ),
    _scenario(
        "coalesced-under-readonly",
        "Writes to a READONLY slot are kept like those to a hole, and memory stays as it was.",
        _COALESCED,
        *_under_readonly(_zone()),
        needs=("coalesced_mmio", "readonly_mem"),
    ),
    _scenario(
        "coalesced-until-the-ring-is-full",
        "When the ring is full, writes exit again until it is emptied.",
        _COALESCED,
        _zone(),
        *(write(_GFN, number, 8 * (number % 64)) for number in range(_RING_ENTRIES + 3)),
        CollectMmio(),
        write(_GFN, 0x1234),
        CollectMmio(),
        CollectMmio(),
    ),
    _scenario(
        "coalesced-ring-set-by-the-host",
        "Writes are kept from where the host says that the ring goes on; beyond the ring's end "
        "none is, and each exits.",
        "coalesced_mmio_write; b60fe990c6b0",
        _zone(),
        *(write(_GFN, 0x1234), CollectMmio()),
        *(
            op
            for index in (_RING_ENTRIES, _RING_ENTRIES + 1, 5)
            for op in (
                *(SetCoalescedRing(index), write(_GFN, index), write(_GFN + 1, 0x5A)),
                *(CollectMmio(), CollectMmio()),
            )
        ),
    ),
    _scenario(
        "coalesced-in-part",
        "A write of any width is coalesced if it lies wholly within the range.",
        _COALESCED,
        CoalesceMmio(_GPA + 0x100, 8),
        *(
            _write(offset, width, 0x11223344)
            for offset, width in ((0x100, 4), (0x104, 4), (0x107, 1), (0x106, 2), (0x108, 1))
        ),
        *(
            _write(offset, width, 0x55667788)
            for offset, width in ((0xFE, 4), (0x106, 4), (0xFF, 1))
        ),
        CollectMmio(),
    ),
    _scenario(
        "coalesced-by-halves",
        "A write of 16 bytes is kept by halves, at the gpa of each; what follows the first half "
        "that is not kept exits.",
        "api.rst 4.116; vcpu_mmio_write, emulator_read_write_onepage",
        CoalesceMmio(_GPA + 0x100, 0x18),
        _write(0x110, 4, 0x11223344),
        *(
            Instruction("store-vector", _GPA + offset, 16, _LOW, value_high=_HIGH, mode="long")
            for offset in (0x100, 0x108, 0x110, 0xF8, 0x118)
        ),
        CollectMmio(),
        _event(0x208, 8, _HIGH),
        _event(0x200, 8, _LOW, name="first"),
        Instruction("store-vector", _GPA + 0x200, 16, _LOW, value_high=_HIGH, mode="long"),
        Instruction("store-vector", _GPA + 0x200, 16, _HIGH, value_high=_HIGH, mode="long"),
        Instruction("store-vector", _GPA + 0x200, 16, _LOW, value_high=_LOW, mode="long"),
        CollectMmio(),
        needs=("coalesced_mmio", "ioeventfd"),
    ),
    _scenario(
        "ranges-that-end",
        "Unregistering a range ends each registered range that contains it, and no other.",
        "kvm_vm_ioctl_unregister_coalesced_mmio",
        _zone(0, 1),
        _zone(2, 2),
        *_writes(1),
        _zone(1, 1, on=False),
        *_writes(2),
        _zone(3, 1, on=False),
        *_writes(3),
        _zone(0, 1, on=False),
        *_writes(4),
    ),
    _scenario(
        "ranges-that-contain-the-same",
        "Unregistering what several registered ranges contain ends all of these, in whichever "
        "order they came.",
        "kvm_vm_ioctl_unregister_coalesced_mmio",
        *(_zone(0, 4), _zone(1, 1), _zone(6, 1), _zone(1, 1, on=False)),
        *_writes(1),
        _write(6 * PAGE_SIZE_BYTES, 4, 1),
        CollectMmio(),
        *(_zone(2, 1), _zone(1, 2), _zone(0, 4), _zone(2, 1, on=False)),
        *_writes(2),
        *(_zone(0, 4), _zone(0, 4), _zone(0, 4, on=False)),
        *_writes(3),
    ),
    _scenario(
        "ranges-of-ports-and-of-gpas",
        "A coalesced range of ports and one of gpas with the same numbers are two: each begins and "
        "ends alone.",
        "api.rst 4.116; 0804c849f1df, kvm_vm_ioctl_unregister_coalesced_mmio",
        _ports(),
        *_writes(1),
        _zone(),
        *_writes(2),
        _ports(on=False),
        *_writes(3),
        _ports(),
        _zone(on=False),
        *_writes(4),
        _zone(),
        _ports(on=False),
        _ports(on=False),
        *_writes(5),
        *(_ports(kind=kind, on=on) for kind in (2, 0x100, 1 << 31) for on in (True, False)),
        *_writes(6),
        needs=("coalesced_mmio", "coalesced_pio"),
    ),
    _scenario(
        "ports-that-are-coalesced",
        "Writes to a coalesced port are kept in the same ring, in order, as those to a port; a "
        "range that does not hold all of a write takes none of it.",
        f"{_COALESCED}; 0804c849f1df",
        *(_SLOT.move(0x200), _zone(), _data_port(4)),
        *(_out(width) for width in (1, 2, 4)),
        *(*_writes(1), _out(2, 5), Touch(_GPA, "write", value=2), _out(1), CollectMmio()),
        *(_data_port(4, on=False), _out(4), CollectMmio()),
        *(_data_port(2), _out(1), _out(2), _out(4), _out(4, 3), CollectMmio()),
        needs=("coalesced_mmio", "coalesced_pio"),
    ),
    _scenario(
        "that-end-and-come-back",
        "Of several ranges and eventfds each takes the writes to its gpa, until it ends, and again "
        "once it is back.",
        f"{_COALESCED}; {_EVENTFD}",
        *_MANY,
        *_to_each(),
        *(
            each
            for device in (_MANY[1], _MANY[-1])
            for each in (msgspec.structs.replace(device, on=False), *_to_each(), device)
        ),
        *_to_each(),
        needs=("coalesced_mmio", "ioeventfd"),
    ),
    _scenario(
        "eventfd-until-a-slot-is-there",
        "A write signals an eventfd where there is no slot, and goes to memory where there is one.",
        _EVENTFD,
        *_writes(0),
        *_becomes_memory(_event(), _event(on=False)),
        needs=_EVENTFDS,
    ),
    _scenario(
        "eventfd-under-readonly",
        "A write to a READONLY slot signals an eventfd like one to a hole.",
        _EVENTFD,
        *_under_readonly(_event()),
        needs=("ioeventfd", "readonly_mem"),
    ),
    _scenario(
        "eventfds-by-length-and-value",
        "An eventfd is signalled by writes of its length, and of its value if it has one.",
        _EVENTFD,
        _event(0x100, 4, 7),
        _event(0x100, 4, 8, name="other"),
        _event(0x200, 2),
        _event(0x300, 0, name="any"),
        _event(0x400, 2, 0x1234, name="two"),
        _event(0x500, 1, 0x12, name="one"),
        _event(0x600, 4, 0x8001_0007, name="wide"),
        *(
            _write(offset, width, value)
            for offset, width, value in (
                *((0x400, 2, 0x1234), (0x400, 2, 0x1235), (0x400, 2, 0x34), (0x500, 1, 0x13)),
                *((0x100, 4, 7), (0x100, 4, 8), (0x100, 4, 9), (0x100, 2, 7), (0x101, 1, 7)),
                *((0x100, 4, 0x1_0007), (0x600, 4, 0x8001_0007), (0x600, 4, 7)),
                *((0x200, 2, 1), (0x200, 4, 1), (0x200, 1, 1), (0x202, 2, 1)),
                *((0x300, 1, 1), (0x300, 2, 1), (0x300, 4, 1), (0x301, 1, 1)),
            )
        ),
        CollectMmio(),
        _event(0x100, 4, 7, on=False),
        *(_write(0x100, 4, value) for value in (7, 8)),
        CollectMmio(),
        _event(0x300, 0, name="any", on=False),
        _write(0x300, 4, 1),
        _event(0x300, 0, name="any"),
        _write(0x300, 4, 2),
        CollectMmio(),
        needs=_EVENTFDS,
    ),
    _scenario(
        "coalesced-eight-bytes",
        "A write of eight bytes is coalesced whole if it lies within the range.",
        _COALESCED,
        CoalesceMmio(_GPA + 0x100, 16),
        *(_store(offset, _EIGHT ^ offset) for offset in (0x100, 0x104, 0x108, 0x109, 0xFC)),
        CollectMmio(),
        CoalesceMmio(_GPA + 0x100, 16, on=False),
        _store(0x100, _EIGHT),
        CollectMmio(),
    ),
    _scenario(
        "eventfds-of-eight-bytes",
        "An eventfd of eight bytes is signalled by writes of all eight bytes of its value.",
        _EVENTFD,
        _event(0x100, 8, _EIGHT),
        _event(0x200, 8, 0xF0E1D2C3, name="low"),
        _event(0x300, 8, name="any"),
        *(
            _store(offset, value)
            for offset in (0x100, 0x200, 0x300)
            for value in (_EIGHT, _EIGHT & 0xFFFFFFFF, _EIGHT ^ 1 << 63, 0xF0E1D2C3)
        ),
        *(_write(offset, 4, 0xF0E1D2C3) for offset in (0x100, 0x200, 0x300)),
        CollectMmio(),
        needs=_EVENTFDS,
    ),
    _scenario(
        "eventfds-end-by-all-their-values",
        "An ioeventfd is ended by a call with its own length, value and eventfd; else it is "
        "ENOENT, and stays.",
        "kvm_deassign_ioeventfd_idx",
        _event(0x100, 4, 7),
        _event(0x100, 4, 8, name="other"),
        _event(0x100, 4, 8, on=False),
        _event(0x100, 4, 9, on=False),
        _event(0x100, 4, on=False),
        _event(0x100, 4, 7, name="other", on=False),
        _event(0x100, 2, 7, on=False),
        _event(0x104, 4, 7, on=False),
        *(_write(0x100, 4, value) for value in (7, 8, 9)),
        CollectMmio(),
        _event(0x100, 4, 8, name="other", on=False),
        *(_write(0x100, 4, value) for value in (7, 8, 9)),
        CollectMmio(),
        needs=_EVENTFDS,
    ),
    _scenario(
        "from-4-gib-on",
        "Ranges and ioeventfds from 4 GiB on are where their whole gpa says, and not at its low "
        "32 bits.",
        f"{_COALESCED}; {_EVENTFD}",
        CoalesceMmio(_HIGH_GPA, PAGE_SIZE_BYTES),
        IoEventFd("high", _HIGH_GPA + PAGE_SIZE_BYTES + 0x100),
        *(
            Touch(start + offset, "write", value=offset & 0xFFFF)
            for start in (_HIGH_GPA, _HIGH_GPA & 0xFFFF_FFFF)
            for offset in (-4, 0, PAGE_SIZE_BYTES - 4, PAGE_SIZE_BYTES, PAGE_SIZE_BYTES + 0x100)
        ),
        CollectMmio(),
        CoalesceMmio(_HIGH_GPA & 0xFFFF_FFFF, PAGE_SIZE_BYTES, on=False),
        Touch(_HIGH_GPA, "write", value=1),
        CollectMmio(),
        needs=("ioeventfd", "coalesced_mmio"),
    ),
    _scenario(
        "eventfds-in-any-order",
        "Eventfds are found, and taken away, whatever the order that their gpas came in.",
        "kvm_io_bus_register_dev, kvm_io_bus_get_first_dev",
        *(_event(offset, name=f"at-{offset:x}") for offset in _IN_ANY_ORDER),
        *(_write(offset, 4, 1) for offset in _IN_ANY_ORDER),
        CollectMmio(),
        *(op for offset in sorted(_IN_ANY_ORDER) for op in _taken_away(offset)),
        needs=_EVENTFDS,
    ),
    _scenario(
        "more-than-a-thousand-eventfds",
        "Ioeventfds do not count among the devices of which a VM has room for a thousand.",
        "kvm_io_bus_register_dev: NR_IOBUS_DEVS",
        *(_event(8 * number, name=f"event-{number % 2}") for number in range(_MOST_RANGES + 1)),
        _zone(8, 1),
        *(_write(8 * number, 4, 1) for number in (0, 1, _MOST_RANGES - 1, _MOST_RANGES, 4096)),
        CollectMmio(),
        needs=("coalesced_mmio", "ioeventfd"),
        tags=("devices", "slow"),
    ),
    _scenario(
        "a-thousand-ranges",
        "A VM has room for a thousand coalesced ranges; one more is ENOSPC, until one has ended. "
        "An ioeventfd that was there before makes no more room.",
        "kvm_io_bus_register_dev: NR_IOBUS_DEVS; kvm_deassign_ioeventfd_idx",
        *(_event(), _event(on=False)),
        *(CoalesceMmio(_GPA + 8 * number, 4) for number in range(_MOST_RANGES)),
        _zone(8, 1),
        *(_write(8 * number, 4, 2) for number in (0, _MOST_RANGES - 1, 4096)),
        CoalesceMmio(_GPA, 4, on=False),
        _zone(8, 1),
        _zone(9, 1),
        *(_write(8 * number, 4, 3) for number in (0, _MOST_RANGES - 1, 4096)),
        CollectMmio(),
        needs=("coalesced_mmio", "ioeventfd"),
        tags=("devices", "slow"),
    ),
    _scenario(
        "eventfds-refused",
        "A second ioeventfd for the same write is EEXIST, an absent one ENOENT, a bad one EINVAL.",
        "kvm_assign_ioeventfd, kvm_deassign_ioeventfd_idx",
        _event(),
        _event(name="other"),
        _event(match=5),
        _event(0x100, 0),
        _event(0x100, 2),
        _event(0x100, 3),
        _event(0x100, 16),
        _event(0x200, 0, 1),
        _event(0x200, on=False),
        _event(0x100, 2, name="other", on=False),
        _event(0x100, 2, on=False),
        _event(name="other", on=False),
        _event(match=5, on=False),
        IoEventFd("event", (1 << 64) - 2, 4),
        *_writes(1),
        _event(on=False),
        _event(on=False),
        *_writes(2),
        _event(0x300, 4, 7),
        *(_event(0x300, 4, match, name="other") for match in (7, 8, None)),
        needs=_EVENTFDS,
    ),
    _scenario(
        "eventfd-of-any-length-after-a-range",
        "An eventfd of any length is signalled even at the end of a coalesced range.",
        "kvm_io_bus_cmp; kvm_io_bus_register_dev",
        _event(0, 0),
        _zone(-1, 1),
        _write(0, 4, 5),
        CollectMmio(),
        needs=("ioeventfd", "coalesced_mmio"),
    ),
    _scenario(
        "eventfds-of-another-vm",
        "An ioeventfd belongs to one VM, and ends with it.",
        _EVENTFD,
        _event(),
        *_writes(1),
        SwitchVm(1),
        *_writes(2),
        _event(name="other"),
        *_writes(3),
        SwitchVm(0),
        *_writes(4),
        NewVm(),
        *_writes(5),
        SwitchVm(1),
        *_writes(6),
        needs=_EVENTFDS,
    ),
)
"""All scenarios of devices on gpas where slots are created and deleted."""
