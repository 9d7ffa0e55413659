"""VMs that live and die beside the scenario's own, in each way that a VM can end."""

import errno
import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import cycle
from threading import Thread
from typing import Literal, NoReturn, Self, assert_never

from kvm_abi import raw
from kvm_abi.raw import KvmError, WrongAnswerError
from kvm_abi.uapi import USUAL_TSS_GPA, Cap, VmType
from vmm.execution.callers import Caller, NoLifeError
from vmm.execution.kernelmemory import growth
from vmm.execution.leftovers import Leftovers
from vmm.execution.processes import FirstRun
from vmm.host.child import fork
from vmm.kvm.closing import Closing
from vmm.kvm.exitwords import in_words
from vmm.kvm.memory import HostAddress, HostMapping
from vmm.kvm.system import Kvm
from vmm.scenario.endings import is_short
from vmm.scenario.history import Closed, Stopped
from vmm.scenario.operations import (
    ATTRIBUTE_PRIVATE,
    GUEST_MEMFD,
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    SMM,
    Lives,
)

_COUNTER = 0x100
_COUNT_FOREVER = bytes.fromhex("fb bb0008 fe07 81c30010 73f8 ff060001 ebfa")
"""sti; mov bx, 0x800; inc byte [bx] and add bx, 0x1000 until that carries; inc word [0x100], and a
jump back to that. It writes to each page, and counts. While interrupts are off, none of the host's
comes through in bochs 2.7, so that such a guest would never be left."""
_PAGES = 16
_RING_BYTES = 1 << 14
_MEMFD_PAGES = 4
_PRIVATE_GPA, _PRIVATE_BYTES = 1 << 30, 2 << 20
"""Where there is no slot. The kernel has some 5 KiB for attributes of so much."""

_EVENT_GPA = 0x100000
_SIGNAL = signal.SIGUSR1

_Shape = Literal["plain", "ring", "guest_memfd", "eventfd"]
"""What a VM has besides slots and a vCPU."""


def live(kvm: Kvm, op: Lives) -> Closed | Stopped:
    """Let VMs live and die, and return what they left behind in this process or in the kernel.

    A guest that stops by itself is an outcome, too. Raises `KvmError`: no call here may be refused.
    """
    leftovers = Leftovers()
    shapes = cycle(_shapes(kvm))

    def turn() -> None:
        _live_once(kvm, op, next(shapes))

    try:
        left = _repeated(turn, op.times, op.watch == "kernel")
    except NoLifeError as error:
        return Stopped("the guest of another VM", str(error))
    return Closed((*left, *leftovers.found()))


def _repeated(turn: Callable[[], None], times: int, measured: bool) -> tuple[str, ...]:
    if measured:
        return growth(turn, times)
    for _ in range(times):
        turn()
    return ()


def _shapes(kvm: Kvm) -> tuple[_Shape, ...]:
    """Return the shapes of VMs that there are, to be taken in turn.

    No VM has all that others have: one with a dirty ring has no dirty bitmaps, one with a
    guest_memfd may have no as_id 1.
    """
    shapes: list[_Shape] = ["plain"]
    if kvm.check_extension(Cap.DIRTY_LOG_RING) >= _RING_BYTES:
        shapes.append("ring")
    has_type = kvm.check_extension(Cap.VM_TYPES) >> VmType.SW_PROTECTED_VM & 1
    if has_type and kvm.check_extension(Cap.GUEST_MEMFD):
        shapes.append("guest_memfd")
    if kvm.check_extension(Cap.IOEVENTFD):  # It takes a millisecond or more.
        shapes.append("eventfd")
    return tuple(shapes)


def _live_once(kvm: Kvm, op: Lives, shape: _Shape) -> None:
    match op.death:
        case "closed":
            with _Life(kvm, shape) as life:
                life.refuse_the_same_vcpu()
                life.vm.close()
        case "closed-by-another-thread":
            with _Life(kvm) as life, _Running(life):
                pass
            # One thread has run the vCPU, this one created it, and a third one closes the VM.
        case "closed-while-running":
            with _Life(kvm, shape) as life, _Running(life) as running:
                life.vm.close()
                running.wait_for_more()
        case "held-by-a-child":
            _held_by_a_child(kvm)
        case "killed":
            _killed(partial(_run_until_killed, kvm))
        case "killed-while-closing":
            _killed(partial(_close_until_killed, kvm))
        case _:
            assert_never(op.death)


