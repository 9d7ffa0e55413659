"""Who runs the commands that documents and examples show: each has to be run by a test.

A command runs as it stands in `tests/kvm/test_documents.py`; a form with placeholders is filled
first. What CI lacks is run by another test, which is named here, and the few commands that nothing
runs have a reason. `tests/unit/test_documents.py` tells of a command that has none of these.
"""

import re
from enum import Enum

from tests.documents import IN_BLOCKS, IN_JOBS, PLACEHOLDER, Shown


class By(Enum):
    """Who runs a command."""

    DOCUMENTS = "tests/kvm/test_documents.py, as it stands"
    FORM = "tests/kvm/test_documents.py, its placeholders filled"
    TEST = "another test"
    NOBODY = "nobody"


def run_by(shown: Shown) -> tuple[By, str]:
    """Return who runs a command: with the command that is run, the other test, or why nobody."""
    table = ELSEWHERE_JOBS if shown in IN_JOBS else ELSEWHERE
    for what, test in table.items():
        if re.search(what, shown.command):
            return By.TEST, test
    for what, why in NOWHERE.items():
        if re.search(what, shown.command):
            return By.NOBODY, why
    if shown in IN_BLOCKS:
        return By.DOCUMENTS, shown.command
    filled = FORMS.get(shown.command) or _filled(shown.command)
    return (By.DOCUMENTS if filled == shown.command else By.FORM), filled


_VALUES = {
    "NAME": "move-up", "NAME-PATTERN": "'move-up*'", "TAG": "move", "PATTERN": "'zero-*'", "S": "2",
    "N": "1", "J": "1", "COMMAND": "vmm run move-up", "or": "",
}  # fmt: skip
"""What stands for a placeholder; one that is left out is the name of a file (see `folders`)."""


def _filled(command: str) -> str:
    if not any(PLACEHOLDER.search(word) for word in command.split()):
        return command
    words = re.sub(r"[\[\]]|\.\.\.", " ", command).split()
    return " ".join(_VALUES.get(word, word) for word in words)


_STRACE = (
    "vmm repro move-up | cc -x c -o traced - && "
    "strace -f -e trace=ioctl -o FILE ./traced && vmm replay --judge-only FILE"
)
_COVERAGE = "vmm coverage RESULT.json {} || [ $? = 3 ]"

FORMS = {
    "vmm coverage [RESULT.json] [--json or --markdown]": _COVERAGE.format(""),
    "vmm coverage --json": _COVERAGE.format("--json"),
    "vmm coverage --markdown": _COVERAGE.format("--markdown"),
    "vmm check [NAME-PATTERN ...] [--tag TAG] [--exclude PATTERN] [--all] [--list] [--json FILE] "
    "[--failed-histories DIR] [-v or -q]": "vmm check 'move-*' --tag move --exclude 'move-u*' "
    "--all --list && vmm check move-up --json FILE --failed-histories DIR -v",
    "vmm check --format ktap --format junit:FILE --html FILE ...": "vmm check --format ktap "
    "--format junit:FILE.xml --html FILE move-up",
    "vmm check --html FILE": "vmm check --html FILE move-up",
    "vmm check --json FILE": "vmm check --json FILE move-up",
    "vmm check --histories FILE.jsonl": "vmm check --histories FILE.jsonl move-up",
    "vmm run --history FILE": "vmm run --history FILE move-up",
    "vmm bench --plot FILE.svg": "vmm bench --slots 1 --rounds 3 --plot FILE.svg",
    "vmm bench --json FILE": "vmm bench --slots 1 --rounds 3 --json FILE",
    "vmm bench --against OLD.json": "vmm bench --work nop --slots 1 --against OLD.json || "
    "[ $? = 1 ]",
    "vmm bench [--slots N] [--against OLD.json] [--plot FILE.svg] ...": "vmm bench --work nop "
    "--slots 1 --rounds 3 --against OLD.json --plot FILE.svg || [ $? = 1 ]",
    "vmm fuzz [--seconds S] [--seed N] [--jobs J] [--out DIR] ...": "vmm fuzz --seconds 2 --seed 1 "
    "--jobs 1 --out FOUND",
    "vmm record [-o FILE] [--judge-only] -- COMMAND ...": "vmm record -o FILE --judge-only -- "
    "vmm run move-up",
    "vmm COMMAND --help": "vmm check --help",
    "vmm judge DIR/under-way.jsonl": "timeout -s KILL 1 vmm check --all --tag racing "
    "--journal DIR; vmm judge DIR/under-way.jsonl || [ $? = 3 ]",
    "strace -f -e trace=ioctl -o FILE vmm ...": _STRACE,
    "strace -f": _STRACE,
    "strace -ff -ttt -o NAME": "strace -ff -ttt -o DIR/NAME vmm run move-up && "
    "vmm replay --judge-only DIR/NAME",
    "vmm replay NAME": "vmm replay --judge-only DIR/NAME",
    "for n in $(seq 20); do ./repro || exit 1; done": "vmm repro move-up | cc -x c -o repro - && "
    "for n in $(seq 20); do ./repro || exit 1; done",
}
"""What is run for a form, and for what needs something before it."""

