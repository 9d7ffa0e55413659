/* Faults under two conditions at once: a vCPU and an address, an id and a refusal. */
#include "wrong_kernel.h"

#include <stdlib.h>
#include <string.h>

#define LOGGED KVM_MEM_LOG_DIRTY_PAGES
#define FROM_4_GIB (1ull << 32)

static bool is_readonly(const struct slot *slot)
{
    return slot && slot->known.flags & KVM_MEM_READONLY;
}

static bool is_last_id(const struct vm *vm, const struct call *call)
{
    return (call->asked.id & 0xffff) == vm->nr_ids - 1;
}

static struct kvm_run *high_exit(struct vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;

    return run->exit_reason == KVM_EXIT_MMIO && run->mmio.phys_addr >= FROM_4_GIB ? run : NULL;
}

static void keep_log_of_readonly(struct vm *vm, struct call *call)
{
    uint32_t *flags = &call->sent.region.flags;

    if (call->change == MOVE && call->old.flags & KVM_MEM_READONLY
        && (*flags ^ call->old.flags) & LOGGED && strike(vm))
        *flags ^= LOGGED;
}

static void note_refused_last_id(struct vm *vm, struct call *call)
{
    vm->armed |= call->refusal == CREATE_OVERLAPS && is_last_id(vm, call);
}

static bool is_refused_last_id(struct vm *vm, struct call *call)
{
    bool wrong = call->change == CREATE && vm->armed && is_last_id(vm, call);

    vm->armed &= !wrong;
    return wrong;
}

static bool is_logged_last_id(struct vm *vm, struct call *call)
{
    return call->change == CREATE && is_last_id(vm, call) && call->asked.flags & LOGGED;
}

static void lose_next_id(struct vm *vm, struct call *call)
{
    struct slot *next = slot_of(vm, call->asked.id + 1);

    if (did(call, DELETE) && call->old.flags & LOGGED && next && next->live && may_touch(next)
        && strike(vm))
        lose(vm, next);
}

static void note_deleted_last_id(struct vm *vm, struct call *call)
{
    vm->armed |= did(call, DELETE) && is_last_id(vm, call);
}

static bool is_id_0_after_last(struct vm *vm, struct call *call)
{
    bool wrong = call->change == CREATE && vm->armed && !call->asked.id;

    vm->armed &= !wrong;
    return wrong;
}

static void empty_log(struct vm *vm, const struct slot *slot)
{
    uint64_t *bits = calloc((pages_of(&slot->known) + 63) / 64 + 1, sizeof(*bits));
    struct kvm_dirty_log get = {.slot = slot->known.id, .dirty_bitmap = bits};

    kernel_ioctl(vm->fd, KVM_GET_DIRTY_LOG, &get);
    free(bits);
}

static void empty_logs_of_same_memory(struct vm *vm, struct call *call)
{
    for (uint32_t i = 0; did(call, DELETE) && i < vm->nr_used; i++) {
        struct slot *slot = &vm->slots[vm->used[i]];
        if (may_touch(slot) && slot->known.hva == call->old.hva && slot->known.flags & LOGGED
            && strike(vm))
            empty_log(vm, slot);
    }
}

/* vm->stash is the slot whose next log has one page too many, or all of them. */

static void note_log(struct vm *vm, const struct slot *slot)
{
    vm->stashed = true;
    vm->stash = slot->known;
}

static bool is_noted(struct vm *vm, const struct log *log)
{
    bool noted = !log->error && log->words && vm->stashed && vm->stash.id == log->slot->known.id;

    vm->stashed &= !noted;
    return noted;
}

static void note_log_above(struct vm *vm, struct call *call)
{
    struct slot *above = did(call, MOVE) ? slot_at(vm, end_of(&call->asked)) : NULL;

    if (above && above != call->slot && above->known.flags & LOGGED && strike(vm))
        note_log(vm, above);
}

static void add_first_page(struct vm *vm, struct log *log)
{
    if (is_noted(vm, log))
        log->bits[0] |= 1;
}

static void note_third_change(struct vm *vm, struct call *call)
{
    if (did(call, FLAGS_ONLY) && call->asked.flags & LOGGED && call->slot->flag_changes == 3
        && strike(vm))
        note_log(vm, call->slot);
}

static void add_all_pages(struct vm *vm, struct log *log)
{
    if (!is_noted(vm, log))
        return;
    for (uint64_t page = 0; page < log->pages; page++)
        log->bits[page / 64] |= 1ull << page % 64;
}

static bool land_on_readonly(struct vcpu *vcpu)
{
    const struct kvm_run *run = vcpu->run;
    struct slot *slot;
    uint64_t offset;

    if (!vcpu->index || run->exit_reason != KVM_EXIT_MMIO || !run->mmio.is_write)
        return false;
    slot = slot_at(vcpu->vm, run->mmio.phys_addr);
    if (!is_readonly(slot) || !strike(vcpu->vm))
        return false;
    offset = run->mmio.phys_addr - slot->known.gpa;
    if (offset + run->mmio.len <= slot->known.size)
        overwrite(slot->known.hva + offset, vcpu->run->mmio.data, run->mmio.len);
    return false;
}

