"""Keeps the rules of ARCHITECTURE.md on which part may import which."""

import ast
import graphlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("kvm_abi", "guests", "vmm", "scenarios")
CORE = {
    f"vmm.{name}"
    for name in (
        *("system", "vm", "vcpu", "dirtyring", "exits", "memory", "registers"),
        *("child", "closing"),
    )
}
JUDGES = {
    f"vmm.memslots.{name}"
    for name in ("operations", "history", "describe", "array", "model", "check", "rules")
}
COMPILED = {"kvm_abi._kvm": "kvm_abi.raw", "guests._image": "guests"}
FORBIDDEN = {"fcntl", "ctypes"}


@cache
def modules() -> dict[str, Path]:
    """Return the file of every module of the project, by its dotted name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


@cache
def imports(module: str) -> frozenset[str]:
    """Return everything that a module imports, functions' own imports included.

    `from package import name` counts as `package.name` where that is a module of ours.
    """
    return frozenset(_imports(ast.parse(modules()[module].read_text(encoding="utf-8"))))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(package), names=names, level=0):
                inner = {f"{package}.{alias.name}" for alias in names}
                yield from (inner & (modules().keys() | COMPILED.keys())) or {package}
            case ast.ImportFrom():
                raise AssertionError("relative imports hide what is imported")


def ours(module: str) -> set[str]:
    """Return which modules of the project a module imports."""
    return {name for name in imports(module) if name.partition(".")[0] in PACKAGES}


@cache
def reached(module: str) -> frozenset[str]:
    """Return every module of the project that a module needs, however far away."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        for name in ours(waiting.pop()) & modules().keys():
            if name not in found:
                found.add(name)
                waiting.append(name)
    return frozenset(found)


def within(*packages: str) -> list[str]:
    """Return the modules of some packages."""
    return [m for m in modules() if any(m == p or m.startswith(f"{p}.") for p in packages)]


def test_the_rules_meet_their_modules() -> None:
    """A module that is renamed does not slip through."""
    assert modules().keys() >= CORE
    assert JUDGES - {"vmm.memslots.model"} <= modules().keys()
    assert within("vmm.memslots.model")


@pytest.mark.parametrize("package", ["kvm_abi", "guests"])
def test_the_lowest_packages_import_only_themselves(package: str) -> None:
    for module in within(package):
        assert {name.partition(".")[0] for name in ours(module)} <= {package}, module


def test_the_core_imports_only_what_is_below() -> None:
    for module in CORE:
        others = {name for name in ours(module) if name not in CORE}
        assert {name.partition(".")[0] for name in others} <= {"kvm_abi", "guests"}, module


def test_judging_needs_no_kernel() -> None:
    executing = {*CORE, "kvm_abi.raw", "vmm.memslots.executor"}
    for module in within(*JUDGES):
        assert not reached(module) & executing, module


def test_model_and_executor_do_not_know_each_other() -> None:
    for module in within("vmm.memslots.model"):
        assert "vmm.memslots.executor" not in reached(module), module
    for module in within("vmm.memslots.executor"):
        assert not reached(module) & set(within("vmm.memslots.model")), module


def test_reports_never_import_the_executor() -> None:
    for module in within("vmm.report"):
        assert "vmm.memslots.executor" not in reached(module), module


def test_no_fcntl_and_no_ctypes() -> None:
    for module in modules():
        tops = {name.partition(".")[0] for name in imports(module)}
        assert not tops & FORBIDDEN, module


@pytest.mark.parametrize(("compiled", "owner"), COMPILED.items())
def test_only_their_owners_import_the_compiled_modules(compiled: str, owner: str) -> None:
    importers = {module for module in modules() if compiled in imports(module)}
    assert importers
    assert importers <= set(within(owner))


def test_no_circular_imports() -> None:
    graph = {module: ours(module) & modules().keys() for module in modules()}
    graphlib.TopologicalSorter(graph).prepare()
