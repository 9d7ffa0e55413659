"""Facts about this host and its KVM, and why KVM cannot be used, if it cannot.

To find out, the device is opened read-write: its name and its mode prove nothing.
"""

import errno
import os
import platform
import stat
from dataclasses import dataclass, field
from pathlib import Path

from vmm.host.roots import THIS_HOST, Roots
from vmm.host.structure import by_release, memslot_structure

_VENDORS = ("kvm_intel", "kvm_amd", "kvm_pvm")
_FLAGS = {"kvm_intel": "vmx", "kvm_amd": "svm"}
_TDP_PARAMETERS = ("ept", "npt", "tdp")

_LEAST_ADDRESS_BITS = 32
_YES = frozenset(("1", "Y", "y"))
_MAKE_DEVICE = "in a container, pass it in (`--device /dev/kvm`); else `mknod /dev/kvm c 10 232`"

Modules = dict[str, dict[str, str]]
"""Parameters and their values, by module."""


@dataclass(frozen=True, slots=True)
class HostInfo:
    """What is known about a host.

    ``vendor`` is the KVM module in charge (empty if none is loaded), ``modules`` has its and
    kvm's parameters, ``tdp`` is "on", "off" or "unknown", with the parameter that says so.
    ``obstacle`` says why KVM cannot be used, and ``remedy`` what to do; both are empty if it can.
    ``capabilities`` are the answers of KVM_CHECK_EXTENSION by name, and ``command_line`` is the
    kernel's. ``memslots`` is "array" or "tree": how the kernel keeps them.
    """

    kernel: str
    machine: str
    cpu: str
    hypervisor: bool
    vendor: str
    tdp: str
    obstacle: str = ""
    remedy: str = ""
    modules: Modules = field(default_factory=dict)
    capabilities: dict[str, int] = field(default_factory=dict)
    command_line: str = ""
    memslots: str = ""

    def in_brief(self) -> dict[str, str]:
        """Return the facts that every history contains."""
        return {
            "kernel": self.kernel,
            "machine": self.machine,
            "cpu": self.cpu,
            "vendor": self.vendor or "unknown",
            "tdp": self.tdp,
            "memslots": self.memslots or "unknown",
        }


def host_in_brief(facts: dict[str, str]) -> HostInfo:
    """Return a host from the facts in a history: see `HostInfo.in_brief`."""
    kernel, machine, cpu, vendor, tdp = (
        facts.get(name, "unknown") for name in ("kernel", "machine", "cpu", "vendor", "tdp")
    )
    vendor = "" if vendor == "unknown" else vendor
    memslots = facts.get("memslots", by_release(kernel))
    return HostInfo(kernel, machine, cpu, False, vendor, tdp, memslots=memslots)


def host_facts(roots: Roots = THIS_HOST) -> HostInfo:
    """Return what can be known about this host without calling KVM."""
    fields = _cpu(roots.proc)
    cpu, flags = fields.get("model name", "unknown"), frozenset(fields.get("flags", "").split())
    modules = _modules(roots.sys, flags)
    hypervisor = "hypervisor" in flags
    obstacle, remedy = _obstacle(roots, modules, flags)
    return HostInfo(
        kernel=platform.release(),
        machine=platform.machine(),
        cpu=cpu,
        hypervisor=hypervisor,
        vendor=_vendor(modules),
        tdp=_tdp(modules),
        obstacle=obstacle,
        remedy=remedy,
        modules=modules,
        command_line=_command_line(roots.proc),
        memslots=memslot_structure(roots.sys, platform.release()),
    )


def _command_line(proc: Path) -> str:
    try:
        return (proc / "cmdline").read_text().strip()
    except OSError:
        return ""


def _vendor(modules: Modules) -> str:
    return next((name for name in (*_VENDORS, *modules) if name != "kvm" and name in modules), "")


def _tdp(modules: Modules) -> str:
    for module, parameters in modules.items():
        for name in _TDP_PARAMETERS:
            if name in parameters:
                state = "on" if parameters[name] in _YES else "off"
                return f"{state} ({module}.{name}={parameters[name]})"
    return "unknown"


def _obstacle(roots: Roots, modules: Modules, flags: frozenset[str]) -> tuple[str, str]:
    """Open the device; return why it cannot be used and the remedy; both empty if it can.

    A file with its name but another device number is not opened.
    """
    device, wanted = roots.device, roots.number
    try:
        about = device.stat()
        found = os.major(about.st_rdev), os.minor(about.st_rdev)
        if not stat.S_ISCHR(about.st_mode) or found != wanted:
            return f"{device}: not character device {wanted[0]}:{wanted[1]}", _MAKE_DEVICE
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError as error:
        return (
            f"{device}: {error.strerror}",
            "add yourself to the group that owns it (usually kvm: `sudo usermod -aG kvm $USER`, "
            "then log in again), or run as root",
        )
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            return f"{device}: {error.strerror}", _remedy_for_no_device(modules, flags)
        return f"{device}: {error.strerror}", "see the kernel log for why KVM refuses"
    return "", ""


def _remedy_for_no_device(modules: Modules, flags: frozenset[str]) -> str:
    if _vendor(modules):
        return f"KVM is loaded, its device is not here: {_MAKE_DEVICE}"
    if {"vmx", "svm"} & flags:
        module = "kvm_intel" if "vmx" in flags else "kvm_amd"
        return (
            f"load the module (`modprobe {module}`); if there is none, the kernel is built "
            "without CONFIG_KVM; if it refuses, virtualisation is off in the firmware"
        )
    if "hypervisor" in flags:
        return (
            "this is a virtual machine without nested virtualisation: turn it on in the outer "
            "hypervisor (nested=1 of its kvm_intel or kvm_amd, and a CPU model with vmx or svm), "
            "or load a software backend (kvm_pvm)"
        )
    return "the CPU shows neither vmx nor svm: turn virtualisation on in the firmware"


def physical_address_bits(roots: Roots = THIS_HOST) -> int:
    """Return how many bits a physical address of this host has; if it does not say, the least."""
    bits = _cpu(roots.proc).get("address sizes", "").partition(" ")[0]
    return int(bits) if bits.isdecimal() else _LEAST_ADDRESS_BITS


def _cpu(proc: Path) -> dict[str, str]:
    """Return what is said of the first CPU, by its name."""
    try:
        lines = (proc / "cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}


def _modules(sys: Path, flags: frozenset[str]) -> Modules:
    """Return the parameters of kvm and of every kvm_* module that is loaded or built in.

    If built in, both Intel's and AMD's exist; the one for the other CPU is left out.
    """
    idle = {name for name, flag in _FLAGS.items() if flag not in flags}
    if len(idle) == len(_FLAGS):
        idle.clear()
    modules: Modules = {}
    for module in sorted((sys / "module").glob("kvm*")):
        if module.name in idle:
            continue
        parameters: dict[str, str] = {}
        for path in sorted((module / "parameters").glob("*")):
            try:
                parameters[path.name] = path.read_text().strip()
            except OSError:
                parameters[path.name] = "unreadable"
        modules[module.name] = parameters
    return modules
