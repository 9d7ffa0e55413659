"""Where the kernel's files are."""

from dataclasses import dataclass
from pathlib import Path

_DEVICE_NUMBER = (10, 232)
"""KVM's device number, MISC_MAJOR and KVM_MINOR (linux/miscdevice.h), wherever the device is."""


@dataclass(frozen=True, slots=True)
class Roots:
    """Where the kernel's files are; tests put their own there."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    kmsg: Path = Path("/dev/kmsg")
    device: Path = Path("/dev/kvm")
    number: tuple[int, int] = _DEVICE_NUMBER


THIS_HOST = Roots()