class _Life(Closing):
    """A VM with slots in all address spaces, whose guest counts for ever in shared memory.

    Its vCPU has a dirty ring, or a slot a guest_memfd, or writes signal an eventfd, if that is its
    ``shape``.
    """

    def __init__(self, kvm: Kvm, shape: _Shape = "plain") -> None:
        self._memory = HostMapping.shared(_PAGES * PAGE_SIZE_BYTES)
        for page in range(_PAGES):  # What is there already, KVM may map ahead.
            self._memory.write(page * PAGE_SIZE_BYTES, bytes(1))
        self._memory.write(0, _COUNT_FOREVER)
        kind = VmType.SW_PROTECTED_VM if shape == "guest_memfd" else VmType.DEFAULT_VM
        self.vm = kvm.create_vm(kind)
        if shape == "ring":
            self.vm.enable_cap(Cap.DIRTY_LOG_RING, _RING_BYTES)
        self._memfd = self._bound_memfd() if shape == "guest_memfd" else None
        slots = [(0, 0, 1, 0), (1, 1, 8, LOG_DIRTY_PAGES), (2, 9, 7, 0)]
        if self.vm.check_extension(Cap.MULTI_ADDRESS_SPACE) > SMM:
            slots.append((SMM << 16, 0, 8, LOG_DIRTY_PAGES))
        for slot, page, pages, flags in slots:
            self.vm.set_user_memory_region(
                slot,
                flags,
                page * PAGE_SIZE_BYTES,
                pages * PAGE_SIZE_BYTES,
                HostAddress(self._memory, page * PAGE_SIZE_BYTES),
            )
        if shape == "guest_memfd":
            self.vm.set_memory_attributes(_PRIVATE_GPA, _PRIVATE_BYTES, ATTRIBUTE_PRIVATE)
        if shape == "eventfd":
            self._await_an_event()
        self.vcpu = self.vm.create_vcpu(0)
        self.vcpu.enter_big_real_mode(0, 0)
        self.end = ""
        """Why the vCPU stopped, if not by a signal."""
        self._first_run = FirstRun()
        self.failure: Exception | None = None
        """What the host lacked for it to run, or an error of ours."""

    def _bound_memfd(self) -> int:
        """Make two guest_memfds, close one, and bind the other to a slot."""
        size_bytes = _MEMFD_PAGES * PAGE_SIZE_BYTES
        raw.close_kvm_file("a guest_memfd", self.vm.create_guest_memfd(size_bytes))
        memfd = self.vm.create_guest_memfd(size_bytes)
        place = HostAddress(self._memory, 0)
        gpa = _PAGES * PAGE_SIZE_BYTES
        self.vm.set_user_memory_region2(3, GUEST_MEMFD, gpa, size_bytes, place, 0, memfd)
        return memfd

    def _await_an_event(self) -> None:
        """Have an eventfd signalled where the guest writes nothing."""
        eventfd = os.eventfd(0)
        try:
            self.vm.ioeventfd(eventfd, _EVENT_GPA, 4)
        finally:
            os.close(eventfd)

    def refuse_the_same_vcpu(self) -> None:
        """Try to create the vCPU once more. Raises `WrongAnswerError` if that succeeds."""
        try:
            self.vm.create_vcpu(0)
        except KvmError as error:
            if error.errno != errno.EEXIST:
                raise
        else:
            raise WrongAnswerError("KVM_CREATE_VCPU", "a file descriptor", "0, which exists")

    def close(self) -> None:
        """Close the VM from another thread than the one that created it, then what it used."""
        errors: list[BaseException] = []

        def close() -> None:
            try:
                self.vm.close()
            except BaseException as error:
                errors.append(error)

        closing = Thread(target=close)
        closing.start()
        closing.join()
        if errors:
            raise errors[0]
        if self._memfd is not None:  # It holds the VM: only now the kernel lets go of that.
            memfd, self._memfd = self._memfd, None
            raw.close_kvm_file("a guest_memfd", memfd)
        self._memory.close()

    @property
    def count(self) -> int:
        """How far the guest has counted, modulo 2^16."""
        return int.from_bytes(self._memory.read(_COUNTER, 2), "little")

    def run(self) -> None:
        """Run the guest until a signal interrupts it."""
        try:
            self.end = in_words(self.vcpu.run())
        except KvmError as error:
            try:
                self._first_run.check(error, self.vcpu.run)
            except OSError as shortage:
                self.failure = shortage
            if error.errno != errno.EINTR:
                self.end = str(error)
        except Exception as error:
            self.failure = error


