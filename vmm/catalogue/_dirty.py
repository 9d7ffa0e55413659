"""Helpers for scenarios about clearing dirty logs, and about dirty rings."""

from vmm.catalogue._build import A, B, Slot, write
from vmm.scenario.operations import (
    AnyOperation,
    ClearDirtyLog,
    EnableCap,
    HarvestDirtyRing,
    Mapping,
    ResetDirtyRings,
    Scenario,
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


def clearing(
    name: str,
    why: str,
    *operations: AnyOperation,
    source: str = API_CLEAR,
    mappings: tuple[Mapping, ...] = (MEMORY,),
    needs: tuple[str, ...] = ("manual_dirty_log",),
) -> Scenario:
    """Return a scenario about clearing a log with KVM_CLEAR_DIRTY_LOG."""
    return Scenario(
        name=name,
        why=why,
        source=source,
        tags=("dirty", "clear"),
        mappings=mappings,
        needs=needs,
        survey="none",
        operations=operations,
    )


def ring_scenario(
    name: str,
    why: str,
    *operations: AnyOperation,
    source: str = API_RING,
    mappings: tuple[Mapping, ...] = (A, B),
    needs: tuple[str, ...] = ("dirty_ring_bytes",),
    vcpus: int = 1,
) -> Scenario:
    """Return a scenario about dirty rings."""
    return Scenario(
        name=name,
        why=why,
        source=source,
        tags=("dirty", "ring"),
        mappings=mappings,
        needs=needs,
        survey="none",
        vcpus=vcpus,
        operations=operations,
    )


def writes(slot: Slot, *pages: int, vcpu: int = 0, value: int = 1) -> tuple[AnyOperation, ...]:
    """Let the guest write to pages of a slot, to each a value that depends on the page."""
    return tuple(write(slot.gfn + page, value + page, vcpu=vcpu) for page in pages)


def clear(slot: Slot, first: int, count: int, *pages: int) -> ClearDirtyLog:
    """Clear pages of a slot, counted from its start; all of the range if none are given."""
    return ClearDirtyLog(slot.slot, first, count, pages or "all")