static bool halve_high_exit(struct vcpu *vcpu)
{
    struct kvm_run *run = vcpu->index ? high_exit(vcpu) : NULL;

    if (run && run->mmio.len == 4 && strike(vcpu->vm))
        run->mmio.len = 2;
    return false;
}

static bool is_third_high_one(struct vm *vm, struct call *call)
{
    const struct slot *one, *other;

    if (call->asked.gpa <= FROM_4_GIB)
        return false;
    one = slot_at(vm, call->asked.gpa - 1);
    other = one ? slot_at(vm, one->known.gpa - 1) : NULL;
    return other;
}

static int ignore_match_of_two(struct vm *vm, unsigned long request, void *argument)
{
    struct kvm_ioeventfd event;

    if (request != KVM_IOEVENTFD)
        return kernel_ioctl(vm->fd, request, argument) ? errno : 0;
    memcpy(&event, argument, sizeof(event));
    if (event.len == 2 && strike(vm))
        event.flags &= ~(uint32_t)KVM_IOEVENTFD_FLAG_DATAMATCH;
    return kernel_ioctl(vm->fd, request, &event) ? errno : 0;
}

static void cut_id_of_entry(struct vcpu *vcpu, struct kvm_dirty_gfn *entry)
{
    if (vcpu->index && may_touch(slot_of(vcpu->vm, entry->slot)) && strike(vcpu->vm))
        entry->slot &= 0xff;
}

static void lose_flags_at_0(struct vm *vm, struct call *call)
{
    if (call->change == FLAGS_ONLY && !call->old.hva && strike(vm))
        call->withheld = true;
}

/* A slot above 4 GiB that was deleted is there while vCPU 1 runs. */

static void note_high_deletion(struct vm *vm, struct call *call)
{
    if (call->change == REFUSED)
        return;
    vm->stashed = did(call, DELETE) && call->old.gpa >= FROM_4_GIB;
    vm->stash = call->old;
}

static int show_deleted(struct vcpu *vcpu)
{
    if (vcpu->vm->stashed && vcpu->index && strike(vcpu->vm))
        add_alias(vcpu->vm, vcpu->vm->stash, NO_OWNER);
    return 0;
}

static bool hide_deleted(struct vcpu *vcpu)
{
    if (vcpu->vm->stashed && vcpu->index)
        drop_aliases_over(vcpu->vm, vcpu->vm->stash.gpa, vcpu->vm->stash.size);
    return false;
}

static void name_move_onto_readonly(struct vm *vm, struct call *call)
{
    uint64_t first = call->asked.gpa, last = end_of(&call->asked) - PAGE_BYTES;

    if (call->refusal == MOVE_OVERLAPS
        && (is_readonly(slot_at(vm, first)) || is_readonly(slot_at(vm, last))) && strike(vm))
        call->error = EINVAL;
}

static void swap_last_two_of_moved_readonly(struct vm *vm, struct call *call)
{
    struct region parts[3] = {call->asked, call->asked, call->asked};
    uint64_t rest = call->asked.size - 2 * PAGE_BYTES;

    if (!did(call, MOVE) || !is_readonly(call->slot) || pages_of(&call->asked) < 3 || !strike(vm))
        return;
    parts[0].size = rest;
    parts[1].size = parts[2].size = PAGE_BYTES;
    parts[1].gpa += rest;
    parts[1].hva += rest + PAGE_BYTES;
    parts[2].gpa += rest + PAGE_BYTES;
    parts[2].hva += rest;
    lay(vm, call->slot, parts, 3);
}

static void lose_first_page_beside_a_vm(struct vm *vm, struct log *log)
{
    if (!log->error && log->words && next_besides(vm, NULL) && strike(vm))
        log->bits[0] &= ~1ull;
}

static void clear_word_before(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot)
{
    if (slot->moves && clear->first_page >= 64 && strike(vm))
        clear->first_page -= 64;
}

static bool shift_exit_at_0(struct vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;

    if (run->exit_reason == KVM_EXIT_MMIO && !run->mmio.phys_addr && vcpu->vm->count.deletes
        && strike(vcpu->vm))
        run->mmio.phys_addr = PAGE_BYTES;
    return false;
}

