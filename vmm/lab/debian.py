"""Debian's kernels: packages unpacked into the cache, never installed.

apt fetches them with separate package lists, so that the system's lists and sources do not change,
and checks Debian's signatures. The image, its configuration and the modules that a lab can need are
kept, with a manifest of checksums that reveals damage later.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vmm.host.naming import write_named
from vmm.lab import modules
from vmm.lab.cache import cache_folder
from vmm.lab.errors import LabError, MissingError
from vmm.lab.kernel import Kernel, release_of

MANIFEST = "manifest.json"
SYMBOLS = "kvm-debug.ko"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
ARCHIVE = "http://deb.debian.org/debian"
SECURITY = "http://deb.debian.org/debian-security"

WANTED = (
    *("kvm", "kvm_amd", "kvm_intel"),
    *("virtio_pci", "virtio_console", "9pnet_virtio", "9p"),
    *("ata_piix", "sr_mod", "sd_mod", "isofs"),
)
"""Modules that are kept, with all modules that they need."""


@dataclass(frozen=True, slots=True)
class Release:
    """Debian's suites that have a kernel, and the prefix of its version ("": the newest)."""

    series: str
    suites: tuple[tuple[str, str], ...]


RELEASES = {
    "debian": Release("", ((ARCHIVE, "sid"),)),
    "debian-6.12": Release("6.12.", ((ARCHIVE, "trixie"), (SECURITY, "trixie-security"))),
    "debian-6.1": Release("6.1.", ((ARCHIVE, "bookworm"), (SECURITY, "bookworm-security"))),
    "debian-5.10": Release("5.10.", ((ARCHIVE, "bullseye"), (SECURITY, "bullseye-security"))),
}
"""The names for `--kernel`; "debian" is the newest kernel that Debian has."""

Say = Callable[[str], None]


def fetched(name: str, say: Say, refresh: bool = False) -> Kernel:
    """Return one of RELEASES, from the cache unless it is missing, damaged or to be refreshed."""
    kept = cache_folder() / "debian" / name
    if not refresh and (kernel := _kept(name, kept, say)):
        return kernel
    for program, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if not shutil.which(program):
            raise MissingError(f"{program} is missing: Debian's kernels need {package}")
    if not KEYRING.exists():
        raise MissingError(f"{KEYRING} is missing: apt install debian-archive-keyring")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=kept.parent, prefix="fetching-", ignore_cleanup_errors=True
    ) as scratch:
        _fetch(RELEASES[name], Path(scratch), say)
        result = Path(scratch) / "kept"
        shutil.rmtree(kept, ignore_errors=True)
        try:
            result.rename(kept)
        except OSError as error:
            raise LabError(f"{kept}: {error.strerror}") from None
    kernel = _kept(name, kept, say)
    if kernel is None:
        raise LabError(f"{kept}: what was just fetched is damaged")
    return kernel


def _kept(name: str, kept: Path, say: Say) -> Kernel | None:
    try:
        manifest = json.loads((kept / MANIFEST).read_text())
        sums: dict[str, str] = dict(manifest["sha256"])
        packages: list[str] = manifest["packages"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"{kept / MANIFEST} is damaged ({error}): fetching again")
        return None
    for file, wanted in sums.items():
        path = kept / file
        if not path.exists() or _sum_of(path) != wanted:
            say(f"{path} is damaged: fetching again")
            return None
    image = next(iter(sorted((kept / "boot").glob("vmlinuz*"))))
    label = f"{name} ({packages[0]})"
    symbols = kept / SYMBOLS
    return Kernel(
        label,
        image,
        release_of(image),
        modules.index(kept / "modules"),
        debug_info=symbols if symbols.exists() else None,
    )


def _sum_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fetch(release: Release, scratch: Path, say: Say) -> None:
    with apt_lists(release.suites, scratch, say) as apt:
        packages = _newest(release.series, apt)
        say(f"fetching {' '.join(packages)} ...")
        apt.run("apt-get", "download", *packages, folder=scratch)
    unpacked = scratch / "unpacked"
    unpacked.mkdir()
    versions = []
    for deb in sorted(scratch.glob("*.deb")):
        _output("dpkg-deb", "--extract", str(deb), str(unpacked))
        versions.append(_output("dpkg-deb", "--field", str(deb), "Package", "Version"))
        deb.unlink()
    _keep(unpacked, scratch / "kept", [_named(each) for each in versions])


def _named(fields: str) -> str:
    """Turn "Package: NAME, Version: V" into "NAME V"."""
    return " ".join(line.partition(": ")[2] for line in fields.splitlines())


