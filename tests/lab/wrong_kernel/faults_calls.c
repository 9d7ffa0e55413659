/* Calls that are altered, withheld or done late on their way to the kernel. */
#include "wrong_kernel.h"

static bool wants(const struct call *call, unsigned changes)
{
    return call->change & changes;
}

/* Returns 0 and does nothing. */
static void swallow(struct call *call)
{
    call->withheld = true;
    call->error = 0;
}

static void lose_delete(struct vm *vm, struct call *call)
{
    if (wants(call, DELETE) && strike(vm))
        swallow(call);
}

static void lose_move(struct vm *vm, struct call *call)
{
    if (wants(call, MOVE) && strike(vm))
        swallow(call);
}

static void lose_move_of_flags(struct vm *vm, struct call *call)
{
    if (wants(call, MOVE) && call->asked.flags != call->old.flags && strike(vm))
        call->sent.region.flags = call->old.flags;
}

static void lose_flags(struct vm *vm, struct call *call)
{
    if (wants(call, FLAGS_ONLY) && strike(vm))
        swallow(call);
}

static void drop_log_of(struct vm *vm, struct call *call, enum change change)
{
    if (wants(call, change) && call->asked.flags & KVM_MEM_LOG_DIRTY_PAGES && strike(vm))
        call->sent.region.flags &= ~KVM_MEM_LOG_DIRTY_PAGES;
}

static void drop_log_at_create(struct vm *vm, struct call *call)
{
    drop_log_of(vm, call, CREATE);
}

static void drop_log_at_move(struct vm *vm, struct call *call)
{
    drop_log_of(vm, call, MOVE);
}

static void truncate_id(struct vm *vm, struct call *call)
{
    if (call->slot && call->asked.id > 511 && call->asked.id < vm->nr_ids && strike(vm))
        call->sent.region.id &= 511;
}

