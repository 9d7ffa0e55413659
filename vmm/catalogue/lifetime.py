"""VMs that are closed with all their slots; the next VM has none of them."""

import msgspec

from vmm.catalogue._area import Area
from vmm.catalogue._build import NOWHERE, Slot, at, creates, deletes, read, write
from vmm.scenario.operations import (
    LOG_DIRTY_PAGES,
    READONLY,
    Churn,
    HostWrite,
    Lives,
    NewVm,
    Scenario,
)

_ONE = Slot(1, 0x100, at("a"), pages=2)
_TWO = Slot(2, 0x104, at("b"), pages=2)
_BINDING = "kvm_gmem_bind, kvm_gmem_unbind"


_life = Area(tags=("lifetime",), source="103c763c72dd; kvm_arch_destroy_vm, kvm_free_memslots")


def _others(why: str, lives: Lives) -> Scenario:
    return _life(f"other-vms-{lives.death}", why, lives, mappings=())


def _used_up(
    why: str,
    operation: Lives | Churn,
    source: str = "kvm_destroy_vm, kvm_free_memslot",
    needs: tuple[str, ...] = (),
) -> Scenario:
    what = f"vms-{operation.death}" if isinstance(operation, Lives) else operation.what
    return Scenario(
        name=f"nothing-used-up-by-{what}",
        why=why,
        source=source,
        tags=("lifetime", "memory", "slow"),
        operations=(operation,),
        needs=needs,
    )


