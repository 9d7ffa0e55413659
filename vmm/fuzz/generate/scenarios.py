"""Random scenarios: ``generate`` is a pure function of a seed and a kernel's features.

Most scenarios mix region calls and looks at memory; some begin with a crowd of slots; some have
another subject besides (``extras.py``); some are mutations of curated scenarios; a few are races
(``races.py``), and in a few no guest has a slot (``bare.py``). Churning slots are left to curated
scenarios, since they need time and quantity. Short scenarios show a difference plainly, long ones
reach states that take many steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from kvm_abi.uapi import DirtyLogManual
from vmm.fuzz.generate import pools
from vmm.fuzz.generate.bare import without_a_guest
from vmm.fuzz.generate.calls import Calls
from vmm.fuzz.generate.dice import Dice
from vmm.fuzz.generate.extras import Extras
from vmm.fuzz.generate.instructions import certain
from vmm.fuzz.generate.looks import Looks
from vmm.fuzz.generate.mutate import mutate
from vmm.fuzz.generate.private import with_private_memory
from vmm.fuzz.generate.races import race_scenario
from vmm.fuzz.generate.world import World
from vmm.scenario.demand import USUAL, demand
from vmm.scenario.features import Features
from vmm.scenario.operations import (
    SMM,
    AnyOperation,
    CloseVm,
    EnableCap,
    Inspect,
    NewVm,
    Scenario,
)

_MUTANTS = 0.15
_ODD = 0x5DEECE66D
_ODD_SHARE = 0.12
_RACES = 0.01
"""A race takes about as long as fifty other scenarios."""
_PRIVATE = 0.6
"""The share of private-memory VMs, of those that bind guest_memfds, if the kernel has both."""
_MORE_PRIVATE = 0.05
_LARGE = 0.03
_BARE = 0.03
_MORE_DEVICES, _MORE_HIGH_DEVICES = 0.1, 0.3
"""Devices are looked at more often than other newer subjects: only there are they looked at."""
_VAPIC_SHARE = 0.4
"""What else KVM writes to guest memory by itself takes the place of clocks so often."""

_CROWDS = 0.05
_LENGTHS = ((3, 12), (12, 60), (60, 200), (150, 400))
"""How many region calls a scenario has: from, to."""
_CROWD_SIZES = (20, 64, 65, 70, 130, 300, 508, 509, 510, 520)
_CROWD_GFN = 0x2000


def generate(seed: int, features: Features, bases: Sequence[Scenario] = ()) -> Scenario:
    """Return the scenario of a seed; it is valid, and the same on every machine.

    Some results are mutations of one of ``bases``.
    """
    dice = Dice(seed)
    name = f"fuzz-{seed:016x}"
    if bases and dice.chance(_MUTANTS):
        return certain(mutate(dice, dice.pick(bases), features, name), features)
    odd = Dice(seed ^ _ODD)
    if odd.chance(_RACES):
        return race_scenario(odd, features, name)
    drawn = _with_odd_subject(pools.draw(dice, features), features, odd)
    if features.sw_protected and not drawn.subjects and odd.chance(_MORE_PRIVATE):
        drawn = replace(drawn, subjects=frozenset(("memfds",)))
    made = None
    if not drawn.subjects and odd.chance(_LARGE):
        large = _composed(dice, features, pools.with_large_slots(odd, drawn), name)
        made = None if demand(large).problem(USUAL) else large
    if made is None:
        made = _composed(dice, features, drawn, name)
    if features.sw_protected and "memfds" in drawn.subjects and odd.chance(_PRIVATE):
        made = with_private_memory(odd, made)
    elif not drawn.subjects and odd.chance(_BARE):
        made = without_a_guest(made)
    return certain(made, features)


def _composed(dice: Dice, features: Features, drawn: pools.Pools, name: str) -> Scenario:
    composer = _Composer(dice, features, drawn)
    return Scenario(
        name=name,
        operations=tuple(composer.operations()),
        mappings=drawn.mappings,
        why="A random scenario.",
        source="vmm fuzz",
        tags=("fuzz",),
        survey="none",
        vcpus=drawn.vcpus,
        needs=_needs(drawn),
        guest=pools.GUEST,
    )


def _with_odd_subject(drawn: pools.Pools, features: Features, dice: Dice) -> pools.Pools:
    """Give some scenarios one of the newer subjects, drawn with separate dice.

    So all other scenarios of a seed stay as they were.
    """
    subjects = pools.odd_subjects(features)
    if drawn.subjects or not subjects:
        return drawn
    if dice.chance(_ODD_SHARE):
        subject = dice.pick(subjects)
        if subject == "clocks" and features.irqchip and dice.chance(_VAPIC_SHARE):
            subject = "vapics"
        return pools.with_odd_subject(drawn, subject, features)
    more = _MORE_DEVICES if drawn.reach == pools.REACH else _MORE_HIGH_DEVICES
    if "devices" in subjects and dice.chance(more):
        return pools.with_odd_subject(drawn, "devices", features)
    return drawn


def _needs(drawn: pools.Pools) -> tuple[str, ...]:
    needs = {
        "smm": SMM in drawn.spaces,
        "dirty_ring_bytes": "rings" in drawn.subjects,
        "guest_memfd": "memfds" in drawn.subjects,
    }
    return tuple(need for need, is_needed in needs.items() if is_needed)


class _Composer:
    """Puts calls and looks together."""

    def __init__(self, dice: Dice, features: Features, drawn: pools.Pools) -> None:
        self._dice = dice
        self._features = features
        self._manual_log = drawn.manual_log
        self._world = World(features.last_gfn, features.nr_memslots, features.address_spaces)
        self._calls = Calls(dice, features, drawn, self._world)
        self._looks = Looks(dice, drawn, self._world)
        self._extras = Extras(dice, features, drawn, self._world)

    def operations(self) -> Iterator[AnyOperation]:
        """Return all operations, and in between what keeps dirty rings from overrunning."""
        return self._with_harvests() if self._extras.has_rings else self._composed()

    def _with_harvests(self) -> Iterator[AnyOperation]:
        for operation in self._composed():
            yield operation
            yield from self._extras.meanwhile(operation)

    def _composed(self) -> Iterator[AnyOperation]:
        dice = self._dice
        yield from self._begin()
        if dice.chance(_CROWDS):
            yield from self._crowd(min(dice.pick(_CROWD_SIZES), self._features.nr_memslots - 8))
        first, last = dice.pick(_LENGTHS)
        look, new_vm = dice.pick((0.5, 0.9, 1.0)), dice.pick((0.0, 0.0, 0.01))
        for number in range(dice.between(first, last)):
            call = self._calls.next()
            yield call
            if dice.chance(look):
                yield from self._looks.after(call)
            yield from self._extras.after()
            if number % 64 == 63:
                yield from self._looks.everywhere()
                yield Inspect()
            if dice.chance(new_vm):
                if dice.chance(0.3):
                    yield CloseVm()
                yield NewVm()
                self._world.clear()
                yield from self._begin()
        yield from self._looks.everywhere()
        yield from self._extras.end()

    def _begin(self) -> Iterator[AnyOperation]:
        yield from self._extras.begin()
        if self._manual_log:
            yield self._by_hand()

    def _by_hand(self) -> EnableCap:
        """Return the choice that reading the dirty log does not clear it."""
        initially_set = self._features.dirty_log_initially_set and self._dice.chance(0.5)
        argument = DirtyLogManual.MANUAL_PROTECT_ENABLE | (
            DirtyLogManual.INITIALLY_SET if initially_set else 0
        )
        return EnableCap("MANUAL_DIRTY_LOG_PROTECT2", argument)

    def _crowd(self, size: int) -> Iterator[AnyOperation]:
        """Yield creations of many one-page slots, with ascending ids and gfns."""
        stride = self._dice.pick((1, 2))
        first = self._dice.pick((1000, 600, self._features.nr_memslots - size - 1))
        first = min(first, max(self._features.nr_memslots - size - 1, 0))
        for number in range(size):
            slot = first + number
            if pools.is_free(slot):
                yield self._calls.create_at(slot, _CROWD_GFN + number * stride)
