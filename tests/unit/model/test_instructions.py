"""What instructions come to: read and written memory, exits, logs, and what nobody knows."""

import msgspec
import pytest

from tests.modelled import only
from vmm.model.model import Model
from vmm.scenario.content import identity
from vmm.scenario.features import Features
from vmm.scenario.history import DirtyPages, HostChange, Inspected, Mmio, Ran, Stopped, Touched
from vmm.scenario.instruction_effects import AF, CF, OF, PF, SF, ZF
from vmm.scenario.instruction_operation import Width
from vmm.scenario.instructions import CODE_OFFSET, INSTRUCTIONS, operands
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    READONLY,
    ChangeHostMemory,
    CreateIrqchip,
    GetDirtyLog,
    HostWrite,
    Inspect,
    Instruction,
    Mapping,
    Place,
    SetUserMemoryRegion,
    Start,
    Sweep,
    Touch,
)

FILL = 0xFFFF_FFFF
TAG = identity(0, 0)
WORD = TAG.to_bytes(4, "little")


def model(flags: int = 0, mapping: str = "a") -> Model:
    """Return the model of a VM with one slot of a page at 0x5000."""
    made = Model((Mapping("a", 2), Mapping("none", 1, "unmapped")), Features())
    made.prefer(SetUserMemoryRegion(1, 0x5000, 0x1000, Place(mapping), flags))
    return made


def changes(made: Model) -> tuple[HostChange, ...]:
    (choice,) = made.allowed(Inspect())
    assert isinstance(choice.outcome, Inspected)
    return choice.outcome.changes


def test_a_comparison_that_is_equal_writes_the_new_value() -> None:
    made = model()
    choice = only(made, Instruction("lock-cmpxchg", 0x5000, value=0x11223344, compare=TAG))
    assert choice.outcome == Ran(ax=TAG, bx=0x11223344, flags=ZF | PF)
    assert choice.rule.name == "instruction"
    assert changes(made) == (HostChange("a", 0, bytes.fromhex("44332211")),)


def test_a_comparison_that_fails_loads_the_old_value_and_is_logged() -> None:
    made = model(LOG_DIRTY_PAGES)
    choice = only(made, Instruction("lock-cmpxchg", 0x5000, value=7, compare=TAG + 1))
    assert choice.outcome == Ran(ax=TAG, bx=7)
    assert changes(made) == ()
    (log,) = made.allowed(GetDirtyLog(1))
    assert isinstance(log.outcome, DirtyPages)
    assert log.outcome.pages == (0,)


@pytest.mark.parametrize(
    ("compare", "flags"),
    [(0, CF | AF), (FILL, ZF | PF), (0x7FFF_FFFF, CF | OF | SF | PF), (1, CF | AF)],
)
def test_a_comparison_sets_the_flags_of_a_subtraction(compare: int, flags: int) -> None:
    choice = only(model(), Instruction("cmpxchg", 0x9000, compare=compare))
    assert isinstance(choice.outcome, Ran)
    assert choice.outcome.flags == flags


def test_in_a_hole_it_exits_for_the_read_and_then_for_the_write() -> None:
    choice = only(model(), Instruction("lock-xadd", 0x9000, 2, value=2))
    read, written = Mmio(0x9000, False, b"\xff\xff"), Mmio(0x9000, True, b"\x01\x00")
    assert choice.outcome == Ran(bx=0xFFFF, mmio=(read, written), flags=CF | AF)
    assert choice.rule.name == "read-then-write"


def test_on_a_readonly_slot_it_reads_and_exits_with_what_it_writes() -> None:
    made = model(READONLY | LOG_DIRTY_PAGES)
    choice = only(made, Instruction("xchg", 0x5004, value=0x01020304))
    assert choice.outcome == Ran(bx=TAG, mmio=(Mmio(0x5004, True, b"\x04\x03\x02\x01"),))
    assert choice.rule.name == "read-then-write"
    assert changes(made) == ()
    (log,) = made.allowed(GetDirtyLog(1))
    assert isinstance(log.outcome, DirtyPages)
    assert log.outcome.pages == ()


def test_over_a_border_each_part_goes_where_it_belongs() -> None:
    made = model()
    choice = only(made, Instruction("or", 0x5FFE, value=0x0000_FFFF))
    exits = Mmio(0x6000, False, b"\xff\xff"), Mmio(0x6000, True, b"\xff\xff")
    assert isinstance(choice.outcome, Ran)
    assert choice.outcome.mmio == exits
    assert choice.rule.name == "straddle"
    assert changes(made) == (HostChange("a", 0xFFE, b"\xff\xff"),)


