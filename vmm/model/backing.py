"""Where an access lands: divides a range of gpas into pieces of memory, holes and the like."""

from collections.abc import Container, Iterator
from typing import Literal

import msgspec

from vmm.model.allowed import HARNESS
from vmm.model.array import MemslotArray
from vmm.model.regions import Memslot
from vmm.model.rule import Rule, documented, source
from vmm.scenario.history import Done, Inspected
from vmm.scenario.hostpages import Access, HostPages, PageKey
from vmm.scenario.operations import (
    MEMFD_MMAP,
    PAGE_SIZE_BYTES,
    READONLY,
    ChangeHostMemory,
    Hva,
    Mapping,
    Place,
)

HVA_ABSENT = source(
    "hva-absent",
    "if no host memory is mapped, the access fails: EFAULT, or an MMIO exit from a backend that "
    "emulates instructions",
    "kvm_handle_error_pfn; hva_to_pfn",
)
HVA_WRITE_PROTECTED = source(
    "hva-write-protected",
    "if the host may only read its memory, the guest can read it, and a write fails as if "
    "nothing were mapped",
    "hva_to_pfn: FOLL_WRITE for a write fault; kvm_handle_error_pfn",
)
PRIVATE_FAULT = documented(
    "private-fault",
    "a private gpa that no open guest_memfd backs is EFAULT with KVM_EXIT_MEMORY_FAULT; without "
    "a slot it may still be MMIO, if a vCPU has cached it as that",
    "api.rst 5, KVM_EXIT_MEMORY_FAULT; kvm_mmu_faultin_pfn_gmem, kvm_mmu_page_fault",
)
COPIED = source(
    "copied",
    "a page that a guest writes while a forked child shares it is copied first: the child does "
    "not see the write",
    "hva_to_pfn: FOLL_WRITE; do_wp_page; mmu_notifier_invalidate_range_start",
)
GUARDED = source(
    "guarded",
    "a write to memory that the host guards with userfaultfd, even a guest's, is stopped before "
    "anything changes",
    "Documentation/admin-guide/mm/userfaultfd.rst, Write Protect Notifications; "
    "kvm_mmu_notifier_invalidate_range_start",
)
HOST_FOLLOWS = documented(
    "host-follows",
    "a slot follows its host mapping: pages that are dropped, remapped, unmapped, protected "
    "or punched out are seen as the mapping now is",
    "api.rst 4.35; KVM_CAP_SYNC_MMU",
)


def expected_of(op: ChangeHostMemory) -> tuple[Done | Inspected, Rule]:
    """Return the outcome of a change of host memory: some show whether anybody wrote meanwhile."""
    rule = {"reap": COPIED, "settle": GUARDED}.get(op.how, HARNESS)
    return Done() if rule is HARNESS else Inspected(()), rule


Kind = Literal["memory", "hole", "absent", "fault", "unknown"]


class Piece(msgspec.Struct, frozen=True, gc=False):
    """``length`` bytes from ``gpa`` on, within one page.

    ``changed`` says that the host has done something to the page since it was mapped.

    ``private`` memory belongs to the guest_memfd named by ``mapping``; a ``fault`` is a private
    page without one.

    ``absent`` is a slot's page where the host has nothing mapped; for an ``unknown`` one the rules
    do not say which memory an access reaches. The host may only read a ``protected`` page.
    """

    gpa: int
    length: int
    kind: Kind
    slot: Memslot | None = None
    mapping: str = ""
    offset: int = 0
    changed: bool = False
    private: bool = False
    protected: bool = False

    @property
    def readonly(self) -> bool:
        """Whether the slot is READONLY."""
        return self.slot is not None and bool(self.slot.flags & READONLY)


