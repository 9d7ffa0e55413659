"""Scenarios as C programs that need nothing but a compiler and <linux/kvm.h>."""
