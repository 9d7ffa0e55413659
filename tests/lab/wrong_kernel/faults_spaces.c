/* A vCPU in system management mode that starts with page tables in slots of as_id 1. They have no
 * witness: few hosts have two address spaces. tests/lab_vm/test_spaces.py boots a kernel that has.
 */
#include "wrong_kernel.h"

#include <string.h>

#define ADDRESS_BITS 0x000ffffffffff000ull

/* A slot of an address space, but not the guest's own. */
static struct slot *slot_in(struct vm *vm, uint32_t space, uint64_t gpa)
{
    for (uint32_t i = 0; i < vm->nr_used; i++) {
        struct slot *slot = &vm->slots[vm->used[i]];
        if (slot->known.id >> 16 == space && gpa >= slot->known.gpa && gpa < end_of(&slot->known)
            && may_touch(slot))
            return slot;
    }
    return NULL;
}

/* The slot of as_id 1 in which the page tables are that this vCPU starts with in SMM, or NULL. */
static struct slot *tables_of(struct vcpu *vcpu)
{
    struct kvm_vcpu_events events;
    struct kvm_sregs special;

    if (kernel_ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events) || !events.smi.smm
        || kernel_ioctl(vcpu->fd, KVM_GET_SREGS, &special) || !(special.cr0 >> 31))
        return NULL;
    return slot_in(vcpu->vm, 1, special.cr3 & ADDRESS_BITS);
}

/* While the vCPU runs, a slot of as_id 1 shows what as_id 0 has at its first gpa. */
static void show_other_space(struct vm *vm, struct slot *slot)
{
    struct slot *other = slot_in(vm, 0, slot->known.gpa);
    struct region piece = slot->known;

    if (!other || slot->laid || end_of(&piece) > end_of(&other->known) || !strike(vm))
        return;
    piece.hva = other->known.hva + piece.gpa - other->known.gpa;
    lay(vm, slot, &piece, 1);
}

static int show_other_tables(struct vcpu *vcpu)
{
    struct slot *tables = tables_of(vcpu);

    if (tables)
        show_other_space(vcpu->vm, tables);
    return 0;
}

static int show_other_memory(struct vcpu *vcpu)
{
    struct slot *tables = tables_of(vcpu);

    for (uint32_t i = 0; tables && i < vcpu->vm->nr_used; i++) {
        struct slot *slot = &vcpu->vm->slots[vcpu->vm->used[i]];
        if (slot->known.id >> 16 && slot != tables && may_touch(slot))
            show_other_space(vcpu->vm, slot);
    }
    return 0;
}

static bool restore_all(struct vcpu *vcpu)
{
    struct vm *vm = vcpu->vm;

    for (uint32_t i = 0; i < vm->nr_used; i++)
        if (vm->slots[vm->used[i]].known.id >> 16)
            restore(vm, &vm->slots[vm->used[i]]);
    return false;
}

/* vm->noted is the gpa of page tables that a vCPU in SMM has used since their last log. */

static int note_tables(struct vcpu *vcpu)
{
    struct slot *tables = tables_of(vcpu);

    if (tables)
        vcpu->vm->noted = tables->known.gpa;
    return 0;
}

static void lose_log_of_tables(struct vm *vm, struct log *log)
{
    if (log->error || !(log->slot->known.id >> 16) || log->slot->known.gpa != vm->noted
        || !strike(vm))
        return;
    memset(log->bits, 0, log->words * sizeof(*log->bits));
}

const struct fault space_faults[] = {
    {.name = "smm-tables-of-as-id-0", .enter = show_other_tables, .leave = restore_all,
     .sentence = "A vCPU in SMM uses the page tables that as_id 0 has at their gpa.",
     .witness = ""},
    {.name = "smm-memory-of-as-id-0", .enter = show_other_memory, .leave = restore_all,
     .sentence = "A vCPU in SMM finds by its page tables the memory of as_id 0.", .witness = ""},
    {.name = "smm-tables-not-logged", .enter = note_tables, .log = lose_log_of_tables,
     .sentence = "Bits that a vCPU in SMM sets in its page tables are in no dirty log.",
     .witness = ""},
    {0},
};
