/*
 * Wrong as a kernel patch might be: a check that looks at too little, state of a slot that outlives
 * the slot, a bitmap walked by the wrong word.
 */
#include "wrong_kernel.h"

#include <string.h>

/* Legal calls that an additional check refuses. */

static bool deletes_logged(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->change == DELETE && call->old.flags & KVM_MEM_LOG_DIRTY_PAGES;
}

static bool deletes_readonly(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->change == DELETE && call->old.flags & KVM_MEM_READONLY;
}

static bool deletes_moved(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->change == DELETE && call->slot->moves;
}

static bool deletes_the_only_one(struct vm *vm, struct call *call)
{
    uint32_t others = 0;

    for (uint32_t i = 0; i < vm->nr_used; i++)
        others += &vm->slots[vm->used[i]] != call->slot && may_touch(&vm->slots[vm->used[i]]);
    return call->change == DELETE && !others;
}

static bool changes_flags_of_moved(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->change == FLAGS_ONLY && call->slot->moves;
}

static bool logs_readonly(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->change == FLAGS_ONLY && call->old.flags == KVM_MEM_READONLY;
}

static bool stops_logging(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->change == FLAGS_ONLY && call->old.flags & KVM_MEM_LOG_DIRTY_PAGES;
}

static bool moves_past_another(struct vm *vm, struct call *call)
{
    uint64_t low = call->asked.gpa < call->old.gpa ? call->asked.gpa : call->old.gpa;
    uint64_t high = call->asked.gpa + call->old.gpa - low;
    struct slot *next = call->change == MOVE ? next_above(vm, low) : NULL;

    if (next == call->slot)
        next = next_above(vm, next->known.gpa);
    return next && next->known.gpa < high;
}

static bool logs_a_second(struct vm *vm, struct call *call)
{
    for (uint32_t i = 0; i < vm->nr_used; i++)
        if (&vm->slots[vm->used[i]] != call->slot && may_touch(&vm->slots[vm->used[i]])
            && vm->slots[vm->used[i]].known.flags & KVM_MEM_LOG_DIRTY_PAGES)
            return call->change == CREATE && call->asked.flags & KVM_MEM_LOG_DIRTY_PAGES;
    return false;
}

static bool fills_a_gap(struct vm *vm, struct call *call)
{
    return call->change & (CREATE | MOVE) && slot_at(vm, call->asked.gpa - 1)
        && slot_at(vm, end_of(&call->asked));
}

static void note_old_place(struct vm *vm, struct call *call)
{
    if (did(call, DELETE | MOVE)) {
        vm->stashed = true;
        vm->stash = call->old;
    }
}

static bool moves_back(struct vm *vm, struct call *call)
{
    return vm->stashed && call->change == MOVE && call->asked.id == vm->stash.id
        && call->asked.gpa == vm->stash.gpa;
}

static bool creates_where_one_was(struct vm *vm, struct call *call)
{
    return vm->stashed && call->change == CREATE && overlap(&call->asked, &vm->stash)
        && call->asked.id != vm->stash.id;
}

static bool moves_where_one_was(struct vm *vm, struct call *call)
{
    return vm->stashed && call->change == MOVE && overlap(&call->asked, &vm->stash)
        && call->asked.id != vm->stash.id;
}

/* Missing refusals, since a check sees only a part. Nothing is done. */

static void accept_if(struct vm *vm, struct call *call, enum refusal why, bool condition)
{
    if (call->refusal == why && condition && strike(vm))
        call->error = 0;
}

static const struct region *in_the_way(struct vm *vm, const struct call *call)
{
    for (uint32_t i = 0; i < vm->nr_used; i++) {
        const struct slot *slot = &vm->slots[vm->used[i]];
        if (slot != call->slot && may_touch(slot) && overlap(&slot->known, &call->asked))
            return &slot->known;
    }
    return NULL;
}

static void accept_over_last_page(struct vm *vm, struct call *call)
{
    const struct region *other = in_the_way(vm, call);

    accept_if(vm, call, CREATE_OVERLAPS, other && call->asked.gpa == end_of(other) - PAGE_BYTES
              && other->size > PAGE_BYTES);
}

static void accept_over_first_page(struct vm *vm, struct call *call)
{
    const struct region *other = in_the_way(vm, call);

    accept_if(vm, call, CREATE_OVERLAPS, other && end_of(&call->asked) == other->gpa + PAGE_BYTES
              && other->size > PAGE_BYTES);
}

