"""`import vmm`: what it offers, and that it loads nothing that is not used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vmm


def test_every_public_name_is_there_and_documented() -> None:
    for name in vmm.__all__:
        found = getattr(vmm, name)
        assert ">>>" in found.__doc__, f"{name} has no example"
        assert name in dir(vmm)


def test_type_checkers_see_what_is_there() -> None:
    tree = ast.parse(Path(str(vmm.__file__)).read_text())
    names = [
        (str(alias.asname), node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    ]
    assert dict(names) == vmm._PLACES
    assert sorted(vmm.__all__) == vmm.__all__


def test_nothing_is_loaded_before_it_is_used() -> None:
    code = "import sys, vmm; print([m for m in sys.modules if m.startswith(('vmm.', 'kvm_abi'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'vmm' has no attribute 'Kvn'"):
        vmm.Kvn  # noqa: B018