class _Running:
    """Runs a vCPU in its own thread; the block begins once the guest counts, and stops it."""

    def __init__(self, life: _Life) -> None:
        self._life = life
        self._thread = Thread(target=life.run)

    def __enter__(self) -> Self:
        self._handler = signal.signal(_SIGNAL, lambda *_: None)
        self._thread.start()
        try:
            self.wait_for_more()
        except Exception:
            signal.signal(_SIGNAL, self._handler)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if self._thread.ident is not None and self._thread.is_alive():
            signal.pthread_kill(self._thread.ident, _SIGNAL)
        self._thread.join()
        signal.signal(_SIGNAL, self._handler)
        if error is None and self._life.failure is not None:
            raise self._life.failure

    def wait_for_more(self) -> None:
        """Wait until the guest counts further.

        Raises ``NoLifeError`` if it does not run, and OSError if the host does not let it.
        """
        before = self._life.count
        while self._life.count == before:
            if not self._thread.is_alive():
                raise self._life.failure or NoLifeError(self._life.end)
            os.sched_yield()


def _held_by_a_child(kvm: Kvm) -> None:
    """Close a VM that a forked child still has open; the child closes it last."""
    with _Life(kvm) as life:
        read_end, write_end = os.pipe()
        child = fork()
        if child == 0:
            try:
                os.close(write_end)
                os.read(read_end, 1)
            finally:
                os._exit(0)
        os.close(read_end)
        life.vm.close()
        os.close(write_end)
        os.waitpid(child, 0)


def _killed(live_on: Callable[[HostMapping, int], NoReturn]) -> None:
    """Kill a process as soon as it gives a sign."""
    with HostMapping.shared(PAGE_SIZE_BYTES) as signs:
        # Only this process holds the write end: the child sees EOF when this process ends.
        alive, ours = os.pipe()

        def live() -> NoReturn:
            os.close(ours)
            live_on(signs, alive)

        try:
            with Caller(live) as child:
                while signs.read(0, 1) == b"\0":
                    child.check()
                    os.sched_yield()
        finally:
            os.close(alive)
            os.close(ours)


def _run_until_killed(kvm: Kvm, signs: HostMapping, alive: int) -> NoReturn:
    """Run a guest, and give a sign as soon as it counts; never returns.

    ``alive`` is a pipe that reaches EOF if the process that will kill this one ends before it does,
    so that this one never runs for ever.
    """
    with _Life(kvm) as life, _Running(life):
        signs.write(0, b"\1")
        os.read(alive, 1)
        os._exit(1)


def _close_until_killed(kvm: Kvm, signs: HostMapping, alive: int) -> NoReturn:
    """Create and close VMs with internal slots, with a sign before each close.

    Closing unmaps the memory of those slots, for which the kernel has to wait: another thread keeps
    the memory map busy.
    """
    Thread(target=_keep_mapping, daemon=True).start()
    while not select.select([alive], [], [], 0)[0]:
        with kvm.create_vm() as vm:
            for set_up in (vm.create_irqchip, partial(vm.set_tss_addr, USUAL_TSS_GPA)):
                with suppress(KvmError):  # Not every kernel has them.
                    set_up()
            vm.create_vcpu(0)
            signs.write(0, b"\1")
    os._exit(1)


def _keep_mapping() -> None:
    while True:
        try:
            HostMapping.anonymous(PAGE_SIZE_BYTES).close()
        except OSError as error:
            if not is_short(error):  # Other memory may be free again in a moment.
                raise
