/* Calls that are refused, and have an effect; and refusals that are forgotten in one case alone. */
#include "wrong_kernel.h"

#define LOGGED KVM_MEM_LOG_DIRTY_PAGES
#define FROM_4_GIB (1ull << 32)
#define END_OF_USER_SPACE 0x7ffffffff000ull
#define MANY_SLOTS 20
#define HIGHEST_BIT_OF_AN_ID 0x8000u

static void accept_hva_with_flags(struct vm *vm, struct call *call)
{
    if (call->refusal == HVA_CHANGED && (call->asked.flags ^ call->old.flags) & LOGGED
        && strike(vm))
        call->error = 0;
}

/* The flags are taken over from a call that is refused. */
static void take_log_flag(struct vm *vm, const struct call *call)
{
    struct region changed = call->slot->known;

    if (!((call->asked.flags ^ changed.flags) & LOGGED) || !strike(vm))
        return;
    changed.flags ^= LOGGED;
    kernel_set(vm, changed);
}

static void log_refused_move(struct vm *vm, struct call *call)
{
    if (call->refusal == MOVE_OVERLAPS && call->asked.flags & LOGGED)
        take_log_flag(vm, call);
}

static void log_unknown_flag(struct vm *vm, struct call *call)
{
    if (call->refusal == UNKNOWN_FLAG && call->asked.flags & LOGGED && call->asked.size
        && call->slot && call->slot->live)
        take_log_flag(vm, call);
}

static void log_refused_size(struct vm *vm, struct call *call)
{
    if (call->refusal == SIZE_CHANGED)
        take_log_flag(vm, call);
}

static void accept_over_last_id(struct vm *vm, struct call *call)
{
    const struct slot *last = &vm->slots[vm->nr_ids - 1];

    if ((call->refusal == CREATE_OVERLAPS || call->refusal == MOVE_OVERLAPS) && last->live
        && last->known.gpa < end_of(&call->asked) && call->asked.gpa < end_of(&last->known)
        && strike(vm))
        call->error = 0;
}

static void cut_id(struct vm *vm, struct call *call)
{
    if (call->refusal == BAD_ID && call->asked.id & HIGHEST_BIT_OF_AN_ID && strike(vm))
        call->sent.region.id &= ~HIGHEST_BIT_OF_AN_ID;
}

static void round_high_gpa(struct vm *vm, struct call *call)
{
    if (call->refusal == GPA_UNALIGNED && call->asked.gpa >= FROM_4_GIB && strike(vm))
        call->sent.region.gpa &= ~(PAGE_BYTES - 1);
}

static void drop_log_of_second_form(struct vm *vm, struct call *call)
{
    if (call->change == FLAGS_ONLY && call->request == SET_REGION2 && strike(vm))
        call->sent.region.flags &= ~LOGGED;
}

static bool is_readonly_in_second_form(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->request == SET_REGION2 && call->change == CREATE
        && call->asked.flags & KVM_MEM_READONLY;
}

static bool ends_with_user_space(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->change == CREATE && call->asked.hva + call->asked.size == END_OF_USER_SPACE;
}

/* The creation before was refused. */
static void accept_absent_after_refused(struct vm *vm, struct call *call)
{
    if (call->refusal == ABSENT_DELETE && vm->stashed && vm->stash.id == call->asked.id
        && strike(vm))
        call->error = 0;
    vm->stashed = call->refusal == CREATE_OVERLAPS;
    vm->stash = call->asked;
}

static void accept_absent_readonly(struct vm *vm, struct call *call)
{
    if (call->refusal == ABSENT_DELETE && call->asked.flags & KVM_MEM_READONLY && strike(vm))
        call->error = 0;
}

static void name_second_form_toggle(struct vm *vm, struct call *call)
{
    if (call->refusal == READONLY_TOGGLED && call->request == SET_REGION2 && strike(vm))
        call->error = EPERM;
}

static void accept_over_one_of_many(struct vm *vm, struct call *call)
{
    if (call->refusal == CREATE_OVERLAPS && vm->nr_used >= MANY_SLOTS && strike(vm))
        call->error = 0;
}

static void lose_at_too_many_pages(struct vm *vm, struct call *call)
{
    if (call->refusal == TOO_MANY_PAGES && call->slot && call->slot->live && strike(vm))
        lose(vm, call->slot);
}

static void accept_wrapping_second_form(struct vm *vm, struct call *call)
{
    if (call->refusal == WRAPS && call->request == SET_REGION2 && strike(vm))
        call->error = 0;
}

static void log_what_is_in_the_way(struct vm *vm, struct call *call)
{
    struct slot *other = call->refusal == CREATE_OVERLAPS ? slot_at(vm, call->asked.gpa) : NULL;
    struct region changed;

    if (!other || !(call->asked.flags & LOGGED) || other->known.flags & LOGGED || !strike(vm))
        return;
    changed = other->known;
    changed.flags |= LOGGED;
    kernel_set(vm, changed);
}

