"""The emitted C compiles without a warning, says what is expected, and holds what it must."""

import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from kvm_abi import uapi
from tests.ideal import FEATURES, ideal_history
from vmm.catalogue import catalogue
from vmm.fuzz.generate.dice import Dice
from vmm.fuzz.generate.races import race_scenario
from vmm.repro import emit, runtime
from vmm.repro.account import Account
from vmm.repro.cnames import CNames, data
from vmm.repro.emit import InexpressibleError, program, program_of
from vmm.repro.requirements import requirements
from vmm.repro.statements import Statements
from vmm.scenario.features import NEEDS
from vmm.scenario.history import History, Refused, Stopped
from vmm.scenario.operations import (
    ATTRIBUTE_PRIVATE,
    GUEST_MEMFD,
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    AnyOperation,
    ChangeHostMemory,
    ClearDirtyLog,
    CoalesceMmio,
    CollectMmio,
    CreateGuestMemfd,
    EnableCap,
    Execute,
    GetDirtyLog,
    GuestThread,
    HostThread,
    Inspect,
    Instruction,
    Mapping,
    NewVm,
    Place,
    Race,
    ResetDirtyRings,
    Scenario,
    SetClockMsr,
    SetMemoryAttributes,
    SetTssAddr,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Start,
    Touch,
    access_end,
)
from vmm.scenario.reached import is_sparse
from vmm.verdict.ideal import EVERYTHING

COMPILER = shutil.which("cc") or shutil.which("gcc")
NAMES = (
    "move-up",
    "create-at-gpa-0",
    "move-readonly",
    "move-carries-content",
    "unmapped-zero-va",
    "zero-va-execute",
    "straddle-two-slots",
)


def curated(name: str) -> Scenario:
    return next(scenario for scenario in catalogue(FEATURES) if scenario.name == name)