def test_an_undefined_flag_may_be_anything_and_a_defined_one_not() -> None:
    choice = only(model(), Instruction("and", 0x5000, value=0))
    assert choice.outcome.admits(Ran(flags=ZF | PF | AF))
    assert choice.outcome.admits(Ran(flags=ZF | PF))
    assert not choice.outcome.admits(Ran(flags=PF))
    assert not choice.outcome.admits(Ran(bx=1, flags=ZF | PF))


def test_inc_leaves_the_carry_alone_and_bts_tells_the_bit() -> None:
    made = model()
    only(made, Instruction("store", 0x5000, value=FILL))
    assert only(made, Instruction("inc", 0x5000)).outcome == Ran(flags=ZF | PF | AF)
    bit = Instruction("lock-bts", 0x5000, value=32 + 9)
    first, second = only(made, bit).outcome, only(made, bit).outcome
    assert isinstance(first, Ran)
    assert isinstance(second, Ran)
    assert (first.flags, second.flags) == (0, CF)
    assert changes(made) == (HostChange("a", 1, b"\2\0\0"),)


@pytest.mark.parametrize(
    ("width", "value", "begin", "bit"),
    [(4, 9, 0x5004, 9), (4, 41, 0x5000, 9), (4, 0xFFFF, 0x5008, 31), (2, 0xFFE0, 0x5008, 0)],
)
def test_a_bit_may_be_named_far_from_where_its_register_points(
    width: Width, value: int, begin: int, bit: int
) -> None:
    made = model()
    op = Instruction("bts-register", 0x5004, width, value=0xAAAA << 32 | value)
    assert operands(op, op.gpa, 0)["rdi"] == begin
    only(made, Instruction("store", 0x5004, value=0))
    outcome = only(made, op).outcome
    assert isinstance(outcome, Ran)
    assert outcome.flags == 0
    assert only(made, Instruction("load", 0x5004)).outcome == Ran(bx=1 << bit)


def test_a_pair_is_compared_whole_and_swapped_whole() -> None:
    made = model()
    wide = 0x1122334455667788
    failed = Instruction("lock-cmpxchg8b", 0x5000, 8, wide, TAG, 5, TAG + 1)
    assert only(made, failed).outcome == Ran(ax=TAG, bx=0x55667788, cx=5, dx=TAG)
    equal = Instruction("lock-cmpxchg8b", 0x5000, 8, wide, TAG, 5, TAG)
    outcome = only(made, equal).outcome
    assert isinstance(outcome, Ran)
    assert outcome.flags == ZF
    (read,) = made.allowed(Instruction("load", 0x5000, 8, mode="long"))
    assert read.outcome == Ran(bx=0x5_5566_7788)


def test_where_no_memory_is_it_may_exit_or_fail() -> None:
    made = model(mapping="none")
    plain = made.allowed(Instruction("or", 0x5000))
    assert [each.outcome for each in plain[1:]] == [Stopped("EFAULT")]
    locked = made.allowed(Instruction("lock-or", 0x5000))
    assert [each.outcome for each in locked[1:]] == [Stopped("EFAULT"), Stopped("internal-error")]
    assert [each.rule.name for each in locked] == ["hva-absent", "hva-absent", "atomic-absent"]


def test_what_stops_after_it_was_read_may_be_logged() -> None:
    made = Model((Mapping("a", 2),), Features(reads_make_dirty=True))
    made.prefer(SetUserMemoryRegion(1, 0x5000, 0x1000, Place("a"), LOG_DIRTY_PAGES))
    _, stop = made.allowed(Instruction("load-vector", 0x5000, 16, mode="long"))
    assert stop.outcome == Stopped("internal-error")
    stop.adopt()
    (log,) = made.allowed(GetDirtyLog(1))
    assert log.outcome.admits(DirtyPages((0,), words=1))
    assert log.outcome.admits(DirtyPages((), words=1))


def test_elements_before_memory_that_is_not_there_are_done() -> None:
    made = model()
    made.prefer(SetUserMemoryRegion(2, 0x6000, 0x1000, Place("none")))
    fill = Instruction("rep-stos", 0x5FF8, compare=0x01020304, count=4)
    usual, fault = made.allowed(fill)
    assert isinstance(usual.outcome, Ran)
    assert usual.outcome.mmio == (Mmio(0x6000, True, b"\4\3\2\1" * 2),)
    assert fault.outcome == Stopped("EFAULT")
    fault.adopt()
    assert changes(made) == (HostChange("a", 0xFF8, b"\4\3\2\1" * 2),)
    assert made.allowed(Instruction("pusha", 0x5FF0)) == ()


