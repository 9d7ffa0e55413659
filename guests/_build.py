"""Builds ``guests._image``: the assembled guests, and their contract as Python values.

The declarations come from ``contract.h`` itself, so that the assembler, the C compiler and
Python cannot disagree.  Building needs a C compiler whose driver assembles ``.S`` files
(gcc or clang), and a build system that passes such files to it.
"""

import re
from pathlib import Path

import cffi

FOLDER = Path(__file__).parent
SOURCES = ("image.S", "contract.c")
INCLUDED = (
    "contract.h",
    "touch.S",
    "templates.S",
    "sweep.S",
    "long.S",
    "long_templates.S",
    "execute.S",
)


def declarations(header: str) -> str:
    """Return the part of ``contract.h`` that cffi's parser understands.

    That is every ``#define`` of a number, and the text between ``#ifndef __ASSEMBLER__`` and
    its ``#endif``.
    """
    numbers = re.findall(r"^#define GUEST_\w+ \w+$", header, flags=re.MULTILINE)
    c_only = header.partition("#ifndef __ASSEMBLER__\n")[2].partition("#endif")[0]
    return "\n".join([*numbers, c_only])


def ffi_builder() -> cffi.FFI:
    """Return the builder of the module, in cffi's API mode."""
    builder = cffi.FFI()
    builder.cdef(declarations((FOLDER / "contract.h").read_text(encoding="utf-8")))
    builder.set_source(
        "guests._image",
        '#include "contract.h"\n',
        sources=[f"guests/{name}" for name in SOURCES],
        depends=[f"guests/{name}" for name in (*SOURCES, *INCLUDED)],
        include_dirs=["guests"],
    )
    return builder


ffibuilder = ffi_builder()
