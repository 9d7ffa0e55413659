"""All rules. Each is a `Rule` in the module that applies it."""

from vmm.model import (
    accesses,
    allowed,
    apicpage,
    attributes,
    backing,
    clocks,
    devices,
    dirty,
    instructions,
    internal,
    ioapic,
    kernelarray,
    kernelslots,
    memfds,
    model,
    pagetables,
    prefault,
    regions,
    rings,
    slotstate,
    starts,
    transfers,
    userend,
    vapics,
)
from vmm.model.races import judge as races, rings as race_rings
from vmm.model.rule import Rule

_MODULES = (
    *(
        regions,
        userend,
        memfds,
        backing,
        accesses,
        instructions,
        pagetables,
        transfers,
        starts,
        apicpage,
        model,
        devices,
        clocks,
        vapics,
        dirty,
        rings,
        races,
        race_rings,
    ),
    *(internal, ioapic, prefault, attributes, allowed, kernelslots, kernelarray, slotstate),
)


def all_rules() -> tuple[Rule, ...]:
    """Return every rule once, by subject, in the order of its module."""
    found = (each for module in _MODULES for each in vars(module).values())
    return tuple(dict.fromkeys(each for each in found if isinstance(each, Rule)))


def rules_of_outcomes() -> tuple[Rule, ...]:
    """Return the rules that decide outcomes: all but those on the kernel's slots (white box)."""
    held = {
        rule
        for module in (kernelslots, kernelarray, slotstate)
        for rule in vars(module).values()
        if isinstance(rule, Rule)
    }
    return tuple(each for each in all_rules() if each not in held)