class Backing:
    """Finds the host memory of an hva among the mappings that a scenario declares."""

    def __init__(self, mappings: tuple[Mapping, ...], host: HostPages) -> None:
        """``host`` says what each page shows; its owner updates it."""
        self._host = host
        self._mappings = {mapping.name: mapping for mapping in mappings}
        # Mappings with memory, apart from pages that the host takes away later.
        self._shown = {m.name for m in mappings if m.kind not in ("unmapped", "guest_memfd")}
        self._is_as_made = True
        self._changed: set[PageKey] = set()
        self._private: set[int] = set()
        self._zero = next((m for m in mappings if m.kind == "zero"), None)

    def file_of(self, mapping: str) -> str:
        """Return the mapping whose file a mapping was created to show, which may be itself."""
        made = self._mappings.get(mapping)
        return made.of or mapping if made else mapping

    def store(self, mapping: str, page: int) -> PageKey:
        """Return the page of the mapping that holds what a page shows, which may be itself."""
        shown = None if self._host.are_plain else self._host.shown(mapping, page)
        if shown is not None and shown.file:
            return shown.file, shown.page
        return self.file_of(mapping), page

    def views(self, store: PageKey) -> Iterator[PageKey]:
        """Yield the pages of mappings that show what a page holds."""
        holder, page = store
        for name, made in self._mappings.items():
            is_made_so = page < made.pages and self.file_of(name) == holder
            if is_made_so and self.store(name, page) == store:
                yield name, page
        for view in self._host.viewers(holder, page):
            if self.file_of(view[0]) != holder:
                yield view

    @property
    def names(self) -> list[str]:
        """The names of the mappings, in the order in which they are declared."""
        return list(self._mappings)

    def normal(self, hva: Hva) -> Hva:
        """Return the canonical form of an address: a place in the mapping at 0 is an integer."""
        if isinstance(hva, Place) and self._mappings[hva.mapping].kind == "zero":
            return hva.offset
        return hva

    def show(self, mapping: str) -> None:
        """Note that a mapping of kind ``guest_memfd`` has memory from now on."""
        self._shown.add(mapping)

    def convert(self, gfns: range, is_private: bool) -> None:
        """Make gfns of the VM private, or shared."""
        if is_private:
            self._private.update(gfns)
        else:
            self._private.difference_update(gfns)

    def is_private(self, gfn: int) -> bool:
        """Whether a gfn of the VM is private."""
        return gfn in self._private

    def forget_attributes(self) -> None:
        """Make all gfns shared, for a new VM."""
        self._private.clear()

    def is_absent(self, mapping: str, page: int) -> bool:
        """Whether the host has taken away a page of a mapping."""
        return self._host.is_absent(mapping, page)

    @property
    def absent(self) -> Container[PageKey]:
        """Each (mapping, page) that the host has taken away."""
        return self._host if self._host.hide_any else ()

    def changed(self, op: ChangeHostMemory) -> None:
        """Note which pages the host has changed since they were mapped."""
        name = op.place.mapping
        self._is_as_made = False
        self._changed.update((name, page) for page in self._host.pages_of(op))
        if op.how in ("truncate", "extend", "punch") and not self._host.are_plain:
            for page in self._host.pages_of(op):
                shown = self._host.shown(name, page)
                at = (name, page) if shown is None else (shown.file, shown.page)
                self._changed.update(self._host.viewers(*at))

    def follow(self, op: ChangeHostMemory) -> None:
        """Apply a change in a race to what pages show; their content is judged elsewhere."""
        self.changed(op)
        # For memory without a file both are the same: fresh, and its own.
        fresh = op.how == "map_fresh"
        self._host.change(msgspec.structs.replace(op, how="map") if fresh else op)

    def access(self, mapping: str, page: int) -> Access:
        """Return how the host may access a page."""
        return self._host.access(mapping, page)

    def affected(self, op: ChangeHostMemory) -> list[PageKey]:
        """Return the pages whose content or access a change in a race may change.

        Truncation takes pages from every mapping of a file.
        """
        name, first = op.place.mapping, op.place.offset // PAGE_SIZE_BYTES
        if op.how not in ("truncate", "extend"):
            return [(name, page) for page in range(first, first + op.pages)]
        file = self.file_of(name)
        pages = range(first, first + op.pages)
        return [view for page in pages for view in self._made_to_show(file, page)]

    def _made_to_show(self, file: str, page: int) -> Iterator[PageKey]:
        """Yield the pages that were created to show a page of a file, or show it now."""
        for name, made in self._mappings.items():
            if page < made.pages and self.file_of(name) == file:
                yield name, page
        for view in self._host.viewers(file, page):
            if self.file_of(view[0]) != file:
                yield view

    def emptied(self, op: ChangeHostMemory) -> list[PageKey]:
        """Return the pages that read as zeros after a change in a race that comes next."""
        if op.how in ("truncate", "extend"):
            return list(self._host.cut_off(op))
        if op.how == "punch":
            return self.affected(op)
        if not self._host.is_own(op.place.mapping):
            return []
        if op.how == "drop":  # A page that shows a file goes on showing it.
            return [key for key in self.affected(op) if self.store(*key) == key]
        return self.affected(op) if op.how in ("unmap", "map", "map_fresh") else []

    def locate(self, hva: Hva, offset: int) -> Place | None:
        """Return the place ``offset`` bytes after an hva; None if no memory is mapped there."""
        place = self.declared(hva, offset)
        if place is None or self.is_absent(place.mapping, place.offset // PAGE_SIZE_BYTES):
            return None
        return place

    def declared(self, hva: Hva, offset: int) -> Place | None:
        """Return the same, disregarding what the host has taken away."""
        if isinstance(hva, Place):
            if hva.mapping not in self._shown:
                return None
            return Place(hva.mapping, hva.offset + offset)
        if self._zero is not None and hva + offset < self._zero.pages * PAGE_SIZE_BYTES:
            return Place(self._zero.name, hva + offset)
        return None

    def shared(self, slot: Memslot, offset: int) -> Place | None:
        """Return the shared memory of a slot, disregarding what is taken away; None if unclear.

        ``offset`` is in bytes from the start of the slot.
        """
        place = self.declared(slot.userspace_addr, offset)
        return place if _agrees(slot, offset, place) else None

    def pieces(
        self, slots: MemslotArray[Memslot], gpa: int, length: int, emulated: bool = False
    ) -> tuple[Piece, ...]:
        """Return the pieces of ``length`` bytes from ``gpa`` on, one for each page, ascending.

        An ``emulated`` access reaches the hva, whatever the attributes say.
        """
        gfn, at = divmod(gpa, PAGE_SIZE_BYTES)
        if at + length <= PAGE_SIZE_BYTES:  # The common case.
            slot = slots.find(gfn)
            if slot is None and not self._private:
                return (Piece(gpa, length, "hole"),)
            return (self._piece(slot, gpa, length, emulated),)
        return tuple(self._page_by_page(slots, gpa, length, emulated))

    def _page_by_page(
        self, slots: MemslotArray[Memslot], gpa: int, length: int, emulated: bool
    ) -> Iterator[Piece]:
        while length:
            gfn, at = divmod(gpa, PAGE_SIZE_BYTES)
            take = min(length, PAGE_SIZE_BYTES - at)
            yield self._piece(slots.find(gfn), gpa, take, emulated)
            gpa += take
            length -= take

    def _piece(self, slot: Memslot | None, gpa: int, length: int, emulated: bool) -> Piece:
        if self._private and gpa // PAGE_SIZE_BYTES in self._private and not emulated:
            return _private_piece(slot, gpa, length)
        if slot is None:
            return Piece(gpa, length, "hole")
        offset = gpa - slot.base_gfn * PAGE_SIZE_BYTES
        hva = slot.userspace_addr
        if self._is_as_made and slot.memfd is None and isinstance(hva, Place):
            if hva.mapping in self._shown:  # The common case.
                return Piece(gpa, length, "memory", slot, hva.mapping, hva.offset + offset)
            return Piece(gpa, length, "absent", slot)
        place = self.locate(hva, offset)
        if slot.memfd is not None and not _agrees(slot, offset, place):
            return Piece(gpa, length, "unknown", slot)
        changed = bool(self._changed) and self._has_changed(slot, offset)
        if place is None:
            return Piece(gpa, length, "absent", slot, changed=changed)
        page = place.offset // PAGE_SIZE_BYTES
        protected = self._host.is_read_only(place.mapping, page)
        return Piece(
            gpa, length, "memory", slot, place.mapping, place.offset, changed, protected=protected
        )

    def _has_changed(self, slot: Memslot, offset: int) -> bool:
        place = self.declared(slot.userspace_addr, offset)
        key = (place.mapping, place.offset // PAGE_SIZE_BYTES) if place else ("", 0)
        return key in self._changed


def _private_piece(slot: Memslot | None, gpa: int, length: int) -> Piece:
    memfd = slot.memfd if slot is not None else None
    if slot is None or memfd is None or not memfd.is_open:
        return Piece(gpa, length, "fault", slot)
    offset = slot.memfd_offset + gpa - slot.base_gfn * PAGE_SIZE_BYTES
    return Piece(gpa, length, "memory", slot, memfd.name, offset, private=True)


def _agrees(slot: Memslot, offset: int, place: Place | None) -> bool:
    """Whether the hva of a slot with a guest_memfd shows the memory that the MMU maps.

    If the guest_memfd can be mapped, the MMU serves every fault from it, whatever the hva shows;
    otherwise only faults on private memory, which this is not.
    """
    memfd = slot.memfd
    if memfd is None or not memfd.flags & MEMFD_MMAP:
        return True
    return place == Place(memfd.mapping, slot.memfd_offset + offset)
