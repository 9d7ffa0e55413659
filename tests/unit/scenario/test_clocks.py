"""Clocks in a scenario from a stranger: KVM writes within a page, and never over the guest."""

import pytest

from vmm.scenario.clocks import ClockWrite, fit
from vmm.scenario.operations import Clock, Scenario, SetClockMsr
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate


@pytest.mark.parametrize(
    ("clock", "gpa", "problem"),
    [
        ("steal_time", 0x1FC4, "64 bytes before its page's end"),
        ("wall_clock", 0x1002, "a multiple of 4"),
        ("system_time", 0xFFFF_0000, "the guest's own memory"),
        ("system_time", 1 << 52, "52 bits"),
        ("system_time", -64, "52 bits"),
    ],
)
def test_places_that_are_refused(clock: Clock, gpa: int, problem: str) -> None:
    with pytest.raises(ScenarioError, match=rf"^\$\.operations\[0\]\.gpa: .*{problem}"):
        validate(Scenario("clock", (SetClockMsr(clock, gpa),)))


def test_places_that_are_taken() -> None:
    for gpa in (0, 0x1FE0, (1 << 52) - 32):
        validate(Scenario("clock", (SetClockMsr("system_time", gpa),)))
    with pytest.raises(ScenarioError, match="vcpu"):
        validate(Scenario("clock", (SetClockMsr("system_time", 0, vcpu=1),)))


def test_a_wall_clock_has_less_than_a_second_in_nanoseconds() -> None:
    write = ClockWrite("a", 0, "wall_clock")
    room = (("a", 0, 12),)
    seen = {("a", at): byte for at, byte in enumerate(b"\2\0\0\0" + bytes(7) + b"\x3b")}
    assert fit({}, seen, room, (write,))
    assert not fit({}, {**seen, ("a", 11): 0x3C}, room, (write,))
