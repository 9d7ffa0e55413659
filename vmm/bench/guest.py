"""Three loops for a guest in big real mode; the host sets all registers."""

RUN = bytes.fromhex("e610 ebfc")
"""out 0x10, al; again."""

MMIO = bytes.fromhex("678a03 ebfb")
"""mov al, [ebx]; again."""

WRITE = bytes.fromhex("678803 6681c300100000 6649 75f2 e610 f4")
"""mov [ebx], al; add ebx, 4096; dec ecx; jnz; then out 0x10, al."""

OFFSETS = {"run": 0x000, "mmio": 0x100, "write": 0x200}
"""Offset of each loop in the code page."""


def code_page() -> bytes:
    """Return the page that holds all three, 4096 bytes."""
    page = bytearray(4096)
    for name, code in (("run", RUN), ("mmio", MMIO), ("write", WRITE)):
        page[OFFSETS[name] : OFFSETS[name] + len(code)] = code
    return bytes(page)
