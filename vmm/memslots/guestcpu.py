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
        view = self._view
        mailbox.encode_touches(
            view,
            [mailbox.Touch(t.gpa, _TOUCH_CODES[t.access, t.width], t.value) for t in touches],
        )
        exits, stops = self._run(
            image.TOUCH_ENTRY, image.TOUCH_SKIP, lambda: mailbox.touch_index(view)
        )
        outcomes: list[AnyOutcome] = []
        for index, (value, _status) in enumerate(mailbox.decode_touches(view, len(touches))):
            if index in stops:
                outcomes.append(stops[index])
                continue
            read = value if touches[index].access == "read" else 0
            outcomes.append(Touched(read, _joined(exits[index]) if index in exits else ()))
        return outcomes

    def sweep(self, op: Sweep) -> AnyOutcome:
        """Let the guest execute one string instruction, and return what came of it."""
        view = self._view
        code = _SWEEP_CODES[op.access, op.width]
        mailbox.encode_sweeps(view, self._gpa, [mailbox.Sweep(op.gpa, code, op.count, op.value)])
        exits, stops = self._run(
            image.SWEEP_ENTRY, image.SWEEP_SKIP, lambda: mailbox.sweep_index(view)
        )
        if 0 in stops:
            return stops[0]
        runs: tuple[tuple[int, int], ...] = ()
        if op.access == "read":
            data = bytes(mailbox.sweep_buffer(view)[: op.count * op.width])
            runs = run_lengths(data, op.width)
        return Swept(runs, _joined(exits.get(0, [])))

    def execute(self, op: Execute) -> AnyOutcome:
        """Let the vCPU run the code that the page at ``op.gpa`` carries."""
        self._enter(op.gpa, STUB_OFFSET)
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
        self, entry: int, skip: int, index: Callable[[], int]
    ) -> tuple[dict[int, list[history.Mmio]], dict[int, Stopped]]:
        """Run one guest to its end; return exits and stops by the index of their record."""
        vcpu = self._vcpu
        exits: dict[int, list[history.Mmio]] = {}
        stops: dict[int, Stopped] = {}
        if self._ready_at != entry:
            self._enter(self._gpa, entry)
        while True:
            try:
                leaving = vcpu.run()
            except KvmError as error:
                stops[index()] = Stopped(_errno_name(error))
                self._enter(self._gpa, skip)
                continue
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
                    stops[index()] = _stopped(leaving)
                    self._enter(self._gpa, skip)

    def _enter(self, base: int, rip: int) -> None:
        self._vcpu.enter_big_real_mode(base, rip)


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
