"""What is read from the kernel's memory, which these tests make; it may be wrong in any way."""

from pathlib import Path
from struct import pack, pack_into

import pytest

from tests.kernelheld import LAYOUT, VM_LIST, Memory, held
from vmm.scenario.kernelslots import ELSEWHERE, KernelSlot, KernelTrees
from vmm.whitebox.kcore import Kcore
from vmm.whitebox.reader import FREELY, NotFoundError, Reader
from vmm.whitebox.reading import MOST_SLOTS

SLOTS = [
    KernelSlot(number * 3, 0, 0x100 * number, number + 1, 0x7F00_0000_0000 - 0x10000 * number, 1)
    for number in range(9)
]


def read(memory: Memory) -> KernelTrees:
    reader = Reader(memory.read, LAYOUT, VM_LIST, memory.pid)
    assert reader.generation(0) is not None
    found = reader.slots(0, 6, -1)
    assert isinstance(found, KernelTrees)
    return found


def renamed(kernel: KernelTrees) -> list[tuple[object, ...]]:
    """Return both copies with slots in place of their numbers, which depend on who came first."""
    name = dict(enumerate(kernel.slots))
    return [
        (
            each.generation,
            each.node_idx,
            name[each.gfn_root],
            name[each.hva_leftmost],
            name[each.last_used],
            [
                [
                    *(name.get(at) for at in (node.slot, node.parent, node.left, node.right)),
                    node.black,
                ]
                for node in (*each.gfn_tree, *each.hva_tree)
            ],
            each.intervals,
            sorted((bucket, name[entry].slot_id) for bucket, entry in each.id_hash),
            each.cut,
        )
        for each in (kernel.active, kernel.inactive)
    ]


@pytest.mark.parametrize("node_idx", [0, 1])
def test_all_of_both_copies_is_read(node_idx: int) -> None:
    kernel = held(SLOTS, 6, 8, node_idx)
    memory = Memory(kernel)
    memory.word(memory.vm + LAYOUT.kvm_slot_pages, 45)
    found = read(memory)
    assert found.pages == 45
    assert set(found.slots) == set(SLOTS)
    assert renamed(found) == renamed(kernel)
    assert found.before == 6


def test_no_slots_are_read_as_none() -> None:
    found = read(Memory(held([], 6, 8)))
    assert (found.slots, found.active.gfn_tree, found.active.hva_leftmost) == ((), (), -1)


def test_the_vm_of_another_process_is_not_taken() -> None:
    memory = Memory(held(SLOTS, 6, 8))
    with pytest.raises(NotFoundError):
        Reader(memory.read, LAYOUT, VM_LIST, memory.pid + 1)


def test_an_address_space_that_the_kernel_does_not_have_is_not_read() -> None:
    memory = Memory(held(SLOTS, 6, 8))
    assert Reader(memory.read, LAYOUT, VM_LIST, memory.pid).generation(LAYOUT.spaces) is None


def test_a_pointer_to_nowhere_is_told() -> None:
    memory = Memory(held(SLOTS, 6, 8))
    memory.word(memory.set_address(0) + LAYOUT.set_gfn_tree, 0xDEAD_0000_0000)
    assert (
        read(memory).active.cut
        == f"gfn_tree: the kernel has no memory at {0xDEAD_0000_0000 - 128:#x}"
    )


def test_a_circle_of_nodes_is_told() -> None:
    memory = Memory(kernel := held(SLOTS, 6, 8))
    root = memory.slot_address(kernel.active.gfn_root) + LAYOUT.slot_gfn_node
    lowest = memory.slot_address(kernel.active.gfn_tree[0].slot) + LAYOUT.slot_gfn_node
    memory.word(lowest + 16, root)
    assert read(memory).active.cut == "gfn_tree: a node of gfn_tree is met twice"


def test_a_circle_in_the_table_of_ids_is_told() -> None:
    memory = Memory(kernel := held(SLOTS, 6, 8))
    entry = memory.slot_address(kernel.active.id_hash[0][1]) + LAYOUT.slot_id_node
    memory.word(entry, entry)
    assert read(memory).active.cut == "id_hash: an entry of id_hash is met twice"


