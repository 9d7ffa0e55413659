/* Calls that go wrong because of what came before: an earlier refusal, a count, a neighbour. */
#include "wrong_kernel.h"

#include <stdlib.h>
#include <string.h>

#define HUGE_BYTES (1ull << 21)
#define MANY_CHANGES 64

static bool is_logged(const struct slot *slot)
{
    return slot && slot->live && slot->known.flags & KVM_MEM_LOG_DIRTY_PAGES && may_touch(slot);
}

/* The dirty pages of a slot, which are cleared by this: free() it. */
static uint64_t *take_log(struct vm *vm, const struct slot *slot)
{
    uint64_t *bits = calloc((pages_of(&slot->known) + 63) / 64 + 1, sizeof(*bits));
    struct kvm_dirty_log get = {.slot = slot->known.id, .dirty_bitmap = bits};

    kernel_ioctl(vm->fd, KVM_GET_DIRTY_LOG, &get);
    return bits;
}

static uint64_t *ghost_of_slot(struct vm *vm, struct slot *slot)
{
    struct log log = {.slot = slot, .words = (pages_of(&slot->known) + 63) / 64};

    return ghost_of(vm, &log);
}

/* Moves a slot's dirty pages from the kernel's log to our own. */
static uint64_t *keep_log(struct vm *vm, struct slot *slot)
{
    uint64_t *taken = take_log(vm, slot), *kept = ghost_of_slot(vm, slot);

    for (uint64_t word = 0; word < (pages_of(&slot->known) + 63) / 64; word++)
        kept[word] |= taken[word];
    free(taken);
    return kept;
}

/* A log names what was kept for it. */
static void add_kept(struct vm *vm, struct log *log)
{
    uint64_t *kept;

    if (log->error || !is_logged(log->slot))
        return;
    kept = ghost_of(vm, log);
    for (uint64_t word = 0; word < log->words; word++)
        log->bits[word] |= kept[word];
    memset(kept, 0, log->words * sizeof(*kept));
}

static int second_page_showing_first(const struct region *slot, struct region *pieces)
{
    pieces[0] = pieces[1] = pieces[2] = *slot;
    pieces[0].size = pieces[1].size = PAGE_BYTES;
    pieces[1].gpa += PAGE_BYTES;
    pieces[2].gpa += 2 * PAGE_BYTES;
    pieces[2].hva += 2 * PAGE_BYTES;
    pieces[2].size -= 2 * PAGE_BYTES;
    return 3;
}

/* Moves. */

static void leave_rest(struct vm *vm, struct call *call)
{
    struct region rest = call->old;
    uint64_t from = call->old.gpa, to = call->asked.gpa, size = call->old.size;

    if (!did(call, MOVE) || from >= to + size || to >= from + size || !strike(vm))
        return;
    rest.size = from < to ? to - from : from - to;
    if (to < from) {
        rest.gpa = to + size;
        rest.hva += to + size - from;
    }
    add_alias(vm, rest, NO_OWNER);
}

static void lose_third_change(struct vm *vm, struct call *call)
{
    if (call->change & (MOVE | FLAGS_ONLY) && call->slot->moves + call->slot->flag_changes == 2
        && strike(vm)) {
        call->withheld = true;
        call->error = 0;
    }
}

static void repeat_when_moved_far(struct vm *vm, struct call *call)
{
    struct region pieces[3];

    if (did(call, MOVE) && call->asked.size >= HUGE_BYTES
        && (call->asked.gpa - call->old.gpa) % HUGE_BYTES == 0 && strike(vm))
        lay(vm, call->slot, pieces, second_page_showing_first(&call->slot->known, pieces));
}

static void leave_last_id(struct vm *vm, struct call *call)
{
    if (did(call, MOVE) && (call->asked.id & 0xffff) == vm->nr_ids - 1 && strike(vm))
        add_alias(vm, call->old, NO_OWNER);
}

