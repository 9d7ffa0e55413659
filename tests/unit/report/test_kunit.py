"""KTAP, read by the kernel's own parser, that of KUnit, which Debian's kernel sources hold."""

import importlib
import io
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.kernelsource import extracted
from tests.results import EVERY_KIND, LEFT, run_of
from tests.unit.report.test_formats import told
from vmm.report.ktap import ktap_report

FOLDER = "tools/testing/kunit"


@pytest.fixture(scope="module")
def kunit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The module kunit_parser, which says nothing on standard output."""
    files = (f"{FOLDER}/{name}.py" for name in ("kunit_parser", "kunit_printer"))
    folder = extracted(tmp_path_factory.mktemp("kernel"), *files)
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
        "move": {"move-wrong": "FAILURE", "left-out": "SKIPPED"},
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
