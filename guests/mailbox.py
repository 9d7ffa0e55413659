"""The mailboxes of touch and sweep: records written for the guest, and read back.

``view`` is always the whole slot of the guest, ``GUEST_SLOT_SIZE`` writable bytes.  A fuzzer
spends much time here, so the records are plain tuples and the loops are short.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final

from guests._image import ffi, lib
from guests.image import ACCESSES, SWEEPS, WIDTHS, WRITES, Access

MAX_TOUCHES: Final[int] = lib.GUEST_MAX_TOUCHES
MAX_SWEEPS: Final[int] = lib.GUEST_MAX_SWEEPS
SWEEP_BUFFER_SIZE_BYTES: Final[int] = lib.GUEST_SWEEP_BUFFER_SIZE

_GPA_END: Final = 1 << 32
_WIDEST_BYTES: Final = 4

_TOUCHES: Final[int] = lib.GUEST_TOUCHES
_TOUCH: Final = Struct("<IIQ")  # struct guest_touch
_TOUCH_BYTES: Final = _TOUCH.size
_TOUCH_RESULTS: Final[int] = lib.GUEST_TOUCH_RESULTS
_TOUCH_RESULT_BYTES: Final = 4
_RESULT_SHIFT: Final = 48  # The offset of the result ends the tail.
_LONG_RESULT_SHIFT: Final[int] = 8 * lib.GUEST_LONG_RESULT_BYTE

_SWEEPS: Final[int] = lib.GUEST_SWEEPS
_SWEEP: Final = Struct("<IIIIIHH")  # struct guest_sweep
SWEEP_BUFFER_OFFSET: Final[int] = lib.GUEST_SWEEP_BUFFER

_SWEEP_END: Final[int] = lib.guest_labels.sweep_end


PlainTouch = tuple[int, Access, int]
"""One access: (gpa, code, value).  A write stores the low bytes of the value."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """``count`` accesses, one element after the other, from ``gpa`` upward.

    A write stores ``value`` in each element.  A read copies them to ``buffer_offset`` of the
    sweep buffer.
    """

    gpa: int
    code: Access
    count: int
    value: int = 0
    buffer_offset: int = 0


@dataclass(frozen=True, slots=True)
class _Templates:
    """The records of one mode: (head, tail, mask of the value in the tail) for each access."""

    records: dict[Access, tuple[int, int, int]]
    end: bytes
    result_shift: int


def _templates(source: Any, result_shift: int) -> _Templates:
    records = {}
    for (_, width), code in ACCESSES.items():
        template = source[code]
        value_bytes = width if code in WRITES else 0
        records[code] = (template.head, template.tail, (1 << 8 * value_bytes) - 1)
    return _Templates(records, bytes(ffi.buffer(source + lib.GUEST_TOUCH_END)), result_shift)


_REAL: Final = _templates(lib.guest_touch_templates, _RESULT_SHIFT)
_LONG: Final = _templates(lib.guest_long_touch_templates, _LONG_RESULT_SHIFT)


def encode_long_touches(view: memoryview, touches: Sequence[PlainTouch]) -> None:
    """Fill the mailbox of touch for 64-bit mode: each gpa is a virtual address below 2 GiB.

    Raises what ``encode_touches`` does.
    """
    encode_touches(view, touches, _LONG)


def encode_touches(
    view: memoryview, touches: Sequence[PlainTouch], templates: _Templates = _REAL
) -> None:
    """Fill the mailbox of touch.

    Raises ValueError for more than ``MAX_TOUCHES`` or one that reaches beyond 4 GiB, and
    struct.error for a gpa that is negative.
    """
    if len(touches) > MAX_TOUCHES:
        raise ValueError(f"{len(touches)} touches, and the mailbox holds {MAX_TOUCHES}")
    pack_into = _TOUCH.pack_into
    size_bytes = _TOUCH.size
    records = templates.records
    result_shift = templates.result_shift
    offset = _TOUCHES
    result = _TOUCH_RESULTS
    for gpa, code, value in touches:
        if gpa > _GPA_END - _WIDEST_BYTES:
            _check_end(gpa, WIDTHS[code])
        head, tail, mask = records[code]
        operand = value & mask if mask else result << result_shift
        pack_into(view, offset, head, gpa, tail | operand)
        offset += size_bytes
        result += _TOUCH_RESULT_BYTES
    view[offset : offset + size_bytes] = templates.end
    view[_TOUCH_RESULTS:result] = bytes(result - _TOUCH_RESULTS)


def decode_touches(view: memoryview, count: int) -> list[int]:
    """Return what the first ``count`` touches read, zero extended.

    It is 0 for a write, and for a read that was not finished.  Raises ValueError if count
    exceeds ``MAX_TOUCHES``.
    """
    if not 0 <= count <= MAX_TOUCHES:
        raise ValueError(f"{count} records, and the mailbox holds {MAX_TOUCHES}")
    return view[_TOUCH_RESULTS : _TOUCH_RESULTS + 4 * count].cast("I").tolist()


def touch_at(rip: int) -> int:
    """Return the index of the current touch, and 0 if none has begun yet.

    ``rip`` is RIP when KVM_RUN returned, whether or not it is already past the access.
    """
    index = (rip - _TOUCHES) // _TOUCH_BYTES
    return index if 0 <= index < MAX_TOUCHES else 0


def touch_offset(index: int) -> int:
    """Return the RIP at which the touch ``index`` begins.

    To skip a touch, continue at the next one; after the last one the batch ends.
    """
    return _TOUCHES + index * _TOUCH.size


def encode_sweeps(view: memoryview, slot_gpa: int, sweeps: Sequence[Sweep]) -> None:
    """Fill the mailbox of sweep; ``slot_gpa`` is the gpa of the guest's slot.

    Raises ValueError for more than ``MAX_SWEEPS``, one that reaches beyond 4 GiB, or a read
    that leaves the buffer, and struct.error for a field that is not a 32-bit number.
    """
    if len(sweeps) > MAX_SWEEPS:
        raise ValueError(f"{len(sweeps)} sweeps, and the mailbox holds {MAX_SWEEPS}")
    offset = _SWEEPS
    for sweep in sweeps:
        size_bytes = sweep.count * WIDTHS[sweep.code]
        _check_end(sweep.gpa, size_bytes)
        destination, source = sweep.gpa, 0
        if sweep.code not in WRITES:
            if not 0 <= sweep.buffer_offset <= SWEEP_BUFFER_SIZE_BYTES - size_bytes:
                raise ValueError(f"{sweep} leaves the buffer")
            destination = slot_gpa + SWEEP_BUFFER_OFFSET + sweep.buffer_offset
            source = sweep.gpa
        fields = (destination, source, sweep.count, sweep.value, sweep.count, SWEEPS[sweep.code], 0)
        _SWEEP.pack_into(view, offset, *fields)
        offset += _SWEEP.size
    _SWEEP.pack_into(view, offset, 0, 0, 0, 0, 0, _SWEEP_END, 0)


def sweep_buffer(view: memoryview) -> memoryview:
    """Return the part of the slot that reads of sweep are copied to."""
    return view[SWEEP_BUFFER_OFFSET : SWEEP_BUFFER_OFFSET + SWEEP_BUFFER_SIZE_BYTES]


def _check_end(gpa: int, size_bytes: int) -> None:
    # Beyond the segments' limit the guest would fault, and it has no handler.
    if gpa + size_bytes > _GPA_END:
        raise ValueError(f"{size_bytes} bytes at {gpa:#x} reach beyond 4 GiB")
