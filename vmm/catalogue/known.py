"""Scenarios that a backend is known to fail; vmm/verdict/known/issues.py says which, and why."""

from vmm.catalogue._build import Slot, at
from vmm.catalogue._dirty import HARVEST, RESET, ring_scenario, writes
from vmm.scenario.features import Features
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    RING_ENTRY_BYTES,
    EnableCap,
    Mapping,
    Scenario,
    Sweep,
)

_BEYOND = 44
_ROUNDS = 10
"""Repetitions: an interrupt at the right moment prevents an overrun, but not every time."""

_SOURCE = "kvm_dirty_ring_check_request; kvm_dirty_ring_push"


def scenarios(features: Features) -> tuple[Scenario, ...]:
    """Return the scenarios that overrun a dirty ring, unless the kernel stops the vCPU in time."""
    enable = EnableCap("DIRTY_LOG_RING", features.dirty_ring_bytes or PAGE_SIZE_BYTES)
    entries = enable.argument // RING_ENTRY_BYTES
    large = Slot(1, 0x1000, at("memory"), entries + entries // 4, LOG_DIRTY_PAGES)
    small = Slot(1, 0x1000, at("memory"), 8, LOG_DIRTY_PAGES)
    # Fewer than twice as many elements as entries: a ring overrun by more stays full for ever.
    sweep = Sweep((small.gfn + 6) * PAGE_SIZE_BYTES, entries + _BEYOND, "write", 1, 0x5E)
    return (
        ring_scenario(
            "ring-overrun-in-one-run",
            "A vCPU that writes more pages in one KVM_RUN than its ring holds stops in between.",
            enable,
            large.create(),
            *(*writes(large, *range(large.pages)), HARVEST, RESET) * _ROUNDS,
            source=_SOURCE,
            tags=("slow",),
            mappings=(Mapping("memory", large.pages),),
        ),
        ring_scenario(
            "ring-overrun-by-one-instruction",
            "A string instruction that dirties more pages than the ring holds loses none of them.",
            enable,
            small.create(),
            *(*writes(small, 0, 2, 4), sweep, HARVEST, RESET) * _ROUNDS,
            source=_SOURCE,
            mappings=(Mapping("memory", small.pages),),
        ),
    )
