/* Wrong answers: refusals missing or with another errno, and legal calls refused. */
#include "wrong_kernel.h"

#include <cpuid.h>

static bool creates(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->change == CREATE;
}

static bool moves(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->change == MOVE;
}

static bool changes_flags(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->change == FLAGS_ONLY;
}

static bool changes_nothing(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->change == NOTHING;
}

static bool deletes_with_other_gpa(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->change == DELETE && call->asked.gpa && call->asked.gpa != call->old.gpa;
}

static bool deletes_with_gpa_0(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->change == DELETE && !call->asked.gpa && call->old.gpa;
}

static bool deletes_with_other_hva(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->change == DELETE && call->asked.hva && call->asked.hva != call->old.hva;
}

static bool deletes_with_hva_0(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->change == DELETE && !call->asked.hva && call->old.hva;
}

static bool deletes_with_flags(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->change == DELETE && call->asked.flags;
}

static bool deletes_slot_at_hva_0(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->change == DELETE && !call->old.hva;
}

static bool changes_slot_at_hva_0(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->change & (MOVE | FLAGS_ONLY) && !call->old.hva;
}

static bool creates_at_hva_0(struct vm *vm, struct call *call)
{
    return creates(vm, call) && !call->asked.hva;
}

static bool creates_at_gpa_0(struct vm *vm, struct call *call)
{
    return creates(vm, call) && !call->asked.gpa;
}

static bool moves_to_gpa_0(struct vm *vm, struct call *call)
{
    return moves(vm, call) && !call->asked.gpa;
}

static bool creates_on_unmapped(struct vm *vm, struct call *call)
{
    char byte;

    return creates(vm, call) && call->asked.hva && !readable(call->asked.hva, &byte, 1);
}

static bool creates_below_a_slot(struct vm *vm, struct call *call)
{
    return creates(vm, call) && slot_at(vm, end_of(&call->asked));
}

static bool creates_above_a_slot(struct vm *vm, struct call *call)
{
    return creates(vm, call) && call->asked.gpa && slot_at(vm, call->asked.gpa - 1);
}

static bool moves_beside_a_slot(struct vm *vm, struct call *call)
{
    struct slot *above = slot_at(vm, end_of(&call->asked));
    struct slot *below = call->asked.gpa ? slot_at(vm, call->asked.gpa - 1) : NULL;

    return moves(vm, call) && ((above && above != call->slot) || (below && below != call->slot));
}

static bool moves_onto_itself(struct vm *vm, struct call *call)
{
    return moves(vm, call) && call->asked.gpa < end_of(&call->old)
        && call->old.gpa < end_of(&call->asked);
}

static bool moves_with_flags(struct vm *vm, struct call *call)
{
    return moves(vm, call) && call->asked.flags != call->old.flags;
}

static bool moves_logged(struct vm *vm, struct call *call)
{
    return moves(vm, call) && call->old.flags & KVM_MEM_LOG_DIRTY_PAGES;
}

static bool moves_readonly(struct vm *vm, struct call *call)
{
    return moves(vm, call) && call->old.flags & KVM_MEM_READONLY;
}

static bool creates_readonly(struct vm *vm, struct call *call)
{
    return creates(vm, call) && call->asked.flags & KVM_MEM_READONLY;
}

static bool creates_both_flags(struct vm *vm, struct call *call)
{
    return creates_readonly(vm, call) && call->asked.flags & KVM_MEM_LOG_DIRTY_PAGES;
}

static bool creates_508(struct vm *vm, struct call *call)
{
    return creates(vm, call) && call->asked.id == 508;
}

static bool creates_509(struct vm *vm, struct call *call)
{
    return creates(vm, call) && call->asked.id == 509;
}

static bool creates_last_id(struct vm *vm, struct call *call)
{
    return creates(vm, call) && call->asked.id == vm->nr_ids - 1;
}

static bool creates_id_0(struct vm *vm, struct call *call)
{
    return creates(vm, call) && call->asked.id == 0;
}

