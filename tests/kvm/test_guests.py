"""The guests on the real kernel: each keeps its contract, wherever its slot is."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Self

import pytest

from guests import image, mailbox
from guests._image import lib
from guests.image import Access
from guests.mailbox import Sweep
from kvm_abi.uapi import MemFlag
from tests.touches import Touch
from vmm.kvm.exits import Io, Mmio, VcpuExit
from vmm.kvm.memory import HostAddress, HostMapping
from vmm.kvm.system import Kvm
from vmm.scenario import content
from vmm.scenario.operations import GUEST_SIZE_BYTES

PAGE = 0x1000
GUEST_SLOT = 0
GUEST_GPAS = (0xFFFF_0000, 0x7FFF_0000, 0x1_0000)

R1, R2, R4 = Access.READ_1, Access.READ_2, Access.READ_4
W1, W2, W4 = Access.WRITE_1, Access.WRITE_2, Access.WRITE_4


class Bench:
    """A VM with one vCPU and the guest's slot; memory is added slot by slot."""

    def __init__(self, stack: ExitStack, gpa: int) -> None:
        self.gpa = gpa
        # Entered before the VM, and so closed after it: a mapping outlives its slots.
        self._mappings = stack.enter_context(ExitStack())
        self.vm = stack.enter_context(stack.enter_context(Kvm.open()).create_vm())
        self.vcpu = self.vm.create_vcpu(0)
        guest = self.add(GUEST_SLOT, gpa, GUEST_SIZE_BYTES)
        guest.write(0, image.code())
        self.view = guest.view()

    def add(self, slot: int, gpa: int, size_bytes: int, flags: int = 0) -> HostMapping:
        memory = self._mappings.enter_context(HostMapping.anonymous(size_bytes))
        self.vm.set_user_memory_region(slot, flags, gpa, size_bytes, HostAddress(memory, 0))
        return memory

    def touch(self, touches: Sequence[Touch]) -> Self:
        mailbox.encode_touches(self.view, touches)
        self.vcpu.enter_big_real_mode(self.gpa, image.TOUCH_ENTRY)
        return self

    def sweep(self, sweeps: Sequence[Sweep]) -> Self:
        mailbox.encode_sweeps(self.view, self.gpa, sweeps)
        self.vcpu.enter_big_real_mode(self.gpa, image.SWEEP_ENTRY)
        return self

    def left_undone(self, count: int) -> list[int]:
        """Return how many elements each of the first ``count`` sweeps left undone."""
        first = lib.GUEST_SWEEPS + lib.GUEST_SWEEP_REMAINING
        places = range(first, first + count * lib.GUEST_SWEEP_SIZE, lib.GUEST_SWEEP_SIZE)
        return [int.from_bytes(self.view[place : place + 4], "little") for place in places]

    def sweep_under_way(self) -> int:
        """Return the index of the sweep under way: the count of sweeps once all are finished."""
        cursor = lib.GUEST_SWEEP_CURSOR
        offset = int.from_bytes(self.view[cursor : cursor + 2], "little")
        return int(offset - lib.GUEST_SWEEPS) // int(lib.GUEST_SWEEP_SIZE)

    def run(self, mmio_data: bytes = b"") -> list[Mmio]:
        """Run to the end of the batch, and return the MMIO exits on the way."""
        exits: list[Mmio] = []
        while isinstance(leaving := self.vcpu.run(), Mmio):
            exits.append(leaving)
            if not leaving.is_write:
                self.vcpu.complete_mmio_read(mmio_data[: len(leaving.data)])
        assert is_batch_end(leaving)
        return exits

    def execute(self, gpa: int) -> VcpuExit:
        self.vcpu.enter_big_real_mode(gpa, content.STUB_OFFSET)
        return self.vcpu.run()


def is_batch_end(leaving: VcpuExit) -> bool:
    return isinstance(leaving, Io) and leaving.is_write and leaving.port == image.END_PORT


def accesses(exits: Sequence[Mmio]) -> list[tuple[int, bytes | int]]:
    """Return (gpa, data) of each MMIO write, and (gpa, width) of each read."""
    return [(each.gpa, each.data if each.is_write else len(each.data)) for each in exits]


@pytest.fixture(params=GUEST_GPAS, ids=hex)
def anywhere(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack, request.param)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack, GUEST_GPAS[0])


@pytest.mark.parametrize("offset", [0, 8, PAGE - 4, PAGE - 1, PAGE - 3])
def test_read_of_each_width(anywhere: Bench, offset: int) -> None:
    memory = anywhere.add(1, 0x10_0000, 2 * PAGE)
    memory.write(offset, bytes.fromhex("fedcba98"))
    exits = anywhere.touch([Touch(0x10_0000 + offset, code) for code in (R1, R2, R4)]).run()
    assert exits == []
    assert mailbox.decode_touches(anywhere.view, 3) == [0xFE, 0xDCFE, 0x98BA_DCFE]


