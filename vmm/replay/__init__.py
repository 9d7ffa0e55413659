"""Traces of other VMMs: what strace or QEMU wrote, read as a stream and made into a scenario."""
