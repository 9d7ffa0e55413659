"""The commands with a kernel that is played: what they print, and their exit status."""

import dataclasses
import json
import os
import subprocess
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from tests.ideal import FEATURES, ideal_history
from tests.played import CREATE, DELETE, INFO, SCENARIOS, Kernel, make, named, played, vmm
from vmm.cli.main import COMMANDS, main
from vmm.execution.runner import Record
from vmm.host.health import Problem
from vmm.scenario.history import End, Event, History, Touched
from vmm.scenario.operations import Mapping, PreFaultMemory, Scenario, Touch


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return played(monkeypatch)


def result_of(file: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(file.read_text())
    return data


def test_every_command_has_the_help_line_that_it_says_itself() -> None:
    for name, line in COMMANDS.items():
        command = main.get_command(click.Context(main), name)
        assert command is not None
        assert command.name == name
        assert command.get_short_help_str(200) == line


def test_help_names_every_command() -> None:
    result = vmm("--help")
    assert result.exit_code == 0
    width = max(map(len, COMMANDS))
    for name, line in COMMANDS.items():
        assert f"  {name:<{width}}  {line}\n" in result.stdout


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, vmm.cli.main; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = ("rich", "msgspec", "hypothesis", "multiprocessing", "kvm_abi.raw", "cffi", "psutil")
    assert [name for name in heavy if name in loaded] == []


def test_an_unknown_command_is_a_usage_error() -> None:
    assert vmm("chek").exit_code == 2


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--seconds", "nan", "is no time"),
        ("--seconds", "inf", "is no time"),
        ("--jobs", "100000", "is not in the range"),
    ],
)
def test_fuzz_refuses_what_would_not_end(
    kernel: Kernel, tmp_path: Path, option: str, value: str, problem: str
) -> None:
    # Without a journal to resume nothing is started, should the option be taken.
    result = vmm("fuzz", "--resume", "--out", str(tmp_path), option, value)
    assert result.exit_code == 2
    assert f"{value} {problem}" in result.output


@pytest.mark.parametrize(
    "args",
    [
        ("check", "--tag"),
        ("check", "--format", "ktap", "--format", "junit"),
        ("check", "--format", "ktap:a", "--json", "a"),
        ("judge", "--format", "ktap", "--format", "junit", "h.jsonl"),
        ("fuzz", "--seed"),
        ("report", "r.json", "--html"),
        ("lab", "run", "--kernel"),
        ("check", "--verbose=3"),
    ],
)
def test_a_usage_error_names_the_command_that_helps(args: tuple[str, ...]) -> None:
    result = vmm(*args)
    assert result.exit_code == 2
    command = "vmm lab run" if args[0] == "lab" else f"vmm {args[0]}"
    assert result.output.endswith(f" ({command} --help says more)\n")


def test_a_usage_error_of_several_lines_is_one() -> None:
    assert vmm("completion").output == (
        "vmm: Missing argument '{bash|zsh|fish}'. Choose from: bash, zsh, fish "
        "(vmm completion --help says more)\n"
    )


@pytest.mark.parametrize("option", ["--patience", "--timeout"])
@pytest.mark.parametrize("value", ["nan", "inf", "1e400", "1e300", "-inf"])
def test_a_time_that_no_clock_holds_is_refused(option: str, value: str) -> None:
    command = ("check",) if option == "--patience" else ("lab", "run", "--kernel", "debian")
    result = vmm(*command, option, value)
    assert result.exit_code == 2
    assert "is not in the range" in result.output


def test_a_shard_of_thousands_of_digits_is_refused() -> None:
    result = vmm("check", "--shard", f"1/{'1' * 5000}")
    assert result.exit_code == 2
    assert "I/N is needed" in result.output


def test_all_passed(kernel: Kernel) -> None:
    kernel.features = msgspec.structs.replace(FEATURES, hugetlb_pages=1)
    result = vmm("check")
    assert result.exit_code == 0
    assert kernel.ran == [scenario.name for scenario in SCENARIOS]
    assert "4 scenarios: 4 passed in " in result.stdout
    assert f", on CPU {min(os.sched_getaffinity(0))}\n" in result.stdout


def test_a_skip_is_named_with_what_is_missing(kernel: Kernel) -> None:
    kernel.features = msgspec.structs.replace(FEATURES, hugetlb_pages=0)
    result = vmm("check", "--require-run")
    assert result.exit_code == 0
    assert "SKIPPED      huge: needs a free 2 MiB huge page (vm.nr_hugepages)" in result.stdout
    assert "4 scenarios: 3 passed, 1 skipped" in result.stdout
    assert "huge" not in kernel.ran


