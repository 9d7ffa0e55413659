"""Operations that let the kernel handle writes to gpas without memory, as data."""

from vmm.scenario.operation import Hex, Operation


class CoalesceMmio(Operation, frozen=True, tag="coalesce_mmio", gc=False):
    """KVM_REGISTER_COALESCED_MMIO: the kernel keeps writes to a range of gpas without an exit.

    With ``on`` false it is KVM_UNREGISTER_COALESCED_MMIO: it removes every range that contains this
    one. With ``pio`` both are about ports instead of gpas; a number is passed as it is.

    >>> from vmm import operations
    >>> operations.CoalesceMmio(gpa=0x100000, size=0x1000).on
    True
    """

    gpa: Hex
    size: Hex
    on: bool = True
    pio: bool | int = False


class IoEventFd(Operation, frozen=True, tag="ioeventfd", gc=False):
    """KVM_IOEVENTFD: a write of ``length`` bytes at a gpa signals the eventfd called ``name``.

    With ``match`` only a write of that value does; with a length of 0 a write of any length does.
    With ``on`` false it removes the same eventfd.

    >>> from vmm import operations
    >>> operations.IoEventFd("bell", gpa=0x100000, length=4, match=7).match
    7
    """

    name: str
    gpa: Hex
    length: int = 4
    match: Hex | None = None
    on: bool = True


class CollectMmio(Operation, frozen=True, tag="collect_mmio", gc=False):
    """The host reads the writes that the kernel kept, and how often each eventfd was signalled.

    Before the first use of a vCPU there is no ring to read.

    >>> from vmm import operations
    >>> operations.CollectMmio(expect="success").expect
    'success'
    """


class SetCoalescedRing(Operation, frozen=True, tag="set_coalesced_ring", gc=False):
    """The host says that the ring of coalesced writes is empty, and goes on at an index.

    It writes both ends of the ring, ``first`` and ``last``. The kernel keeps nothing while the
    index is beyond those of the ring. What it has kept before is lost.

    >>> from vmm import operations
    >>> operations.SetCoalescedRing(169).vcpu
    0
    """

    index: int
    vcpu: int = 0


DeviceOperation = CoalesceMmio | IoEventFd | CollectMmio | SetCoalescedRing
