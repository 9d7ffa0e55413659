"""Which hosts may have a known issue: a kernel of some age or build, a processor, an option.

Where nobody knows that of a host, it may.
"""

from collections.abc import Callable

from vmm.host.structure import ARRAY, release_numbers
from vmm.scenario.history import Header

_Where = Callable[[Header], bool]


def tdp(wanted: str) -> _Where:
    """Return whether a host's two-dimensional paging is "on", or "off"."""

    def is_so(header: Header) -> bool:
        return header.host.get("tdp", "unknown").partition(" ")[0] in (wanted, "unknown")

    return is_so


def releases(since: tuple[int, int], before: tuple[int, int]) -> _Where:
    """Return whether a kernel is of a release from ``since`` on, and older than ``before``.

    Of a release only the first two numbers count.
    """

    def is_so(header: Header) -> bool:
        release = release_numbers(header.host.get("kernel", ""))
        return release is None or since <= release < before

    return is_so


def executes_real_mode_with_tdp(header: Header) -> bool:
    """Whether the processor itself executes real mode, with two-dimensional paging."""
    return tdp("on")(header) and not header.features.emulates_real_mode


def keeps_internal_slots_in_arrays(header: Header) -> bool:
    """Whether a kernel has memslots in an array, and its own among them."""
    features = header.features
    has_own = features.internal_tss or features.internal_identity or features.internal_apic
    return has_own and header.host.get("memslots") == ARRAY
