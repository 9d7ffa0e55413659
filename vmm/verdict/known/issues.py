"""The bugs that some kernels are known to have, as data."""

from vmm.model.accesses import HOLE, IN_SMM, PRIVATE, REACH, READ_ONLY, STRADDLE
from vmm.model.backing import HOST_FOLLOWS, HVA_ABSENT, PRIVATE_FAULT
from vmm.model.clocks import KVMCLOCK_CTRL
from vmm.model.devices import COALESCED, EVENT
from vmm.model.dirty import DIRTY_EXACT
from vmm.model.instructions import INSTRUCTION, READ_THEN_WRITE
from vmm.model.memfds import GUEST_MEMFD_END
from vmm.model.model import CONTENT, VM_GONE
from vmm.model.pagetables import GUEST_TABLES
from vmm.model.races.judge import RACE_REACH
from vmm.model.rings import RING_EXACT
from vmm.model.transfers import CALL_OUTSIDE, INTERRUPT_OUTSIDE
from vmm.scenario.operations import (
    AnyOperation,
    ChangeHostMemory,
    ClearDirtyLog,
    CoalesceMmio,
    CreateIrqchip,
    HarvestDirtyRing,
    Instruction,
    IoEventFd,
    PreFaultMemory,
    Race,
    SetClockMsr,
    SetIdentityMapAddr,
    SetMemoryAttributes,
    SetTssAddr,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Start,
    Touch,
)
from vmm.verdict.known import conditions, hosts, interrupts, mmio, page_tables, pfnmap
from vmm.verdict.known.issue import Known, KnownIssue, known_at, names


def _kinds(*operations: type[AnyOperation]) -> frozenset[type[AnyOperation]]:
    return frozenset(operations)


