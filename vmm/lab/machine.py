"""The machine to boot: a kernel on an emulated or nested processor, with the host's files in it."""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from vmm.lab import bochs, modules
from vmm.lab.errors import LabError, MissingError
from vmm.lab.kernel import Kernel, check_release

QEMU = "qemu-system-x86_64"
HUGE_PAGES = 32
"""Free 2 MiB huge pages in the machine, which some scenarios need."""


class Backend(StrEnum):
    """Whose virtualisation the machine's KVM uses."""

    SVM = "svm"
    VMX = "vmx"
    KVM = "kvm"


SAYS = {
    Backend.SVM: "AMD's virtualisation, emulated by QEMU (TCG)",
    Backend.VMX: "Intel's virtualisation, emulated by bochs",
    Backend.KVM: "this host's own KVM, nested",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """``parameters`` go to the kernel's command line; MODULE.NAME=VALUE also goes to the module.

    The machine is ended after ``limit_s``, after ``silence_s`` without output, and after ``life_s``
    without a sign of life, of which there is one every five seconds.
    """

    kernel: Kernel
    backend: Backend
    parameters: tuple[str, ...] = ()
    cpus: int = 1
    memory_mib: int = 2048
    limit_s: float = 3600
    silence_s: float = math.inf
    life_s: float = 120


@dataclass(frozen=True, slots=True)
class Job:
    """A command to run on the host's files, which are read-only except ``folder``.

    The command starts in ``folder``. ``kept`` paths in it stay read-only, which is faster. If an
    emulator cannot share the host's files, the machine has the Python of this process, ``code`` and
    ``inputs``.

    ``preloaded`` is a program, of this Python and ``code``, that can be started before the host's
    files are there: it imports what ``words`` need, and then does what they say.
    """

    words: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    kept: tuple[Path, ...] = ()
    code: tuple[Path, ...] = ()
    inputs: tuple[Path, ...] = ()
    preloaded: tuple[str, ...] = ()


def usable_nesting() -> str:
    """Return "" if a guest's KVM can use this host's KVM, else the reason."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm cannot be used here"
    for vendor in ("kvm_amd", "kvm_intel"):
        try:
            if Path(f"/sys/module/{vendor}/parameters/nested").read_text().strip() in ("1", "Y"):
                return ""
        except OSError:
            continue
    return "this host's KVM does not nest"


def chosen_backend(name: str | None) -> Backend:
    """Return the named backend, or the default: the host's KVM if it nests, else emulated SVM.

    Raises MissingError if a named backend is not available: another one is never used silently.
    """
    if name is None:
        return Backend.SVM if usable_nesting() else Backend.KVM
    backend = Backend(name)
    if backend is Backend.KVM and (why := usable_nesting()):
        raise MissingError(f"--backend kvm: {why}")
    return backend


def wanted_modules(backend: Backend) -> tuple[str, ...]:
    """Return the modules that a machine needs unless they are built in, in order."""
    shares = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p")
    match backend:
        case Backend.SVM:
            return (*shares, "kvm", "kvm_amd")
        case Backend.VMX:
            return ("kvm", "kvm_intel")
        case Backend.KVM:
            is_amd = Path("/sys/module/kvm_amd").exists()
            return (*shares, "kvm", "kvm_amd" if is_amd else "kvm_intel")


def loadable(machine: Machine) -> tuple[modules.Module, ...]:
    """Return the modules to load, in order. Raises LabError if they are for another kernel."""
    chosen = modules.in_order(machine.kernel.modules, wanted_modules(machine.backend))
    check_release(machine.kernel, chosen)
    return chosen


def module_parameters(machine: Machine) -> dict[str, str]:
    """Return the parameters that are a module's, such as "kvm_amd.npt", with their values."""
    pairs = (each.partition("=") for each in machine.parameters)
    named = {name.replace("-", "_"): value for name, _, value in pairs}
    return {name: value for name, value in named.items() if name.startswith("kvm")}


def command_line(machine: Machine) -> str:
    """Return the kernel's command line: any warning ends the machine at once, and is in its log."""
    warns = machine.backend is Backend.VMX  # Kernels warn about bochs's processor.
    words = [
        *("console=ttyS0,115200", "oops=panic", "panic=-1", "reboot=t"),
        *(("loglevel=5",) if warns else ("panic_on_warn=1",)),
        *("printk.devkmsg=on", f"hugepages={HUGE_PAGES}", "nokaslr", "mitigations=off"),
        *("random.trust_cpu=on", "no_timer_check", "rdinit=/init"),
    ]
    if machine.backend is not Backend.KVM:
        # What has not run for long on an emulated processor says how busy this host is.
        words += ["rcupdate.rcu_cpu_stall_suppress=1", "nosoftlockup"]
    if machine.backend is Backend.VMX:
        words += bochs.PARAMETERS
    return " ".join([*words, *machine.parameters])


@dataclass(frozen=True, slots=True)
class State:
    """The files of a saved state: the machine's memory, and everything else."""

    memory: Path
    devices: Path


@dataclass(frozen=True, slots=True)
class Wiring:
    """Where a machine begins, and its connections.

    ``first`` is the initramfs, ``log`` gets the kernel's log, ``out`` and ``err`` (descriptors of
    pipes) the job's output; ``monitor`` is a socket. Orders come on standard input. ``state`` is
    the saved state of an equal machine, to start from, and ``memory`` the file that a machine has
    as its memory whose state is to be saved.
    """

    first: Path
    log: Path
    out: int
    err: int
    monitor: int
    state: State | None = None
    memory: Path | None = None


def qemu_command(machine: Machine, job: Job, wiring: Wiring) -> Sequence[str]:
    """Return the command that starts QEMU. Raises MissingError and LabError."""
    if not shutil.which(QEMU):
        raise MissingError(f"{QEMU} is missing: apt install qemu-system-x86")
    for path in (job.folder, wiring.first, wiring.log):
        if "," in str(path):
            raise LabError(f"{path}: QEMU cannot have a comma in a name")
    accelerator = "kvm" if machine.backend is Backend.KVM else "tcg,thread=single"
    return [
        *(QEMU, "-machine", "q35", "-accel", accelerator),
        *("-cpu", "host" if machine.backend is Backend.KVM else "max"),
        *("-smp", str(machine.cpus), "-m", f"{machine.memory_mib}M"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-kernel", str(machine.kernel.started), "-initrd", str(wiring.first)),
        *("-append", command_line(machine)),
        *("-chardev", f"file,id=log,path={wiring.log}", "-serial", "chardev:log"),
        *("-chardev", f"socket,id=monitor,fd={wiring.monitor}"),
        *("-mon", "chardev=monitor,mode=control"),
        *("-device", "virtio-serial-pci"),
        *_port(1, "out", f"file,path=/proc/self/fd/{wiring.out}"),
        *_port(2, "err", f"file,path=/proc/self/fd/{wiring.err}"),
        *_port(3, "orders", "stdio,signal=off"),
        *_share("host", Path("/"), readonly=True),
        *_share("share", job.folder, readonly=False),
        *_saved(machine, wiring),
    ]


def _saved(machine: Machine, wiring: Wiring) -> list[str]:
    """Return the options of a machine whose state is saved, or that starts from one."""
    memory = wiring.state.memory if wiring.state else wiring.memory
    if memory is None:
        return []
    share = "off" if wiring.state else "on"
    named = str(memory).replace(",", ",,")
    file = f"size={machine.memory_mib}M,share={share},mem-path={named}"
    words = [
        *("-object", f"memory-backend-file,id=memory,{file}"),
        *("-machine", "memory-backend=memory"),
    ]
    # The monitor says where the state of the devices is.
    return [*words, "-incoming", "defer"] if wiring.state else words


def _port(number: int, name: str, device: str) -> list[str]:
    kind, _, options = device.partition(",")
    words = ["-chardev", f"{kind},id={name},{options}"]
    return [*words, "-device", f"virtserialport,nr={number},chardev={name},name={name}"]


def _share(tag: str, folder: Path, *, readonly: bool) -> list[str]:
    options = f"local,id={tag},path={folder},security_model=none,multidevs=remap"
    options += ",readonly=on" * readonly
    return ["-fsdev", options, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