@pytest.mark.parametrize("offset", [1, 8, PAGE - 4, PAGE - 1, PAGE - 3])
@pytest.mark.parametrize("code", [W1, W2, W4])
def test_write_of_each_width_changes_no_other_byte(
    anywhere: Bench, offset: int, code: Access
) -> None:
    memory = anywhere.add(1, 0x10_0000, 2 * PAGE)
    width = image.WIDTHS[code]
    assert anywhere.touch([Touch(0x10_0000 + offset, code, 0x98BA_DCFE)]).run() == []
    expected = bytearray(2 * PAGE)
    expected[offset : offset + width] = bytes.fromhex("fedcba98")[:width]
    assert memory.read(0, 2 * PAGE) == bytes(expected)


def test_touches_happen_in_order(anywhere: Bench) -> None:
    anywhere.add(1, 0x10_0000, PAGE)
    batch = [Touch(0x10_0000, W4, 1), Touch(0x10_0000, R4), Touch(0x10_0000, W1, 2)]
    assert anywhere.touch([*batch, Touch(0x10_0000, R4)]).run() == []
    assert mailbox.decode_touches(anywhere.view, 4) == [0, 1, 0, 2]


def test_full_mailbox_and_next_batch_without_setting_registers(anywhere: Bench) -> None:
    memory = anywhere.add(1, 0x10_0000, 8 * PAGE)
    writes = [Touch(0x10_0000 + 4 * i, W4, i + 1) for i in range(mailbox.MAX_TOUCHES)]
    assert anywhere.touch(writes).run() == []
    expected = b"".join((i + 1).to_bytes(4, "little") for i in range(mailbox.MAX_TOUCHES))
    assert memory.read(0, len(expected)) == expected

    mailbox.encode_touches(anywhere.view, [Touch(write.gpa, R4) for write in writes])
    assert anywhere.run() == []
    values = mailbox.decode_touches(anywhere.view, len(writes))
    assert values == [write.value for write in writes]

    mailbox.encode_touches(anywhere.view, [])
    assert anywhere.run() == []


def test_the_guest_touches_nothing_but_its_slot(bench: Bench) -> None:
    # There is no other slot: any access of the guest's own would be an MMIO exit.
    assert bench.touch([]).run() == []
    assert bench.sweep([]).run() == []


def test_touch_up_to_4_gib() -> None:
    with ExitStack() as stack:
        bench = Bench(stack, 0x1_0000)
        memory = bench.add(1, 0xFFFF_F000, PAGE)
        memory.write(PAGE - 4, b"\x01\x02\x03\x04")
        last = 0x1_0000_0000
        batch = [Touch(last - 4, R4), Touch(last - 1, W1, 9), Touch(last - 2, R2)]
        assert bench.touch(batch).run() == []
        assert mailbox.decode_touches(bench.view, 3) == [0x0403_0201, 0, 0x0903]


def test_mmio_exits_and_goes_on_with_the_hosts_data(anywhere: Bench) -> None:
    batch = [Touch(0x20_0000, code) for code in (R1, R2, R4)]
    batch += [Touch(0x20_0010, code, 0x4433_2211) for code in (W1, W2, W4)]
    exits = anywhere.touch(batch).run(mmio_data=b"\xa1\xb2\xc3\xd4")
    assert accesses(exits) == [
        (0x20_0000, 1),
        (0x20_0000, 2),
        (0x20_0000, 4),
        (0x20_0010, b"\x11"),
        (0x20_0010, b"\x11\x22"),
        (0x20_0010, b"\x11\x22\x33\x44"),
    ]
    assert mailbox.decode_touches(anywhere.view, 6) == [0xA1, 0xB2A1, 0xD4C3_B2A1, 0, 0, 0]


def test_rip_tells_the_touch_of_each_mmio_exit(anywhere: Bench) -> None:
    anywhere.add(1, 0x10_0000, PAGE)
    inside, outside = 0x10_0000, 0x20_0000
    batch = [Touch(outside, code) for code in Access]
    batch += [Touch(inside, R4), Touch(outside, W4), Touch(outside, R4), Touch(outside, R1)]
    anywhere.touch(batch)
    indices = []
    while isinstance(anywhere.vcpu.run(), Mmio):
        indices.append(mailbox.touch_at(anywhere.vcpu.get_rip()))
    assert indices == [0, 1, 2, 3, 4, 5, 7, 8, 9]