static void hide_below_highest(struct vm *vm, struct call *call)
{
    struct slot *below = did(call, FLAGS_ONLY) && !next_above(vm, call->asked.gpa)
        ? next_below(vm, call->asked.gpa) : NULL;

    if (below && strike(vm))
        lose(vm, below);
}

/* Creations and deletions. */

static void give_refused_hva(struct vm *vm, struct call *call)
{
    if (call->change == CREATE && vm->stashed && vm->stash.id == call->asked.id && strike(vm))
        call->sent.region.hva = vm->stash.hva;
}

static void note_refused_hva(struct vm *vm, struct call *call)
{
    vm->stashed = call->refusal == CREATE_OVERLAPS;
    vm->stash = call->asked;
}

static void delete_what_goes_on(struct vm *vm, struct call *call)
{
    struct slot *above = did(call, DELETE) ? next_above(vm, call->old.gpa) : NULL;

    if (above && above->known.gpa == end_of(&call->old)
        && above->known.hva == call->old.hva + call->old.size && strike(vm))
        lose(vm, above);
}

static int cut_odd(const struct region *slot, struct region *pieces)
{
    uint64_t pages = pages_of(slot);

    if (pages % 2 == 0 || pages == 1)
        return -1;
    pieces[0] = *slot;
    pieces[0].size -= PAGE_BYTES;
    return 1;
}

static int repeat_in_large(const struct region *slot, struct region *pieces)
{
    if (slot->size < HUGE_BYTES || (slot->hva - slot->gpa) % HUGE_BYTES == 0)
        return -1;
    return second_page_showing_first(slot, pieces);
}

static void size_eexist(struct vm *vm, struct call *call)
{
    struct slot *other = call->refusal == SIZE_CHANGED ? next_above(vm, call->old.gpa) : NULL;

    if (other && other->known.gpa < end_of(&call->asked) && strike(vm))
        call->error = EEXIST;
}

static void round_deletion(struct vm *vm, struct call *call)
{
    if (!call->asked.size && call->refusal == GPA_UNALIGNED && call->slot && call->slot->live
        && strike(vm))
        call->sent.region.gpa = 0;
}

static void lose_identical(struct vm *vm, struct call *call)
{
    if (did(call, CREATE) && vm->stashed && !memcmp(&vm->stash, &call->asked, sizeof(vm->stash))
        && strike(vm))
        lose(vm, call->slot);
    vm->stashed = did(call, DELETE);
    vm->stash = call->old;
}

static void lose_second_form(struct vm *vm, struct call *call)
{
    if (call->request == SET_REGION2 && call->change == DELETE && strike(vm)) {
        call->withheld = true;
        call->error = 0;
    }
}

/* After refusals. */

static void unmap_unchanged(struct vm *vm, struct call *call)
{
    if (did(call, NOTHING) && vm->armed && strike(vm))
        lose(vm, call->slot);
    vm->armed = call->refusal != NOT_REFUSED;
}

/* Two refused calls in a row for one id: counted in vm->noted. */
static bool is_burnt(struct vm *vm, struct call *call)
{
    return call->change == CREATE && vm->stash.id == call->asked.id && vm->noted >= 2;
}

static void count_refusals(struct vm *vm, struct call *call)
{
    vm->noted = !call->refusal ? 0 : vm->stash.id == call->asked.id ? vm->noted + 1 : 1;
    vm->stash = call->asked;
}

static void stop_log(struct vm *vm, struct slot *slot)
{
    struct region region = slot->known;

    region.flags &= ~(uint32_t)KVM_MEM_LOG_DIRTY_PAGES;
    kernel_set(vm, region);
}

static void stop_log_of_toggled(struct vm *vm, struct call *call)
{
    if (call->refusal == READONLY_TOGGLED && is_logged(call->slot) && strike(vm))
        stop_log(vm, call->slot);
}

