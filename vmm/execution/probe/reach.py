"""Finds out how far guests reach, by letting one try."""

from collections.abc import Iterator

from vmm.execution.runner import HarnessError, run_isolated
from vmm.kvm.system import Kvm
from vmm.scenario.content import MMIO_FILL, identity
from vmm.scenario.endings import DIED, HOST, HUNG, REFUSED
from vmm.scenario.features import Features
from vmm.scenario.history import AnyOutcome, Mmio, SetUpRefused, Touched
from vmm.scenario.operations import (
    MAX_GPA_BITS,
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    Mapping,
    Place,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)

REACH_LIMIT_S = 10.0


class ReachError(Exception):
    """The run ended early, for this reason: the kernel hung, or refused what every VMM needs.

    ``refused`` is the call that was refused, or answered wrongly, if that is the reason.
    """

    def __init__(self, reason: str, refused: SetUpRefused | None = None) -> None:
        super().__init__(reason)
        self.refused = refused


_RESERVED_BYTES = 12 << 30
"""The range that AMD processors reserve for HyperTransport, below 2^40 or at the last gpa."""


_WRITTEN = 0x5A5A_A5A5

_HOLE_BYTES = 1 << 20  # From the tried hole to the limit; leaves room for the guest's own slot.


def touch_limit(kvm: Kvm, last_gfn: int, time_limit_s: float = REACH_LIMIT_S) -> int:
    """Return the first gpa that no guest reaches, at most the one after ``last_gfn``.

    A slot may lie where the processor lets no guest access memory. So the last page is tried first,
    then those before other likely limits, each in a child process.
    """
    highest = min((last_gfn + 1) * PAGE_SIZE_BYTES, 1 << MAX_GPA_BITS)
    for limit in sorted(set(_candidates(kvm, highest)), reverse=True):
        if reaches(limit, time_limit_s):
            return limit
    return REAL_MODE_END


def _candidates(kvm: Kvm, highest: int) -> Iterator[int]:
    for end in (highest, min(highest, 1 << kvm.supported_gpa_bits())):
        yield from (end, end - _RESERVED_BYTES, min(end, (1 << 40) - _RESERVED_BYTES))


def reaches(limit: int, time_limit_s: float = REACH_LIMIT_S) -> bool:
    """Whether a guest can read the last bytes before ``limit``, and access the hole before them.

    It reads a page of the hole again after another one, and writes it: shadow page tables remember
    MMIO with the gpa truncated to the bits of the host's processor (make_mmio_spte,
    get_mmio_spte_gfn), and a later exit has that gpa; on Linux 7.2 only for a write.
    """
    if limit <= REAL_MODE_END:
        return False
    hole = limit - _HOLE_BYTES
    holes = (hole, hole + PAGE_SIZE_BYTES, hole)
    scenario = Scenario(
        name="reach",
        survey="none",
        mappings=(Mapping("a", 1),),
        operations=(
            SetUserMemoryRegion(0, limit - PAGE_SIZE_BYTES, PAGE_SIZE_BYTES, Place("a")),
            Touch(limit - 4),
            *(Touch(gpa) for gpa in holes),
            *(Touch(gpa, "write", value=_WRITTEN) for gpa in holes),
        ),
    )
    fill, written = bytes([MMIO_FILL]) * 4, _WRITTEN.to_bytes(4, "little")
    exits = [
        *(Touched(0xFFFFFFFF, (Mmio(gpa, False, fill),)) for gpa in holes),
        *(Touched(0, (Mmio(gpa, True, written),)) for gpa in holes),
    ]
    expected = [Touched(identity(0, 0)), *exits]
    found = tried(scenario, Features(touch_limit=limit), time_limit_s)
    return expected == [outcome for outcome in found if isinstance(outcome, Touched)]


def tried(scenario: Scenario, features: Features, time_limit_s: float) -> list[AnyOutcome]:
    """Run a scenario in a child, and return its outcomes; none if the guest went astray.

    Raises `ReachError`.
    """
    try:
        history = run_isolated(scenario, features, time_limit_s=time_limit_s)
    except HarnessError:
        return []  # After a shutdown, the guest's state is undefined.
    outcomes = [event.outcome for event in history.events]
    reason = "" if history.end is None else history.end.reason
    if reason.startswith((HUNG, DIED, REFUSED, HOST)):
        last = outcomes[-1] if outcomes else None
        raise ReachError(reason, last if isinstance(last, SetUpRefused) else None)
    return outcomes
