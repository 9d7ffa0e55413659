"""The kernel's options, from the kernel itself or from the file beside its image."""

import gzip
from pathlib import Path

from vmm.host.config import kernel_options

TEXT = """CONFIG_KVM=m
# CONFIG_KASAN is not set
CONFIG_KVM_SMM=y
CONFIG_KVM_MAX_NR_VCPUS=1024
CONFIG_PREEMPT_DYNAMIC=y
CONFIG_USB=y
"""
KNOWN = ("KVM=m", "KVM_SMM", "PREEMPT_DYNAMIC")


def test_the_kernel_itself_tells(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/config.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert kernel_options("6.12", tmp_path) == KNOWN


def test_a_distribution_keeps_a_file(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/config-6.12").write_text(TEXT)
    assert kernel_options("6.12", tmp_path) == KNOWN
    assert kernel_options("6.13", tmp_path) == ()


def test_a_damaged_file_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/config.gz").write_bytes(gzip.compress(TEXT.encode())[:20])
    assert kernel_options("6.12", tmp_path) == ()
