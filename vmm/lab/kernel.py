"""A kernel to boot: an image, and its modules if it has any."""

import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct

from vmm.lab import modules
from vmm.lab.errors import LabError, NoKernelError

_MAGIC_AT, _VERSION_AT, _HEADER_SIZE = 0x202, 0x20E, 0x200
"""Documentation/arch/x86/boot.rst: where "HdrS" is, and the version's offset, less 0x200."""

_SETUP_SECTORS_AT, _SIZE_AT = 0x1F1, 0x1F4
"""The same: setup_sects, and syssize in units of 16 bytes."""

_ELF_HEADER = Struct("<40xQ10xHH2x")
"""elf(5): e_shoff, e_shentsize and e_shnum of Elf64_Ehdr; the sections' table comes last."""

_BANNER = re.compile(rb"Linux version (\S+) \(")


@dataclass(frozen=True, slots=True)
class Kernel:
    """``modules`` maps names to files; ``label`` is what the user called the kernel.

    ``debug_info`` is a kvm.ko with debug information, if the one that is loaded has none.
    ``direct`` is the same kernel uncompressed, if QEMU can start that, which saves unpacking it.
    """

    label: str
    image: Path
    release: str
    modules: Mapping[str, Path] = field(default_factory=dict)
    direct: Path | None = None
    debug_info: Path | None = None

    @property
    def started(self) -> Path:
        """The file that QEMU starts."""
        return self.direct or self.image


def from_path(path: Path, folder: Path | None = None) -> Kernel:
    """Return the kernel of an image or a build tree; ``folder`` has other modules to use.

    Raises NoKernelError if there is none.
    """
    direct = None
    if path.is_dir():
        image, direct = _image_of(path), _direct_of(path)
        found = modules.index(path if folder is None else folder)
    else:
        image = path
        found = {} if folder is None else modules.index(folder)
    if folder is not None and not found:
        raise NoKernelError(f"{folder}: there are no modules here")
    return Kernel(str(path), image, release_of(image), found, direct)


def _image_of(tree: Path) -> Path:
    for image in (tree / "arch/x86/boot/bzImage", tree / "bzImage", tree / "vmlinux"):
        if image.exists():
            return image
    raise NoKernelError(f"{tree}: neither a kernel image nor a tree where one was built")


def _direct_of(tree: Path) -> Path | None:
    config = tree / ".config"
    boots = config.exists() and "\nCONFIG_PVH=y\n" in config.read_text(errors="replace")
    return tree / "vmlinux" if boots and (tree / "vmlinux").exists() else None


def release_of(image: Path) -> str:
    """Return what `uname -r` will print, from the image. Raises NoKernelError."""
    if not image.is_file():  # Opening a pipe would wait for a writer.
        raise NoKernelError(f"{image}: not a file")
    try:
        with image.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            release, whole = _release_in(data), _whole_bytes(data)
    except (OSError, ValueError) as error:
        raise NoKernelError(f"{image}: cannot read this kernel image: {_why(error)}") from None
    if release is None:
        raise NoKernelError(f"{image}: this is no kernel image for x86 (a bzImage or a vmlinux)")
    size = image.stat().st_size
    if size < whole:
        raise NoKernelError(f"{image}: this kernel image is cut off: {size} bytes of {whole}")
    return release


def _why(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _release_in(data: mmap.mmap) -> str | None:
    if data[_MAGIC_AT : _MAGIC_AT + 4] == b"HdrS":
        at = int.from_bytes(data[_VERSION_AT : _VERSION_AT + 2], "little") + _HEADER_SIZE
        words = data[at : at + 200].split(b"\0")[0].split()
        return words[0].decode(errors="replace") if words else None
    if data[:5] == b"\x7fELF\x02":
        banner = _BANNER.search(data)
        return banner[1].decode(errors="replace") if banner else None
    return None


def _whole_bytes(data: mmap.mmap) -> int:
    """Return the least size of a file with this head: 0 if the head does not say."""
    if data[_MAGIC_AT : _MAGIC_AT + 4] == b"HdrS":
        setup_sectors = data[_SETUP_SECTORS_AT] or 4
        paragraphs = int.from_bytes(data[_SIZE_AT : _SIZE_AT + 4], "little")
        return (setup_sectors + 1) * 512 + paragraphs * 16 if paragraphs else 0
    if len(data) < _ELF_HEADER.size:
        return 0
    sections_at, entry_bytes, entries = _ELF_HEADER.unpack_from(data)
    return int(sections_at + entry_bytes * entries)


def check_release(kernel: Kernel, chosen: tuple[modules.Module, ...]) -> None:
    """Raise LabError if modules are for another kernel, which would refuse them later."""
    for module in chosen:
        if module.release != kernel.release:
            raise LabError(
                f"{kernel.modules[module.name]} is for Linux {module.release}, "
                f"but {kernel.image} is Linux {kernel.release}"
            )
