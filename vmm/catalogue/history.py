"""Bugs that kernels had, and the scenarios that would have shown them."""

from vmm.scenario.bugs import Bug, ShownBy

BUGS = (
    Bug(
        ("efbeec7098ee",),
        "a slot at gpa 0 was sorted among the unused entries",
        (
            ShownBy(
                "delete-then-create-at-gpa-0",
                "the entry that the deletion freed has gfn 0 as well, and the new slot must be "
                "sorted before it to be found",
            ),
            ShownBy("create-at-gpa-0", "all entries after the first few are unused, with gfn 0"),
        ),
    ),
    Bug(
        ("edd4fa37baa6",),
        "a moved slot kept the huge page information of its old alignment",
        (
            ShownBy(
                "move-out-of-huge-page-alignment",
                "with the old information 2 MiB are mapped at once, which now shows the guest "
                "the neighbour of each page",
            ),
            ShownBy(
                "move-into-huge-page-alignment",
                "the reverse map for the old gfn is one huge page too short for the new one",
            ),
        ),
        where="where the guest's memory may be mapped by huge pages",
    ),
    Bug(
        ("0774a964ef56",),
        "the index of the slot looked up last was still used after it had become invalid",
        (
            ShownBy(
                "delete-from-the-lowest-gfn-up",
                "the last entry is found and deleted; the next lookup begins there, beyond the "
                "end of the array",
            ),
            ShownBy(
                "delete-the-slot-looked-up-last",
                "the index stays that of the deleted slot while lookups continue",
            ),
            ShownBy(
                "delete-from-the-highest-gfn-down",
                "each deletion shifts every entry in use by one, but not the index",
            ),
        ),
        where="in the kernels that had the array (Linux 4.17 to 5.16)",
    ),
    Bug(
        ("e0135a104c52",),
        "deletion checked an address that it does not use, and was refused",
        (
            ShownBy(
                "delete-whatever-the-hva",
                "any legal address must be accepted: 0, another slot's, or one without memory",
            ),
            ShownBy(
                "apic-page-then-a-slot-over-it",
                "the kernel's own deletion of the APIC page failed: its memory stays when the VM "
                "is closed",
                needs=("internal_apic",),
            ),
        ),
        where="for internal slots, with APIC virtualisation",
    ),
    Bug(
        ("fa3d315a4ce2", "09d952c971a5"),
        "kernel addresses were accepted as the guest's memory (CVE-2013-1943)",
        (
            ShownBy("refuse-a-kernel-hva", "creation succeeds instead of EINVAL"),
            ShownBy(
                "refuse-a-kernel-hva-on-deletion",
                "the fix put the check first, so that it applies to deletions, too",
            ),
        ),
    ),
    Bug(
        ("f0736cf0550b",),
        "the deletion of an absent slot was accepted",
        (
            ShownBy("delete-absent", "the call succeeds instead of EINVAL"),
            ShownBy("delete-twice", "so does the second deletion"),
        ),
    ),
    Bug(
        ("12d6e7538e2d", "e40f193f5bb0"),
        "a slot was moved without being invalidated first (CVE-2013-4592)",
        (
            ShownBy("move-up", "the guest still reads memory at the old gpa, which it had used"),
            ShownBy(
                "vcpus-move-after-cached-memory",
                "each vCPU that had used the old gpa does",
            ),
        ),
        where="anywhere; for the IOMMU's mappings, with an assigned device",
    ),
    Bug(
        ("75d61fbcf563",),
        "READONLY could be toggled on an existing slot",
        (
            ShownBy("refuse-readonly-on", "the call succeeds instead of EINVAL"),
            ShownBy("refuse-readonly-off", "the call succeeds instead of EINVAL"),
        ),
    ),
    Bug(
        ("6fe639792c7b",),
        "a user's slot could take the id of a private slot, and overwrite it",
        (
            ShownBy(
                "tss-with-a-full-table",
                "with every id in use, the private slot could only take a user's",
                needs=("internal_tss",),
            ),
            ShownBy(
                "refuse-a-slot-id-beyond-the-last",
                "the ids of the private slots are above KVM_CAP_NR_MEMSLOTS, and not the user's",
            ),
        ),
        where="where the kernel creates a slot for the TSS (kvm_intel.unrestricted_guest=0)",
    ),
    Bug(
        ("103c763c72dd",),
        "the kernel warned when it could not unmap the memory of a private slot of a closed VM",
        (
            ShownBy(
                "other-vms-killed-while-closing",
                "a process that is killed while it waits for its mmap lock makes that unmapping "
                "fail, but not always: many runs are needed to see the kernel's warning",
                needs=("internal_tss",),
            ),
        ),
        where="where the kernel creates internal slots",
    ),
    Bug(
        ("152482580a1b", "ddfd1730fd82"),
        "a vCPU cached MMIO with the generation of slots that were still being changed",
        (
            ShownBy(
                "racing-mmio-under-churn",
                "a vCPU that accesses the gpa while slots change caches the wrong generation, and "
                "still gets MMIO exits after the creation has returned",
            ),
            ShownBy(
                "vcpus-create-after-cached-mmio",
                "a vCPU that was not running does, if its generation was wrong from the start",
            ),
            ShownBy(
                "mmio-then-memory-then-mmio",
                "the only vCPU does, when slots are created and deleted again and again",
            ),
        ),
        where="where MMIO is cached in page tables (TDP or shadow paging)",
    ),
    Bug(
        ("76d58e0f07ec", "98938aa8edd6"),
        "the end of a slot whose size is not a multiple of 64 pages could not be cleared, or too "
        "much was cleared",
        (
            ShownBy("clear-grid-of-65-pages", "the last page has its own word: EINVAL"),
            ShownBy("clear-grid-of-130-pages", "the last two pages have their own word: EINVAL"),
            ShownBy("clear-errors-of-ranges", "a range beyond the slot succeeds instead of EINVAL"),
        ),
        where="with KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
    ),
    Bug(
        ("7cd1bf039eeb",),
        "the dirty bits of a huge page that was split for the log were off by one",
        (
            ShownBy(
                "clear-within-huge-pages-thp-initially-set",
                "after pages are cleared and written again, some are missing in the log, and "
                "others are reported",
            ),
            ShownBy("clear-within-huge-pages-thp", "the same, for a log that began clean"),
            ShownBy("clear-within-huge-pages-hugetlb", "the same, on reserved huge pages"),
        ),
        where="where the guest's memory may be mapped by huge pages",
    ),
    Bug(
        ("d012a06ab1d2", "aa8d1f48d353"),
        "zapping only the deleted slot's pages broke guests with assigned devices",
        (
            ShownBy(
                "racing-delete-and-create-without-zap-all",
                "a stale translation shows the memory of the deleted slot, on a VM that zaps only "
                "its pages",
            ),
            ShownBy("racing-move-without-zap-all", "the same after a move, on such a VM"),
            ShownBy(
                "delete-then-create-there-with-other-memory",
                "the same on a kernel that always zaps only its pages",
            ),
            ShownBy("move-then-create-at-the-old-place", "the same after a move on such a kernel"),
        ),
        where="in Linux 5.3, and where KVM_X86_QUIRK_SLOT_ZAP_ALL is disabled",
    ),
    Bug(
        ("52ac8b358b0c",),
        "slots changed between begin and end of an invalidation of their memory, and its count "
        "never returned to zero: vCPUs hang",
        (
            ShownBy(
                "racing-slots-and-unmap",
                "one thread unmaps and maps memory that another thread's slots show: the vCPU "
                "that waits for the count does not return within the time limit",
            ),
        ),
    ),
    Bug(
        ("3ccbf6f47098",),
        "pre-faulting memory and deleting its slot waited for each other for ever",
        (
            ShownBy(
                "racing-pre-fault-and-delete",
                "the call retries for ever while the slot is invalid, and the deletion waits for "
                "it: neither returns within the time limit",
            ),
        ),
        where="with KVM_CAP_PRE_FAULT_MEMORY",
    ),
    Bug(
        ("9935df5333aa",),
        "GUEST_MEMFD could be set on an existing slot: use after free",
        (
            ShownBy("memfd-slot-cannot-become-one", "the call succeeds instead of EINVAL"),
            ShownBy("memfd-slot-cannot-change", "the same where the flag is cleared"),
        ),
        where="with KVM_CAP_GUEST_MEMFD",
    ),
    Bug(
        ("530a8ba71b4c",),
        "one reset of dirty rings could run without bound, and its count overflow",
        (
            ShownBy(
                "racing-ring-under-load",
                "a reset that does not end while entries are written and harvested does not "
                "return within the time limit, and a count that overflowed is not the number of "
                "harvested entries; 2^31 entries in one reset would take too long to test",
            ),
        ),
        where="with KVM_CAP_DIRTY_LOG_RING",
    ),
    Bug(
        ("b3e6212dea2e",),
        "MMIO that a vCPU had cached was compared with the generation of as_id 0 only",
        (
            ShownBy(
                "spaces-switched-between-changes",
                "a slot that is created in as_id 1 is still MMIO to a vCPU that had used its gpa",
                needs=("smm",),
            ),
        ),
        where="with system management mode",
    ),
    Bug(
        ("c87661f855c3",),
        "a new slot that was refused late left its dirty bitmap allocated (syzbot, 2022)",
        (
            ShownBy(
                "nothing-used-up-by-refused-creations",
                "thousands of logged slots beyond the last gfn leave 16 KiB of the kernel's "
                "memory each",
            ),
        ),
        where="where there is a last gfn",
    ),
    Bug(
        ("20a6cff3b283",),
        "mapping memory ahead never ended if the vCPU's page tables were out of date",
        (
            ShownBy(
                "pre-fault-again-after-a-deletion",
                "after a deletion they are, and the vCPU does not run before the next call, which "
                "does not return within the time limit",
                needs=("pre_fault",),
            ),
        ),
        where="with KVM_CAP_PRE_FAULT_MEMORY",
    ),
    Bug(
        ("817fa998362d",),
        "the slot of a huge page to be restored was looked up in as_id 0 only",
        (
            ShownBy(
                "spaces-execute-on-huge-pages",
                "if huge pages that were split for execution are recovered meanwhile, there is no "
                "slot in as_id 0 at the gfn, and the kernel warns, or dies",
                needs=("smm",),
            ),
        ),
        where="with nx_huge_pages, and a short kvm.nx_huge_pages_recovery_period_ms",
    ),
    Bug(
        ("910c57dfa4d1",),
        "pages that KVM wrote for a locked instruction of the guest were not in the dirty log",
        (
            ShownBy(
                "instructions-are-logged",
                "each atomic instruction writes its own page, which the log must name",
            ),
            ShownBy(
                "instructions-that-compare-unequal-are-logged",
                "a comparison that fails is a write, too",
            ),
        ),
        where="where the kernel emulates instructions",
    ),
    Bug(
        ("fcd1ec9cb59c",),
        "with SLOT_ZAP_ALL disabled, shadow pages of the guest's page tables outlived their slot",
        (
            ShownBy(
                "start-on-tables-that-are-left-without-a-slot-without-quirk",
                "the guest's page tables are in use when their slot is deleted, then the VM closed",
            ),
            ShownBy(
                "start-after-tables-of-other-memory-came-without-quirk",
                "other memory replaces page tables, but the guest still uses the old ones",
            ),
        ),
        where="with shadow paging (npt=0, ept=0)",
    ),
    Bug(
        ("fda4e2e85589",),
        "a task priority at the end of a page of guest memory went on in other memory of the host",
        (
            ShownBy(
                "vapic-at-the-ends-of-pages-and-slots",
                "two of its four bytes are in the next page of the slot, which then lacks them",
                needs=("irqchip",),
            ),
        ),
    ),
    Bug(
        ("b60fe990c6b0",),
        "a coalesced write went beyond the ring's page when userspace said that it goes on there",
        (
            ShownBy(
                "devices-coalesced-ring-set-by-the-host",
                "where the ring is said to go on beyond its end, the write must exit",
                needs=("coalesced_mmio",),
            ),
        ),
    ),
    Bug(
        ("ae431059e75d",),
        "a slot deleted while its guest_memfd was being closed stayed in the file's bindings",
        where="with KVM_CAP_GUEST_MEMFD",
        gap="threads of a race close no guest_memfd; only closing it before or after the deletion "
        "is checked (memfd-closed-before-its-slot, memfd-closed-after-its-slot)",
    ),
)
"""In the order of subjects: the slot array, addresses, logs, and races."""
