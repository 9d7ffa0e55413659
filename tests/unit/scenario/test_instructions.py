"""The table of instructions: its code is what an assembler makes of them, and it is whole."""

import shutil

import pytest

from guests import image
from vmm.library.guest import assemble
from vmm.scenario.instruction_operation import Width
from vmm.scenario.instructions import (
    CODE_OFFSET,
    INSTRUCTIONS,
    Mode,
    Row,
    accessed,
    instruction_problem,
    operands,
)
from vmm.scenario.operations import Instruction, Mapping, Scenario
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate

SOURCES = {
    "lock-cmpxchg": "lock cmpxchg{s} %{b}, (%{di})",
    "cmpxchg": "cmpxchg{s} %{b}, (%{di})",
    "lock-cmpxchg8b": "lock cmpxchg8b (%{di})",
    "lock-cmpxchg16b": "lock cmpxchg16b (%{di})",
    "cmpxchg8b": "cmpxchg8b (%{di})",
    "lock-xadd": "lock xadd{s} %{b}, (%{di})",
    "xadd": "xadd{s} %{b}, (%{di})",
    "xchg": "xchg{s} %{b}, (%{di})",
    "lock-or": "lock or{s} %{b}, (%{di})",
    "or": "or{s} %{b}, (%{di})",
    "lock-and": "lock and{s} %{b}, (%{di})",
    "and": "and{s} %{b}, (%{di})",
    "add": "add{s} %{b}, (%{di})",
    "lock-inc": "lock inc{s} (%{di})",
    "inc": "inc{s} (%{di})",
    "not": "not{s} (%{di})",
    "lock-bts": "lock bts{s} $0x1b, (%{di})",
    "bts": "bts{s} $0x1b, (%{di})",
    "lock-bts-register": "lock bts{s} %{b}, (%{di})",
    "bts-register": "bts{s} %{b}, (%{di})",
    "cmp": "cmp{s} %{b}, (%{di})",
    "load": "mov{s} (%{di}), %{b}",
    "store": "mov{s} %{b}, (%{di})",
    "load-vector": "movups (%{di}), %xmm0",
    "store-vector": "movups %xmm0, (%{di})",
    "push": "push{s} %{b}",
    "pushf": "pushf{s}",
    "push-memory": "push{s} (%{di})",
    "pop": "pop{s} %{b}",
    "pop-memory": "pop{s} (%{di})",
    "pusha": "pusha{s}",
    "popa": "popa{s}",
    "call": "call{s} 1f; 1:",
    "ret": "ret{s}",
    "enter": "enter{s} $0, $0",
    "leave": "leave{s}",
    "sgdt": "{o}sgdt (%{di})",
    "sidt": "{o}sidt (%{di})",
    "fxsave": "fxsave (%{di})",
    "fxsave64": "fxsave64 (%{di})",
    "fxrstor64": "fxrstor64 (%{di})",
    "lods": "lods{s} (%{si}), %{a}",
    "stos": "stos{s} %{a}, %es:(%{di})",
    "scas": "scas{s} %es:(%{di}), %{a}",
    "cmps": "cmps{s} %es:(%{di}), (%{si})",
    "movs": "movs{s} (%{si}), %es:(%{di})",
    "ins": "ins{s} (%dx), %es:(%{di})",
    "outs": "outs{s} (%{si}), (%dx)",
    "rep-ins": "rep ins{s} (%dx), %es:(%{di})",
    "rep-outs": "rep outs{s} (%{si}), (%dx)",
    "rep-movs": "rep movs{s} (%{si}), %es:(%{di})",
    "rep-stos": "rep stos{s} %{a}, %es:(%{di})",
    "repne-scas": "repne scas{s} %es:(%{di}), %{a}",
    "repe-cmps": "repe cmps{s} %es:(%{di}), (%{si})",
}
"""Each instruction as an assembler takes it: s is the suffix, b and di are registers."""

_SUFFIXES = {1: "b", 2: "w", 4: "l", 8: "q", 16: ""}
_REGISTERS = {1: "bl", 2: "bx", 4: "ebx", 8: "rbx", 16: ""}
_PREFIXES = b"\x66\x67\xf0\xf2\xf3"
FORMS: list[tuple[Mode, Row, Width]] = [
    (mode, row, width)
    for mode in ("real", "long")
    for row in INSTRUCTIONS.values()
    for width in row.widths(mode)
]


def parts(code: bytes) -> tuple[bytes, bytes]:
    """Return the prefixes of an instruction in one order, and what comes after them."""
    rest = code.lstrip(_PREFIXES)
    return bytes(sorted(code[: len(code) - len(rest)])), rest