SCENARIOS = (
    _life("close-without-slots", "A VM without user slots is closed without errors."),
    _life(
        "close-with-live-slots",
        "Slots end with their VM; their memory stays mapped and unchanged.",
        *creates(_ONE, _TWO),
    ),
    _life(
        "close-with-a-moved-and-a-logging-slot",
        "Kernel memory that a move and a dirty log allocated is freed with the VM.",
        *creates(_ONE, _TWO),
        _ONE.move(0x108),
        _TWO.change(LOG_DIRTY_PAGES),
    ),
    _life(
        "close-with-a-slot-without-memory",
        "A VM with a slot without host memory is closed like any other.",
        Slot(1, 0x100, at("nowhere"), pages=2).create(),
        mappings=(NOWHERE,),
    ),
    _life(
        "new-vm-has-no-slots",
        "The next VM has none of a closed VM's slots: reads exit, and there is nothing to delete.",
        *creates(_ONE, _TWO),
        NewVm(),
        read(0x100),
        _ONE.delete(),
        _TWO.log(),
    ),
    _life(
        "new-vm-takes-the-same-slots",
        "The next VM can use the same ids, gfns and memory, whose content is still there.",
        _ONE.create(),
        write(0x101, 0x0DDC0FFE),
        NewVm(),
        _ONE.create(),
        read(0x101),
    ),
    _life(
        "new-vm-puts-other-memory-there",
        "The next VM has other memory at the same gpas, and sees none of the last one's.",
        *creates(_ONE, _TWO),
        NewVm(),
        Slot(2, 0x100, at("b", 4), pages=2).create(),
        Slot(1, 0x104, at("a", 4), pages=2).create(),
    ),
    _life(
        "new-vm-again-and-again",
        "VM after VM is closed with a live slot, and the next one starts empty.",
        *(
            operation
            for gfn in (0x100, 0x101, 0x102, 0x103)
            for operation in (Slot(1, gfn, at("a"), pages=2).create(), NewVm())
        ),
        _ONE.create(),
    ),
    _others("Other VMs are created and closed without effect on this one.", Lives("closed", 20)),
    _others(
        "A VM may be closed by a thread that neither created nor ran it.",
        Lives("closed-by-another-thread", 5),
    ),
    _others(
        "A VM that is closed while a vCPU is in KVM_RUN exists until KVM_RUN returns.",
        Lives("closed-while-running", 3),
    ),
    _others(
        "A forked child may hold the last file descriptor of a VM.", Lives("held-by-a-child", 5)
    ),
    _others("A process may be killed while its vCPU is in the guest.", Lives("killed", 3)),
    _others(
        "A process may be killed while the kernel unmaps the memory of internal slots.",
        Lives("killed-while-closing", 4),
    ),
    _used_up(
        "Creating and closing 1000 VMs leaks no kernel memory.", Lives("closed", 1000, "kernel")
    ),
    _used_up(
        "VMs that are closed while they run leak no kernel memory.",
        Lives("closed-while-running", 96, "kernel"),
    ),
    _used_up(
        "VMs of processes that are killed while they run leak no kernel memory.",
        Lives("killed", 96, "kernel"),
    ),
    _used_up(
        "Thousands of creates, moves, flag changes, refusals and deletions leak no kernel memory.",
        Churn(1, 1000),
    ),
    msgspec.structs.replace(
        _used_up(
            "Thousands of changes leak no page tables if a vCPU reads the slot after each.",
            Churn(1, 90),
            source="kvm_tdp_mmu_zap_invalidated_roots, kvm_zap_obsolete_pages",
        ),
        name="nothing-used-up-by-mappings",
        operations=(read(0x100), Churn(1, 90)),
    ),
    _used_up(
        "A refused creation, refused early or late and with any flags, leaks no kernel memory.",
        Churn(1, 1600, "refused-creations"),
        source="kvm_prepare_memory_region: kvm_destroy_dirty_bitmap (found by syzbot in 2022)",
    ),
    _used_up(
        "A refused move, before or after the slot was invalidated, leaks no kernel memory.",
        Churn(1, 1000, "refused-moves"),
        source="kvm_set_memslot: kvm_activate_memslot",
    ),
    _used_up(
        "A refused binding holds no reference to the guest_memfd: closing it frees it and its "
        "memory.",
        Churn(1, 800, "refused-bindings"),
        source=_BINDING,
        needs=("user_memory2", "guest_memfd"),
    ),
    msgspec.structs.replace(
        _used_up(
            "On a VM with private memory a refused binding holds no reference to the guest_memfd.",
            Churn(1, 800, "refused-bindings"),
            source=_BINDING,
            needs=("user_memory2", "sw_protected"),
        ),
        name="private-vm-nothing-used-up-by-refused-bindings",
        vm_type=1,
    ),
    _used_up(
        "A refused ioeventfd leaks no kernel memory, and does not hold its eventfd.",
        Churn(1, 1600, "refused-eventfds"),
        source="kvm_assign_ioeventfd_idx",
        needs=("ioeventfd",),
    ),
    _used_up(
        "A change of a slot, or an ioeventfd, that runs out of memory, at whichever allocation, "
        "leaks none of what it had, and leaves nothing of it.",
        Churn(1, 64, "failing-changes"),
        source="kvm_alloc_memslot_metadata, kvm_prepare_memory_region, kvm_set_memslot, "
        "kvm_assign_ioeventfd",
        needs=("failing_allocations",),
    ),
    _life(
        "a-thousand-changes-later",
        "After many changes each kind of change still works.",
        Churn(1, 100),
        *creates(_ONE, _TWO),
        _ONE.change(LOG_DIRTY_PAGES),
        write(0x101, 0x600DF00D),
        _ONE.log(),
        _ONE.move(0x108, LOG_DIRTY_PAGES),
        _ONE.log(),
        _ONE.move(0x108),
        _TWO.move(0x100),
        *deletes(_ONE, _TWO),
        Slot(1, 0x100, at("b", 2), pages=2, flags=READONLY).create(),
    ),
    _life(
        "memory-outlives-the-vm",
        "The host writes to memory that a closed VM had, and the next VM reads it.",
        _ONE.create(),
        NewVm(),
        HostWrite(at("a", 1), 0x5AFE5AFE),
        _ONE.create(),
        read(0x101, 0),
    ),
)
"""All scenarios about the end of a VM."""
