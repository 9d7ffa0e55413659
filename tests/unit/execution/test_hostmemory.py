"""What the host finds changed in its mappings: every byte, and each compared about once."""

import random

import pytest

from kvm_abi.mman import Watched
from vmm.execution.hostmemory import HostMemory
from vmm.scenario.content import changed_runs, page_bytes
from vmm.scenario.history import HostChange
from vmm.scenario.operations import PAGE_SIZE_BYTES, ChangeHostMemory, Mapping, Place

PAGES = 300


def test_a_mapping_of_many_changes_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[tuple[int, int]] = []
    more = Watched._more

    def noted(watched: Watched) -> int:
        places.append((watched._place[0], watched._place[1]))
        return more(watched)

    monkeypatch.setattr(Watched, "_more", noted)
    with HostMemory((Mapping("a", PAGES), Mapping("b", 1))) as memory:
        assert list(memory.changes()) == []
        assert places == [(0, 0)]
        memory.change(ChangeHostMemory(Place("a"), PAGES, "drop"))
        places.clear()
        found = 0
        for change in memory.changes():
            found = max(found, change.offset)
            assert places[-1][1] > found - 65 * PAGE_SIZE_BYTES
        assert found // PAGE_SIZE_BYTES == PAGES - 1
        assert places == sorted(places)
        assert len(places) > PAGES // 64
        assert list(memory.changes()) == []


@pytest.mark.parametrize("writes", [0, 1, 63, 64, 65, 500])
def test_every_change_is_found_once_wherever_it_is(writes: int) -> None:
    dice = random.Random(writes)
    with HostMemory((Mapping("a", 3),)) as memory:
        old = b"".join(page_bytes(0, page) for page in range(3))
        new = bytearray(old)
        for at in dice.sample(range(0, len(old) - 4, 4), writes):
            memory.write(Place("a", at), dice.getrandbits(32))
            new[at : at + 4] = memory._mappings["a"].read(at, 4)
        wanted = [
            HostChange("a", page * PAGE_SIZE_BYTES + offset, data)
            for page in range(3)
            for offset, data in changed_runs(*(_page(each, page) for each in (old, bytes(new))))
        ]
        assert list(memory.changes()) == wanted
        assert list(memory.changes()) == []


def _page(data: bytes, page: int) -> bytes:
    return data[page * PAGE_SIZE_BYTES : (page + 1) * PAGE_SIZE_BYTES]
