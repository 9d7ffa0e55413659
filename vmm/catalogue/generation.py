"""The memslot generation, whose low bits MMIO SPTEs hold: changes until they wrap.

A cached MMIO SPTE is valid as long as its bits equal those of the current generation. After a
power of two of changes they may be equal again, but an old SPTE must not become valid.
"""

from collections.abc import Iterator

from vmm.catalogue._area import Area
from vmm.catalogue._build import API_MMIO, WITHOUT_ZAP_ALL, Slot, at, read, write
from vmm.scenario.features import Features
from vmm.scenario.operations import LOG_DIRTY_PAGES, AnyOperation, Scenario

_TOGGLED = Slot(1, 0x100, at("a"))
_COMES = Slot(2, 0x200, at("b"))
_POWERS = range(1, 10)
_ALL_BITS = 19
"""The number of bits of the generation that an MMIO SPTE of Linux 6.12 holds."""


def _until_it_comes_round(changes: int) -> Iterator[AnyOperation]:
    """Read a hole, change flags, and create a slot there with the last of ``changes``."""
    yield read(_COMES.gfn)
    flags = (LOG_DIRTY_PAGES, 0)
    yield from (_TOGGLED.change(flags[number % 2]) for number in range(changes - 1))
    yield _COMES.create()
    yield read(_COMES.gfn)
    yield write(_COMES.gfn, 0xC0DE0000 + changes)
    yield _COMES.delete()
    if not changes % 2:
        yield _TOGGLED.change(0)


def _all_bits(features: Features) -> Iterator[AnyOperation]:
    """Read a hole, move a slot to and fro, and create a slot in the hole.

    A move is two changes. Each change adds the number of address spaces to the generation; if
    there is only one, this is half of the way round.
    """
    changes = (1 << _ALL_BITS) // max(features.address_spaces, 2)
    yield read(_COMES.gfn)
    places = (0x110, _TOGGLED.gfn)
    yield from (_TOGGLED.move(places[number % 2]) for number in range(changes // 2 - 1))
    yield _TOGGLED.move(places[0], LOG_DIRTY_PAGES)
    yield _COMES.create()
    yield read(_COMES.gfn)
    yield write(_COMES.gfn, 0xC0DE0000)


_comes_round = Area(
    tags=("generation", "mmio"),
    source=f"{API_MMIO}; check_mmio_spte, kvm_mmu_invalidate_mmio_sptes",
    survey="none",
)


def scenarios(features: Features) -> tuple[Scenario, ...]:
    """Return the scenarios of a kernel, except the slow ones."""
    return (
        _comes_round(
            "generation-after-powers-of-two",
            "After each power of two of memslot changes a new slot is seen where MMIO was cached.",
            _TOGGLED.create(),
            *(each for power in _POWERS for each in _until_it_comes_round(1 << power)),
        ),
    )


def slow_scenarios(features: Features) -> tuple[Scenario, ...]:
    """Return those that take a while even to construct."""
    return (
        _comes_round(
            "generation-comes-round",
            "When the memslot generation wraps in the bits that are cached, no MMIO cached "
            "before is used.",
            WITHOUT_ZAP_ALL,
            _TOGGLED.create(),
            *_all_bits(features),
            tags=("slow",),
            needs=("slot_zap_all_quirk",),
        ),
    )
