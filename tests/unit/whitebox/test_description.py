"""Structures are found in the kernel's own types, in debug information, and in files of ours."""

import sys
from pathlib import Path
from struct import pack

import msgspec
import pytest

from tests.kernelheld import ARRAY_LAYOUT, LAYOUT
from vmm.cli.lab import whitebox
from vmm.lab.kernel import Kernel
from vmm.whitebox import description, symbols
from vmm.whitebox.btf import Btf
from vmm.whitebox.description import Description, described, from_debug_info
from vmm.whitebox.dwarf import NO_DRGN
from vmm.whitebox.errors import CannotLookError
from vmm.whitebox.layout import Structure, layout_of

Members = dict[str, int]


def btf(
    structures: dict[str, tuple[int, Members]], shared: bytes = b"", others: bytes = b""
) -> bytes:
    """Return types: ``others`` come first, and strings of ``shared`` are not repeated."""
    own = b"" if shared else b"\0"
    types = others

    def text(string: str) -> int:
        nonlocal own
        sought = b"\0" + string.encode() + b"\0"
        at = (shared + own).find(sought)
        if at < 0:
            at = len(shared) + len(own) - 1
            own += string.encode() + b"\0"
        return at + 1

    if shared:
        own = b"\0"
    for name, (size, members) in structures.items():
        types += pack("<III", text(name), 4 << 24 | len(members), size)
        for member, offset in members.items():
            types += pack("<III", text(member) if member else 0, 1, offset * 8)
    header = pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(own))
    return header + types + own


ARCH: dict[str, tuple[int, Members]] = {
    "kvm_arch": (600, {"n_used_mmu_pages": 0, "indirect_shadow_pages": 24}),
    "kvm_arch_memory_slot": (48, {"rmap": 0, "lpage_info": 24, "gfn_track": 40}),
}

TREES: dict[str, tuple[int, Members]] = {
    "kvm": (9000, {"lock": 0, "": 8, "vm_list": 16, "userspace_pid": 40, "__memslots": 64}
            | {"memslots": 8192, "xarray": 8208, "nr_memslot_pages": 8464, "arch": 8476}),
    "kvm_memslots": (1072, {"generation": 0, "last_used_slot": 8, "hva_tree": 16, "gfn_tree": 32}
                     | {"id_hash": 40, "node_idx": 1064}),
    "kvm_memory_slot": (296, {"id_node": 0, "hva_node": 32, "gfn_node": 128, "base_gfn": 176}
                        | {"npages": 184, "dirty_bitmap": 192, "arch": 200, "userspace_addr": 248}
                        | {"flags": 256, "id": 260, "as_id": 262}),
    **ARCH,
}  # fmt: skip

ARRAY: dict[str, tuple[int, Members]] = {
    "kvm": (9000, {"lock": 0, "vm_list": 16, "userspace_pid": 40, "memslots": 64, "vcpus": 80}
            | {"arch": 8476}),
    "kvm_memslots": (1048, {"generation": 0, "id_to_index": 8, "lru_slot": 1032}
                     | {"used_slots": 1036, "memslots": 1040}),
    "kvm_memory_slot": (136, {"base_gfn": 0, "npages": 8, "dirty_bitmap": 16, "arch": 24}
                        | {"userspace_addr": 112, "flags": 120, "id": 124, "as_id": 126}),
    **ARCH,
}  # fmt: skip

OTHERS = (
    pack("<III", 0, 1 << 24, 4) + bytes(4)  # INT
    + pack("<III", 0, 3 << 24, 0) + bytes(12)  # ARRAY
    + pack("<III", 0, 6 << 24 | 2, 4) + bytes(16)  # ENUM
    + pack("<III", 0, 13 << 24 | 1, 0) + bytes(8)  # FUNC_PROTO
    + pack("<III", 0, 2 << 24, 1)  # PTR
)  # fmt: skip


