"""Helpers for scenarios about clearing dirty logs, and about dirty rings."""

from dataclasses import replace

from vmm.catalogue._area import Area
from vmm.catalogue._build import Slot, write
from vmm.scenario.operations import (
    AnyOperation,
    ClearDirtyLog,
    EnableCap,
    HarvestDirtyRing,
    Mapping,
    ResetDirtyRings,
)

API_CLEAR = "api.rst 4.117 KVM_CLEAR_DIRTY_LOG"
API_MANUAL = "api.rst KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"
API_RING = "api.rst KVM_CAP_DIRTY_LOG_RING"

MANUAL = EnableCap("MANUAL_DIRTY_LOG_PROTECT2", 1)
MANUAL_OFF = EnableCap("MANUAL_DIRTY_LOG_PROTECT2", 0)
INITIALLY_SET = EnableCap("MANUAL_DIRTY_LOG_PROTECT2", 3)

HARVEST = HarvestDirtyRing()
RESET = ResetDirtyRings()

MEMORY = Mapping("memory", 513)


clearing = Area(
    tags=("dirty", "clear"),
    source=API_CLEAR,
    needs=("manual_dirty_log",),
    mappings=(MEMORY,),
    survey="none",
)
"""Makes scenarios about KVM_CLEAR_DIRTY_LOG."""

clearing_initially_set = replace(clearing, needs=("dirty_log_initially_set",))
"""Makes those in which a log begins with all pages."""


ring_scenario = Area(
    tags=("dirty", "ring"), source=API_RING, needs=("dirty_ring_bytes",), survey="none"
)


def writes(slot: Slot, *pages: int, vcpu: int = 0, value: int = 1) -> tuple[AnyOperation, ...]:
    """Let the guest write to pages of a slot, to each a value that depends on the page."""
    return tuple(write(slot.gfn + page, value + page, vcpu=vcpu) for page in pages)


def clear(slot: Slot, first: int, count: int, *pages: int) -> ClearDirtyLog:
    """Clear pages of a slot, counted from its start; all of the range if none are given."""
    return ClearDirtyLog(slot.slot, first, count, pages or "all")