def compiles(text: str, folder: Path, *options: str) -> None:
    source = folder / "repro.c"
    source.write_text(text)
    strict = ("-Wall", "-Wextra", "-Werror", "-fsyntax-only", *options)
    ran = subprocess.run([str(COMPILER), *strict, source], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@pytest.mark.parametrize("name", NAMES)
def test_a_program_compiles_without_a_warning(name: str, tmp_path: Path) -> None:
    compiles(program_of(curated(name), FEATURES), tmp_path)


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_a_program_compiles_that_looks_at_both_address_spaces(tmp_path: Path) -> None:
    scenario = next(s for s in catalogue(EVERYTHING) if s.name == "spaces-executed")
    compiles(program_of(scenario, EVERYTHING), tmp_path)


def test_a_vcpu_goes_into_smm_and_out_when_the_next_access_is_made_elsewhere() -> None:
    touches = [Touch(0x100000, as_id=as_id) for as_id in (0, 1, 1, 0)]
    scenario = Scenario("smm", tuple(touches), needs=("smm",), survey="none")
    text = program_of(scenario, EVERYTHING)
    calls = re.findall(r"^\t((?:set_smm|guest_reads)\(.*\);)$", text, flags=re.MULTILINE)
    reads = "guest_reads(0, 0x100000, 4);"
    into, out = "set_smm(0, true);", "set_smm(0, false);"
    assert calls == [reads, into, reads, reads, out, reads]
    assert 'require(KVM_CAP_X86_SMM, 1, "' in text


def test_a_vcpu_that_stopped_is_put_into_smm_again() -> None:
    access = Execute(0x100000, as_id=1)
    scenario = Scenario("smm", (access, access), needs=("smm",), survey="none")
    assert program_of(scenario, EVERYTHING).count("set_smm(0, true);") == 2


def test_a_vcpu_has_its_smbase_for_one_start() -> None:
    start = Start(0x100800, smi=True, smbase=0x30100)
    scenario = Scenario("smm", (start,), needs=("smm",), survey="none")
    calls = re.findall(r"^\t(s(?:et|end)_sm\w+)", program_of(scenario, EVERYTHING), re.MULTILINE)
    assert calls == ["set_smbase", "send_smi", "set_smbase"]


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_the_runtime_has_the_parts_of_all_its_files() -> None:
    folder = Path(runtime.__file__).with_name("c")
    named = [re.findall(r"^/\*@ (\w+) \*/$", file.read_text(), re.M) for file in folder.iterdir()]
    assert sorted(name for names in named for name in names) == sorted(runtime.parts())


def test_the_whole_runtime_compiles(tmp_path: Path) -> None:
    defines = "#define GUEST_GPA 0u\n#define DIRTY_WORDS 4\n#define GPA_BITS 40\n"
    defines += "#define GUEST_PAGES 16\n#define LAST_STATUS RIGHT\n"
    text = defines + runtime.select((*runtime.parts(), "cpuid"))
    compiles(text, tmp_path, "-Wno-unused-function", "-Wno-unused-variable")


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_the_head_says_nothing_of_a_source_that_is_not_given() -> None:
    said = Scenario("bare", (), (), why="Why.", source="api.rst")
    assert " * bare\n *\n * Why.\n * Source: api.rst\n *\n * Build:" in emit._head(said)
    assert " * bare\n *\n * Build:" in emit._head(Scenario("bare", (), ()))


def test_names_of_strangers_do_no_harm(tmp_path: Path) -> None:
    evil = '*/ "; system("x");\n\\'
    scenario = Scenario(
        "a */ #error",
        (SetUserMemoryRegion(1, 0x100000, 4096, Place(evil)), Touch(0x100040)),
        (Mapping(evil, 1), Mapping("int", 1), Mapping("x y", 1), Mapping("x-y", 1)),
        why="*/ int",
        survey="none",
    )
    text = program_of(scenario, FEATURES)
    compiles(text, tmp_path)
    assert "system(" not in re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def differing() -> History:
    history = ideal_history(curated("move-up"))
    events = list(history.events)
    at = next(i for i, e in enumerate(events) if isinstance(e.operation, SetUserMemoryRegion) and i)
    events[at] = msgspec.structs.replace(events[at], outcome=Refused(28))
    return msgspec.structs.replace(history, events=tuple(events))


def test_the_program_of_a_history_says_what_came_and_ends_there() -> None:
    text = program(differing())
    before, _, after = text.partition("observed: ENOSPC   <- WRONG")
    assert "expected: success" in before
    assert "observed: success" in before
    assert re.findall(r"step = \d+;", after)[1:] == []


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_a_program_ends_where_the_model_knows_no_more(tmp_path: Path) -> None:
    operations = (SetTssAddr(0xFFF00000), Touch(0xFFF00000), Touch(0x1000))
    text = program_of(Scenario("unknown", operations, survey="none"), FEATURES)
    assert re.findall(r"step = \d+;", text) == ["step = 1;", "step = 2;", "step = 3;"]
    assert 'puts("right before step 3; what may come from there on is not known");' in text
    assert text.endswith("return NOT_KNOWN;\n}\n")
    compiles(text, tmp_path)


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_a_program_compiles_that_expects_no_kept_write(tmp_path: Path) -> None:
    operations = (CoalesceMmio(0x1000, 0x1000), CoalesceMmio(0x1000, 16, pio=True), CollectMmio())
    text = program_of(Scenario("none", operations, survey="none"), EVERYTHING)
    compiles(text, tmp_path)
    assert "KVM_REGISTER_COALESCED_MMIO, 0x1000, 0x10, 1)" in text


def test_a_step_is_one_call_with_the_kernels_own_words() -> None:
    scenario = Scenario(
        "one",
        (SetUserMemoryRegion(5, 0x100000, 8192, Place("a", 4096), 3), SetUserMemoryRegion(6)),
        (Mapping("a", 4),),
        survey="none",
    )
    text = program_of(scenario, FEATURES)
    wanted = "set_region(5, KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY, 0x100000, 0x2000, "
    assert wanted + "at(&mem_a, 0x1000)), SUCCESS);" in text
    assert "expect(set_region(6, 0, 0, 0, 0), EINVAL);" in text


def test_what_has_no_form_in_c_is_said() -> None:
    beyond = Race((HostThread((SetUserMemoryRegion(1),)),), (GuestThread((Touch(1 << 32),)),))
    with pytest.raises(InexpressibleError, match="beyond 4 GiB"):
        program_of(Scenario("race", (beyond,), survey="none"), FEATURES)


def test_memory_that_has_no_form_in_c_is_said_before_any_step_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[object] = []
    monkeypatch.setattr(Statements, "of", lambda _, step: made.append(step))
    unmap = ChangeHostMemory(Place("a"), 1 << 15, "unmap")
    scenario = Scenario("large", (unmap,) * 9, (Mapping("a", 1 << 15, "memfd"),), survey="none")
    with pytest.raises(InexpressibleError, match="memory of 32768 pages"):
        program_of(scenario, FEATURES)
    assert made == []


def test_a_program_that_no_compiler_takes_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emit, "_MOST_OF_A_PROGRAM", 1 << 20)
    lost = (ChangeHostMemory(Place("a"), 96, "drop"), Inspect())
    program_of(Scenario("some", lost[1:], (Mapping("a", 96),), survey="none"), FEATURES)
    with pytest.raises(InexpressibleError, match="a program of more than 1 MiB"):
        program_of(Scenario("much", lost, (Mapping("a", 96),), survey="none"), FEATURES)


