import errno
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from msgspec.structs import replace

from kvm_abi import raw
from kvm_abi.raw import KvmError, PassedMmio, WrongAnswerError
from kvm_abi.uapi import Cap, MemFlag
from vmm.kvm.exits import Hlt, Io, Mmio, VcpuExit
from vmm.kvm.memory import HostAddress, HostMapping
from vmm.kvm.registers import Registers
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import Vm
from vmm.library.guest import assemble

PAGE = 4096
BASE = 0xFFFF0000
HOLE = 0x200000
HLT = b"\xf4"
SPIN = b"\xeb\xfe"  # jmp to itself
LOAD_FROM_HOLE = b"\x66\x67\xa1" + HOLE.to_bytes(4, "little")  # mov eax, [HOLE]
STORE_TO_HOLE = b"\x66\x67\xa3" + HOLE.to_bytes(4, "little")  # mov [HOLE], eax


@pytest.fixture
def code() -> Iterator[HostMapping]:
    """One page for the guest's code, mapped at gpa BASE."""
    with HostMapping.anonymous(PAGE) as mapping:
        yield mapping


@pytest.fixture
def vm(kvm: Kvm, code: HostMapping) -> Iterator[Vm]:
    with kvm.create_vm() as machine:
        machine.set_user_memory_region(0, 0, BASE, PAGE, HostAddress(code, 0))
        yield machine


@pytest.fixture
def vcpu(vm: Vm) -> Vcpu:
    cpu = vm.create_vcpu(0)
    cpu.enter_big_real_mode(BASE, 0)
    return cpu


def test_a_port_access(vcpu: Vcpu, code: HostMapping) -> None:
    code.write(0, b"\xb0\x41\xe6\xe0")  # mov al, 0x41; out 0xe0, al
    assert vcpu.run() == Io(0xE0, b"A", True, 1, 1)


MANY_EXITS = """
again:
    mov $0x1234, %ax
    out %al, $0x10
    mov $0x1235, %ax
    out %al, $0x10
    out %al, $0x11
    out %ax, $0x10
    out %eax, $0x10
    in $0x10, %al
    in $0x10, %eax
    mov $0x200000, %ebx
    mov (%ebx), %al
    mov 1(%ebx), %al
    mov (%ebx), %ax
    mov (%ebx), %ecx
    mov %cl, (%ebx)
    mov $0x80, %si
    mov $3, %cx
    mov $0x10, %dx
    cs rep outsb
    mov $8, %cx
    cs rep outsb
    jmp again
"""