KNOWN = (
    Known(
        KnownIssue(
            name="pvm-dirty-ring-overrun",
            vendor="kvm_pvm",
            rules=names(RING_EXACT),
            what="kvm_pvm emulates many instructions before it looks whether the dirty ring is "
            "full, so that what they write overruns the ring, and pages are lost",
            evidence="kvm_dirty_ring_push() warns once per boot that the ring is full, and "
            "overwrites its oldest entries; after 1024 writes by one string instruction "
            "to a ring of 256 entries every KVM_RUN is KVM_EXIT_DIRTY_RING_FULL, whatever "
            "is harvested and reset",
            log=r"WARNING: .*kvm_dirty_ring_push",
        ),
        _kinds(HarvestDirtyRing),
        conditions.overruns_a_ring,
        conditions.is_harvest,
    ),
    Known(
        KnownIssue(
            name="emulated-dirty-ring-overrun",
            vendor="kvm_intel",
            rules=names(RING_EXACT),
            what="where kvm_intel emulates real mode, a string instruction writes up to 1024 "
            "elements before anybody looks whether the dirty ring is full",
            evidence="Linux 6.12 with ept=0: in ring-overrun-by-one-instruction "
            "kvm_dirty_ring_push() warns that the ring is full, called by x86_emulate_insn()",
            log=r"WARNING: .*kvm_dirty_ring_push",
        ),
        _kinds(HarvestDirtyRing),
        conditions.overruns_a_ring,
        conditions.is_harvest,
        hosts.tdp("off"),
    ),
    known_at(
        KnownIssue(
            name="gmem-bind-signed-overflow",
            vendor="",
            rules=names(GUEST_MEMFD_END),
            what="kvm_gmem_bind() adds offset and size as signed numbers: an end beyond 2^63 "
            "is negative, and passes for one within the file",
            evidence="Linux 6.18 binds 0x2000 bytes of a guest_memfd of that size at the offsets "
            "0x7fffffffffffe000 and 0x7ffffffffffff000; at 0x7fffffffffffd000, and at "
            "2^63, it answers EINVAL; mended by eba85fee7fc6",
        ),
        SetUserMemoryRegion2,
        conditions.bindings_beyond_all,
    ),
    Known(
        KnownIssue(
            name="internal-slot-refused-mapping-left",
            vendor="",
            rules=names(VM_GONE),
            what="__x86_set_memory_region() maps memory before it makes the slot, and leaves "
            "it mapped in the process where the slot is refused: nothing knows of it any "
            "more",
            evidence="Linux 6.1 (kvm_intel, unrestricted_guest=0) leaves three pages behind for "
            "each KVM_SET_TSS_ADDR over a slot, Linux 7.3 (kvm_amd with AVIC) one page "
            "for a KVM_CREATE_VCPU whose APIC page has no room; both calls are EEXIST, as "
            "they ought to be",
        ),
        _kinds(SetTssAddr, SetIdentityMapAddr, CreateIrqchip),
        conditions.has_no_room_for_internal_slots,
        conditions.is_close,
    ),
    Known(
        KnownIssue(
            name="internal-slot-unmapped-at-zero",
            vendor="",
            rules=names(VM_GONE),
            what="where a VM ends, __x86_set_memory_region() unmaps as much memory as an internal "
            "slot has at virtual address 0, and not where the slot's is: that stays mapped in "
            "the process, and what the process has at 0 is gone",
            evidence="Linux 5.10.262 (kvm_intel): a page is left of each VM with the APIC's page "
            "(ept=1, bystanders-of-internal-slots), and with unrestricted_guest=0 of each VM with "
            "a vCPU; 6.12 unmaps what it has mapped",
            outcome="Closed",
        ),
        _kinds(),
        conditions.any_scenario,
        conditions.ends_vms,
        hosts.keeps_internal_slots_in_arrays,
    ),
    Known(
        KnownIssue(
            name="initially-set-huge-page-border",
            vendor="",
            rules=names(DIRTY_EXACT),
            what="kvm_arch_mmu_enable_log_dirty_pt_masked() overlooks a second huge page of "
            "which it clears the first 4 KiB only: it stays writable, and what the guest "
            "writes there is lost",
            evidence="Linux 7.3 with kvm_amd.npt=0, and with npt=1 and kvm.eager_page_split=0 "
            "(which else hides it, where the TDP MMU is in use): ALIGN() rounds both "
            "addresses up, and the border that the first is rounded to is where the last "
            "one is; rounded down, none is lost",
        ),
        _kinds(ClearDirtyLog),
        conditions.clears_into_a_huge_page,
        conditions.is_log_read,
    ),
    Known(
        KnownIssue(
            name="private-memory-after-cached-mmio",
            vendor="",
            rules=names(PRIVATE, RACE_REACH),
            what="kvm_mmu_page_fault() takes an access through an entry for MMIO, which may "
            "stand from before the slot, for one on shared memory: where the gpa is "
            "private by now the vCPU stops, though a guest_memfd backs it",
            evidence="Linux 7.3 (kvm_amd, nested paging) answers every KVM_RUN with EFAULT, and "
            "KVM_EXIT_MEMORY_FAULT with flags 0, when a guest reads private memory at a "
            "gpa that it read as MMIO before the slot was there; without that first read "
            "it reads the zeros of the guest_memfd (private-and-shared-memory); Linux 6.12 does so "
            "in races, too, whichever vCPU has met the page",
            outcome="Stopped",
        ),
        _kinds(SetMemoryAttributes, Race),
        mmio.reads_private_memory_over_mmio,
        mmio.is_private_memory_over_mmio,
    ),
    Known(
        KnownIssue(
            name="private-fault-after-cached-mmio",
            vendor="",
            rules=names(PRIVATE_FAULT),
            what="kvm_mmu_page_fault() takes an access through an entry for MMIO for one on shared "
            "memory: where the slots have changed since, and the gpa is private by now, "
            "KVM_EXIT_MEMORY_FAULT does not say that it is",
            evidence="Linux 6.12 (kvm_amd, nested paging) answers EFAULT, and "
            "KVM_EXIT_MEMORY_FAULT with flags 0, when a guest reads a private gpa without a slot "
            "that it read as MMIO before another slot was made; without that first read the flag "
            "is there (private-where-mmio-was, private-without-a-file)",
            outcome="Stopped",
        ),
        _kinds(SetMemoryAttributes),
        mmio.touches_private_pages_met_as_mmio,
        mmio.is_touched_since_made_private,
    ),
    Known(
        KnownIssue(
            name="smm-mmio-cache-generation",
            vendor="",
            rules=names(IN_SMM, HOST_FOLLOWS, INSTRUCTION, READ_THEN_WRITE, STRADDLE),
            what="a vCPU compares the generation of what it remembers as MMIO with that of "
            "as_id 0 only: in SMM it takes a gpa for MMIO on which as_id 1 has a slot by "
            "now",
            evidence="spaces-switched-between-changes differs on Linux 5.10.262 and 6.1.187, and "
            "passes on 6.1.192; fuzz meets it on 5.10.262 where host memory has changed, and with "
            "instructions that KVM emulates; mended by b3e6212dea2e",
            outcome="MMIO",
        ),
        _kinds(Touch, Instruction),
        mmio.switches_spaces_over_mmio,
        mmio.is_touched_over_mmio_in_smm,
    ),
    Known(
        KnownIssue(
            name="mmio-cached-in-smm",
            vendor="",
            rules=names(REACH),
            what="a vCPU compares the generation of what it remembers as MMIO with that of as_id 0 "
            "only: what it has just met as MMIO in SMM it takes for MMIO outside, too, where it "
            "had met no slot before, and as_id 0 has one by now",
            evidence="Linux 5.10.262 (kvm_amd, npt=1) differs in what fuzz has made: a read in a "
            "hole, a slot there, a write in SMM, a read; mended by b3e6212dea2e",
            outcome="MMIO",
        ),
        _kinds(Touch),
        mmio.returns_over_mmio,
        mmio.is_touched_over_mmio_after_smm,
    ),
    Known(
        KnownIssue(
            name="mmio-cached-in-the-other-space",
            vendor="",
            rules=names(
                *(REACH, READ_ONLY, IN_SMM, HOST_FOLLOWS, INSTRUCTION, READ_THEN_WRITE, STRADDLE)
            ),
            what="a vCPU compares the generation of what it remembers as MMIO with that of as_id 0 "
            "only: what it has just met as MMIO in one address space it takes for MMIO in the "
            "other, which has a slot there",
            evidence="Linux 5.10.262 (kvm_amd) differs in what fuzz has made: with npt=1 a read in "
            "SMM, where as_id 1 has no slot, and a write outside to a READONLY slot, or a read "
            "in a hole and outs in SMM from a slot into it; with npt=0 an emulated lock and there; "
            "mended by b3e6212dea2e",
            outcome="MMIO",
        ),
        _kinds(Touch, Instruction),
        mmio.crosses_spaces,
        mmio.is_accessed_across_spaces,
    ),
    Known(
        KnownIssue(
            name="pre-fault-with-an-obsolete-root",
            vendor="",
            rules=frozenset(),
            what="KVM_PRE_FAULT_MEMORY never ends where a slot was deleted or moved since the "
            "vCPU ran: its root is obsolete, so that each try is to be made again, and "
            "nothing makes it a new one",
            evidence="Linux 6.12.117 does not come back from pre-fault, delete, pre-fault, nor "
            "from races of both that fuzz makes; mended by 20a6cff3b283",
            hangs=True,
        ),
        _kinds(PreFaultMemory, Race),
        conditions.prefaults_after_a_deletion,
        conditions.is_prefault_after_a_deletion,
    ),
    Known(
        KnownIssue(
            name="io-bus-out-of-order",
            vendor="",
            rules=names(EVENT, COALESCED),
            what="kvm_io_bus_cmp() takes a range that ends where a device of length 0 begins for "
            "one that overlaps it, and puts it after that device: the bus is searched by halves, "
            "so that a write finds no device then, and exits",
            evidence="Linux 6.18: an ioeventfd of any length at 0x2000, then a coalesced range up "
            "to there: a write of 4 bytes to 0x2000 exits (vmm fuzz, and its C program)",
            outcome="MMIO",
        ),
        _kinds(CoalesceMmio, IoEventFd),
        conditions.puts_a_bus_out_of_order,
        conditions.is_write,
    ),
    Known(
        KnownIssue(
            name="system-time-kept-where-it-was",
            vendor="",
            rules=names(CONTENT, KVMCLOCK_CTRL),
            what="kvm_gpc_activate() takes a system time that reaches into the next page for "
            "active before it refuses it, with the gpa of the one before: KVM_KVMCLOCK_CTRL "
            "succeeds, and KVM goes on to write to a gpa that the guest has switched off",
            evidence="clocks-system-time-reaches-beyond-its-slot on Linux 6.1.0-57 (kvm_amd): it "
            "writes to gpa 0x101400, which is off, when the guest asks for 0x103ff0; 5.10 and "
            "6.12, which look at the length first, pass (what is between them was not run)",
        ),
        _kinds(SetClockMsr),
        conditions.reaches_into_the_next_page,
        conditions.may_show_a_kept_system_time,
        hosts.releases(since=(5, 17), before=(6, 12)),
    ),
    Known(
        KnownIssue(
            name="coalesced-ring-full-at-half",
            vendor="",
            rules=names(COALESCED),
            what="coalesced_mmio_has_room() takes an unsigned difference modulo 170, which does "
            "not divide 2^32: where 85 entries are in the ring, it is full, and a write exits",
            evidence="Linux 6.1.192 (kvm_amd): the 86th write of "
            "devices-coalesced-until-the-ring-is-full exits; 5.10 computes the same, and 6.12, "
            "which subtracts nothing, passes",
            outcome="MMIO",
        ),
        _kinds(CoalesceMmio),
        conditions.fills_half_a_ring,
        conditions.is_write_to_half_a_ring,
    ),
    known_at(
        KnownIssue(
            name="emulated-descriptor-table-outside-memory",
            vendor="",
            rules=frozenset(),
            what="KVM's emulator stores what sgdt, sidt and fxsave store with "
            "segmented_write_std(), which cannot exit: where the destination is no memory, or "
            "READONLY, the instruction is begun again for ever, without an exit",
            evidence="Linux 6.12 (kvm_amd) and 6.18 (kvm_pvm) do not leave KVM_RUN before a "
            "signal, and RIP stays at the instruction: sgdt-in-a-hole, "
            "sidt-on-a-readonly-slot, fxsave-in-a-hole",
            hangs=True,
        ),
        Instruction,
        conditions.tables_stored,
    ),
    known_at(
        KnownIssue(
            name="emulated-pusha-exits-once",
            vendor="",
            rules=names(HOLE, READ_ONLY, STRADDLE),
            what="em_pusha() writes register after register, and each write that has to exit takes "
            "the place of the one before: userspace sees the last one alone",
            evidence="Linux 6.12 (kvm_amd) and 6.18 (kvm_pvm) give one exit, of 2 or 4 bytes, with "
            "DI: pusha-in-a-hole, pusha-on-a-readonly-slot",
            outcome="MMIO",
        ),
        Instruction,
        conditions.all_pushed,
    ),
    Known(
        KnownIssue(
            name="pfnmap-forbidden-is-read",
            vendor="",
            rules=names(HOST_FOLLOWS, HVA_ABSENT),
            what="hva_to_pfn_remapped() takes any present entry of the page table, and mprotect() "
            "leaves those of PROT_NONE present: a guest reads page frames of a VM_PFNMAP mapping "
            "that the process itself may not access",
            evidence="Linux 6.12.118 and 7.2.13 (kvm_amd, npt=1 and npt=0) read 0x9b100000, not "
            "EFAULT after mprotect(PROT_NONE): pfnmap-forbidden; a write fails, as it should",
        ),
        _kinds(ChangeHostMemory),
        pfnmap.forbids_page_frames,
        pfnmap.may_read_forbidden_frames,
    ),
    known_at(
        KnownIssue(
            name="emulated-interrupt-exits-once",
            vendor="",
            rules=names(INTERRUPT_OUTSIDE),
            what="emulate_int_real() pushes word after word, and each push that has to exit takes "
            "the place of the one before: userspace sees the last one alone, that of IP",
            evidence="Linux 6.18 (kvm_pvm) gives one exit, of the 2 bytes of IP: "
            "interrupt-onto-a-stack-in-a-hole, interrupt-onto-a-readonly-stack",
            outcome="MMIO",
        ),
        Start,
        interrupts.interrupts_pushed_outside,
    ),
    known_at(
        KnownIssue(
            name="emulated-far-call-exits-once",
            vendor="",
            rules=names(CALL_OUTSIDE),
            what="em_call_far() pushes CS and then IP, and where both have to exit, the second "
            "takes the place of the first: userspace sees that of IP alone",
            evidence="Linux 5.10, 6.12 (kvm_amd) and 6.18 (kvm_pvm) give one exit, of the 2 bytes "
            "of IP: return-address-of-a-far-call-in-a-hole, "
            "return-address-of-a-far-call-on-a-readonly-slot",
            outcome="MMIO",
        ),
        Start,
        interrupts.far_calls_pushed_outside,
    ),
    known_at(
        KnownIssue(
            name="emulated-interrupt-table-outside-memory",
            vendor="",
            rules=frozenset(),
            what="emulate_int_real() reads the interrupt table with read_std(), which cannot exit: "
            "where the table is no memory the instruction is begun again for ever, without an exit",
            evidence="Linux 6.18 (kvm_pvm) does not leave KVM_RUN before a signal: "
            "interrupt-through-a-table-in-a-hole",
            hangs=True,
        ),
        Start,
        interrupts.interrupts_without_a_table,
    ),
    known_at(
        KnownIssue(
            name="interrupt-through-cached-mmio",
            vendor="",
            rules=frozenset(),
            what="npf_interception() and handle_ept_misconfig() resume the guest where a fault at "
            "a page known as MMIO cannot be emulated since an interrupt is being delivered: "
            "the delivery meets the same page for ever, though a slot has been made there since",
            evidence="Linux 7.2.13 and 7.3.4 (kvm_amd, npt=1) have no exit in 150 s, where 6.12, "
            "6.18.15 and npt=0 pass: interrupt-onto-a-stack-in-a-hole, "
            "interrupt-outside-memory-in-64-bits",
            hangs=True,
        ),
        Start,
        interrupts.deliveries_at_cached_mmio,
    ),
    known_at(
        KnownIssue(
            name="emulated-popa-begins-again",
            vendor="",
            rules=names(HOLE, STRADDLE),
            what="em_popa() begins again after each read that exits, with the stack pointer as the "
            "pops before have left it: it reads further and further up, and so does SP end",
            evidence="Linux 6.12 (kvm_amd) and 6.18 (kvm_pvm) read 0x110040, 0x110046, 0x11004e, "
            "0x110058 and on for eight 16-bit words at 0x110040, and leave SP 0x42 further, not "
            "0x10: "
            "popa-in-a-hole, popa-from-a-slot-into-a-hole",
            outcome="MMIO",
        ),
        Instruction,
        conditions.all_popped,
    ),
    known_at(
        KnownIssue(
            name="port-is-read-again",
            vendor="",
            rules=names(HOLE, READ_ONLY, STRADDLE),
            what="pio_in_emulated() reads a port ahead for a repeated ins; going down, where each "
            "element that exits ends the emulator's work, what is ahead is dropped, and the port "
            "is read again",
            evidence="Linux 6.12 (kvm_amd) and 6.18 (kvm_pvm) take 15 elements from the port for 5 "
            "that go down into a hole: ports-downward-in-a-hole",
            outcome="MMIO",
        ),
        Instruction,
        conditions.taken_down,
    ),
    known_at(
        KnownIssue(
            name="emulated-enter-by-stack-size",
            vendor="",
            rules=names(HOLE, READ_ONLY, STRADDLE, INSTRUCTION),
            what="em_enter() pushes as many bytes as the stack pointer has, whatever the size of "
            "its operand",
            evidence="Linux 6.18 (kvm_pvm) pushes 4 bytes for a 16-bit enter on a stack with a "
            "32-bit pointer, where the manuals have 2: enter-of-16-bits-in-a-hole; where the "
            "processor carries it out, in memory, it is 2",
        ),
        Instruction,
        conditions.narrow_enters,
    ),
    Known(
        KnownIssue(
            name="ept-write-through-cached-mmio",
            vendor="kvm_intel",
            rules=names(HVA_ABSENT),
            what="an access to a page that was met as MMIO ends in an EPT misconfiguration, which "
            "does not say whether it is a write: with a slot there by now KVM takes it for a "
            "read, and where the slot is READONLY and has no host memory, a write stops the vCPU "
            "with EFAULT in place of an MMIO exit",
            evidence="unmapped-hva-readonly on Linux 6.12.117 (kvm_intel with ept=1, in bochs, "
            "whose log names the misconfiguration); handle_ept_misconfig() passes no more than "
            "PFERR_RSVD_MASK; kvm_amd passes",
            outcome="Stopped",
        ),
        _kinds(SetUserMemoryRegion, SetUserMemoryRegion2),
        mmio.writes_where_mmio_was,
        mmio.is_written_where_mmio_was,
        hosts.executes_real_mode_with_tdp,
    ),
    known_at(
        KnownIssue(
            name="pvm-root-is-not-found-again",
            vendor="kvm_pvm",
            rules=names(GUEST_TABLES),
            what="a vCPU that met no memory where its CR3 points stops with a shutdown ever after, "
            "also when a slot was created there, until CR3 or the mode changes",
            evidence="Linux 6.18 (kvm_pvm): start-after-tables-were-missed; with another CR3 in "
            "between the vCPU runs, as it does where a slot is moved there; Linux 6.12 (kvm_amd, "
            "npt=0 and npt=1) has none of it",
            outcome="Stopped",
        ),
        Start,
        conditions.starts_after_a_miss,
    ),
    Known(
        KnownIssue(
            name="table-written-across-entries",
            vendor="",
            rules=names(GUEST_TABLES),
            what="mmu_pte_write_fetch_gpte() rounds a write of 4 bytes to the entry of a page "
            "table that it begins in. Where it ends in the next entry, the shadow MMU keeps what "
            "it has of that one, if it is above the last level, for INVLPG does not look there",
            evidence="Linux 5.10 and 6.12 (kvm_amd, npt=0) read through the table that the entry "
            "led to before, where npt=1, and a write of the whole entry, are right: "
            "start-and-map-two-megabytes-anew-by-a-write-across-entries",
            outcome="memory",
        ),
        _kinds(Start),
        page_tables.writes_across_entries,
        page_tables.is_written_across_entries,
    ),
)
"""All known issues, each with what a scenario must do to meet it."""
