"""Bochs, which emulates Intel's virtualisation. It shares no folders: the initramfs has all files.

Files that the command writes come back on its standard error, after a mark.
"""

import io
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from vmm.host.naming import write_named
from vmm.lab.errors import LabError, MissingError
from vmm.lab.process import Sink

BOCHS = "bochs"
XORRISO = "xorriso"
MODEL = "corei7_skylake_x"
IPS = 50_000_000
"""Instructions per second of the machine's time, each of which is one tick of its TSC."""

PARAMETERS = (f"tsc_early_khz={IPS // 1000}", "noxsave")
"""Kernel parameters for what bochs does not emulate rightly.

Linux takes the TSC's rate from CPUID, as that of the real processor (3.5 GHz): its clock would be
70 times slower than the machine's timers, each of which would end, and begin again, hundreds of
times before its time has come. XSAVE needs more room than CPUID says, of which Linux warns, and on
5.10 processes find wrong values in their vector registers.
"""

ISOLINUX = Path("/usr/lib/ISOLINUX/isolinux.bin")
LDLINUX = Path("/usr/lib/syslinux/modules/bios/ldlinux.c32")
BIOS = Path("/usr/share/bochs/BIOS-bochs-latest")
VGA_BIOS = Path("/usr/share/bochs/VGABIOS-lgpl-latest")

PROGRAMS = (BOCHS, XORRISO)
"""Each is in the Debian package of its name."""

PACKAGES = {
    BIOS: "bochsbios",
    VGA_BIOS: "vgabios",
    ISOLINUX: "isolinux",
    LDLINUX: "syslinux-common",
}
"""Files of other packages, without which there is nothing to boot from, or with."""

_PACK = """
import os, subprocess, sys, tarfile, termios, threading
before = {os.path.join(p, f) for p, _, fs in os.walk(".") for f in fs}
# Pipes: a serial line is a terminal, for which commands would draw their progress.
command = subprocess.Popen(sys.argv[2:], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
def copy(source, port):
    while data := source.read1():
        port.write(data)
copies = [
    threading.Thread(target=copy, args=(source, open(descriptor, "wb", 0, closefd=False)))
    for source, descriptor in ((command.stdout, 1), (command.stderr, 2))
]
for each in copies:
    each.start()
for each in copies:
    each.join()
status = command.wait()
with open(2, "wb", 0, closefd=False) as port:
    port.write(sys.argv[1].encode())
    with tarfile.open(fileobj=port, mode="w|gz") as tar:
        for place, _, files in os.walk("."):
            for name in files:
                if (path := os.path.join(place, name)) not in before:
                    tar.add(path)
    termios.tcdrain(port)
sys.exit(status if status >= 0 else 128 - status)
"""


def packing(python: str, nonce: str, words: Sequence[str]) -> tuple[str, ...]:
    """Return a command that runs another one and then sends back the files that it wrote."""
    return (python, "-c", _PACK, mark(nonce), *words)


def mark(nonce: str) -> str:
    """Return the mark between a command's standard error and its files."""
    return f"--- memslot-lab {nonce} files ---\n"


class Unpacking:
    """A sink for standard error: what follows the mark is files, which are kept until the end."""

    def __init__(self, nonce: str, sink: Sink) -> None:
        self._mark = mark(nonce).encode()
        self._sink = sink
        self._held = b""
        self._files: list[bytes] | None = None

    def __call__(self, data: bytes) -> None:
        """Pass on text; hold back what may be the start of the mark."""
        if self._files is not None:
            self._files.append(data)
            return
        text, found, files = (self._held + data).partition(self._mark)
        if found:
            self._held, self._files = b"", [files]
        else:
            held = next(
                (n for n in range(len(self._mark) - 1, 0, -1) if text.endswith(self._mark[:n])), 0
            )
            text, self._held = text[: len(text) - held], text[len(text) - held :]
        if text:
            self._sink(text)

    def unpack(self, folder: Path) -> None:
        """Write the files to their places. Raises LabError if they are damaged."""
        if self._held:
            self._sink(self._held)
        if self._files is None:
            return
        try:
            with tarfile.open(fileobj=io.BytesIO(b"".join(self._files)), mode="r:gz") as tar:
                tar.extractall(folder, filter="data")
        except (tarfile.TarError, OSError, EOFError) as error:
            raise LabError(f"the command's files came back damaged: {error}") from None


def lacking() -> str:
    """Return all that is missing here, and the command that installs it; empty if nothing is."""
    programs = [name for name in PROGRAMS if not shutil.which(name)]
    files = {path: package for path, package in PACKAGES.items() if not path.exists()}
    missing = [*programs, *map(str, files)]
    if not missing:
        return ""
    verb = "is" if len(missing) == 1 else "are"
    return (
        f"{', '.join(missing)} {verb} missing: apt install {' '.join([*programs, *files.values()])}"
    )


def make_cd(output: Path, kernel: Path, first: Path, command_line: str) -> None:
    """Make a CD that boots a kernel. Raises MissingError and LabError."""
    if lack := lacking():
        raise MissingError(lack)
    tree = output.with_suffix("")
    tree.mkdir(exist_ok=True)
    for source, name in (
        (ISOLINUX, "isolinux.bin"),
        (LDLINUX, "ldlinux.c32"),
        (kernel, "kernel"),
        (first, "first"),
    ):
        shutil.copy(source, tree / name)
    append = f"append initrd=first {command_line}"
    lines = ("default lab", "prompt 0", "label lab", "kernel kernel", append, "")
    write_named(tree / "isolinux.cfg", "\n".join(lines))
    options = ["-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4"]
    options.append("-boot-info-table")
    done = subprocess.run(
        [XORRISO, "-as", "mkisofs", "-quiet", "-o", str(output), *options, str(tree)],
        capture_output=True,
        text=True,
        check=False,
    )
    shutil.rmtree(tree)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no message"]
        raise LabError(f"xorriso fails: {said[-1]}")


def command(folder: Path, cd: Path, memory_mib: int, log: Path, out: int, err: int) -> list[str]:
    """Write the configuration and return the command that starts bochs."""
    lines = (
        "plugin_ctrl: unmapped=0, biosdev=0, extfpuirq=0, gameport=0, speaker=0",
        'display_library: rfb, options="timeout=0"',
        f"memory: guest={memory_mib}, host={memory_mib}",
        f"cpu: model={MODEL}, count=1, ips={IPS}, reset_on_triple_fault=0",
        f"romimage: file={BIOS}",
        f"vgaromimage: file={VGA_BIOS}",
        "clock: sync=none, time0=utc",
        "ata0: enabled=1",
        f"ata0-master: type=cdrom, path={cd}, status=inserted",
        "boot: cdrom",
        f"com1: enabled=1, mode=file, dev={log}",
        f"com2: enabled=1, mode=file, dev=/proc/self/fd/{out}",
        f"com3: enabled=1, mode=file, dev=/proc/self/fd/{err}",
        f"log: {folder / 'bochs.log'}",
        "panic: action=fatal",
        "error: action=report",
        "info: action=ignore",
        "debug: action=ignore",
        "mouse: enabled=0",
        "",
    )
    write_named(folder / "bochsrc", "\n".join(lines))
    write_named(folder / "commands", "continue\n")
    return [BOCHS, "-q", "-f", str(folder / "bochsrc"), "-rc", str(folder / "commands")]
