"""Facts of fake hosts, and what each that cannot run KVM is told."""

import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest

from vmm.host.hostinfo import HostInfo, host_facts, physical_address_bits
from vmm.host.roots import Roots

NULL = os.major(os.stat("/dev/null").st_rdev), os.minor(os.stat("/dev/null").st_rdev)


class FakeHost:
    """The files that tell of a host's KVM."""

    def __init__(self, base: Path) -> None:
        self.roots = Roots(base / "proc", base / "sys", device=base / "kvm", number=NULL)
        self.roots.proc.mkdir()
        self.cpu("fpu svm")
        self.roots.device.symlink_to("/dev/null")

    def cpu(self, flags: str) -> None:
        text = f"processor\t: 0\nmodel name\t: A CPU\nflags\t\t: {flags}\n\nprocessor\t: 1\n"
        (self.roots.proc / "cpuinfo").write_text(text)

    def module(self, name: str, **parameters: str) -> None:
        folder = self.roots.sys / "module" / name / "parameters"
        folder.mkdir(parents=True)
        for key, value in parameters.items():
            (folder / key).write_text(f"{value}\n")

    def facts(self) -> HostInfo:
        return host_facts(self.roots)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


@pytest.mark.parametrize(
    ("said", "bits"),
    [("address sizes\t: 46 bits physical, 48 bits virtual\n", 46), ("address sizes\t: ?\n", 32)],
)
def test_the_bits_of_a_physical_address(said: str, bits: int, host: FakeHost) -> None:
    (host.roots.proc / "cpuinfo").write_text(said)
    assert physical_address_bits(host.roots) == bits
    (host.roots.proc / "cpuinfo").unlink()
    assert physical_address_bits(host.roots) == 32


def test_a_host_that_can(host: FakeHost) -> None:
    host.module("kvm", ignore_msrs="N")
    host.module("kvm_amd", npt="Y", nested="1")
    facts = host.facts()
    assert (facts.obstacle, facts.remedy) == ("", "")
    assert (facts.vendor, facts.cpu, facts.hypervisor) == ("kvm_amd", "A CPU", False)
    assert facts.modules == {
        "kvm": {"ignore_msrs": "N"},
        "kvm_amd": {"nested": "1", "npt": "Y"},
    }


@pytest.mark.parametrize(
    ("module", "parameter", "value", "tdp"),
    [
        ("kvm_amd", "npt", "1", "on (kvm_amd.npt=1)"),
        ("kvm_amd", "npt", "N", "off (kvm_amd.npt=N)"),
        ("kvm_intel", "ept", "Y", "on (kvm_intel.ept=Y)"),
        ("kvm_intel", "ept", "0", "off (kvm_intel.ept=0)"),
        ("kvm_pvm", "stats", "N", "unknown"),
    ],
)
def test_tdp_is_what_the_vendor_module_says(
    host: FakeHost, module: str, parameter: str, value: str, tdp: str
) -> None:
    host.cpu("fpu vmx" if module == "kvm_intel" else "fpu svm")
    host.module("kvm", tdp_mmu="Y")
    host.module(module, **{parameter: value})
    assert host.facts().tdp == tdp
    assert host.facts().vendor == module


@pytest.mark.parametrize(
    ("flags", "vendor", "tdp"),
    [
        ("fpu vmx", "kvm_intel", "on (kvm_intel.ept=Y)"),
        ("fpu svm", "kvm_amd", "off (kvm_amd.npt=N)"),
    ],
)
def test_of_two_built_in_modules_the_cpu_says_which_works(
    host: FakeHost, flags: str, vendor: str, tdp: str
) -> None:
    host.cpu(flags)
    host.module("kvm_amd", npt="N")
    host.module("kvm_intel", ept="Y")
    assert (host.facts().vendor, host.facts().tdp) == (vendor, tdp)
    assert list(host.facts().modules) == [vendor]


@pytest.mark.parametrize(
    ("flags", "modules", "remedy"),
    [
        ("fpu vmx", [], "modprobe kvm_intel"),
        ("fpu svm", ["kvm"], "modprobe kvm_amd"),
        ("fpu svm hypervisor", [], "modprobe kvm_amd"),
        ("fpu hypervisor", [], "nested"),
        ("fpu", [], "firmware"),
        ("fpu svm", ["kvm", "kvm_amd"], "--device /dev/kvm"),
    ],
)
def test_without_a_device_the_likely_reason_is_told(
    host: FakeHost, flags: str, modules: list[str], remedy: str
) -> None:
    host.roots.device.unlink()
    host.cpu(flags)
    for module in modules:
        host.module(module)
    facts = host.facts()
    assert facts.obstacle == f"{host.roots.device}: No such file or directory"
    assert remedy in facts.remedy


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.EACCES, "group"), (errno.EPERM, "group"), (errno.EIO, "log")]
)
def test_a_device_that_refuses_is_told_with_its_errno(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    def refuse(path: Path, flags: int) -> NoReturn:
        assert flags & os.O_RDWR
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    facts = host.facts()
    assert facts.obstacle == f"{host.roots.device}: {os.strerror(number)}"
    assert remedy in facts.remedy


@pytest.mark.parametrize("other", ["/dev/zero", "/dev/tty", "/etc/hostname", "/etc"])
def test_what_has_the_name_of_the_device_and_is_another_is_not_asked(
    host: FakeHost, other: str
) -> None:
    host.roots.device.unlink()
    host.roots.device.symlink_to(other)
    facts = host.facts()
    assert facts.obstacle == f"{host.roots.device}: not character device {NULL[0]}:{NULL[1]}"
    assert "mknod /dev/kvm c 10 232" in facts.remedy


def test_the_device_is_known_by_its_number() -> None:
    assert Roots().number == (10, 232)
