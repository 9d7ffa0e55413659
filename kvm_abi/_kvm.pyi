from typing import Any

# The module that cffi generates is untyped; raw.py, mman.py and notices.py add types.
ffi: Any
lib: Any
