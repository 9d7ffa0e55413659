"""From bytes of the kernel's memory to what it holds of memslots. It believes no pointer.

``read`` takes an address and a size, and raises OSError where there is no memory. Nothing in here
knows where the bytes come from: a test may make them.
"""

from vmm.scenario.kernelslots import KernelArray, KernelSlots, KernelTrees
from vmm.whitebox.arrays import read_array
from vmm.whitebox.layout import Layout, TreeLayout
from vmm.whitebox.reading import S32, U64, Read, TooManyError
from vmm.whitebox.trees import read_trees

FREELY = 4096
"""So many slots are looked at in a VM, those of each look counted, before looks grow seldom."""

_SELDOM = 8
"""Then a look at so many slots is followed by one operation that is not looked at."""

_MOST_LEFT_OUT = 1024
_MOST_VMS = 4096


class NotFoundError(Exception):
    """The VM is not in the kernel's list."""


class Reader:
    """Reads the memslots of one VM: the newest that a process has made."""

    def __init__(self, read: Read, layout: Layout, vm_list: int, pid: int) -> None:
        """Raises NotFoundError."""
        self._read = read
        self._layout = layout
        self._vm = _newest_vm(read, layout, vm_list, pid)
        self._seldom = [_Seldom() for _ in range(layout.spaces)]
        self._looked_at = 0

    def generation(self, as_id: int) -> int | None:
        """Return the generation in use; None where this operation is not to be looked at."""
        if as_id >= self._layout.spaces or self._seldom[as_id].passes_over():
            return None
        return self._u64(self._active(as_id) + self._layout.set_generation)

    def slots(self, as_id: int, before: int, slot_id: int) -> KernelSlots | None:
        """Return what the kernel holds, most of a slot; None for more than MOST_SLOTS slots.

        To find that out costs as much as to read so many: each time that there are too many, twice
        as many operations as the time before are passed over, up to _MOST_LEFT_OUT.
        """
        try:
            found = self._found(as_id, before, slot_id)
        except TooManyError:
            self._seldom[as_id].too_many()
            return None
        self._looked_at += len(found.slots)
        over = self._looked_at > FREELY
        self._seldom[as_id].looked(len(found.slots) // _SELDOM if over else 0)
        return found

    def _found(self, as_id: int, before: int, slot_id: int) -> KernelTrees | KernelArray:
        active, layout = self._active(as_id), self._layout
        if isinstance(layout, TreeLayout):
            return read_trees(self._read, layout, self._vm, active, as_id, before, slot_id)
        return read_array(self._read, layout, self._vm, active, as_id, before, slot_id)

    def _active(self, as_id: int) -> int:
        return self._u64(self._vm + self._layout.kvm_memslots + 8 * as_id)

    def _u64(self, address: int) -> int:
        return int(U64.unpack(self._read(address, 8))[0])


class _Seldom:
    """Which operations of an address space are not looked at."""

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
    """Return the address of the first VM of a process in the list: new ones come to its front."""
    at = vm_list
    for _ in range(_MOST_VMS):
        (at,) = U64.unpack(read(at, 8))
        if at == vm_list:
            break
        vm = at - layout.kvm_vm_list
        if S32.unpack(read(vm + layout.kvm_userspace_pid, 4))[0] == pid:
            return int(vm)
    raise NotFoundError(f"no VM of process {pid} in the kernel's list")
