"""What judging costs, counted and not timed: calls of Python functions for each event.

A survey has thousands of touches, so that each call is felt. The limits are what it takes today,
and a few more. What a long scenario costs that is compared with known issues is counted, too, in
instructions of Python.
"""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import msgspec
import pytest

from tests.ideal import FEATURES, ideal_history
from vmm.catalogue._build import at
from vmm.scenario.history import History
from vmm.scenario.operations import (
    ATTRIBUTE_PRIVATE,
    PAGE_SIZE_BYTES,
    READONLY,
    AnyOperation,
    AsId,
    CreateIrqchip,
    CreateVcpu,
    Instruction,
    Mapping,
    NewVm,
    PreFaultMemory,
    Scenario,
    SetIdentityMapAddr,
    SetMemoryAttributes,
    SetTssAddr,
    SetUserMemoryRegion,
    Start,
    Sweep,
    Touch,
)
from vmm.scenario.plan import steps
from vmm.scenario.programs import INTERRUPT
from vmm.verdict.judge import Judgement, Status
from vmm.verdict.known.issues import KNOWN

# On a kernel that makes slots for itself each access asks them, too.
_FEATURES = msgspec.structs.replace(
    FEATURES, internal_tss=False, internal_identity=False, internal_apic=False
)
_GPA = 0x10_0000
_TIMES = 50


def touches(gpa: int, access: str) -> list[Touch]:
    return [
        Touch(gpa + PAGE_SIZE_BYTES * (number % 4), "write" if access == "write" else "read")
        for number in range(_TIMES)
    ]


def calls_of_judging(history: History) -> int:
    """Return how many calls the last `_TIMES` events take before the VM is closed."""
    judgement = Judgement(history.header)
    *first, _, _, _ = history.events
    for event in first[:-_TIMES]:
        assert judgement.admits(event)
    calls = 0

    def count(frame: FrameType, what: str, argument: object) -> None:
        nonlocal calls
        calls += what == "call"

    sys.setprofile(count)
    try:
        for event in first[-_TIMES:]:
            judgement.admits(event)
    finally:
        sys.setprofile(None)
    assert judgement.verdict("").status is Status.PASSED
    return calls


@pytest.mark.parametrize(
    ("gpa", "access", "most"),
    [(_GPA, "read", 20), (_GPA, "write", 24), (_GPA << 1, "read", 19), (_GPA << 1, "write", 19)],
    ids=("reads memory", "writes memory", "reads a hole", "writes a hole"),
)
def test_a_touch_takes_few_calls(gpa: int, access: str, most: int) -> None:
    slot = SetUserMemoryRegion(1, _GPA, 4 * PAGE_SIZE_BYTES, at("a"))
    scenario = Scenario("touches", (slot, *touches(gpa, access)), (Mapping("a", 4),), survey="none")
    history = ideal_history(scenario, _FEATURES)
    assert calls_of_judging(history) / _TIMES <= most


@pytest.mark.parametrize("slots", [10, 2000])
def test_a_region_call_takes_as_many_calls_in_a_large_table(slots: int) -> None:
    made = [
        SetUserMemoryRegion(number, _GPA + number * PAGE_SIZE_BYTES, PAGE_SIZE_BYTES, at("a"))
        for number in range(slots)
        if number != 400
    ]
    again = [made[0] if number % 2 else SetUserMemoryRegion(0) for number in range(_TIMES)]
    scenario = Scenario("table", (*made, *again), (Mapping("a", 1),), survey="none")
    assert calls_of_judging(ideal_history(scenario, _FEATURES)) / _TIMES <= 36


_SHORT = 25
_LONGER = 4
_RAISES = int.from_bytes(INTERRUPT[:2], "little")
_PREFAULT = PreFaultMemory(_GPA, PAGE_SIZE_BYTES)


def slot(number: int, flags: int = 0) -> SetUserMemoryRegion:
    return SetUserMemoryRegion(
        number,
        _GPA + (number & 0xFFFF) * PAGE_SIZE_BYTES,
        PAGE_SIZE_BYTES,
        at("a") if not flags else 0x1000,
        flags=flags,
    )


