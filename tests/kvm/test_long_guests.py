"""The guests of 64-bit mode on the real kernel, at gpas that real mode does not reach."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise

import pytest

from guests import image, mailbox
from guests.image import Access
from guests.windows import Windows
from kvm_abi.uapi import MemFlag
from tests.touches import Touch
from vmm.kvm.exits import Io, Mmio, Shutdown, VcpuExit
from vmm.kvm.memory import HostAddress, HostMapping
from vmm.kvm.registers import Registers
from vmm.kvm.system import Kvm
from vmm.scenario import content
from vmm.scenario.operations import GUEST_SIZE_BYTES

PAGE = 0x1000
GUEST_GPA = 0x1_0000
GIB = 1 << 30
FOUR_GIB = 4 * GIB

R1, R2, R4 = Access.READ_1, Access.READ_2, Access.READ_4
W1, W2, W4 = Access.WRITE_1, Access.WRITE_2, Access.WRITE_4


class Bench:
    """A VM with one vCPU in 64-bit mode; memory is added slot by slot."""

    def __init__(self, stack: ExitStack) -> None:
        # Entered before the VM, and so closed after it: a mapping outlives its slots.
        self._mappings = stack.enter_context(ExitStack())
        kvm = stack.enter_context(Kvm.open())
        self.vm = stack.enter_context(kvm.create_vm())
        self.vcpu = self.vm.create_vcpu(0)
        self.vcpu.set_cpuid(kvm.supported_cpuid())
        guest = self.add(0, GUEST_GPA, GUEST_SIZE_BYTES)
        guest.write(0, image.code())
        self.view = guest.view()
        self.windows = Windows(self.view, GUEST_GPA)

    def add(self, slot: int, gpa: int, size_bytes: int, flags: int = 0) -> HostMapping:
        memory = self._mappings.enter_context(HostMapping.anonymous(size_bytes))
        self.vm.set_user_memory_region(slot, flags, gpa, size_bytes, HostAddress(memory, 0))
        return memory

    def encode(self, touches: Sequence[Touch]) -> None:
        mailbox.encode_long_touches(
            self.view, [t._replace(gpa=self.windows.address(t.gpa)) for t in touches]
        )

    def touch(self, touches: Sequence[Touch], mmio_data: bytes = b"") -> list[Mmio]:
        self.encode(touches)
        self.vcpu.enter_long_mode(self.windows.cr3, Registers(rip=image.TOUCH_ENTRY))
        return self.run(mmio_data)

    def sweep(self, code: Access, destination: int, source: int, count: int) -> list[Mmio]:
        registers = Registers(
            rip=image.LONG_SWEEPS[code], rdi=destination, rsi=source, rcx=count, rax=0x4433_2211
        )
        self.vcpu.enter_long_mode(self.windows.cr3, registers)
        return self.run(b"\xaa\xbb\xcc\xdd")

    def run(self, mmio_data: bytes = b"") -> list[Mmio]:
        """Run to the end of the batch, and return the MMIO exits on the way."""
        exits: list[Mmio] = []
        while isinstance(leaving := self.vcpu.run(), Mmio):
            exits.append(leaving)
            if not leaving.is_write:
                self.vcpu.complete_mmio_read(mmio_data[: len(leaving.data)])
        assert isinstance(leaving, Io)
        assert leaving.port == image.END_PORT
        return exits

    def execute(self, gpa: int) -> VcpuExit:
        rip = self.windows.address(gpa) + content.STUB_OFFSET
        self.vcpu.enter_long_mode(self.windows.cr3, Registers(rip=rip))
        return self.vcpu.run()


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack)


@pytest.fixture(params=[FOUR_GIB, 5 * GIB - PAGE, 64 * GIB - 2 * PAGE], ids=hex)
def gpa(request: pytest.FixtureRequest) -> int:
    place: int = request.param
    return place


@pytest.mark.parametrize("offset", [0, 8, PAGE - 4, PAGE - 1, PAGE - 3])
def test_read_of_each_width(bench: Bench, gpa: int, offset: int) -> None:
    bench.add(1, gpa, 2 * PAGE).write(offset, bytes.fromhex("fedcba98"))
    assert bench.touch([Touch(gpa + offset, code) for code in (R1, R2, R4)]) == []
    assert mailbox.decode_touches(bench.view, 3) == [0xFE, 0xDCFE, 0x98BA_DCFE]


@pytest.mark.parametrize("offset", [1, PAGE - 4, PAGE - 1, PAGE - 3])
@pytest.mark.parametrize("code", [W1, W2, W4])
def test_write_of_each_width_changes_no_other_byte(
    bench: Bench, gpa: int, offset: int, code: Access
) -> None:
    memory = bench.add(1, gpa, 2 * PAGE)
    width = image.WIDTHS[code]
    assert bench.touch([Touch(gpa + offset, code, 0x98BA_DCFE)]) == []
    expected = bytearray(2 * PAGE)
    expected[offset : offset + width] = bytes.fromhex("fedcba98")[:width]
    assert memory.read(0, 2 * PAGE) == bytes(expected)


def test_full_mailbox_and_next_batch_without_setting_registers(bench: Bench, gpa: int) -> None:
    bench.add(1, gpa, 8 * PAGE)
    writes = [Touch(gpa + 4 * i, W4, i + 1) for i in range(mailbox.MAX_TOUCHES)]
    assert bench.touch(writes) == []
    bench.encode([Touch(write.gpa, R4) for write in writes])
    assert bench.run() == []
    values = mailbox.decode_touches(bench.view, len(writes))
    assert values == [write.value for write in writes]


def test_mmio_exits_at_the_gpa_and_goes_on_with_the_hosts_data(bench: Bench, gpa: int) -> None:
    batch = [Touch(gpa, code) for code in (R1, R2, R4)]
    batch += [Touch(gpa + 16, code, 0x4433_2211) for code in (W1, W2, W4)]
    exits = bench.touch(batch, b"\xa1\xb2\xc3\xd4")
    assert [(each.gpa, each.data if each.is_write else len(each.data)) for each in exits] == [
        (gpa, 1),
        (gpa, 2),
        (gpa, 4),
        (gpa + 16, b"\x11"),
        (gpa + 16, b"\x11\x22"),
        (gpa + 16, b"\x11\x22\x33\x44"),
    ]
    assert mailbox.decode_touches(bench.view, 6) == [0xA1, 0xB2A1, 0xD4C3_B2A1, 0, 0, 0]


def test_rip_tells_the_touch_of_each_mmio_exit(bench: Bench, gpa: int) -> None:
    bench.add(1, gpa, PAGE)
    outside = gpa + 4 * PAGE
    codes = [*Access, None, W4, R4, R1]
    bench.encode([Touch(outside, code) if code is not None else Touch(gpa, R4) for code in codes])
    bench.vcpu.enter_long_mode(bench.windows.cr3, Registers(rip=image.TOUCH_ENTRY))
    indices = []
    while isinstance(bench.vcpu.run(), Mmio):
        indices.append(mailbox.touch_at(bench.vcpu.get_rip()))
    assert indices == [0, 1, 2, 3, 4, 5, 7, 8, 9]


def test_touch_across_the_4_gib_border(bench: Bench) -> None:
    low = bench.add(1, FOUR_GIB - PAGE, PAGE)
    high = bench.add(2, FOUR_GIB, PAGE)
    border = FOUR_GIB - 2
    assert bench.touch([Touch(border, W4, 0x4433_2211), Touch(border, R4)]) == []
    assert mailbox.decode_touches(bench.view, 2) == [0, 0x4433_2211]
    assert (low.read(PAGE - 2, 2), high.read(0, 2)) == (b"\x11\x22", b"\x33\x44")


def test_touch_across_slot_and_hole_is_split(bench: Bench, gpa: int) -> None:
    memory = bench.add(1, gpa, PAGE)
    end = gpa + PAGE
    (exit_,) = bench.touch([Touch(end - 1, W4, 0x4433_2211)])
    assert (exit_.gpa, exit_.data) == (end, b"\x22\x33\x44")
    assert memory.read(PAGE - 1, 1) == b"\x11"


def test_write_to_a_readonly_slot_exits(bench: Bench, gpa: int) -> None:
    memory = bench.add(1, gpa, PAGE, flags=MemFlag.READONLY)
    memory.write(0, b"\x01\x02\x03\x04")
    exits = bench.touch([Touch(gpa, W4, 0x9988_7766), Touch(gpa, R4)])
    assert [(each.gpa, each.data) for each in exits] == [(gpa, b"\x66\x77\x88\x99")]
    assert mailbox.decode_touches(bench.view, 2) == [0, 0x0403_0201]


def test_a_vcpu_that_has_cached_a_place_sees_it_move(bench: Bench, gpa: int) -> None:
    memory = bench.add(1, gpa, PAGE)
    memory.write(0, b"\x01\x02\x03\x04")
    places = [gpa, 0x10_0000, gpa + 16 * GIB, gpa]
    for here, there in pairwise(places):
        assert bench.touch([Touch(here, R4)]) == []
        bench.vm.set_user_memory_region(1, 0, there, PAGE, HostAddress(memory, 0))
        assert [
            each.gpa for each in bench.touch([Touch(here, R4), Touch(there, R4)], bytes(4))
        ] == [here]
        assert mailbox.decode_touches(bench.view, 2) == [0, 0x0403_0201]


@pytest.mark.parametrize("code", [Access.WRITE_1, Access.WRITE_2, Access.WRITE_4])
def test_sweep_writes_over_slot_borders(bench: Bench, gpa: int, code: Access) -> None:
    memories = [bench.add(1 + i, gpa + i * PAGE, PAGE) for i in range(3)]
    width = image.WIDTHS[code]
    count = (2 * PAGE - 16) // width
    first = 8 - width // 2
    assert bench.sweep(code, bench.windows.address(gpa) + first, 0, count) == []
    expected = bytearray(3 * PAGE)
    expected[first : first + count * width] = bytes.fromhex("11223344")[:width] * count
    assert b"".join(memory.read(0, PAGE) for memory in memories) == bytes(expected)


@pytest.mark.parametrize("code", [Access.READ_1, Access.READ_2, Access.READ_4])
def test_sweep_reads_slot_and_hole(bench: Bench, gpa: int, code: Access) -> None:
    bench.add(1, gpa, PAGE).write(PAGE - 4, b"\x01\x02\x03\x04")
    width = image.WIDTHS[code]
    source = bench.windows.address(gpa) + PAGE - 4
    exits = bench.sweep(code, mailbox.SWEEP_BUFFER_OFFSET, source, 8 // width)
    assert [each.gpa for each in exits] == list(range(gpa + PAGE, gpa + PAGE + 4, width))
    answered = b"\xaa\xbb\xcc\xdd"[:width] * (4 // width)
    assert bytes(mailbox.sweep_buffer(bench.view)[:8]) == b"\x01\x02\x03\x04" + answered


def test_execute_answers_the_pages_identity_and_cannot_fetch_from_a_hole(
    bench: Bench, gpa: int
) -> None:
    memory = bench.add(1, gpa, PAGE)
    memory.write(content.STUB_OFFSET, content.stub(0xCAFE_F00D))
    answer = Io(image.EXECUTED_PORT, bytes.fromhex("0df0feca"), True, 4, 1)
    assert bench.execute(gpa) == answer
    assert not isinstance(bench.execute(gpa + PAGE), Io)
    assert bench.execute(gpa) == answer


def test_an_address_without_a_window_ends_the_run(bench: Bench) -> None:
    mailbox.encode_long_touches(bench.view, [Touch(0x40_0000, R4)])
    bench.vcpu.enter_long_mode(bench.windows.cr3, Registers(rip=image.TOUCH_ENTRY))
    assert bench.vcpu.run() == Shutdown()


def test_the_modes_take_turns_on_one_vcpu(bench: Bench, gpa: int) -> None:
    bench.add(1, gpa, PAGE)
    bench.add(2, 0x10_0000, PAGE)
    for turn in range(3):
        assert bench.touch([Touch(gpa, W4, turn), Touch(gpa, R4)]) == []
        assert mailbox.decode_touches(bench.view, 2) == [0, turn]
        mailbox.encode_touches(bench.view, [Touch(0x10_0000, R4), Touch(0x10_0000, W4, turn + 1)])
        bench.vcpu.enter_big_real_mode(GUEST_GPA, image.TOUCH_ENTRY)
        assert bench.run() == []
        assert mailbox.decode_touches(bench.view, 1) == [turn]
