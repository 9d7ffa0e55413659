"""Safe objects over the ABI: the system, its VMs and vCPUs, one value per exit, host mappings."""