static void stop_log_of_unmoved(struct vm *vm, struct call *call)
{
    if (call->refusal == MOVE_OVERLAPS && is_logged(call->slot) && strike(vm))
        stop_log(vm, call->slot);
}

static void lose_after_efault(struct vm *vm, struct call *call)
{
    if (!call->refusal && vm->noted != vm->count.bad_pointers && strike(vm)) {
        call->withheld = true;
        call->error = 0;
    }
    vm->noted = vm->count.bad_pointers;
}

/* The capability says how many slots are left. */
static int count_free_slots(struct vm *vm, uintptr_t cap, int answer)
{
    uint32_t used = 0;

    for (uint32_t i = 0; i < vm->nr_used; i++)
        used += may_touch(&vm->slots[vm->used[i]]);
    return cap == KVM_CAP_NR_MEMSLOTS && used && strike(vm) ? answer - (int)used : answer;
}

/* Dirty logs. */

static void clear_unchanged(struct vm *vm, struct call *call)
{
    if (did(call, NOTHING) && is_logged(call->slot) && strike(vm))
        free(take_log(vm, call->slot));
}

static void keep_when_off(struct vm *vm, struct call *call)
{
    if (call->change == FLAGS_ONLY && is_logged(call->slot) && strike(vm))
        keep_log(vm, call->slot);
}

static int clear_refused(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot,
                         int error)
{
    uint64_t pages;
    uint64_t *all;

    if (error != EINVAL || !is_logged(slot) || !strike(vm))
        return error;
    pages = pages_of(&slot->known);
    all = malloc((pages + 63) / 64 * sizeof(*all));
    memset(all, 0xff, (pages + 63) / 64 * sizeof(*all));
    struct kvm_clear_dirty_log whole = {
        .slot = clear->slot, .num_pages = (uint32_t)pages, .dirty_bitmap = all,
    };
    kernel_ioctl(vm->fd, KVM_CLEAR_DIRTY_LOG, &whole);
    free(all);
    return error;
}

static int look_for_log_first(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot,
                              int error)
{
    return error == EINVAL && clear->first_page % 64 && slot && !is_logged(slot) && strike(vm)
        ? ENOENT : error;
}

static void lose_after_two_empty(struct vm *vm, struct log *log)
{
    uint64_t any = 0;

    if (log->error)
        return;
    for (uint64_t word = 0; word < log->words; word++)
        any |= log->bits[word];
    if (any && vm->noted >= 2 && strike(vm))
        memset(log->bits, 0, log->words * sizeof(*log->bits));
    vm->noted = any ? 0 : vm->noted + 1;
}

/* What is written through one slot is in the log of another one with the same memory, too. */
static void log_of_same_memory(struct vm *vm, struct log *log)
{
    struct region *own = &log->slot->known;

    for (uint32_t i = 0; !log->error && i < vm->nr_used; i++) {
        struct slot *other = &vm->slots[vm->used[i]];
        uint64_t *bits;
        if (other == log->slot || !is_logged(other) || other->known.hva != own->hva)
            continue;
        bits = keep_log(vm, other);
        for (uint64_t page = 0; page < log->pages && page < pages_of(&other->known); page++)
            if (bits[page / 64] >> page % 64 & 1)
                log->bits[page / 64] |= 1ull << page % 64;
    }
    add_kept(vm, log);
}

/* What is written to the last page of a slot is the first page of the slot beside it, too. */
static void log_of_slot_below(struct vm *vm, struct log *log)
{
    struct slot *below = log->error ? NULL : next_below(vm, log->slot->known.gpa);
    uint64_t last;

    if (below && is_logged(below) && end_of(&below->known) == log->slot->known.gpa) {
        last = pages_of(&below->known) - 1;
        if (keep_log(vm, below)[last / 64] >> last % 64 & 1)
            log->bits[0] |= 1;
    }
    add_kept(vm, log);
}

