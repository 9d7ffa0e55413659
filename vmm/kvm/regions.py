"""`Regions`: several changes of memslots, issued back to back."""

from collections.abc import Iterable
from typing import NamedTuple

from kvm_abi import raw
from vmm.kvm.memory import HostAddress, HostMapping


class Region(NamedTuple):
    """What one KVM_SET_USER_MEMORY_REGION asks for: the arguments of `Vm.set_user_memory_region`.

    Addresses and sizes are bytes; a `memory_size` of 0 deletes the slot.

        >>> from vmm import Region
        >>> Region(slot=3)
        Region(slot=3, flags=0, guest_phys_addr=0, memory_size=0, userspace_addr=0)
    """

    slot: int
    flags: int = 0
    guest_phys_addr: int = 0
    memory_size: int = 0
    userspace_addr: HostAddress | int = 0


class Regions:
    """Changes in order, prepared once, for any number of `Vm.set_user_memory_regions`.

    Raises `ValueError` for an address outside its mapping, and `TypeError` or `OverflowError` for
    a value that does not fit, with the name of the field.

        >>> from vmm import HostAddress, HostMapping, Kvm, Region, Regions
        >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     there = Region(0, 0, 0x1000, 0x1000, HostAddress(memory, 0))
        ...     come_and_go = Regions([there, Region(slot=0)])
        ...     for _ in range(100):
        ...         vm.set_user_memory_regions(come_and_go)
    """

    def __init__(self, changes: Iterable[Region]) -> None:
        """Prepare the changes, in this order."""
        self.changes = tuple(changes)
        self.packed = raw.packed_regions([_numbers(each) for each in self.changes])
        self.left: dict[int, HostMapping | None] = {}
        self.mappings: dict[int, HostMapping] = {}
        for slot, _, _, memory_size, address in self.changes:
            mapping = address.mapping if isinstance(address, HostAddress) else None
            if mapping is not None:
                self.mappings[id(mapping)] = mapping
            if mapping is not None or not memory_size:
                self.left[slot] = mapping if memory_size else None


def refused(changes: Regions, result: int, done: int) -> Exception:
    """Return the error for a result of `raw.issue_regions`."""
    return raw.regions_error(result, _numbers(changes.changes[done]), done, len(changes.changes))


def hva_of(address: HostAddress | int) -> int:
    """Return an address as a number. Raises `ValueError` outside its mapping."""
    if isinstance(address, HostAddress):
        return address.hva
    if isinstance(address, HostMapping):
        raise TypeError(f"{address!r} is no address: pass HostAddress(mapping, offset)")
    return address


def _numbers(change: Region) -> tuple[int, int, int, int, int]:
    return (*change[:4], hva_of(change[4]))
