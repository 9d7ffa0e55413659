"""The bugs as data: one file for each kernel, `linux-VERSION.toml` beside this one."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.mutants.edits import SWITCH, Edit, EditError, edited

FOLDER = Path(__file__).parent
_MAIN, _HEADER = "virt/kvm/kvm_main.c", "include/linux/kvm_host.h"


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An edit: see `tests.mutants.edits`."""

    file: str
    function: str
    old: str
    new: str
    nth: int = 0

    def as_edit(self) -> Edit:
        """Return the edit."""
        return Edit(self.file, self.function, self.old, self.new, self.nth)


class Mutant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bug, and how to look for it.

    ``undoes`` is the commit of the fix that it undoes; ``npt`` is the parameter of kvm_amd that
    chooses the MMU, ``params`` are others of modules, ``cpus`` is how many the machine has;
    ``first`` are patterns of the scenarios that are the likeliest to notice; ``equivalent`` says
    why nobody can, if that is so; ``survives`` why it was not noticed, where that is known.
    """

    name: str
    subject: str
    edit: tuple[Change, ...]
    undoes: str = ""
    npt: int = 1
    params: tuple[str, ...] = ()
    cpus: int = 1
    first: tuple[str, ...] = ()
    equivalent: str = ""
    survives: str = ""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mutant: tuple[Mutant, ...]


def versions() -> tuple[str, ...]:
    """Return the versions that there are bugs for."""
    return tuple(sorted(path.stem.removeprefix("linux-") for path in FOLDER.glob("linux-*.toml")))


def mutants(version: str) -> tuple[Mutant, ...]:
    """Return the bugs for a version; that of index N - 1 is at work where `kvm_mutant` is N."""
    text = (FOLDER / f"linux-{version}.toml").read_bytes()
    return msgspec.toml.decode(text, type=_File).mutant


def sources_with(rows: Sequence[Mutant], tree: Path) -> dict[str, str]:
    """Return the files that differ from a tree's, by their paths there. Raises EditError."""
    by_file: dict[str, list[tuple[int, Edit]]] = {_MAIN: [], _HEADER: []}
    for number, row in enumerate(rows, 1):
        for change in row.edit:
            by_file.setdefault(change.file, []).append((number, change.as_edit()))
    sources: dict[str, str] = {}
    for file, edits in by_file.items():
        try:
            text = (tree / file).read_text()
        except OSError as error:
            raise EditError(f"{tree / file}: {error.strerror}") from None
        sources[file] = edited(text, edits)
    sources[_HEADER] = _declared(sources[_HEADER])
    sources[_MAIN] += (
        f"\nint {SWITCH};\nEXPORT_SYMBOL_GPL({SWITCH});\n"
        f"module_param_named(mutant, {SWITCH}, int, 0644);\n"
    )
    return sources


def _declared(header: str) -> str:
    """Return kvm_host.h with a declaration of the switch after the first #define, its guard."""
    guard, rest = header.split("#define __KVM_HOST_H\n", 1)
    return f"{guard}#define __KVM_HOST_H\nextern int {SWITCH};\n{rest}"
