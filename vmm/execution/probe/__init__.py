"""What this kernel can do: asked with KVM_CHECK_EXTENSION, and by trying."""
