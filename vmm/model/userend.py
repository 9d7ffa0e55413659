"""The end of user addresses on a kernel, learned from its answers."""

from functools import partial

import msgspec

from vmm.model.allowed import Allowed
from vmm.model.rule import source
from vmm.scenario.history import AnyOutcome
from vmm.scenario.operations import Hva
from vmm.scenario.slots import KERNEL_HALF, USER_END

HVA_NONCANONICAL = source(
    "hva-noncanonical",
    "memory that ends beyond the end of user addresses is refused; that end is the same for all "
    "calls (kernels whose access_ok() looks at the sign bit only have it at 2^63, others may have "
    "57-bit addresses)",
    "6014bc27561f to 86e6b1547b3d",
)


class UserEnd:
    """The highest end of memory that was accepted, and the lowest refused, above USER_END."""

    def __init__(self) -> None:
        self._taken = USER_END
        self._refused = KERNEL_HALF

    def allowed(
        self, hva: Hva, size_bytes: int, usual: Allowed, refused: AnyOutcome
    ) -> tuple[Allowed, ...]:
        """Return the allowed outcomes of a call, given its outcome without this limit."""
        if not isinstance(hva, int) or hva >= KERNEL_HALF or hva + max(size_bytes, 1) <= USER_END:
            return (usual,)
        end = hva + size_bytes
        if usual.outcome == refused:
            return (Allowed(refused, HVA_NONCANONICAL), usual)
        found: list[Allowed] = []
        if end > self._taken:
            found.append(Allowed(refused, HVA_NONCANONICAL, partial(self._refuse, end)))
        if end < self._refused:
            taken = partial(self._take, end, usual)
            found.append(msgspec.structs.replace(usual, adopt=taken))
        return tuple(found)

    def _refuse(self, end: int) -> None:
        self._refused = min(self._refused, end)

    def _take(self, end: int, usual: Allowed) -> None:
        self._taken = max(self._taken, end)
        usual.adopt()
