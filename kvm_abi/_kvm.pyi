from typing import Any

# The module that cffi generates is untyped; kvm_abi/raw.py and mman.py add types.
ffi: Any
lib: Any