def test_touch_across_slot_and_hole_is_split(anywhere: Bench) -> None:
    memory = anywhere.add(1, 0x10_0000, PAGE)
    memory.write(PAGE - 2, b"\x77\x88")
    end = 0x10_0000 + PAGE
    exits = anywhere.touch([Touch(end - 2, R4), Touch(end - 1, W4, 0x4433_2211)]).run(b"\x01\x02")
    assert accesses(exits) == [(end, 2), (end, b"\x22\x33\x44")]
    assert mailbox.decode_touches(anywhere.view, 2) == [0x0201_8877, 0]
    assert memory.read(PAGE - 2, 2) == b"\x77\x11"


def test_touch_across_two_slots(anywhere: Bench) -> None:
    low = anywhere.add(1, 0x10_0000, PAGE)
    high = anywhere.add(2, 0x10_0000 + PAGE, PAGE)
    gpa = 0x10_0000 + PAGE - 1
    assert anywhere.touch([Touch(gpa, W4, 0x4433_2211), Touch(gpa, R4)]).run() == []
    assert mailbox.decode_touches(anywhere.view, 2) == [0, 0x4433_2211]
    assert (low.read(PAGE - 1, 1), high.read(0, 4)) == (b"\x11", b"\x22\x33\x44\x00")


def test_write_to_a_readonly_slot_exits(anywhere: Bench) -> None:
    memory = anywhere.add(1, 0x10_0000, PAGE, flags=MemFlag.READONLY)
    memory.write(0, b"\x01\x02\x03\x04")
    batch = [Touch(0x10_0000, W4, 0x9988_7766), Touch(0x10_0000, R4)]
    assert accesses(anywhere.touch(batch).run()) == [(0x10_0000, b"\x66\x77\x88\x99")]
    assert mailbox.decode_touches(anywhere.view, 2) == [0, 0x0403_0201]
    assert memory.read(0, 4) == b"\x01\x02\x03\x04"


def test_touch_given_up_is_skipped(anywhere: Bench) -> None:
    memory = anywhere.add(1, 0x10_0000, PAGE)
    memory.write(0, b"\x01\x02\x03\x04")
    anywhere.touch([Touch(0x20_0000, R4), Touch(0x10_0000, R4)])
    assert isinstance(anywhere.vcpu.run(), Mmio)
    anywhere.vcpu.complete_mmio_read(b"\xff\xff\xff\xff")
    anywhere.vcpu.finish_exit()
    index = mailbox.touch_at(anywhere.vcpu.get_rip())
    anywhere.vcpu.enter_big_real_mode(anywhere.gpa, mailbox.touch_offset(index + 1))
    assert anywhere.run() == []
    assert mailbox.decode_touches(anywhere.view, 2) == [0, 0x0403_0201]


@pytest.mark.parametrize("code", [Access.WRITE_1, Access.WRITE_2, Access.WRITE_4])
def test_sweep_writes_over_slot_borders(anywhere: Bench, code: Access) -> None:
    memories = [anywhere.add(1 + i, 0x10_0000 + i * 2 * PAGE, 2 * PAGE) for i in range(3)]
    width = image.WIDTHS[code]
    count = (4 * PAGE - 16) // width
    # The elements straddle the borders where they are wider than a byte.
    first = PAGE + 8 - width // 2
    assert anywhere.sweep([Sweep(0x10_0000 + first, code, count, 0x4433_2211)]).run() == []
    expected = bytearray(6 * PAGE)
    expected[first : first + count * width] = bytes.fromhex("11223344")[:width] * count
    assert b"".join(memory.read(0, 2 * PAGE) for memory in memories) == bytes(expected)
    assert anywhere.left_undone(1) == [0]


