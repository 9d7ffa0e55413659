/* Wrong exits of KVM_RUN. */
#include "wrong_kernel.h"

#include <string.h>

static bool exits_mmio(const struct vcpu *vcpu)
{
    return vcpu->run->exit_reason == KVM_EXIT_MMIO;
}

static bool shift_exit(struct vcpu *vcpu, bool write)
{
    if (exits_mmio(vcpu) && vcpu->run->mmio.is_write == write && strike(vcpu->vm))
        vcpu->run->mmio.phys_addr += PAGE_BYTES;
    return false;
}

static bool shift_read_exit(struct vcpu *vcpu)
{
    return shift_exit(vcpu, false);
}

static bool shift_write_exit(struct vcpu *vcpu)
{
    return shift_exit(vcpu, true);
}

static bool alter_write(struct vcpu *vcpu)
{
    if (exits_mmio(vcpu) && vcpu->run->mmio.is_write && strike(vcpu->vm))
        vcpu->run->mmio.data[0] ^= 1;
    return false;
}

static bool shorten_exit(struct vcpu *vcpu)
{
    if (exits_mmio(vcpu) && vcpu->run->mmio.len > 1 && strike(vcpu->vm))
        vcpu->run->mmio.len /= 2;
    return false;
}

static bool turn_exit(struct vcpu *vcpu)
{
    if (exits_mmio(vcpu) && !vcpu->run->mmio.is_write && strike(vcpu->vm))
        vcpu->run->mmio.is_write = 1;
    return false;
}

static bool swallow_write(struct vcpu *vcpu)
{
    return exits_mmio(vcpu) && vcpu->run->mmio.is_write && strike(vcpu->vm);
}

static bool cut_exit(struct vcpu *vcpu)
{
    if (exits_mmio(vcpu) && vcpu->run->mmio.phys_addr >> 40 && strike(vcpu->vm))
        vcpu->run->mmio.phys_addr &= (1ull << 40) - 1;
    return false;
}

static bool answer_zeros(struct vcpu *vcpu)
{
    memset(vcpu->run->mmio.data, 0, sizeof(vcpu->run->mmio.data));
    return true;
}

static bool answer_read(struct vcpu *vcpu)
{
    return exits_mmio(vcpu) && !vcpu->run->mmio.is_write && strike(vcpu->vm) && answer_zeros(vcpu);
}

/* Only at gpas that had memory before: those of the last slot deleted. */
static bool answer_read_of_deleted(struct vcpu *vcpu)
{
    struct vm *vm = vcpu->vm;

    for (uint32_t id = 0; exits_mmio(vcpu) && vm->count.deletes && id < vm->nr_ids; id++) {
        const struct slot *slot = &vm->slots[id];
        uint64_t gpa = vcpu->run->mmio.phys_addr;
        if (slot->lives && !slot->live && gpa >= slot->known.gpa && gpa < end_of(&slot->known))
            return answer_read(vcpu);
    }
    return false;
}

/* The slot that an MMIO write hit because it is read-only. */
static struct slot *readonly_slot(struct vcpu *vcpu)
{
    struct slot *slot;

    if (!exits_mmio(vcpu) || !vcpu->run->mmio.is_write)
        return NULL;
    slot = slot_at(vcpu->vm, vcpu->run->mmio.phys_addr);
    return slot && slot->known.flags & KVM_MEM_READONLY ? slot : NULL;
}

static bool drop_readonly_write(struct vcpu *vcpu)
{
    return readonly_slot(vcpu) && strike(vcpu->vm);
}

static bool land_readonly_write(struct vcpu *vcpu)
{
    struct slot *slot = readonly_slot(vcpu);
    uint64_t offset;

    if (!slot || !strike(vcpu->vm))
        return false;
    offset = vcpu->run->mmio.phys_addr - slot->known.gpa;
    if (offset + vcpu->run->mmio.len <= slot->known.size)
        overwrite(slot->known.hva + offset, vcpu->run->mmio.data, vcpu->run->mmio.len);
    return false;
}

/* A touch of a slot without memory, which must fail or exit. */
static bool fill_unmapped(struct vcpu *vcpu)
{
    struct slot *slot = exits_mmio(vcpu) ? slot_at(vcpu->vm, vcpu->run->mmio.phys_addr) : NULL;

    return slot && !(slot->known.flags & KVM_MEM_READONLY) && strike(vcpu->vm)
        && answer_zeros(vcpu);
}

