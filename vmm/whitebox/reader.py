"""Reads memslots from the kernel's memory. It trusts no pointer.

``read`` takes an address and a size, and raises OSError where there is no memory. The bytes may
come from anywhere: a test can make them.
"""

from vmm.scenario.kernelslots import KernelArray, KernelSlots, KernelTrees
from vmm.whitebox.arrays import read_array
from vmm.whitebox.layout import Layout, TreeLayout
from vmm.whitebox.reading import S32, U64, Look, Read, TooManyError
from vmm.whitebox.trees import read_trees

FREELY = 4096
"""How many slots are read in a VM, summed over all looks, before some operations are skipped."""

_SELDOM = 8
"""From then on, one operation is skipped for every so many slots that a look has read."""

_MOST_LEFT_OUT = 1024
_MOST_VMS = 4096


class NotFoundError(Exception):
    """The VM is not in the kernel's list."""


class Reader:
    """Reads the memslots of one VM: the newest one of a process."""

    def __init__(self, read: Read, layout: Layout, vm_list: int, pid: int) -> None:
        """Raises NotFoundError."""
        self._read = read
        self._layout = layout
        self._vm = _newest_vm(read, layout, vm_list, pid)
        self._seldom = [_Seldom() for _ in range(layout.spaces)]
        self._looked_at = 0

    def generation(self, as_id: int) -> int | None:
        """Return the generation in use; None if this operation is skipped."""
        if as_id >= self._layout.spaces or self._seldom[as_id].passes_over():
            return None
        return self._u64(self._active(as_id) + self._layout.set_generation)

    def slots(self, as_id: int, before: int, slot_id: int) -> KernelSlots | None:
        """Return the kernel's slots, with one's metadata; None if there are more than MOST_SLOTS.

        Finding that out costs as much as reading MOST_SLOTS slots. So each time that there are too
        many, twice as many operations are skipped as the time before, up to _MOST_LEFT_OUT.
        """
        try:
            found = self._found(Look(as_id, before, slot_id))
        except TooManyError:
            self._seldom[as_id].too_many()
            return None
        self._looked_at += len(found.slots)
        over = self._looked_at > FREELY
        self._seldom[as_id].looked(len(found.slots) // _SELDOM if over else 0)
        return found

    def _found(self, look: Look) -> KernelTrees | KernelArray:
        active, layout = self._active(look.as_id), self._layout
        if isinstance(layout, TreeLayout):
            return read_trees(self._read, layout, self._vm, active, look)
        return read_array(self._read, layout, self._vm, active, look)

    def _active(self, as_id: int) -> int:
        return self._u64(self._vm + self._layout.kvm_memslots + 8 * as_id)

    def _u64(self, address: int) -> int:
        return int(U64.unpack(self._read(address, 8))[0])


class _Seldom:
    """Decides which operations of an address space are skipped."""

    def __init__(self) -> None:
        self._left = 0
        self._next = 1

    def passes_over(self) -> bool:
        if not self._left:
            return False
        self._left -= 1
        return True

    def too_many(self) -> None:
        self._left, self._next = self._next, min(2 * self._next, _MOST_LEFT_OUT)

    def looked(self, pass_over: int) -> None:
        self._left, self._next = pass_over, 1


def _newest_vm(read: Read, layout: Layout, vm_list: int, pid: int) -> int:
    """Return the address of the first VM of a process in the list: new VMs go to its front."""
    at = vm_list
    for _ in range(_MOST_VMS):
        (at,) = U64.unpack(read(at, 8))
        if at == vm_list:
            break
        vm = at - layout.kvm_vm_list
        if S32.unpack(read(vm + layout.kvm_userspace_pid, 4))[0] == pid:
            return int(vm)
    raise NotFoundError(f"no VM of process {pid} in the kernel's list")
