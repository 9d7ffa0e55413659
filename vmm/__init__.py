"""A userspace VMM that proves, on real kernels, that KVM's memslots behave."""
