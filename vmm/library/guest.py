"""Custom guests, from a few lines of assembler."""

import shutil
import subprocess
import tempfile
from pathlib import Path


class AssemblerError(ValueError):
    """The assembler refuses the source, or the linker does: the text is its message.

    >>> from vmm import AssemblerError, assemble
    >>> try:
    ...     assemble("fly %ax")
    ... except AssemblerError as error:
    ...     print(str(error).splitlines()[-1])
    guest:1: Error: no such instruction: `fly %ax'
    """


def assemble(source: str, *, bits: int = 16) -> bytes:
    """Return the machine code of x86 source in AT&T syntax, as GNU as reads it.

    The code runs wherever it is placed: labels are relative to its first byte, at offset 0. `bits`
    is the mode in which the guest executes it: 16 (real mode), 32 or 64.

    Needs `as`, `ld` and `objcopy` (GNU binutils, which come with every C compiler).

    Raises `AssemblerError` for wrong source, such as a label that is nowhere, `FileNotFoundError`
    if a tool is missing, and `ValueError` for other `bits`.

        >>> assemble("mov $0x42, %al; hlt").hex()
        'b042f4'
        >>> assemble("mov %rax, (%rdi)", bits=64).hex()
        '488907'
    """
    if bits not in (16, 32, 64):
        raise ValueError(f"bits: {bits} is none of 16, 32 and 64")
    for tool in ("as", "ld", "objcopy"):
        if shutil.which(tool) is None:
            raise FileNotFoundError(f"{tool} is missing: apt install binutils")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        made, linked, code = (Path(folder, f"guest.{end}") for end in ("o", "elf", "bin"))
        text = f'.code{bits}\n.text\n# 1 "guest"\n{source}\n'
        _call("as", "--64" if bits == 64 else "--32", "-o", str(made), "-", text=text)
        machine = "elf_x86_64" if bits == 64 else "elf_i386"
        # -N: what stands in .data follows the code at once.
        place = ("-m", machine, "-N", "-Ttext", "0", "-e", "0")
        _call("ld", *place, "-o", str(linked), str(made))
        _call("objcopy", "-O", "binary", "-j", ".text", "-j", ".data", str(linked), str(code))
        return code.read_bytes()


def _call(*command: str, text: str = "") -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssemblerError(done.stderr.strip())