def test_a_leftmost_that_is_no_slot_has_no_number() -> None:
    memory = Memory(held(SLOTS, 6, 8))
    memory.word(memory.set_address(0) + LAYOUT.set_hva_leftmost, 0x1234_5678)
    assert read(memory).active.hva_leftmost == ELSEWHERE


def test_a_slot_that_is_gone_and_was_used_last_has_no_number() -> None:
    memory = Memory(held(SLOTS, 6, 8))
    memory.word(memory.set_address(1) + LAYOUT.set_last_used, 0x1234_5678)
    assert read(memory).inactive.last_used == ELSEWHERE


def test_a_wrong_node_idx_is_read_as_it_is() -> None:
    memory = Memory(held(SLOTS, 6, 8))
    pack_into("<i", memory.data, memory.set_address(0) + LAYOUT.set_node_idx, 7)
    assert read(memory).active.node_idx == 7


def test_too_many_slots_are_not_looked_at() -> None:
    many = [KernelSlot(number, 0, number, 1, number << 12, 0) for number in range(MOST_SLOTS + 1)]
    memory = Memory(held(many, 6, 8))
    assert Reader(memory.read, LAYOUT, VM_LIST, memory.pid).slots(0, 6, -1) is None
    memory = Memory(held(many[:-1], 6, 8))
    assert Reader(memory.read, LAYOUT, VM_LIST, memory.pid).slots(0, 6, -1) is not None


def test_too_many_slots_are_counted_ever_more_seldom() -> None:
    many = [KernelSlot(number, 0, number, 1, number << 12, 0) for number in range(MOST_SLOTS + 1)]
    memory = Memory(held(many, 6, 8))
    reads: list[int] = []

    def counted(address: int, size: int) -> bytes:
        reads.append(address)
        return memory.read(address, size)

    reader = Reader(counted, LAYOUT, VM_LIST, memory.pid)
    looked = []
    for number in range(20):
        reads.clear()
        assert reader.generation(0) is None or reader.slots(0, 6, -1) is None
        looked += [number] if reads else []
    assert looked == [0, 2, 5, 10, 19]


def test_many_slots_are_looked_at_ever_more_seldom_once_enough_have_been() -> None:
    memory = Memory(held(SLOTS * 20, 6, 8))
    reader = Reader(memory.read, LAYOUT, VM_LIST, memory.pid)
    count = len(SLOTS) * 20
    looked = []
    for number in range(200):
        if reader.generation(0) is not None:
            assert reader.slots(0, 6, -1) is not None
            looked.append(number)
    freely = FREELY // count + 1
    assert looked[:freely] == [*range(freely)]
    assert looked[freely] - looked[freely - 1] == count // 8 + 1
    assert looked[freely + 1] - looked[freely] == count // 8 + 1


def core(path: Path, segments: list[tuple[int, bytes]]) -> Path:
    """Write an ELF file as /proc/kcore is one."""
    table, data = b"", b""
    begin = 64 + 56 * len(segments)
    for address, content in segments:
        offset = begin + len(data)
        table += pack("<IIQQQQQQ", 1, 7, offset, address, 0, len(content), len(content), 0)
        data += content
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    path.write_bytes(header + table + data)
    return path


def test_the_segment_of_an_address_is_read(tmp_path: Path) -> None:
    low, high = 0xFFFF_8880_0000_0000, 0xFFFF_FFFF_A000_0000
    with Kcore(core(tmp_path / "kcore", [(low, b"abcdef"), (high, b"0123456789")])) as kcore:
        assert kcore.read(high + 3, 4) == b"3456"
        assert kcore.read(low, 6) == b"abcdef"
        for address, size in ((low + 4, 3), (low - 1, 1), (0, 8)):
            with pytest.raises(OSError, match=f"no memory at {address:#x}"):
                kcore.read(address, size)


def test_what_is_no_core_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kcore").write_bytes(b"hello")
    with pytest.raises(ValueError, match="ELF"):
        Kcore(tmp_path / "kcore")
