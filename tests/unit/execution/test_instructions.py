"""What of the registers after an instruction is in its outcome."""

import pytest

from vmm.execution.instructions import Port, program, ran, registers_of
from vmm.kvm.exits import Io, Mmio
from vmm.kvm.registers import Registers
from vmm.scenario.history import Ran
from vmm.scenario.instruction_effects import ZF
from vmm.scenario.instructions import DATA_PORT, Mode
from vmm.scenario.operations import Instruction


@pytest.mark.parametrize(("mode", "last"), [("real", 0xFFFF_FFFE), ("long", 0xFFFF_FFFF_FFFF_FFFE)])
def test_a_pointer_may_go_past_zero(mode: Mode, last: int) -> None:
    operation = Instruction("rep-stos", 0, 2, down=True, mode=mode)
    assert ran(operation, Registers(), Registers(rdi=last), ()).di == -2
    assert ran(operation, Registers(rdi=last), Registers(), ()).di == 2


def test_upper_halves_do_not_count_in_real_mode() -> None:
    after = Registers(rax=0x5_0000_0001, rbx=2, rcx=3, rdx=4, rsp=0x1_0000_0010, rflags=0x242)
    operation = Instruction("push", 0x10)
    outcome = ran(operation, Registers(rsp=0x14), after, ())
    assert outcome == Ran(1, 2, 3, 4, sp=-4, flags=ZF)


def test_a_program_ends_with_the_exit_that_says_so() -> None:
    assert program(Instruction("push", 0x10)).hex() == "6653e6e0"


def test_bp_is_counted_from_what_the_instruction_makes_it_of() -> None:
    assert (
        ran(Instruction("popa", 0x100, value_high=3), Registers(rbp=3), Registers(rbp=5), ()).bp
        == 2
    )
    enter = Instruction("enter", 0x100, value_high=3)
    assert ran(enter, Registers(rsp=0x104, rbp=3), Registers(rbp=0x100), ()).bp == -4
    leave = Instruction("leave", 0x12345, 2)
    before = registers_of(leave, int)
    assert ran(leave, before, Registers(rbp=0x1FFFF), ()).bp == 0xFFFF
    assert ran(leave, before, Registers(rbp=0xFFFF), ()).bp != 0xFFFF


def test_a_port_gives_each_element_the_value_and_keeps_what_is_sent() -> None:
    given: list[bytes] = []
    source = Port(Instruction("rep-ins", 0x100, 2, value=0x5_1234, count=3))
    assert source.serve(Io(DATA_PORT, bytes(4), False, 2, 2), given.append)
    assert (given, source.taken) == ([b"\x34\x12\x34\x12"], 4)
    sink = Port(Instruction("rep-outs", 0x100, 1, count=3))
    assert sink.serve(Io(DATA_PORT, b"ab", True, 1, 2), given.append)
    assert sink.serve(Io(DATA_PORT, b"c", True, 1, 1), given.append)
    assert (sink.sent, len(given)) == (b"abc", 1)


@pytest.mark.parametrize(
    "leaving",
    [
        Mmio(DATA_PORT, b"a", True),
        Io(DATA_PORT + 1, b"a", True, 1, 1),
        Io(DATA_PORT, b"a", False, 1, 1),
        Io(DATA_PORT, b"ab", True, 2, 1),
        Io(DATA_PORT, b"a", True, 1, 2),
        Io(DATA_PORT, b"", True, 1, 0),
        Io(DATA_PORT, bytes(1000), True, 1, 1000),
    ],
)
def test_a_port_serves_nothing_else(leaving: Io | Mmio) -> None:
    assert not Port(Instruction("outs", 0x100, 1)).serve(leaving, lambda _: None)
