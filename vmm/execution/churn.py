"""Changes slots, or has them refused, again and again, to see what that uses up."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import ENOMEM
from functools import partial
from itertools import pairwise
from os import close, eventfd
from pathlib import Path
from typing import assert_never

from kvm_abi.raw import KvmError
from kvm_abi.uapi import Cap
from vmm.execution.failing import failing_allocation
from vmm.execution.kernelmemory import growth
from vmm.kvm.memory import HostAddress, HostMapping
from vmm.kvm.vm import Vm
from vmm.scenario.history import Closed, Refused
from vmm.scenario.operations import (
    GUEST_MEMFD,
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    Churn,
    ChurnKind,
)

_PAIR_BYTES = 2 * PAGE_SIZE_BYTES
_LARGE_BYTES = 1 << 28
"""The size of a slot whose two dirty bitmaps take 16 KiB; nothing is mapped at its addresses."""

_FIRST, _SECOND, _THIRD = 0x8000, 0xA000, 0xB000
_BEYOND = 1 << 63
"""A gpa beyond the last gfn, if there is one: KVM checks that last, after all allocations."""

_UNKNOWN_FLAG = 1 << 30
_TOO_MANY_BYTES = 1 << 43
_KERNEL_HVA = 1 << 63
_NO_ID = 0xFFFF
_MEMFD_PAGES = 8
_EVENT_BYTES = 4
_EVENTS, _ATTEMPTS = 8, 3
"""Numbers of eventfds that end one after the other; others' eventfds may take numbers, too."""

_EVENT_ID = "eventfd-id:"
_EVENT_VALUES = 8
_ALLOCATIONS = 40
"""More than any of these calls makes."""


def churn(vm: Vm, op: Churn, read: Callable[[int], None]) -> Closed | Refused:
    """Change one or two slots of a VM again and again; return what that used up.

    The outcome also names calls that must be refused and were not. ``read`` lets a vCPU read at a
    gpa, so that there is something to unmap.
    """
    with (
        _closed_if_unused(HostMapping.anonymous(_PAIR_BYTES)) as pair,
        _closed_if_unused(HostMapping.reserved(_LARGE_BYTES)) as large,
        _none_left(vm, op.slot),
        ExitStack() as at_end,
    ):
        churning = _Churn(vm, op.slot, HostAddress(pair, 0), HostAddress(large, 0), read, at_end)
        try:
            turn = churning.prepared(op.what)
            return Closed((*growth(turn, op.times), *churning.accepted))
        except KvmError as error:
            return Refused(error.errno or 0)


@contextmanager
def _closed_if_unused(mapping: HostMapping) -> Iterator[HostMapping]:
    """Close a mapping at the end, unless the kernel keeps a slot that uses it."""
    try:
        yield mapping
    finally:
        if not mapping.in_use:
            mapping.close()


@contextmanager
def _none_left(vm: Vm, slot: int) -> Iterator[None]:
    """Delete the slots of a churn, however it ended."""
    try:
        yield
    finally:
        for each in (slot, slot + 1):
            with suppress(KvmError):
                vm.set_user_memory_region(each, 0, 0, 0, 0)


def _fail(call: Callable[[], None]) -> None:
    """Make a call after each of its allocations failed, which may or may not make it fail."""
    for nth in range(1, _ALLOCATIONS):
        try:
            with failing_allocation(nth):
                call()
            return
        except KvmError as error:
            if error.errno != ENOMEM:
                raise
    call()