static void alter_refused(struct vm *vm, struct call *call)
{
    struct region *sent = &call->sent.region;

    switch (call->refusal) {
    case UNKNOWN_FLAG:
        sent->flags &= KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY;
        break;
    case BAD_ID:
        sent->id = (sent->id & 0xffff) - vm->nr_ids;
        break;
    case SIZE_UNALIGNED:
        sent->size = (sent->size + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
        break;
    case GPA_UNALIGNED:
        sent->gpa -= sent->gpa % PAGE_BYTES;
        break;
    case HVA_UNALIGNED:
        sent->hva -= sent->hva % PAGE_BYTES;
        break;
    case HVA_OF_KERNEL:
        sent->hva = 0;
        break;
    case BAD_SPACE:
        sent->id &= 0xffff;
        break;
    default:
        break;
    }
}

#define ALTER_REFUSED(function, which)                                                          \
    static void function(struct vm *vm, struct call *call)                                      \
    {                                                                                           \
        if (call->refusal == (which) && strike(vm))                                             \
            alter_refused(vm, call);                                                            \
    }

ALTER_REFUSED(drop_unknown_flag, UNKNOWN_FLAG)
ALTER_REFUSED(wrap_id, BAD_ID)
ALTER_REFUSED(round_size, SIZE_UNALIGNED)
ALTER_REFUSED(round_gpa, GPA_UNALIGNED)
ALTER_REFUSED(round_hva, HVA_UNALIGNED)
ALTER_REFUSED(ignore_space, BAD_SPACE)

static void ignore_hva_of_delete(struct vm *vm, struct call *call)
{
    if (!call->asked.size && (call->refusal == HVA_UNALIGNED || call->refusal == HVA_OF_KERNEL)
        && call->slot && call->slot->live && strike(vm))
        call->sent.region.hva = 0;
}

/* Does what must be refused, by deleting the slot and creating it as asked. */
static void do_change(struct vm *vm, struct call *call, enum refusal which)
{
    if (call->refusal == which && call->slot && strike(vm))
        kernel_set(vm, (struct region){.id = call->asked.id});
}

static void do_hva_change(struct vm *vm, struct call *call)
{
    do_change(vm, call, HVA_CHANGED);
}

static void do_size_change(struct vm *vm, struct call *call)
{
    do_change(vm, call, SIZE_CHANGED);
}

static void do_readonly_toggle(struct vm *vm, struct call *call)
{
    do_change(vm, call, READONLY_TOGGLED);
}

static void win_overlap(struct vm *vm, struct call *call)
{
    struct slot *other = slot_at(vm, call->asked.gpa);

    if (wants(call, CREATE | MOVE) && other && other != call->slot && strike(vm))
        lose(vm, other);
}

/* Done late: does now what the previous call asked for. */

static void do_stashed(struct vm *vm)
{
    struct slot *slot = vm->stashed ? slot_of(vm, vm->stash.id) : NULL;

    vm->stashed = false;
    if (slot)
        kernel_set(vm, vm->stash);
}

static void delete_late(struct vm *vm, struct call *call)
{
    do_stashed(vm);
    if (!wants(call, DELETE) || !strike(vm))
        return;
    vm->stashed = true;
    vm->stash = call->asked;
    swallow(call);
}

static void move_late(struct vm *vm, struct call *call)
{
    do_stashed(vm);
    if (!wants(call, MOVE) || !strike(vm))
        return;
    vm->stashed = true;
    vm->stash = call->asked;
    swallow(call);
}

static void end_lateness(struct vm *vm, struct call *call)
{
    (void)call;
    show_hidden(vm);
}

static void create_late(struct vm *vm, struct call *call)
{
    if (did(call, CREATE) && strike(vm))
        hide_changed(vm, call);
}

static void end_old_place(struct vm *vm, struct call *call)
{
    (void)call;
    if (vm->stashed)
        drop_aliases_over(vm, vm->stash.gpa, vm->stash.size);
    vm->stashed = false;
}

static void keep_old_place(struct vm *vm, struct call *call)
{
    if (!did(call, MOVE) || !strike(vm))
        return;
    vm->stashed = true;
    vm->stash = call->old;
    add_alias(vm, call->old, NO_OWNER);
}

const struct fault call_faults[] = {
    BEFORE("delete-lost", lose_delete, "A deletion answers 0 and does nothing.",
           "set 1 100 1 0; delete 1; read 100"),
    {.name = "delete-lost-every-5th", .before = lose_delete, .every = 5,
     .sentence = "Every fifth deletion answers 0 and does nothing.",
     .witness = "fill 5; empty 5; read 1008"},
    BEFORE("move-lost", lose_move, "A move answers 0 and does nothing.",
           "set 1 100 1 0; set 1 200 1 0; read 200"),
    BEFORE("move-flags-lost", lose_move_of_flags,
           "A move that changes LOG_DIRTY_PAGES as well does not change it.",
           "set 1 100 1 0; set 1 200 1 0 log; log 1"),
    BEFORE("flags-only-lost", lose_flags, "A change of flags answers 0 and does nothing.",
           "set 1 100 1 0; set 1 100 1 0 log; log 1"),
    BEFORE("log-dropped-at-create", drop_log_at_create,
           "LOG_DIRTY_PAGES is forgotten at creation.", "set 1 100 1 0 log; log 1"),
    BEFORE("log-dropped-at-move", drop_log_at_move, "LOG_DIRTY_PAGES is forgotten by a move.",
           "set 1 100 1 0 log; set 1 200 1 0 log; log 1"),
    BEFORE("id-9-bits", truncate_id, "Slot ids are cut to nine bits.",
           "set 1 100 1 0; set 513 200 1 1"),
    BEFORE("unknown-flag-dropped", drop_unknown_flag,
           "An unknown flag is dropped, and the rest done.", "set 1 100 1 0 unknown"),
    BEFORE("id-beyond-end-wraps", wrap_id, "A slot id beyond the end begins again at 0.",
           "set beyond 100 1 0"),
    BEFORE("size-unaligned-rounded", round_size, "An unaligned memory_size is rounded up.",
           "set 1 100 1+800 0"),
    BEFORE("gpa-unaligned-rounded", round_gpa, "An unaligned guest_phys_addr is rounded down.",
           "set 1 100+800 1 0"),
    BEFORE("hva-unaligned-rounded", round_hva, "An unaligned userspace_addr is rounded down.",
           "set 1 100 1 0+800"),
    BEFORE("as-id-ignored", ignore_space, "The address space's number is not looked at.",
           "set 1/1 100 1 0"),
    BEFORE("delete-hva-unchecked", ignore_hva_of_delete,
           "Deletion does not refuse an illegal userspace_addr.",
           "set 1 100 1 0; set 1 100 0 kernel"),
    BEFORE("hva-change-done", do_hva_change, "A changed userspace_addr takes effect.",
           "set 1 100 1 0; set 1 100 1 1"),
    BEFORE("size-change-done", do_size_change, "A changed memory_size takes effect.",
           "set 1 100 1 0; set 1 100 2 0"),
    BEFORE("readonly-toggle-done", do_readonly_toggle, "A changed READONLY takes effect.",
           "set 1 100 1 0; set 1 100 1 0 ro"),
    BEFORE("overlap-wins", win_overlap,
           "A slot created over or moved onto another takes its place.",
           "set 1 100 1 0; set 2 100 1 1"),
    BEFORE("delete-late", delete_late, "A deletion is done at the next region call only.",
           "set 1 100 1 0; delete 1; read 100"),
    BEFORE("move-late", move_late, "A move is done at the next region call only.",
           "set 1 100 1 0; set 1 200 1 0; read 200"),
    {.name = "create-late", .before = end_lateness, .after = create_late,
     .sentence = "A created slot maps nothing until the next region call.",
     .witness = "set 1 100 1 0; read 100"},
    {.name = "move-old-place-late", .before = end_old_place, .after = keep_old_place,
     .sentence = "A moved slot's old place is readable until the next region call.",
     .witness = "set 1 100 1 0; set 1 200 1 0; read 100"},
    {0},
};
