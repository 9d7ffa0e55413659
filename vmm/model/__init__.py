"""What KVM allows: given the slots as they stand, the outcomes of each operation, and why."""