def _keep(unpacked: Path, kept: Path, packages: list[str]) -> None:
    # Newer packages have the image among the modules, and no /boot.
    images = [path for path in sorted(unpacked.rglob("vmlinuz*")) if path.is_file()]
    if not images:
        raise LabError(f"{packages[0]} has no kernel image")
    (kept / "boot").mkdir(parents=True)
    (kept / "modules").mkdir()
    for path in (images[0], *images[0].parent.glob("config*")):
        shutil.copy2(path, kept / "boot" / path.name)
    found = modules.index(unpacked)
    for module in modules.in_order(found, WANTED):
        shutil.copy2(found[module.name], kept / "modules")
    sums = {
        str(path.relative_to(kept)): _sum_of(path)
        for path in sorted(kept.rglob("*"))
        if path.is_file()
    }
    manifest = {"packages": packages, "sha256": sums}
    write_named(kept / MANIFEST, json.dumps(manifest, indent=1) + "\n")


@dataclass(frozen=True, slots=True)
class Apt:
    """apt with separate package lists."""

    options: tuple[str, ...]

    def run(self, program: str, *arguments: str, folder: Path | None = None) -> str:
        """Run apt-get or apt-cache and return its output. Raises LabError."""
        return _output(program, *self.options, *arguments, folder=folder)


@contextmanager
def apt_lists(suites: Sequence[tuple[str, str]], scratch: Path, say: Say) -> Iterator[Apt]:
    """Fetch the package lists of some suites into a scratch folder."""
    lists, cache, sources = scratch / "lists", scratch / "cache", scratch / "sources.list"
    (lists / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    lines = (f"deb [signed-by={KEYRING}] {site} {suite} main\n" for site, suite in suites)
    write_named(sources, "".join(lines))
    settings = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": lists,
        "Dir::Cache": cache,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "APT::Architecture": "amd64",
        "APT::Get::AllowUnauthenticated": "false",
        # apt-file makes every update fetch this: large, and not needed here.
        "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled": "false",
    }
    apt = Apt(("-q", *(f"-o{key}={value}" for key, value in settings.items())))
    say(f"fetching the package list of {', '.join(suite for _, suite in suites)} ...")
    apt.run("apt-get", "update", "--error-on=any")
    yield apt


def source_package(name: str, folder: Path) -> None:
    """Download a kernel source package, such as linux-source-6.12, to a folder."""
    version = name.rpartition("-")[2]
    suites = RELEASES.get(f"debian-{version}", RELEASES["debian"]).suites
    with apt_lists(suites, folder, lambda _: None) as apt:
        apt.run("apt-get", "download", name, folder=folder)


def _newest(series: str, apt: Apt) -> tuple[str, ...]:
    """Return the packages of the newest plain kernel: one, or two since about Linux 6.17."""
    names = apt.run("apt-cache", "pkgnames", "linux-").split()
    return newest_of(series, names)


def newest_of(series: str, names: Sequence[str]) -> tuple[str, ...]:
    """Choose among package names; "cloud" and "rt" kernels do not count (the former lack 9p).

    Raises LabError if there is none.
    """
    version = rf"({re.escape(series)}\d[\w.+~-]*?)"
    whole = _by_version(rf"linux-image-{version}-amd64-unsigned", names)
    parts = _by_version(rf"linux-binary-unsigned-{version}-amd64", names)
    parts = {key: name for key, name in parts.items() if f"linux-modules-{key}-amd64" in names}
    if not whole and not parts:
        raise LabError(f"Debian has no kernel {series}* here")
    best = max({*whole, *parts}, key=_comparable)
    return (whole[best],) if best in whole else (parts[best], f"linux-modules-{best}-amd64")


def _by_version(pattern: str, names: Sequence[str]) -> dict[str, str]:
    found = {match[1]: name for name in names if (match := re.fullmatch(pattern, name))}
    return {key: name for key, name in found.items() if not re.search(r"cloud|rt|deb\d+\.", key)}


def _comparable(version: str) -> list[tuple[int, str]]:
    parts = re.findall(r"\d+|\D+", version)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _output(*command: str, folder: Path | None = None) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")]
        said = lines or done.stderr.strip().splitlines() or ["no message"]
        raise LabError(f"{command[0]} fails: {said[0]}")
    return done.stdout


if __name__ == "__main__":
    try:
        source_package(sys.argv[1], Path(sys.argv[2]))
    except LabError as error:
        sys.exit(str(error))
