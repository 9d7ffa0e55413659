"""KTAP, read by the kernel's own parser, that of KUnit, which Debian's kernel sources hold."""

import importlib
import io
import shutil
import subprocess
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.results import EVERY_KIND, LEFT, run_of
from tests.unit.report.test_formats import told
from vmm.report.ktap import ktap_report

PACKAGE = "linux-source-6.12"
FOLDER = "tools/testing/kunit"
FILES = ("kunit_parser.py", "kunit_printer.py")
EXTRACT = f"""
set -e
apt-get download {PACKAGE}
dpkg-deb --fsys-tarfile {PACKAGE}_*.deb | tar -xO --wildcards './usr/src/{PACKAGE}.tar.xz' |
    xz -dc | tar -x --strip-components=1 {" ".join(f"{PACKAGE}/{FOLDER}/{name}" for name in FILES)}
"""


@pytest.fixture(scope="module")
def kunit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The module kunit_parser, which says nothing on standard output."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("needs apt-get, to have the kernel's sources")
    folder = tmp_path_factory.mktemp("kernel")
    done = subprocess.run(
        ["nice", "bash", "-c", EXTRACT], cwd=folder, capture_output=True, text=True, timeout=600
    )
    if "Unable to locate package" in done.stderr:
        pytest.skip(f"this host's package lists have no {PACKAGE}")
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(folder / FOLDER)
        parser = importlib.import_module("kunit_parser")
        patched.setattr(parser.stdout, "_output", io.StringIO())
        yield parser


@pytest.mark.long
def test_the_kernels_parser_has_each_scenario_in_its_subject(kunit: ModuleType) -> None:
    lines = told(ktap_report, run_of(*EVERY_KIND, not_run=LEFT), LEFT).splitlines()
    test = kunit.parse_run_tests(lines)
    assert errors_of(test) == []
    read = {
        subject.name: {each.name: each.status.name for each in subject.subtests}
        for subject in test.subtests
    }
    assert read == {
        "create": {"create-one": "SUCCESS", "create-huge": "SKIPPED", "create-two": "SUCCESS"},
        "move": {"move-wrong": "FAILURE", "left-out": "FAILURE"},
        "dirty": {"known-one": "SUCCESS", "known-gone": "SUCCESS"},
        "racing": {"slow": "FAILURE", "killed": "FAILURE"},
        "access": {"warned": "FAILURE", "our-fault": "FAILURE"},
        "spaces": {"spaces-one": "SKIPPED"},
    }
    move = next(each for each in test.subtests if each.name == "move")
    assert "#   observed  EEXIST" in "\n".join(move.subtests[0].log)


@pytest.mark.long
def test_the_kernels_parser_finds_what_is_missing(kunit: ModuleType) -> None:
    lines = told(ktap_report, run_of(*EVERY_KIND, not_run=LEFT), LEFT).splitlines()
    lines = [line for line in lines if "create-huge" not in line]
    assert errors_of(kunit.parse_run_tests(lines))


def errors_of(test: object) -> list[str]:
    """Return how often the parser found something wrong: it counts that for each test."""
    return [str(test)] if test.counts.errors else []  # type: ignore[attr-defined]
