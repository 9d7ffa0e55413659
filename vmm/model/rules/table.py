"""The promises that the model judges by, each with where it is written.

``documented`` rules stand in the kernel's Documentation/virt/kvm/api.rst. ``source`` rules are
known from reading virt/kvm/kvm_main.c and arch/x86/kvm only: they are weaker, and a verdict says
so. ``numbers`` order the checks of KVM_SET_USER_MEMORY_REGION as the kernel makes them.
"""

from vmm.model.rules.prefault import RULES_AHEAD
from vmm.model.rules.private import RULES_PRIVATE
from vmm.model.rules.rule import Rule, documented as _documented, source as _source

_API_DIRTY = "api.rst 4.8"
_API_CLEAR = "api.rst 4.117"
_API_RING = "api.rst KVM_CAP_DIRTY_LOG_RING"
_API_REGION2 = "api.rst 4.140"
_API_MEMFD = "api.rst 4.142"

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        _source(
            "foreign-process",
            "a VM answers EIO to any process but the one that made it",
            "kvm_vm_ioctl: kvm->mm != current->mm",
        ),
        _source("bad-pointer", "an unreadable argument is EFAULT", "kvm_vm_ioctl: copy_from_user"),
        _source(
            "first-form-flags",
            "the first form takes LOG_DIRTY_PAGES and READONLY only",
            "kvm_vm_ioctl_set_memory_region; KVM_SET_USER_MEMORY_REGION_V1_FLAGS",
        ),
        _documented(
            "slot-id-range",
            "the low 16 bits of slot are below KVM_CAP_NR_MEMSLOTS, else EINVAL",
        ),
        _documented(
            "flags-valid",
            "READONLY needs KVM_CAP_READONLY_MEM; GUEST_MEMFD excludes LOG_DIRTY_PAGES and "
            "READONLY; an unknown flag is EINVAL",
            "api.rst 4.35, 4.140; check_memory_region_flags",
        ),
        _source(
            "size-aligned",
            "memory_size is a multiple of the page size, else EINVAL",
            "__kvm_set_memory_region",
        ),
        _source(
            "gpa-aligned",
            "guest_phys_addr is a multiple of the page size, else EINVAL",
            "__kvm_set_memory_region",
        ),
        _documented(
            "hva-user",
            "userspace_addr is page aligned user memory for the whole size, else EINVAL, "
            "on deletion too",
            "api.rst 4.35; fa3d315a4ce2, 09d952c971a5 (CVE-2013-1943)",
        ),
        _source(
            "hva-noncanonical",
            "an address between the halves is refused, but for kernels whose access_ok() looks "
            "at the sign bit only, or with 57-bit addresses",
            "6014bc27561f to 86e6b1547b3d",
        ),
        _source(
            "guest-memfd-offset",
            "guest_memfd_offset is page aligned and does not wrap, else EINVAL",
            "__kvm_set_memory_region",
        ),
        _documented(
            "address-space-range",
            "the high 16 bits of slot are below KVM_CAP_MULTI_ADDRESS_SPACE (1 if absent)",
        ),
        _source(
            "gpa-wraps",
            "guest_phys_addr + memory_size stays below 2^64, else EINVAL",
            "__kvm_set_memory_region",
        ),
        _source(
            "too-many-pages",
            "a slot has at most 2^31 - 1 pages, else EINVAL",
            "__kvm_set_memory_region: KVM_MEM_MAX_NR_PAGES",
        ),
        _source("delete-absent", "deleting an absent slot is EINVAL", "f0736cf0550b"),
        _documented(
            "delete",
            "memory_size 0 deletes the slot; gpa, hva and valid flags are otherwise ignored",
            "api.rst 4.35; e0135a104c52",
        ),
        _source(
            "guest-memfd-immutable",
            "a slot with guest_memfd can only be deleted",
            "9935df5333aa",
        ),
        _source("guest-memfd-fd", "a bad guest_memfd is EBADF", "kvm_gmem_bind"),
        _documented(
            "guest-memfd-not-one",
            "the file is one that KVM_CREATE_GUEST_MEMFD made, else EINVAL",
            _API_REGION2,
        ),
        _documented(
            "guest-memfd-foreign",
            "the guest_memfd belongs to the VM that binds it, else EINVAL",
            _API_REGION2,
        ),
        _documented(
            "guest-memfd-end",
            "a slot lies within its guest_memfd, else EINVAL",
            "api.rst 4.140; eba85fee7fc6",
        ),
        _documented(
            "guest-memfd-overlap",
            "no page of a guest_memfd is bound to two slots: EINVAL, on newer kernels EEXIST",
            "api.rst 4.140, 4.142; kvm_gmem_bind",
        ),
        _documented("guest-memfd-create", "a guest_memfd of whole pages is made", _API_MEMFD),
        _source(
            "guest-memfd-size",
            "the size of a guest_memfd is page aligned, positive and below 2^63, else EINVAL",
            "kvm_gmem_create",
        ),
        _documented(
            "guest-memfd-flags",
            "a guest_memfd has the flags of KVM_CAP_GUEST_MEMFD_FLAGS only, else EINVAL",
            "api.rst 4.142; kvm_gmem_create",
        ),
        _source(
            "guest-memfd-close",
            "a guest_memfd can be closed at any time; slots of it stay until they are deleted",
            "kvm_gmem_release",
        ),
        _documented(
            "guest-memfd-mmap",
            "a guest_memfd can be mapped if it was made with MMAP, else ENODEV",
            "api.rst 4.142; kvm_gmem_mmap",
        ),
        _source(
            "guest-memfd-mmap-private",
            "a guest_memfd is mapped MAP_SHARED, else EINVAL",
            "kvm_gmem_mmap",
        ),
        _documented(
            "immutable",
            "hva, size and the READONLY bit of a present slot cannot change, else EINVAL",
            "api.rst 4.35 (size, slot); 75d61fbcf563 (READONLY)",
        ),
        _documented("move", "another guest_phys_addr moves the slot"),
        _documented("flags-only", "other flags alone change the slot in place"),
        _documented("no-change", "the same values again change nothing"),
        _documented("create", "an absent slot is created; userspace_addr 0 is legal"),
        _documented(
            "overlap",
            "a slot may not overlap another one of its address space, else EEXIST; adjacency "
            "and a move onto its own old place are fine",
            "api.rst 4.35; __kvm_set_memory_region",
        ),
        _source(
            "gfn-limit",
            "the last gfn lies within what the MMU maps, else EINVAL and nothing changed",
            "kvm_arch_prepare_memory_region: kvm_mmu_max_gfn",
        ),
        _documented(
            "reach",
            "a gpa in a slot reaches exactly that page of the slot's host memory",
        ),
        _documented(
            "hole",
            "a gpa without a slot is MMIO: reads and writes exit",
            "api.rst 5, KVM_EXIT_MMIO",
        ),
        _source(
            "smm",
            "a vCPU in system management mode sees the slots of as_id 1 and no other",
            "api.rst 4.35; kvm_arch_vcpu_memslots_id",
        ),
        _source(
            "straddle",
            "an access over the end of a slot is split: the part inside is done in memory",
            "emulator_read_write: one fragment a page",
        ),
        _documented(
            "readonly",
            "a READONLY slot is read as memory; a write exits as MMIO and changes nothing",
        ),
        _source(
            "hva-absent",
            "where no host memory is mapped the access fails: EFAULT, or an MMIO exit from a "
            "backend that emulates instructions",
            "kvm_handle_error_pfn; hva_to_pfn",
        ),
        _source(
            "fetch-outside",
            "instructions cannot be fetched from a hole: the vCPU stops",
            "api.rst 5, KVM_EXIT_INTERNAL_ERROR",
        ),
        _documented(
            "content",
            "memory changes where the guest or the host wrote, and nowhere else; content belongs "
            "to the host mapping",
        ),
        _documented(
            "dirty-exact",
            "the dirty log names the pages that the guest wrote since they were cleared, and no "
            "other, but where the first read maps a page writable (make_spte)",
            _API_DIRTY,
        ),
        _documented(
            "dirty-absent",
            "the dirty log of an absent slot, or one without LOG_DIRTY_PAGES, is ENOENT",
            "api.rst 4.8; kvm_get_dirty_log_protect",
        ),
        _source(
            "dirty-slot-range", "a bad as_id or slot id is EINVAL", "kvm_get_dirty_log_protect"
        ),
        _source("dirty-bad-pointer", "an unwritable bitmap is EFAULT", "kvm_get_dirty_log_protect"),
        _source(
            "dirty-ring-only",
            "where only a dirty ring is enabled the dirty log is ENXIO",
            "kvm_use_dirty_bitmap",
        ),
        _documented(
            "clear",
            "KVM_CLEAR_DIRTY_LOG clears the pages whose bits are set, and no other",
            _API_CLEAR,
        ),
        _source(
            "clear-known",
            "KVM_CLEAR_DIRTY_LOG comes with KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
            "2a31b9db1535",
        ),
        _documented("clear-first-page", "first_page is a multiple of 64, else EINVAL", _API_CLEAR),
        _documented(
            "clear-range",
            "what is cleared lies within the slot, and num_pages is a multiple of 64 short of "
            "the slot's end, else EINVAL",
            "api.rst 4.117; 76d58e0f07ec, 98938aa8edd6",
        ),
        _source(
            "clear-bad-pointer",
            "an unreadable bitmap is EFAULT, and nothing is cleared",
            "kvm_clear_dirty_log_protect",
        ),
        _source(
            "cap-known",
            "a capability that the kernel lacks cannot be enabled: EINVAL",
            "kvm_vm_ioctl_enable_cap",
        ),
        _documented(
            "manual-protect",
            "MANUAL_PROTECT_ENABLE leaves pages dirty until they are cleared; INITIALLY_SET, which "
            "needs it, begins a log with every page; other bits are EINVAL",
            "api.rst KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
        ),
        _documented(
            "quirks",
            "KVM_CAP_DISABLE_QUIRKS2 takes what KVM_CHECK_EXTENSION names, else EINVAL",
            "api.rst KVM_CAP_DISABLE_QUIRKS2",
        ),
        _documented(
            "host-follows",
            "a slot follows its host mapping: pages that are dropped, remapped, unmapped, "
            "protected or punched out are seen as the mapping now is",
            "api.rst 4.35; KVM_CAP_SYNC_MMU",
        ),
        _source(
            "race-reach",
            "an access finds what its gpa reaches at some moment of it: a call that is under way "
            "has taken effect or has not, one that has returned has",
            "kvm_swap_active_memslots: synchronize_srcu; mmu_invalidate_retry_gfn; api.rst 4.35",
        ),
        _source(
            "race-content",
            "after a race memory holds what was written last, and what nobody wrote is whole",
            "kvm_vcpu_write_guest; api.rst 4.35",
        ),
        _documented(
            "race-dirty",
            "of logs that are read and cleared while vCPUs write, each names pages that were "
            "written since they were cleared, and every write is named until its page is cleared",
            "api.rst 4.8, 4.117",
        ),
        _documented(
            "race-ring",
            "of rings that are harvested and reset while vCPUs write, each names pages that its "
            "vCPU wrote since the harvest before, and every write is named that took place after "
            "the reset of its page; a vCPU stops only where its ring is nearly full",
            _API_RING,
        ),
        _documented(
            "ring-size",
            "a dirty ring's size is a power of two, at least a page and the reserved entries, "
            "else EINVAL",
            _API_RING,
        ),
        _source(
            "ring-too-large",
            "a dirty ring larger than KVM_CHECK_EXTENSION says is E2BIG",
            "kvm_vm_ioctl_enable_dirty_log_ring",
        ),
        _documented(
            "ring-before-vcpus",
            "the dirty ring is enabled once, before any vCPU exists, else EINVAL",
            _API_RING,
        ),
        _documented(
            "ring-exact",
            "a vCPU's dirty ring names the pages that it wrote since they were reset, and no "
            "other; where it is full the vCPU stops",
            _API_RING,
        ),
        _documented(
            "ring-reset",
            "KVM_RESET_DIRTY_RINGS resets what was harvested, and says how many entries",
            _API_RING,
        ),
        _source(
            "ring-absent",
            "KVM_RESET_DIRTY_RINGS without rings is EINVAL",
            "kvm_vm_ioctl_reset_dirty_pages",
        ),
        _documented(
            "tss",
            "KVM_SET_TSS_ADDR places three pages below 4 GiB",
            "api.rst 4.36",
        ),
        _documented(
            "tss-range",
            "the three pages of the TSS end below 4 GiB, else EINVAL",
            "api.rst 4.36; kvm_vm_ioctl_set_tss_addr",
        ),
        _documented(
            "identity-map",
            "KVM_SET_IDENTITY_MAP_ADDR places a page; 0 is the default place, 0xfffbc000",
            "api.rst 4.40",
        ),
        _documented(
            "identity-map-late",
            "KVM_SET_IDENTITY_MAP_ADDR fails once there is a vCPU: EINVAL",
            "api.rst 4.40",
        ),
        _source(
            "internal-overlap",
            "a slot of the kernel's own and a user's never overlap, whichever came first: EEXIST",
            "__x86_set_memory_region; 6fe639792c7b",
        ),
        _source(
            "internal-once",
            "a slot of the kernel's own is placed once, then EEXIST",
            "__x86_set_memory_region",
        ),
        _source(
            "internal-memory",
            "a slot of the kernel's own has one mapping in the process, for all address spaces",
            "__x86_set_memory_region",
        ),
        _source(
            "apic-page",
            "the instruction emulator takes the APIC's page, 0xfee00000, for MMIO even where a "
            "slot lies there",
            "vcpu_is_mmio_gpa",
        ),
        _documented("irqchip", "KVM_CREATE_IRQCHIP gives the VM a local APIC", "api.rst 4.24"),
        _source("irqchip-known", "without KVM_CAP_IRQCHIP it is ENOTTY", "kvm_arch_vm_ioctl"),
        _source("irqchip-once", "a second KVM_CREATE_IRQCHIP is EEXIST", "kvm_arch_vm_ioctl"),
        _source(
            "irqchip-late",
            "KVM_CREATE_IRQCHIP is EINVAL once there is a vCPU",
            "kvm_arch_vm_ioctl",
        ),
        _documented("vcpu", "KVM_CREATE_VCPU adds a vCPU", "api.rst 4.7"),
        _source("vcpu-once", "an id of a vCPU that exists is EEXIST", "kvm_vm_ioctl_create_vcpu"),
        _source(
            "vm-gone",
            "a closed VM leaves nothing behind in the process that made it",
            "103c763c72dd; kvm_arch_destroy_vm",
        ),
        _source(
            "no-memory",
            "a call whose allocation fails is ENOMEM and changes nothing",
            "kvm_set_memory_region, kvm_prepare_memory_region",
        ),
        _source(
            "nothing-used-up",
            "after any number of VMs, or of changes of slots, the kernel's memory is where it was",
            "kvm_destroy_vm, kvm_free_memslot",
        ),
        *RULES_AHEAD,
        *RULES_PRIVATE,
        _source("harness", "what the host does to its own memory works", "not a promise of KVM"),
    )
}
"""Every rule, by name."""
