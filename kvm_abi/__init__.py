"""Facts about KVM's userspace ABI on x86-64, and no policy.

`uapi` holds the constants and needs nothing compiled; `raw` issues the system calls.
"""
