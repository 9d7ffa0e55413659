"""Debug information of Debian's kernels, for those without type information (BTF)."""

import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from vmm.host.naming import NamedFile
from vmm.lab.cache import cache_folder
from vmm.lab.debian import RELEASES, SYMBOLS, Apt, Say, apt_lists, fetched
from vmm.lab.errors import LabError


def fetch_symbols(name: str, say: Say) -> Path:
    """Return the kvm.ko with debug information of the cached kernel, fetched if needed.

    The package takes nearly a gigabyte, of which only this file is kept. Raises LabError.
    """
    kernel = fetched(name, say)
    if kernel.debug_info is not None:
        return kernel.debug_info
    package = f"linux-image-{kernel.release}-dbg"
    target = cache_folder() / "debian" / name / SYMBOLS
    inside = f"./usr/lib/debug/lib/modules/{kernel.release}/kernel/arch/x86/kvm/kvm.ko"
    with tempfile.TemporaryDirectory(
        dir=target.parent.parent, prefix="fetching-", ignore_cleanup_errors=True
    ) as scratch:
        folder = Path(scratch)
        with apt_lists(RELEASES[name].suites, folder, say) as apt:
            say(f"fetching {package} ({_megabytes(package, apt)} MB) ...")
            apt.run("apt-get", "download", package, folder=folder)
        (deb,) = folder.glob("*.deb")
        with subprocess.Popen(("dpkg-deb", "--fsys-tarfile", deb), stdout=subprocess.PIPE) as tar:
            assert tar.stdout is not None
            with (
                tarfile.open(fileobj=tar.stdout, mode="r|") as archive,
                NamedFile(folder / SYMBOLS, "wb") as file,
            ):
                for member in archive:
                    if member.name == inside and (content := archive.extractfile(member)):
                        shutil.copyfileobj(content, file)
                        break
                else:
                    raise LabError(f"{package} has no {inside}")
            tar.kill()
        (folder / SYMBOLS).rename(target)
    return target


def _megabytes(package: str, apt: Apt) -> int:
    sizes = re.findall(r"^Size: (\d+)$", apt.run("apt-cache", "show", package), re.MULTILINE)
    return int(sizes[0]) // 1_000_000 if sizes else 0