def test_bytes_are_literals() -> None:
    assert data(b"\x00\xffA") == '"\\x00\\xff\\x41"'
    assert data(b"") == '""'


def test_a_race_whose_threads_change_what_one_gpa_reaches_has_no_form_in_c() -> None:
    away = SetUserMemoryRegion(1, 0x200000, 4096, Place("a"))
    other = SetUserMemoryRegion(2, 0x100000, 4096, Place("a"))
    threads = (HostThread((away,)), HostThread((other, SetUserMemoryRegion(2))))
    race = Race(threads, (GuestThread((Touch(0x100040),)),))
    first = SetUserMemoryRegion(1, 0x100000, 4096, Place("a"))
    scenario = Scenario("race", (first, race), (Mapping("a", 4),), survey="none")
    with pytest.raises(InexpressibleError, match="two threads of a race"):
        program_of(scenario, FEATURES)


def test_what_stands_in_a_race_repeats_after_few_rounds() -> None:
    slot = SetUserMemoryRegion(1, 0x100000, 4096, Place("a"))
    thread = HostThread((slot, SetUserMemoryRegion(1)), rounds=1000)
    race = Race((thread,), (GuestThread((Touch(0x100040),)),))
    scenario = Scenario("race", (race,), (Mapping("a", 4),), survey="none")
    text = program_of(scenario, FEATURES)
    assert "{race_1_host_0, 2, 1000, 0, 5, 3, " in text
    table = text.split("race_1_host_0_places[] = {")[1].split("}" + ";")[0]
    assert table.count("&mem_a, 0, 1, 0, false, -1") == 2
    assert table.count("{0}") == 3


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_races_of_every_kind_compile_without_a_warning(tmp_path: Path) -> None:
    kinds: dict[frozenset[object], Scenario] = {}
    for scenario in catalogue(EVERYTHING):
        for op in scenario.operations:
            if isinstance(op, Race):
                hosts = (type(each) for thread in op.hosts for each in thread.operations)
                steps = (type(each) for guest in op.guests for each in guest.program)
                clocks = {type(op) for op in scenario.operations} & {SetClockMsr}
                key = frozenset((*hosts, *steps, *clocks, *scenario.needs))
                kinds.setdefault(key, scenario)
    assert kinds
    for scenario in kinds.values():
        compiles(program_of(scenario, EVERYTHING), tmp_path)


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_random_races_on_private_memory_compile_without_a_warning(tmp_path: Path) -> None:
    made = (race_scenario(Dice(seed), EVERYTHING, "race") for seed in range(120))
    private = [scenario for scenario in made if scenario.vm_type]
    assert len(private) > 8
    for scenario in private[:8]:
        compiles(program_of(scenario, EVERYTHING), tmp_path)


def test_a_race_says_what_private_memory_holds_before_it() -> None:
    gpa, size = 0x10_0000, 2 * PAGE_SIZE_BYTES
    bound = SetUserMemoryRegion2(1, gpa, size, Place("a"), GUEST_MEMFD, guest_memfd="file")
    private = SetMemoryAttributes(gpa, size, ATTRIBUTE_PRIVATE)
    shared = SetMemoryAttributes(gpa, size, 0)
    race = Race((HostThread((shared, private)),), (GuestThread((Touch(gpa + 0x40),)),))
    before = (CreateGuestMemfd("file", size), bound, private)
    wrote = Touch(gpa + PAGE_SIZE_BYTES + 0x40, "write", value=0x1234)
    scenario = Scenario(
        "race", (*before, wrote, race), (Mapping("a", 2),), survey="none", vm_type=1
    )
    text = program_of(scenario, EVERYTHING)
    assert "begin_private(&race_1_private_0);" in text
    assert "private_holds" not in text  # No vCPU of the race reaches that page.
    both = Race(race.hosts, (GuestThread((Touch(wrote.gpa), Touch(gpa))),))
    text = program_of(
        msgspec.structs.replace(scenario, operations=(*before, wrote, both)), EVERYTHING
    )
    assert "private_holds(&race_1_private_0, 0x1040, 0x1234);" in text


