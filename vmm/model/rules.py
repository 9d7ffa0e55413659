"""All rules: each stands beside the check that uses it, as a `Rule` in that module."""

from vmm.model import (
    accesses,
    allowed,
    apicpage,
    attributes,
    backing,
    dirty,
    internal,
    ioapic,
    memfds,
    model,
    prefault,
    regions,
    rings,
)
from vmm.model.races import judge as races, rings as race_rings
from vmm.model.rule import Rule

_MODULES = (
    *(regions, memfds, backing, accesses, apicpage, model, dirty, rings, races, race_rings),
    *(internal, ioapic, prefault, attributes, allowed),
)


def all_rules() -> tuple[Rule, ...]:
    """Return every rule once, by subject, and as its module has them."""
    found = (each for module in _MODULES for each in vars(module).values())
    return tuple(dict.fromkeys(each for each in found if isinstance(each, Rule)))
