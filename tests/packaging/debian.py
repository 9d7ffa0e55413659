"""A folder with one Python of Debian's and what it needs, and nothing else: no compiler, no shell.

Packages come by apt, with lists and a cache of its own, so that nothing of this host changes.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
_SOURCE = "deb [signed-by={keys}] http://deb.debian.org/debian {suite} main\n"
_CONFIG = """\
Dir::State "{folder}/state";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
APT::Install-Recommends "0";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
"""
_MERGED = ("bin", "lib", "lib64", "sbin")
"""What are links into /usr, which the package base-files would bring."""

_ENTER = """
mount --rbind /dev "$0/dev" && mount -t proc proc "$0/proc" &&
    exec env -i PATH=/usr/bin:/usr/sbin LC_ALL=C.UTF-8 chroot "$0" "$@"
"""


class UnavailableError(Exception):
    """Debian's packages are not to be had here; the text says what apt said."""


@dataclass(frozen=True, slots=True)
class Root:
    """The folder, with a command as its only inhabitant. Needs root."""

    path: Path

    def command(self, *words: str) -> list[str]:
        """Return what runs a command there, in a mount namespace that ends with it."""
        return ["unshare", "--mount", "sh", "-c", _ENTER, str(self.path), *words]


def root_with(packages: tuple[str, ...], suite: str, folder: Path) -> Root:
    """Unpack packages of a suite, and what they depend on. Raises UnavailableError."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "state/status").touch()
    (folder / "sources.list").write_text(_SOURCE.format(keys=_KEYS, suite=suite))
    (folder / "apt.conf").write_text(_CONFIG.format(folder=folder))
    _apt(folder, "update")
    _apt(folder, "install", "--yes", "--download-only", *packages)
    root = folder / "root"
    root.mkdir()
    for name in _MERGED:
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    for name in ("dev", "proc", "tmp"):
        (root / name).mkdir()
    for package in sorted((folder / "cache/archives").glob("*.deb")):
        # Through tar, which follows the links above.
        unpacked = (
            f'dpkg-deb --fsys-tarfile "{package}" | tar -x --keep-directory-symlink -C "{root}"'
        )
        subprocess.run(["bash", "-c", f"set -o pipefail; {unpacked}"], check=True)
    # What a script of ca-certificates makes; Debian's pip asks for it, even without a network.
    trusted = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    certificates = root / "etc/ssl/certs/ca-certificates.crt"
    certificates.write_bytes(b"".join(path.read_bytes() for path in trusted))
    return Root(root)


def _apt(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        ["apt-get", "-q", *arguments],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "APT_CONFIG": str(folder / "apt.conf")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    if done.returncode:
        raise UnavailableError(f"apt-get {arguments[0]}: {done.stderr.strip()}")
