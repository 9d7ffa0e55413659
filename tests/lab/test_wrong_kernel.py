"""The wrong kernel is wrong where it claims to be, and nowhere else.

Every fault has a witness: the shortest operations that show it. A plain C program plays them, so
that no code of the VMM under test takes part.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache

import pytest

from tests.lab.lab import HERE, Fault, build_witness, environment, faults
from vmm.catalogue import catalogue
from vmm.verdict.ideal import EVERYTHING

pytestmark = pytest.mark.skipif(
    not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="/dev/kvm cannot be opened"
)

NO_FAULT = "-"
PLAYS = 3
"""Tries for effects on the kernel's memory, which others allocate and free, too."""


def play(
    scripts: Iterable[tuple[str, str]], preloaded: bool = True, command: tuple[str, ...] = ()
) -> list[str]:
    """Return the outcome of each (fault, script), in order."""
    lines = [f"{fault}\t{script}\n" for fault, script in scripts]
    played = subprocess.run(
        [*command, build_witness()],
        input="".join(lines),
        env=environment() if preloaded else None,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return played.stdout.splitlines()


@cache
def all_faults() -> tuple[Fault, ...]:
    return faults()


def witnessed() -> list[Fault]:
    return [fault for fault in all_faults() if fault.witness]


def shortened(fault: Fault) -> list[str]:
    """Return the witness without each of its operations in turn."""
    parts = fault.operations
    return ["; ".join(parts[:i] + parts[i + 1 :]) for i in range(len(parts)) if len(parts) > 1]


def differing(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the (fault, script) pairs whose outcome shows the fault."""
    right = outcomes((NO_FAULT, script) for _, script in pairs)
    wrong = outcomes(pairs)
    return [pair for pair in pairs if right[NO_FAULT, pair[1]] != wrong[pair]]


def outcomes(pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Play each (fault, script) once, however often it occurs."""
    each = list(dict.fromkeys(pairs))
    return dict(zip(each, play(each), strict=True))


def defined_faults() -> list[str]:
    """Return the names in the tables of the sources, read as text."""
    names = []
    for path in sorted((HERE / "wrong_kernel").glob("faults_*.c")):
        table = path.read_text().partition("const struct fault")[2]
        names += re.findall(r'^    (?:[A-Z_]+\(|\{\.name = )"([a-z0-9-]+)"', table, re.MULTILINE)
    return names


def test_the_library_lists_every_fault_of_its_sources_once() -> None:
    names = [fault.name for fault in all_faults()]
    assert sorted(names) == sorted(defined_faults())
    assert len(set(names)) == len(names)
    assert [fault.name for fault in all_faults() if not fault.sentence.endswith(".")] == []


def test_without_a_fault_nothing_changes() -> None:
    scripts = list(dict.fromkeys((NO_FAULT, fault.witness) for fault in witnessed()))
    for _ in range(PLAYS):
        played = zip(scripts, play(scripts), play(scripts, preloaded=False), strict=True)
        scripts = [script for script, with_it, without in played if with_it != without]
    assert scripts == []


def test_every_witness_shows_its_fault() -> None:
    pairs = [(fault.name, fault.witness) for fault in witnessed()]
    for _ in range(PLAYS):
        shown = differing(pairs)
        pairs = [pair for pair in pairs if pair not in shown]
    assert pairs == []


def test_only_faults_of_two_address_spaces_have_no_witness() -> None:
    caught: dict[str, list[str]] = json.loads((HERE / "caught.json").read_text())
    needs = {scenario.name: scenario.needs for scenario in catalogue(EVERYTHING)}
    lacking = {fault.name for fault in all_faults()} - {fault.name for fault in witnessed()}
    assert lacking == {
        fault for fault, names in caught.items() if all("smm" in needs[name] for name in names)
    }


def test_no_operation_of_a_witness_can_be_left_out() -> None:
    pairs = [(fault.name, script) for fault in all_faults() for script in shortened(fault)]
    assert differing(pairs) == []


@pytest.mark.parametrize(
    ("fault", "enough", "too_few"),
    [
        (
            "page-swapped-above-64-slots",
            "fill 64; set 1000 100 2 0; read 100",
            "fill 63; set 1000 100 2 0; read 100",
        ),
        (
            "create-lost-above-509-slots",
            "fill 509; set 1000 100 1 0; read 100",
            "fill 508; set 1000 100 1 0; read 100",
        ),
        ("first-slot-replaced-after-10", "fill 10; read 1000", "fill 9; read 1000"),
        ("delete-lost-every-5th", "fill 5; empty 5; read 1008", "fill 4; empty 4; read 1006"),
        ("delete-lost:every=2", "fill 2; empty 2; read 1002", "fill 2; empty 2; read 1000"),
        ("create-lost:after=3", "fill 4; read 1006", "fill 3; read 1004"),
    ],
)
def test_a_counting_fault_begins_with_its_number(fault: str, enough: str, too_few: str) -> None:
    assert differing([(fault, enough), (fault, too_few)]) == [(fault, enough)]


@pytest.mark.parametrize(
    "fault", ["create-lost", "delete-lost", "page-swapped", "move-refused", "readonly-added"]
)
def test_the_guests_own_slot_is_spared(fault: str) -> None:
    # 64 KiB: created, written, moved and deleted as if nothing were wrong.
    script = "set 1 100 10 0; read 107; write 108; set 1 200 10 0; read 207; delete 1; read 208"
    assert differing([(fault, script)]) == []


def test_a_hidden_slot_gives_way_to_the_caller() -> None:
    # The alias has the last id, then is in the way of a creation: the caller comes first in both.
    after_move = "set 1 100 1 0; set 1 200 1 0; "
    scripts = [
        after_move + "set last 300 1 1; read 300; read 100",
        after_move + "set 2 100 1 1; read 100; delete 2; read 100",
    ]
    assert play([("move-leaves-alias", script) for script in scripts]) == [
        " 0 | 0 | 0 | exit 5 eax c0de0001 | exit 5 eax c0de0000 |",
        " 0 | 0 | 0 | exit 5 eax c0de0001 | 0 | mmio read 100000/4 exit 5 eax 5a5a0000 |",
    ]


def test_a_slot_in_pieces_has_one_dirty_log() -> None:
    script = "set 1 100 4 0 log; write 100; write 101; write 103; log 1; log 1"
    (played,) = play([("page-swapped", script)])
    assert played.split("|")[-3:] == [" 0 words 1: 0 1 3 ", " 0 words 1: ", ""]


def test_a_slot_in_pieces_is_whole_again_for_the_next_call() -> None:
    script = "set 1 100 4 0; set 1 200 4 0; read 201; set 1 200 3 0; set 1 200 4 0 log; delete 1"
    (played,) = play([("page-swapped", script + "; read 201")])
    assert played == (
        " 0 | 0 | exit 5 eax c0de0002 | EINVAL | 0 | 0 | mmio read 201000/4 exit 5 eax 5a5a0000 |"
    )


def test_a_refused_call_does_not_heal_a_slot() -> None:
    script = "set 1 100 1 0; set 2 200 1 1; delete 1; set 2 200 1 0; read 200"
    (played,) = play([("delete-takes-next-id", script)])
    assert played == " 0 | 0 | 0 | EINVAL | mmio read 200000/4 exit 5 eax 5a5a0000 |"


IN_PYTHON = """
import errno, os
from kvm_abi.raw import KvmError
from vmm.kvm.system import Kvm

def answers(fault):
    os.environ["WRONG_KERNEL"] = fault
    with kvm.create_vm() as vm:
        for form in vm.set_user_memory_region, vm.set_user_memory_region2:
            try:
                form(1, 0, 0, 0, 0)
                yield "0"
            except KvmError as error:
                yield errno.errorcode[error.errno]

with Kvm.open() as kvm:
    print(*answers("absent-delete-enoent"), *answers("absent-delete-accepted"), *answers(""))
"""


def test_a_python_program_meets_it_and_may_change_the_fault() -> None:
    played = subprocess.run(
        [sys.executable, "-c", IN_PYTHON],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert played.stdout == "ENOENT ENOENT 0 0 EINVAL EINVAL\n"


@pytest.mark.parametrize("text", ["no-such-fault", "delete-lost:often=1", "delete-lost:every=0"])
def test_a_misspelt_fault_ends_the_program(text: str) -> None:
    played = subprocess.run(
        [build_witness()],
        input=f"{text}\tread 100\n",
        env=environment(),
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert played.returncode == 2
    assert text in played.stderr


@pytest.mark.long
def test_a_full_table_leaves_no_id_to_hide_a_slot_in() -> None:
    # The guest's own slot and the last id make it 32,764. The swap needs a second slot.
    filled = 32762
    script = f"fill {filled}; set 32763 100 2 0; read 100; read 101; delete 32763; empty {filled}"
    first_cpu = min(os.sched_getaffinity(0))  # Grace periods take longer on others.
    (played,) = play([("page-swapped", script)], command=("taskset", "-c", str(first_cpu)))
    fill, create, first, second, delete, empty, _ = played.split("|")
    assert fill.split() == empty.split() == ["0"] * filled
    assert (create, delete) == (" 0 ", " 0 ")
    assert first == " exit 5 eax c0de0001 "
    assert second == " mmio read 101000/4 exit 5 eax 5a5a0000 "
