"""What `vmm` exports besides the objects over the ABI: running scenarios, assembling guests."""
