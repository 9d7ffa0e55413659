"""Finds out how far guests reach, by letting one try."""

from collections.abc import Iterator

from kvm_abi.raw import WrongAnswerError
from vmm.execution.probe.touches import is_fault, wrong_touch
from vmm.execution.runner import run_isolated
from vmm.host.hostinfo import physical_address_bits
from vmm.kvm.system import Kvm
from vmm.scenario import words
from vmm.scenario.content import MMIO_FILL, identity
from vmm.scenario.endings import DIED, HOST, HUNG, REFUSED
from vmm.scenario.features import Features
from vmm.scenario.history import AnyOutcome, Mmio, SetUpRefused, Stopped, Touched
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
    then those before other likely limits, each in a child process. Every processor reaches the last
    of them. Raises `ReachError`, `KvmError` and `WrongAnswerError`.
    """
    highest = min((last_gfn + 1) * PAGE_SIZE_BYTES, 1 << MAX_GPA_BITS)
    limits = sorted(set(_candidates(kvm, highest)), reverse=True)
    for limit in limits:
        if reaches(limit, time_limit_s):
            return limit
        if reaches(limit, time_limit_s):
            wrong = f"no access to the page before gpa {limit:#x}, but when it is tried again"
            raise WrongAnswerError("KVM_RUN", wrong)
    wrong = f"no access to the page before gpa {limits[-1]:#x}, which every processor reaches"
    raise WrongAnswerError("KVM_RUN", wrong)


def _candidates(kvm: Kvm, highest: int) -> Iterator[int]:
    for end in (highest, min(highest, 1 << kvm.supported_gpa_bits())):
        yield from (end, end - _RESERVED_BYTES, min(end, (1 << 40) - _RESERVED_BYTES))


def reaches(limit: int, time_limit_s: float = REACH_LIMIT_S) -> bool:
    """Whether a guest can read the last bytes before ``limit``, and access the hole before them.

    It reads a page of the hole again after another one, and writes it: shadow page tables remember
    MMIO with the gpa truncated to the bits of the host's processor (make_mmio_spte,
    get_mmio_spte_gfn), and a later exit has that gpa; on Linux 7.2 only for a write. The other way
    not to reach it is a fault, which ends ours.

    Raises `ReachError`, `KvmError`, and `WrongAnswerError` for what is neither.
    """
    if limit <= REAL_MODE_END:
        return False
    hole = limit - _HOLE_BYTES
    holes = (hole, hole + PAGE_SIZE_BYTES, hole)
    touches = (
        Touch(limit - 4),
        *(Touch(gpa) for gpa in holes),
        *(Touch(gpa, "write", value=_WRITTEN) for gpa in holes),
    )
    scenario = Scenario(
        name="reach",
        survey="none",
        mappings=(Mapping("a", 1),),
        operations=(
            SetUserMemoryRegion(0, limit - PAGE_SIZE_BYTES, PAGE_SIZE_BYTES, Place("a")),
            *touches,
        ),
    )
    found = tried(scenario, Features(touch_limit=limit), time_limit_s)
    met = [outcome for outcome in found if isinstance(outcome, Touched | Stopped)]
    is_reached = True
    for touch, outcome in zip(touches, met, strict=False):
        if outcome == _right(touch, touch.gpa):
            continue
        is_reached = False
        if is_fault(outcome):
            break  # The guest's state is undefined then.
        if not _is_truncated(touch, outcome):
            raise wrong_touch(outcome, words.operation(touch))
    return is_reached and len(met) == len(touches)


def _right(touch: Touch, gpa: int) -> Touched:
    """Return the right outcome of a touch; in the hole, an exit at a gpa."""
    if touch.gpa % PAGE_SIZE_BYTES:
        return Touched(identity(0, 0))
    if touch.access == "write":
        return Touched(0, (Mmio(gpa, True, touch.value.to_bytes(4, "little")),))
    return Touched(0xFFFFFFFF, (Mmio(gpa, False, bytes([MMIO_FILL]) * 4),))


def _is_truncated(touch: Touch, outcome: AnyOutcome) -> bool:
    """Whether a touch of the hole has the right exit, except for bits that no host address has."""
    if not isinstance(outcome, Touched) or len(outcome.mmio) != 1:
        return False
    gpa = outcome.mmio[0].gpa
    lowest_lost = (touch.gpa ^ gpa) & -(touch.gpa ^ gpa)
    has_lost_these = lowest_lost >= 1 << physical_address_bits()
    return outcome == _right(touch, gpa) and has_lost_these and gpa == touch.gpa % lowest_lost


def tried(scenario: Scenario, features: Features, time_limit_s: float) -> list[AnyOutcome]:
    """Run a scenario in a child, and return its outcomes. Raises `ReachError`."""
    history = run_isolated(scenario, features, time_limit_s=time_limit_s)
    outcomes = [event.outcome for event in history.events]
    reason = "" if history.end is None else history.end.reason
    if reason.startswith((HUNG, DIED, REFUSED, HOST)):
        last = outcomes[-1] if outcomes else None
        raise ReachError(reason, last if isinstance(last, SetUpRefused) else None)
    return outcomes
