"""The options of the running kernel that matter when debugging its memslots."""

import gzip
import re
from pathlib import Path

_WANTED = re.compile(
    r"^CONFIG_(KVM|KVM_(INTEL|AMD|PVM|SMM|SW_PROTECTED_VM|PROVE_MMU|GUEST_MEMFD|ASYNC_PF)"
    r"|KASAN|KCSAN|PROVE_LOCKING|DEBUG_LIST|PREEMPT(_VOLUNTARY|_DYNAMIC|_RT|_NONE)?"
    r"|TRANSPARENT_HUGEPAGE(_ALWAYS|_MADVISE)?|HYPERV)=[ym]$",
    re.MULTILINE,
)


def kernel_options(release: str, root: Path = Path("/")) -> tuple[str, ...]:
    """Return the enabled options, without `CONFIG_` and `=y`; empty if they cannot be read.

    They come from the kernel itself (IKCONFIG), or from the file beside its image.
    """
    try:
        text = gzip.decompress((root / "proc/config.gz").read_bytes()).decode()
    except (OSError, EOFError, UnicodeDecodeError):
        try:
            text = (root / f"boot/config-{release}").read_text()
        except (OSError, UnicodeDecodeError, ValueError):
            return ()
    found = (match.group(0).removeprefix("CONFIG_") for match in _WANTED.finditer(text))
    return tuple(option.removesuffix("=y") for option in found)
