"""Safe objects over the ABI: KVM, its VMs and vCPUs, exits as values, host mappings."""
