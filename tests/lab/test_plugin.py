"""The pytest plugin as a project uses it that has installed it: pytest in its own process."""

import errno
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.lab.lab import environment

ROOT = Path(__file__).parents[2]


def project(folder: Path, *options: str, **variables: str) -> str:
    """Run pytest in a folder, and return its output."""
    variables = {"VMM_REQUIRE_KVM": "", **variables}
    # Plugins that only our own tests use take longer to load than most of these projects to run.
    without = [f"-pno:{each}" for each in ("cacheprovider", "hypothesispytest", "anyio")]
    command = [sys.executable, "-m", "pytest", *without, "-rA", *options]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return f"{done.stdout}{done.stderr}\nstatus {done.returncode}"


def a_project(folder: Path, source: str, conftest: str = "") -> Path:
    """Write a project with one test file."""
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    (folder / "test_it.py").write_text(textwrap.dedent(source))
    (folder / "conftest.py").write_text(textwrap.dedent(conftest))
    return folder


def test_the_example_project_passes(tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "examples/pytest-project", tmp_path / "project")
    printed = project(folder)
    assert printed.endswith("status 0"), printed
    assert "9 passed, 1 skipped" in printed
    assert "PASSED test_curated.py::test_moves[move-up]" in printed
    assert re.search(r"needs KVM_CAP_NR_MEMSLOTS of 1000000: this kernel says \d+", printed)


def test_the_example_uses_nothing_but_what_is_public() -> None:
    for file in (ROOT / "examples/pytest-project").glob("*.py"):
        imported = set(re.findall(r"^(?:from|import) ([\w.]+)", file.read_text(), re.MULTILINE))
        assert imported <= {"pytest", "vmm", "vmm.testing"}


def test_a_failure_shows_the_slot_map_and_the_last_exit(tmp_path: Path) -> None:
    source = """
        from vmm import assemble

        def test_it(guest_memory, vcpu):
            guest_memory(0x1000, content=assemble("movb $1, 0x5000; hlt"))
            guest_memory(0x8000, 0x2000, slot=7)
            vcpu.enter_big_real_mode(0x1000, 0)
            assert vcpu.run() is None
    """
    printed = project(a_project(tmp_path, source))
    assert printed.endswith("status 1")
    section = printed.partition(" KVM machine 0 ")[2]
    first, second, third = section.splitlines()[1:4]
    assert re.fullmatch(r"slot 7: gpa 0x8000\.\.0xa000 \(2 pages\) -> hva 0x\w+, flags 0x0", first)
    assert second.startswith("slot 0: gpa 0x1000..0x2000 (1 page)")
    assert re.fullmatch(
        r"vCPU 0: last exit Mmio\(gpa=0x5000, data=b'\\x01', is_write=True\), rip 0x\w+", third
    )


def test_a_fixture_that_fails_shows_the_slot_map_too(tmp_path: Path) -> None:
    source = """
        import pytest

        @pytest.fixture
        def two(guest_memory):
            guest_memory(0x1000, slot=3)
            guest_memory(0x1000, slot=4)

        def test_it(two):
            pass
    """
    printed = project(a_project(tmp_path, source))
    assert "EEXIST" in printed
    assert printed.partition(" KVM machine 0 ")[2].splitlines()[1].startswith("slot 3: gpa 0x1000")


def test_a_deleted_slot_is_not_shown(tmp_path: Path) -> None:
    source = """
        def test_it(vm, guest_memory):
            guest_memory(0x1000, slot=3)
            vm.set_user_memory_region(3, 0, 0, 0, 0)
            assert False
    """
    printed = project(a_project(tmp_path, source))
    assert printed.partition(" KVM machine 0 ")[2].splitlines()[1] == "no memslot"


def test_a_scenario_fails_with_its_step_rule_and_slot_map(tmp_path: Path) -> None:
    source = """
        from vmm.testing import memslot_scenario

        test_it = memslot_scenario("move-then-delete-then-create")
    """
    folder = a_project(tmp_path, source)
    assert project(folder).endswith("status 0")
    printed = project(folder, **environment("delete-lost", {}))
    assert printed.endswith("status 1"), printed
    assert "FAILED test_it.py::test_it[move-then-delete-then-create]" in printed
    assert "DIFFERS      move-then-delete-then-create" in printed
    assert "            by hole: a gpa without a slot is MMIO" in printed
    assert "  slots     [0] slot 400: gpa 0xffff0000" in printed


