"""What a scenario needs of a host and a kernel, whether or not it says so in ``needs``."""

from collections.abc import Iterator

from vmm.scenario.features import Features
from vmm.scenario.operations import (
    HUGE_KINDS,
    HUGE_PAGE_PAGES,
    AnyOperation,
    ChangeHostMemory,
    Churn,
    HostAction,
    Instruction,
    Lives,
    Race,
    Scenario,
    SetUserMemoryRegion,
    Start,
    Touch,
    UnmapInternalSlots,
)

_LOOKS_AT_ITSELF = (Lives, Churn, UnmapInternalSlots)
"""Operations whose outcome is what they leave in the executor's process."""


def missing(scenario: Scenario, features: Features) -> str:
    """Return what a scenario lacks on a kernel, as one phrase; empty if nothing is missing.

    Without it the executor could not even begin. A refusal of an operation is an outcome instead.
    """
    needs = tuple(dict.fromkeys((*scenario.needs, *_needs(scenario))))
    lacking = features.missing(needs, scenario.vm_type)
    huge = sum(m.pages for m in scenario.mappings if m.kind in HUGE_KINDS) // HUGE_PAGE_PAGES
    if not lacking and huge > features.hugetlb_pages:
        return f"{huge} free 2 MiB huge pages (here {features.hugetlb_pages} are free)"
    return lacking


def _needs(scenario: Scenario) -> tuple[str, ...]:
    kinds = {mapping.kind for mapping in scenario.mappings}
    # Nearly all operations are touches, which need nothing.
    operations = [op for op in scenario.operations if type(op) is not Touch]
    actions = (op for race in operations if isinstance(race, Race) for op in _actions(race))
    changes = {op.how for op in (*operations, *actions) if isinstance(op, ChangeHostMemory)}
    needs = {
        "hugetlb_pages": not kinds.isdisjoint(HUGE_KINDS),
        "zero_page": "zero" in kinds,
        "pfnmap": "pfnmap" in kinds,
        "collapse": "collapse" in changes,
        "ksm": "merge" in changes,
        "userfaultfd": not changes.isdisjoint(("fetch_later", "guard")),
        "process_files": any(isinstance(op, _LOOKS_AT_ITSELF) for op in operations)
        or "fork" in changes,
        "forced_emulation": any(isinstance(op, Instruction) and op.forced for op in operations),
        "starts_32_bit": any(isinstance(op, Start) and op.paging != "long" for op in operations),
        "failing_allocations": any(_fails(op) for op in operations),
    }
    return tuple(name for name, needed in needs.items() if needed)


def _fails(op: AnyOperation) -> bool:
    """Whether an operation makes the kernel's allocations fail."""
    match op:
        case SetUserMemoryRegion():
            return op.fail_nth > 0
        case Churn():
            return op.what == "failing-changes"
        case _:
            return False


def _actions(race: Race) -> Iterator[HostAction]:
    return (op for host in race.hosts for op in host.operations)
