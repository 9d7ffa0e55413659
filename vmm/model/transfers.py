"""The outcomes of what leads a guest's code elsewhere: interrupts, iret and far calls."""

from functools import partial

from vmm.model.allowed import Allowed
from vmm.model.frames import call_frame, interrupt_frame, pushes
from vmm.model.guestmemory import Data, GuestMemory
from vmm.model.instructions import NOT_EMULATED
from vmm.model.pagetables import Walk, is_settled
from vmm.model.rule import documented, source
from vmm.scenario.content import STUB_LENGTH, stub_identity
from vmm.scenario.history import Stopped, Touched
from vmm.scenario.operations import Start, Touch
from vmm.scenario.programs import (
    CODE_DESCRIPTOR,
    CODE_SELECTOR,
    ENTRY_BYTES,
    FAR_CALL,
    FAR_CALL_BYTES,
    FLAT_CODE_DESCRIPTOR,
    LONG_FRAME_BYTES,
    LONG_GATE_BYTES,
    POINTER_BYTES,
    REAL_FRAME_BYTES,
    REAL_GATE_BYTES,
    VECTOR,
    far_pointer,
    handler_of,
    return_frame,
)

INTERRUPT_TABLE = documented(
    "interrupt-table",
    "an interrupt goes where its table says, as the table's slot shows it now; what it pushes is "
    "written like any other data",
    "api.rst 4.35; Intel SDM vol. 3, 6.12, 20.1.4; emulate_int_real",
)

INTERRUPT_OUTSIDE = source(
    "interrupt-outside",
    "each word that an interrupt pushes outside memory exits; an interrupt that cannot be "
    "delivered, without its table or in 64-bit mode, is KVM_EXIT_INTERNAL_ERROR",
    "api.rst 5, KVM_EXIT_MMIO, KVM_EXIT_INTERNAL_ERROR; emulate_int_real; "
    "KVM_INTERNAL_ERROR_DELIVERY_EV",
)

CALL_OUTSIDE = source(
    "call-outside",
    "each word that a far call in real mode pushes outside memory exits: CS, then IP",
    "api.rst 5, KVM_EXIT_MMIO; em_call_far; Intel SDM vol. 2, CALL",
)

_WORD = 4
_STACK_ALIGNMENT = 16

_Outcomes = tuple[Allowed, ...]


