"""The layout of the kernel's structures, from the debug information of its kvm module, by drgn."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vmm.whitebox.errors import CannotLookError
from vmm.whitebox.layout import Layout

SYMBOLS = Path("/proc/kallsyms")
BUILD_ID = Path("/sys/module/kvm/notes/.note.gnu.build-id")
_PLACES = (
    "/usr/lib/debug/lib/modules/{release}/kernel/arch/x86/kvm/kvm.ko",
    "/usr/lib/debug/lib/modules/{release}/kernel/arch/x86/kvm/kvm.ko.debug",
    "/lib/modules/{release}/build/arch/x86/kvm/kvm.ko",
)


def usual_file(release: str) -> Path:
    """Return the file with debug information where packages put it. Raises CannotLookError."""
    places = [Path(each.format(release=release)) for each in _PLACES]
    for place in places:
        if place.exists():
            return place
    raise CannotLookError(
        f"no debug information of kvm for Linux {release} (looked for {places[0]} and "
        f"{places[-1]}); name the file by --debug-info"
    )


def layout_from(file: Path, symbols: Path = SYMBOLS, build_id: Path = BUILD_ID) -> Layout:
    """Return the layout as a kvm.ko (or a vmlinux with KVM in it) has it.

    Raises CannotLookError: without drgn, for a file of another kernel, or one that has no types.
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
    try:
        module = program.extra_module(str(file), create=True)
        module.try_file(str(file), force=True)
        check_build_id(file, module.build_id, build_id)
        return _layout(drgn, program, vm_list_in(symbols))
    except (LookupError, OSError, ValueError) as error:
        raise CannotLookError(f"{file}: no debug information of memslots: {error}") from None


def check_build_id(file: Path, found: bytes | None, note: Path) -> None:
    """Compare build IDs: the kernel tells that of the module it has loaded, if it has any.

    Raises CannotLookError.
    """
    if note.exists() and found is not None and not note.read_bytes().endswith(found):
        raise CannotLookError(f"{file}: it is not the kvm module that is loaded: another build ID")


def vm_list_in(symbols: Path) -> int:
    """Return the address of the list of VMs, as /proc/kallsyms has it. Raises CannotLookError."""
    try:
        with symbols.open() as lines:
            for line in lines:
                address, _, name, *_ = line.split()
                if name == "vm_list":
                    if int(address, 16):
                        return int(address, 16)
                    raise CannotLookError(f"{symbols} hides addresses: be root, kptr_restrict < 2")
    except OSError as error:
        raise CannotLookError(f"{symbols}: {error.strerror}") from None
    raise CannotLookError(f"{symbols} does not name vm_list: CONFIG_KALLSYMS_ALL, and kvm loaded")


def _layout(drgn: Any, program: Any, vm_list: int) -> Layout:
    kvm, sets, slot = (
        program.type(f"struct {name}") for name in ("kvm", "kvm_memslots", "kvm_memory_slot")
    )
    names = {member.name for member in sets.members}
    if "gfn_tree" not in names:
        raise CannotLookError("this kernel has no trees of memslots (they came with Linux 5.17)")
    node, root = program.type("struct interval_tree_node"), program.type("struct rb_root_cached")
    rb = program.type("struct rb_node")
    if [drgn.offsetof(rb, each) for each in ("__rb_parent_color", "rb_right", "rb_left")] != [
        *range(0, 24, 8)
    ]:
        raise CannotLookError("struct rb_node has a layout that is not known here")

    def at(of: Any, *fields: str) -> Iterator[int]:
        return (drgn.offsetof(of, field) for field in fields)

    kvm_vm_list, pid, two, in_use = at(kvm, "vm_list", "userspace_pid", "__memslots", "memslots")
    generation, hva_tree, gfn_tree, id_hash, node_idx = at(
        sets, "generation", "hva_tree", "gfn_tree", "id_hash", "node_idx"
    )
    id_node, hva_node, gfn_node = at(slot, "id_node", "hva_node", "gfn_node")
    start, last, subtree_last = at(node, "start", "last", "__subtree_last")
    base_gfn, npages, address, flags, slot_id, as_id = at(
        slot, "base_gfn", "npages", "userspace_addr", "flags", "id", "as_id"
    )
    return Layout(
        vm_list=vm_list,
        kvm_vm_list=kvm_vm_list,
        kvm_userspace_pid=pid,
        kvm_sets=two,
        kvm_memslots=in_use,
        spaces=_member(kvm, "memslots").length,
        set_size=sets.size,
        set_generation=generation,
        set_hva_tree=hva_tree,
        set_hva_leftmost=hva_tree + drgn.offsetof(root, "rb_leftmost"),
        set_gfn_tree=gfn_tree,
        set_id_hash=id_hash,
        set_buckets=_member(sets, "id_hash").length,
        set_node_idx=node_idx,
        slot_size=slot.size,
        slot_id_node=id_node,
        slot_hva_node=hva_node,
        hva_node_size=node.size,
        hva_node_start=start,
        hva_node_last=last,
        hva_node_subtree_last=subtree_last,
        slot_gfn_node=gfn_node,
        rb_node_size=rb.size,
        hlist_node_size=program.type("struct hlist_node").size,
        slot_base_gfn=base_gfn,
        slot_npages=npages,
        slot_userspace_addr=address,
        slot_flags=flags,
        slot_id=slot_id,
        slot_as_id=as_id,
    )


def _member(of: Any, name: str) -> Any:
    return next(member.type for member in of.members if member.name == name)
