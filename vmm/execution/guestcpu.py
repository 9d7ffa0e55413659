"""One vCPU, and the guests that it runs: touch, sweep and execute.

Guests access gpas below 4 GiB in big real mode, and higher ones in 64-bit mode.
"""

import errno
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import ParamSpec, TypeVar

from msgspec.structs import asdict

from guests import image, mailbox
from guests.image import ACCESSES, LONG_SWEEPS, WIDTHS
from guests.mailbox import PlainTouch
from guests.windows import Windows
from kvm_abi.raw import KvmError, PassedMmio, WrongAnswerError
from kvm_abi.uapi import Ioctl, MemoryExitFlag
from vmm.execution.guesttime import GUEST_LIMIT_S, GuestClock
from vmm.execution.instructions import (
    END_LENGTH,
    Port,
    accesses_of,
    program,
    ran,
    registers_of,
    table_of,
)
from vmm.execution.processes import FirstRun
from vmm.kvm.exits import DirtyRingFull, Io, MemoryFault, Mmio, VcpuExit
from vmm.kvm.exitwords import fields_in_words
from vmm.kvm.registers import Registers, check_values
from vmm.kvm.vcpu import Vcpu
from vmm.scenario import history
from vmm.scenario.content import MMIO_FILL, STUB_OFFSET, run_lengths
from vmm.scenario.history import (
    AnyOutcome,
    PreFaulted,
    Refused,
    Stopped,
    Swept,
    Touched,
    joined,
    private_fault,
)
from vmm.scenario.instructions import CODE_OFFSET
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    SMM,
    AsId,
    Execute,
    Instruction,
    PreFaultMemory,
    Start,
    Sweep,
    Touch,
)

_MOST_INTERRUPTIONS = 100
"""The most EINTRs of one run: if there are more, the kernel has made them up."""

_MOST_EXITS_OF_AN_ACCESS = 8
"""The most MMIO exits of an access, one a byte: if there are more, they never end."""

_MOST_EXITS_OF_A_START = 16
_SEGMENT_BYTES = 1 << 16

_SURELY_REAL = REAL_MODE_END - 4
"""A touch of any width that begins before this ends below 4 GiB."""

_NOT_FULL = "no KVM_EXIT_DIRTY_RING_FULL"

_NOT_READY, _TOUCHES, _LONG_TOUCHES, _SWEEPS = "", "touches", "touches in 64-bit mode", "sweeps"

AnyExit = TypeVar("AnyExit", bound=VcpuExit | None)
_Arguments = ParamSpec("_Arguments")
_Exits = dict[int, list[history.Mmio]]
_Stops = dict[int, Stopped]


