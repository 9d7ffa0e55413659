"""The structures of a kernel from the debug information (DWARF) of its kvm module, by drgn."""

from collections.abc import Callable
from pathlib import Path

from vmm.whitebox.errors import CannotLookError
from vmm.whitebox.layout import Structure


def structures_in(file: Path) -> tuple[Callable[[str], Structure], bytes | None]:
    """Return what finds structures in a kvm.ko (or a vmlinux with KVM in it), and its build ID.

    Raises CannotLookError without drgn, and OSError, ValueError or LookupError for a file that is
    not one.
    """
    if not file.is_file():
        raise CannotLookError(f"{file}: no such file, to take debug information from")
    try:
        import drgn
    except ImportError:
        raise CannotLookError(
            "the Python package drgn is missing: pip install 'memslot-vmm[whitebox]'"
        ) from None
    program = drgn.Program()
    module = program.extra_module(str(file), create=True)
    module.try_file(str(file), force=True)

    def structure(name: str) -> Structure:
        found = program.type(f"struct {name}")
        if found.size is None or found.members is None:
            raise LookupError(f"no struct {name}")
        # One that has no name still says where the member before it ends.
        return Structure(
            found.size,
            {
                member.name or f"{number}": member.bit_offset // 8
                for number, member in enumerate(found.members)
            },
        )

    return structure, module.build_id
