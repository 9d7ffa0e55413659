"""`import vmm`: what it offers, and that it loads nothing that is not used."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from inspect import getdoc
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, get_args, get_type_hints

import pytest

import vmm
from vmm.public import PLACES


def test_every_public_name_is_there_and_documented() -> None:
    for name in vmm.__all__:
        found = getattr(vmm, name)
        assert ">>>" in found.__doc__, f"{name} has no example"
        assert name in dir(vmm)


def modules_and_classes() -> tuple[list[ModuleType], set[Any]]:
    """Return the public modules, and every public class and function, those in them included."""
    public = [getattr(vmm, name) for name in vmm.__all__]
    modules = [each for each in public if isinstance(each, ModuleType)]
    inside = {
        value
        for module in modules
        for name, value in vars(module).items()
        if not name.startswith("_") and isinstance(value, type)
    }
    return modules, inside | {each for each in public if not isinstance(each, ModuleType)}


def is_ours(thing: object) -> bool:
    return isinstance(thing, type) and thing.__module__.startswith(("vmm.", "kvm_abi."))


def methods(thing: type) -> Iterator[tuple[str, FunctionType, bool]]:
    """Yield the public methods of a class and of its bases that are ours: name, it, a property?"""
    for name in dir(thing):
        owner = next((each for each in thing.__mro__ if name in vars(each)), object)
        found = vars(owner).get(name)
        if name.startswith("_") or not is_ours(owner):
            continue
        is_property = isinstance(found, property)
        function = getattr(found, "fget", None) or getattr(found, "__func__", found)
        if isinstance(function, FunctionType):
            yield name, function, is_property


def test_every_function_and_method_has_an_example_and_says_what_it_raises() -> None:
    _, public = modules_and_classes()
    wanting = []
    for thing in public:
        owner = getattr(thing, "__name__", "")
        found = methods(thing) if is_ours(thing) else iter(())
        if isinstance(thing, FunctionType):
            found = iter([(owner, thing, False)])
        for name, function, is_property in found:
            says = getdoc(getattr(thing, name, function)) or ""  # Of a base, where one overrides.
            if not says or not (is_property or (">>>" in says and "Raises" in says)):
                wanting.append(f"{owner}.{name}")
    assert sorted(wanting) == []


def test_every_class_has_an_example() -> None:
    _, public = modules_and_classes()
    ours = (each for each in public if is_ours(each) and not each.__module__.startswith("kvm_abi"))
    assert sorted(each.__name__ for each in ours if ">>>" not in (each.__doc__ or "")) == []


def named_in(hint: Any) -> Iterator[type]:
    """Yield our classes in an annotation."""
    if is_ours(hint):
        yield hint
    for each in get_args(hint):
        yield from named_in(each)


def test_every_class_that_something_public_names_is_public() -> None:
    _, public = modules_and_classes()
    missing = set()
    for thing in public:
        annotated: list[Any] = [thing]
        if is_ours(thing):
            annotated += [function for _, function, _ in methods(thing)]
        for each in annotated:
            hints = get_type_hints(each) if isinstance(each, (type, FunctionType)) else {}
            for name, hint in hints.items():
                if not name.startswith("_"):
                    missing |= {found for found in named_in(hint) if found not in public}
    assert missing == set()


def test_type_checkers_see_what_is_there() -> None:
    tree = ast.parse(Path(vmm.__path__[0], "public", "__init__.py").read_text())
    names = [
        (str(alias.asname), node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    ]
    assert dict(names) == PLACES
    assert sorted(vmm.__all__) == vmm.__all__


def test_nothing_is_loaded_before_it_is_used() -> None:
    code = "import sys, vmm; print([m for m in sys.modules if m.startswith(('vmm.', 'kvm_abi'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'vmm' has no attribute 'Kvn'"):
        vmm.Kvn  # noqa: B018