class GuestCpu:
    """Runs the guests on a vCPU.

    ``view`` is the host's view of the guest's own slot, which begins at ``gpa``; ``windows`` map
    high gpas in 64-bit mode. ``make_room`` is called when the vCPU's dirty ring is full; it returns
    False if it could not help. ``clock`` ends a guest that never leaves by itself.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        gpa: int,
        view: memoryview,
        windows: Windows,
        make_room: Callable[[], bool],
        clock: GuestClock | None = None,
    ) -> None:
        self._vcpu = vcpu
        self._clock = clock or GuestClock(GUEST_LIMIT_S)
        self._make_room = make_room
        self.insists = False
        """Whether to run a vCPU again where its ring is full, since it has to stop at once. Not in
        a race, where another thread may empty the ring meanwhile, nor where there is no ring.
        """
        self._gpa = gpa
        self._view = view
        self._windows = windows
        self._ready = _NOT_READY
        """The guest that ended at its port, so that the next KVM_RUN starts it again."""
        self._is_known = False
        """Whether the last guest was one of ours, and ended as it should. Then all registers were
        set once by ioctls, and KVM_RUN itself can set those of the next guest.
        """
        self._as_id: AsId = 0
        self.first_run = FirstRun()
        """That of the VM, if it has several vCPUs."""

    def check_registers(self) -> None:
        """Compare KVM_GET_REGS with the registers that the last exit left in `kvm_run`.

        This is only done where one of our guests has ended: nothing has set registers since then.
        Raises `KvmError`, and `WrongAnswerError` for a difference.
        """
        if not (self._ready and self._is_known):
            return
        asked, shared = self._vcpu.get_regs(), self._vcpu.exit_registers()
        if asked != shared:
            check_values("KVM_GET_REGS", asdict(asked), asdict(shared), "{} at the last exit")

    def look_at(self, as_id: AsId) -> None:
        """Switch the vCPU to an address space."""
        if as_id != self._as_id:
            self._as_id = as_id
            self._vcpu.set_smm(as_id == SMM)
            self._ready, self._is_known = _NOT_READY, False

    def touch(self, touches: Sequence[Touch]) -> list[AnyOutcome]:
        """Let the guest make touches in order, and return each outcome.

        There are at most ``mailbox.MAX_TOUCHES``, all in one address space.
        """
        self.look_at(touches[0].as_id)
        records = [(t.gpa, ACCESSES[t.access, t.width], t.value) for t in touches]
        if max(records)[0] < _SURELY_REAL:
            return self._touch_real(records)
        outcomes: list[AnyOutcome] = []
        for is_long, stretch in groupby(records, _leaves_real_mode):
            outcomes += (self._touch_long if is_long else self._touch_real)(list(stretch))
        return outcomes

    def sweep(self, op: Sweep) -> AnyOutcome:
        """Let the guest execute one string instruction, and return its outcome."""
        self.look_at(op.as_id)
        if op.gpa + op.count * op.width > REAL_MODE_END:
            exits, stops = self._sweep_long(op)
        else:
            exits, stops = self._sweep_real(op)
        if 0 in stops:
            return stops[0]
        runs: tuple[tuple[int, int], ...] = ()
        if op.access == "read":
            data = bytes(mailbox.sweep_buffer(self._view)[: op.count * op.width])
            runs = run_lengths(data, op.width)
        return Swept(runs, joined(exits.get(0, [])))

    def execute(self, op: Execute) -> AnyOutcome:
        """Let the vCPU run the code in the page at ``op.gpa``."""
        self.look_at(op.as_id)
        if op.gpa + PAGE_SIZE_BYTES > REAL_MODE_END:
            self._enter_long(self._windows.address(op.gpa) + STUB_OFFSET)
        else:
            self._vcpu.enter_big_real_mode(op.gpa, STUB_OFFSET)
        self._ready, self._is_known = _NOT_READY, False
        try:
            leaving = self._leave(self._vcpu.run)
        except KvmError as error:
            return self._stopped_by(error)
        match leaving:
            case Io(port=image.EXECUTED_PORT, data=data, is_write=True):
                return Touched(int.from_bytes(data, "little"))
            case Mmio() | Io():
                # The code was overwritten. Finish the exit, or it would affect the next guest.
                self._vcpu.finish_exit()
        self._stay_in_mode()
        return _stopped(leaving)

    def instruct(self, op: Instruction) -> AnyOutcome:
        """Let the guest execute one instruction, and return its outcome."""
        self.look_at(op.as_id)
        self._ready = _NOT_READY
        is_long = op.mode == "long"
        code = program(op)
        self._view[CODE_OFFSET : CODE_OFFSET + len(code)] = code
        begin = registers_of(op, self._windows.address if is_long else int)
        (self._go_long if is_long else self._go_flat)(begin, table_of(op))
        end = CODE_OFFSET + len(code) - END_LENGTH
        leave = self._enter_long if is_long else self._enter_flat
        port = Port(op)
        exits, stops = self._run(_only_one, lambda _: leave(end), 1, accesses_of(op), port)
        if 0 in stops:
            return stops[0]
        after = self._vcpu.exit_registers()
        return ran(op, begin, after, joined(exits.get(0, [])), port)

    def start(self, op: Start) -> AnyOutcome:
        """Let the vCPU start at an address that the scenario chooses, and return its answer."""
        self.look_at(op.as_id)
        self._ready, self._is_known = _NOT_READY, False
        vcpu = self._vcpu
        table = None if op.interrupts is None else (op.interrupts, PAGE_SIZE_BYTES - 1)
        if op.tables is None and table is None:
            vcpu.enter_big_real_mode(op.address & -_SEGMENT_BYTES, op.address % _SEGMENT_BYTES)
        elif op.tables is None:
            registers = Registers(rip=op.address % _SEGMENT_BYTES, rsp=op.stack)
            vcpu.enter_flat_real_mode(op.address & -_SEGMENT_BYTES, registers, table)
        else:
            registers = Registers(rip=op.address, rdi=op.data, rcx=op.value, rsp=op.stack)
            if op.paging == "long":
                vcpu.enter_long_mode(op.tables, registers, table)
            else:
                vcpu.enter_32_bit_mode(op.tables, registers, pae=op.paging == "pae")
        if op.smi:
            vcpu.set_smbase(op.smbase)
            vcpu.send_smi()
        passed: list[PassedMmio] = []
        port, most = image.EXECUTED_PORT, _MOST_EXITS_OF_A_START
        try:
            leaving = self._leave(vcpu.run_past_mmio, MMIO_FILL, passed, port, most)
            leaving = leaving or vcpu.last_exit()
        except KvmError as error:
            self._recover(op)
            return self._stopped_by(error)
        match leaving:
            case Io(port=image.EXECUTED_PORT, data=data, is_write=True):
                exits = joined(history.Mmio(gpa, write, each) for _, gpa, each, write in passed)
                return Touched(int.from_bytes(data, "little"), exits)
            case Mmio() | Io():  # The code was overwritten.
                vcpu.finish_exit()
        self._recover(op)
        self._stay_in_mode()
        return _stopped(leaving)

    def _recover(self, op: Start) -> None:
        """Leave nothing of a start that has stopped to the next guest."""
        self._vcpu.forget_exceptions()
        if op.smi:  # Its handler may not have returned.
            self._vcpu.set_smm(False)

    def pre_fault(self, op: PreFaultMemory) -> PreFaulted | Refused:
        """Issue KVM_PRE_FAULT_MEMORY, with the vCPU outside of SMM."""
        self.look_at(0)
        try:
            return PreFaulted(*self._vcpu.pre_fault_memory(op.gpa, op.size, op.flags))
        except KvmError as error:
            return Refused(error.errno or 0)

    def _touch_real(self, touches: Sequence[PlainTouch]) -> list[AnyOutcome]:
        mailbox.encode_touches(self._view, touches)
        return self._run_touches(self._enter_real, _TOUCHES, len(touches))

    def _touch_long(self, touches: Sequence[PlainTouch]) -> list[AnyOutcome]:
        address = self._windows.address
        mailbox.encode_long_touches(
            self._view, [(address(gpa), code, value) for gpa, code, value in touches]
        )
        return self._run_touches(self._enter_long, _LONG_TOUCHES, len(touches))

    def _run_touches(
        self, enter: Callable[[int], None], ready: str, count: int
    ) -> list[AnyOutcome]:
        if self._ready != ready:
            enter(image.TOUCH_ENTRY)
        self._ready = ready
        exits, stops = self._run(
            mailbox.touch_at,
            lambda index: enter(mailbox.touch_offset(index + 1)),
            count,
            count,
        )
        values = mailbox.decode_touches(self._view, count)
        if not exits and not stops:
            return list(map(Touched, values))
        return [
            stops.get(index)
            or (Touched(value, joined(exits[index])) if index in exits else Touched(value))
            for index, value in enumerate(values)
        ]

    def _sweep_real(self, op: Sweep) -> tuple[_Exits, _Stops]:
        code = ACCESSES[op.access, op.width]
        sweep = mailbox.Sweep(op.gpa, code, op.count, op.value)
        mailbox.encode_sweeps(self._view, self._gpa, [sweep])
        if self._ready != _SWEEPS:
            self._enter_real(image.SWEEP_ENTRY)
        self._ready = _SWEEPS
        return self._run(_only_one, lambda _: self._enter_real(image.SWEEP_SKIP), 1, op.count)

    def _sweep_long(self, op: Sweep) -> tuple[_Exits, _Stops]:
        address = self._windows.address(op.gpa)
        registers = Registers(
            rip=LONG_SWEEPS[ACCESSES[op.access, op.width]],
            rdi=mailbox.SWEEP_BUFFER_OFFSET if op.access == "read" else address,
            rsi=address,
            rcx=op.count,
            rax=op.value,
        )
        self._go_long(registers)
        self._ready = _NOT_READY
        return self._run(_only_one, lambda _: self._enter_long(image.LONG_SWEEP_END), 1, op.count)

    def _stopped_by(self, error: KvmError) -> Stopped:
        """Return the errno of KVM_RUN, or the fault on private memory that comes with it.

        Errors of other ioctls are raised again.
        """
        if error.request is not Ioctl.RUN:
            raise error
        if error.errno == errno.EFAULT:
            fault = self._vcpu.last_exit()
            if isinstance(fault, MemoryFault) and fault.flags == MemoryExitFlag.PRIVATE:
                return private_fault(fault.gpa, fault.size_bytes)
        return Stopped(_errno_name(error))

    def _stay_in_mode(self) -> None:
        """Restore SMM after a stop: on AMD, a shutdown takes a vCPU out of SMM."""
        if self._as_id == SMM:
            self._vcpu.set_smm(True)

    def _enter_real(self, rip: int) -> None:
        """Enter a guest at an offset in its own slot, which also holds its stack."""
        self._vcpu.enter_big_real_mode(self._gpa, rip, at_run=self._is_known)

    def _enter_flat(self, rip: int) -> None:
        self._go_flat(Registers(rip=rip))

    def _enter_long(self, rip: int) -> None:
        self._go_long(Registers(rip=rip))

    def _go_flat(self, registers: Registers, table: tuple[int, int] | None = None) -> None:
        known = self._is_known
        self._vcpu.enter_flat_real_mode(self._gpa, registers, table, at_run=known)

    def _go_long(self, registers: Registers, table: tuple[int, int] | None = None) -> None:
        known = self._is_known
        self._vcpu.enter_long_mode(self._windows.cr3, registers, table, at_run=known)

    def _leave(
        self,
        run: Callable[_Arguments, AnyExit],
        *arguments: _Arguments.args,
        **named: _Arguments.kwargs,
    ) -> AnyExit:
        """Run until an exit other than a pause (a full dirty ring, or a signal).

        Raises GuestEndlessError.
        """
        interruptions = 0
        was_full = False
        self._clock.begin()
        try:
            while True:
                try:
                    leaving = run(*arguments, **named)
                except KvmError as error:
                    self.first_run.check(error, partial(run, *arguments, **named))
                    interruptions += 1
                    if (
                        error.request is not Ioctl.RUN
                        or error.errno != errno.EINTR
                        or interruptions > _MOST_INTERRUPTIONS
                    ):
                        raise
                    self._clock.check()
                    continue
                self.first_run.is_over = True
                if leaving is None and not was_full:  # The common case.
                    return leaving
                is_full = isinstance(leaving, DirtyRingFull)
                if was_full and not is_full:
                    raise WrongAnswerError("KVM_RUN", _NOT_FULL, "with a full dirty ring")
                was_full = is_full and not was_full and self.insists
                if not is_full or not (was_full or self._make_room()):
                    return leaving
                self._clock.begin()
        finally:
            self._clock.end()

    def _run(
        self,
        index: Callable[[int], int],
        skip: Callable[[int], None],
        count: int,
        accesses: int,
        port: Port | None = None,
    ) -> tuple[_Exits, _Stops]:
        """Run one guest to its end; return exits and stops by the index of their record.

        ``index`` says which of ``count`` records is under way at a RIP, ``skip`` makes the guest
        continue after it. All records together make at most ``accesses`` accesses; an instruction
        may use a ``port`` besides.
        """
        vcpu = self._vcpu
        most = accesses * _MOST_EXITS_OF_AN_ACCESS
        exits: _Exits = {}
        stops: _Stops = {}
        while True:
            passed: list[PassedMmio] = []
            stop: Stopped | None
            is_served = False
            try:
                leaving = self._leave(vcpu.run_past_mmio, MMIO_FILL, passed, image.END_PORT, most)
            except KvmError as error:
                stop = self._stopped_by(error)
            else:
                stop = None
                if leaving is not None:
                    is_served = port is not None and port.serve(leaving, vcpu.complete_port_read)
                    stop = None if is_served else _stopped(leaving)
                    if isinstance(leaving, Mmio):  # More exits than any guest has.
                        vcpu.finish_exit()
            for rip, gpa, data, is_write in passed:
                exits.setdefault(index(rip), []).append(history.Mmio(gpa, is_write, data))
            if is_served:
                continue
            if stop is None:
                self._is_known = True
                return exits, stops
            self._stay_in_mode()
            self._is_known = False
            # A wrong kernel may report the same RIP again: always continue at a later record.
            given_up = max(index(vcpu.exit_rip()), max(stops, default=-1) + 1)
            if given_up >= count:  # The guest cannot even reach its end.
                self._ready = _NOT_READY
                return exits, stops
            stops[given_up] = stop
            skip(given_up)


def _only_one(_: int) -> int:
    return 0


def _leaves_real_mode(touch: PlainTouch) -> bool:
    return touch[0] + WIDTHS[touch[1]] > REAL_MODE_END


def _errno_name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error.errno))


def _stopped(leaving: VcpuExit) -> Stopped:
    """Return the outcome for an exit that ends an access, named in lower case with dashes."""
    return Stopped(leaving.name, fields_in_words(leaving))