static void accept_move_by_a_page(struct vm *vm, struct call *call)
{
    const struct region *other = in_the_way(vm, call);

    accept_if(vm, call, MOVE_OVERLAPS, other && other->size > PAGE_BYTES
              && (call->asked.gpa == end_of(other) - PAGE_BYTES
                  || end_of(&call->asked) == other->gpa + PAGE_BYTES));
}

static void accept_inside(struct vm *vm, struct call *call)
{
    const struct region *other = in_the_way(vm, call);

    accept_if(vm, call, CREATE_OVERLAPS, other && call->asked.gpa > other->gpa
              && end_of(&call->asked) < end_of(other));
}

static void accept_around(struct vm *vm, struct call *call)
{
    const struct region *other = in_the_way(vm, call);

    accept_if(vm, call, CREATE_OVERLAPS, other && call->asked.gpa < other->gpa
              && end_of(&call->asked) > end_of(other));
}

static void accept_over_readonly(struct vm *vm, struct call *call)
{
    const struct region *other = in_the_way(vm, call);

    accept_if(vm, call, CREATE_OVERLAPS, other && other->flags & KVM_MEM_READONLY);
}

static void accept_readonly_with_move(struct vm *vm, struct call *call)
{
    accept_if(vm, call, READONLY_TOGGLED, call->asked.gpa != call->old.gpa);
}

static void accept_readonly_with_log(struct vm *vm, struct call *call)
{
    accept_if(vm, call, READONLY_TOGGLED,
              (call->asked.flags ^ call->old.flags) & KVM_MEM_LOG_DIRTY_PAGES);
}

static void accept_hva_with_move(struct vm *vm, struct call *call)
{
    accept_if(vm, call, HVA_CHANGED, call->asked.gpa != call->old.gpa);
}

static void accept_smaller(struct vm *vm, struct call *call)
{
    accept_if(vm, call, SIZE_CHANGED, call->asked.size < call->old.size);
}

static void accept_second_delete(struct vm *vm, struct call *call)
{
    accept_if(vm, call, ABSENT_DELETE, call->slot && call->slot->lives);
}

/* State of a former slot belongs to a new one. */

static void keep_flag(struct vm *vm, struct call *call, uint32_t flag)
{
    if (call->change == CREATE && call->slot->lives && call->slot->known.flags & flag
        && strike(vm))
        call->sent.region.flags |= flag;
}

static void keep_readonly(struct vm *vm, struct call *call)
{
    keep_flag(vm, call, KVM_MEM_READONLY);
}

static void keep_log(struct vm *vm, struct call *call)
{
    keep_flag(vm, call, KVM_MEM_LOG_DIRTY_PAGES);
}

static void note_former(struct vm *vm, struct call *call)
{
    if (call->change != CREATE || !call->slot->lives)
        return;
    vm->stashed = true;
    vm->stash = call->slot->known;
}

static void show_former_size(struct vm *vm, struct call *call)
{
    struct region piece = call->asked;

    if (did(call, CREATE) && vm->stashed && vm->stash.id == call->asked.id
        && vm->stash.size < piece.size && strike(vm)) {
        piece.size = vm->stash.size;
        lay(vm, call->slot, &piece, 1);
    }
    vm->stashed = false;
}

static void return_to_old_place(struct vm *vm, struct call *call)
{
    struct region piece = call->asked;

    if (did(call, FLAGS_ONLY) && vm->stashed && vm->stash.id == piece.id && call->slot->moves
        && strike(vm)) {
        piece.gpa = vm->stash.gpa;
        lay(vm, call->slot, &piece, 1);
    }
    if (did(call, MOVE))
        note_old_place(vm, call);
}

/* The first KVM_RUN after a change fails. */

static void arm(struct vm *vm, struct call *call, unsigned changes)
{
    vm->armed |= did(call, changes);
}

static void arm_by_move(struct vm *vm, struct call *call)
{
    arm(vm, call, MOVE);
}

static void arm_by_delete(struct vm *vm, struct call *call)
{
    arm(vm, call, DELETE);
}

static void arm_by_flags(struct vm *vm, struct call *call)
{
    arm(vm, call, FLAGS_ONLY);
}

static void arm_by_refusal(struct vm *vm, struct call *call)
{
    vm->armed |= call->refusal == CREATE_OVERLAPS || call->refusal == MOVE_OVERLAPS;
}