static void accept_second_move_onto(struct vm *vm, struct call *call)
{
    if (call->refusal != MOVE_OVERLAPS)
        return;
    if (vm->armed && strike(vm))
        call->error = 0;
    vm->armed = true;
}

const struct fault refusal_faults[] = {
    {.name = "hva-change-with-flags-accepted", .after = accept_hva_with_flags,
     .sentence = "A userspace_addr changed with LOG_DIRTY_PAGES is answered with 0, and not done.",
     .witness = "set 1 100 1 0; set 1 100 1 1 log"},
    {.name = "refused-move-starts-log", .after = log_refused_move,
     .sentence = "A move that another slot is in the way of turns logging on.",
     .witness = "set 1 100 1 0; set 2 110 1 1; set 1 110 1 0 log; log 1"},
    {.name = "unknown-flag-starts-log", .after = log_unknown_flag,
     .sentence = "A call that is refused for an unknown flag turns logging on.",
     .witness = "set 1 100 1 0; set 1 100 1 0 log+unknown; log 1"},
    {.name = "refused-size-turns-log", .after = log_refused_size,
     .sentence = "A call that is refused for another size turns logging on or off.",
     .witness = "set 1 100 1 0; set 1 100 2 0 log; log 1"},
    {.name = "overlap-with-last-id-accepted", .after = accept_over_last_id,
     .sentence = "A slot over that with the last id is answered with 0, and nothing is done.",
     .witness = "set last 100 1 0; set 1 100 1 1"},
    {.name = "id-15-bits", .before = cut_id,
     .sentence = "Slot ids are cut to fifteen bits.", .witness = "set 32769 100 1 0"},
    {.name = "gpa-unaligned-above-4g-rounded", .before = round_high_gpa,
     .sentence = "From 4 GiB on an unaligned guest_phys_addr is rounded down.",
     .witness = "set 1 100000+800 1 0"},
    {.name = "second-form-flags-only-drops-log", .before = drop_log_of_second_form,
     .sentence = "The second form of the call does not turn logging on for a slot that is there.",
     .witness = "set 1 100 1 0; bind 1 100 1 0 plain 0 log; log 1"},
    {.name = "second-form-readonly-einval", .legal = is_readonly_in_second_form, .answer = EINVAL,
     .sentence = "The second form of the call is EINVAL for a new READONLY slot.",
     .witness = "bind 1 100 1 0 plain 0 ro"},
    {.name = "end-of-user-space-einval", .legal = ends_with_user_space, .answer = EINVAL,
     .sentence = "A slot whose memory ends where user space ends is EINVAL.",
     .witness = "set 1 100 1 end"},
    {.name = "ro-toggle-eexist", .refusal = READONLY_TOGGLED, .answer = EEXIST,
     .sentence = "Changing READONLY is EEXIST.", .witness = "set 1 100 1 0; set 1 100 1 0 ro"},
    {.name = "absent-delete-after-refused-create", .after = accept_absent_after_refused,
     .sentence = "A slot whose creation was just refused can be deleted.",
     .witness = "set 1 100 1 0; set 2 100 1 1; delete 2"},
    {.name = "absent-delete-readonly-accepted", .after = accept_absent_readonly,
     .sentence = "With READONLY, the deletion of an absent slot is answered with 0.",
     .witness = "set 1 100 0 0 ro"},
    {.name = "second-form-toggle-eperm", .after = name_second_form_toggle,
     .sentence = "Changing READONLY by the second form of the call is EPERM.",
     .witness = "set 1 100 1 0; bind 1 100 1 0 plain 0 ro"},
    {.name = "overlap-with-one-of-20-accepted", .after = accept_over_one_of_many,
     .sentence = "Of twenty slots or more, one may be in the way: the answer is 0.",
     .witness = "fill 19; set 50 1000 1 1"},
    {.name = "too-many-pages-loses-the-slot", .after = lose_at_too_many_pages,
     .sentence = "A slot that is asked to have too many pages maps nothing.",
     .witness = "set 1 100 1 null log; set 1 100 80000000 null; log 1"},
    {.name = "second-form-wrap-accepted", .after = accept_wrapping_second_form,
     .sentence = "A slot that wraps is answered with 0 if the second form of the call makes it.",
     .witness = "bind 1 top 1 0 plain 0"},
    {.name = "refused-create-logs-another", .after = log_what_is_in_the_way,
     .sentence = "A refused creation turns logging on for the slot that is in the way.",
     .witness = "set 1 100 1 0; set 2 100 1 1 log; log 1"},
    {.name = "second-move-onto-accepted", .after = accept_second_move_onto,
     .sentence = "The second move onto another slot is answered with 0, and nothing is done.",
     .witness = "set 1 100 1 0; set 2 110 1 1; set 2 100 1 1; set 2 100 1 1"},
    {0},
};