class Transfers:
    """Predicts where a guest's code goes on, and applies the effects of that."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._accesses = memory.accesses

    def interrupt(self, op: Start, walks: tuple[Walk, ...]) -> _Outcomes:
        """Return the allowed outcomes of an interrupt.

        They are known if its handler is in memory, or if no memory holds its table. Other
        combinations are not modelled.
        """
        is_long = op.tables is not None
        size = LONG_GATE_BYTES if is_long else REAL_GATE_BYTES
        frame = interrupt_frame(op)
        at = (op.stack & -_STACK_ALIGNMENT if is_long else op.stack) - len(frame)
        assert op.interrupts is not None
        gate = self._memory.at(op, op.interrupts + VECTOR * size, size)
        stack = self._memory.at(op, at, len(frame), write=True)
        descriptor = self._memory.at(op, op.interrupts + CODE_SELECTOR, ENTRY_BYTES)
        if gate is None or stack is None or descriptor is None:
            return ()
        tables = (gate, descriptor) if is_long else (gate,)
        if any(each.is_outside for each in tables) or (is_long and stack.is_outside):
            return self._undelivered((*walks, *(walk for each in tables for walk in each.walks)))
        handler = handler_of(self._accesses.read(gate.pieces))
        is_code = self._accesses.read(descriptor.pieces) == CODE_DESCRIPTOR.to_bytes(8, "little")
        if handler is None or (is_long and not is_code):
            return ()
        found = self._memory.at(op, handler, STUB_LENGTH)
        identity = None if found is None else stub_identity(self._accesses.read(found.pieces))
        if found is None or found.is_outside or identity is None:
            return ()
        used = (gate, descriptor, stack, found) if is_long else (gate, stack, found)
        every = (*walks, *(walk for each in used for walk in each.walks))
        if any(walk.reads_only for walk in every):
            return ()
        effect = partial(self._interrupted, op, every, used, frame, stack)
        if stack.is_outside:
            exits = pushes(stack.pieces[0].gpa, frame)
            pushed = Allowed(Touched(identity, exits), INTERRUPT_OUTSIDE, effect)
            return (pushed, Allowed(Stopped("internal-error"), INTERRUPT_OUTSIDE))
        outcome = Allowed(Touched(identity), INTERRUPT_TABLE, effect)
        if not is_long:
            return (outcome,)
        if not is_settled(every):
            return ()
        return (outcome, Allowed(Stopped("internal-error"), NOT_EMULATED, is_apart=True))

    def iret(self, op: Start, walks: tuple[Walk, ...]) -> _Outcomes:
        """Return the outcomes of an iret whose stack and target are in memory.

        What else there may be on the stack than a plain return to code is not followed.
        """
        is_long = op.tables is not None
        if op.interrupts is None:
            return ()
        size = LONG_FRAME_BYTES if is_long else REAL_FRAME_BYTES
        stack = self._memory.at(op, op.stack, size)
        descriptor = self._memory.at(op, op.interrupts + CODE_SELECTOR, ENTRY_BYTES)
        if stack is None or stack.is_outside or (is_long and _is_outside(descriptor)):
            return ()
        frame = self._accesses.read(stack.pieces)
        target = int.from_bytes(frame[:8], "little") if is_long else handler_of(frame[:4])
        if target is None or frame != return_frame(target, is_long=is_long):
            return ()
        used: tuple[Data, ...] = (stack,)
        if is_long:
            assert descriptor is not None
            held = self._accesses.read(descriptor.pieces)
            if held != CODE_DESCRIPTOR.to_bytes(8, "little"):
                return ()
            used = (stack, descriptor)
        reached = self._reached(op, target, walks, used)
        if reached is None:
            return ()
        identity, every, used = reached
        effect = partial(self._read_all, op, every, used)
        outcome = Allowed(Touched(identity), INTERRUPT_TABLE, effect)
        if not is_long:
            return (outcome,)
        if not is_settled(every):
            return ()
        return (outcome, Allowed(Stopped("internal-error"), NOT_EMULATED))

    def far_call(self, op: Start, held: bytes) -> _Outcomes:
        """Return the outcomes of a far call whose target is in memory."""
        size = len(call_frame(op))
        target = handler_of(held[len(FAR_CALL) : FAR_CALL_BYTES])
        stack = self._memory.at(op, op.stack - size, size, write=True)
        if target is None or stack is None:
            return ()
        return self._called(op, target, (), (stack,), stack)

    def long_far_call(self, op: Start, walks: tuple[Walk, ...]) -> _Outcomes:
        """Return the outcomes of a far call through memory; its descriptor may cross pages."""
        assert op.interrupts is not None
        size = len(call_frame(op))
        pointer = self._memory.at(op, op.data, POINTER_BYTES)
        stack = self._memory.at(op, op.stack - size, size, write=True)
        descriptor = self._memory.descriptor(op, op.interrupts + CODE_SELECTOR)
        if stack is None or any(_is_outside(each) for each in (stack, pointer, descriptor)):
            return ()
        assert pointer is not None
        assert descriptor is not None
        held = self._accesses.read(pointer.pieces)
        target = int.from_bytes(held[:_WORD], "little")
        code = self._accesses.read(descriptor.pieces)
        is_code = code == FLAT_CODE_DESCRIPTOR.to_bytes(ENTRY_BYTES, "little")
        if held != far_pointer(target) or not is_code:
            return ()
        return self._called(op, target, walks, (pointer, descriptor, stack), stack)

    def _called(
        self,
        op: Start,
        target: int,
        walks: tuple[Walk, ...],
        used: tuple[Data, ...],
        stack: Data,
    ) -> _Outcomes:
        """Return what a far call to a target comes to, which pushes to its stack."""
        reached = self._reached(op, target, walks, used)
        if reached is None:
            return ()
        frame = call_frame(op)
        identity, every, used = reached
        effect = partial(self._interrupted, op, every, used, frame, stack)
        if stack.is_outside:
            exits = pushes(stack.pieces[0].gpa, frame)
            return (Allowed(Touched(identity, exits), CALL_OUTSIDE, effect),)
        return (Allowed(Touched(identity), INTERRUPT_TABLE, effect),)

    def _reached(
        self, op: Start, target: int, walks: tuple[Walk, ...], used: tuple[Data, ...]
    ) -> tuple[int, tuple[Walk, ...], tuple[Data, ...]] | None:
        """Return the identity of the code at a target, all walks, and all that is used."""
        found = self._memory.at(op, target, STUB_LENGTH)
        if found is None or found.is_outside:
            return None
        identity = stub_identity(self._accesses.read(found.pieces))
        every = (*walks, *(walk for each in (*used, found) for walk in each.walks))
        if identity is None or any(walk.reads_only for walk in every):
            return None
        return identity, every, (*used, found)

    def _read_all(self, op: Start, walks: tuple[Walk, ...], used: tuple[Data, ...]) -> None:
        self._memory.tables.adopt(op.vcpu, walks, sets_bits=True)
        for each in used:
            self._accesses.was_read(op.vcpu, each.pieces)

    def _undelivered(self, walks: tuple[Walk, ...]) -> _Outcomes:
        """Return how an interrupt stops the vCPU; what it has pushed by then is unknown."""
        if not is_settled(walks):
            return ()
        return (Allowed(Stopped("internal-error"), INTERRUPT_OUTSIDE, is_apart=True),)

    def _interrupted(
        self,
        op: Start,
        walks: tuple[Walk, ...],
        used: tuple[Data, ...],
        frame: bytes,
        stack: Data,
    ) -> None:
        self._memory.tables.adopt(op.vcpu, walks, sets_bits=True)
        for each in used:
            if each is not stack:
                self._accesses.was_read(op.vcpu, each.pieces)
        top = Touch(stack.pieces[0].gpa, "write", 2, vcpu=op.vcpu)
        self._accesses.written(top, stack.pieces, frame)


def _is_outside(data: Data | None) -> bool:
    return data is None or data.is_outside