/* The last gfn depends on MAXPHYADDR with TDP, else it has 52 bits as a gpa. */
static bool reaches_last_gfn(struct vm *vm, struct call *call)
{
    unsigned int eax = 36, ebx, ecx, edx;
    uint64_t end = end_of(&call->asked);

    (void)vm;
    __get_cpuid(0x80000008, &eax, &ebx, &ecx, &edx);
    return call->change & (CREATE | MOVE)
        && (end == 1ull << 52 || end == 1ull << (eax & 0xff));
}

static bool creates_known_id_again(struct vm *vm, struct call *call)
{
    return creates(vm, call) && call->slot->lives > 0;
}

static bool shares_hva(struct vm *vm, struct call *call)
{
    if (call->change != CREATE)
        return false;
    for (uint32_t i = 0; i < vm->nr_used; i++)
        if (vm->slots[vm->used[i]].known.hva == call->asked.hva)
            return true;
    return false;
}

#define REFUSAL(fault_name, which, error, text, script)                                         \
    {.name = fault_name, .refusal = which, .answer = error, .sentence = text, .witness = script}
#define LEGAL(fault_name, when, error, text, script)                                            \
    {.name = fault_name, .legal = when, .answer = error, .sentence = text, .witness = script}

const struct fault answer_faults[] = {
    REFUSAL("foreign-process-accepted", FOREIGN_PROCESS, 0,
            "A call from a forked child is answered with 0.", "child 1 100 1 0"),
    REFUSAL("bad-pointer-accepted", BAD_POINTER, 0,
            "A bad argument pointer is answered with 0.", "pointer"),
    REFUSAL("bad-pointer-einval", BAD_POINTER, EINVAL,
            "A bad argument pointer is EINVAL instead of EFAULT.", "pointer"),
    REFUSAL("unknown-flag-accepted", UNKNOWN_FLAG, 0,
            "An unknown flag is answered with 0, and nothing is done.", "set 1 100 1 0 unknown"),
    REFUSAL("id-beyond-end-accepted", BAD_ID, 0,
            "A slot id beyond the end is answered with 0.", "set beyond 100 1 0"),
    REFUSAL("id-beyond-end-enospc", BAD_ID, ENOSPC,
            "A slot id beyond the end is ENOSPC instead of EINVAL.", "set beyond 100 1 0"),
    REFUSAL("size-unaligned-accepted", SIZE_UNALIGNED, 0,
            "An unaligned memory_size is answered with 0.", "set 1 100 1+800 0"),
    REFUSAL("gpa-unaligned-accepted", GPA_UNALIGNED, 0,
            "An unaligned guest_phys_addr is answered with 0.", "set 1 100+800 1 0"),
    REFUSAL("hva-unaligned-accepted", HVA_UNALIGNED, 0,
            "An unaligned userspace_addr is answered with 0.", "set 1 100 1 0+800"),
    REFUSAL("kernel-hva-accepted", HVA_OF_KERNEL, 0,
            "A userspace_addr of the kernel's half is answered with 0.", "set 1 100 1 kernel"),
    REFUSAL("kernel-hva-efault", HVA_OF_KERNEL, EFAULT,
            "A userspace_addr of the kernel's half is EFAULT instead of EINVAL.",
            "set 1 100 1 kernel"),
    REFUSAL("as-id-1-accepted", BAD_SPACE, 0,
            "An address space that does not exist is answered with 0.", "set 1/1 100 1 0"),
    REFUSAL("wrap-accepted", WRAPS, 0,
            "A range that wraps around 2^64 is answered with 0.", "set 1 top 2 0"),
    REFUSAL("wrap-eoverflow", WRAPS, EOVERFLOW,
            "A range that wraps around 2^64 is EOVERFLOW instead of EINVAL.", "set 1 top 2 0"),
    REFUSAL("too-many-pages-accepted", TOO_MANY_PAGES, 0,
            "A slot of 2^31 pages is answered with 0.", "set 1 100 80000000 null"),
    REFUSAL("too-many-pages-enomem", TOO_MANY_PAGES, ENOMEM,
            "A slot of 2^31 pages is ENOMEM instead of EINVAL.", "set 1 100 80000000 null"),
    REFUSAL("absent-delete-accepted", ABSENT_DELETE, 0,
            "Deletion of an absent slot is answered with 0.", "delete 1"),
    REFUSAL("absent-delete-enoent", ABSENT_DELETE, ENOENT,
            "Deletion of an absent slot is ENOENT instead of EINVAL.", "delete 1"),
    REFUSAL("hva-change-accepted", HVA_CHANGED, 0,
            "A changed userspace_addr is answered with 0, and nothing is done.",
            "set 1 100 1 0; set 1 100 1 1"),
    REFUSAL("hva-change-eexist", HVA_CHANGED, EEXIST,
            "A changed userspace_addr is EEXIST instead of EINVAL.",
            "set 1 100 1 0; set 1 100 1 1"),
    REFUSAL("size-change-accepted", SIZE_CHANGED, 0,
            "A changed memory_size is answered with 0, and nothing is done.",
            "set 1 100 1 0; set 1 100 2 0"),
    REFUSAL("readonly-toggle-accepted", READONLY_TOGGLED, 0,
            "A changed READONLY flag is answered with 0, and nothing is done.",
            "set 1 100 1 0; set 1 100 1 0 ro"),
    REFUSAL("create-overlap-accepted", CREATE_OVERLAPS, 0,
            "A slot created over another is answered with 0, and nothing is done.",
            "set 1 100 1 0; set 2 100 1 1"),
    REFUSAL("create-overlap-einval", CREATE_OVERLAPS, EINVAL,
            "A slot created over another is EINVAL instead of EEXIST.",
            "set 1 100 1 0; set 2 100 1 1"),
    REFUSAL("move-overlap-accepted", MOVE_OVERLAPS, 0,
            "A slot moved onto another is answered with 0, and nothing is done.",
            "set 1 100 1 0; set 2 200 1 1; set 2 100 1 1"),
    REFUSAL("move-overlap-einval", MOVE_OVERLAPS, EINVAL,
            "A slot moved onto another is EINVAL instead of EEXIST.",
            "set 1 100 1 0; set 2 200 1 1; set 2 100 1 1"),
    REFUSAL("create-beyond-last-gfn-accepted", CREATE_BEYOND_LAST_GFN, 0,
            "A slot created beyond the last gfn is answered with 0.", "set 1 beyond 1 0"),
    REFUSAL("move-beyond-last-gfn-accepted", MOVE_BEYOND_LAST_GFN, 0,
            "A slot moved beyond the last gfn is answered with 0, and stays where it was.",
            "set 1 100 1 0; set 1 beyond 1 0"),

    LEGAL("delete-other-gpa-refused", deletes_with_other_gpa, EINVAL,
          "Deletion looks at guest_phys_addr, and refuses another one than the slot's.",
          "set 1 100 1 0; set 1 300 0 null"),
    LEGAL("delete-gpa-0-refused", deletes_with_gpa_0, EINVAL,
          "Deletion with guest_phys_addr 0 is refused.", "set 1 100 1 0; delete 1"),
    LEGAL("delete-other-hva-refused", deletes_with_other_hva, EINVAL,
          "Deletion looks at userspace_addr, and refuses another one than the slot's.",
          "set 1 100 1 0; set 1 100 0 1"),
    LEGAL("delete-hva-0-refused", deletes_with_hva_0, EINVAL,
          "Deletion with userspace_addr 0 is refused.", "set 1 100 1 0; delete 1"),
    LEGAL("delete-flags-refused", deletes_with_flags, EINVAL,
          "Deletion with a legal flag is refused.", "set 1 100 1 0; set 1 100 0 0 log"),
    LEGAL("hva-0-slot-absent", deletes_slot_at_hva_0, EINVAL,
          "Deletion takes a slot at userspace_addr 0 for absent.", "set 1 100 1 null; delete 1"),
    LEGAL("hva-0-slot-unchangeable", changes_slot_at_hva_0, EINVAL,
          "A slot at userspace_addr 0 can neither be moved nor change its flags.",
          "set 1 100 1 null; set 1 200 1 null"),
    LEGAL("create-hva-0-refused", creates_at_hva_0, EINVAL,
          "A slot at userspace_addr 0 is refused.", "set 1 100 1 null"),
    LEGAL("create-unmapped-refused", creates_on_unmapped, EFAULT,
          "A slot at a userspace_addr where nothing is mapped is refused.", "set 1 100 1 hole"),
    LEGAL("create-gpa-0-refused", creates_at_gpa_0, EINVAL,
          "A slot created at gpa 0 is refused.", "set 1 0 1 0"),
    LEGAL("move-gpa-0-refused", moves_to_gpa_0, EINVAL,
          "A slot moved to gpa 0 is refused.", "set 1 100 1 0; set 1 0 1 0"),
    LEGAL("create-below-adjacent-eexist", creates_below_a_slot, EEXIST,
          "A slot created just below another is taken to overlap it.",
          "set 1 101 1 0; set 2 100 1 1"),
    LEGAL("create-above-adjacent-eexist", creates_above_a_slot, EEXIST,
          "A slot created just above another is taken to overlap it.",
          "set 1 100 1 0; set 2 101 1 1"),
    LEGAL("move-adjacent-eexist", moves_beside_a_slot, EEXIST,
          "A slot moved beside another is taken to overlap it.",
          "set 1 100 1 0; set 2 200 1 1; set 2 101 1 1"),
    LEGAL("move-onto-itself-eexist", moves_onto_itself, EEXIST,
          "A move that overlaps only the slot's own old place is refused.",
          "set 1 100 2 0; set 1 101 2 0"),
    LEGAL("move-refused", moves, EINVAL, "Every move is refused.",
          "set 1 100 1 0; set 1 200 1 0"),
    LEGAL("move-with-flags-refused", moves_with_flags, EINVAL,
          "A move that changes LOG_DIRTY_PAGES as well is refused.",
          "set 1 100 1 0; set 1 200 1 0 log"),
    LEGAL("move-logged-refused", moves_logged, EINVAL, "A move of a logged slot is refused.",
          "set 1 100 1 0 log; set 1 200 1 0 log"),
    LEGAL("move-readonly-refused", moves_readonly, EINVAL,
          "A move of a read-only slot is refused.", "set 1 100 1 0 ro; set 1 200 1 0 ro"),
    LEGAL("readonly-refused", creates_readonly, EINVAL, "A read-only slot is refused.",
          "set 1 100 1 0 ro"),
    LEGAL("readonly-logged-refused", creates_both_flags, EINVAL,
          "A slot that is read-only and logged is refused.", "set 1 100 1 0 ro+log"),
    LEGAL("flags-only-refused", changes_flags, EINVAL, "A change of flags alone is refused.",
          "set 1 100 1 0; set 1 100 1 0 log"),
    LEGAL("nop-eexist", changes_nothing, EEXIST,
          "A call that changes nothing is taken to overlap itself.",
          "set 1 100 1 0; set 1 100 1 0"),
    LEGAL("nop-refused", changes_nothing, EINVAL, "A call that changes nothing is refused.",
          "set 1 100 1 0; set 1 100 1 0"),
    LEGAL("id-0-refused", creates_id_0, EINVAL, "Slot id 0 is refused.", "set 0 100 1 0"),
    LEGAL("id-508-refused", creates_508, EINVAL, "Slot id 508 is refused.", "set 508 100 1 0"),
    LEGAL("id-509-refused", creates_509, EINVAL, "Slot id 509 is refused.", "set 509 100 1 0"),
    LEGAL("last-id-refused", creates_last_id, EINVAL, "The last slot id is refused.",
          "set last 100 1 0"),
    LEGAL("last-gfn-refused", reaches_last_gfn, EINVAL,
          "A slot that ends with the last gfn is refused.", "set 1 last 1 0"),
    LEGAL("recreate-refused", creates_known_id_again, EEXIST,
          "An id that was in use before cannot be used again.",
          "set 1 100 1 0; delete 1; set 1 100 1 0"),
    LEGAL("shared-hva-refused", shares_hva, EEXIST,
          "A second slot at the same userspace_addr is refused.",
          "set 1 100 1 0; set 2 200 1 0"),
    {0},
};