def slots(
    times: int, *first: AnyOperation, flags: int = 0, as_id: int = 0
) -> tuple[AnyOperation, ...]:
    return *first, *(slot(as_id << 16 | number, flags) for number in range(times))


def far(times: int, as_id: AsId = 0) -> list[Touch]:
    """Return touches of as many pages, all after the last slot."""
    pages = range(_SHORT * _LONGER, _SHORT * _LONGER + times)
    return [Touch(_GPA + page * PAGE_SIZE_BYTES, "write", as_id=as_id) for page in pages]


_LOW = SetUserMemoryRegion(0, 0, 512 * PAGE_SIZE_BYTES, at("a"))
_START = Start(_GPA, value=_RAISES, interrupts=0, stack=0x2000)
_KINDS: dict[str, Callable[[int], tuple[AnyOperation, ...]]] = {
    "starts": lambda times: (_LOW, *[_START] * times),
    "starts that raise nothing": lambda times: (*[Start(_GPA, interrupts=0)] * times,),
    "sgdt": lambda times: (_LOW, *[Instruction("sgdt", _GPA)] * times),
    "pusha": lambda times: (*slots(times), *[Instruction("pusha", _GPA + 0x80)] * times),
    "popa": lambda times: (*slots(times), *[Instruction("popa", _GPA + 0x80)] * times),
    "rep ins": lambda times: (_LOW, *[Instruction("rep-ins", _GPA, down=True)] * times),
    "touches": lambda times: (*slots(times, flags=READONLY), *far(times)),
    "touches in turn": lambda times: (*far(times), *slots(times, flags=READONLY), *far(times)),
    "sweeps": lambda times: (
        *slots(times, flags=READONLY),
        *[Sweep(far(1)[0].gpa, 4096, "write")] * times,
    ),
    "touches in SMM": lambda times: (*slots(times, as_id=1), *far(times, as_id=1)),
    "touches of private memory": lambda times: (
        *slots(times, SetMemoryAttributes(_GPA, PAGE_SIZE_BYTES, ATTRIBUTE_PRIVATE)),
        *[Touch(_GPA)] * times,
    ),
    "pre-faults": lambda times: (*[_PREFAULT] * times,),
    "TSS addresses": lambda times: (*slots(times), *[SetTssAddr(0)] * times),
    "irqchips": lambda times: (*slots(times), *[CreateIrqchip()] * times),
    "VMs": lambda times: (SetIdentityMapAddr(0), CreateVcpu(0), NewVm()) * times,
}


def instructions_of(ask: Callable[[Scenario], bool], scenario: Scenario) -> int:
    """Return how many instructions of Python an answer takes, which is to be no."""
    count = 0

    def trace(frame: FrameType, what: str, argument: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += what == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        answer = ask(scenario)
    finally:
        sys.settrace(before)
    assert not answer
    return count


@pytest.mark.parametrize("kind", _KINDS)
def test_known_issues_take_a_time_in_proportion_to_a_scenario(kind: str) -> None:
    def scenario(times: int) -> Scenario:
        operations = _KINDS[kind](times)
        is_private = any(isinstance(op, SetMemoryAttributes) for op in operations)
        needs = ("smm",) if kind == "touches in SMM" else ()
        return Scenario(
            kind,
            operations,
            (Mapping("a", 512),),
            survey="none",
            needs=needs,
            vm_type=1 if is_private else 0,
        )

    short, long = scenario(_SHORT), scenario(_SHORT * _LONGER)
    kinds = frozenset(map(type, long.operations))
    for known in KNOWN:
        if not known.kinds.isdisjoint(kinds):
            few = instructions_of(known.meets, short)
            assert instructions_of(known.meets, long) < few * (_LONGER + 1), known.issue.name


def test_where_guests_live_is_found_once_for_all_vms() -> None:
    scenario = Scenario("vms", (NewVm(), NewVm()), survey="none")
    made = [each.operation for each in steps(scenario, 1 << 20)]
    slots = [op for op in made if isinstance(op, SetUserMemoryRegion)]
    assert len(slots) == 3
    assert all(op is slots[0] for op in slots)
