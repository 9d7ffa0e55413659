"""`Kvm`: the KVM of this host, through /dev/kvm."""

import errno
import os
import stat
from pathlib import Path
from typing import Self

from kvm_abi import raw
from kvm_abi.raw import CData, KvmError, WrongAnswerError
from kvm_abi.uapi import (
    API_VERSION,
    DEVICE_NUMBER,
    PAGE_SIZE_BYTES,
    PARAVIRTUAL_LEAF,
    Cap,
    Ioctl,
    VmType,
)
from vmm.kvm.closing import Closing
from vmm.kvm.vm import Vm

DEVICE = Path("/dev/kvm")

_LEAST_SHARED_PAGES = 2  # struct kvm_run, and the data of port accesses (KVM_PIO_PAGE_OFFSET).

_FIRST_CPUID_ENTRIES = 128
_MOST_CPUID_ENTRIES = 1 << 14
_LEAST_GPA_BITS = 36  # For a processor that does not say.
_GPA_BITS = range(32, 53)  # Possible for a processor that runs 64-bit code.
_CPUID_ADDRESS_SIZES = 0x8000_0008  # MAXPHYADDR is in bits 0-7 of EAX.


class Kvm(Closing):
    """An open /dev/kvm. Its VMs stay open when it is closed.

    >>> from vmm import Cap, Kvm
    >>> with Kvm.open() as kvm:
    ...     kvm.check_extension(Cap.USER_MEMORY), kvm.check_extension(Cap.NR_MEMSLOTS) >= 32
    (1, True)
    """

    def __init__(self, fd: int) -> None:
        """Own `fd`. Raises `KvmError`, and `WrongAnswerError` if it does not answer like KVM."""
        self._fd = fd
        self._cpuids: dict[int, CData] = {}
        try:
            version = raw.ioctl(fd, Ioctl.GET_API_VERSION)
            if version != API_VERSION:
                answer = f"{version}, and not {API_VERSION}, which never changes"
                raise WrongAnswerError("KVM_GET_API_VERSION", answer)
            self.vcpu_mmap_size_bytes = raw.ioctl(fd, Ioctl.GET_VCPU_MMAP_SIZE)
            pages, rest = divmod(self.vcpu_mmap_size_bytes, PAGE_SIZE_BYTES)
            if rest or pages < _LEAST_SHARED_PAGES:
                least = f"{_LEAST_SHARED_PAGES} pages or more"
                answer = f"{self.vcpu_mmap_size_bytes}, and not {least}"
                raise WrongAnswerError("KVM_GET_VCPU_MMAP_SIZE", answer)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, device: Path = DEVICE) -> Self:
        """Open the device for reading and writing.

        Raises `OSError` if that fails, or if it is another device, and what making a `Kvm` raises.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm:
        ...     kvm.fd > 2
        True
        """
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        about = os.fstat(fd)
        if not stat.S_ISCHR(about.st_mode) or about.st_rdev != os.makedev(*DEVICE_NUMBER):
            os.close(fd)
            wanted = "not character device {}:{}".format(*DEVICE_NUMBER)
            raise OSError(errno.ENODEV, wanted, str(device))
        return cls(fd)

    @property
    def fd(self) -> int:
        """The descriptor of the device. Raises `ValueError` when it is closed."""
        if self._fd < 0:
            raise ValueError("the device is closed")
        return self._fd

    def close(self) -> None:
        """Close the device. Closing twice is fine.

        Raises `KvmError` if the kernel refuses that, as none may; it is closed all the same.

        >>> from vmm import Kvm
        >>> kvm = Kvm.open()
        >>> kvm.close()
        """
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            raw.close_kvm_file("/dev/kvm", fd)

    def check_extension(self, cap: Cap | int) -> int:
        """Return the answer of KVM_CHECK_EXTENSION for `cap`: 0 if absent. Raises `KvmError`.

        >>> from vmm import Cap, Kvm
        >>> with Kvm.open() as kvm:
        ...     kvm.check_extension(Cap.USER_MEMORY), kvm.check_extension(0x7fffffff)
        (1, 0)
        """
        return raw.ioctl(self.fd, Ioctl.CHECK_EXTENSION, int(cap))

    def supported_cpuid(self) -> CData:
        """Return the answer of KVM_GET_SUPPORTED_CPUID, a `struct kvm_cpuid2 *`.

        Raises `KvmError`, E2BIG if no number of entries is enough, and `WrongAnswerError`.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm:
        ...     kvm.supported_cpuid().nent > 1
        True
        """
        entries = _FIRST_CPUID_ENTRIES
        while True:
            cpuid = raw.new("struct kvm_cpuid2 *", {"nent": entries, "entries": entries})
            try:
                raw.ioctl(self.fd, Ioctl.GET_SUPPORTED_CPUID, cpuid)
            except KvmError as error:
                if error.errno != errno.E2BIG or entries >= _MOST_CPUID_ENTRIES:
                    raise
                entries *= 2
                continue
            if not 0 < cpuid.nent <= entries:
                answer = f"{cpuid.nent} entries, and there is room for {entries}"
                raise WrongAnswerError("KVM_GET_SUPPORTED_CPUID", answer)
            return cpuid

    def paravirtual_features(self) -> int:
        """Return the paravirtual features in the supported CPUID, as bits `1 << feature`.

        Raises what `supported_cpuid` does.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm:
        ...     kvm.paravirtual_features() >= 0
        True
        """
        cpuid = self.supported_cpuid()
        for entry in cpuid.entries[0 : cpuid.nent]:
            if entry.function == PARAVIRTUAL_LEAF:
                return int(entry.eax)
        return 0

    def supported_gpa_bits(self) -> int:
        """Return how many bits a guest-physical address has, by the supported CPUID.

        Raises what `supported_cpuid` does.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm:
        ...     36 <= kvm.supported_gpa_bits() <= 52
        True
        """
        cpuid = self.supported_cpuid()
        for entry in cpuid.entries[0 : cpuid.nent]:
            if entry.function == _CPUID_ADDRESS_SIZES:
                bits = int(entry.eax & 0xFF)
                if bits not in _GPA_BITS:
                    wrong = f"{bits} bits of a gpa in leaf {_CPUID_ADDRESS_SIZES:#x}"
                    raise WrongAnswerError("KVM_GET_SUPPORTED_CPUID", wrong)
                return bits
        return _LEAST_GPA_BITS

    def cpuid_with_gpa_bits(self, bits: int) -> CData:
        """Return the supported CPUID with another number of guest-physical address bits.

        The kernel is asked only once, as this is the slowest of all calls that a VM needs. Raises
        what `supported_cpuid` does.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm, kvm.create_vm() as vm:
        ...     vm.create_vcpu(0).set_cpuid(kvm.cpuid_with_gpa_bits(40))
        """
        if bits not in self._cpuids:
            self._cpuids[bits] = self._new_cpuid(bits)
        return self._cpuids[bits]

    def _new_cpuid(self, bits: int) -> CData:
        cpuid = self.supported_cpuid()
        for entry in cpuid.entries[0 : cpuid.nent]:
            if entry.function == _CPUID_ADDRESS_SIZES:
                entry.eax = entry.eax & ~0xFF | bits
        return cpuid

    def create_vm(self, kind: VmType = VmType.DEFAULT_VM) -> Vm:
        """Create a VM without memory or vCPUs. Raises `KvmError`, EINVAL for an unknown type.

        >>> from vmm import Kvm
        >>> with Kvm.open() as kvm:
        ...     vm = kvm.create_vm()
        >>> vm.close()  # It does not need the device.
        """
        return Vm(raw.new_file(self.fd, Ioctl.CREATE_VM, int(kind)), self.vcpu_mmap_size_bytes)
