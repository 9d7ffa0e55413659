"""What a kernel lacks by its own word, so that no scenario can run on it at all."""

from typing import NamedTuple

from kvm_abi.uapi import TAKEN, Cap
from vmm.execution.probe.child import Probed
from vmm.scenario.history import SetUpRefused
from vmm.scenario.slots import LEAST_SLOTS
from vmm.scenario.trouble import Trouble


class Obstacle(NamedTuple):
    """Why nothing can run, and what to do."""

    why: str
    remedy: str


_TAKEN = SetUpRefused(f"KVM_{TAKEN[0].name}", "0", TAKEN[1])


def obstacle(found: Probed | Trouble) -> Obstacle | None:
    """Return why nothing can run on a kernel that was asked what it can do; None if it can.

    Any other trouble is a kernel that does not keep its word, which is never an obstacle.
    """
    if isinstance(found, Trouble):
        remedy = "another hypervisor holds the CPU's virtualisation; see the kernel log"
        return Obstacle("KVM_CREATE_VM: EBUSY", remedy) if found.refused == _TAKEN else None
    if not found.capabilities[Cap.USER_MEMORY.name]:
        return Obstacle("KVM_CAP_USER_MEMORY is 0", "this KVM has no memslots: use another")
    if found.features.nr_memslots < LEAST_SLOTS:
        remedy = f"{LEAST_SLOTS} are needed, which Linux has had since 3.17: use another"
        return Obstacle(f"KVM_CAP_NR_MEMSLOTS is {found.features.nr_memslots}", remedy)
    return None
