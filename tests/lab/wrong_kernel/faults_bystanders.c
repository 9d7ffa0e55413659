/* Calls that do what was asked, and something to a slot or a log that they do not name. */
#include "wrong_kernel.h"

#include <stdlib.h>
#include <string.h>

#define LOGGED KVM_MEM_LOG_DIRTY_PAGES
#define MANY_SLOTS 100

static bool is_logged(const struct slot *slot)
{
    return slot && slot->live && may_touch(slot) && slot->known.flags & LOGGED;
}

static void empty_log(struct vm *vm, const struct slot *slot)
{
    uint64_t *bits = calloc((pages_of(&slot->known) + 63) / 64 + 1, sizeof(*bits));
    struct kvm_dirty_log get = {.slot = slot->known.id, .dirty_bitmap = bits};
    struct kvm_clear_dirty_log clear = {
        .slot = slot->known.id, .num_pages = (uint32_t)pages_of(&slot->known), .dirty_bitmap = bits,
    };

    kernel_ioctl(vm->fd, KVM_GET_DIRTY_LOG, &get);
    kernel_ioctl(vm->fd, KVM_CLEAR_DIRTY_LOG, &clear); /* where reading alone does not */
    free(bits);
}

/* All logs but this slot's, which may be NULL. */
static void empty_logs_besides(struct vm *vm, const struct slot *spared)
{
    for (uint32_t i = 0; i < vm->nr_used; i++) {
        struct slot *slot = &vm->slots[vm->used[i]];
        if (slot != spared && is_logged(slot))
            empty_log(vm, slot);
    }
}

static void empty_others_at_creation(struct vm *vm, struct call *call)
{
    if (did(call, CREATE) && call->asked.flags & LOGGED && strike(vm))
        empty_logs_besides(vm, call->slot);
}

static void empty_all_at_plain_creation(struct vm *vm, struct call *call)
{
    if (did(call, CREATE) && !(call->asked.flags & LOGGED) && strike(vm))
        empty_logs_besides(vm, NULL);
}

static int empty_all_at_eventfd(struct vm *vm, unsigned long request, void *argument)
{
    if (request == KVM_IOEVENTFD && strike(vm))
        empty_logs_besides(vm, NULL);
    return kernel_ioctl(vm->fd, request, argument) ? errno : 0;
}

static int empty_all_at_clock(struct vcpu *vcpu, struct clock *clock, struct kvm_msrs *msrs)
{
    (void)clock;
    empty_logs_besides(vcpu->vm, NULL);
    return kernel_ioctl(vcpu->fd, KVM_SET_MSRS, msrs);
}

static int empty_all_at_tss(struct vm *vm, unsigned long request, uint64_t argument, int error)
{
    (void)argument;
    if (request == KVM_SET_TSS_ADDR && strike(vm))
        empty_logs_besides(vm, NULL);
    return error;
}

static int lose_lowest_at_identity(struct vm *vm, unsigned long request, uint64_t argument,
                                   int error)
{
    struct slot *lowest = next_above(vm, 0);

    (void)argument;
    if (request == (uint32_t)KVM_SET_IDENTITY_MAP_ADDR && !error && lowest && strike(vm))
        lose(vm, lowest);
    return error;
}

/* The log of another slot has its first page once it was asked for one that does not exist. */
static void spoil_after_enoent(struct vm *vm, struct log *log)
{
    if (log->error == ENOENT && strike(vm)) {
        vm->armed = true;
    } else if (vm->armed && !log->error && log->words) {
        log->bits[0] |= 1;
        vm->armed = false;
    }
}

/* A refusal brings back what was deleted last. */
static void note_deleted(struct vm *vm, struct call *call)
{
    vm->stashed = true;
    vm->stash = call->old;
}

static void revive(struct vm *vm)
{
    if (vm->stashed && !slot_at(vm, vm->stash.gpa) && strike(vm))
        add_alias(vm, vm->stash, NO_OWNER);
}

static void revive_at_refusal(struct vm *vm, struct call *call)
{
    if (did(call, DELETE))
        note_deleted(vm, call);
    else if (call->refusal == SIZE_CHANGED || call->refusal == HVA_CHANGED)
        revive(vm);
}

static void revive_at_beyond(struct vm *vm, struct call *call)
{
    if (did(call, DELETE))
        note_deleted(vm, call);
    else if (call->refusal == MOVE_BEYOND_LAST_GFN)
        revive(vm);
}

static void empty_all_at_beyond(struct vm *vm, struct call *call)
{
    if (call->refusal == CREATE_BEYOND_LAST_GFN && strike(vm))
        empty_logs_besides(vm, NULL);
}

static void empty_all_at_mapping(struct vm *vm, const struct host_change *change)
{
    if (change->kind == HOST_MAPS && change->done && strike(vm))
        empty_logs_besides(vm, NULL);
}

static int empty_others_at_clearing(struct vm *vm, struct kvm_clear_dirty_log *clear,
                                    struct slot *slot, int error)
{
    (void)clear;
    if (!error && strike(vm))
        empty_logs_besides(vm, slot);
    return error;
}

static void note_absent(struct vm *vm, struct call *call)
{
    if (call->refusal == ABSENT_DELETE && strike(vm))
        vm->armed = true;
}