def test_a_run_that_skips_everything_is_no_pass(kernel: Kernel) -> None:
    kernel.features = msgspec.structs.replace(FEATURES, hugetlb_pages=0)
    assert vmm("check", "huge").exit_code == 4
    required = vmm("check", "huge", "--require-run")
    assert required.exit_code == 5
    assert required.stderr == "vmm: only 0 of 1 scenarios ran: --require-run 1\n"
    assert "1 scenario: 1 skipped, only 0 of 1 ran in " in required.stdout


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (["--require-run", "3"], 0),
        (["--require-run=3"], 0),
        (["--require-run", "4"], 5),
        (["--require-run", "create-one"], 0),
        (["--require-run", "2", "create-one"], 5),
        (["create-one", "--require-run"], 0),
    ],
)
def test_so_many_have_to_run(kernel: Kernel, tmp_path: Path, args: list[str], status: int) -> None:
    kernel.features = msgspec.structs.replace(FEATURES, hugetlb_pages=0)
    file = tmp_path / "result.json"
    assert vmm("check", "--json", file, *args).exit_code == status
    assert result_of(file)["exit_status"] == status


def test_a_difference_is_one_however_few_ran(kernel: Kernel) -> None:
    kernel.differ("create-two")
    assert vmm("check", "--require-run", "100").exit_code == 1


@pytest.mark.parametrize("command", [["check"], ["run", "create-one"]])
@pytest.mark.parametrize(("required", "status"), [([], 4), (["--require-run"], 5)])
def test_why_nothing_could_run_is_in_the_result(
    kernel: Kernel, tmp_path: Path, command: list[str], required: list[str], status: int
) -> None:
    kernel.info = dataclasses.replace(INFO, obstacle="/dev/kvm: No such file", remedy="load it")
    file = tmp_path / "result.json"
    file.write_text("an old one")
    assert vmm(*command, "--json", file, *required).exit_code == status
    data = result_of(file)
    assert (data["exit_status"], data["scenarios"]) == (status, [])
    assert data["obstacle"] == "nothing could run: /dev/kvm: No such file; load it"


@pytest.mark.parametrize("command", ["run create-one --history", "check --histories"])
@pytest.mark.parametrize("old", [None, "", "old"])
def test_where_nothing_runs_no_file_of_older_histories_is_left(
    kernel: Kernel, tmp_path: Path, command: str, old: str | None
) -> None:
    kernel.info = dataclasses.replace(INFO, obstacle="/dev/kvm: No such file", remedy="load it")
    file = tmp_path / "h.jsonl"
    if old is not None:
        file.write_text(old)
    assert vmm(*command.split(), file).exit_code == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["check"], ["run", "create-one"]])
def test_a_host_without_kvm_is_told_why_and_what_to_do(kernel: Kernel, command: list[str]) -> None:
    kernel.info = dataclasses.replace(INFO, obstacle="/dev/kvm: No such file", remedy="load it")
    result = vmm(*command)
    assert result.exit_code == 4
    assert result.stderr == "vmm: nothing could run: /dev/kvm: No such file; load it\n"
    required = vmm(*command, "--require-run")
    assert required.exit_code == 5
    assert "nothing could run: /dev/kvm: No such file; load it" in required.stderr


def test_json_says_why_nothing_could_run(kernel: Kernel, tmp_path: Path) -> None:
    kernel.info = dataclasses.replace(INFO, obstacle="/dev/kvm: No such file", remedy="load it")
    file = tmp_path / "result.json"
    file.write_text("an old result")
    assert vmm("check", "--json", file).exit_code == 4
    data = result_of(file)
    assert data["obstacle"] == "nothing could run: /dev/kvm: No such file; load it"
    assert (data["exit_status"], data["scenarios"]) == (4, [])


def test_a_difference_is_told_in_full(kernel: Kernel) -> None:
    kernel.differ("create-two")
    result = vmm("check")
    assert result.exit_code == 1
    assert "3 scenarios" not in result.stdout
    assert "1 differs" in result.stdout
    for line in (
        "DIFFERS      create-two",
        "  why       Why of create-two.",
        "  step      operation 0 (of 0 to 2): KVM_SET_USER_MEMORY_REGION(slot=1, flags=0, "
        "guest_phys_addr=0x10000, memory_size=0x1000, userspace_addr=a+0x0)",
        "  expected  success",
        "            by create: an absent slot is created; userspace_addr 0 is legal",
        "            (documented: api.rst 4.35)",
        "  observed  EEXIST",
        "  slots     [0] slot 400: gpa 0xffff0000..0x100000000 (16 pages) -> guest+0x0, flags 0",
        "  again     vmm check create-two",
    ):
        assert f"{line}\n" in result.stdout


