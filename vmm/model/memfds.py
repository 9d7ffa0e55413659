"""The model's guest_memfds: which are open, mapped and bound, and which calls are refused."""

import errno
from collections.abc import Callable
from functools import partial

from vmm.model.allowed import HARNESS, Allowed
from vmm.model.backing import Backing
from vmm.model.contents import Contents
from vmm.model.regions import Decision, GuestMemfd
from vmm.model.rule import Rule, documented, source
from vmm.scenario.features import Features
from vmm.scenario.history import Done, Refused
from vmm.scenario.operations import (
    MEMFD_INIT_SHARED,
    MEMFD_MMAP,
    PAGE_SIZE_BYTES,
    UNSHARE_RANGE,
    ZERO_RANGE,
    CloseGuestMemfd,
    CreateGuestMemfd,
    MapGuestMemfd,
    MemfdOperation,
    PunchGuestMemfd,
    ResizeGuestMemfd,
    SetUserMemoryRegion2,
    pages_of,
)

GUEST_MEMFD_FD = source("guest-memfd-fd", "a bad guest_memfd is EBADF", "kvm_gmem_bind")
GUEST_MEMFD_NOT_ONE = documented(
    "guest-memfd-not-one",
    "the file is one that KVM_CREATE_GUEST_MEMFD made, else EINVAL",
    "api.rst 4.140",
)
GUEST_MEMFD_FOREIGN = documented(
    "guest-memfd-foreign",
    "the guest_memfd belongs to the VM that binds it, else EINVAL",
    "api.rst 4.140",
)
GUEST_MEMFD_END = documented(
    "guest-memfd-end",
    "a slot lies within its guest_memfd, else EINVAL",
    "api.rst 4.140; eba85fee7fc6",
)
GUEST_MEMFD_OVERLAP = documented(
    "guest-memfd-overlap",
    "no page of a guest_memfd is bound to two slots: EINVAL, on newer kernels EEXIST",
    "api.rst 4.140, 4.142; kvm_gmem_bind",
)
GUEST_MEMFD_CREATE = documented(
    "guest-memfd-create",
    "a guest_memfd of whole pages is created",
    "api.rst 4.142",
)
GUEST_MEMFD_SIZE = source(
    "guest-memfd-size",
    "the size of a guest_memfd is page aligned, positive and below 2^63, else EINVAL",
    "kvm_gmem_create",
)
GUEST_MEMFD_FLAGS = documented(
    "guest-memfd-flags",
    "a guest_memfd has the flags of KVM_CAP_GUEST_MEMFD_FLAGS only, else EINVAL",
    "api.rst 4.142; kvm_gmem_create",
)
GUEST_MEMFD_CLOSE = source(
    "guest-memfd-close",
    "a guest_memfd can be closed at any time; slots of it stay until they are deleted",
    "kvm_gmem_release",
)
GUEST_MEMFD_MMAP = documented(
    "guest-memfd-mmap",
    "a guest_memfd can be mapped if it was made with MMAP, else ENODEV",
    "api.rst 4.142; kvm_gmem_mmap",
)
GUEST_MEMFD_MMAP_PRIVATE = source(
    "guest-memfd-mmap-private",
    "a guest_memfd is mapped MAP_SHARED, else EINVAL",
    "kvm_gmem_mmap",
)
GUEST_MEMFD_PUNCH = documented(
    "guest-memfd-punch",
    "a hole can be punched into a guest_memfd, bound or not: its pages are zeros again for "
    "the guest and for the host, and no other pages are",
    "api.rst 4.142; kvm_gmem_punch_hole",
)
GUEST_MEMFD_PUNCH_RANGE = source(
    "guest-memfd-punch-range",
    "a hole is whole pages, more than none, within 2^63, else EINVAL; EFBIG if its end "
    "alone is beyond",
    "vfs_fallocate; kvm_gmem_fallocate",
)
GUEST_MEMFD_PUNCH_MODE = source(
    "guest-memfd-punch-mode",
    "fallocate knows FALLOC_FL_KEEP_SIZE, with FALLOC_FL_PUNCH_HOLE or without: else EOPNOTSUPP",
    "vfs_fallocate; kvm_gmem_fallocate",
)
GUEST_MEMFD_ALLOCATE = source(
    "guest-memfd-allocate",
    "fallocate allocates the pages that are missing, and keeps existing content; EINVAL beyond "
    "the end of a guest_memfd, whose size never changes",
    "kvm_gmem_allocate",
)

