"""What the lab needs, and whether this host has it."""

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vmm.lab import bochs
from vmm.lab.cache import cache_folder
from vmm.lab.debian import KEYRING, MANIFEST, RELEASES
from vmm.lab.errors import MissingError
from vmm.lab.initramfs import compiled_init
from vmm.lab.machine import QEMU, usable_nesting

_SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_LIBELF = Path("/usr/include/libelf.h")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One requirement: what for, and what is missing with its remedy, or "".

    ``is_vital`` marks what every `vmm lab run` needs.
    """

    what: str
    purpose: str
    lack: str = ""
    is_vital: bool = False


def requirements() -> Iterator[Requirement]:
    """Look at this host; install and fetch nothing."""
    yield _program(QEMU, "qemu-system-x86", "boots kernels, emulates AMD's virtualisation", True)
    yield _init()
    yield Requirement("bochs", "emulates Intel's virtualisation (--backend vmx)", bochs.lacking())
    nests = usable_nesting()
    yield Requirement("nested KVM", "--backend kvm: faster, on this host's own processor", nests)
    yield _program("apt-get", "apt", "fetches Debian's kernels")
    yield _program("dpkg-deb", "dpkg", "unpacks Debian's kernels")
    lack = "" if KEYRING.exists() else f"{KEYRING}: apt install debian-archive-keyring"
    yield Requirement("Debian's keys", "check what is fetched", lack)
    for name in RELEASES:
        kept = (cache_folder() / "debian" / name / MANIFEST).exists()
        lack = "" if kept else "not in the cache: fetched when it is used"
        yield Requirement(f"--kernel {name}", "is ready to boot", lack)
    yield _builder()


def remedy(found: Iterable[Requirement]) -> str:
    """Return the one command that installs all that packages can bring, "" if none is missing."""
    lacks = [each.lack.partition("apt install ")[2] for each in found]
    packages = list(dict.fromkeys(" ".join(lacks).split()))
    return f"apt install {' '.join(packages)}" if packages else ""


def _builder() -> Requirement:
    programs = ("make", "flex", "bison", "bc", os.environ.get("CC") or "gcc")
    missing = {
        name: "gcc" if name == programs[-1] else name for name in programs if not _is_there(name)
    }
    if not _LIBELF.exists():
        missing[_LIBELF.name] = "libelf-dev"
    verb = "is" if len(missing) == 1 else "are"
    install = f"{verb} missing: apt install {' '.join(missing.values())}"
    lack = f"{', '.join(missing)} {install}" if missing else ""
    return Requirement("scripts/lab-kernel", "builds kernels", lack)


def _program(name: str, package: str, purpose: str, is_vital: bool = False) -> Requirement:
    lack = "" if _is_there(name) else f"{name} is missing: apt install {package}"
    return Requirement(name, purpose, lack, is_vital)


def _is_there(name: str) -> bool:
    return shutil.which(name, path=_SBIN) is not None


def _init() -> Requirement:
    purpose = "the first process of a machine is compiled here"
    try:
        compiled_init()
    except MissingError as error:
        return Requirement("a C compiler", purpose, str(error), is_vital=True)
    return Requirement("a C compiler", purpose, is_vital=True)
