"""The model: which outcomes KVM's rules allow each operation, given the current slots, and why."""