GUEST_MEMFD_RESIZE = source(
    "guest-memfd-resize",
    "a guest_memfd keeps its size: ftruncate is EINVAL, whatever it asks for",
    "kvm_gmem_setattr",
)

_LARGEST_FILE = (1 << 63) - 1


class GuestMemfds:
    """All guest_memfds of a scenario, across its VMs."""

    def __init__(
        self, features: Features, memfds: frozenset[str], backing: Backing, contents: Contents
    ) -> None:
        """``memfds`` are the names of open files that are not guest_memfds."""
        self._features = features
        self._memfds = memfds
        self._backing = backing
        self._contents = contents
        self._files: dict[str, GuestMemfd] = {}
        self._vm = 0

    def new_vm(self) -> None:
        """Forget every binding: the slots are gone. Files stay, but belong to the old VM."""
        self._vm += 1
        for file in self._files.values():
            file.bindings.clear()

    def allowed(self, op: MemfdOperation) -> tuple[Allowed, ...]:
        """Return the outcomes that the rules allow."""
        match op:
            case CreateGuestMemfd():
                return self._create(op)
            case CloseGuestMemfd():
                return self._close(op)
            case MapGuestMemfd():
                return self._map(op)
            case PunchGuestMemfd():
                return self._punch(op)
            case ResizeGuestMemfd():
                if self._opened(op.name) is None:
                    return _refused(errno.EBADF, HARNESS)
                return _refused(errno.EINVAL, GUEST_MEMFD_RESIZE)

    def _create(self, op: CreateGuestMemfd) -> tuple[Allowed, ...]:
        """Return the allowed outcomes of KVM_CREATE_GUEST_MEMFD."""
        if not self._features.guest_memfd:
            return ()
        if op.flags & ~self._features.guest_memfd_flags:
            return _refused(errno.EINVAL, GUEST_MEMFD_FLAGS)
        if op.size == 0 or op.size > _LARGEST_FILE or op.size % PAGE_SIZE_BYTES:
            return _refused(errno.EINVAL, GUEST_MEMFD_SIZE)
        file = GuestMemfd(op.size, op.flags, self._vm, op.name)
        return _done(GUEST_MEMFD_CREATE, partial(self._files.__setitem__, op.name, file))

    def _close(self, op: CloseGuestMemfd) -> tuple[Allowed, ...]:
        """Return the allowed outcomes of closing the file."""
        file = self._opened(op.name)
        if file is None:
            return _refused(errno.EBADF, HARNESS)
        return _done(GUEST_MEMFD_CLOSE, partial(_close, file))

    def _map(self, op: MapGuestMemfd) -> tuple[Allowed, ...]:
        """Return the allowed outcomes of mapping the file."""
        file = self._opened(op.name)
        if file is None:
            return _refused(errno.EBADF, HARNESS)
        if not file.flags & MEMFD_MMAP:
            return _refused(errno.ENODEV, GUEST_MEMFD_MMAP)
        if op.sharing == "private":
            return _refused(errno.EINVAL, GUEST_MEMFD_MMAP_PRIVATE)
        return _done(GUEST_MEMFD_MMAP, partial(self._show, file, op.mapping))

    def _punch(self, op: PunchGuestMemfd) -> tuple[Allowed, ...]:
        """Return the allowed outcomes of fallocate(2), in the order of the kernel's checks."""
        file = self._opened(op.name)
        if file is None:
            return _refused(errno.EBADF, HARNESS)
        if op.size == 0 or max(op.offset, op.size) > _LARGEST_FILE:
            return _refused(errno.EINVAL, GUEST_MEMFD_PUNCH_RANGE)
        if op.others:
            return self._other_mode(op)
        if op.punch and not op.keep_size:
            return _refused(errno.EOPNOTSUPP, GUEST_MEMFD_PUNCH_MODE)
        if op.offset + op.size > _LARGEST_FILE:
            return _refused(errno.EFBIG, GUEST_MEMFD_PUNCH_RANGE)
        if not op.keep_size:
            return _refused(errno.EOPNOTSUPP, GUEST_MEMFD_PUNCH_MODE)
        if op.offset % PAGE_SIZE_BYTES or op.size % PAGE_SIZE_BYTES:
            return _refused(errno.EINVAL, GUEST_MEMFD_PUNCH_RANGE)
        if not op.punch and op.offset + op.size > file.size:
            return _refused(errno.EINVAL, GUEST_MEMFD_ALLOCATE)
        if not op.punch:
            return _done(GUEST_MEMFD_ALLOCATE, lambda: None)
        first = pages_of(op.offset)
        pages = range(first, first + pages_of(op.size))
        lose = partial(self._contents.lose, file.mapping or file.name, pages)
        return _done(GUEST_MEMFD_PUNCH, lose)

    def _other_mode(self, op: PunchGuestMemfd) -> tuple[Allowed, ...]:
        """Return the outcomes of a mode that the file does not know.

        Which modes exclude each other, and with which errno, has changed from kernel to kernel.
        """
        refused = _refused(errno.EOPNOTSUPP, GUEST_MEMFD_PUNCH_MODE)
        if op.offset + op.size > _LARGEST_FILE:
            refused += _refused(errno.EFBIG, GUEST_MEMFD_PUNCH_RANGE)
        if op.punch or not op.keep_size or op.others not in (ZERO_RANGE, UNSHARE_RANGE):
            refused += _refused(errno.EINVAL, GUEST_MEMFD_PUNCH_MODE)
        return refused

    def refusal(self, op: SetUserMemoryRegion2) -> Decision | None:
        """Return why a slot cannot bind the file that it names; None if it can."""
        name = op.guest_memfd
        if name in self._memfds:
            return Decision(errno.EINVAL, None, GUEST_MEMFD_NOT_ONE)
        file = self._opened(name)
        if file is None:
            return Decision(errno.EBADF, None, GUEST_MEMFD_FD)
        if file.vm != self._vm:
            return Decision(errno.EINVAL, None, GUEST_MEMFD_FOREIGN)
        if op.guest_memfd_offset + op.memory_size > file.size:
            return Decision(errno.EINVAL, None, GUEST_MEMFD_END)
        wanted = _pages(op)
        if any(
            wanted.start < bound.stop and bound.start < wanted.stop
            for bound in file.bindings.values()
        ):
            return Decision(errno.EEXIST, None, GUEST_MEMFD_OVERLAP)
        return None

    def bind(self, op: SetUserMemoryRegion2) -> GuestMemfd:
        """Note that a slot binds pages of the file that it names; return the file."""
        file = self._files[str(op.guest_memfd)]
        file.bindings[op.slot] = _pages(op)
        return file

    def unbind(self, slot: int) -> None:
        """Forget what a slot, by its 32-bit number, was bound to."""
        for file in self._files.values():
            file.bindings.pop(slot, None)

    def _opened(self, name: str | int) -> GuestMemfd | None:
        file = self._files.get(str(name))
        return file if file is not None and file.is_open else None

    def _show(self, file: GuestMemfd, mapping: str) -> None:
        if file.flags & MEMFD_INIT_SHARED and not file.mapping:
            file.mapping = mapping
            self._backing.show(mapping)


def _close(file: GuestMemfd) -> None:
    file.is_open = False


def _pages(op: SetUserMemoryRegion2) -> range:
    first = pages_of(op.guest_memfd_offset)
    return range(first, first + pages_of(op.memory_size))


def _refused(number: int, rule: Rule) -> tuple[Allowed, ...]:
    return (Allowed(Refused(number), rule),)


def _done(rule: Rule, adopt: Callable[[], None]) -> tuple[Allowed, ...]:
    return (Allowed(Done(), rule, adopt),)
