"""Scenarios as C programs that need only a compiler and <linux/kvm.h>."""