def test_a_write_that_the_host_forbids_fails_and_changes_nothing() -> None:
    made = model()
    made.prefer(ChangeHostMemory(Place("a"), 1, "write_protect"))
    usual, fault = made.allowed(Instruction("or", 0x5000, value=1))
    assert isinstance(usual.outcome, Ran)
    assert [each.write for each in usual.outcome.mmio] == [True]
    assert fault.outcome == Stopped("EFAULT")
    fault.adopt()
    assert changes(made) == ()


def test_an_end_is_apart_where_it_leaves_other_bytes() -> None:
    made = model()
    made.prefer(SetUserMemoryRegion(2, 0x6000, 0x1000, Place("none")))
    apart = {
        operation: [each.is_apart for each in made.allowed(operation)]
        for operation in (
            Instruction("load-vector", 0x5000, 16, mode="long"),
            Instruction("store-vector", 0x5000, 16, mode="long"),
            Instruction("rep-stos", 0x5FF8, count=4),
            Instruction("store", 0x5FFE),
            Instruction("store", 0x6000),
            Touch(0x5FFE, "write"),
            Touch(0x5FFE),
            Touch(0x6000, "write"),
            Sweep(0x5FF8, 4, "write"),
            Sweep(0x5FFA, 4, "write"),
            Sweep(0x5FF8, 4),
        )
    }
    assert list(apart.values()) == [
        [False, end] for end in (False, True, False, True, False, True, *(False,) * 3, True, False)
    ]


def test_what_kvm_cannot_emulate_may_stop_and_what_it_can_may_not() -> None:
    made = model()
    wide = made.allowed(Instruction("lock-cmpxchg16b", 0x9000, 16, mode="long"))
    assert [each.rule.name for each in wide] == ["read-then-write", "not-emulated"]
    assert len(made.allowed(Instruction("lock-cmpxchg8b", 0x9000, 8, mode="long"))) == 1


@pytest.mark.parametrize("gpa", [0xFEE0_0000, 0xFEC0_0000])
def test_what_a_device_answers_is_not_known(gpa: int) -> None:
    made = model()
    made.prefer(CreateIrqchip())
    assert made.allowed(Instruction("or", gpa)) == ()


def test_asking_changes_nothing() -> None:
    made = model()
    made.allowed(Instruction("not", 0x5000))
    (choice,) = made.allowed(Touch(0x5000))
    assert choice.outcome.value == TAG  # type: ignore[union-attr]


def test_what_is_popped_is_at_the_gpa() -> None:
    made = model()
    assert only(made, Instruction("pop", 0x5000, 4)).outcome == Ran(bx=TAG, sp=4)
    (choice,) = made.allowed(Instruction("pop", 0x5FFE, 4))
    assert choice.rule.name == "straddle"


def test_popa_passes_over_what_was_pushed_of_sp() -> None:
    outcome = only(model(), Instruction("popa", 0x6000, 2)).outcome
    assert isinstance(outcome, Ran)
    assert outcome.mmio == (Mmio(0x6000, False, b"\xff" * 6), Mmio(0x6008, False, b"\xff" * 8))
    assert (outcome.ax, outcome.dx, outcome.sp, outcome.di) == (0xFFFF, 0xFFFF, 16, 0x9FFF)


def test_an_operand_of_the_stack_is_read_before_it_is_pushed() -> None:
    made = model()
    pushed = Instruction("push-memory", 0x7000, 4, source=0x6000)
    read, written = Mmio(0x6000, False, b"\xff" * 4), Mmio(0x7000, True, b"\xff" * 4)
    assert only(made, pushed).outcome == Ran(sp=-4, mmio=(read, written))
    popped = Instruction("pop-memory", 0x6000, 4, source=0x5000)
    assert only(made, popped).outcome == Ran(sp=4, mmio=(read,))
    assert changes(made) == (HostChange("a", 0, b"\xff" * 4),)


def test_what_only_compares_writes_nothing() -> None:
    made = model(READONLY)
    assert only(made, Instruction("cmp", 0x5000, value=TAG)).outcome == Ran(bx=TAG, flags=ZF | PF)
    assert only(made, Instruction("scas", 0x5000, compare=TAG)).outcome == Ran(
        ax=TAG, di=4, flags=ZF | PF
    )
    assert changes(made) == ()


_SAVE = Instruction("fxsave64", 0x5000, 16, TAG, value_high=7, mode="long")