@pytest.mark.skipif(shutil.which("as") is None, reason="no assembler")
@pytest.mark.parametrize(("mode", "bits"), [("real", 16), ("long", 64)])
def test_the_code_is_that_of_an_assembler(mode: Mode, bits: int) -> None:
    forms = [(row, width) for other, row, width in FORMS if other == mode]
    sources = [
        SOURCES[row.name].format(
            s=_SUFFIXES[width],
            o="data32 " if width == 4 else "",
            b=_REGISTERS[width],
            a=_REGISTERS[width].replace("b", "a"),
            di="rdi" if mode == "long" else "edi",
            si="rsi" if mode == "long" else "esi",
        )
        for row, width in forms
    ]
    made = assemble("\n".join(f"{line}\n.balign 32, 0xcc" for line in sources), bits=bits)
    for number, (row, width) in enumerate(forms):
        operation = Instruction(row.name, 0x1000, width, value=0x1B, mode=mode)
        right = made[32 * number : 32 * number + 32].rstrip(b"\xcc")
        assert parts(row.code(operation)) == parts(right), sources[number]


@pytest.mark.skipif(shutil.which("as") is None, reason="no assembler")
def test_vectors_come_from_registers_and_go_there() -> None:
    loaded = "movq %xmm0, %rbx; psrldq $8, %xmm0; movq %xmm0, %rcx"
    stored = "movq %rbx, %xmm0; movq %rcx, %xmm1; punpcklqdq %xmm1, %xmm0"
    assert INSTRUCTIONS["load-vector"].after == assemble(loaded, bits=64)
    assert INSTRUCTIONS["store-vector"].before == assemble(stored, bits=64)


def test_the_code_stands_where_the_guest_of_touches_does() -> None:
    assert CODE_OFFSET == image.TOUCH_ENTRY


def test_what_it_may_access_is_known_of_every_form() -> None:
    for mode, row, width in FORMS:
        operation = Instruction(
            row.name, 0x5000, width, source=0x6000 if row.copies else 0, mode=mode
        )
        assert instruction_problem(operation) == ""
        assert accessed(operation)[0] == (0x5000, row.size(operation))


def test_operands_are_cut_to_the_width() -> None:
    every = 0xFFFF_FFFF_FFFF_FFFF
    operation = Instruction("xadd", 0x5000, 2, every, every, every, every)
    held = operands(operation, 0x5000, 0)
    assert (held["rax"], held["rbx"], held["rdi"]) == (0xFFFF, 0xFFFF, 0x5000)
    pair = Instruction("lock-cmpxchg8b", 0x5000, 8, every, every, every, every, mode="long")
    assert {operands(pair, 0, 0)[name] for name in ("rax", "rbx", "rcx", "rdx")} == {0xFFFF_FFFF}


@pytest.mark.parametrize(
    ("operation", "problem"),
    [
        (Instruction("jump", 0x5000), r"\.name: 'jump' is none of lock-cmpxchg, "),
        (Instruction("xadd", 0x5000, 8), r"\.width: xadd takes 1, 2, 4 in mode 'real'"),
        (Instruction("lock-cmpxchg16b", 0x5000, 16), r"\.width: .* takes nothing in mode 'real'"),
        (Instruction("xadd", 0x5000, value=-1), r"\.value: an unsigned 64-bit number"),
        (Instruction("xadd", 0x5000, compare_high=1 << 64), r"\.compare_high: an unsigned"),
        (Instruction("xadd", 0x5000, count=2), r"\.count: xadd is no string instruction"),
        (Instruction("xadd", 0x5000, down=True), r"\.down: xadd is no string instruction"),
        (Instruction("xadd", 0x5000, source=1), r"\.source: xadd has one place in memory only"),
        (Instruction("xadd", 0xFFFF_FFFE, 4), r"\.gpa: real mode ends with 4 GiB"),
        (Instruction("xadd", -1), r"\.gpa: an address has 52 bits"),
        (Instruction("xadd", 1 << 52, mode="long"), r"\.gpa: an address has 52 bits"),
        (Instruction("xadd", 0xFFFF_0000), r"\.gpa: the guest's own memory"),
        (Instruction("xadd", 0x5000, vcpu=1), r"\.vcpu: \$\.vcpus allows 0 to 0"),
        (Instruction("xadd", 0x5000, as_id=1), r"\.as_id: guests look at as_id 1 where"),
        (Instruction("lock-cmpxchg16b", 0x5008, 16, mode="long"), r"\.gpa: .* a multiple of 16"),
    ],
)
def test_bad_instructions_are_refused_with_the_field(operation: Instruction, problem: str) -> None:
    with pytest.raises(ScenarioError, match=rf"\$\.operations\[0\]{problem}"):
        validate(Scenario("bad", (operation,), (Mapping("a", 1),)))
