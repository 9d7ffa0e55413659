"""The host side of a scenario's memory: mapped, tagged, and watched for changes."""

from collections.abc import Iterator
from types import TracebackType
from typing import Self

from vmm.memory import HostAddress, HostMapping
from vmm.memslots.content import changed_runs, page_bytes
from vmm.memslots.history import HostChange
from vmm.memslots.operations import PAGE_SIZE_BYTES, Hva, Mapping, Place

_CHUNK_PAGES = 256


class HostMemory:
    """All mappings that a scenario declares; they outlive every VM that uses them."""

    def __init__(self, mappings: tuple[Mapping, ...]) -> None:
        self._declared = {mapping.name: index for index, mapping in enumerate(mappings)}
        self._mappings: dict[str, HostMapping] = {}
        self._seen: dict[str, bytes] = {}
        self._nothing = HostMapping.reserved(PAGE_SIZE_BYTES)
        try:
            for index, mapping in enumerate(mappings):
                memory = _map(mapping)
                self._mappings[mapping.name] = memory
                if mapping.kind not in ("unmapped", "guest_memfd"):
                    self._seen[mapping.name] = _tag(memory, index, mapping.pages)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap everything. The VMs must be closed."""
        self._nothing.close()
        for memory in self._mappings.values():
            memory.close()
        self._mappings.clear()

    @property
    def inaccessible(self) -> int:
        """An address that can be neither read nor written."""
        return self._nothing.address

    def address(self, hva: Hva) -> HostAddress | int:
        """Return an hva as the VM takes it."""
        if isinstance(hva, Place):
            return HostAddress(self._mappings[hva.mapping], hva.offset)
        return hva

    def memfd(self, name: str) -> int | None:
        """Return the file behind a mapping of kind ``memfd``; None where there is none."""
        memory = self._mappings.get(name)
        return memory.fd if memory is not None and memory.fd >= 0 else None

    def show(self, name: str, fd: int, *, private: bool, writable: bool) -> None:
        """Put a file in the place of a reserved mapping, and tag its pages where it is writable.

        Raises OSError.
        """
        memory = self._mappings[name]
        memory.cover(fd, private=private)
        if writable and name not in self._seen:
            pages = memory.size_bytes // PAGE_SIZE_BYTES
            self._seen[name] = _tag(memory, self._declared[name], pages)

    def write(self, place: Place, value: int) -> None:
        """Write four bytes as the host, which ``changes`` reports like any other change."""
        self._mappings[place.mapping].write(place.offset, value.to_bytes(4, "little"))

    def changes(self) -> Iterator[HostChange]:
        """Yield the bytes that differ from what they were at the last call."""
        for name, memory in self._mappings.items():
            seen = self._seen.get(name)
            if seen is None or not memory.differs(0, seen):
                continue
            now = memory.read(0, len(seen))
            self._seen[name] = now
            for offset in range(0, len(seen), PAGE_SIZE_BYTES):
                old, new = (
                    seen[offset : offset + PAGE_SIZE_BYTES],
                    now[offset : offset + PAGE_SIZE_BYTES],
                )
                if old != new:
                    for at, data in changed_runs(old, new):
                        yield HostChange(name, offset + at, data)


def _map(mapping: Mapping) -> HostMapping:
    size_bytes = mapping.pages * PAGE_SIZE_BYTES
    match mapping.kind:
        case "anonymous":
            return HostMapping.anonymous(size_bytes)
        case "shared":
            return HostMapping.shared(size_bytes)
        case "memfd":
            return HostMapping.memfd(size_bytes)
        case "hugetlb":
            return HostMapping.hugetlb(size_bytes)
        case "thp":
            return HostMapping.transparent_huge(size_bytes)
        case "zero":
            return HostMapping.at_zero(size_bytes)
        case "unmapped" | "guest_memfd":
            return HostMapping.reserved(size_bytes)


def _tag(memory: HostMapping, index: int, pages: int) -> bytes:
    """Write each page's identity into it, and return all that was written."""
    parts = []
    for first in range(0, pages, _CHUNK_PAGES):
        tags = b"".join(
            page_bytes(index, p) for p in range(first, min(first + _CHUNK_PAGES, pages))
        )
        memory.write(first * PAGE_SIZE_BYTES, tags)
        parts.append(tags)
    return b"".join(parts)