def test_of_a_saved_state_some_bytes_are_known_and_others_are_not() -> None:
    made = model(LOG_DIRTY_PAGES)
    made.prefer(_SAVE)
    (log,) = made.allowed(GetDirtyLog(1))
    assert log.outcome == DirtyPages((0,), words=1)
    (known,) = made.allowed(Touch(0x5000 + 160, "read"))
    assert known.outcome == Touched(TAG)
    (vague,) = made.allowed(Touch(0x5000 + 30, "read"))
    assert isinstance(vague.outcome, Touched)
    assert vague.outcome.unknown == 0xFFFF_FFFF
    (kept,) = made.allowed(Touch(0x5000 + 464, "read"))
    assert kept.outcome == Touched(TAG)
    (inspected,) = made.allowed(Inspect())
    assert isinstance(inspected.outcome, Inspected)
    assert inspected.rule.name == "content"
    assert ("a", 5, 155) in inspected.outcome.room
    assert ("a", 176, 288) in inspected.outcome.room
    assert made.allowed(Instruction("xadd", 0x5000 + 30)) == ()
    assert len(made.allowed(Instruction("store", 0x5000 + 30))) == 1


def test_the_second_page_of_a_state_is_perhaps_written() -> None:
    made = Model((Mapping("a", 2),), Features())
    made.prefer(SetUserMemoryRegion(1, 0x5000, 0x2000, Place("a"), LOG_DIRTY_PAGES))
    made.prefer(Instruction("fxsave", 0x5F00, 16))
    (log,) = made.allowed(GetDirtyLog(1))
    assert log.outcome == DirtyPages((0,), (1,), words=1)


def test_a_state_that_would_exit_is_not_emulated_or_exits_with_what_nobody_knows() -> None:
    choices = model(READONLY).allowed(_SAVE)

    def which(size: int) -> list[bool]:
        exits = Ran(bx=TAG, cx=7, mmio=(Mmio(0x5000, True, b"\1" * size),))
        return [choice.outcome.admits(exits) for choice in choices]

    assert which(416) == [True, False, False]
    assert which(464) == [False, True, False]
    assert which(463) == [False, False, False]
    assert choices[2].outcome == Stopped("internal-error")


def test_a_state_over_the_end_of_a_slot_may_have_been_begun() -> None:
    assert model().allowed(msgspec.structs.replace(_SAVE, gpa=0x5FF0)) == ()


def test_a_state_is_restored_where_its_control_word_is_valid() -> None:
    made = model()
    assert made.allowed(Instruction("fxrstor64", 0x5000, 16, mode="long")) == ()
    made.prefer(HostWrite(Place("a", 24), 0x1F80))
    restored = Instruction("fxrstor64", 0x5000, 16, mode="long")
    assert made.allowed(restored)[0].outcome == Ran(bx=TAG << 32 | TAG, cx=TAG << 32 | TAG)


def test_what_begins_after_a_state_nobody_can_follow() -> None:
    made = model()
    assert made.allowed(Start(0x9000))
    assert made.allowed(Start(0x9000, 0x8000))
    made.prefer(_SAVE)
    assert made.allowed(Start(0x9000))
    assert made.allowed(Start(0x9000, 0x8000)) == ()


def test_leave_takes_sp_and_bp_from_the_frame() -> None:
    made = model()
    only(made, Instruction("store", 0x5010, 4, 0x1234_5678))
    choice = only(made, Instruction("leave", 0x5010, 4, value_high=7))
    assert choice.outcome == Ran(cx=7, sp=4 - 0x40, bp=0x1234_5678)
    choice = only(made, Instruction("leave", 0x5010, 2))
    assert choice.outcome == Ran(sp=2 - 0x40, bp=0x5678)
    choice = only(made, Instruction("leave", 0x9000, 4))
    exits = (Mmio(0x9000, False, b"\xff" * 4),)
    assert choice.outcome == Ran(sp=4 - 0x40, bp=-1, mmio=exits)


def test_enter_leaves_bp_where_the_frame_begins() -> None:
    made = model()
    choice = only(made, Instruction("enter", 0x5010, 4, value_high=0x77))
    assert choice.outcome == Ran(cx=0x77, sp=-4, bp=-4)
    assert changes(made)[0] == HostChange("a", 0x10, b"\x77")
    (choice,) = made.allowed(Instruction("enter", 0x5010, 2))
    assert choice.outcome.admits(Ran(sp=-2, bp=-2 - 0x10000))
    assert not choice.outcome.admits(Ran(sp=-4, bp=-2))


def test_popa_pops_bp() -> None:
    made = model()
    only(made, Instruction("store", 0x5008, 4, 0x55))
    choice = only(made, Instruction("popa", 0x5000, 4, value_high=5))
    assert isinstance(choice.outcome, Ran)
    assert choice.outcome.bp == 0x50


def test_ret_goes_on_where_the_stack_says_and_nobody_knows_where_else() -> None:
    made = model()
    op = Instruction("ret", 0x5000, 2)
    assert made.allowed(op) == ()
    only(made, Instruction("store", 0x5000, 2, CODE_OFFSET + len(INSTRUCTIONS["ret"].code(op))))
    assert only(made, op).outcome == Ran(sp=2)