def test_a_difference_in_a_survey_names_the_operation_before_it(kernel: Kernel) -> None:
    history = ideal_history(named("move-up"))
    at = next(
        i for i, e in enumerate(history.events) if e.origin == 0 and isinstance(e.operation, Touch)
    )
    events = list(history.events)
    events[at] = Event(0, events[at].operation, Touched(0x1234))
    kernel.histories["move-up"] = msgspec.structs.replace(history, events=tuple(events))
    result = vmm("check", "move-up")
    assert result.exit_code == 1
    assert "  step      operation 0 (of 0 to 2): KVM_SET_USER_MEMORY_REGION(" in result.stdout
    assert "            then vCPU 0 reads 4 bytes at gpa 0xf040\n" in result.stdout


def test_a_complaint_of_the_kernel_fails_a_scenario_that_passed(kernel: Kernel) -> None:
    kernel.complaints["move-up"] = (Problem("WARNING: at mmu.c", ("[ cut here ]", "a trace")),)
    result = vmm("check")
    assert result.exit_code == 1
    assert "UNHEALTHY    move-up: no outcome is wrong, but the kernel complained" in result.stdout
    assert "  kernel    WARNING: at mmu.c\n" in result.stdout
    assert "            a trace\n" in result.stdout
    assert "the kernel complained in 1" in result.stdout


def test_a_hang_is_inconclusive(kernel: Kernel) -> None:
    kernel.end("create-one", "hung: no end within 60 s; kernel stack: synchronize_srcu")
    result = vmm("check")
    assert result.exit_code == 3
    assert "INCONCLUSIVE create-one: hung: no end within 60 s" in result.stdout
    assert kernel.ran[-1] == "huge"


def test_a_difference_outweighs_what_is_inconclusive(kernel: Kernel) -> None:
    kernel.end("create-one", "died: SIGKILL")
    kernel.differ("move-up")
    assert vmm("check").exit_code == 1


@pytest.mark.parametrize("where", ["in a scenario", "between scenarios"])
def test_an_interruption_keeps_what_ran_and_names_what_did_not(
    kernel: Kernel, tmp_path: Path, where: str
) -> None:
    if where == "in a scenario":
        kernel.end("create-two", "interrupted", 3)
        left = ["move-up", "huge"]
    else:
        kernel.histories["create-two"] = KeyboardInterrupt
        left = ["create-two", "move-up", "huge"]
    file = tmp_path / "result.json"
    result = vmm("check", "--json", file)
    assert result.exit_code == 3
    assert f"did not run (interrupted): {', '.join(left)}\n" in result.stdout
    data = result_of(file)
    assert data["not_run"] == left
    assert data["scenarios"][0]["status"] == "passed"
    assert data["exit_status"] == 3