static bool log_refused_write(struct vcpu *vcpu)
{
    const struct kvm_run *run = vcpu->run;
    struct slot *slot = run->exit_reason == KVM_EXIT_MMIO && run->mmio.is_write
        ? slot_at(vcpu->vm, run->mmio.phys_addr) : NULL;

    if (is_logged(slot) && slot->known.flags & KVM_MEM_READONLY && strike(vcpu->vm)) {
        uint64_t page = (run->mmio.phys_addr - slot->known.gpa) / PAGE_BYTES;
        ghost_of_slot(vcpu->vm, slot)[page / 64] |= 1ull << page % 64;
    }
    return false;
}

static void clear_logs_of_others(struct vm *vm)
{
    for (struct vm *other = next_besides(vm, NULL); other; other = next_besides(vm, other))
        for (uint32_t i = 0; i < other->nr_used; i++)
            if (is_logged(&other->slots[other->used[i]]))
                free(take_log(other, &other->slots[other->used[i]]));
}

/* Several vCPUs. */

static int keep_logs(struct vcpu *vcpu)
{
    struct vm *vm = vcpu->vm;

    for (uint32_t i = 0; vcpu->index && i < vm->nr_used; i++)
        if (is_logged(&vm->slots[vm->used[i]]))
            keep_log(vm, &vm->slots[vm->used[i]]);
    return 0;
}

static bool drop_logs(struct vcpu *vcpu)
{
    struct vm *vm = vcpu->vm;

    for (uint32_t i = 0; vcpu->index && i < vm->nr_used; i++)
        if (is_logged(&vm->slots[vm->used[i]]))
            free(take_log(vm, &vm->slots[vm->used[i]]));
    return false;
}

static void count_entry(struct vcpu *vcpu, struct kvm_dirty_gfn *entry)
{
    (void)entry;
    vcpu->vm->noted += vcpu->index != 0;
}

static int reset_first_alone(struct vm *vm)
{
    int count = kernel_ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, NULL);
    int others = (int)vm->noted;

    vm->noted = 0;
    return count < 0 ? count : count > others ? count - others : 0;
}

/* A slot created after many changes: its first touch finds nothing. */

static void hide_after_many(struct vm *vm, struct call *call)
{
    show_hidden(vm);
    if (did(call, CREATE) && vm->count.changes >= MANY_CHANGES && strike(vm))
        hide_changed(vm, call);
}

/* The child ends, and takes along what it inherited. */
static void lose_latest(struct vm *vm, const struct host_change *change)
{
    if (change->kind != HOST_FORKS || !vm->nr_used || change->done)
        return;
    struct slot *slot = &vm->slots[vm->used[vm->nr_used - 1]];
    if (may_touch(slot) && strike(vm))
        lose(vm, slot);
}

/* After other calls. */

static void lose_third_delete(struct vm *vm, struct call *call)
{
    vm->noted = call->change == DELETE ? vm->noted + 1 : 0;
    if (vm->noted == 3 && strike(vm)) {
        call->withheld = true;
        call->error = 0;
    }
}

static void make_writable(struct vm *vm, struct slot *slot)
{
    struct region region = slot->known;

    region.flags &= ~(uint32_t)KVM_MEM_READONLY;
    lay(vm, slot, &region, 1);
}

static void write_after_flags(struct vm *vm, struct call *call)
{
    if (did(call, FLAGS_ONLY) && call->asked.flags & KVM_MEM_READONLY && strike(vm))
        make_writable(vm, call->slot);
}

/* Where a slot was that has moved, the next one shows that one's memory. */
static void show_moved(struct vm *vm, struct call *call)
{
    if (did(call, CREATE) && vm->stashed && vm->stash.gpa == call->asked.gpa
        && vm->stash.size >= call->asked.size && strike(vm)) {
        struct region region = call->slot->known;
        region.hva = vm->stash.hva;
        lay(vm, call->slot, &region, 1);
    }
    if (did(call, MOVE)) {
        vm->stash = call->old;
        vm->stashed = true;
    }
}

