"""The structures of a kernel, read by drgn from the debug information (DWARF) of its kvm module."""

from collections.abc import Callable
from pathlib import Path

from vmm.whitebox.errors import CannotLookError
from vmm.whitebox.layout import Structure

NO_DRGN = "the Python package drgn is missing"
"""How the text begins that says so."""


def structures_in(file: Path) -> tuple[Callable[[str], Structure], bytes | None]:
    """Return a function that finds structures in a kvm.ko (or a vmlinux), and its build ID.

    Raises CannotLookError without drgn, and OSError, ValueError or LookupError for any other file.
    """
    if not file.is_file():
        raise CannotLookError(f"{file}: no such file, to take debug information from")
    try:
        import drgn
    except ImportError:
        raise CannotLookError(f"{NO_DRGN}: pip install 'memslot-vmm[whitebox]'") from None
    program = drgn.Program()
    module = program.extra_module(str(file), create=True)
    module.try_file(str(file), force=True)

    def structure(name: str) -> Structure:
        found = program.type(f"struct {name}")
        if found.size is None or found.members is None:
            raise LookupError(f"no struct {name}")
        # A member without a name still marks the end of the one before it.
        return Structure(
            found.size,
            {
                member.name or f"{number}": member.bit_offset // 8
                for number, member in enumerate(found.members)
            },
        )

    return structure, module.build_id