@pytest.mark.parametrize("code", [Access.READ_1, Access.READ_2, Access.READ_4])
def test_sweep_reads_over_a_slot_border(anywhere: Bench, code: Access) -> None:
    content = bytes(i * 7 % 251 for i in range(2 * PAGE))
    anywhere.add(1, 0x10_0000, PAGE).write(0, content[:PAGE])
    anywhere.add(2, 0x10_0000 + PAGE, PAGE).write(0, content[PAGE:])
    width = image.WIDTHS[code]
    size_bytes = (PAGE // width) * width
    first = PAGE // 2 - 1
    sweep = Sweep(0x10_0000 + first, code, size_bytes // width, buffer_offset=4)
    assert anywhere.sweep([sweep]).run() == []
    buffer = bytes(mailbox.sweep_buffer(anywhere.view))
    assert buffer[4 : 4 + size_bytes] == content[first : first + size_bytes]
    assert not any(buffer[:4] + buffer[4 + size_bytes :])


def test_sweep_into_a_hole_exits_for_each_element(anywhere: Bench) -> None:
    memory = anywhere.add(1, 0x10_0000, PAGE)
    end = 0x10_0000 + PAGE
    write = Sweep(end - 2, Access.WRITE_1, 4, value=0x55)
    read = Sweep(end - 2, Access.READ_2, 3)
    exits = anywhere.sweep([write, read]).run(b"\xaa\xbb")
    assert accesses(exits) == [(end, b"\x55"), (end + 1, b"\x55"), (end, 2), (end + 2, 2)]
    assert memory.read(PAGE - 3, 3) == b"\0\x55\x55"
    assert bytes(mailbox.sweep_buffer(anywhere.view)[:6]) == b"\x55\x55\xaa\xbb\xaa\xbb"


def test_next_batch_of_sweeps_without_setting_registers(anywhere: Bench) -> None:
    memory = anywhere.add(1, 0x10_0000, PAGE)
    sweeps = [Sweep(0x10_0000 + i, Access.WRITE_1, 1, i + 1) for i in range(mailbox.MAX_SWEEPS)]
    assert anywhere.sweep(sweeps).run() == []
    assert memory.read(0, len(sweeps)) == bytes(range(1, len(sweeps) + 1))
    assert anywhere.sweep_under_way() == len(sweeps)
    mailbox.encode_sweeps(anywhere.view, anywhere.gpa, [Sweep(0x10_0000, Access.WRITE_4, 1, 0)])
    assert anywhere.run() == []
    assert memory.read(0, 5) == b"\0\0\0\0\x05"


def test_sweep_given_up_is_skipped(anywhere: Bench) -> None:
    memory = anywhere.add(1, 0x10_0000, PAGE)
    hole = Sweep(0x10_0000 + PAGE - 2, Access.WRITE_1, 4, 0x55)
    anywhere.sweep([hole, Sweep(0x10_0000, Access.WRITE_1, 4, 0x66)])
    assert isinstance(anywhere.vcpu.run(), Mmio)
    assert anywhere.sweep_under_way() == 0
    anywhere.vcpu.finish_exit()
    anywhere.vcpu.enter_big_real_mode(anywhere.gpa, image.SWEEP_SKIP)
    assert anywhere.run() == []
    assert anywhere.left_undone(2) == [4, 0]
    assert (memory.read(0, 5), memory.read(PAGE - 2, 2)) == (b"\x66" * 4 + b"\0", b"\x55\x55")


def put_stub(memory: HostMapping, page: int, identity: int) -> None:
    memory.write(page * PAGE + content.STUB_OFFSET, content.stub(identity))


def executed(leaving: VcpuExit) -> int | None:
    """Return the identity that a page's stub answered; None for any other exit."""
    match leaving:
        case Io(port=image.EXECUTED_PORT, data=data, is_write=True):
            return int.from_bytes(data, "little")
        case _:
            return None


@pytest.mark.parametrize("gpa", [0, 0x10_0000, 0xFFFE_E000])
def test_execute_answers_the_pages_identity(bench: Bench, gpa: int) -> None:
    memory = bench.add(1, gpa, 2 * PAGE)
    put_stub(memory, 0, 0xCAFE_F00D)
    put_stub(memory, 1, 0x8000_0001)
    assert executed(bench.execute(gpa)) == 0xCAFE_F00D
    assert executed(bench.execute(gpa + PAGE)) == 0x8000_0001


def test_execute_after_a_move(bench: Bench) -> None:
    memory = bench.add(1, 0x10_0000, PAGE)
    put_stub(memory, 0, 0xCAFE_F00D)
    assert executed(bench.execute(0x10_0000)) == 0xCAFE_F00D
    bench.vm.set_user_memory_region(1, 0, 0x20_0000, PAGE, HostAddress(memory, 0))
    assert executed(bench.execute(0x20_0000)) == 0xCAFE_F00D
    assert executed(bench.execute(0x10_0000)) is None


def test_execute_in_a_hole_and_then_in_a_slot(bench: Bench) -> None:
    put_stub(bench.add(1, 0x10_0000, PAGE), 0, 0xCAFE_F00D)
    assert executed(bench.execute(0x20_0000)) is None
    assert executed(bench.execute(0x10_0000)) == 0xCAFE_F00D


def test_guests_take_turns_on_one_vcpu(bench: Bench) -> None:
    memory = bench.add(1, 0x10_0000, PAGE)
    assert bench.touch([Touch(0x10_0000, W4, 0x11)]).run() == []
    assert bench.sweep([Sweep(0x10_0001, Access.WRITE_1, 3, 0x22)]).run() == []
    put_stub(memory, 0, 0xCAFE_F00D)
    assert executed(bench.execute(0x10_0000)) == 0xCAFE_F00D
    assert bench.touch([Touch(0x10_0000, R4)]).run() == []
    assert mailbox.decode_touches(bench.view, 1) == [0x2222_2211]
