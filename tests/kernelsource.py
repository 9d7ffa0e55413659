"""Files of the kernel's sources, from Debian's package, for tests that compare with them."""

import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGE = "linux-source-6.12"


def extracted(folder: Path, *files: str) -> Path:
    """Unpack some files of the kernel's tree into a folder, and return it; else skip the test."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("needs apt-get, to have the kernel's sources")
    script = f"""
        set -e
        apt-get download {PACKAGE}
        dpkg-deb --fsys-tarfile {PACKAGE}_*.deb |
            tar -xO --wildcards './usr/src/{PACKAGE}.tar.xz' | xz -dc |
            tar -x --strip-components=1 {" ".join(f"{PACKAGE}/{name}" for name in files)}
    """
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True, timeout=600
    )
    if "Unable to locate package" in done.stderr:
        pytest.skip(f"this host's package lists have no {PACKAGE}")
    assert done.returncode == 0, done.stderr
    return folder
