"""The kernel that tests run on where there is none: an ideal one that can do nearly everything."""

import msgspec

from vmm.scenario.features import Features
from vmm.scenario.history import History
from vmm.scenario.operations import Scenario
from vmm.verdict import ideal

FEATURES = msgspec.structs.replace(
    ideal.EVERYTHING, address_spaces=1, smm=False, nr_memslots=Features().nr_memslots
)


def ideal_history(scenario: Scenario, features: Features = FEATURES) -> History:
    """Return the history of a scenario on a kernel that keeps every promise."""
    return ideal.IdealKernel(scenario, features).history()
