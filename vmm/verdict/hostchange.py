"""Which change of host memory a difference may come from: the last one before it."""

from vmm.scenario.operations import (
    ChangeHostMemory,
    PunchGuestMemfd,
    Scenario,
    SetUserMemoryRegion,
)
from vmm.verdict.judge import Difference

HOST_CHANGES = (ChangeHostMemory, PunchGuestMemfd)

_OF_HOST_MEMORY = ("host-", "hva-")
"""How the names of rules begin that say what a slot shows of host memory."""


def last_host_change(scenario: Scenario, found: Difference) -> int | None:
    """Return the index of the last change of host memory up to a difference.

    One that a later region call has covered up is none, unless a rule on host memory is broken.
    """
    covers = not any(each.rule.startswith(_OF_HOST_MEMORY) for each in found.expected)
    for index in reversed(range(len(scenario.operations[: found.origin + 1]))):
        operation = scenario.operations[index]
        if isinstance(operation, HOST_CHANGES):
            return index
        if covers and isinstance(operation, SetUserMemoryRegion):
            return None
    return None
