"""Priorities and assist pages: where KVM reads and writes them, and what is refused."""

import pytest

from tests.modelled import after, look, slot
from vmm.model.vapics import ASSIST_PAGE, ASYNC_PF, PV_EOI, VAPIC, VAPIC_ADDR, VAPIC_APIC
from vmm.scenario.features import Features
from vmm.scenario.history import (
    AnyOutcome,
    DirtyPages,
    Done,
    HostChange,
    Inspected,
    MsrsSet,
    Refused,
    RingPages,
)
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    SMM,
    AnyOperation,
    ChangeHostMemory,
    CreateIrqchip,
    EnableCap,
    Execute,
    GetDirtyLog,
    HarvestDirtyRing,
    HostWrite,
    Inspect,
    Instruction,
    Place,
    Race,
    SetApic,
    SetPageMsr,
    SetVapicAddr,
    Start,
    Sweep,
    Touch,
)

GPA = 0x10_1400
OFFSET = GPA % PAGE_SIZE_BYTES
SHOWN = PAGE_SIZE_BYTES + OFFSET
ELSEWHERE = 0x20_1400
IDLE = Touch(0x30_0000)
APIC = CreateIrqchip()
RING = Features(dirty_ring_bytes=4096)

STARTED = (APIC, slot(), SetVapicAddr(GPA), HostWrite(Place("a", SHOWN), 0x0A0B_0C0D), Inspect())
OTHER = (slot("b", 0x200000, number=2), HostWrite(Place("b", SHOWN), 0x0A0B_0C0D), Inspect())


def outcomes(operation: AnyOperation, *before: AnyOperation) -> list[AnyOutcome]:
    return [each.outcome for each in after(before).allowed(operation)]


def shows(data: bytes, mapping: str = "a") -> Inspected:
    return Inspected((HostChange(mapping, SHOWN, data),))


def test_a_priority_is_written_where_the_gpa_is_mapped_now() -> None:
    assert look(*STARTED, SetApic(priority=0x30), IDLE) == shows(b"\x30\0\0\0")
    moved = (*STARTED, slot(gpa=0x200000))
    assert look(*moved, SetApic(priority=0x30), IDLE) == Inspected()
    back = slot("b", number=2)
    replaced = look(*moved, HostWrite(Place("b", SHOWN), 0x0A0B_0C0D), Inspect(), back)
    assert replaced == Inspected()
    written = (back, HostWrite(Place("b", SHOWN), 0x0A0B_0C0D), Inspect())
    assert look(*moved, *written, SetApic(priority=0x30), IDLE) == shows(b"\x30\0\0\0", "b")


def test_an_apic_that_is_disabled_or_without_an_address_writes_nothing() -> None:
    assert look(*STARTED, SetApic(enabled=False, priority=0x30), IDLE) == Inspected()
    assert look(*STARTED, SetVapicAddr(0), SetApic(priority=0x30), IDLE) == Inspected()
    assert look(*STARTED, IDLE) == Inspected(), "it is disabled at first"


def test_what_is_read_is_written_elsewhere() -> None:
    read = (*STARTED, *OTHER, HostWrite(Place("a", SHOWN), 0x0A0B_0C70), Inspect(), IDLE)
    written = look(*read, SetVapicAddr(ELSEWHERE), SetApic(), IDLE)
    assert written == shows(b"\x70\0\0\0", "b")
    moved = (*read, slot(gpa=0xFF000), HostWrite(Place("a", SHOWN + 0x1000), 0x90), Inspect(), IDLE)
    assert look(*moved, SetVapicAddr(ELSEWHERE), SetApic(), IDLE) == shows(b"\x90\0\0\0", "b")
    odd = (*STARTED, *OTHER, IDLE, SetVapicAddr(ELSEWHERE), SetApic(), IDLE)
    assert look(*odd).room == (("b", SHOWN, 4),), "CR8 does not have all of it"


