"""The library's front door: its examples run, and what goes wrong is said."""

import doctest
import importlib
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import vmm
from vmm import AssemblerError, Mapping, Place, Scenario, ScenarioError, Status, operations
from vmm.library import scenarios
from vmm.scenario.history import Done
from vmm.scenario.trouble import Trouble

PUBLIC = [getattr(vmm, name) for name in vmm.__all__]
DOCUMENTED = sorted(
    {
        "vmm",
        *(each.__name__ if isinstance(each, ModuleType) else each.__module__ for each in PUBLIC),
        *(
            value.__module__
            for module in PUBLIC
            if isinstance(module, ModuleType)
            for value in vars(module).values()
            if isinstance(value, type) and value.__module__.startswith("vmm.")
        ),
        *(
            base.__module__
            for each in PUBLIC
            for base in getattr(each, "__mro__", ())
            if base.__module__.startswith("vmm.") and base.__module__ != "vmm.kvm.closing"
        ),
    }
)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_example_says_what_it_does(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted, "there is no example"
    assert result.failed == 0


def test_a_difference_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = operations.SetUserMemoryRegion(slot=0, memory_size=0x1001)
    checked = vmm.run_scenario(Scenario("unaligned", (refused,)))
    assert checked.verdict.status is Status.PASSED
    assert checked.steps[1].outcome == "EINVAL"
    assert checked.steps[1].rule == "size-aligned"


def test_what_the_host_lacks_is_a_skip_with_the_reason() -> None:
    scenario = Scenario("huge", (), (Mapping("h", 512, "hugetlb"),), needs=("hugetlb_pages",))
    if not vmm.why_not(scenario):
        pytest.skip("there are huge pages here")
    checked = vmm.run_scenario(scenario)
    assert checked.verdict.status is Status.SKIPPED
    assert checked.verdict.reason == "needs a free 2 MiB huge page (vm.nr_hugepages)"


def test_a_scenario_that_is_not_safe_is_refused() -> None:
    wild = operations.HostWrite(Place("nowhere"), 1)
    with pytest.raises(ScenarioError, match="no mapping is named 'nowhere'"):
        vmm.run_scenario(Scenario("wild", (wild,)))


@pytest.mark.parametrize(
    ("operation", "problem"),
    [
        (operations.Touch(gpa=1.5), r"\$\.operations\[0\]\.gpa: Expected `int`"),  # type: ignore[arg-type]
        (operations.Touch(gpa=0x5000, access="look"), r"\$\.operations\[0\]\.access"),  # type: ignore[arg-type]
        (3, r"\$\.operations\[0\]: "),
    ],
)
def test_a_field_of_another_type_is_told_with_its_place(operation: Any, problem: str) -> None:
    with pytest.raises(ScenarioError, match=problem):
        vmm.run_scenario(Scenario("odd", (operation,)))


def test_lists_and_hexadecimal_text_are_taken_as_in_a_file() -> None:
    touch: Any = operations.Touch(gpa="0x5000")  # type: ignore[arg-type]
    checked = vmm.run_scenario(Scenario("text", [touch]))  # type: ignore[arg-type]
    assert checked.scenario.operations == (operations.Touch(gpa=0x5000),)
    assert checked.verdict.status is Status.PASSED


@pytest.mark.parametrize("other", ["move-up", None, {"name": "x"}])
def test_what_is_no_scenario_is_told(other: Any) -> None:
    with pytest.raises(TypeError, match=r"is no vmm\.Scenario; curated_scenarios\(\) yields"):
        vmm.run_scenario(other)


@pytest.mark.parametrize("limit", [0, -1, math.nan, math.inf])
def test_a_limit_that_is_no_time_is_told(limit: float) -> None:
    with pytest.raises(ValueError, match=r"time_limit_s: .* is no time"):
        vmm.run_scenario(Scenario("empty", ()), time_limit_s=limit)


def test_every_curated_scenario_is_run_as_it_is() -> None:
    for scenario in vmm.curated_scenarios():
        assert scenarios._sound(scenario) == scenario


def test_an_interruption_is_not_kept_from_the_program() -> None:
    scenario = Scenario("again", (operations.Touch(gpa=0x5000),) * 500)
    vmm.run_scenario(scenario)
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    begun_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_for_20_s(scenario)
    assert time.monotonic() - begun_s < 15
    timer.join()


def run_for_20_s(scenario: Scenario) -> None:
    end_s = time.monotonic() + 20
    while time.monotonic() < end_s:
        vmm.run_scenario(scenario)


def test_the_guest_is_out_of_the_way_of_a_scenario_that_names_no_place_for_it() -> None:
    bios = operations.SetUserMemoryRegion(1, 0xFFFC_0000, 0x40000, Place("a"))
    scenario = Scenario("bios", (bios,), (Mapping("a", 64),))
    for history in (
        vmm.record_scenario(scenario),
        vmm.record_scenario(vmm.run_scenario(scenario).scenario),
    ):
        assert history.header.scenario.guest.gpa < bios.guest_phys_addr
        assert [each.outcome for each in history.events if each.operation == bios] == [Done()]


def test_source_that_is_wrong_is_told_with_its_line() -> None:
    with pytest.raises(AssemblerError, match=r"(?s)guest:2: Error: .*`fly %ax'"):
        vmm.assemble("nop\nfly %ax")
    with pytest.raises(ValueError, match="none of 16, 32 and 64"):
        vmm.assemble("nop", bits=8)


@pytest.mark.parametrize("source", ["call away", "mov $away, %eax", "mov away, %al", "jmp away"])
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_a_label_that_is_nowhere_is_told(source: str, bits: int) -> None:
    with pytest.raises(AssemblerError, match="undefined reference to `away'"):
        vmm.assemble(source, bits=bits)


@pytest.mark.parametrize(
    ("source", "bits", "code"),
    [
        ("mov here, %al; here: hlt", 16, "a00300f4"),
        ("mov here, %eax; here: hlt", 64, "8b042507000000f4"),
        ("mov here, %al; hlt; .data; here: .byte 7", 16, "a00400f407"),
        (".globl here; here: call here", 32, "e8fbffffff"),
        ("jmp 0x10", 16, "eb0e"),
    ],
)
def test_labels_are_relative_to_the_first_byte(source: str, bits: int, code: str) -> None:
    found = vmm.assemble(source, bits=bits).hex()
    assert found in (code, code.replace("eb0e", "e90d00"))


def test_a_missing_assembler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="as is missing: apt install binutils"):
        vmm.assemble("nop")