static void note_log(struct vm *vm, struct log *log)
{
    vm->armed = !log->error;
}

static bool swallow_after_log(struct vcpu *vcpu)
{
    bool swallow = vcpu->vm->armed && vcpu->run->exit_reason == KVM_EXIT_MMIO
        && vcpu->run->mmio.is_write;

    if (vcpu->run->exit_reason == KVM_EXIT_MMIO)
        vcpu->vm->armed = false;
    return swallow && strike(vcpu->vm);
}

static int repeat_in_exact(const struct region *slot, struct region *pieces)
{
    if (slot->size != HUGE_BYTES || slot->gpa % HUGE_BYTES)
        return -1;
    return second_page_showing_first(slot, pieces);
}

static void stop_logs_of_others(struct vm *vm)
{
    for (struct vm *other = next_besides(vm, NULL); other; other = next_besides(vm, other))
        for (uint32_t i = 0; i < other->nr_used; i++)
            if (is_logged(&other->slots[other->used[i]]))
                stop_log(other, &other->slots[other->used[i]]);
}

static bool is_nop_of_readonly(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->change == NOTHING && call->asked.flags & KVM_MEM_READONLY;
}

static int clear_nothing_clears_all(struct vm *vm, struct kvm_clear_dirty_log *clear,
                                    struct slot *slot, int error)
{
    if (!error && !clear->num_pages && strike(vm))
        clear_refused(vm, clear, slot, EINVAL);
    return error;
}

static int note_clear(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot,
                      int error)
{
    (void)clear;
    if (!error && is_logged(slot))
        vm->noted = slot->known.id + 1;
    return error;
}

static void clear_cleared(struct vm *vm, struct call *call)
{
    if (did(call, MOVE) && vm->noted == call->asked.id + 1 && is_logged(call->slot) && strike(vm))
        note_clear(vm, NULL, NULL, clear_refused(vm, &(struct kvm_clear_dirty_log){
            .slot = call->asked.id}, call->slot, EINVAL));
}