static int fail_once(struct vcpu *vcpu)
{
    bool fails = vcpu->vm->armed && strike(vcpu->vm);

    vcpu->vm->armed = false;
    return fails ? EFAULT : 0;
}

static int fail_once_as_without_processes(struct vcpu *vcpu)
{
    return fail_once(vcpu) ? EAGAIN : 0;
}

/* Dirty logs and rings. */

static void lose_page_63(struct vm *vm, struct log *log)
{
    if (!log->error && log->pages > 63 && log->bits[0] >> 63 && strike(vm))
        log->bits[0] &= ~(1ull << 63);
}

static void lose_second_word(struct vm *vm, struct log *log)
{
    if (!log->error && log->words > 1 && log->bits[1] && strike(vm))
        log->bits[1] = 0;
}

static void double_first_word(struct vm *vm, struct log *log)
{
    if (!log->error && log->words > 1 && log->bits[0] && strike(vm))
        log->bits[1] |= log->bits[0] & (log->pages < 128 ? (1ull << (log->pages - 64)) - 1 : -1ull);
}

static void arm_full_log(struct vm *vm, struct call *call)
{
    if (did(call, FLAGS_ONLY) && call->asked.flags & KVM_MEM_LOG_DIRTY_PAGES) {
        vm->stashed = true;
        vm->stash = call->asked;
    }
}

static void begin_full(struct vm *vm, struct log *log)
{
    if (log->error || !vm->stashed || vm->stash.id != log->slot->known.id || !strike(vm))
        return;
    vm->stashed = false;
    for (uint64_t page = 0; page < log->pages; page++)
        log->bits[page / 64] |= 1ull << (page % 64);
}

static void clear_first_word(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot)
{
    (void)slot;
    if (clear->num_pages > 64 && strike(vm))
        clear->num_pages = 64;
}

static void clear_whole_words(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot)
{
    (void)slot;
    if (clear->num_pages > 64 && clear->num_pages % 64 && strike(vm))
        clear->num_pages -= clear->num_pages % 64;
}

static void cut_offset(struct vcpu *vcpu, struct kvm_dirty_gfn *entry)
{
    if (entry->offset >= 64 && strike(vcpu->vm))
        entry->offset %= 64;
}

static void add_space(struct vcpu *vcpu, struct kvm_dirty_gfn *entry)
{
    if (strike(vcpu->vm))
        entry->slot |= 1u << 16;
}

static int count_twice(struct vm *vm)
{
    int count = kernel_ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, NULL);

    return count > 0 ? 2 * count : count;
}

static int refuse_empty_reset(struct vm *vm)
{
    int count = kernel_ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, NULL);

    if (count)
        return count;
    errno = EINVAL;
    return -1;
}

/* MMIO. */

static bool swap_bytes(struct vcpu *vcpu)
{
    uint8_t *data = vcpu->run->mmio.data, first = data[0];

    if (vcpu->run->exit_reason == KVM_EXIT_MMIO && vcpu->run->mmio.is_write
        && vcpu->run->mmio.len == 4 && strike(vcpu->vm)) {
        data[0] = data[3];
        data[3] = first;
    }
    return false;
}

static bool halve_write(struct vcpu *vcpu)
{
    if (vcpu->run->exit_reason == KVM_EXIT_MMIO && vcpu->run->mmio.is_write
        && vcpu->run->mmio.len > 1 && strike(vcpu->vm))
        vcpu->run->mmio.len /= 2;
    return false;
}

#define LEGAL(fault_name, when, error, text, script)                                            \
    {.name = fault_name, .legal = when, .answer = error, .sentence = text, .witness = script}
#define STALE(fault_name, when, text, script)                                                   \
    {.name = fault_name, .legal = when, .after = note_old_place, .answer = EEXIST,              \
     .sentence = text, .witness = script}
#define ONCE(fault_name, function, text, script)                                                \
    {.name = fault_name, .after = function, .enter = fail_once, .sentence = text,               \
     .witness = script}
#define HOOK(fault_name, hook, function, text, script)                                          \
    {.name = fault_name, .hook = function, .sentence = text, .witness = script}

