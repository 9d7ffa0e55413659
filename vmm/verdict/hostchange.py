"""Which change of host memory a difference may come from: the last one before it."""

from vmm.scenario.operations import ChangeHostMemory, Scenario, SetUserMemoryRegion
from vmm.verdict.judge import Difference

_OF_HOST_MEMORY = ("host-", "hva-")
"""How the names of rules begin that say what a slot shows of host memory."""


def last_host_change(scenario: Scenario, found: Difference) -> int | None:
    """Return the index of the last change of host memory up to a difference.

    One that a later region call has covered up is none, unless a rule on host memory is broken.
    """
    covers = not any(each.rule.startswith(_OF_HOST_MEMORY) for each in found.expected)
    for index in reversed(range(len(scenario.operations[: found.origin + 1]))):
        match scenario.operations[index]:
            case ChangeHostMemory():
                return index
            case SetUserMemoryRegion() if covers:
                return None
            case _:
                pass
    return None