const struct fault condition_faults[] = {
    {.name = "move-of-readonly-keeps-log", .before = keep_log_of_readonly,
     .sentence = "A move of a READONLY slot does not change whether it is logged.",
     .witness = "set 1 100 1 0 ro; set 1 110 1 0 ro+log; log 1"},
    {.name = "last-id-refused-after-eexist", .after = note_refused_last_id,
     .legal = is_refused_last_id, .answer = EINVAL,
     .sentence = "Where another slot was in the way of the last id, it is refused elsewhere, too.",
     .witness = "set 1 100 1 0; set last 100 1 1; set last 110 1 1"},
    {.name = "logged-last-id-refused", .legal = is_logged_last_id, .answer = EINVAL,
     .sentence = "A logged slot of the last id cannot be created.",
     .witness = "set last 100 1 0 log"},
    {.name = "delete-logged-loses-next-id", .after = lose_next_id,
     .sentence = "The deletion of a logged slot loses the slot of the next id.",
     .witness = "set 1 100 1 0 log; set 2 200 1 1; delete 1; read 200"},
    {.name = "id-0-refused-after-the-last", .after = note_deleted_last_id,
     .legal = is_id_0_after_last, .answer = EINVAL,
     .sentence = "Once the slot with the last id was deleted, slot id 0 is refused.",
     .witness = "set last 100 1 0; delete last; set 0 100 1 0"},
    {.name = "deletion-empties-log-of-same-memory", .after = empty_logs_of_same_memory,
     .sentence = "The deletion of a slot empties the log of another one on the same memory.",
     .witness = "set 1 100 1 0 log; set 2 110 1 0; write 100; delete 2; log 1"},
    {.name = "move-below-a-log-dirties-it", .after = note_log_above, .log = add_first_page,
     .sentence = "A move to just below a logged slot is in its log.",
     .witness = "set 1 101 1 0 log; set 2 110 1 1; set 2 100 1 1; log 1"},
    {.name = "third-flags-change-begins-full", .after = note_third_change, .log = add_all_pages,
     .sentence = "A log that the third change of a slot's flags begins has every page.",
     .witness = "set 1 100 1 0; set 1 100 1 0 log; set 1 100 1 0; set 1 100 1 0 log; log 1"},
    {.name = "vcpu-1-writes-to-readonly", .leave = land_on_readonly,
     .sentence = "What another vCPU than the first writes to a READONLY slot exits, and lands.",
     .witness = "second; set 1 100 1 0 ro; write 100"},
    {.name = "vcpu-1-high-exit-halved", .leave = halve_high_exit,
     .sentence = "Above 4 GiB an exit of another vCPU than the first has half its length.",
     .witness = "readhigh 100000"},
    {.name = "third-of-touching-high-slots-lost", .shapes_on = CREATE,
     .shape_when = is_third_high_one, .shape = into_nothing,
     .sentence = "Above 4 GiB a slot that touches one that touches another maps nothing.",
     .witness = "set 1 100000 1 0; set 2 100001 1 1; set 3 100002 1 2; readhigh 100002"},
    {.name = "high-deleted-seen-by-vcpu-1", .after = note_high_deletion, .enter = show_deleted,
     .leave = hide_deleted,
     .sentence = "Another vCPU than the first reads a deleted slot above 4 GiB.",
     .witness = "set 1 100001 1 0; delete 1; readhigh 100001"},
    {.name = "eventfd-of-two-bytes-of-any-value", .device = ignore_match_of_two,
     .sentence = "An ioeventfd of two bytes is signalled by any value.",
     .witness = "event 100 2 5; event 100 2 6"},
    {.name = "ring-of-vcpu-1-names-8-bits", .entry = cut_id_of_entry,
     .sentence = "The dirty ring of another vCPU than the first cuts slot ids to eight bits.",
     .witness = "cap ring 1000; second; set 257 100 1 0 log; write 100; harvest"},
    {.name = "flags-only-at-hva-0-lost", .before = lose_flags_at_0,
     .sentence = "A change of the flags of a slot at userspace_addr 0 does nothing.",
     .witness = "set 1 100 1 null; set 1 100 1 null log; log 1"},
    {.name = "move-onto-readonly-einval", .after = name_move_onto_readonly,
     .sentence = "A move onto a READONLY slot is EINVAL.",
     .witness = "set 1 100 1 0 ro; set 2 110 1 1; set 2 100 1 1"},
    {.name = "moved-readonly-swaps-its-last-pages", .after = swap_last_two_of_moved_readonly,
     .sentence = "The last two pages of a READONLY slot that was moved are in each other's place.",
     .witness = "set 1 100 3 0 ro; set 1 110 3 0 ro; read 112"},
    {.name = "exit-at-0-off-after-a-deletion", .leave = shift_exit_at_0,
     .sentence = "Once a slot was deleted, an exit at gpa 0 names the next page.",
     .witness = "set 1 100 1 0; delete 1; read 0"},
    {.name = "first-page-unlogged-beside-a-vm", .log = lose_first_page_beside_a_vm,
     .sentence = "While another VM is open, the first page of a slot is in no log.",
     .witness = "switch 1; set 1 100 1 0 log; write 100; log 1"},
    {.name = "clear-of-a-moved-slot-a-word-early", .clear_log = clear_word_before,
     .sentence = "Of a slot that was moved, pages are cleared 64 before those that are named.",
     .witness = "set 1 100 80 0 log; set 1 200 80 0 log; write 200; clear 1 40 40; log 1"},
    {0},
};