_INSTALLED = "tests/packaging/test_distribution.py::test_the_wheel_brings_the_pytest_plugin"
_EXTRAS = "tests/packaging/test_distribution.py::test_what_an_extra_needs_can_be_installed"
_LAB = "tests/lab_vm/test_shown.py::test_a_command_of_the_lab_that_is_shown_works"
_LAVA = "tests/unit/test_examples.py::test_the_test_of_lava_reports_each_scenario"

ELSEWHERE = {
    r"^git bisect\b": "tests/lab_vm/test_bisect.py::"
    "test_git_bisect_finds_the_commit_in_kernels_that_each_step_builds_and_boots",
    r"^(\./scripts/)?vmm lab (run|matrix|diff|symbols)\b": _LAB,
    r"^pipx install \.$": "tests/packaging/test_distribution.py::"
    "test_pipx_installs_the_command_and_its_manual",
    r"^python -m build$": "tests/packaging/test_distribution.py::"
    "test_pip_makes_the_same_wheel_of_the_sdist_in_an_environment_of_its_own",
    r"^pip install 'memslot-vmm\[": _EXTRAS,
    r"^pip install memslot-vmm\b|^(VMM_REQUIRE_KVM=1 )?pytest$": _INSTALLED,
    r"\bvng\b": "tests/lab_vm/test_virtme.py::test_vng_takes_what_the_guide_gives_it",
    r"^kubectl\b": "tests/unit/test_examples.py::test_the_job_is_one_in_the_eyes_of_kubernetes",
    r"^tmt\b": "tests/kvm/test_engines.py::test_tmt_runs_the_plan_on_this_machine",
    r"^dask\b|--dask\b": "tests/kvm/test_fleet.py::test_a_check_on_a_cluster_is_one_result",
    r"\bvmm .*--white-box\b|judge h.jsonl": "tests/kvm/test_white_box.py::"
    "test_every_region_operation_has_what_the_kernel_held_and_nothing_else_has",
    r"^qemu-system-x86_64 -trace\b": "tests/kvm/test_record.py::"
    "test_what_qemu_traces_itself_is_judged_and_made_here",
    r"\bqemu-system-x86_64 -accel\b": "tests/kvm/test_record.py::"
    "test_qemu_with_seabios_is_judged_without_a_difference",
    r"^man vmm$": "tests/unit/cli/test_shell.py::test_the_manual_page_is_right_in_the_eyes_of_man",
    r"^mkdocs serve$": "tests/unit/test_docs.py::"
    "test_pages_are_built_without_a_warning_and_hold_every_public_name",
    r"^scripts/fuzz-table\b": "tests/lab/test_fuzz.py::"
    "test_a_wrong_kernel_is_found_minimised_and_told",
    r"^scripts/lab-kernel\b": "tests/unit/test_scripts.py::"
    "test_all_that_a_kernel_takes_is_missed_in_one_line",
}
"""The other test that runs a command of a document."""

ELSEWHERE_JOBS = {
    r"^exec vmm fuzz\b": "tests/kvm/test_engines.py::test_a_pod_of_the_job_searches_its_part",
    r"\bSCENARIOS\b": "tests/kvm/test_engines.py::test_tmt_runs_the_plan_on_this_machine",
    r"/tmp/(venv|memslots)|\$result": _LAVA,
    r"^vmm (check --require-run 100\b|info$)": "tests/kvm/test_engines.py::"
    "test_the_commands_of_a_job_leave_the_files_that_it_keeps",
    r"^pip install memslot-vmm$": _INSTALLED,
}
"""The same of jobs, which have the commands from the examples themselves."""

NOWHERE = {
    r"^apt install\b": "changes the host; a test asks apt for the packages",
    r"^pipx install virtme-ng$": "the extra `long` brings it by pip",
    r"^\./scripts/test\b": "these tests are what it runs",
    r"^make\b": "builds a kernel in minutes",
    r"^scripts/mutants\b": "takes an hour; a test holds its options against its help",
    r"^cat step$": "shows a script for git bisect",
    r"/etc/udev\b": "lets a user of GitHub's runners open /dev/kvm",
}
"""Why nothing runs a command."""
