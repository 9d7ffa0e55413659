"""Real traces, damaged at random: where the damage has left a mark, nothing is called a difference.

What leaves none (whole lines that are lost or swapped, a piece whose ends fit) is not in here.
"""

import io
from collections.abc import Callable
from random import Random

import pytest

from tests.traced import TRACES
from vmm.replay.build import Replay
from vmm.replay.judging import judged
from vmm.replay.lines import Numbered
from vmm.replay.reader import read_lines
from vmm.replay.trace import TraceError
from vmm.verdict.judge import Status

SEEDS = 12
NOISE = ("warning: x", "[   12.345678] kvm: vcpu0", "\x1b[31m", "(qemu) ")

Lines = list[str]


def place(dice: Random, lines: Lines) -> int:
    """Return the place of a call on a slot, or of a line beside one."""
    calls = [at for at, line in enumerate(lines) if "MEMORY_REGION" in line or "Slot#" in line]
    return min(len(lines) - 2, max(0, dice.choice(calls) + dice.choice((0, 0, 0, -1, 1))))


def within(dice: Random, line: str) -> int:
    return dice.randrange(1, len(line))


def twice(dice: Random, lines: Lines) -> Lines:
    at = place(dice, lines)
    return lines[: at + 1] + lines[at:]


def joined(dice: Random, lines: Lines) -> Lines:
    at = place(dice, lines)
    return [*lines[:at], lines[at] + lines[at + 1], *lines[at + 2 :]]


def without_end(dice: Random, lines: Lines) -> Lines:
    at = place(dice, lines)
    return [*lines[:at], lines[at][: within(dice, lines[at])], *lines[at + 1 :]]


def without_beginning(dice: Random, lines: Lines) -> Lines:
    at = place(dice, lines)
    return [*lines[:at], lines[at][within(dice, lines[at]) :], *lines[at + 1 :]]


def without_end_and_joined(dice: Random, lines: Lines) -> Lines:
    at = place(dice, lines)
    begun = lines[at][: within(dice, lines[at])]
    return [*lines[:at], begun + lines[at + 1], *lines[at + 2 :]]


def joined_without_beginning(dice: Random, lines: Lines) -> Lines:
    at = place(dice, lines)
    left = lines[at + 1][within(dice, lines[at + 1]) :]
    return [*lines[:at], lines[at] + left, *lines[at + 2 :]]


def zeros(dice: Random, lines: Lines) -> Lines:
    text = "\n".join(lines)
    begin = max(0, len("\n".join(lines[: place(dice, lines)])) - dice.randrange(150))
    size = len(text[begin : begin + dice.choice((10, 50, 200, 512))])
    return (text[:begin] + "\0" * size + text[begin + size :]).split("\n")


def noise(dice: Random, lines: Lines) -> Lines:
    at = place(dice, lines)
    cut = within(dice, lines[at])
    damaged = lines[at][:cut] + dice.choice(NOISE) + dice.choice(("", "\n")) + lines[at][cut:]
    return [*lines[:at], *damaged.split("\n"), *lines[at + 1 :]]


def one_within_another(dice: Random, lines: Lines) -> Lines:
    at = place(dice, lines)
    cut, line = within(dice, lines[at]), lines[at]
    return [*lines[:at], line[:cut] + lines[at + 1] + line[cut:], *lines[at + 2 :]]


def colours(dice: Random, lines: Lines) -> Lines:
    cuts = [within(dice, line) for line in lines]
    return [
        f"\x1b[3{dice.randrange(8)}m{line[:cut]}\x1b[1m{line[cut:]}\x1b[0m"
        for line, cut in zip(lines, cuts, strict=True)
    ]


def carriage_returns(_: Random, lines: Lines) -> Lines:
    return [f"{line}\r" for line in lines]


def wrapped(dice: Random, lines: Lines) -> Lines:
    width = dice.choice((100, 120, 140))
    return [line[at : at + width] for line in lines for at in range(0, len(line), width)]


def interrupted(dice: Random, lines: Lines) -> Lines:
    at = place(dice, lines)
    line, pid = lines[at], lines[at].split()[0]
    end = line.rfind(") ")
    if "ioctl(" not in line or end < 0:
        return lines
    others = ["1 futex(0x7ffd, FUTEX_WAKE_PRIVATE, 1) = 0"] * dice.randrange(3)
    begun = f"{line[:end]} <unfinished ...>"
    return [
        *(*lines[:at], begun, *others, f"{pid} <... ioctl resumed>{line[end:]}"),
        *lines[at + 1 :],
    ]


def without_last_lines(dice: Random, lines: Lines) -> Lines:
    text = "\n".join(lines)
    return text[: dice.randrange(len(text) // 2, len(text))].split("\n")


def without_first_lines(dice: Random, lines: Lines) -> Lines:
    text = "\n".join(lines)
    return text[dice.randrange(1, len(text) // 2) :].split("\n")


HARMLESS = (colours, carriage_returns, interrupted)
KINDS: tuple[Callable[[Random, Lines], Lines], ...] = (
    *(twice, joined, without_end, without_beginning, without_end_and_joined),
    *(joined_without_beginning, zeros, noise, one_within_another, wrapped),
    *(without_last_lines, without_first_lines, *HARMLESS),
)


def statuses(lines: Lines) -> set[Status]:
    stream = io.BufferedReader(io.BytesIO("\n".join(lines).encode() + b"\n"))
    try:
        trace = read_lines(Numbered(stream), "trace")
    except TraceError:
        return {Status.INCONCLUSIVE}
    return {judged(Replay(trace, vm)).verdict.status for vm in trace.vms}


@pytest.mark.parametrize("name", ["qemu-q35-seabios.strace", "qemu-q35-seabios.qemu"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_damaged_trace_raises_no_false_alarm(
    kind: Callable[[Random, Lines], Lines], name: str
) -> None:
    lines = (TRACES / name).read_text().splitlines()
    for seed in range(SEEDS):
        damaged = kind(Random(f"{kind.__name__} {seed}"), lines)
        found = statuses(damaged)
        assert Status.DIFFERS not in found, f"{kind.__name__} {seed}"
        if kind in HARMLESS:
            assert found == {Status.PASSED}, f"{kind.__name__} {seed}"