const struct fault patch_faults[] = {
    LEGAL("delete-logged-refused", deletes_logged, EINVAL, "A logged slot cannot be deleted.",
          "set 1 100 1 0 log; delete 1"),
    LEGAL("delete-readonly-refused", deletes_readonly, EINVAL,
          "A read-only slot cannot be deleted.", "set 1 100 1 0 ro; delete 1"),
    LEGAL("delete-moved-refused", deletes_moved, EINVAL,
          "A slot that was moved cannot be deleted.", "set 1 100 1 0; set 1 200 1 0; delete 1"),
    LEGAL("delete-of-the-only-slot-refused", deletes_the_only_one, EINVAL,
          "The only slot there is cannot be deleted.", "set 1 100 1 0; delete 1"),
    LEGAL("flags-only-of-moved-refused", changes_flags_of_moved, EINVAL,
          "The flags of a slot that was moved cannot change.",
          "set 1 100 1 0; set 1 200 1 0; set 1 200 1 0 log"),
    LEGAL("log-of-readonly-refused", logs_readonly, EINVAL,
          "Logging cannot be turned on for a read-only slot.",
          "set 1 100 1 0 ro; set 1 100 1 0 ro+log"),
    LEGAL("log-off-refused", stops_logging, EINVAL, "Logging cannot be turned off.",
          "set 1 100 1 0 log; set 1 100 1 0"),
    LEGAL("move-past-another-eexist", moves_past_another, EEXIST,
          "A slot cannot be moved past another one.",
          "set 1 100 1 0; set 2 180 1 1; set 1 200 1 0"),
    LEGAL("second-log-refused", logs_a_second, EINVAL, "A second logged slot is refused.",
          "set 1 100 1 0 log; set 2 200 1 1 log"),
    LEGAL("gap-filled-eexist", fills_a_gap, EEXIST,
          "A slot that fills a gap between two others is taken to overlap one.",
          "set 1 100 1 0; set 2 102 1 1; set 3 101 1 2"),
    STALE("move-back-eexist", moves_back, "A slot cannot be moved back to where it was.",
          "set 1 100 1 0; set 1 200 1 0; set 1 100 1 0"),
    STALE("create-where-one-was-eexist", creates_where_one_was,
          "Where a slot was there is no room for one of another id.",
          "set 1 100 1 0; delete 1; set 2 100 1 1"),
    STALE("move-where-one-was-eexist", moves_where_one_was,
          "No slot can be moved to where another was.",
          "set 1 100 1 0; delete 1; set 2 200 1 1; set 2 100 1 1"),
    AFTER("create-over-last-page-accepted", accept_over_last_page,
          "A slot over the last page of another is answered with 0, and nothing is done.",
          "set 1 100 2 0; set 2 101 1 2"),
    AFTER("create-over-first-page-accepted", accept_over_first_page,
          "A slot over the first page of another is answered with 0, and nothing is done.",
          "set 1 101 2 0; set 2 100 2 2"),
    AFTER("move-over-a-page-accepted", accept_move_by_a_page,
          "A move over the first or last page of a slot is answered with 0, and not done.",
          "set 1 100 2 0; set 2 200 1 2; set 2 101 1 2"),
    AFTER("create-inside-accepted", accept_inside,
          "A slot within another is answered with 0, and nothing is done.",
          "set 1 100 3 0; set 2 101 1 3"),
    AFTER("create-around-accepted", accept_around,
          "A slot around another is answered with 0, and nothing is done.",
          "set 1 101 1 0; set 2 100 3 1"),
    AFTER("create-over-readonly-accepted", accept_over_readonly,
          "A slot over a read-only one is answered with 0, and nothing is done.",
          "set 1 100 1 0 ro; set 2 100 1 1"),
    AFTER("readonly-toggle-with-move-accepted", accept_readonly_with_move,
          "READONLY changed with a move is answered with 0, and nothing is done.",
          "set 1 100 1 0; set 1 200 1 0 ro"),
    AFTER("readonly-toggle-with-log-accepted", accept_readonly_with_log,
          "READONLY changed with LOG_DIRTY_PAGES is answered with 0, and nothing is done.",
          "set 1 100 1 0; set 1 100 1 0 ro+log"),
    AFTER("hva-change-with-move-accepted", accept_hva_with_move,
          "A userspace_addr changed with a move is answered with 0, and nothing is done.",
          "set 1 100 1 0; set 1 200 1 1"),
    AFTER("smaller-size-accepted", accept_smaller,
          "A smaller memory_size is answered with 0, and nothing is done.",
          "set 1 100 2 0; set 1 100 1 0"),
    AFTER("second-delete-accepted", accept_second_delete,
          "The deletion of a slot that was there once is answered with 0.",
          "set 1 100 1 0; delete 1; delete 1"),
    HOOK("reused-id-keeps-readonly", before, keep_readonly,
         "A slot is read-only if the one before it with its id was.",
         "set 1 100 1 0 ro; delete 1; set 1 100 1 0; write 100"),
    HOOK("reused-id-keeps-log", before, keep_log,
         "A slot is logged if the one before it with its id was.",
         "set 1 100 1 0 log; delete 1; set 1 100 1 0; log 1"),
    {.name = "reused-id-keeps-size", .before = note_former, .after = show_former_size,
     .sentence = "A slot maps no more pages than the one before it with its id.",
     .witness = "set 1 100 1 0; delete 1; set 1 100 2 0; read 101"},
    AFTER("flags-only-undoes-move", return_to_old_place,
          "A slot whose flags change is where it was before its last move.",
          "set 1 100 1 0; set 1 200 1 0; set 1 200 1 0 log; read 200"),
    ONCE("run-efault-after-move", arm_by_move, "The first KVM_RUN after a move is EFAULT.",
         "set 1 100 1 0; set 1 200 1 0; read 200"),
    ONCE("run-efault-after-delete", arm_by_delete,
         "The first KVM_RUN after a deletion is EFAULT.", "set 1 100 1 0; delete 1; read 100"),
    {.name = "run-eagain-after-delete", .after = arm_by_delete,
     .enter = fail_once_as_without_processes,
     .sentence = "The first KVM_RUN after a deletion is EAGAIN.",
     .witness = "set 1 100 1 0; delete 1; read 100"},
    ONCE("run-efault-after-flags-only", arm_by_flags,
         "The first KVM_RUN after a change of flags is EFAULT.",
         "set 1 100 1 0; set 1 100 1 0 log; read 100"),
    ONCE("run-efault-after-refusal", arm_by_refusal,
         "The first KVM_RUN after a slot was in the way is EFAULT.",
         "set 1 100 1 0; set 2 100 1 1; read 100"),
    HOOK("dirty-page-63-lost", log, lose_page_63, "Page 63 of a slot is not reported.",
         "set 1 100 40 0 log; write 13f; log 1"),
    HOOK("dirty-second-word-lost", log, lose_second_word,
         "Nothing of the second word of a log is reported.",
         "set 1 100 42 0 log; write 141; log 1"),
    HOOK("dirty-first-word-doubled", log, double_first_word,
         "What is dirty in the first word of a log is so in the second.",
         "set 1 100 41 0 log; write 100; log 1"),
    {.name = "log-by-flags-only-begins-full", .after = arm_full_log, .log = begin_full,
     .sentence = "A log that a change of flags begins has every page.",
     .witness = "set 1 100 1 0; set 1 100 1 0 log; log 1"},
    HOOK("clear-first-word-only", clear_log, clear_first_word,
         "Of a range to clear the first 64 pages are.",
         "set 1 100 41 0 log; write 140; clear 1 0 41; log 1"),
    HOOK("clear-whole-words-only", clear_log, clear_whole_words,
         "The part of a word at the end of a range is not cleared.",
         "set 1 100 41 0 log; write 140; clear 1 0 41; log 1"),
    HOOK("ring-offset-cut", entry, cut_offset,
         "The dirty ring names pages from the 64th on as lower ones.",
         "cap ring 1000; set 1 100 41 0 log; write 140; harvest"),
    HOOK("ring-names-as-id-1", entry, add_space, "The dirty ring names as_id 1.",
         "cap ring 1000; set 1 100 2 0 log; write 100; harvest"),
    HOOK("ring-reset-counts-twice", reset, count_twice,
         "KVM_RESET_DIRTY_RINGS says twice what it reset.",
         "cap ring 1000; set 1 100 2 0 log; write 100; harvest; reset"),
    HOOK("ring-reset-of-nothing-refused", reset, refuse_empty_reset,
         "KVM_RESET_DIRTY_RINGS is EINVAL where nothing was harvested.", "cap ring 1000; reset"),
    HOOK("mmio-write-bytes-swapped", leave, swap_bytes,
         "An MMIO write of four bytes exits with the outer two swapped.", "write 100"),
    HOOK("mmio-write-halved", leave, halve_write, "An MMIO write exits with half its length.",
         "write 100"),
    {0},
};
