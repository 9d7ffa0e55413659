"""The promises about memory attributes, and about the private memory that they make."""

from vmm.memslots.rule import documented, source

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
)
