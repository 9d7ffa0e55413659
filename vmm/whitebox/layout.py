"""Where the fields of the kernel's structures lie, in bytes, and where its list of VMs is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """Offsets of fields, named as STRUCTURE_FIELD, and sizes; ``vm_list`` is an address."""

    vm_list: int
    kvm_vm_list: int
    kvm_userspace_pid: int
    kvm_sets: int
    kvm_memslots: int
    spaces: int
    set_size: int
    set_generation: int
    set_hva_tree: int
    set_hva_leftmost: int
    set_gfn_tree: int
    set_id_hash: int
    set_buckets: int
    set_node_idx: int
    slot_size: int
    slot_id_node: int
    slot_hva_node: int
    hva_node_size: int
    hva_node_start: int
    hva_node_last: int
    hva_node_subtree_last: int
    slot_gfn_node: int
    rb_node_size: int
    hlist_node_size: int
    slot_base_gfn: int
    slot_npages: int
    slot_userspace_addr: int
    slot_flags: int
    slot_id: int
    slot_as_id: int
