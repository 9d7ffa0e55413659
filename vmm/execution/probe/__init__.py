"""Finds out what this kernel can do, with KVM_CHECK_EXTENSION and by trying."""
