"""What of a guest's touches is taken for the end of its reach, and what for a wrong answer."""

import errno
from collections.abc import Callable
from typing import cast

import msgspec
import pytest

from kvm_abi.raw import KvmError, WrongAnswerError
from vmm.execution.probe import emulation, reach
from vmm.kvm.exits import InternalError
from vmm.kvm.exitwords import fields_in_words
from vmm.kvm.system import Kvm
from vmm.scenario.features import Features
from vmm.scenario.history import AnyOutcome, Mmio, Stopped, Touched
from vmm.scenario.operations import Scenario, Touch

LIMIT = 1 << 40
HOST_BITS = 36
SHUTDOWN = Stopped("shutdown")
Answer = Callable[[Touch, AnyOutcome], AnyOutcome]


class Usual(Kvm):
    """A kernel whose guests have 40 bits of a gpa."""

    def __init__(self) -> None: ...

    def supported_gpa_bits(self) -> int:
        """Return them."""
        return 40

    def close(self) -> None:
        """Close nothing."""


def plays(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> list[int]:
    """Let touches be answered; return where limits are tried."""
    tried: list[int] = []

    def played(scenario: Scenario, features: Features, _: float) -> list[AnyOutcome]:
        touches = [op for op in scenario.operations if isinstance(op, Touch)]
        tried.append(features.touch_limit)
        return [answer(op, reach._right(op, op.gpa)) for op in touches]

    monkeypatch.setattr(reach, "tried", played)
    monkeypatch.setattr(reach, "physical_address_bits", lambda: HOST_BITS)
    return tried


def truncated(touch: Touch, right: AnyOutcome) -> AnyOutcome:
    if not isinstance(right, Touched) or not right.mmio:
        return right
    exit_ = msgspec.structs.replace(right.mmio[0], gpa=touch.gpa & (1 << HOST_BITS) - 1)
    return msgspec.structs.replace(right, mmio=(exit_,))


@pytest.mark.parametrize("answer", [lambda op, right: SHUTDOWN, truncated])
def test_a_fault_and_an_exit_at_a_truncated_gpa_are_the_end(
    monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    plays(monkeypatch, answer)
    assert not reach.reaches(LIMIT)


def test_a_gpa_without_a_bit_that_the_host_has_is_a_wrong_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plays(monkeypatch, truncated)
    monkeypatch.setattr(reach, "physical_address_bits", lambda: HOST_BITS + 1)
    with pytest.raises(WrongAnswerError, match="MMIO read 0xffff00000"):
        reach.reaches(LIMIT)


def test_the_right_touches_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plays(monkeypatch, lambda op, right: right) == []
    assert reach.reaches(LIMIT)
    assert reach.touch_limit(Usual(), (LIMIT >> 12) - 1) == LIMIT


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Stopped("io", "Io(2)"), "the vCPU stops: io"),
        (Stopped("internal-error"), "the vCPU stops: internal-error"),
        (Stopped("EFAULT"), "the vCPU stops: EFAULT"),
        (Touched(5), "0x5, no exit; vCPU 0 reads 4 bytes at gpa 0x"),
        (Touched(0xFFFFFFFF, (Mmio(0x1000, False, b"\xff" * 4),)), "MMIO read 0x1000"),
        (Touched(0xFFFFFFFF, (Mmio(LIMIT - 4, False, b"\xff" * 4),)), "MMIO read 0xfffffffffc"),
    ],
)
@pytest.mark.parametrize("is_slot", [True, False])
def test_anything_else_is_a_wrong_answer(
    wrong: Stopped | Touched, said: str, is_slot: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays(monkeypatch, lambda op, right: wrong if is_slot == bool(op.gpa % 4096) else right)
    with pytest.raises(WrongAnswerError) as caught:
        reach.reaches(LIMIT)
    assert said in caught.value.answer


def test_a_kernel_without_memory_is_not_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    plays(monkeypatch, lambda op, right: Stopped("ENOMEM"))
    with pytest.raises(KvmError) as caught:
        reach.reaches(LIMIT)
    assert caught.value.errno == errno.ENOMEM


def test_a_limit_that_is_not_reached_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reserved = LIMIT - (12 << 30)
    tried = plays(monkeypatch, lambda op, right: SHUTDOWN if op.gpa > reserved else right)
    assert reach.touch_limit(Usual(), (LIMIT >> 12) - 1) == reserved
    assert tried == [LIMIT, LIMIT, reserved]


def test_a_fault_that_does_not_come_again_is_a_wrong_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = plays(monkeypatch, lambda op, right: SHUTDOWN if len(tried) == 1 else right)
    with pytest.raises(WrongAnswerError, match="but when it is tried again"):
        reach.touch_limit(Usual(), (LIMIT >> 12) - 1)


def test_a_guest_that_reaches_nothing_beyond_4_gib_is_a_wrong_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plays(monkeypatch, lambda op, right: SHUTDOWN)
    with pytest.raises(WrongAnswerError, match="which every processor reaches"):
        reach.touch_limit(Usual(), (LIMIT >> 12) - 1)


def emulation_failed(instruction: bytes, suberror: int = 1) -> Stopped:
    error = InternalError(suberror, (1, 2), instruction)
    return Stopped(error.name, fields_in_words(error))


@pytest.mark.parametrize(
    "outcome",
    [SHUTDOWN, emulation_failed(b""), emulation_failed(b"\x0f\x0bkvmgf\xf0\x0f\xc1\x1f")],
)
def test_a_prefix_that_is_no_instruction_asks_for_nothing(
    outcome: Stopped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulation, "tried", lambda *_: [cast(AnyOutcome, outcome)])
    assert not emulation._tries(1)


@pytest.mark.parametrize(
    "outcome",
    [
        Stopped("io"),
        emulation_failed(b"gf\xf0\x0f\xc1\x1f"),
        emulation_failed(b"\x0f\x0b"),
        emulation_failed(b"", suberror=3),
    ],
)
def test_emulation_on_request_that_fails_otherwise_is_a_wrong_answer(
    outcome: Stopped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulation, "tried", lambda *_: [cast(AnyOutcome, outcome)])
    with pytest.raises(WrongAnswerError, match="executes lock xadd"):
        emulation._tries(1)
