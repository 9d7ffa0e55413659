"""Checks that a vCPU's registers read back as set, and that its shared pages all exist."""

from msgspec.structs import asdict

from kvm_abi.raw import CData, WrongAnswerError
from kvm_abi.uapi import Cap
from vmm.kvm.registers import Registers, check_values, set_descriptor_tables
from vmm.kvm.system import Kvm

_GENERAL = Registers(*(0x1111_2222_0000 + number for number in range(17)))
"""Beyond 32 bits."""
_CODE_BASE = 0x2_0000
_TABLE = 0x3_0000, 0x123
_SET = "set to {}"


def check_registers(kvm: Kvm) -> None:
    """Set registers of a vCPU that never runs, and read them back.

    Raises `KvmError`, and `WrongAnswerError` if one differs from what was set.
    """
    with kvm.create_vm() as vm:
        vcpu = vm.create_vcpu(0)
        vcpu.enter_big_real_mode(_CODE_BASE, 0)
        special = vcpu.get_sregs()
        set_descriptor_tables(special, *_TABLE)
        vcpu.set_sregs(special)
        vcpu.set_regs(_GENERAL)
        vm.create_vcpu(1)  # That leaves the first as it is.
        check_values("KVM_GET_REGS", asdict(vcpu.get_regs()), asdict(_GENERAL), _SET)
        wanted = {"cs.base": _CODE_BASE, "ss.base": _CODE_BASE, "ds.base": 0}
        wanted |= dict(zip(("gdt.base", "gdt.limit"), _TABLE, strict=True))
        check_values("KVM_GET_SREGS", _special(vcpu.get_sregs(), wanted), wanted, _SET)


def check_shared_memory(kvm: Kvm) -> None:
    """Read all pages that a vCPU shares with the kernel.

    Raises `KvmError`, and `WrongAnswerError` if the ring of coalesced MMIO is not among them. A
    missing page kills the process by SIGBUS.
    """
    with kvm.create_vm() as vm:
        pages, ring = len(vm.create_vcpu(0).shared_pages()), kvm.check_extension(Cap.COALESCED_MMIO)
        if ring >= pages:
            wrong = f"{ring}, and a vCPU shares pages 0 to {pages - 1} (KVM_GET_VCPU_MMAP_SIZE)"
            raise WrongAnswerError("KVM_CHECK_EXTENSION", wrong, "KVM_CAP_COALESCED_MMIO")


def _special(sregs: CData, names: dict[str, int]) -> dict[str, int]:
    parts = (name.partition(".") for name in names)
    return {f"{of}.{what}": int(getattr(getattr(sregs, of), what)) for of, _, what in parts}