@pytest.mark.parametrize(("structures", "layout"), [(TREES, LAYOUT), (ARRAY, ARRAY_LAYOUT)])
def test_the_kernels_own_types_say_where_all_is(
    structures: dict[str, tuple[int, Members]], layout: object
) -> None:
    alone = Btf(btf(structures, others=OTHERS))
    assert layout_of(alone.structure) == layout
    # As a module has them: over the kernel's types, and some of its strings.
    kernel = btf({"list_head": (16, {"memslots": 0, "id": 8, "generation": 4})})
    strings = Btf(kernel)._base.own
    module = Btf(kernel, btf(structures, shared=strings, others=OTHERS))
    assert layout_of(module.structure) == layout
    assert module.structure("list_head").offsets == {"memslots": 0, "id": 8, "generation": 4}


def test_types_that_are_none() -> None:
    for data in (b"", b"hello, I am quite long, but no types", bytes(100)):
        with pytest.raises(ValueError, match="no BTF"):
            Btf(data)
    with pytest.raises(LookupError, match="no struct kvm"):
        layout_of(Btf(btf({})).structure)


@pytest.mark.parametrize("missing", ["hva_tree", "node_idx"])
def test_a_member_that_is_missing_is_named(missing: str) -> None:
    size, members = TREES["kvm_memslots"]
    left = {name: at for name, at in members.items() if name != missing}
    with pytest.raises(KeyError, match=missing):
        layout_of(Btf(btf(TREES | {"kvm_memslots": (size, left)})).structure)


def test_memslots_of_another_time_are_refused() -> None:
    sets = Structure(100, {"generation": 0, "memslots": 8})
    with pytest.raises(ValueError, match="neither trees nor an array"):
        layout_of(lambda name: sets)


def test_without_drgn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "drgn", None)
    with pytest.raises(CannotLookError, match="drgn is missing: pip install"):
        from_debug_info(Path(__file__))


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(CannotLookError, match=r"kvm\.ko: no such file"):
        from_debug_info(Path("nowhere/kvm.ko"))