@pytest.mark.parametrize("most", [1024, 3])
def test_an_exit_that_came_before_is_what_it_was(
    vcpu: Vcpu, code: HostMapping, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: dict[int, VcpuExit] = {}
    monkeypatch.setattr("vmm.kvm.vcpu._KNOWN_EXITS", known)
    monkeypatch.setattr("vmm.kvm.vcpu._MOST_KNOWN_EXITS", most)
    code.write(0, assemble(MANY_EXITS).ljust(0x80, HLT) + b"abcdefgh")
    seen = []
    for _ in range(80):
        seen.append(vcpu.run())
        assert seen[-1] == vcpu.last_exit()
    accesses = [each for each in seen if isinstance(each, Io | Mmio)]
    assert accesses == seen
    assert len(set(seen)) >= 14
    assert 3 <= len(known) <= most
    assert min(known) >= raw.EXIT_CODES
    assert len(set(known.values())) == len(known)


def test_mmio_in_both_directions(vcpu: Vcpu, code: HostMapping) -> None:
    code.write(0, LOAD_FROM_HOLE + STORE_TO_HOLE + HLT)
    assert vcpu.run() == Mmio(HOLE, bytes(4), False)
    vcpu.complete_mmio_read(b"\x78\x56\x34\x12")
    assert vcpu.run() == Mmio(HOLE, b"\x78\x56\x34\x12", True)
    assert vcpu.run() == Hlt()
    assert vcpu.get_regs().rax == 0x12345678


def test_rip_at_an_exit_needs_no_system_call(vcpu: Vcpu, code: HostMapping) -> None:
    code.write(0, LOAD_FROM_HOLE + STORE_TO_HOLE + HLT)
    rips = []
    for _ in range(3):
        vcpu.run()
        assert vcpu.exit_rip() == vcpu.get_rip()
        rips.append(vcpu.exit_rip())
    assert rips == sorted(rips)
    assert rips[2] == len(LOAD_FROM_HOLE + STORE_TO_HOLE + HLT)


@pytest.mark.parametrize("shares_registers", [True, False])
def test_mmio_is_passed_with_rip_and_an_answer(
    vcpu: Vcpu, code: HostMapping, shares_registers: bool
) -> None:
    code.write(0, LOAD_FROM_HOLE + STORE_TO_HOLE + b"\xe6\xe0" + HLT)  # out 0xe0, al
    vcpu.run()  # How each instruction reports RIP, where it is read or written.
    rips = [vcpu.get_rip()]
    vcpu.run()
    rips.append(vcpu.get_rip())
    vcpu.finish_exit()
    vcpu.enter_big_real_mode(BASE, 0)
    if not shares_registers:
        vcpu._exit_regs = None
    passed: list[PassedMmio] = []
    assert vcpu.run_past_mmio(0xA7, passed, end_port=0xE0, most=1000) is None
    assert passed == [
        (rips[0], HOLE, b"\xa7" * 4, False),
        (rips[1], HOLE, b"\xa7" * 4, True),
    ]
    assert vcpu.run_past_mmio(0xA7, passed, end_port=0xE0, most=1000) == Hlt()
    assert len(passed) == 2


def test_a_port_that_is_not_the_end_is_an_exit(vcpu: Vcpu, code: HostMapping) -> None:
    code.write(0, b"\xb0\x41\xe6\xe0")
    assert vcpu.run_past_mmio(0, [], end_port=0xE1, most=1000) == Io(0xE0, b"A", True, 1, 1)


def test_more_mmio_is_passed_than_is_told_at_once(vcpu: Vcpu, code: HostMapping) -> None:
    code.write(0, STORE_TO_HOLE * 200 + HLT)
    passed: list[PassedMmio] = []
    assert vcpu.run_past_mmio(0, passed, end_port=0xE0, most=1000) == Hlt()
    assert [(gpa, data, write) for _, gpa, data, write in passed] == [(HOLE, bytes(4), True)] * 200
    assert len({rip for rip, *_ in passed}) == 200


def test_mmio_without_end_is_given_up(vcpu: Vcpu, code: HostMapping) -> None:
    code.write(0, STORE_TO_HOLE + b"\xeb" + bytes([256 - len(STORE_TO_HOLE) - 2]))  # jmp to 0
    passed: list[PassedMmio] = []
    assert vcpu.run_past_mmio(0, passed, end_port=0xE0, most=1000) == Mmio(HOLE, bytes(4), True)
    assert 1000 <= len(passed) < 1100


def test_what_was_passed_before_an_error_is_told(vcpu: Vcpu, code: HostMapping) -> None:
    code.write(0, STORE_TO_HOLE + SPIN)
    passed: list[PassedMmio] = []
    with pytest.raises(KvmError) as caught, interrupted_soon():
        vcpu.run_past_mmio(0, passed, end_port=0xE0, most=1000)
    assert caught.value.errno == errno.EINTR
    assert [gpa for _, gpa, *_ in passed] == [HOLE]


@contextmanager
def interrupted_soon() -> Iterator[None]:
    """Send this process a signal in a moment, to which nobody answers."""
    previous = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_an_mmio_read_is_completed_with_its_own_length(vcpu: Vcpu, code: HostMapping) -> None:
    code.write(0, LOAD_FROM_HOLE)
    vcpu.run()
    with pytest.raises(ValueError, match="2 bytes for an MMIO read of 4"):
        vcpu.complete_mmio_read(b"\1\2")


def test_nothing_is_completed_but_the_read_that_is_pending(vcpu: Vcpu, code: HostMapping) -> None:
    code.write(0, assemble("mov %al, 0x200000; in $0x60, %al; out %al, $0x60; mov 0x200000, %al"))
    no_mmio, no_port = "no MMIO read is pending", "no read of a port is pending"
    with pytest.raises(ValueError, match=no_mmio):
        vcpu.complete_mmio_read(b"")
    for mmio_error, port_error in ((no_mmio, no_port), (no_mmio, ""), (no_mmio, no_port)):
        vcpu.run()
        with pytest.raises(ValueError, match=mmio_error):
            vcpu.complete_mmio_read(b"A")
        with pytest.raises(ValueError, match=port_error or "2 bytes for a port read of 1"):
            vcpu.complete_port_read(b"AB")
    vcpu.run()
    with pytest.raises(ValueError, match=no_port):
        vcpu.complete_port_read(b"A")
    vcpu.complete_mmio_read(b"A")


def test_finish_exit_keeps_an_immediate_exit_that_was_asked_for(
    vcpu: Vcpu, code: HostMapping
) -> None:
    code.write(0, LOAD_FROM_HOLE + HLT)
    vcpu.run()
    vcpu.request_immediate_exit()
    vcpu.finish_exit()
    with pytest.raises(KvmError, match="EINTR"):
        vcpu.run()
    vcpu.request_immediate_exit(False)
    assert vcpu.run() == Hlt()


@pytest.mark.parametrize("base", [-1, 1 << 32, 1 << 40])
def test_real_mode_does_not_begin_beyond_its_reach(vcpu: Vcpu, base: int) -> None:
    with pytest.raises(ValueError, match="real mode reaches the first 4 GiB"):
        vcpu.enter_big_real_mode(base, 0)
    with pytest.raises(ValueError, match="real mode reaches the first 4 GiB"):
        vcpu.enter_flat_real_mode(base, Registers())


def test_finish_exit_completes_without_running_on(vcpu: Vcpu, code: HostMapping) -> None:
    code.write(0, LOAD_FROM_HOLE + STORE_TO_HOLE)
    vcpu.run()
    vcpu.complete_mmio_read(b"\1\0\0\0")
    vcpu.finish_exit()
    assert (vcpu.get_regs().rax, vcpu.get_rip()) == (1, len(LOAD_FROM_HOLE))
    assert vcpu.run() == Mmio(HOLE, b"\1\0\0\0", True)


def test_finish_exit_completes_both_halves_of_an_access(vcpu: Vcpu, code: HostMapping) -> None:
    end = HOLE + PAGE - 2
    code.write(0, b"\x66\x67\xa1" + end.to_bytes(4, "little") + HLT)
    assert vcpu.run() == Mmio(end, bytes(2), False)
    vcpu.finish_exit()
    code.write(0x10, HLT)
    vcpu.set_rip(0x10)
    assert vcpu.run() == Hlt()
    assert vcpu.get_rip() == 0x11


def test_big_real_mode_reaches_every_address(vm: Vm, vcpu: Vcpu, code: HostMapping) -> None:
    with HostMapping.anonymous(PAGE) as data, vm:
        data.write(0, b"\xef\xbe\xad\xde")
        for slot, gpa in enumerate((0, HOLE, 0x7FFFF000, 0xFFFEF000), start=1):
            vm.set_user_memory_region(slot, 0, gpa, PAGE, HostAddress(data, 0))
            code.write(0, b"\x66\x67\xa1" + gpa.to_bytes(4, "little") + HLT)
            vcpu.enter_big_real_mode(BASE, 0)
            assert vcpu.run() == Hlt()
            assert vcpu.get_regs().rax == 0xDEADBEEF


def test_code_runs_wherever_its_slot_is(vm: Vm, vcpu: Vcpu, code: HostMapping) -> None:
    code.write(0x800, b"\x0e\x58" + HLT)  # push cs; pop ax: the stack is the code's segment
    for gpa in (0x10000, 0x7FFF0000):
        vm.set_user_memory_region(0, 0, gpa, PAGE, code.address)
        vcpu.enter_big_real_mode(gpa, 0x800)
        vcpu.set_regs(replace(vcpu.get_regs(), rsp=0x700))
        assert vcpu.run() == Hlt()
        assert vcpu.get_regs().rax == gpa >> 4 & 0xFFFF


def test_registers_keep_what_is_set(vcpu: Vcpu) -> None:
    names = [name for name in Registers.__struct_fields__ if name not in ("rip", "rflags")]
    wanted = Registers(**{name: 0x1000 + i for i, name in enumerate(names)}, rip=0x123)
    vcpu.set_regs(wanted)
    assert vcpu.get_regs() == wanted
    vcpu.set_rip(0x456)
    assert vcpu.get_regs() == replace(wanted, rip=0x456)


def test_sregs_keep_what_is_set(vcpu: Vcpu) -> None:
    sregs = vcpu.get_sregs()
    sregs.fs.base = 0x12345000
    vcpu.set_sregs(sregs)
    assert vcpu.get_sregs().fs.base == 0x12345000


def test_the_guest_s_writes_are_logged(vm: Vm, vcpu: Vcpu, code: HostMapping) -> None:
    with HostMapping.anonymous(70 * PAGE) as data, vm:
        gpa = HOLE - 66 * PAGE
        vm.set_user_memory_region(1, MemFlag.LOG_DIRTY_PAGES, gpa, 70 * PAGE, HostAddress(data, 0))
        code.write(0, STORE_TO_HOLE + HLT)
        assert vcpu.run() == Hlt()
        log = vm.get_dirty_log(1, 70)
        assert len(log) == 16
        assert int.from_bytes(log, "little") == 1 << 66
        assert vm.get_dirty_log(1, 70) == bytes(16)


def test_immediate_exit_is_an_interrupted_run(vcpu: Vcpu, code: HostMapping) -> None:
    code.write(0, HLT)
    vcpu.request_immediate_exit()
    with pytest.raises(KvmError) as caught:
        vcpu.run()
    assert caught.value.errno == errno.EINTR
    vcpu.request_immediate_exit(False)
    assert vcpu.run() == Hlt()


def test_other_threads_run_while_a_guest_does(vcpu: Vcpu, code: HostMapping) -> None:
    """The guest spins until this thread, which needs the GIL, writes a `hlt` into its code."""
    code.write(0, b"\x67\xfe\x05" + (BASE + 0x800).to_bytes(4, "little"))  # inc byte [..800]
    code.write(7, SPIN)
    exits = []
    runner = threading.Thread(target=lambda: exits.append(vcpu.run()), daemon=True)
    runner.start()
    while code.read(0x800, 1) == b"\0":
        pass
    code.write(7, HLT)
    runner.join(timeout=10)
    assert exits == [Hlt()]


def test_a_signal_stops_a_spinning_guest(vcpu: Vcpu, code: HostMapping) -> None:
    code.write(0, b"\x67\xfe\x05" + (BASE + 0x800).to_bytes(4, "little") + SPIN)
    previous = signal.signal(signal.SIGUSR1, lambda *_: None)
    errors: list[int | None] = []

    def run() -> None:
        try:
            vcpu.run()
        except KvmError as error:
            errors.append(error.errno)

    runner = threading.Thread(target=run, daemon=True)
    try:
        runner.start()
        while code.read(0x800, 1) == b"\0":
            pass
        vcpu.request_immediate_exit()
        signal.pthread_kill(runner.ident or 0, signal.SIGUSR1)
        runner.join(timeout=10)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert errors == [errno.EINTR]


def test_registers_left_to_the_next_run_are_those_it_runs_with(
    vcpu: Vcpu, code: HostMapping
) -> None:
    code.write(0, HLT)
    code.write(0x20, b"\x66\x40" + HLT)  # inc eax
    assert vcpu.run() == Hlt()
    before = vcpu.get_regs()
    vcpu.enter_flat_real_mode(BASE, Registers(rip=0x20, rax=41, r15=7), at_run=True)
    assert vcpu.get_regs() == before
    assert vcpu.run() == Hlt()
    after = vcpu.exit_registers()
    assert (after.rax, after.r15, after.rip) == (42, 7, 0x23)
    assert after == vcpu.get_regs()
    vcpu.enter_flat_real_mode(BASE, Registers(rip=0x20), at_run=True)
    assert vcpu.get_regs() == after
    assert vcpu.run() == Hlt()
    assert (vcpu.exit_registers().rax, vcpu.exit_registers().rip) == (1, 0x23)


@pytest.mark.parametrize("before", [None, (0x2000, 0x7F), (0x1000, 0xFF)])
def test_a_mode_left_to_the_next_run_is_the_one_it_runs_in(
    vcpu: Vcpu, code: HostMapping, before: tuple[int, int] | None
) -> None:
    code.write(0, HLT)
    reset = vcpu.get_sregs()
    vcpu.enter_flat_real_mode(BASE, Registers(), (0x1000, 0xFF))
    asked = vcpu.get_sregs()
    vcpu.enter_flat_real_mode(BASE, Registers(), before)
    if before is None:
        vcpu.set_sregs(reset)
    vcpu.enter_flat_real_mode(BASE, Registers(), (0x1000, 0xFF), at_run=True)
    assert vcpu.run() == Hlt()
    assert raw.bytes_of(vcpu.get_sregs(), 300) == raw.bytes_of(asked, 300)


def test_a_vcpu_that_shares_no_registers_is_set_up_at_once(vcpu: Vcpu, code: HostMapping) -> None:
    code.write(0, HLT)
    vcpu._exit_regs = vcpu._next_sregs = None
    vcpu.enter_flat_real_mode(BASE, Registers(rcx=5), at_run=True)
    assert vcpu.exit_registers() == vcpu.get_regs() == Registers(rcx=5)


@pytest.mark.parametrize("page", [-1, 0, 1.5, 1 << 40])
def test_a_ring_of_writes_is_read_from_pages_that_are_shared(vcpu: Vcpu, page: int) -> None:
    with pytest.raises(ValueError, match="shares no ring at page"):
        vcpu.coalesced_writes(page)
    with pytest.raises(ValueError, match="shares no ring at page"):
        vcpu.set_coalesced_ring(page, 1)


@pytest.mark.parametrize("place", [0, 1])
def test_a_ring_of_writes_that_ends_nowhere_is_a_wrong_answer(kvm: Kvm, vm: Vm, place: int) -> None:
    page = kvm.check_extension(Cap.COALESCED_MMIO)
    if not page:
        pytest.skip("this KVM has no KVM_CAP_COALESCED_MMIO")
    vcpu = vm.create_vcpu(0)
    assert vcpu.coalesced_mmio(page) == []
    assert vcpu._memory is not None
    at = page * PAGE + 4 * place
    vcpu._memory[at : at + 4] = (100_000).to_bytes(4, "little")
    with pytest.raises(WrongAnswerError, match="a ring of 170 writes from "):
        vcpu.coalesced_mmio(page)
