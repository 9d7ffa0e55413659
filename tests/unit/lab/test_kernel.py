import lzma
from pathlib import Path

import pytest

from vmm.lab import modules
from vmm.lab.errors import LabError
from vmm.lab.kernel import check_release, from_path, release_of


def image(path: Path, release: str) -> Path:
    """Write what the head of a bzImage looks like."""
    data = bytearray(0x400)
    data[0x202:0x206] = b"HdrS"
    data[0x20E:0x210] = (0x100).to_bytes(2, "little")
    text = f"{release} (builder@host) #1 SMP".encode()
    data[0x300 : 0x300 + len(text)] = text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def module(path: Path, needs: str = "", release: str = "6.12.1") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = f"\x7fELF\0license=GPL\0depends={needs}\0vermagic={release} SMP mod_unload \0"
    data = content.encode()
    path.write_bytes(lzma.compress(data) if path.suffix == ".xz" else data)
    return path


def test_an_image_says_which_release_it_is(tmp_path: Path) -> None:
    assert release_of(image(tmp_path / "bzImage", "6.12.1-small")) == "6.12.1-small"


def test_a_vmlinux_says_it_in_its_banner(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(b"\x7fELF\x02" + bytes(500) + b"Linux version 5.10.9 (builder@host)\n")
    assert release_of(path) == "5.10.9"


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF\x02" + bytes(600), bytes(5000)])
def test_a_file_that_is_no_kernel_is_refused_before_anything_boots(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)
    with pytest.raises(LabError, match=r"image: "):
        from_path(path)


def test_an_image_that_is_cut_off_says_how_much_is_missing(tmp_path: Path) -> None:
    path = image(tmp_path / "bzImage", "6.12.1")
    data = bytearray(path.read_bytes())
    data[0x1F1] = 3
    data[0x1F4:0x1F8] = (1000).to_bytes(4, "little")
    whole = bytes(data).ljust(4 * 512 + 16000, b"\0")
    path.write_bytes(whole)
    assert release_of(path) == "6.12.1"
    path.write_bytes(whole[:-1])
    with pytest.raises(LabError, match=r"bzImage: .* is cut off: 18047 bytes of 18048$"):
        release_of(path)


def test_a_vmlinux_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    head = b"\x7fELF\x02".ljust(40, b"\0") + (700).to_bytes(8, "little") + bytes(10)
    head += (64).to_bytes(2, "little") + (2).to_bytes(2, "little")
    whole = (head + b"..Linux version 5.10.9 (builder@host)\n").ljust(828, b"\0")
    path.write_bytes(whole)
    assert release_of(path) == "5.10.9"
    path.write_bytes(whole[:-1])
    with pytest.raises(LabError, match=r"vmlinux: .* is cut off: 827 bytes of 828$"):
        release_of(path)


def test_modules_come_in_the_order_in_which_they_load(tmp_path: Path) -> None:
    module(tmp_path / "a" / "kvm-amd.ko.xz", "kvm,ccp")
    module(tmp_path / "b" / "kvm.ko", "irqbypass")
    module(tmp_path / "b" / "ccp.ko")
    module(tmp_path / "c" / "irqbypass.ko.xz")
    module(tmp_path / "c" / "unwanted.ko")
    chosen = modules.in_order(modules.index(tmp_path), ["9p", "kvm_amd", "kvm"])
    assert [each.name for each in chosen] == ["irqbypass", "kvm", "ccp", "kvm_amd"]


def test_modules_that_need_each_other_do_not_go_round_for_ever(tmp_path: Path) -> None:
    module(tmp_path / "a.ko", "b")
    module(tmp_path / "b.ko", "a")
    assert len(modules.in_order(modules.index(tmp_path), ["a"])) == 2


def test_modules_of_another_release_are_refused(tmp_path: Path) -> None:
    module(tmp_path / "m" / "kvm.ko", release="6.12.2")
    kernel = from_path(image(tmp_path / "bzImage", "6.12.1"), tmp_path / "m")
    with pytest.raises(LabError, match=r"kvm.ko is for Linux 6.12.2, but .* is Linux 6.12.1"):
        check_release(kernel, modules.in_order(kernel.modules, ["kvm"]))


@pytest.mark.parametrize("name", ["kvm.ko", "kvm.ko.xz", "kvm.ko.gz"])
def test_a_damaged_module_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"garbage")
    with pytest.raises(LabError, match=name):
        modules.in_order(modules.index(tmp_path), ["kvm"])


def test_a_build_tree_brings_its_image_and_its_own_modules(tmp_path: Path) -> None:
    image(tmp_path / "arch/x86/boot/bzImage", "6.12.1")
    module(tmp_path / "arch/x86/kvm/kvm.ko")
    module(tmp_path / "old/kvm_amd.ko")
    (tmp_path / "Module.symvers").touch()
    (tmp_path / "modules.order").write_text("arch/x86/kvm/kvm.o\n")
    kernel = from_path(tmp_path)
    assert kernel.image == tmp_path / "arch/x86/boot/bzImage"
    assert list(kernel.modules) == ["kvm"]


def test_a_vmlinux_is_booted_only_where_the_tree_says_that_it_boots(tmp_path: Path) -> None:
    image(tmp_path / "arch/x86/boot/bzImage", "6.12.1")
    (tmp_path / "vmlinux").write_bytes(b"\x7fELF\x02" + bytes(9) + b"Linux version 6.12.1 (x)")
    assert from_path(tmp_path).direct is None
    (tmp_path / ".config").write_text("#\nCONFIG_PVH=y\n")
    assert from_path(tmp_path).direct == tmp_path / "vmlinux"
    assert from_path(tmp_path).image.name == "bzImage", "bochs boots it from a CD"


def test_a_folder_without_a_kernel_is_said(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="neither a kernel image nor a tree"):
        from_path(tmp_path)


def test_what_a_module_needs_must_be_there(tmp_path: Path) -> None:
    path = module(tmp_path / "kvm-amd.ko", needs="kvm")
    with pytest.raises(LabError, match=rf"{path}: it needs the module kvm, which is missing"):
        modules.in_order(modules.index(tmp_path), ["kvm_amd"])
