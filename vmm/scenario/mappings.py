"""Checks of the mappings that a scenario declares, and of the places that operations name."""

from collections import abc
from collections.abc import Sequence

from vmm.scenario.limits import (
    A_NAME,
    MAX_MAPPED_PAGES,
    MAX_MAPPINGS,
    MAX_SPARSE_PAGES,
    MAX_ZERO_PAGES,
    NAME_LENGTH,
)
from vmm.scenario.operations import (
    FILE_KINDS,
    GUEST_MAPPING,
    HUGE_KINDS,
    HUGE_PAGE_PAGES,
    PAGE_SIZE_BYTES,
    Mapping,
    Place,
    PreFaultMemory,
    Race,
    Scenario,
    Start,
    pages_of,
)
from vmm.scenario.problem import ScenarioError
from vmm.scenario.reached import (
    MAX_PRE_FAULTED_PAGES,
    SPARSE_PAGES,
    all_filled_pages,
    is_sparse,
)
from vmm.scenario.shown import is_plain


def check_mappings(mappings: Sequence[Mapping]) -> None:
    """Raise ScenarioError unless the mappings have possible kinds and sizes."""
    names = {GUEST_MAPPING}
    total = 0
    for index, mapping in enumerate(mappings):
        place = f"$.mappings[{index}]"
        if index >= MAX_MAPPINGS:
            raise ScenarioError(f"{place}: more than {MAX_MAPPINGS} mappings")
        if not is_plain(mapping.name, NAME_LENGTH):
            raise ScenarioError(f"{place}.name: {A_NAME}")
        if mapping.name in names:
            raise ScenarioError(f"{place}.name: {mapping.name!r} is taken or reserved")
        names.add(mapping.name)
        is_free = is_sparse(mapping) or mapping.kind == "unmapped"
        total += 0 if is_free else mapping.pages
        limit = MAX_ZERO_PAGES if mapping.kind == "zero" else MAX_MAPPED_PAGES
        if is_free and mapping.pages > 0:
            if mapping.pages > MAX_SPARSE_PAGES:
                raise ScenarioError(f"{place}.pages: at most {MAX_SPARSE_PAGES} are possible")
        elif not 1 <= mapping.pages <= limit or total > MAX_MAPPED_PAGES:
            raise ScenarioError(
                f"{place}.pages: {mapping.pages} is not within 1 to {limit} (all mappings together)"
            )
        if mapping.kind in HUGE_KINDS and mapping.pages % HUGE_PAGE_PAGES:
            raise ScenarioError(
                f"{place}.pages: {mapping.kind} memory comes in multiples of "
                f"{HUGE_PAGE_PAGES} pages"
            )
        if mapping.kind == "private_file" and is_sparse(mapping):
            raise ScenarioError(f"{place}.pages: a private_file has {SPARSE_PAGES} at the most")
        if mapping.of or mapping.kind == "pfnmap":
            _check_second_view(place, mapping, mappings[:index])
    if sum(mapping.kind == "zero" for mapping in mappings) > 1:
        raise ScenarioError("$.mappings: only one mapping can be at virtual address 0")


def _check_second_view(place: str, mapping: Mapping, before: Sequence[Mapping]) -> None:
    """Check a mapping of another mapping's file: the file has the pages, all of them filled."""
    file = next((each for each in before if each.name == mapping.of), None)
    if file is None or file.kind != "memfd" or file.of or is_sparse(file):
        raise ScenarioError(
            f"{place}.of: {mapping.of!r} is no mapping of kind memfd that stands before, "
            f"with a file of its own of at most {SPARSE_PAGES} pages"
        )
    if mapping.kind not in FILE_KINDS:
        raise ScenarioError(f"{place}.kind: {', '.join(FILE_KINDS)} show a file, and no other kind")
    if mapping.pages > file.pages:
        raise ScenarioError(f"{place}.pages: {mapping.of!r} has {file.pages}")


def check_large_mappings(scenario: Scenario) -> None:
    """Bound how many pages of large mappings are filled, which depends on what is reached."""
    if not any(map(is_sparse, scenario.mappings)):
        return
    for index, op in enumerate(scenario.operations):
        place = f"$.operations[{index}]"
        if isinstance(op, Race):
            raise ScenarioError(f"{place}: races take no mapping of more than {SPARSE_PAGES} pages")
        if isinstance(op, Start):  # What it reaches is not known in advance.
            raise ScenarioError(f"{place}: it takes no mapping of more than {SPARSE_PAGES} pages")
        if isinstance(op, PreFaultMemory) and pages_of(op.size) > MAX_PRE_FAULTED_PAGES:
            limit = f"{MAX_PRE_FAULTED_PAGES} pages with a mapping of more than {SPARSE_PAGES}"
            raise ScenarioError(f"{place}.size: at most {limit}")
    filled = all_filled_pages(scenario)
    if filled > MAX_MAPPED_PAGES:
        raise ScenarioError(
            f"$.mappings: {filled} pages would be filled where the guest looks, and at most "
            f"{MAX_MAPPED_PAGES} may be (thp: whole huge pages)"
        )


def place_problem(place: Place, size: int, field: str, mappings: abc.Mapping[str, Mapping]) -> str:
    """Return what is wrong with ``size`` bytes of a mapping from a place on; empty if nothing."""
    mapping = mappings.get(place.mapping)
    if mapping is None:
        return f"{field}.mapping: no mapping is named {place.mapping!r}; declare it in $.mappings"
    if not place.offset >= 0 or place.offset + size > mapping.pages * PAGE_SIZE_BYTES:
        return f"{field}.offset: not within the {mapping.pages} pages of {place.mapping!r}"
    return ""
