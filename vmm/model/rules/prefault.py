"""The promises about memory that is mapped ahead."""

from vmm.model.rules.rule import documented, source

_API = "api.rst 4.143"

RULES_AHEAD = (
    documented(
        "pre-fault",
        "KVM_PRE_FAULT_MEMORY maps the pages of slots in order, up to the first that it cannot "
        "map, says how far it came, and changes no content",
        _API,
    ),
    documented("pre-fault-flags", "KVM_PRE_FAULT_MEMORY takes no flags, else EINVAL", _API),
    documented(
        "pre-fault-range",
        "what is mapped ahead is whole pages, more than none, and does not wrap, else EINVAL",
        _API,
    ),
    documented("pre-fault-hole", "nothing is mapped ahead of a gpa without a slot: ENOENT", _API),
    documented(
        "pre-fault-known",
        "without two-dimensional paging KVM_PRE_FAULT_MEMORY is EOPNOTSUPP; a kernel that does "
        "not know it answers EINVAL",
        "api.rst 4.143; kvm_arch_vcpu_ioctl",
    ),
    source(
        "race-pre-fault",
        "what is mapped ahead while its slot changes is mapped, has no slot, or is EAGAIN, and "
        "neither call waits for the other",
        "3ccbf6f47098; kvm_mmu_faultin_pfn",
    ),
)
