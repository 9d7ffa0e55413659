"""What vCPUs come to that start in SMM: the page tables, code and data of as_id 1."""

import msgspec

from tests.modelled import only
from vmm.model.model import Model
from vmm.scenario.content import STUB_OFFSET, identity
from vmm.scenario.features import Features
from vmm.scenario.history import DirtyPages, Stopped, Touched
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    SMM,
    AnyOperation,
    AsId,
    GetDirtyLog,
    Mapping,
    Place,
    SetUserMemoryRegion,
    Start,
    Touch,
)
from vmm.scenario.pagetables import PLAIN, USED, Tables

TABLES = Tables("a", 0x100, (0x104, 0x105), bits=USED)
TABLES_0 = SetUserMemoryRegion(1, 0x100000, 0x4000, Place("a"))
CODE_0 = SetUserMemoryRegion(2, 0x104000, 0x2000, Place("b"))
TABLES_1 = SetUserMemoryRegion(1 << 16 | 1, 0x100000, 0x4000, Place("a"))
CODE_1 = SetUserMemoryRegion(1 << 16 | 2, 0x104000, 0x2000, Place("a", 4 * PAGE_SIZE_BYTES))
OF_0, OF_1 = identity(1, 1), identity(0, 5)
ENTRY = 0x103008
TO_FIRST = 0x104000 | PLAIN


def model(*slots: SetUserMemoryRegion, tables: Tables = TABLES) -> Model:
    made = Model((Mapping("a", 8), Mapping("b", 8)), Features(smm=True, address_spaces=2))
    for operation in (*tables.lay(), *slots):
        only(made, operation)
    return made


def run(as_id: AsId, page: int = 1) -> Start:
    return msgspec.structs.replace(TABLES.run(page), as_id=as_id)


def stops(made: Model, operation: AnyOperation) -> bool:
    outcomes = [each.outcome for each in made.allowed(operation)]
    return bool(outcomes) and all(isinstance(each, Stopped) for each in outcomes)


def test_each_space_has_its_own_tables_and_code() -> None:
    made = model(TABLES_1, CODE_1)
    assert only(made, run(SMM)).outcome == Touched(OF_1)
    assert stops(made, run(0))
    only(made, TABLES_0)
    only(made, CODE_0)
    assert only(made, run(0)).outcome == Touched(OF_0)
    assert only(made, run(SMM)).outcome == Touched(OF_1)


def test_in_real_mode_the_code_of_as_id_1_is_run() -> None:
    made = model(CODE_0, CODE_1)
    start = Start(0x105000 + STUB_OFFSET, as_id=SMM)
    choice = only(made, start)
    assert (choice.outcome, choice.rule.name) == (Touched(OF_1), "smm")
    assert only(made, msgspec.structs.replace(start, as_id=0)).outcome == Touched(OF_0)


def test_the_logs_of_as_id_1_name_what_is_written_there() -> None:
    logged = (msgspec.structs.replace(slot, flags=LOG_DIRTY_PAGES) for slot in (TABLES_0, TABLES_1))
    made = model(*logged, CODE_1, tables=Tables("a", 0x100, TABLES.gfns))
    only(made, run(SMM))
    assert only(made, GetDirtyLog(1)).outcome == DirtyPages((), (), 1)
    assert only(made, GetDirtyLog(1 << 16 | 1)).outcome == DirtyPages((0, 1, 2, 3), (), 1)


def test_a_guest_in_smm_that_writes_its_tables_uses_what_it_wrote() -> None:
    made = model(TABLES_1, CODE_1)
    only(made, run(SMM))
    only(made, Touch(ENTRY, "write", value=TO_FIRST, as_id=SMM))
    assert only(made, run(SMM)).outcome == Touched(identity(0, 4))


def test_what_is_written_to_tables_through_another_space_or_gfn_is_not_known_to_be_used() -> None:
    elsewhere = SetUserMemoryRegion(3, 0x200000, 0x4000, Place("a"))
    places: tuple[tuple[AsId, int], ...] = ((0, ENTRY), (SMM, ENTRY), (0, ENTRY + 0x100000))
    for as_id, gpa in places:
        made = model(TABLES_0, CODE_0, TABLES_1, CODE_1, elsewhere)
        only(made, run(0))
        only(made, Touch(gpa, "write", value=TO_FIRST, as_id=as_id))
        known = as_id == 0 and gpa == ENTRY
        assert bool(made.allowed(run(0))) is known
        assert bool(made.allowed(run(0, 0))) is True
