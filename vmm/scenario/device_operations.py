"""Operations on what the kernel does with writes to gpas without memory, as data."""

from vmm.scenario.operation import Hex, Operation


class CoalesceMmio(Operation, frozen=True, tag="coalesce_mmio", gc=False):
    """KVM_REGISTER_COALESCED_MMIO for a range of gpas: writes there are kept, and do not exit.

    With ``on`` false it is KVM_UNREGISTER_COALESCED_MMIO: every range that holds this one ends.
    """

    gpa: Hex
    size: Hex
    on: bool = True


class IoEventFd(Operation, frozen=True, tag="ioeventfd", gc=False):
    """KVM_IOEVENTFD: a write of ``length`` bytes at a gpa signals the eventfd called ``name``.

    With ``match`` a write of that value alone does; with a length of 0 one of any length. With
    ``on`` false the same ends.
    """

    name: str
    gpa: Hex
    length: int = 4
    match: Hex | None = None
    on: bool = True


class CollectMmio(Operation, frozen=True, tag="collect_mmio", gc=False):
    """The host takes the writes that the kernel has kept, and how often each eventfd was signalled.

    Where no vCPU was used yet there is no ring to look into.
    """