def test_a_priority_that_stays_while_it_is_in_no_memory_may_come_back_as_it_was_set() -> None:
    read = (*STARTED, *OTHER, HostWrite(Place("a", SHOWN), 0x70), Inspect(), IDLE, slot(gpa=0))
    assert look(*read, IDLE, slot(), SetVapicAddr(ELSEWHERE), SetApic(), IDLE).room
    same = (*STARTED, *OTHER, SetApic(priority=0x30), IDLE, Inspect(), slot(gpa=0), IDLE, slot())
    assert look(*same, SetVapicAddr(ELSEWHERE), SetApic(), IDLE) == shows(b"\x30\0\0\0", "b")


def test_a_second_run_changes_nothing_that_nobody_else_has_changed() -> None:
    written = (*STARTED, SetApic(priority=0x30), IDLE, Inspect())
    assert look(*written, IDLE, IDLE) == Inspected()
    changed = look(*written, HostWrite(Place("a", SHOWN), 0x0A0B_0C40), IDLE)
    assert changed.room == (("a", SHOWN, 4),)


def test_what_the_host_took_away_is_not_written() -> None:
    gone = ChangeHostMemory(Place("a", PAGE_SIZE_BYTES), 1, "forbid")
    assert look(*STARTED, gone, SetApic(priority=0x30), IDLE) == Inspected()


def test_a_word_across_two_pages_is_written_in_both_or_refused() -> None:
    across = (APIC, slot(), SetVapicAddr(0x10_1FFE), SetApic(priority=0x30), IDLE)
    assert {each.offset for each in look(*across).changes} == {0x1FFE, 0x2000}
    assert outcomes(SetVapicAddr(0x10_3FFE), APIC, slot()) == [Refused(22)]


@pytest.mark.parametrize("before", [(), (slot(flags=READONLY),)])
def test_an_address_in_no_writable_slot_is_refused(before: tuple[AnyOperation, ...]) -> None:
    (choice,) = after((APIC, *before)).allowed(SetVapicAddr(GPA))
    assert (choice.outcome, choice.rule) == (Refused(22), VAPIC_ADDR)
    assert outcomes(SetVapicAddr(0), APIC, *before) == [Done()]


def test_after_a_refusal_nobody_knows_whether_kvm_goes_on() -> None:
    refused = (*STARTED, SetVapicAddr(ELSEWHERE), SetApic(priority=0x30), IDLE)
    assert look(*refused).room == (("a", SHOWN, 4),)


@pytest.mark.parametrize("call", [SetVapicAddr(GPA), SetVapicAddr(0), SetApic()])
def test_without_a_local_apic_there_is_no_priority(call: AnyOperation) -> None:
    (choice,) = after((slot(),)).allowed(call)
    assert (choice.outcome, choice.rule) == (Refused(22), VAPIC_APIC)


def test_a_priority_is_logged_where_it_is_written() -> None:
    logged = (APIC, slot(flags=LOG_DIRTY_PAGES), SetVapicAddr(GPA))
    written = after((*logged, SetApic(priority=0x30), IDLE))
    assert [e.outcome for e in written.allowed(GetDirtyLog(1))] == [DirtyPages((1,), (), 1)]
    (looked,) = written.allowed(Inspect())
    assert looked.rule is VAPIC
    looked.adopt()
    assert written.allowed(Inspect())[0].rule is not VAPIC
    off = after((*logged, SetApic(enabled=False), IDLE))
    assert [e.outcome for e in off.allowed(GetDirtyLog(1))] == [DirtyPages((), (), 1)]
    again = after((*logged, SetApic(priority=0x30), IDLE, GetDirtyLog(1), IDLE))
    assert [e.outcome for e in again.allowed(GetDirtyLog(1))] == [DirtyPages((), (1,), 1)]
    ring = (EnableCap("DIRTY_LOG_RING", 4096), *logged, SetApic(priority=0x30), IDLE)
    assert isinstance(after(ring, RING).allowed(HarvestDirtyRing())[0].outcome, RingPages)