class _Churn:
    """The turns; each leaves the VM as it was. ``accepted`` are calls that a rule refuses."""

    def __init__(
        self,
        vm: Vm,
        slot: int,
        pair: HostAddress,
        large: HostAddress,
        read: Callable[[int], None],
        at_end: ExitStack,
    ) -> None:
        self._vm = vm
        self._at_end = at_end
        self._read = read
        self._slot, self._other = slot, slot + 1
        self._pair, self._large = pair, large
        self.accepted: dict[str, None] = {}

    def prepared(self, what: ChurnKind) -> Callable[[], None]:
        """Create the slots that are in the way, and return the turn to repeat."""
        set_region = self._vm.set_user_memory_region
        match what:
            case "changes":
                return self._change
            case "refused-creations":
                set_region(self._slot, LOG_DIRTY_PAGES, _FIRST, _PAIR_BYTES, self._pair)
                return self._refuse_creations
            case "refused-moves":
                set_region(self._slot, 0, _FIRST, _PAIR_BYTES, self._pair)
                set_region(self._other, LOG_DIRTY_PAGES, _THIRD, _PAIR_BYTES, self._pair)
                return self._refuse_moves
            case "refused-bindings":
                return self._refuse_bindings
            case "refused-eventfds":
                self._end_events()
                self._await_an_event()
                return self._refuse_eventfds
            case "failing-changes":
                return self._fail_changes
            case _:
                assert_never(what)

    def _change(self) -> None:
        """Create, read, log, move, refuse and delete one slot of two pages, logged and not."""
        set_region, slot, pair = self._vm.set_user_memory_region, self._slot, self._pair
        set_region(slot, 0, _FIRST, _PAIR_BYTES, pair)
        self._read(_FIRST)
        set_region(slot, LOG_DIRTY_PAGES, _FIRST, _PAIR_BYTES, pair)
        set_region(slot, LOG_DIRTY_PAGES, _SECOND, _PAIR_BYTES, pair)
        for gpa, size_bytes in ((_BEYOND, _PAIR_BYTES), (_SECOND, PAGE_SIZE_BYTES)):
            with suppress(KvmError):
                set_region(slot, 0, gpa, size_bytes, pair)
        set_region(slot, 0, _THIRD, _PAIR_BYTES, pair)
        set_region(slot, 0, 0, 0, 0)
        set_region(slot, LOG_DIRTY_PAGES, _FIRST, _PAIR_BYTES, pair)
        set_region(slot, 0, 0, 0, 0)

    def _refuse_creations(self) -> None:
        """Try to create a slot, for every reason to refuse it, with each of the flags."""
        slot, other, pair, large = self._slot, self._other, self._pair, self._large
        page, size = PAGE_SIZE_BYTES, _PAIR_BYTES
        for flags in (0, LOG_DIRTY_PAGES, READONLY):
            self._refuse(other, flags, _FIRST + page, size, pair)
            self._refuse(other, flags, _FIRST, _LARGE_BYTES, large)
            self._refuse(other, flags, (1 << 64) - page, size, pair)
            self._refuse(other, flags, _THIRD, _TOO_MANY_BYTES, 0)
            # Where there is no last gfn, these two are created.
            self._refuse(other, flags, _BEYOND, size, pair, or_undone=True)
            self._refuse(other, flags, _BEYOND, _LARGE_BYTES, large, or_undone=True)
        self._refuse(other, _UNKNOWN_FLAG, _THIRD, size, pair)
        self._refuse(_NO_ID, LOG_DIRTY_PAGES, _THIRD, size, pair)
        self._refuse(other | _NO_ID << 16, LOG_DIRTY_PAGES, _THIRD, size, pair)
        self._refuse(other, LOG_DIRTY_PAGES, _THIRD, size + 1, pair)
        self._refuse(other, LOG_DIRTY_PAGES, _THIRD + 1, size, pair)
        self._refuse(other, LOG_DIRTY_PAGES, _THIRD, size, 1)
        self._refuse(other, LOG_DIRTY_PAGES, _THIRD, size, _KERNEL_HVA)
        self._refuse(other, 0, 0, 0, 0)
        self._refuse(slot, LOG_DIRTY_PAGES, _FIRST, page, pair)
        self._refuse(slot, LOG_DIRTY_PAGES, _FIRST, size, 0)
        self._refuse(slot, LOG_DIRTY_PAGES | READONLY, _FIRST, size, pair)

    def _refuse_moves(self) -> None:
        """Try to move a slot and a logged one, with and without a change of flags."""
        places = ((self._slot, _FIRST, 0), (self._other, _THIRD, LOG_DIRTY_PAGES))
        for slot, gpa, flags in places:
            for wanted in (0, LOG_DIRTY_PAGES):
                onto = _THIRD + _FIRST - gpa
                self._refuse(slot, wanted, onto, _PAIR_BYTES, self._pair)
                self._refuse(slot, wanted, _SECOND, PAGE_SIZE_BYTES, self._pair)
                self._refuse(slot, wanted, _SECOND, _PAIR_BYTES, 0)
                with suppress(KvmError):  # Where there is no last gfn, it moves there and back.
                    self._set(slot, wanted, _BEYOND, _PAIR_BYTES, self._pair)
                    self._set(slot, flags, gpa, _PAIR_BYTES, self._pair)

    def _refuse_bindings(self) -> None:
        """Make a guest_memfd, bind it to one slot, try to bind it to another, and close it."""
        vm, slot, other, page = self._vm, self._slot, self._other, PAGE_SIZE_BYTES
        memfd = vm.create_guest_memfd(_MEMFD_PAGES * page)
        try:
            self._bind(slot, _FIRST, memfd, 0)
            for flags in (LOG_DIRTY_PAGES, READONLY):
                self._refuse_binding(other, _THIRD, memfd, 4 * page, flags)
            self._refuse_binding(other, _FIRST + page, memfd, 4 * page)
            self._refuse_binding(other, _THIRD, memfd, page)
            self._refuse_binding(other, _THIRD, memfd, (_MEMFD_PAGES - 1) * page)
            self._refuse_binding(other, _THIRD, memfd, 4 * page + 1)
            self._refuse_binding(other, _THIRD, memfd, (1 << 64) - page)
            self._refuse_binding(other, _THIRD, vm.fd, 0)
            self._refuse_binding(other, _THIRD, (1 << 32) - 1, 0)
            self._refuse_binding(slot, _THIRD, memfd, 0)
            self._refuse_binding(other, _BEYOND, memfd, 4 * page, or_undone=True)
            self._set(slot, 0, 0, 0, 0)
        finally:
            close(memfd)

    def _await_an_event(self) -> None:
        """Let writes at a gpa signal an eventfd until the churn ends."""
        bell = eventfd(0)
        self._at_end.callback(close, bell)
        self._vm.ioeventfd(bell, _FIRST, _EVENT_BYTES)
        self._at_end.callback(self._vm.ioeventfd, bell, _FIRST, _EVENT_BYTES, on=False)

    def _refuse_eventfds(self) -> None:
        """Try to have the same writes signal another eventfd, and more that makes no sense."""
        vm, other = self._vm, eventfd(0)
        try:
            for match in (None, *range(_EVENT_VALUES)):  # No match: any value.
                self._refuse_eventfd(other, _FIRST, _EVENT_BYTES, match)
            self._refuse_eventfd(other, _FIRST, _EVENT_BYTES - 1)
            self._refuse_eventfd(other, (1 << 64) - _EVENT_BYTES, 2 * _EVENT_BYTES)
            self._refuse_eventfd(vm.fd, _SECOND, _EVENT_BYTES)
            with suppress(KvmError):
                vm.ioeventfd(other, _FIRST, _EVENT_BYTES, on=False)
                self.accepted["another eventfd than the one in use that is taken away"] = None
        finally:
            close(other)

    def _end_events(self) -> None:
        """Let eventfds end that writes have signalled, and note it if the kernel keeps them.

        The number of one that it has freed is that of the next.
        """
        for _ in range(_ATTEMPTS):
            ids = [self._end_an_event() for _ in range(_EVENTS)]
            if not all(one < other for one, other in pairwise(ids)):
                return
        self.accepted["each eventfd that ends, and is closed, stays"] = None

    def _end_an_event(self) -> int:
        """Let writes signal an eventfd, end that, close it, and return its number; or else -1."""
        bell = eventfd(0)
        try:
            for on in (True, False):
                self._vm.ioeventfd(bell, _SECOND, _EVENT_BYTES, on=on)
            lines = Path(f"/proc/self/fdinfo/{bell}").read_text().splitlines()
        except FileNotFoundError:  # A host without /proc.
            return -1
        finally:
            close(bell)
        ids = [int(line.removeprefix(_EVENT_ID)) for line in lines if line.startswith(_EVENT_ID)]
        return ids[0] if ids else -1

    def _refuse_eventfd(self, file: int, gpa: int, length: int, match: int | None = None) -> None:
        with suppress(KvmError):
            self._vm.ioeventfd(file, gpa, length, match)
            what = f"{length} bytes at {gpa:#x}, value {'any' if match is None else match}"
            self.accepted[f"an ioeventfd that is to be refused: {what}"] = None
            self._vm.ioeventfd(file, gpa, length, match, on=False)

    def _fail_changes(self) -> None:
        """Create, log, move and delete a slot, and add devices: each after its allocations failed.

        A device that was added by half is in the way of the next attempt.
        """
        changes = ((0, _FIRST), (LOG_DIRTY_PAGES, _FIRST), (LOG_DIRTY_PAGES, _SECOND), (0, _THIRD))
        for flags, gpa in changes:
            _fail(partial(self._set, self._slot, flags, gpa, _PAIR_BYTES, self._pair))
        _fail(partial(self._set, self._slot, 0, 0, 0, self._pair))
        if self._vm.check_extension(Cap.IOEVENTFD):
            self._fail_events()

    def _fail_events(self) -> None:
        """Add an ioeventfd of any length, which is on two buses.

        It is taken away with all memory: a kernel that has none for a smaller bus gives up the bus.
        """
        bell = eventfd(0)
        try:
            _fail(partial(self._vm.ioeventfd, bell, _SECOND, 0))
            self._vm.ioeventfd(bell, _SECOND, 0, on=False)
        finally:
            close(bell)

    def _bind(self, slot: int, gpa: int, memfd: int, offset: int, flags: int = 0) -> None:
        self._vm.set_user_memory_region2(
            slot, GUEST_MEMFD | flags, gpa, _PAIR_BYTES, self._pair, offset, memfd
        )

    def _refuse_binding(
        self,
        slot: int,
        gpa: int,
        memfd: int,
        offset: int,
        flags: int = 0,
        *,
        or_undone: bool = False,
    ) -> None:
        with suppress(KvmError):
            self._bind(slot, gpa, memfd, offset, flags)
            self._undo(
                slot, f"offset {offset:#x} of file {memfd} at {gpa:#x}, flags {flags:#x}", or_undone
            )

    def _set(
        self, slot: int, flags: int, gpa: int, size_bytes: int, place: HostAddress | int
    ) -> None:
        self._vm.set_user_memory_region(slot, flags, gpa, size_bytes, place)

    def _refuse(
        self,
        slot: int,
        flags: int,
        gpa: int,
        size_bytes: int,
        place: HostAddress | int,
        *,
        or_undone: bool = False,
    ) -> None:
        with suppress(KvmError):
            self._set(slot, flags, gpa, size_bytes, place)
            hva = "memory of the process" if isinstance(place, HostAddress) else f"{place:#x}"
            what = f"{size_bytes:#x} bytes at {gpa:#x}, hva {hva}, flags {flags:#x}"
            self._undo(slot, what, or_undone)

    def _undo(self, slot: int, what: str, is_right: bool) -> None:
        """Delete a slot that was not refused, and note it unless that ``is_right``."""
        if not is_right:
            self.accepted[f"slot {slot:#x} that is to be refused: {what}"] = None
        self._set(slot, 0, 0, 0, 0)