def test_a_file_without_types_is_none_of_debug_information() -> None:
    pytest.importorskip("drgn", reason="needs drgn: the extra whitebox")
    with pytest.raises(CannotLookError, match="no debug information of memslots"):
        from_debug_info(Path(sys.executable))


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that stands for what the running kernel says of itself."""
    monkeypatch.setattr(description, "BTF", tmp_path / "btf")
    monkeypatch.setattr(description, "BUILD_ID", tmp_path / "note")
    monkeypatch.setattr(symbols.vm_list_in, "__defaults__", (tmp_path / "kallsyms",))
    monkeypatch.setattr(symbols.Within.address, "__defaults__", (tmp_path,))
    (tmp_path / "kallsyms").write_text("ffffffffa0060030 d vm_list\t[kvm]\n")
    (tmp_path / ".data").write_text("0xffffffffa0000000\n")
    return tmp_path


def test_a_kernel_that_explains_itself(kernel: Path) -> None:
    (kernel / "btf").mkdir()
    (kernel / "btf" / "vmlinux").write_bytes(btf({}))
    (kernel / "btf" / "kvm").write_bytes(btf(TREES, shared=b"\0"))
    assert described(None, "6.12") == (LAYOUT, 0xFFFF_FFFF_A006_0030)
    file = kernel / "ours.json"
    file.write_bytes(msgspec.json.encode(Description(vm_list=symbols.Within(".data", 0x70))))
    assert described(file, "6.12") == (LAYOUT, 0xFFFF_FFFF_A000_0070)


def test_what_was_looked_into_in_vain_is_told_in_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(whitebox, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "drgn", None)
    file = tmp_path / "kvm.ko"
    file.write_bytes(module() + b"\0vermagic=1.2 SMP\0")
    kept = whitebox.description_of(Kernel("", file, "1.2", {"kvm": file}))
    assert kept is not None
    known = description.one_of_ours(kept)
    assert known.vm_list == symbols.Within(".data", 0x470)
    assert known.why.startswith("the Python package drgn is missing: pip install")


def test_a_file_of_ours_needs_nothing_else(kernel: Path) -> None:
    file = kernel / "ours.json"
    known = Description(ARRAY_LAYOUT, symbols.Within(".data", 0x30), "0a0b")
    file.write_bytes(msgspec.json.encode(known))
    (kernel / "note").write_bytes(b"GNU\0\x0a\x0b")
    assert described(file, "5.10") == (ARRAY_LAYOUT, 0xFFFF_FFFF_A000_0030)
    (kernel / "note").write_bytes(b"GNU\0\x0a\x0c")
    with pytest.raises(CannotLookError, match="another build ID"):
        described(file, "5.10")


def test_what_is_missing_is_said(kernel: Path) -> None:
    with pytest.raises(CannotLookError, match=r"no types of Linux 1\.2: neither in .*btf"):
        described(None, "1.2")
    file = kernel / "ours.json"
    file.write_bytes(msgspec.json.encode(Description(why=f"{NO_DRGN}: pip install it")))
    with pytest.raises(CannotLookError) as caught:
        described(file, "1.2")
    assert caught.value.in_brief == f"no types of this kernel, {NO_DRGN}"
    file.write_bytes(msgspec.json.encode(Description(why="drgn is missing")))
    with pytest.raises(CannotLookError, match=r"nor debug information of kvm: drgn is missing$"):
        described(file, "1.2")
    file.unlink()
    with pytest.raises(CannotLookError, match=r"ours\.json: No such file"):
        described(file, "1.2")
    file.write_text('{"layout": 5}')
    with pytest.raises(CannotLookError, match=r"no debug information of .*\$\.layout"):
        described(file, "1.2")


@pytest.mark.parametrize(
    ("symbol", "why"),
    [
        ("ffffffffa0060030 d vm_list\t[kvm]\n", ""),
        ("0000000000000000 d vm_list\t[kvm]\n", "hides addresses"),
        ("ffffffffa0060030 t kvm_init\t[kvm]\n", "does not name vm_list"),
        ("ffffffffa0060030 t vm_list_of\t[kvm]\n", "does not name vm_list"),
    ],
)
def test_the_list_of_vms_is_found_by_name(
    tmp_path: Path, symbol: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(symbols, "_BLOCK", 64)
    many = "".join(f"ffffffff8100{number:04x} t vm_list{number}\n" for number in range(40))
    (tmp_path / "kallsyms").write_text(many + symbol + many)
    if not why:
        assert symbols.vm_list_in(tmp_path / "kallsyms") == 0xFFFF_FFFF_A006_0030
        return
    with pytest.raises(CannotLookError, match=why):
        symbols.vm_list_in(tmp_path / "kallsyms")


def test_a_section_that_hides_its_address(tmp_path: Path) -> None:
    with pytest.raises(CannotLookError, match=r"\.data: .*No such file"):
        symbols.Within(".data", 1).address(tmp_path)
    (tmp_path / ".data").write_text("0x0000000000000000\n")
    with pytest.raises(CannotLookError, match="hides addresses"):
        symbols.Within(".data", 1).address(tmp_path)


def module() -> bytes:
    """Return an ELF file with a symbol table, as a kvm.ko is one."""
    names = b"\0.symtab\0.strtab\0.data\0"
    strings = b"\0kvm_init\0vm_list\0"
    symtab = b"".join(
        pack("<IBBHQQ", at, 0, 0, 3, value, 16) for at, value in ((0, 0), (1, 0x10), (10, 0x470))
    )
    body = names + strings + symtab
    begin = 64
    sections = [
        (0, 0, 0, 0, 0),
        (1, 2, begin + len(names) + len(strings), len(symtab), 2),
        (9, 3, begin + len(names), len(strings), 0),
        (17, 1, 0, 0, 0),
        (0, 3, begin, len(names), 0),
    ]
    table = b"".join(
        pack("<IIQQQQIIQQ", name, kind, 0, 0, offset, size, link, 0, 1, 24)
        for name, kind, offset, size, link in sections
    )
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, begin + len(body), 0, 64, 0, 0, 64, 5, 4)
    return header + body + table


def test_the_place_of_the_list_in_its_module() -> None:
    assert symbols.within(module()) == symbols.Within(".data", 0x470)
    assert symbols.within(module().replace(b"vm_list", b"vm_lost")) is None
    assert symbols.within(b"no module") is None


@pytest.mark.parametrize("damage", [b"", b'{"why": "\xff"}', b"[" * 100_000, b'{"layout": 1}'])
def test_a_damaged_description_is_named(tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / "kvm.json"
    file.write_bytes(damage)
    with pytest.raises(CannotLookError, match=r"kvm\.json: "):
        description.one_of_ours(file)
