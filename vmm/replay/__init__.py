"""Turns traces of other VMMs, by strace or QEMU, into scenarios, reading them as streams."""