def races(scenario: Scenario) -> bool:
    return any(isinstance(op, Race) for op in scenario.operations)


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_programs_with_private_memory_compile_and_make_a_vm_that_has_it(tmp_path: Path) -> None:
    private = [
        each
        for each in catalogue(EVERYTHING)
        if each.vm_type and not races(each) and not any(map(is_sparse, each.mappings))
    ]
    assert private
    compiled = set[str]()
    for scenario in private:
        text = program_of(scenario, EVERYTHING)
        kinds = set(map(kind_of, scenario.operations))
        if not kinds <= compiled:
            compiles(text, tmp_path)
            compiled |= kinds
        made = re.findall(r"^\tvm = must\(ioctl\(kvm, KVM_CREATE_VM, (.*?)\)", text, re.MULTILINE)
        assert set(made) == {"1 /* KVM_X86_SW_PROTECTED_VM */"}
        assert len(made) == 1 + sum(isinstance(op, NewVm) for op in scenario.operations)


def test_missing_private_memory_stops_the_vcpu_by_name_where_nothing_else_may_happen() -> None:
    scenario = next(s for s in catalogue(EVERYTHING) if s.name == "private-without-a-file")
    text = program_of(scenario, EVERYTHING)
    fault = "private memory-fault at 0x100000+0x1000"
    assert text.count(f'expect_stopped("{fault}");') == 2
    assert 'if (!stopped("private memory-fault at 0x300000+0x1000")) {' in text
    assert "access_.stopped = fault_of(vcpu->run);" in text


@pytest.mark.parametrize("need", sorted(NEEDS))
def test_what_a_scenario_needs_is_asked_for_or_mapped(need: str) -> None:
    scenario = Scenario("needy", (), needs=(need,), survey="none")
    lines = list(requirements(scenario, FEATURES, Account(CNames(()))))
    by_mapping = {"zero_page", "hugetlb_pages", "collapse", "ksm", "userfaultfd", "pfnmap"}
    assert bool(lines) != (need in {*by_mapping, "process_files"})


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_operations_of_every_kind_compile_without_a_warning(tmp_path: Path) -> None:
    kinds: dict[str, Scenario] = {}
    for scenario in catalogue(EVERYTHING):
        if not any(isinstance(op, Race) for op in scenario.operations):
            for op in scenario.operations:
                kinds.setdefault(kind_of(op), scenario)
    for scenario in {scenario.name: scenario for scenario in kinds.values()}.values():
        compiles(program_of(scenario, EVERYTHING), tmp_path)


def kind_of(op: AnyOperation) -> str:
    """Return what makes an operation's form in C: its type, and what it does besides."""
    is_far = access_end(op) > REAL_MODE_END
    names = ("access", "how", "death", "watch", "cap", "sharing")
    return " ".join([type(op).__name__, str(is_far), *(getattr(op, n, "") for n in names)])


def test_of_two_right_answers_the_program_goes_on_from_one() -> None:
    noncanonical = SetUserMemoryRegion(1, 0x100000, 4096, 1 << 55)
    failing = SetUserMemoryRegion(1, 0x100000, 4096, Place("a"), fail_nth=3)
    for op, wanted in ((failing, "SUCCESS, ENOMEM"), (noncanonical, "EINVAL, SUCCESS")):
        text = program_of(Scenario("x", (op,), (Mapping("a", 1),), survey="none"), FEATURES)
        assert re.search(rf"expect_this_one\(.*, {wanted}\);", text)


def test_pointers_of_64_bits_count_from_the_window_of_their_own_gpa() -> None:
    border = 2 << 20
    operations = (
        Instruction("load", 0, 1, mode="long"),
        Instruction("push", border - 8, 8, mode="long"),
        Instruction("movs", border, 8, source=0, mode="long"),
        Instruction("rep-stos", border - 8, 4, count=3, down=True, mode="long"),
        Instruction("rep-stos", 0x100000, 4, count=3, down=True),
    )
    text = program_of(Scenario("far", operations, survey="none"), FEATURES)
    load, push, move, down, real = re.findall(r"\(struct kvm_regs\)\{(.*)\}", text)[-5:]
    assert ".rdi = address_of(0)," in load
    assert ".rsp = address_of(0x1ffff8) + 0x8," in push
    assert ".rsi = address_of(0), .rdi = address_of(0x200000)," in move
    assert ".rdi = address_of(0x1ffff8) + 0x8," in down
    assert ".rdi = 0x100008," in real


