"""Where the kernel's files are."""

from dataclasses import dataclass
from pathlib import Path

from kvm_abi.uapi import DEVICE_NUMBER


@dataclass(frozen=True, slots=True)
class Roots:
    """Where the kernel's files are; tests put their own there."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    kmsg: Path = Path("/dev/kmsg")
    device: Path = Path("/dev/kvm")
    number: tuple[int, int] = DEVICE_NUMBER


THIS_HOST = Roots()
