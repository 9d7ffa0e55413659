"""Builds `kvm_abi._kvm`: cffi, out of line, API mode, stable ABI (abi3)."""

from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).parent

_STRUCTURES = (_HERE / "kvm.h").read_text(encoding="utf-8")
_DECLARATIONS = (_HERE / "calls.h").read_text(encoding="utf-8")
_SOURCES = ("ioctls.c", "calls.c", "pager.c", "notices.c")
_CALLS = "".join((_HERE / name).read_text(encoding="utf-8") for name in _SOURCES)

ffibuilder = FFI()
ffibuilder.cdef(_STRUCTURES)
ffibuilder.cdef(_DECLARATIONS)
ffibuilder.set_source(
    "kvm_abi._kvm",
    f"#include <stdint.h>\n{_STRUCTURES}\n{_CALLS}",
    py_limited_api=True,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
