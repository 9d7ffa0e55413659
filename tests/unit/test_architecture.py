"""Keeps the import table of ARCHITECTURE.md: which folder may import which."""

import ast
import graphlib
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("kvm_abi", "guests", "vmm")
MAY_IMPORT: dict[str, set[str]] = {
    "kvm_abi": set(),
    "guests": set(),
    "vmm.kvm": {"kvm_abi"},
    "vmm.host": {"kvm_abi"},
    "vmm.scenario": {"kvm_abi.uapi"},
    "vmm.catalogue": {"vmm.scenario"},
    "vmm.execution": {"kvm_abi", "guests", "vmm.kvm", "vmm.host", "vmm.scenario"},
    "vmm.model": {"vmm.scenario", "kvm_abi.uapi"},
    "vmm.verdict": {"vmm.model", "vmm.scenario", "vmm.host", "kvm_abi.uapi"},
    "vmm.report": {
        *("vmm.verdict", "vmm.scenario"),
        *("vmm.host.health", "vmm.host.hostinfo", "vmm.host.structure"),
    },
    "vmm.repro": {"vmm.scenario", "vmm.model", "kvm_abi.uapi"},
    "vmm.replay": {"vmm.scenario", "vmm.verdict.judge", "kvm_abi.uapi"},
    "vmm.fuzz": {
        *("kvm_abi.uapi", "vmm.kvm", "vmm.host", "vmm.scenario", "vmm.execution"),
        *("vmm.verdict", "vmm.repro"),
    },
    "vmm.fuzz.generate": {"vmm.scenario", "vmm.model.model", "kvm_abi.uapi"},
    "vmm.fleet": {"vmm.scenario.toolversion", "vmm.verdict.statuses"},
    "vmm.bench": {"kvm_abi", "vmm.kvm", "vmm.scenario.undecodable", "vmm.scenario.kinds"},
    "vmm.lab": {"vmm.verdict.statuses", "vmm.host.naming"},
    "vmm.whitebox": {"vmm.scenario.kernelslots", "vmm.scenario.undecodable"},
    "vmm.cli": {"kvm_abi", "guests", "vmm"},
    "vmm.library": {
        *("vmm.kvm", "vmm.host", "vmm.scenario", "vmm.catalogue", "vmm.execution"),
        *("vmm.verdict", "vmm.report"),
    },
    "vmm.testing": {
        *("kvm_abi", "vmm.kvm", "vmm.host", "vmm.catalogue", "vmm.library"),
        *("vmm.scenario.features", "vmm.scenario.selection", "vmm.scenario.slots"),
        "vmm.verdict.judge",
    },
    "vmm": {"vmm.public"},
    "vmm.public": {
        *("kvm_abi", "vmm.kvm", "vmm.scenario.operations", "vmm.scenario.history"),
        *("vmm.scenario.problem", "vmm.scenario.features", "vmm.host.health"),
        *("vmm.scenario.kernelslots", "vmm.model.rule", "vmm.verdict", "vmm.library"),
    },
}
"""Folder -> folders, or single modules, that it may import besides itself."""

COMPILED = {
    "kvm_abi._kvm": ("kvm_abi.raw", "kvm_abi.mman", "kvm_abi.notices"),
    "kvm_abi._frequent": ("kvm_abi.raw", "kvm_abi.shortcut"),
    "guests._image": ("guests",),
}
FORBIDDEN = {"fcntl", "ctypes"}
IMPORT_BY_TEXT = {"vmm", "vmm.cli.groups", "vmm.cli.preloaded"}
"""Modules that import modules whose names are texts, which the table cannot see."""


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
    return frozenset(_imports(tree(module)))


@cache
def tree(module: str) -> ast.Module:
    """Return what a module's source says."""
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


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


def is_within(module: str, package: str) -> bool:
    """Return whether a module is a package, or lies in it."""
    return module == package or module.startswith(f"{package}.")


def folder_of(module: str) -> str:
    """Return the row of the table that a module belongs to: the innermost folder named there."""
    return max((folder for folder in MAY_IMPORT if is_within(module, folder)), key=len)


def breaks(module: str) -> set[str]:
    """Return what a module imports against the table."""
    folder = folder_of(module)
    allowed = {folder, *MAY_IMPORT[folder]} if folder != "vmm" else MAY_IMPORT[folder]
    return {name for name in ours(module) if not any(is_within(name, each) for each in allowed)}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_the_table_allows(folder: str) -> None:
    mine = [module for module in modules() if folder_of(module) == folder]
    assert mine, "the table names a folder that is not there"
    assert {module: found for module in mine if (found := breaks(module))} == {}


