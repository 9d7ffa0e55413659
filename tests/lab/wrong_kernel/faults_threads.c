/* Wrong only if a call comes from another thread than the one that ran a vCPU last. */
#include "wrong_kernel.h"

#include <string.h>

static bool elsewhere(struct vm *vm)
{
    return vm->has_run && !pthread_equal(vm->runner, pthread_self());
}

static void lose_lowest(struct vm *vm, struct log *log)
{
    for (uint64_t word = 0; !log->error && word < log->words; word++) {
        if (!log->bits[word])
            continue;
        if (elsewhere(vm) && strike(vm))
            log->bits[word] &= log->bits[word] - 1;
        return;
    }
}

static void clear_all(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot)
{
    static uint64_t all[4096];

    memset(all, 0xff, sizeof(all));
    if (pages_of(&slot->known) > sizeof(all) * 8 || !elsewhere(vm) || !strike(vm))
        return;
    clear->first_page = 0;
    clear->num_pages = (uint32_t)pages_of(&slot->known);
    clear->dirty_bitmap = all;
}

static void keep_old_place(struct vm *vm, struct call *call)
{
    if (did(call, DELETE | MOVE) && elsewhere(vm) && strike(vm))
        add_alias(vm, call->old, NO_OWNER);
}

static int count_one_more(struct vm *vm)
{
    int count = kernel_ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, NULL);

    return count > 0 && elsewhere(vm) ? count + 1 : count;
}

static int note_reset(struct vm *vm)
{
    int count = kernel_ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, NULL);

    vm->armed |= count > 0 && elsewhere(vm);
    return count;
}

/* An entry like the last one would not be missed, since its page is named already. */
static void forget_first_page(struct vcpu *vcpu, struct kvm_dirty_gfn *entry)
{
    if (vcpu->vm->armed && !entry->offset && vcpu->last.offset)
        *entry = vcpu->last;
}

const struct fault thread_faults[] = {
    {.name = "log-of-a-running-vcpu-lacks-lowest", .log = lose_lowest,
     .sentence = "The lowest dirty page is not reported to another thread than the vCPU's.",
     .witness = "set 1 100 1 0 log; write 100; thread log 1"},
    {.name = "clear-beside-a-vcpu-clears-all", .clear_log = clear_all,
     .sentence = "KVM_CLEAR_DIRTY_LOG by another thread than the vCPU's clears the whole slot.",
     .witness = "set 1 100 41 0 log; write 140; thread clear 1 0 40; log 1"},
    {.name = "old-place-kept-for-a-running-vcpu", .after = keep_old_place,
     .sentence = "The place of a slot that another thread than the vCPU's moves or deletes stays.",
     .witness = "set 1 100 1 0; read 100; thread delete 1; read 100"},
    {.name = "ring-reset-beside-a-vcpu-one-more", .reset = count_one_more,
     .sentence = "KVM_RESET_DIRTY_RINGS by another thread than the vCPU's counts one too many.",
     .witness = "cap ring 1000; set 1 100 2 0 log; write 100; harvest; thread reset"},
    {.name = "ring-reset-beside-a-vcpu-blinds", .reset = note_reset, .entry = forget_first_page,
     .sentence = "After a reset by another thread than the vCPU's, page 0 of a slot is not named.",
     .witness = "cap ring 1000; set 1 100 2 0 log; write 101; harvest; thread reset; write 100; "
                "harvest"},
    {0},
};