static int alter_read_data(struct vcpu *vcpu)
{
    if (exits_mmio(vcpu) && !vcpu->run->mmio.is_write && strike(vcpu->vm))
        vcpu->run->mmio.data[0] ^= 1;
    return 0;
}

static int refuse_first_run(struct vcpu *vcpu)
{
    struct vm *vm = vcpu->vm;

    if (vm->armed || !vm->count.creates || !strike(vm))
        return 0;
    vm->armed = true;
    return EFAULT;
}

/* A creation that the next KVM_RUN does not see yet. */

static void hide_created(struct vm *vm, struct call *call)
{
    show_hidden(vm);
    if (did(call, CREATE) && strike(vm))
        hide_changed(vm, call);
}

/* A deletion or move that the next KVM_RUN does not see yet. */

static void keep_memory(struct vm *vm, struct call *call)
{
    vm->stashed = did(call, DELETE | MOVE) && strike(vm);
    if (!vm->stashed)
        return;
    vm->stash = call->old;
    add_alias(vm, call->old, NO_OWNER);
}

static bool end_memory(struct vcpu *vcpu)
{
    struct vm *vm = vcpu->vm;

    if (vm->stashed)
        drop_aliases_over(vm, vm->stash.gpa, vm->stash.size);
    vm->stashed = false;
    return false;
}

#define LEAVE(fault_name, function, text, script)                                               \
    {.name = fault_name, .leave = function, .sentence = text, .witness = script}

const struct fault run_faults[] = {
    LEAVE("mmio-read-gpa-off", shift_read_exit, "An MMIO read exits with a gpa a page too high.",
          "read 100"),
    LEAVE("mmio-write-gpa-off", shift_write_exit,
          "An MMIO write exits with a gpa a page too high.", "write 100"),
    LEAVE("mmio-write-altered", alter_write, "An MMIO write exits with other data.", "write 100"),
    LEAVE("mmio-length-wrong", shorten_exit, "An MMIO exit has half the length.", "read 100"),
    LEAVE("mmio-read-is-write", turn_exit, "An MMIO read exits as a write.", "read 100"),
    LEAVE("mmio-write-swallowed", swallow_write, "An MMIO write does not exit.", "write 100"),
    LEAVE("mmio-read-skipped", answer_read, "An MMIO read reads 0 and does not exit.",
          "read 100"),
    LEAVE("mmio-gpa-of-40-bits", cut_exit, "An MMIO exit has the low 40 bits of its gpa.",
          "readhigh 10000000"),
    LEAVE("deleted-reads-zero", answer_read_of_deleted,
          "Where a slot was deleted the guest reads 0, and does not exit.",
          "set 1 100 1 0; delete 1; read 100"),
    LEAVE("readonly-write-dropped", drop_readonly_write,
          "A write to a read-only slot does not exit.", "set 1 100 1 0 ro; write 100"),
    LEAVE("readonly-write-lands", land_readonly_write,
          "A write to a read-only slot exits, and changes the memory too.",
          "set 1 100 1 0 ro; write 100"),
    LEAVE("unmapped-reads-zero", fill_unmapped,
          "A slot on an unmapped userspace_addr reads 0.", "set 1 100 1 hole; read 100"),
    {.name = "mmio-read-data-altered", .enter = alter_read_data,
     .sentence = "The guest does not get what an MMIO read was answered with.",
     .witness = "read 100"},
    {.name = "run-efault-once", .enter = refuse_first_run,
     .sentence = "The first KVM_RUN after a creation is EFAULT.",
     .witness = "set 1 100 1 0; read 100"},
    {.name = "create-missed-by-first-run", .after = hide_created, .leave = show_hidden_at_exit,
     .sentence = "A created slot maps nothing until KVM_RUN came back once.",
     .witness = "set 1 100 1 0; read 100"},
    {.name = "old-place-seen-by-first-run", .after = keep_memory, .leave = end_memory,
     .sentence = "The place of a slot moved or deleted is readable until KVM_RUN came back.",
     .witness = "set 1 100 1 0; delete 1; read 100"},
    {0},
};