def test_a_loop_of_the_guest_is_ended_by_a_signal_handler_of_the_caller() -> None:
    code = """
        import signal
        from vmm import HostAddress, HostMapping, Kvm, KvmError, assemble

        signal.signal(signal.SIGALRM, lambda *_: None)
        with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
            memory.write(0, assemble("again: jmp again"))
            vm.set_user_memory_region(0, 0, 0x1000, 0x1000, HostAddress(memory, 0))
            vcpu = vm.create_vcpu(0)
            vcpu.enter_big_real_mode(0x1000, 0)
            signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
            try:
                vcpu.run()
            except KvmError as error:
                print(error)
            signal.setitimer(signal.ITIMER_REAL, 0)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "KVM_RUN(): EINTR Interrupted system call\n"
    assert time.monotonic() - begin < 30


def test_the_program_of_the_readme_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    section = text.partition("## From a program\n")[2].partition("\n## ")[0]
    code = textwrap.dedent(
        "\n".join(line for line in section.splitlines() if not line or line.startswith("    "))
    )
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    exec(code, {})
    (printed,) = capsys.readouterr().out.splitlines()
    assert f"# {printed}\n" in code


def test_a_kernel_that_cannot_be_asked_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "probe", lambda: Trouble("KVM_CREATE_VM", None, "hung: 20 s"))
    scenarios.features_here.cache_clear()
    with pytest.raises(RuntimeError, match="what it can do: KVM_CREATE_VM: hung: 20 s"):
        vmm.run_scenario(Scenario("nothing", ()))
