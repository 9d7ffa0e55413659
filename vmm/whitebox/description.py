"""What is needed to read the kernel's memory: the layout of its structures, and its list of VMs.

It comes from the kernel itself (BTF), from a file with debug information, or from a small JSON file
that was made from one earlier, for machines on which drgn is slow.
"""

from pathlib import Path

import msgspec

from vmm.scenario.undecodable import UNDECODABLE
from vmm.whitebox import symbols
from vmm.whitebox.btf import Btf
from vmm.whitebox.dwarf import NO_DRGN, structures_in
from vmm.whitebox.errors import CannotLookError
from vmm.whitebox.layout import Layout, layout_of
from vmm.whitebox.symbols import Within

BTF = Path("/sys/kernel/btf")
BUILD_ID = Path("/sys/module/kvm/notes/.note.gnu.build-id")
SUFFIX = ".json"
_PLACES = (
    "/usr/lib/debug/lib/modules/{release}/kernel/arch/x86/kvm/kvm.ko",
    "/usr/lib/debug/lib/modules/{release}/kernel/arch/x86/kvm/kvm.ko.debug",
    "/lib/modules/{release}/build/arch/x86/kvm/kvm.ko",
)


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A layout; ``build_id`` is that of the module ("": unknown).

    If ``layout`` is None, use the kernel's own types; if ``vm_list`` is None, use its symbols.
    ``why`` says why there is no layout, if a search for debug information has failed.
    """

    layout: Layout | None = None
    vm_list: Within | None = None
    build_id: str = ""
    why: str = ""


def described(file: Path | None, release: str) -> tuple[Layout, int]:
    """Return the layout of the running kernel's structures, and the address of its list of VMs.

    ``file`` has debug information, or is our JSON file; None: use what this host has. Raises
    CannotLookError.
    """
    known = Description() if file is None else _of_file(file)
    layout = known.layout or _of_this_kernel(release, known.why)
    vm_list = symbols.vm_list_in() if known.vm_list is None else known.vm_list.address()
    return layout, vm_list


def _of_file(file: Path) -> Description:
    found = from_debug_info(file) if file.suffix != SUFFIX else one_of_ours(file)
    check_build_id(file, found.build_id, BUILD_ID)
    return found


def one_of_ours(file: Path) -> Description:
    """Return the description in our JSON file. Raises CannotLookError."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Description)
    except OSError as error:
        raise CannotLookError(f"{file}: {error.strerror}") from None
    except UNDECODABLE as error:
        raise CannotLookError(f"{file}: no debug information of memslots: {error}") from None


def from_debug_info(file: Path) -> Description:
    """Return the description of a kvm.ko (or a vmlinux with KVM built in).

    Raises CannotLookError: without drgn, and for a file without types or with unknown memslots.
    """
    try:
        structure, build_id = structures_in(file)
        layout = layout_of(structure)
        vm_list = symbols.within(file.read_bytes()) if file.name != "vmlinux" else None
    except (LookupError, OSError, ValueError) as error:
        raise CannotLookError(f"{file}: no debug information of memslots: {error}") from None
    return Description(layout, vm_list, (build_id or b"").hex())


def check_build_id(file: Path, found: str, note: Path) -> None:
    """Compare a build ID with that of the loaded module, if both exist.

    Raises CannotLookError.
    """
    if note.exists() and found and not note.read_bytes().hex().endswith(found):
        raise CannotLookError(f"{file}: it is not the kvm module that is loaded: another build ID")


def _of_this_kernel(release: str, why: str) -> Layout:
    """Return the layout from the kernel's own types, or from debug information in a usual place.

    Raises CannotLookError; its text has ``why`` debug information was not found, if given.
    """
    base, module = BTF / "vmlinux", BTF / "kvm"
    try:
        types = Btf(base.read_bytes(), module.read_bytes() if module.exists() else b"")
        return layout_of(types.structure)
    except (OSError, LookupError, ValueError) as error:
        places = [Path(each.format(release=release)) for each in _PLACES]
        for place in places:
            if place.exists():
                found = from_debug_info(place)
                check_build_id(place, found.build_id, BUILD_ID)
                assert found.layout is not None
                return found.layout
        looked = f"(looked for {places[0]} and {places[-1]}); name the file by --debug-info"
        raise CannotLookError(
            f"no types of Linux {release}: neither in {BTF} ({_reason(error)}), nor debug "
            f"information of kvm{f': {why}' if why else f' {looked}'}",
            f"no types of this kernel{f', {NO_DRGN}' if why.startswith(NO_DRGN) else ''}",
        ) from None


def _reason(error: Exception) -> str:
    """Return what is wrong, without the number of an errno."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
