"""What the model knows of guest_memfds: which are open, mapped and bound, and what is refused."""

import errno
from collections.abc import Callable
from functools import partial

from vmm.model.allowed import Allowed
from vmm.model.backing import Backing
from vmm.model.contents import Contents
from vmm.model.regions import GuestMemfd, Verdict
from vmm.scenario.features import Features
from vmm.scenario.history import Done, Refused
from vmm.scenario.operations import (
    MEMFD_INIT_SHARED,
    MEMFD_MMAP,
    PAGE_SIZE_BYTES,
    CloseGuestMemfd,
    CreateGuestMemfd,
    MapGuestMemfd,
    PunchGuestMemfd,
    SetUserMemoryRegion2,
    pages_of,
)

_LARGEST_FILE = (1 << 63) - 1


class GuestMemfds:
    """All guest_memfds of a scenario, across its VMs."""

    def __init__(
        self, features: Features, memfds: frozenset[str], backing: Backing, contents: Contents
    ) -> None:
        """``memfds`` are the names of files that are open, but are no guest_memfds."""
        self._features = features
        self._memfds = memfds
        self._backing = backing
        self._contents = contents
        self._files: dict[str, GuestMemfd] = {}
        self._vm = 0

    def new_vm(self) -> None:
        """Forget every binding: the slots are gone. Files stay, as another VM's."""
        self._vm += 1
        for file in self._files.values():
            file.bindings.clear()

    def create(self, op: CreateGuestMemfd) -> tuple[Allowed, ...]:
        """Return what KVM_CREATE_GUEST_MEMFD may come to."""
        if not self._features.guest_memfd:
            return ()
        if op.flags & ~self._features.guest_memfd_flags:
            return _refused(errno.EINVAL, "guest-memfd-flags")
        if op.size == 0 or op.size > _LARGEST_FILE or op.size % PAGE_SIZE_BYTES:
            return _refused(errno.EINVAL, "guest-memfd-size")
        file = GuestMemfd(op.size, op.flags, self._vm, op.name)
        return _done("guest-memfd-create", partial(self._files.__setitem__, op.name, file))

    def close(self, op: CloseGuestMemfd) -> tuple[Allowed, ...]:
        """Return what closing the file may come to."""
        file = self._opened(op.name)
        if file is None:
            return _refused(errno.EBADF, "harness")
        return _done("guest-memfd-close", partial(_close, file))

    def map(self, op: MapGuestMemfd) -> tuple[Allowed, ...]:
        """Return what mapping the file may come to."""
        file = self._opened(op.name)
        if file is None:
            return _refused(errno.EBADF, "harness")
        if not file.flags & MEMFD_MMAP:
            return _refused(errno.ENODEV, "guest-memfd-mmap")
        if op.sharing == "private":
            return _refused(errno.EINVAL, "guest-memfd-mmap-private")
        return _done("guest-memfd-mmap", partial(self._map, file, op.mapping))

    def punch(self, op: PunchGuestMemfd) -> tuple[Allowed, ...]:
        """Return what punching a hole may come to, in the order in which the kernel looks."""
        file = self._opened(op.name)
        if file is None:
            return _refused(errno.EBADF, "harness")
        if op.size == 0 or max(op.offset, op.size) > _LARGEST_FILE:
            return _refused(errno.EINVAL, "guest-memfd-punch-range")
        if not op.keep_size:
            return _refused(errno.EOPNOTSUPP, "guest-memfd-punch-mode")
        if op.offset + op.size > _LARGEST_FILE:
            return _refused(errno.EFBIG, "guest-memfd-punch-range")
        if op.offset % PAGE_SIZE_BYTES or op.size % PAGE_SIZE_BYTES:
            return _refused(errno.EINVAL, "guest-memfd-punch-range")
        first = pages_of(op.offset)
        pages = range(first, first + pages_of(op.size))
        lose = partial(self._contents.lose, file.mapping or file.name, pages)
        return _done("guest-memfd-punch", lose)

    def refusal(self, op: SetUserMemoryRegion2) -> Verdict | None:
        """Return why a slot cannot be bound to the file that it names; None if it can."""
        name = op.guest_memfd
        if name in self._memfds:
            return Verdict(errno.EINVAL, None, "guest-memfd-not-one")
        file = self._opened(name)
        if file is None:
            return Verdict(errno.EBADF, None, "guest-memfd-fd")
        if file.vm != self._vm:
            return Verdict(errno.EINVAL, None, "guest-memfd-foreign")
        if op.guest_memfd_offset + op.memory_size > file.size:
            return Verdict(errno.EINVAL, None, "guest-memfd-end")
        wanted = _pages(op)
        if any(
            wanted.start < bound.stop and bound.start < wanted.stop
            for bound in file.bindings.values()
        ):
            return Verdict(errno.EEXIST, None, "guest-memfd-overlap")
        return None

    def bind(self, op: SetUserMemoryRegion2) -> GuestMemfd:
        """Note that a slot holds pages of the file that it names, which is returned."""
        file = self._files[str(op.guest_memfd)]
        file.bindings[op.slot] = _pages(op)
        return file

    def unbind(self, slot: int) -> None:
        """Forget what a slot, by its 32-bit number, held."""
        for file in self._files.values():
            file.bindings.pop(slot, None)

    def _opened(self, name: str | int) -> GuestMemfd | None:
        file = self._files.get(str(name))
        return file if file is not None and file.is_open else None

    def _map(self, file: GuestMemfd, mapping: str) -> None:
        if file.flags & MEMFD_INIT_SHARED and not file.mapping:
            file.mapping = mapping
            self._backing.show(mapping)


def _close(file: GuestMemfd) -> None:
    file.is_open = False


def _pages(op: SetUserMemoryRegion2) -> range:
    first = pages_of(op.guest_memfd_offset)
    return range(first, first + pages_of(op.memory_size))


def _refused(number: int, rule: str) -> tuple[Allowed, ...]:
    return (Allowed(Refused(number), rule),)


def _done(rule: str, adopt: Callable[[], None]) -> tuple[Allowed, ...]:
    return (Allowed(Done(), rule, adopt),)
