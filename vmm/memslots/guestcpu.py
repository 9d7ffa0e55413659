"""One vCPU in big real mode, and the guests that it runs: touch, sweep and execute."""

import errno
from collections.abc import Callable, Sequence

from guests import image, mailbox
from guests.image import SweepCode, TouchCode
from kvm_abi.raw import KvmError
from vmm.exits import Io, Mmio, VcpuExit
from vmm.memslots import history
from vmm.memslots.content import MMIO_FILL, STUB_OFFSET, run_lengths
from vmm.memslots.history import AnyOutcome, Stopped, Swept, Touched
from vmm.memslots.operations import Execute, Sweep, Touch
from vmm.vcpu import Vcpu

MAX_BATCH = mailbox.MAX_TOUCHES

_TOUCH_CODES = {
    ("read", 1): TouchCode.READ_1,
    ("read", 2): TouchCode.READ_2,
    ("read", 4): TouchCode.READ_4,
    ("write", 1): TouchCode.WRITE_1,
    ("write", 2): TouchCode.WRITE_2,
    ("write", 4): TouchCode.WRITE_4,
}
_SWEEP_CODES = {
    ("read", 1): SweepCode.READ_1,
    ("read", 2): SweepCode.READ_2,
    ("read", 4): SweepCode.READ_4,
    ("write", 1): SweepCode.WRITE_1,
    ("write", 2): SweepCode.WRITE_2,
    ("write", 4): SweepCode.WRITE_4,
}


class GuestCpu:
    """Runs the guests on a vCPU. ``view`` is the host's view of the guest's own slot."""

    def __init__(self, vcpu: Vcpu, gpa: int, view: memoryview) -> None:
        self._vcpu = vcpu
        self._gpa = gpa
        self._view = view
        self._ready_at = -1

    def touch(self, touches: Sequence[Touch]) -> list[AnyOutcome]:
        """Let the guest make up to ``MAX_BATCH`` touches in order, and return each outcome."""
        mailbox.encode_touches(
            self._view,
            [mailbox.Touch(t.gpa, _TOUCH_CODES[t.access, t.width], t.value) for t in touches],
        )
        exits, stops = self._run(
            mailbox.touch_offset(0),
            lambda: mailbox.touch_index(self._vcpu.get_rip()),
            lambda index: mailbox.touch_offset(index + 1),
        )
        values = mailbox.decode_touches(self._view, len(touches))
        if not exits and not stops:
            return [Touched(value) for value in values]
        return [
            stops.get(index) or Touched(value, _joined(exits.get(index, [])))
            for index, value in enumerate(values)
        ]

    def sweep(self, op: Sweep) -> AnyOutcome:
        """Let the guest execute one string instruction, and return what came of it."""
        code = _SWEEP_CODES[op.access, op.width]
        sweep = mailbox.Sweep(op.gpa, code, op.count, op.value)
        mailbox.encode_sweeps(self._view, self._gpa, [sweep])
        exits, stops = self._run(
            image.SWEEP_ENTRY,
            lambda: mailbox.sweep_index(self._view),
            lambda _: image.SWEEP_SKIP,
        )
        if 0 in stops:
            return stops[0]
        runs: tuple[tuple[int, int], ...] = ()
        if op.access == "read":
            data = bytes(mailbox.sweep_buffer(self._view)[: op.count * op.width])
            runs = run_lengths(data, op.width)
        return Swept(runs, _joined(exits.get(0, [])))

    def execute(self, op: Execute) -> AnyOutcome:
        """Let the vCPU run the code that the page at ``op.gpa`` carries."""
        self._vcpu.enter_big_real_mode(op.gpa, STUB_OFFSET)
        self._ready_at = -1
        try:
            leaving = self._vcpu.run()
        except KvmError as error:
            return Stopped(_errno_name(error))
        match leaving:
            case Io(port=image.EXECUTED_PORT, data=data, is_write=True):
                return Touched(int.from_bytes(data, "little"))
            case _:
                return _stopped(leaving)

    def _run(
        self, entry: int, index: Callable[[], int], behind: Callable[[int], int]
    ) -> tuple[dict[int, list[history.Mmio]], dict[int, Stopped]]:
        """Run one guest to its end; return exits and stops by the index of their record.

        ``index`` says which record is under way, ``behind`` where to go on after giving it up.
        """
        vcpu = self._vcpu
        exits: dict[int, list[history.Mmio]] = {}
        stops: dict[int, Stopped] = {}
        if self._ready_at != entry:
            vcpu.enter_big_real_mode(self._gpa, entry)
        while True:
            stop: Stopped | None = None
            try:
                leaving = vcpu.run()
            except KvmError as error:
                stop = Stopped(_errno_name(error))
            else:
                match leaving:
                    case Mmio(gpa, data, is_write):
                        if not is_write:
                            data = bytes([MMIO_FILL]) * len(data)
                            vcpu.complete_mmio_read(data)
                        exits.setdefault(index(), []).append(history.Mmio(gpa, is_write, data))
                    case Io(port=image.END_PORT):
                        self._ready_at = entry
                        return exits, stops
                    case _:
                        stop = _stopped(leaving)
            if stop is not None:
                given_up = index()
                stops[given_up] = stop
                vcpu.enter_big_real_mode(self._gpa, behind(given_up))


def _joined(exits: list[history.Mmio]) -> tuple[history.Mmio, ...]:
    """Join exits that follow each other without a gap: kernels split them differently."""
    joined: list[history.Mmio] = []
    for each in exits:
        last = joined[-1] if joined else None
        if last and last.write == each.write and last.gpa + len(last.data) == each.gpa:
            joined[-1] = history.Mmio(last.gpa, last.write, last.data + each.data)
        else:
            joined.append(each)
    return tuple(joined)


def _errno_name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error.errno))


def _stopped(leaving: VcpuExit) -> Stopped:
    """Return an exit that ends an access, by its name in lower case with dashes."""
    return Stopped(leaving.name, repr(leaving))