def test_many_that_did_not_run_are_named_by_the_first_and_the_last(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = tuple(make(f"s{number}") for number in range(12))
    monkeypatch.setattr("vmm.catalogue.catalogue", lambda features, with_large=True: many)
    kernel.histories["s2"] = KeyboardInterrupt
    result = vmm("check")
    assert "left out: 10 scenarios did not run (interrupted): all from s2 to s11\n" in result.stdout


def test_json_holds_the_whole_result(kernel: Kernel, tmp_path: Path) -> None:
    kernel.differ("create-two")
    kernel.complaints["move-up"] = (Problem("WARNING: at mmu.c", ("a trace",)),)
    file = tmp_path / "result.json"
    assert vmm("check", "--json", file).exit_code == 1
    data = result_of(file)
    assert data["status"] == "differs"
    assert data["counts"] == {
        "passed": 3,
        "differs": 1,
        "inconclusive": 0,
        "internal error": 0,
        "skipped": 0,
        "known": 0,
        "passes now": 0,
    }
    assert data["host"]["tdp"] == "on (kvm_amd.npt=1)"
    assert data["features"]["nr_memslots"] == FEATURES.nr_memslots
    assert data["kernel_healthy"] is False
    one, two, moved, _ = data["scenarios"]
    assert (one["name"], one["status"], one["difference"]) == ("create-one", "passed", None)
    assert two["difference"]["observed"] == "EEXIST"
    assert two["difference"]["expected"][0]["rule"] == "create"
    assert moved["kernel_complaints"] == [{"what": "WARNING: at mmu.c", "excerpt": ["a trace"]}]


def test_json_on_standard_output_is_alone_there(kernel: Kernel) -> None:
    kernel.differ("create-two")
    result = vmm("check", "--json", "-")
    assert json.loads(result.stdout)["exit_status"] == 1
    assert "DIFFERS      create-two" in result.stderr


def test_a_json_file_that_cannot_be_written_is_told_before_anything_runs(
    kernel: Kernel, tmp_path: Path
) -> None:
    result = vmm("check", "--json", tmp_path / "absent" / "result.json")
    assert result.exit_code == 2
    assert result.stderr == f"vmm: {tmp_path}/absent/result.json: No such file or directory\n"
    assert kernel.ran == []


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["create-*"], ["create-one", "create-two"]),
        (["move-up", "create-one"], ["create-one", "move-up"]),
        (["--tag", "create"], ["create-one", "create-two", "huge"]),
        (["*o*", "--tag", "move"], ["move-up"]),
    ],
)
def test_patterns_and_tags_choose(kernel: Kernel, args: list[str], names: list[str]) -> None:
    assert vmm("check", *args).exit_code == 0
    assert kernel.ran == names


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["move-pu"], "no scenario matches 'move-pu'; the closest: move-up"),
        (["create-one", "zzz*"], "no scenario matches 'zzz*'; `vmm check --list` names them all"),
        (["--tag", "creat"], "no scenario has the tag 'creat'; the closest: create"),
        (["huge", "--tag", "move"], "no scenario is left of huge with the tag move"),
    ],
)
def test_what_matches_nothing_is_a_usage_error(
    kernel: Kernel, args: list[str], message: str
) -> None:
    result = vmm("check", *args)
    assert result.exit_code == 2
    assert result.stderr == f"vmm: {message} (vmm check --help says more)\n"
    assert kernel.ran == []


def test_list_needs_no_device(kernel: Kernel) -> None:
    kernel.info = dataclasses.replace(INFO, obstacle="no device")
    result = vmm("check", "--list", "--tag", "create")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "create-one  Why of create-one. [create]",
        "create-two  Why of create-two. [create]",
        "huge        Why of huge. [create]",
    ]
    assert "vmm: on a usual host; here nothing could run: no device" in result.stderr


def test_an_error_of_this_program_is_no_verdict(kernel: Kernel) -> None:
    kernel.histories["create-one"] = AssertionError
    result = vmm("check")
    assert result.exit_code == 70
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("vmm: internal error: this says nothing about the kernel\n")


