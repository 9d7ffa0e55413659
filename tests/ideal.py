"""The ideal kernel that tests run on without /dev/kvm; it has nearly all features."""

import msgspec

from vmm.scenario.features import Features
from vmm.scenario.history import History
from vmm.scenario.operations import Scenario
from vmm.verdict import ideal

FEATURES = msgspec.structs.replace(
    ideal.EVERYTHING, address_spaces=1, smm=False, nr_memslots=Features().nr_memslots
)


def ideal_history(scenario: Scenario, features: Features = FEATURES) -> History:
    """Return the history of a scenario on an ideal kernel."""
    return ideal.IdealKernel(scenario, features).history()