def test_the_page_shows_this_table() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w/]+)/` \|.*\| ([^|]*)\|$", page, re.M))
    del rows["tests"]
    assert rows.pop("vmm/cli").strip() == "everything"
    shown = {
        folder.replace("/", "."): {module_of(name) for name in re.findall(r"[\w.]+", cell)}
        for folder, cell in rows.items()
    }
    assert shown == {name: MAY_IMPORT[name] for name in MAY_IMPORT.keys() - {"vmm", "vmm.cli"}}


def module_of(words: str) -> str:
    """Return the module or folder that a cell of the page means; it leaves out ``vmm.``."""
    return words if words.partition(".")[0] in PACKAGES else f"vmm.{words}"


@pytest.mark.parametrize("folder", MAY_IMPORT.keys() - {"vmm.cli"})
def test_every_permission_is_used(folder: str) -> None:
    """One that nothing needs would let a new import pass that nobody has decided on."""
    used = {name for module in modules() if folder_of(module) == folder for name in ours(module)}
    allowed = MAY_IMPORT[folder]
    assert {each for each in allowed if not any(is_within(name, each) for name in used)} == set()


def test_no_folder_takes_what_another_keeps_to_itself() -> None:
    taken = {
        (module, f"{package}.{name}")
        for module in modules()
        for package, name in names_taken(module)
        if re.search(r"\._[a-z]", f"{package}.{name}") and folder_of(package) != folder_of(module)
    }
    assert taken == set()


def names_taken(module: str) -> Iterator[tuple[str, str]]:
    """Yield (module of ours, name) of everything that is imported by its name."""
    for node in ast.walk(tree(module)):
        match node:
            case ast.ImportFrom(module=str(package), names=names):
                if package.partition(".")[0] in PACKAGES:
                    yield from ((package, each.name) for each in names)


def test_the_table_names_every_folder() -> None:
    folders = {f"vmm.{path.parent.name}" for path in (ROOT / "vmm").glob("*/__init__.py")}
    assert folders <= MAY_IMPORT.keys()


def test_no_module_lies_outside_the_folders() -> None:
    assert [module for module in modules() if folder_of(module) == "vmm"] == ["vmm"]


def test_no_fcntl_and_no_ctypes() -> None:
    for module in modules():
        tops = {name.partition(".")[0] for name in imports(module)}
        assert not tops & FORBIDDEN, module


def test_no_other_module_imports_what_a_text_names() -> None:
    ways = {"import_module", "__import__", "run_module", "exec"}
    found = {
        module
        for module in modules()
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", "")) in ways
    }
    assert found == IMPORT_BY_TEXT


@pytest.mark.parametrize(("compiled", "owners"), COMPILED.items())
def test_only_their_owners_import_the_compiled_modules(
    compiled: str, owners: tuple[str, ...]
) -> None:
    importers = {module for module in modules() if compiled in imports(module)}
    assert importers
    assert all(any(is_within(module, owner) for owner in owners) for module in importers)


def test_no_circular_imports() -> None:
    graph = {module: ours(module) & modules().keys() for module in modules()}
    graphlib.TopologicalSorter(graph).prepare()


# Facts, each held to the kernel's headers by a test; and what setup.py names.
OF_USE_AS_A_WHOLE = {"kvm_abi.uapi", "kvm_abi._build", "guests._build"}


def test_every_name_of_a_module_is_used() -> None:
    """Tests are no use of a name. Vulture compares spellings alone; here imports are followed."""
    asked_for = taken_from_others()
    unused = [
        f"{module}.{name}"
        for module in modules().keys() - OF_USE_AS_A_WHOLE
        for name in defined_but_unread(tree(module)) - asked_for[module]
        if not name.startswith(("__", "pytest_"))
    ]
    assert not unused


def taken_from_others() -> dict[str, set[str]]:
    """Return which names of each module others import, or look up in it."""
    taken: dict[str, set[str]] = defaultdict(set)
    for module in modules():
        meant: dict[str, str] = {}
        for node in ast.walk(tree(module)):
            match node:
                case ast.ImportFrom(module=str(package), names=names):
                    taken[package].update(each.name for each in names)
                    meant |= {each.asname or each.name: f"{package}.{each.name}" for each in names}
                case ast.Import(names=names):
                    meant |= {each.asname or each.name: each.name for each in names}
                case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                    taken[meant.get(name, "")].add(attribute)
    return taken


def defined_but_unread(module: ast.Module) -> set[str]:
    """Return the top-level names that nothing else in a module reads; a decorator is a use."""
    defined: set[str] = set()
    read: set[str] = {"_"}
    for statement in module.body:
        own = ""
        match statement:
            case ast.FunctionDef(name=own) | ast.ClassDef(name=own):
                defined.update(() if statement.decorator_list else (own,))
        for node in ast.walk(statement):
            match node:
                case ast.Name(id=name, ctx=ast.Load()) if name != own:
                    read.add(name)
                case ast.Name(id=name, ctx=ast.Store()) if not own:
                    defined.add(name)
                case ast.Constant(value=str(annotation)):
                    read.add(annotation)
    return defined - read