def test_an_error_of_this_program_costs_one_scenario(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernel.end("create-one", "internal error: Traceback ...\nZeroDivisionError: in the child\n")
    parse = Record.history

    def fail(record: Record) -> History:
        if record.header.scenario.name == "create-two":
            raise AssertionError("in the judge")
        return parse(record)

    monkeypatch.setattr(Record, "history", fail)
    file, histories = tmp_path / "result.json", tmp_path / "all.jsonl"
    result = vmm("check", "--json", file, "--histories", histories)
    assert result.exit_code == 70
    assert "INTERNAL ERROR create-one: this program failed" in result.stdout
    assert "            ZeroDivisionError: in the child\n" in result.stdout
    data = result_of(file)
    assert [each["status"] for each in data["scenarios"]] == [
        *("internal error", "internal error", "passed", "passed")
    ]
    assert "AssertionError: in the judge" in data["scenarios"][1]["reason"]
    assert data["exit_status"] == 70
    for scenario in SCENARIOS:
        assert f'"name":"{scenario.name}"' in histories.read_text()


def test_a_difference_outweighs_an_error_of_this_program(kernel: Kernel) -> None:
    kernel.end("create-one", "internal error: Traceback ...")
    kernel.differ("move-up")
    assert vmm("check").exit_code == 1


def test_a_broken_pipe_of_a_worker_is_no_closed_output(kernel: Kernel) -> None:
    kernel.histories["create-one"] = BrokenPipeError
    result = vmm("check")
    assert result.exit_code == 70
    assert "BrokenPipeError" in result.stderr


def test_an_error_of_this_program_is_in_json(kernel: Kernel, tmp_path: Path) -> None:
    kernel.histories["create-two"] = AssertionError
    file = tmp_path / "result.json"
    assert vmm("check", "--json", file).exit_code == 70
    data = result_of(file)
    assert "AssertionError" in data["error"]
    assert (data["status"], data["exit_status"]) == ("internal error", 70)
    assert [each["status"] for each in data["scenarios"]] == ["passed"]


def test_json_tells_its_circumstances(kernel: Kernel, tmp_path: Path) -> None:
    kernel.info = dataclasses.replace(INFO, command_line="quiet kvm.x=1")
    results = []
    for name in ("a", "b"):
        assert vmm("check", "--json", tmp_path / name).exit_code == 0
        results.append(result_of(tmp_path / name))
    for data in results:
        assert data["format"] == 1
        assert data["tool"] == {"name": "memslot-vmm", "version": version("memslot-vmm")}
        assert data["kernel_command_line"] == "quiet kvm.x=1"
        assert datetime.fromisoformat(data.pop("time")).tzinfo is not None
        data.pop("seconds")
        assert all(each.pop("seconds") >= 0 for each in data["scenarios"])
    assert json.dumps(results[0]) == json.dumps(results[1])


def test_many_that_differ_by_one_cause_are_enough(kernel: Kernel, tmp_path: Path) -> None:
    for name in ("create-one", "create-two", "move-up"):
        kernel.differ(name)
    file = tmp_path / "result.json"
    result = vmm("check", "--max-differences", "1", "--json", file)
    assert result.exit_code == 1
    # What has begun when the verdict is there goes on to its end.
    assert kernel.ran == ["create-one", "create-two"]
    assert result.stdout.count("DIFFERS") == 1
    assert "  so do     1 scenario: create-two\n" in result.stdout
    cause = "set_user_memory_region breaks create in 1 scenario"
    why = f"{cause}: --max-differences 1 is reached"
    assert f"2 scenarios did not run ({why}): move-up, huge\n" in result.stdout
    assert result_of(file)["early"] == why


@pytest.mark.parametrize("reason", ["the host: KVM_CREATE_VM({}): ENOMEM", "died: SIGKILL"])
def test_a_host_that_fails_many_for_one_reason_is_enough(
    kernel: Kernel, tmp_path: Path, reason: str
) -> None:
    for number, name in enumerate(("create-one", "create-two", "move-up")):
        kernel.end(name, reason.format(number), 1)
    file = tmp_path / "result.json"
    assert vmm("check", "--max-differences", "2", "--json", file).exit_code == 3
    cause = f"{reason.partition('(')[0]} in 2 scenarios"
    why = f"{cause}: --max-differences 2 is reached"
    assert result_of(file)["early"] == why
    assert result_of(file)["not_run"] == ["huge"]


def test_verbose_tells_of_each(kernel: Kernel) -> None:
    kernel.features = msgspec.structs.replace(FEATURES, hugetlb_pages=0)
    for name in ("create-one", "create-two"):
        kernel.differ(name)
    result = vmm("check", "-v")
    assert result.stdout.count("DIFFERS") == 2
    assert "SKIPPED      huge: needs a free" in result.stdout


def test_a_kernel_that_hangs_again_and_again_is_left_alone(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.cli.running.carrying.MAX_HANGS", 2)
    for name in ("create-one", "create-two"):
        kernel.end(name, "hung: no end within 20 s; kernel stack: none")
    result = vmm("check")
    assert result.exit_code == 3
    assert kernel.ran == ["create-one", "create-two"]
    assert "move-up" in result.output


def test_a_kernel_that_is_known_to_hang_costs_seconds_and_no_other_scenario(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = PreFaultMemory(0x10000, 0x1000)
    scenario = Scenario("hangs", (CREATE, ahead, DELETE, ahead), (Mapping("a", 1),))
    history = ideal_history(scenario)
    first = next(n for n, event in enumerate(history.events) if event.origin == 3)
    ended = End("hung: no end within 20 s; kernel stack: none", first)
    kernel.histories["hangs"] = msgspec.structs.replace(
        history, events=history.events[:first], end=ended
    )
    monkeypatch.setattr(
        "vmm.catalogue.catalogue", lambda features, with_large=True: (scenario, *SCENARIOS)
    )
    monkeypatch.setattr("vmm.cli.running.carrying.MAX_HANGS", 1)
    result = vmm("check", "--patience", "30")
    assert "4 passed, 1 known" in result.stdout
    assert result.exit_code == 0
    assert kernel.limits["hangs"] == 2.5
    assert kernel.limits["create-one"] is None


def test_patience_reaches_the_time_limits(kernel: Kernel) -> None:
    assert vmm("check", "--patience", "20").exit_code == 0
    assert kernel.patience == 20
    assert vmm("check", "--patience", "0.5").exit_code == 0
    assert kernel.patience == 0.5
    assert vmm("check", "--patience", "0.05").exit_code == 2