WRONG = [
    ("KVM_GET_API_VERSION:errno=22", "KVM_GET_API_VERSION(): EINVAL", 3),
    ("KVM_GET_API_VERSION:answer=13", "KVM_GET_API_VERSION() answers 13, and not 12", 3),
    ("KVM_CHECK_EXTENSION:errno=22", "KVM_CHECK_EXTENSION(KVM_CAP_USER_MEMORY): EINVAL", 3),
    ("KVM_CREATE_VM:errno=12", "KVM_CREATE_VM(0): ENOMEM", 3),
    ("KVM_SET_REGS:errno=4:times=1", "rflags=0x2): EINTR", 2),
    ("KVM_RUN:direction=2", "KVM_RUN(): an exit with mmio.is_write=2", 2),
    ("CLOSE:errno=5", "close(a VM): EIO", 3),
]
"""Calls that are wrong, what a failure says of them, and how many of three tests have one."""


@pytest.mark.parametrize(("call", "said", "failing"), WRONG)
def test_a_wrong_kernel_is_a_failure_and_neither_a_skip_nor_an_error_of_the_plugin(
    tmp_path: Path, call: str, said: str, failing: int
) -> None:
    source = """
        import pytest
        from vmm import assemble
        from vmm.testing import memslot_scenario

        test_curated = memslot_scenario("create-one-page")

        def test_exit(guest_memory, vcpu):
            guest_memory(0x1000, content=assemble("movb $1, 0x5000; hlt"))
            vcpu.enter_big_real_mode(0x1000, 0)
            vcpu.run()

        @pytest.mark.kvm_capability("USER_MEMORY")
        def test_capability():
            pass
    """
    printed = project(a_project(tmp_path, source), **environment("", {}, call))
    assert printed.endswith("status 1"), printed
    assert "INTERNALERROR" not in printed
    assert "skipped" not in printed
    assert len(re.findall(r"^(?:FAILED|ERROR) ", printed, re.MULTILINE)) == failing
    assert said in printed
    assert "another exception" not in printed
    assert "vmm/testing/" not in printed  # What the plugin says is no traceback through it.


OF_EACH_KIND = """
    import pytest
    from vmm.testing import memslot_scenario

    test_curated = memslot_scenario("create-one-page")

    def test_machine(vcpu):
        pass

    @pytest.mark.kvm_capability("READONLY_MEM")
    def test_capability():
        pass
"""
"""A project with a test of each kind that needs KVM."""


def test_a_kernel_that_lacks_memslots_by_its_own_word_is_a_skip(tmp_path: Path) -> None:
    source = """
        from vmm.testing import memslot_scenario

        test_it = memslot_scenario("create-one-page")
    """
    folder = a_project(tmp_path, source)
    lacking = environment("", {}, "KVM_CHECK_EXTENSION:answer=0")
    printed = project(folder, **lacking)
    assert printed.endswith("status 0"), printed
    assert "needs KVM: [Errno 19] KVM_CAP_USER_MEMORY is 0; this KVM has no memslots" in printed
    required = project(folder, **{**lacking, "VMM_REQUIRE_KVM": "1"})
    assert required.endswith("status 1")


def test_a_cpu_that_another_hypervisor_holds_is_a_skip(tmp_path: Path) -> None:
    folder = a_project(tmp_path, OF_EACH_KIND)
    busy = environment("", {}, f"KVM_CREATE_VM:errno={errno.EBUSY}")
    printed = project(folder, **busy)
    assert "3 skipped" in printed
    assert "needs KVM: [Errno 19] KVM_CREATE_VM: EBUSY; another hypervisor holds" in printed
    assert "needs KVM: KVM_CREATE_VM(0): EBUSY" in printed
    required = project(folder, **{**busy, "VMM_REQUIRE_KVM": "1"})
    assert required.endswith("status 1")
    assert "skipped" not in required


