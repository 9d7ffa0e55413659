"""The curated scenarios, one behaviour each, as data; they are run on every kernel.

Each module is an area. Nothing here executes anything or states an expectation: the model says what
the kernel should answer.
"""

from functools import lru_cache

from vmm.catalogue import (
    access,
    bystanders,
    clocks,
    create,
    delete,
    devices,
    dirty,
    dirty_clear,
    dirty_manual,
    dirty_slots,
    execute,
    flags,
    follow,
    follow_files,
    follow_slots,
    generation,
    high,
    holes,
    ids,
    instructions,
    instructions_elements,
    instructions_ports,
    instructions_stack,
    instructions_state,
    internal,
    interrupts,
    known,
    lifetime,
    limits,
    memfds,
    memfds_shared,
    move,
    pfnmap,
    prefault,
    private,
    quirks,
    races,
    races_host,
    races_logs,
    races_spaces,
    readonly,
    refusals,
    refusals_before,
    remaps,
    returns,
    ring_sizes,
    rings,
    rollback,
    sizes,
    smi,
    spaces,
    starts,
    starts_32_bit,
    starts_spaces,
    table,
    two_vms,
    vapics,
    vcpus,
    without_slots,
    zero_va,
)
from vmm.catalogue.tiers import in_its_tier
from vmm.scenario.features import Features
from vmm.scenario.operations import Scenario


@lru_cache(maxsize=4)
def catalogue(features: Features, with_large: bool = True) -> tuple[Scenario, ...]:
    """Return every curated scenario for a kernel with these features, from simple to large.

    Names are unique. Scenarios that need what the kernel lacks are included: their ``needs`` say
    so. Without ``with_large``, ``large_scenarios`` are left out, to save time.
    """
    quick = (
        *_of_slots(features),
        *_of_guests(features),
        *_of_dirty_pages(features),
        *_of_memory(features),
        *_of_devices_and_host(features),
        *_of_races(features),
        *sizes.SCENARIOS,
        *table.scenarios(features),
    )
    return (*map(in_its_tier, quick), *(large_scenarios(features) if with_large else ()))


def _of_slots(features: Features) -> tuple[Scenario, ...]:
    """Return the scenarios about the calls on slots, and of the kernel's own slots."""
    return (
        *create.scenarios(features),
        *delete.SCENARIOS,
        *move.scenarios(features),
        *flags.SCENARIOS,
        *refusals.SCENARIOS,
        *refusals_before.SCENARIOS,
        *limits.scenarios(features),
        *ids.scenarios(features),
        *high.scenarios(features),
        *spaces.scenarios(features),
        *smi.SCENARIOS,
        *internal.SCENARIOS,
        *zero_va.SCENARIOS,
        *bystanders.scenarios(features),
    )


def _of_guests(features: Features) -> tuple[Scenario, ...]:
    """Return the scenarios about how guests access slots."""
    return (
        *readonly.SCENARIOS,
        *access.SCENARIOS,
        *generation.scenarios(features),
        *execute.SCENARIOS,
        *instructions.scenarios(features),
        *instructions_stack.SCENARIOS,
        *instructions_elements.SCENARIOS,
        *instructions_ports.SCENARIOS,
        *instructions_state.SCENARIOS,
        *starts.SCENARIOS,
        *starts_32_bit.SCENARIOS,
        *starts_spaces.SCENARIOS,
        *remaps.SCENARIOS,
        *without_slots.SCENARIOS,
        *interrupts.SCENARIOS,
        *returns.SCENARIOS,
        *vcpus.SCENARIOS,
    )


def _of_dirty_pages(features: Features) -> tuple[Scenario, ...]:
    """Return the scenarios about dirty logs and dirty rings."""
    return (
        *dirty.SCENARIOS,
        *dirty_clear.SCENARIOS,
        *dirty_manual.SCENARIOS,
        *dirty_slots.SCENARIOS,
        *rings.scenarios(features),
        *ring_sizes.scenarios(features),
    )


def _of_memory(features: Features) -> tuple[Scenario, ...]:
    """Return the scenarios about guest_memfds, private memory, and kernel allocations."""
    return (
        *known.scenarios(features),
        *lifetime.SCENARIOS,
        *memfds.SCENARIOS,
        *memfds_shared.SCENARIOS,
        *private.SCENARIOS,
        *holes.SCENARIOS,
        *prefault.SCENARIOS,
        *rollback.SCENARIOS,
    )


def _of_devices_and_host(features: Features) -> tuple[Scenario, ...]:
    """Return the scenarios about several VMs, devices, clocks, and changes to host memory."""
    return (
        *two_vms.scenarios(features),
        *devices.SCENARIOS,
        *clocks.SCENARIOS,
        *vapics.SCENARIOS,
        *follow.SCENARIOS,
        *follow_files.SCENARIOS,
        *pfnmap.SCENARIOS,
        *follow_slots.scenarios(features),
        *quirks.SCENARIOS,
    )


def _of_races(features: Features) -> tuple[Scenario, ...]:
    """Return the scenarios about threads that act at the same time."""
    return (
        *races.SCENARIOS,
        *races_host.SCENARIOS,
        *races_logs.scenarios(features),
        *races_spaces.SCENARIOS,
    )


def large_scenarios(features: Features) -> tuple[Scenario, ...]:
    """Return those scenarios, all tagged slow, that take a while even to construct."""
    return (
        *internal.slow_scenarios(features),
        *generation.slow_scenarios(features),
        *table.slow_scenarios(features),
    )


LARGE_NAMES = ("tss-with-a-full-table", "generation-comes-round", "table-filled-and-emptied")
"""The names of `large_scenarios`."""