static void empty_next_log(struct vm *vm, struct log *log)
{
    if (vm->armed && !log->error)
        memset(log->bits, 0, log->words * sizeof(*log->bits));
    vm->armed &= log->error != 0;
}

static void keep_lowest_of_many(struct vm *vm, struct call *call)
{
    if (did(call, DELETE) && vm->nr_used >= MANY_SLOTS && !next_below(vm, call->old.gpa)
        && strike(vm))
        add_alias(vm, call->old, NO_OWNER);
}

static void lose_id_0(struct vm *vm, struct call *call)
{
    struct slot *first = slot_of(vm, 0);

    if (did(call, DELETE) && call->asked.id == vm->nr_ids - 1 && first->live && may_touch(first)
        && strike(vm))
        lose(vm, first);
}

static int lose_highest(struct vm *vm, unsigned long request, uint64_t argument, int error)
{
    struct slot *highest = next_below(vm, UINT64_MAX);

    (void)argument;
    if (request == KVM_CREATE_IRQCHIP && !error && highest && strike(vm))
        lose(vm, highest);
    return error;
}

const struct fault bystander_faults[] = {
    {.name = "create-logged-drains-others", .after = empty_others_at_creation,
     .sentence = "The creation of a logged slot empties all other logs.",
     .witness = "set 1 100 1 0 log; write 100; set 2 110 1 1 log; log 1"},
    {.name = "create-drains-logs", .after = empty_all_at_plain_creation,
     .sentence = "The creation of a slot that is not logged empties all logs.",
     .witness = "set 1 100 1 0 log; write 100; set 2 110 1 1; log 1"},
    {.name = "eventfd-drains-logs", .device = empty_all_at_eventfd,
     .sentence = "KVM_IOEVENTFD empties all logs.",
     .witness = "set 1 100 1 0 log; write 100; event 200 4; log 1"},
    {.name = "clock-drains-logs", .set_clock = empty_all_at_clock,
     .sentence = "Telling KVM where to write a clock empties all logs.",
     .witness = "set 1 100 1 0 log; write 100; clock steal 200; log 1"},
    {.name = "tss-drains-logs", .placed = empty_all_at_tss,
     .sentence = "KVM_SET_TSS_ADDR empties all logs.",
     .witness = "set 1 100 1 0 log; write 100; tss fff00000; log 1"},
    {.name = "identity-map-loses-a-slot", .placed = lose_lowest_at_identity,
     .sentence = "After KVM_SET_IDENTITY_MAP_ADDR the slot with the lowest gpa maps nothing.",
     .witness = "set 1 100 1 0; identity fffbc000; read 100"},
    {.name = "absent-log-spoils-the-next", .log = spoil_after_enoent,
     .sentence = "After a log that does not exist, the next one has its first page.",
     .witness = "set 1 100 1 0 log; log 2; log 1"},
    {.name = "refused-change-revives", .after = revive_at_refusal,
     .sentence = "A refusal of another size or userspace_addr brings back what was deleted last.",
     .witness = "set 2 110 1 1; set 1 100 1 0; delete 1; set 2 110 2 1; read 100"},
    {.name = "move-beyond-last-gfn-revives", .after = revive_at_beyond,
     .sentence = "A move beyond the last gfn brings back what was deleted last.",
     .witness = "set 2 110 1 1; set 1 100 1 0; delete 1; set 2 beyond 1 1; read 100"},
    {.name = "create-beyond-last-gfn-drains", .after = empty_all_at_beyond,
     .sentence = "A creation beyond the last gfn empties all logs.",
     .witness = "set 1 100 1 0 log; write 100; set 2 beyond 1 1; log 1"},
    {.name = "mapping-drains", .host_changes = empty_all_at_mapping,
     .sentence = "Memory that the host maps empties all logs.",
     .witness = "set 1 100 1 0 log; write 100; fresh 1 1; log 1"},
    {.name = "clear-drains-others", .cleared = empty_others_at_clearing,
     .sentence = "KVM_CLEAR_DIRTY_LOG empties all other logs, too.",
     .witness = "set 1 100 1 0 log; set 2 110 1 1 log; write 100; clear 2 0 1; log 1"},
    {.name = "absent-delete-drains-next", .after = note_absent, .log = empty_next_log,
     .sentence = "The log that is read after the deletion of an absent slot is empty.",
     .witness = "set 1 100 1 0 log; write 100; delete 2; log 1"},
    {.name = "lowest-of-100-stays", .after = keep_lowest_of_many,
     .sentence = "Of a hundred slots or more, the lowest is readable when it is deleted.",
     .witness = "fill 100; delete 0; read 1000"},
    {.name = "last-id-delete-takes-0", .after = lose_id_0,
     .sentence = "The slot with the last id takes that with id 0 along when it is deleted.",
     .witness = "set 0 100 1 0; set last 110 1 1; delete last; read 100"},
    {.name = "irqchip-loses-a-slot", .placed = lose_highest,
     .sentence = "After KVM_CREATE_IRQCHIP the slot with the highest gpa maps nothing.",
     .witness = "set 1 100 1 0 log; irqchip; log 1"},
    {0},
};