def test_scenarios_are_tests_of_a_class_too(tmp_path: Path) -> None:
    source = """
        from vmm.testing import memslot_scenario

        class TestMoves:
            test_it = memslot_scenario("move-up*")
    """
    printed = project(a_project(tmp_path, source))
    assert printed.endswith("status 0"), printed
    assert "PASSED test_it.py::TestMoves::test_it[move-up-over-itself]" in printed


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "from vmm.testing import memslot_scenario\ntest_it = memslot_scenario('fly-*')",
            "memslot_scenario: no scenario matches 'fly-*'",
        ),
        (
            "import pytest\n@pytest.mark.kvm_capability('FLY')\ndef test_it(): pass",
            "kvm_capability: no capability is named 'FLY'",
        ),
        (
            "import pytest\n@pytest.mark.kvm_capability('DIRTY_LOG_RNG')\ndef test_it(): pass",
            "no capability is named 'DIRTY_LOG_RNG'; the closest: DIRTY_LOG_RING",
        ),
        (
            "import pytest\n@pytest.mark.kvm_capability('x86_smm')\ndef test_it(): pass",
            "no capability is named 'x86_smm'; the closest: X86_SMM",
        ),
        *(
            (
                f"import pytest\n@pytest.mark.kvm_capability({arguments})\ndef test_it(): pass",
                'write kvm_capability("NAME", at_least=NUMBER)',
            )
            for arguments in ("", "17", "'USER_MEMORY', atleast=2", "'USER_MEMORY', '2'")
        ),
    ],
)
def test_names_that_do_not_exist_are_told(tmp_path: Path, source: str, message: str) -> None:
    printed = project(a_project(tmp_path, source))
    assert message in printed
    assert "vmm/testing/" not in printed  # The message, and no traceback through the plugin.
    assert "During handling" not in printed
    assert not printed.endswith("status 0")


def test_a_project_may_have_fixtures_of_these_names(tmp_path: Path) -> None:
    conftest = """
        import pytest
        from vmm import Kvm

        @pytest.fixture
        def kvm():
            with Kvm.open() as device:
                yield device
    """
    source = """
        import pytest
        from vmm import Cap, HostAddress

        @pytest.mark.kvm_capability(Cap.USER_MEMORY, 1)
        def test_it(vm, vcpu, guest_memory):
            memory = guest_memory(0x1000, 0x2000)
            assert guest_memory(0x5000).read(0, 1) == bytes(1)
            vm.set_user_memory_region(2, 0, 0x9000, 0x1000, HostAddress(memory, 0))
            guest_memory(0xa000)

        class TestAnother:
            @pytest.fixture
            def vm(self):
                return "another hypervisor's"

            def test_passes(self, vm, kvm):
                pass

            def test_fails(self, guest_memory):
                pass
    """
    printed = project(a_project(tmp_path, source, conftest))
    assert "2 passed, 1 error" in printed
    needed = 'guest_memory: the fixture vm, which is "another hypervisor\'s" here'
    assert needed in printed


NO_KVM = """
    import pytest
    from vmm.testing.recorded import RecordedKvm

    def refused(*_):
        raise FileNotFoundError(2, "No such file or directory", "/dev/kvm")

    RecordedKvm.open = refused
"""


def test_without_kvm_everything_is_skipped_with_the_reason_or_fails(tmp_path: Path) -> None:
    folder = a_project(tmp_path, OF_EACH_KIND, NO_KVM)
    printed = project(folder)
    assert "3 skipped" in printed
    assert "needs KVM: [Errno 2] No such file or directory: '/dev/kvm'" in printed
    required = project(folder, VMM_REQUIRE_KVM="1")
    assert required.endswith("status 1")
    assert "passed" not in required
    assert "skipped" not in required


def test_a_complaint_of_the_kernel_fails_the_test_that_asked(tmp_path: Path) -> None:
    conftest = """
        from vmm.host.health import KernelWatch, Problem

        KernelWatch.news = lambda self: (Problem("WARNING: at mmu.c:1", ("a trace",)),)
    """
    source = """
        def test_asks(kernel_health):
            pass

        def test_does_not():
            pass
    """
    printed = project(a_project(tmp_path, source, conftest))
    assert "the kernel complained:\nWARNING: at mmu.c:1\na trace" in printed
    assert "ERROR test_it.py::test_asks" in printed
    assert "PASSED test_it.py::test_does_not" in printed


def test_other_projects_load_next_to_nothing(tmp_path: Path) -> None:
    source = """
        import sys

        def test_it():
            heavy = ("kvm_abi", "guests", "vmm.kvm", "vmm.model", "vmm.catalogue", "msgspec")
            assert not [name for name in sys.modules if name.startswith(heavy)]
    """
    assert project(a_project(tmp_path, source)).endswith("status 0")
