"""What the front door `vmm` offers besides the objects over the ABI: scenarios, and guests."""
