"""What the threads of a race do, in words."""

from collections.abc import Iterator

from vmm.scenario import words
from vmm.scenario.operations import Race

_MOST_OF_A_THREAD = 24


def threads(race: Race) -> Iterator[str]:
    """Yield what each thread of a race does: a title, and a line for each of its operations."""
    for number, host in enumerate(race.hosts):
        windows = words.counted(host.pause, "window")
        waits = f", with {windows} of each vCPU between" if host.pause else ""
        times = words.counted(host.rounds, "time") if host.rounds else "until the others end"
        yield f"host thread {number}, {times}{waits}:"
        for operation in host.operations[:_MOST_OF_A_THREAD]:
            yield f"- {words.operation(operation)}"
        yield from _left_out(len(host.operations))
    for number, guest in enumerate(race.guests):
        moves = f", on another thread after every {guest.migrates}" if guest.migrates else ""
        yield f"vCPU {number}, up to {words.counted(guest.windows, 'window')}{moves}, in each:"
        for step in guest.program[:_MOST_OF_A_THREAD]:
            yield f"- {words.operation(step).removeprefix(f'vCPU {step.vcpu}').lstrip(': ')}"
        yield from _left_out(len(guest.program))


def _left_out(count: int) -> Iterator[str]:
    if count > _MOST_OF_A_THREAD:
        yield f"- and {count - _MOST_OF_A_THREAD} more"
