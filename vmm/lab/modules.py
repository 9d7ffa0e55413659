"""Kernel modules as files: what each needs, and which kernel it was built for."""

import gzip
import lzma
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmm.lab.errors import LabError, MissingError

_SUFFIX = re.compile(r"\.ko(\.xz|\.gz|\.zst)?$")
_FACT = re.compile(rb"(?:^|\0)(depends|vermagic)=([^\0]*)(?=\0)")
_LARGE = 1 << 20
"""A module with more bytes than this probably contains debug information."""

Index = Mapping[str, Path]
"""Module names, with underscores, and their files."""


@dataclass(frozen=True, slots=True)
class Module:
    """A module that can be loaded: ``content`` is the uncompressed file."""

    name: str
    content: bytes
    needs: tuple[str, ...]
    release: str


def name_of(file: str) -> str | None:
    """Return the name of the module in a file of this name; None if it is not a module."""
    return _SUFFIX.sub("", file).replace("-", "_") if _SUFFIX.search(file) else None


def index(folder: Path) -> dict[str, Path]:
    """Return the modules in a folder: from modules_install, a build tree, or just files.

    A build tree has a list of its modules, so it is not searched.
    """
    order = folder / "modules.order"
    if (folder / "Module.symvers").exists() and order.exists():
        found = [(folder / line).with_suffix(".ko") for line in order.read_text().split()]
        found = [path for path in found if path.exists()]
    else:
        found = [path for path in sorted(folder.rglob("*.ko*")) if path.is_file()]
    named = ((name_of(path.name), path) for path in found)
    return {name: path for name, path in named if name}


def read(name: str, path: Path) -> Module:
    """Read a module without its debug information. Raises LabError."""
    try:
        content = _uncompressed(path)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise LabError(f"{path}: cannot read this module: {error}") from None
    facts = {key.decode(): value.decode(errors="replace") for key, value in _FACT.findall(content)}
    if "vermagic" not in facts:
        raise LabError(f"{path}: this is no kernel module")
    needs = tuple(each.replace("-", "_") for each in facts.get("depends", "").split(",") if each)
    return Module(name, content, needs, facts["vermagic"].split(" ")[0])


def _uncompressed(path: Path) -> bytes:
    match path.suffix:
        case ".xz":
            return lzma.decompress(path.read_bytes())
        case ".gz":
            return gzip.decompress(path.read_bytes())
        case ".zst":
            return _output_of("zstd", "zstd", "--decompress", "--stdout", str(path))
        case _ if path.stat().st_size > _LARGE and shutil.which("strip"):
            return stripped(path, "--strip-debug")
        case _:
            return path.read_bytes()


def stripped(path: Path, option: str) -> bytes:
    """Return a file as `strip OPTION` leaves it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        output = Path(scratch, "module")
        _output_of("strip", "binutils", option, "-o", str(output), str(path))
        return output.read_bytes()


def _output_of(program: str, package: str, *arguments: str) -> bytes:
    if not shutil.which(program):
        raise MissingError(f"{program} is missing: apt install {package}")
    done = subprocess.run([program, *arguments], capture_output=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.decode(errors="replace").strip())
    return done.stdout


def in_order(modules: Index, wanted: Iterable[str]) -> tuple[Module, ...]:
    """Return the wanted modules and all that they need, in the order to load them.

    Wanted modules that are not found are taken to be built in. What a module says it needs is none
    of those: it must be there. Raises LabError.
    """
    chosen: dict[str, Module] = {}

    def add(name: str, path: tuple[str, ...]) -> None:
        if name in chosen or name not in modules or name in path:
            return
        module = read(name, modules[name])
        for needed in module.needs:
            if needed not in modules:
                raise LabError(f"{modules[name]}: it needs the module {needed}, which is missing")
            add(needed, (*path, name))
        chosen[name] = module

    for name in wanted:
        add(name, ())
    return tuple(chosen.values())
