"""`Vm`: a virtual machine, with its memory regions and dirty logs."""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import NoReturn

from kvm_abi import raw
from kvm_abi.raw import KvmError
from kvm_abi.shortcut import VmFields, put_before
from kvm_abi.uapi import SYNC_X86_REGS, SYNC_X86_SREGS, Cap, Ioctl, IoEventFdFlag
from vmm.kvm.closing import Closing
from vmm.kvm.memory import PINNED, HostAddress, HostMapping
from vmm.kvm.regions import Region, Regions, hva_of, refused
from vmm.kvm.vcpu import Vcpu

_SHARED = SYNC_X86_REGS | SYNC_X86_SREGS


class Vm(VmFields, Closing):
    """A VM. Closing it closes its vCPUs and unpins the memory that its slots used.

    A slot number holds the slot id in bits 0-15 and the as_id in bits 16-31. Sizes, offsets
    and guest addresses are bytes. A refusal by the kernel raises `KvmError` with its errno.

        >>> from vmm import HostAddress, HostMapping, Kvm, KvmError
        >>> with HostMapping.anonymous(0x2000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.set_user_memory_region(0, 0, 0x10000, 0x2000, HostAddress(memory, 0))  # create
        ...     vm.set_user_memory_region(0, 0, 0x20000, 0x2000, HostAddress(memory, 0))  # move
        ...     vm.set_user_memory_region(0, 0, 0, 0, 0)  # delete
        ...     try:
        ...         vm.set_user_memory_region(0, 0, 0x10000, 0x1001, 0)
        ...     except KvmError as error:
        ...         print(str(error).rpartition(": ")[2])
        EINVAL Invalid argument
    """

    def __init__(self, fd: int, vcpu_mmap_size_bytes: int) -> None:
        """Own the VM's descriptor. `vcpu_mmap_size_bytes` is the size of a vCPU's mapping."""
        self._fd = fd
        self._vcpu_mmap_size_bytes = vcpu_mmap_size_bytes
        self._vcpus: list[Vcpu] = []
        self._pinned: dict[int, HostMapping | None] = {}
        PINNED[fd] = self._pinned

    @property
    def fd(self) -> int:
        """The VM's descriptor. Raises `ValueError` when the VM is closed."""
        if self._fd < 0:
            raise ValueError("the VM is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether the VM has been closed."""
        return self._fd < 0

    def close(self) -> None:
        """Close the vCPUs, then the VM. Closing twice is fine.

        Raises `KvmError` if the kernel refuses that, as none may; it is closed all the same.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm:
        ...     vm = kvm.create_vm()
        >>> vm.close()
        >>> vm.closed
        True
        """
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        with ExitStack() as stack:
            stack.callback(PINNED.pop, fd, None)
            stack.callback(self._pinned.clear)
            stack.callback(raw.close_kvm_file, "a VM", fd)
            for vcpu in reversed(self._vcpus):
                stack.callback(vcpu.close)

    def check_extension(self, cap: Cap | int) -> int:
        """Return the answer of KVM_CHECK_EXTENSION for `cap` on this VM: 0 if absent.

        Raises `KvmError`.

        >>> from vmm import Cap, Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.check_extension(Cap.NR_MEMSLOTS) > 32
        True
        """
        return raw.ioctl(self.fd, Ioctl.CHECK_EXTENSION, int(cap))

    def enable_cap(self, cap: Cap | int, *args: int, flags: int = 0) -> None:
        """Issue KVM_ENABLE_CAP with up to four arguments. Raises `KvmError`.

        >>> from vmm import Cap, Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     offers = vm.check_extension(Cap.MANUAL_DIRTY_LOG_PROTECT2)
        ...     vm.enable_cap(Cap.MANUAL_DIRTY_LOG_PROTECT2, offers & 1)
        """
        wanted = raw.new("struct kvm_enable_cap *", (int(cap), flags, args))
        raw.ioctl(self.fd, Ioctl.ENABLE_CAP, wanted)

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """Create a vCPU in its reset state.

        Raises `KvmError`, EEXIST if the id exists.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     hex(vm.create_vcpu(0).get_regs().rip)
        '0xfff0'
        """
        fd = raw.new_file(self.fd, Ioctl.CREATE_VCPU, vcpu_id)
        vcpu = Vcpu(fd, self._vcpu_mmap_size_bytes)
        self._vcpus.append(vcpu)
        if self.check_extension(Cap.SYNC_REGS) & _SHARED == _SHARED:
            vcpu.share_registers()
        return vcpu

    def set_user_memory_region(
        self,
        slot: int,
        flags: int,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: HostAddress | int,
    ) -> None:
        """Issue KVM_SET_USER_MEMORY_REGION. A `memory_size` of 0 deletes the slot.

        A `HostAddress` pins its mapping until the slot is deleted or the VM is closed. The caller
        is responsible for a plain number, and for the slot's end being inside the mapping: the
        guest reaches whatever memory of this process is there.

        Raises `KvmError` with the kernel's errno, such as EINVAL, or EEXIST if another slot is in
        the way. Then nothing has changed.

        >>> from vmm import HostAddress, HostMapping, Kvm, KvmError
        >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     here = HostAddress(memory, 0)
        ...     vm.set_user_memory_region(0, 0, 0x1000, 0x1000, here)
        ...     try:
        ...         vm.set_user_memory_region(1, 0, 0x1000, 0x1000, here)
        ...     except KvmError as error:
        ...         print(str(error).rpartition(": ")[2])
        EEXIST File exists
        """
        hva = hva_of(userspace_addr)
        try:
            result = raw.issue_region(self._fd, slot, flags, guest_phys_addr, memory_size, hva)
        except (TypeError, OverflowError) as error:
            raise raw.region_misfit(error, slot, flags, guest_phys_addr, memory_size, hva) from None
        if result:
            self._refuse(result, slot, flags, guest_phys_addr, memory_size, hva)
        self._track(slot, memory_size, userspace_addr)

    def _refuse(self, result: int, *region: int) -> NoReturn:
        if result == raw.CLOSED:
            _ = self.fd  # Raises an error of its own if the VM is closed.
        raise raw.region_error(result, *region)

    def set_user_memory_regions(self, changes: Regions | Iterable[Region]) -> None:
        """Issue KVM_SET_USER_MEMORY_REGION for each change in order, back to back.

        Nothing of Python runs between them, so two calls are as near to each other as in a VMM in
        C, which deletes a slot and creates it anew. The first that is refused ends it: those
        before it stay made. `Regions` prepares what is done often.

        Addresses pin their mappings as with `set_user_memory_region`. Raises `RegionsError`, a
        `KvmError` that says how many are made, and `ValueError` if a mapping is closed; then
        nothing is done.

        >>> from vmm import HostAddress, HostMapping, Kvm, MemFlag, Region, RegionsError
        >>> with HostMapping.anonymous(0x2000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     low = Region(0, 0, 0x1000, 0x1000, HostAddress(memory, 0))
        ...     high = Region(1, 0, 0x2000, 0x1000, HostAddress(memory, 0x1000))
        ...     vm.set_user_memory_regions([low, high])  # Slots as a VMM has them at its start.
        ...     read_only = high._replace(flags=MemFlag.READONLY)  # That flag needs a new slot.
        ...     vm.set_user_memory_regions([Region(slot=1), read_only])
        ...     try:
        ...         vm.set_user_memory_regions([Region(slot=0), low, low._replace(slot=2)])
        ...     except RegionsError as error:
        ...         print(error.done, str(error).rpartition("): ")[2])
        2 EEXIST File exists, as number 3 of 3
        """
        wanted = changes if isinstance(changes, Regions) else Regions(changes)
        for mapping in wanted.mappings.values():
            mapping.address_of(0)  # Raises an error of its own if it is closed.
        done, result = raw.issue_regions(self._fd, wanted.packed)
        if result:
            for slot, _, _, memory_size, address in wanted.changes[:done]:
                self._track(slot, memory_size, address)
            if result == raw.CLOSED:
                _ = self.fd
            raise refused(wanted, result, done)
        self._pinned.update(wanted.left)

    def set_user_memory_region2(
        self,
        slot: int,
        flags: int,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: HostAddress | int,
        guest_memfd_offset: int = 0,
        guest_memfd: int = 0,
    ) -> None:
        """Issue KVM_SET_USER_MEMORY_REGION2: like the first form, with a guest_memfd.

        Raises `KvmError`, ENOTTY on kernels without it (before Linux 6.8).

        >>> from vmm import Cap, HostAddress, HostMapping, Kvm
        >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     if vm.check_extension(Cap.USER_MEMORY2):
        ...         vm.set_user_memory_region2(0, 0, 0x1000, 0x1000, HostAddress(memory, 0))
        """
        hva = hva_of(userspace_addr)
        region = raw.new(
            "struct kvm_userspace_memory_region2 *",
            (slot, flags, guest_phys_addr, memory_size, hva, guest_memfd_offset, guest_memfd),
        )
        raw.ioctl(self.fd, Ioctl.SET_USER_MEMORY_REGION2, region)
        self._track(slot, memory_size, userspace_addr)

    def set_user_memory_region_from(self, address: int) -> None:
        """Issue KVM_SET_USER_MEMORY_REGION with a structure at `address`, readable or not.

        It is for addresses that the kernel refuses: no mapping is pinned. Raises `KvmError`, EFAULT
        for those.

        >>> from vmm import Kvm, KvmError
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     try:
        ...         vm.set_user_memory_region_from(1)
        ...     except KvmError as error:
        ...         print(error)
        KVM_SET_USER_MEMORY_REGION(0x1): EFAULT Bad address
        """
        raw.ioctl(self.fd, Ioctl.SET_USER_MEMORY_REGION, address)

    def get_dirty_log(self, slot: int, npages: int, fill: bytes = bytes(8)) -> bytes:
        """Issue KVM_GET_DIRTY_LOG and return a bitmap with one bit per page, little endian.

        `npages` must be at least the size of the slot, which the kernel does not check: it writes
        the bits of the whole slot, rounded up to 64. Each 64-bit word of the bitmap holds `fill`
        before the call.

        >>> from vmm import HostAddress, HostMapping, Kvm, MemFlag, assemble
        >>> from contextlib import ExitStack
        >>> with ExitStack() as stack:
        ...     memory = stack.enter_context(HostMapping.anonymous(0x3000))
        ...     memory.write(0, assemble("movb $1, 0x3800; hlt"))
        ...     kvm = stack.enter_context(Kvm.open())
        ...     vm = stack.enter_context(kvm.create_vm())
        ...     hva, log = HostAddress(memory, 0), MemFlag.LOG_DIRTY_PAGES
        ...     vm.set_user_memory_region(0, log, 0x1000, 0x3000, hva)
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.enter_big_real_mode(base=0x1000, rip=0)
        ...     vcpu.run(), bool(vm.get_dirty_log(0, npages=3)[0] & 0b100)
        (Hlt(), True)

        Raises `KvmError`, ENOENT if the slot is not logged, `WrongAnswerError` if the kernel
        refuses the call, but writes to the bitmap, and `ValueError` for fewer pages than 1 and for
        a `fill` of other than 8 bytes.
        """
        if npages <= 0 or len(fill) != 8:
            raise ValueError(f"a log has 1 page or more, not {npages}, and a word of it 8 bytes")
        before = fill * ((npages + 63) // 64)
        bitmap = bytearray(before)
        log = raw.new("struct kvm_dirty_log *", {"slot": slot, "dirty_bitmap": raw.room(bitmap)})
        try:
            raw.ioctl(self.fd, Ioctl.GET_DIRTY_LOG, log)
        except KvmError as error:
            raise raw.refusal(error, "the bitmap", bitmap != before) from None
        return bytes(bitmap)

    def get_dirty_log_to(self, slot: int, address: int) -> None:
        """Issue KVM_GET_DIRTY_LOG with a bitmap at `address`, writable or not.

        It is for addresses that the kernel refuses. Raises `KvmError`, EFAULT for those, and ENOENT
        if the slot is not logged.

        >>> from vmm import Kvm, KvmError
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     try:
        ...         vm.get_dirty_log_to(0, 1)
        ...     except KvmError as error:
        ...         print(str(error).rpartition(": ")[2])
        ENOENT No such file or directory
        """
        log = raw.new("struct kvm_dirty_log *", {"slot": slot, "padding2": address})
        raw.ioctl(self.fd, Ioctl.GET_DIRTY_LOG, log)

    def clear_dirty_log(self, slot: int, first_page: int, num_pages: int, bitmap: bytes) -> None:
        """Issue KVM_CLEAR_DIRTY_LOG for the pages whose bits are set, from `first_page` on.

        `bitmap` is padded to 64 bits. Raises `ValueError` when it is too short, and `KvmError`:
        EINVAL if `first_page` is not a multiple of 64, or `num_pages` is not and ends before the
        slot does.

        >>> from vmm import Cap, HostAddress, HostMapping, Kvm, MemFlag
        >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.enable_cap(Cap.MANUAL_DIRTY_LOG_PROTECT2, 1)
        ...     hva, log = HostAddress(memory, 0), MemFlag.LOG_DIRTY_PAGES
        ...     vm.set_user_memory_region(0, log, 0x1000, 0x1000, hva)
        ...     vm.clear_dirty_log(0, first_page=0, num_pages=1, bitmap=vm.get_dirty_log(0, 1))
        """
        if len(bitmap) * 8 < num_pages:
            raise ValueError(f"a bitmap of {len(bitmap)} bytes is too short for {num_pages} pages")
        bits = raw.new("uint8_t[]", (len(bitmap) + 7) // 8 * 8)
        raw.memory_of(bits, len(bitmap))[:] = bitmap
        clear = raw.new(
            "struct kvm_clear_dirty_log *",
            {
                "slot": slot,
                "num_pages": num_pages,
                "first_page": first_page,
                "dirty_bitmap": bits,
            },
        )
        raw.ioctl(self.fd, Ioctl.CLEAR_DIRTY_LOG, clear)

    def clear_dirty_log_from(
        self, slot: int, first_page: int, num_pages: int, address: int
    ) -> None:
        """Issue KVM_CLEAR_DIRTY_LOG with a bitmap at `address`, readable or not.

        The kernel reads `num_pages` bits, rounded up to 64, if the slot has that many pages; the
        caller must provide them. Raises `KvmError`, EFAULT if they cannot be read.

        >>> from vmm import Kvm, KvmError
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     try:
        ...         vm.clear_dirty_log_from(0, 0, 1, address=1)
        ...     except KvmError as error:
        ...         print(str(error).rpartition(": ")[2])
        ENOENT No such file or directory
        """
        fields = {
            "slot": slot,
            "num_pages": num_pages,
            "first_page": first_page,
            "padding2": address,
        }
        raw.ioctl(self.fd, Ioctl.CLEAR_DIRTY_LOG, raw.new("struct kvm_clear_dirty_log *", fields))

    def reset_dirty_rings(self) -> int:
        """Issue KVM_RESET_DIRTY_RINGS and return how many entries it freed.

        Raises `KvmError` if no ring was enabled: EINVAL, or ENOTTY on kernels before Linux 5.11.

        >>> from vmm import Cap, Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.enable_cap(Cap.DIRTY_LOG_RING_ACQ_REL, 0x10000)
        ...     vm.reset_dirty_rings()
        0
        """
        return raw.ioctl(self.fd, Ioctl.RESET_DIRTY_RINGS)

    def create_guest_memfd(self, size_bytes: int, flags: int = 0) -> int:
        """Issue KVM_CREATE_GUEST_MEMFD and return a descriptor that the caller must close.

        `size_bytes` is a multiple of the page size. Raises `KvmError`.

        >>> import os
        >>> from vmm import Cap, Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     if vm.check_extension(Cap.GUEST_MEMFD):
        ...         os.close(vm.create_guest_memfd(0x1000))
        """
        wanted = raw.new("struct kvm_create_guest_memfd *", (size_bytes, flags))
        return raw.new_file(self.fd, Ioctl.CREATE_GUEST_MEMFD, wanted)

    def set_memory_attributes(
        self, address: int, size_bytes: int, attributes: int, flags: int = 0
    ) -> None:
        """Issue KVM_SET_MEMORY_ATTRIBUTES for a range of gpas, in bytes.

        Attributes of 8 make them private, of 0 shared. Raises `KvmError`, ENOTTY if the kernel
        does not know the ioctl.

        >>> from vmm import Cap, Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     if vm.check_extension(Cap.MEMORY_ATTRIBUTES):
        ...         vm.set_memory_attributes(0x10000, 0x1000, attributes=0)
        """
        wanted = raw.new("struct kvm_memory_attributes *", (address, size_bytes, attributes, flags))
        raw.ioctl(self.fd, Ioctl.SET_MEMORY_ATTRIBUTES, wanted)

    def register_coalesced_mmio(self, gpa: int, size_bytes: int, *, pio: int = 0) -> None:
        """Coalesce writes to a range of gpas; `Vcpu.coalesced_mmio` returns them.

        With ``pio`` it is a range of ports (`Cap.COALESCED_PIO`). Raises `KvmError`.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.register_coalesced_mmio(0xa0000, size_bytes=0x1000)
        """
        zone = raw.new("struct kvm_coalesced_mmio_zone *", (gpa, size_bytes, pio))
        raw.ioctl(self.fd, Ioctl.REGISTER_COALESCED_MMIO, zone)

    def unregister_coalesced_mmio(self, gpa: int, size_bytes: int, *, pio: int = 0) -> None:
        """Remove every coalesced range that contains this one; with ``pio`` those of ports.

        Raises `KvmError`.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.register_coalesced_mmio(0xa0000, size_bytes=0x1000)
        ...     vm.unregister_coalesced_mmio(0xa0000, size_bytes=0x1000)
        """
        zone = raw.new("struct kvm_coalesced_mmio_zone *", (gpa, size_bytes, pio))
        raw.ioctl(self.fd, Ioctl.UNREGISTER_COALESCED_MMIO, zone)

    def ioeventfd(
        self, eventfd: int, gpa: int, length: int, match: int | None = None, *, on: bool = True
    ) -> None:
        """Issue KVM_IOEVENTFD: a write of `length` bytes at a gpa signals an eventfd.

        With `match`, only a write of that value does. With `on` false, the eventfd is removed.

        Raises `KvmError`, EEXIST if such a write already signals an eventfd.

        >>> import os
        >>> from vmm import HostAddress, HostMapping, Kvm, assemble
        >>> bell = os.eventfd(0)
        >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     memory.write(0, assemble("movb $1, 0x2000; hlt"))
        ...     vm.set_user_memory_region(0, 0, 0x1000, 0x1000, HostAddress(memory, 0))
        ...     vm.ioeventfd(bell, gpa=0x2000, length=1)
        ...     vcpu = vm.create_vcpu(0)
        ...     vcpu.enter_big_real_mode(base=0x1000, rip=0)
        ...     vcpu.run(), os.eventfd_read(bell)  # The write did not come to us.
        (Hlt(), 1)
        >>> os.close(bell)
        """
        flags = IoEventFdFlag.DATAMATCH if match is not None else IoEventFdFlag(0)
        flags |= IoEventFdFlag(0) if on else IoEventFdFlag.DEASSIGN
        wanted = raw.new("struct kvm_ioeventfd *", (match or 0, gpa, length, eventfd, flags))
        raw.ioctl(self.fd, Ioctl.IOEVENTFD, wanted)

    def create_irqchip(self) -> None:
        """Create in-kernel interrupt controllers; call it before creating vCPUs.

        Raises `KvmError`, EEXIST the second time.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.create_irqchip()
        """
        raw.ioctl(self.fd, Ioctl.CREATE_IRQCHIP)

    def set_tss_addr(self, gpa: int) -> None:
        """Place the three pages that Intel processors without unrestricted guest need.

        Raises `KvmError`.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.set_tss_addr(0xfffbd000)
        """
        raw.ioctl(self.fd, Ioctl.SET_TSS_ADDR, gpa)

    def set_nr_mmu_pages(self, pages: int) -> None:
        """Say how many page tables KVM may have to shadow those of guests: 64 or more.

        Raises `KvmError`.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.set_nr_mmu_pages(64)
        """
        raw.ioctl(self.fd, Ioctl.SET_NR_MMU_PAGES, pages)

    def set_identity_map_addr(self, gpa: int) -> None:
        """Place the identity map page, for the same processors; call it before creating vCPUs.

        Raises `KvmError`, EINVAL when there is a vCPU.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.set_identity_map_addr(0xfffbc000)
        """
        raw.ioctl(self.fd, Ioctl.SET_IDENTITY_MAP_ADDR, raw.new("uint64_t *", gpa))

    def _track(self, slot: int, memory_size: int, userspace_addr: HostAddress | int) -> None:
        """Pin or unpin a mapping after a successful call.

        A plain number does not unpin: an existing slot cannot change its hva.
        """
        if memory_size == 0:
            self._pinned[slot] = None
        elif isinstance(userspace_addr, HostAddress):
            self._pinned[slot] = userspace_addr.mapping


IN_PYTHON = Vm.set_user_memory_region
"""All of the method; a shortcut in C stands before it."""

put_before(IN_PYTHON, Vm, HostAddress, HostMapping)
