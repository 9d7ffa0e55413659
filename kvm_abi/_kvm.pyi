from typing import Any

# What cffi generates has no types: kvm_abi/raw.py gives it some.
ffi: Any
lib: Any