const struct fault history_faults[] = {
    AFTER("move-onto-itself-leaves-rest", leave_rest,
          "Of a slot moved onto itself the part that it left stays readable.",
          "set 1 100 2 0; set 1 101 2 0; read 100"),
    BEFORE("third-change-lost", lose_third_change,
           "The third change of a slot answers 0 and does nothing.",
           "set 1 100 1 0; set 1 200 1 0; set 1 300 1 0; set 1 400 1 0; read 400"),
    {.name = "create-has-refused-hva", .before = give_refused_hva, .after = note_refused_hva,
     .sentence = "After a creation that was in another's way its id gets the refused address.",
     .witness = "set 1 100 1 0; set 2 100 1 1; set 2 200 1 2; read 200"},
    AFTER("delete-takes-what-goes-on", delete_what_goes_on,
          "With a slot the one above is deleted that goes on in the same memory.",
          "set 1 100 1 0; set 2 101 1 1; delete 1; read 101"),
    {.name = "odd-size-cut", .shapes_on = CREATE | MOVE, .shape = cut_odd,
     .sentence = "A slot with an odd number of pages lacks the last.",
     .witness = "set 1 100 3 0; read 102"},
    {.name = "large-misaligned-repeats", .shapes_on = CREATE | MOVE, .shape = repeat_in_large,
     .sentence = "The second page of a slot of 2 MiB shows the first unless gpa and hva agree.",
     .witness = "set 1 1000 200 1; read 1001"},
    AFTER("size-change-over-another-eexist", size_eexist,
          "A larger size that would reach another slot is EEXIST instead of EINVAL.",
          "set 1 100 1 0; set 2 101 1 1; set 1 100 2 0"),
    BEFORE("delete-gpa-unaligned-accepted", round_deletion,
           "Deletion takes an unaligned guest_phys_addr.", "set 1 100 1 0; set 1 100+800 0 0"),
    AFTER("nop-after-refusal-unmaps", unmap_unchanged,
          "A call that changes nothing unmaps the slot when the call before was refused.",
          "set 1 100 1 0; set 1 100 1 1; set 1 100 1 0; read 100"),
    {.name = "id-refused-twice-is-taken", .legal = is_burnt, .answer = EEXIST,
     .after = count_refusals,
     .sentence = "An id for which two calls were refused is EEXIST.",
     .witness = "delete 1; delete 1; set 1 100 1 0"},
    {.name = "create-missed-after-64-changes", .after = hide_after_many,
     .leave = show_hidden_at_exit,
     .sentence = "After 64 changes of a VM the first KVM_RUN after a creation misses it.",
     .witness = "fill 65; read 1080"},
    {.name = "log-off-keeps-its-pages", .before = keep_when_off, .log = add_kept,
     .sentence = "What was dirty when logging was turned off is named when it is on again.",
     .witness = "set 1 100 1 0 log; write 100; set 1 100 1 0; set 1 100 1 0 log; log 1"},
    {.name = "second-vcpu-not-logged", .enter = keep_logs, .leave = drop_logs, .log = add_kept,
     .sentence = "What a vCPU other than the first writes is not in the dirty log.",
     .witness = "second; set 1 100 1 0 log; write 100; log 1"},
    {.name = "clear-looks-for-log-first", .cleared = look_for_log_first,
     .sentence = "Clearing from an unaligned page is ENOENT where there is no log.",
     .witness = "clear 1 1 1"},
    {.name = "ring-reset-counts-the-first-vcpu", .entry = count_entry, .reset = reset_first_alone,
     .sentence = "KVM_RESET_DIRTY_RINGS counts the entries of the first vCPU alone.",
     .witness = "cap ring 1000; second; set 1 100 2 0 log; write 100; harvest; reset"},
    {.name = "fork-takes-latest-slot", .host_changes = lose_latest,
     .sentence = "With a forked child the latest slot goes.",
     .witness = "set 1 100 1 0; forked; read 100"},
    {.name = "refused-clear-clears", .cleared = clear_refused,
     .sentence = "KVM_CLEAR_DIRTY_LOG clears the whole slot when it is refused with EINVAL.",
     .witness = "set 1 100 1 0 log; write 100; clear 1 1 1; log 1"},
    AFTER("refused-toggle-stops-log", stop_log_of_toggled,
          "A refused change of READONLY turns logging off.",
          "set 1 100 1 0 log; set 1 100 1 0 ro; log 1"),
    AFTER("refused-move-stops-log", stop_log_of_unmoved,
          "A move that another slot is in the way of turns logging off.",
          "set 1 100 1 0 log; set 2 200 1 1; set 1 200 1 0 log; log 1"),
    LOG("log-of-same-memory", log_of_same_memory,
        "A log names what was written through another logged slot on the same memory.",
        "set 1 100 1 0 log; set 2 200 1 0 log; write 200; log 1"),
    LOG("log-of-the-page-below", log_of_slot_below,
        "A write to the page below a slot is in its log, too, where that is a logged slot.",
        "set 1 100 1 0 log; set 2 101 1 1 log; write 100; log 2"),
    AFTER("nop-clears-log", clear_unchanged, "A call that changes nothing clears the dirty log.",
          "set 1 100 1 0 log; write 100; set 1 100 1 0 log; log 1"),
    AFTER("last-id-moved-leaves-alias", leave_last_id,
          "The slot with the last id stays readable where it was when it is moved.",
          "set last 100 1 0; set last 200 1 0; read 100"),
    LOG("log-after-two-empty-ones-empty", lose_after_two_empty,
        "After two logs without a dirty page the next one has none either.",
        "set 1 100 1 0 log; log 1; log 1; write 100; log 1"),
    AFTER("far-move-of-a-large-slot-repeats", repeat_when_moved_far,
          "The second page of a slot of 2 MiB that moves by such a multiple shows the first.",
          "set 1 1000 200 0; set 1 2000 200 0; read 2001"),
    {.name = "readonly-exit-logged", .leave = log_refused_write, .log = add_kept,
     .sentence = "A write to a read-only slot that exits is in its dirty log.",
     .witness = "set 1 100 1 0 ro+log; write 100; log 1"},
    {.name = "close-clears-every-log", .closing = clear_logs_of_others,
     .sentence = "With a VM that is closed the dirty logs of all others are cleared.",
     .witness = "set 1 100 1 0 log; write 100; switch 1; newvm; switch 0; log 1"},
    AFTER("identical-recreation-lost", lose_identical,
          "A slot made anew with the values of the one just deleted maps nothing.",
          "set 1 100 1 0; delete 1; set 1 100 1 0; read 100"),
    BEFORE("second-form-delete-lost", lose_second_form,
           "A deletion by the second form of the call answers 0 and does nothing.",
           "bind 1 100 1 0 plain 0; bind 1 100 0 0 plain 0; read 100"),
    BEFORE("change-after-efault-lost", lose_after_efault,
           "The change after a call with a bad pointer answers 0 and does nothing.",
           "pointer; set 1 100 1 0; read 100"),
    {.name = "capability-counts-free-slots", .extension = count_free_slots,
     .sentence = "KVM_CAP_NR_MEMSLOTS of a VM is less by the slots that it has.",
     .witness = "set 1 100 1 0; slots"},
    AFTER("flags-of-highest-hide-next", hide_below_highest,
          "A change of the highest slot's flags unmaps the one below.",
          "set 1 100 1 0; set 2 200 1 1; set 2 200 1 1 log; read 100"),
    BEFORE("third-deletion-in-a-row-lost", lose_third_delete,
           "The third of three deletions in a row answers 0 and does nothing.",
           "fill 3; empty 3; read 1004"),
    AFTER("readonly-lost-by-flags", write_after_flags,
          "A READONLY slot whose logging changes can be written.",
          "set 1 100 1 0 ro; set 1 100 1 0 ro+log; write 100"),
    AFTER("former-place-shows-moved", show_moved,
          "A slot created where another one was moved away shows that one's memory.",
          "set 1 100 1 0; set 1 200 1 0; set 2 100 1 1; read 100"),
    {.name = "mmio-write-after-log-swallowed", .log = note_log, .leave = swallow_after_log,
     .sentence = "The first MMIO write after a dirty log was read does not exit.",
     .witness = "set 1 100 1 0 log; log 1; write 200"},
    {.name = "exact-huge-page-repeats", .shapes_on = CREATE | MOVE, .shape = repeat_in_exact,
     .sentence = "The second page of a slot that is one aligned huge page shows the first.",
     .witness = "set 1 1000 200 0; read 1001"},
    {.name = "new-vm-stops-logs", .made = stop_logs_of_others,
     .sentence = "Another VM that is made turns logging off.",
     .witness = "set 1 100 1 0 log; switch 1; switch 0; log 1"},
    {.name = "nop-of-readonly-refused", .legal = is_nop_of_readonly, .answer = EINVAL,
     .sentence = "A call that changes nothing of a READONLY slot is refused.",
     .witness = "set 1 100 1 0 ro; set 1 100 1 0 ro"},
    {.name = "clear-of-nothing-clears-all", .cleared = clear_nothing_clears_all,
     .sentence = "Clearing no pages clears the whole log.",
     .witness = "set 1 100 1 0 log; write 100; clear 1 0 0; log 1"},
    {.name = "move-after-clear-clears", .cleared = note_clear, .after = clear_cleared,
     .sentence = "A move after the log was cleared in part clears all of it.",
     .witness = "set 1 100 41 0 log; write 140; clear 1 0 40; set 1 200 41 0 log; log 1"},
    {0},
};
