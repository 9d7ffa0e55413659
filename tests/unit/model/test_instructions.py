"""What instructions come to: read and written memory, exits, logs, and what nobody knows."""

import pytest

from vmm.model.allowed import Allowed
from vmm.model.model import Model
from vmm.scenario.content import identity
from vmm.scenario.features import Features
from vmm.scenario.history import DirtyPages, HostChange, Inspected, Mmio, Ran, Stopped
from vmm.scenario.instruction_effects import AF, CF, OF, PF, SF, ZF
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    READONLY,
    ChangeHostMemory,
    CreateIrqchip,
    GetDirtyLog,
    Inspect,
    Instruction,
    Mapping,
    Place,
    SetUserMemoryRegion,
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


def only(made: Model, operation: Instruction) -> Allowed:
    """Return the one outcome of an instruction, and come to the state after it."""
    (choice,) = made.allowed(operation)
    choice.adopt()
    return choice


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