def test_a_program_goes_on_from_one_of_two_ends_that_leave_other_bytes() -> None:
    slot = SetUserMemoryRegion(1, 0x100000, 4096, Place("a"))
    stores = Instruction("store-vector", 0x100000, 16, mode="long")
    loads = Instruction("load-vector", 0x100000, 16, mode="long")
    scenario = Scenario("vector", (slot, stores), (Mapping("a", 1),), survey="none")
    leaves = 'leave_if_stopped("exit reason 17");'
    assert leaves in program_of(scenario, FEATURES)
    reads = msgspec.structs.replace(scenario, operations=(slot, loads))
    assert leaves not in program_of(reads, FEATURES)
    history = ideal_history(scenario)
    at = next(i for i, event in enumerate(history.events) if event.operation == stores)
    stopped = msgspec.structs.replace(history.events[at], outcome=Stopped("internal-error"))
    events = (*history.events[:at], stopped)
    text = program(msgspec.structs.replace(history, events=events))
    assert leaves not in text
    assert "\tleave_at_other_end();" in text


def test_writes_to_rings_are_made_in_one_run() -> None:
    writes = tuple(Touch(0x100000 + 4 * n, "write", value=n) for n in range(3))
    operations: tuple[AnyOperation, ...] = (
        EnableCap("DIRTY_LOG_RING", 4096),
        SetUserMemoryRegion(1, 0x100000, 4096, Place("a"), LOG_DIRTY_PAGES),
        *writes,
        Touch(0x200000, "write"),
    )
    scenario = Scenario("ring", operations, (Mapping("a", 1),), survey="none")
    text = program_of(scenario, EVERYTHING)
    assert "vCPU 0 writes to memory, in one KVM_RUN" in text
    assert "guest_writes_all(0, 3, (struct write[]){" in text
    assert "guest_writes(0, 0x200000, 4, 0);" in text
    assert "guest_writes_all(" not in program_of(
        msgspec.structs.replace(scenario, operations=operations[1:]), EVERYTHING
    )


def test_expectations_bound_to_a_number_of_slots_ask_for_it() -> None:
    last = FEATURES.nr_memslots - 1
    bound = Scenario("last", (SetUserMemoryRegion(last),), survey="none")
    free = Scenario("first", (SetUserMemoryRegion(1),), survey="none")
    assert f"require_exactly(KVM_CAP_NR_MEMSLOTS, {last + 1}" in program_of(bound, FEATURES)
    assert "require_exactly" not in program_of(free, FEATURES)


def test_a_long_program_is_split_into_functions() -> None:
    operations = tuple(SetUserMemoryRegion(number) for number in range(1, 399))
    text = program_of(Scenario("long", operations, survey="none"), FEATURES)
    assert "static void steps_from_301(void)" in text
    assert "\tsteps_from_1();\n\tsteps_from_301();\n" in text


def test_either_refusal_is_right_where_a_kernel_may_not_know_the_ioctl() -> None:
    scenario = Scenario("no-rings", (ResetDirtyRings(),))
    without = msgspec.structs.replace(FEATURES, dirty_ring_bytes=0)
    text = program_of(scenario, without)
    assert "expect_either(reset_dirty_rings(), EINVAL, ENOTTY);" in text
    assert "expect(reset_dirty_rings(), EINVAL);" in program_of(scenario, FEATURES)


def test_places_of_the_kernels_own_slots_are_those_of_the_abi() -> None:
    stated = dict(re.findall(r"#define (\w+_GPA) (0x[0-9a-f]+)ul", runtime.parts()["places"]))
    assert {name: int(value, 16) for name, value in stated.items()} == {
        "TSS_GPA": uapi.USUAL_TSS_GPA,
        "IDENTITY_MAP_GPA": uapi.IDENTITY_MAP_GPA,
        "APIC_GPA": uapi.APIC_GPA,
    }


def test_the_first_log_after_a_race_has_to_name_what_was_written_in_it() -> None:
    slot = SetUserMemoryRegion(1, 0x100000, 8192, Place("a"), LOG_DIRTY_PAGES)
    race = Race((HostThread((GetDirtyLog(1),)),), (GuestThread((Touch(0x100040, "write"),)),))
    left = "\texpect_race_in_log(0x1);\n"

    def text(*after: AnyOperation) -> str:
        operations = (slot, race, *after)
        return program_of(Scenario("race", operations, (Mapping("a", 2),)), FEATURES)

    program_text = text(GetDirtyLog(1), GetDirtyLog(1))
    assert program_text.count(left) == 1
    log = "\texpect(get_dirty_log(0x1, dirty), SUCCESS);\n"
    assert f"{log}{left}\texpect_dirty(" in program_text.split("race(&race_1);")[1]
    assert left not in text(ClearDirtyLog(1, 0, 2), GetDirtyLog(1))
    assert left not in text(SetUserMemoryRegion(1), slot, GetDirtyLog(1))
    assert left not in text(NewVm(), slot, GetDirtyLog(1))
    assert "was written in the race" not in text()
