"""The promises about memory attributes, the private memory that they make, and holes in it."""

from vmm.model.rules.rule import documented, source

_API = "api.rst 4.141"

RULES_PRIVATE = (
    documented(
        "attributes",
        "KVM_SET_MEMORY_ATTRIBUTES sets the attributes of gpas, with a slot or without",
        _API,
    ),
    documented(
        "attributes-supported",
        "flags are 0, and attributes are those that KVM_CAP_MEMORY_ATTRIBUTES names for the VM, "
        "else EINVAL",
        _API,
    ),
    documented(
        "attributes-range",
        "attributes are set on whole pages, more than none, that do not wrap, else EINVAL",
        "api.rst 4.141; kvm_vm_ioctl_set_mem_attributes",
    ),
    source(
        "attributes-known",
        "without KVM_CAP_MEMORY_ATTRIBUTES the call is ENOTTY",
        "kvm_vm_ioctl: KVM_SET_MEMORY_ATTRIBUTES",
    ),
    documented(
        "private",
        "a private gpa reaches the slot's guest_memfd, which begins as zeros and keeps what is "
        "written; a shared one reaches the hva",
        "api.rst 4.140; kvm_gmem_get_pfn",
    ),
    documented(
        "private-fault",
        "a private gpa that no open guest_memfd backs is EFAULT with KVM_EXIT_MEMORY_FAULT; "
        "without a slot it may be MMIO yet, where a vCPU knew it as that",
        "api.rst 5, KVM_EXIT_MEMORY_FAULT; kvm_mmu_faultin_pfn_gmem, kvm_mmu_page_fault",
    ),
    documented(
        "guest-memfd-punch",
        "a hole can be punched into a guest_memfd, bound or not: its pages are zeros again for the "
        "guest and for the host, and no other pages are",
        "api.rst 4.142; kvm_gmem_punch_hole",
    ),
    source(
        "guest-memfd-punch-range",
        "a hole is whole pages, more than none, within 2^63, else EINVAL; EFBIG if its end alone "
        "is beyond",
        "vfs_fallocate; kvm_gmem_fallocate",
    ),
    source(
        "guest-memfd-punch-mode",
        "FALLOC_FL_PUNCH_HOLE without FALLOC_FL_KEEP_SIZE is EOPNOTSUPP",
        "vfs_fallocate; kvm_gmem_fallocate",
    ),
)
