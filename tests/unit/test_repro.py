"""The emitted C compiles without a warning, says what is expected, and holds what it must."""

import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from scenarios import catalogue
from tests.ideal import FEATURES, ideal_history
from vmm.memslots.history import History, Refused
from vmm.memslots.ideal import EVERYTHING
from vmm.memslots.operations import (
    Execute,
    Mapping,
    Place,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)
from vmm.repro import runtime
from vmm.repro.emit import InexpressibleError, program, program_of

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


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_the_whole_runtime_compiles(tmp_path: Path) -> None:
    text = "#define GUEST_GPA 0u\n#define DIRTY_WORDS 4\n" + runtime.select(runtime.parts())
    compiles(text, tmp_path, "-Wno-unused-function", "-Wno-unused-variable")


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
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
    before, _, behind = text.partition("came: ENOSPC   <- WRONG")
    assert "expected: success" in before
    assert "came: success" in before
    assert re.findall(r"step = \d+;", behind)[1:] == []


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
    scenario = Scenario("far", (Touch(1 << 33),), survey="none")
    with pytest.raises(InexpressibleError, match="out of reach"):
        program_of(scenario, FEATURES)


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