@pytest.mark.parametrize(
    "access",
    [
        *(Touch(GPA), Touch(GPA + 3, width=1), Sweep(GPA - 8, 4), Execute(GPA - OFFSET)),
        *(Instruction("add", GPA), Start(GPA - OFFSET), Touch(0x40_0400)),
        Race((), ()),
    ],
)
def test_what_meets_a_priority_is_not_known(access: AnyOperation) -> None:
    model = after((*STARTED, slot(gpa=0x40_0000 - PAGE_SIZE_BYTES, number=2), SetApic()))
    assert model.allowed(access) == ()


def test_an_access_beside_a_priority_is_known() -> None:
    for access in (Touch(GPA - 4), Touch(GPA + 4), Sweep(GPA + 4, 4), Instruction("add", GPA + 8)):
        assert after((*STARTED, SetApic())).allowed(access)


def test_a_run_whose_outcome_is_unknown_leaves_a_doubt() -> None:
    model = after((*STARTED, SetApic(priority=0x30)))
    model._vm.vapics.may_run(0)
    looked = model.allowed(Inspect())[0].outcome
    assert isinstance(looked, Inspected)
    assert looked.room == (("a", SHOWN, 4),)
    model._vm.vapics.may_run(1)


def test_an_end_of_interrupts_is_told_in_a_writable_slot() -> None:
    right, odd = SetPageMsr("pv_eoi", GPA), SetPageMsr("pv_eoi", GPA + 2)
    (choice,) = after((slot(),)).allowed(right)
    assert (choice.outcome, choice.rule) == (MsrsSet(1), PV_EOI)
    assert outcomes(odd, slot()) == [MsrsSet(0)]
    assert outcomes(right) == outcomes(right, slot(flags=READONLY)) == [MsrsSet(0)]
    assert outcomes(SetPageMsr("pv_eoi", 0, on=False)) == [MsrsSet(1)]


def test_an_assist_page_is_cleared_and_logged_where_the_msr_is_known() -> None:
    page = SetPageMsr("assist_page", GPA - OFFSET)
    logged = (slot(flags=LOG_DIRTY_PAGES), HostWrite(Place("a", PAGE_SIZE_BYTES), 0x0A0B_0C0D))
    model = after((*logged, Inspect()))
    done, none = model.allowed(page)
    assert (done.outcome, none.outcome, done.rule) == (MsrsSet(1), MsrsSet(0), ASSIST_PAGE)
    done.adopt()
    looked = model.allowed(Inspect())[0]
    assert looked.outcome == Inspected((HostChange("a", PAGE_SIZE_BYTES, bytes(4)),))
    assert looked.rule is ASSIST_PAGE
    assert model.allowed(GetDirtyLog(1))[0].outcome == DirtyPages((1,), (), 1)
    forbidden = ChangeHostMemory(Place("a", PAGE_SIZE_BYTES), 1, "forbid")
    for before in ((), (slot(flags=READONLY),), (slot(), forbidden)):
        assert outcomes(page, *before) == [MsrsSet(0)]
    assert outcomes(SetPageMsr("assist_page", 0, on=False)) == [MsrsSet(1), MsrsSet(0)]


def test_which_space_an_assist_page_is_in_depends_on_the_vcpu() -> None:
    inside = slot(number=SMM << 16 | 1)
    page = SetPageMsr("assist_page", GPA - OFFSET)
    assert after((slot(), inside), Features(address_spaces=2)).allowed(page) == ()


def test_asynchronous_faults_take_a_local_apic_and_a_writable_slot() -> None:
    named = SetPageMsr("async_pf", GPA)
    done, none = after((APIC, slot())).allowed(named)
    assert (done.outcome, none.outcome, done.rule) == (MsrsSet(1), MsrsSet(0), ASYNC_PF)
    assert outcomes(named, slot()) == [MsrsSet(0)]
    assert outcomes(named, APIC) == outcomes(named, APIC, slot(flags=READONLY)) == [MsrsSet(0)]
    assert outcomes(SetPageMsr("async_pf", 0, on=False)) == [MsrsSet(1)]
