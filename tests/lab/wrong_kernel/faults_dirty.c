/* Wrong dirty logs. */
#include "wrong_kernel.h"

#include <string.h>

/* The words of the bitmap, if the kernel filled it. */
static uint64_t filled(const struct log *log)
{
    return log->error ? 0 : log->words;
}

static bool get_bit(const struct log *log, uint64_t page)
{
    return page < log->pages && log->bits[page / 64] >> (page % 64) & 1;
}

static void drop_bit(const struct log *log, uint64_t page)
{
    log->bits[page / 64] &= ~(1ull << (page % 64));
}

static void set_bit(const struct log *log, uint64_t page)
{
    log->bits[page / 64] |= 1ull << (page % 64);
}

static bool any_bit(const struct log *log)
{
    for (uint64_t word = 0; word < filled(log); word++)
        if (log->bits[word])
            return true;
    return false;
}

static uint64_t lowest_bit(const struct log *log)
{
    uint64_t page = 0;

    while (!get_bit(log, page))
        page++;
    return page;
}

static uint64_t highest_bit(const struct log *log)
{
    uint64_t page = log->pages - 1;

    while (!get_bit(log, page))
        page--;
    return page;
}

static void lose_lowest(struct vm *vm, struct log *log)
{
    if (any_bit(log) && strike(vm))
        drop_bit(log, lowest_bit(log));
}

static void lose_highest(struct vm *vm, struct log *log)
{
    if (any_bit(log) && strike(vm))
        drop_bit(log, highest_bit(log));
}

static void lose_last_page(struct vm *vm, struct log *log)
{
    if (filled(log) && get_bit(log, log->pages - 1) && strike(vm))
        drop_bit(log, log->pages - 1);
}

static void lose_page_64(struct vm *vm, struct log *log)
{
    if (filled(log) && get_bit(log, 64) && strike(vm))
        drop_bit(log, 64);
}

static void lose_all_but_lowest(struct vm *vm, struct log *log)
{
    if (!any_bit(log) || lowest_bit(log) == highest_bit(log) || !strike(vm))
        return;
    uint64_t page = lowest_bit(log);
    memset(log->bits, 0, log->words * sizeof(*log->bits));
    set_bit(log, page);
}

static void lose_all(struct vm *vm, struct log *log)
{
    if (any_bit(log) && strike(vm))
        memset(log->bits, 0, log->words * sizeof(*log->bits));
}

static void add_neighbour(struct vm *vm, struct log *log)
{
    if (any_bit(log) && highest_bit(log) + 1 < log->pages && strike(vm))
        set_bit(log, highest_bit(log) + 1);
}

static void add_first(struct vm *vm, struct log *log)
{
    if (filled(log) && !get_bit(log, 0) && strike(vm))
        set_bit(log, 0);
}

/* A bit beyond the last page. */
static void add_beyond_end(struct vm *vm, struct log *log)
{
    if (filled(log) && log->pages % 64 && strike(vm))
        set_bit(log, log->pages);
}

static void add_whole_word(struct vm *vm, struct log *log)
{
    if (!any_bit(log) || !strike(vm))
        return;
    for (uint64_t page = lowest_bit(log) / 64 * 64; page < log->pages; page++)
        set_bit(log, page);
}

static void shift(struct vm *vm, struct log *log)
{
    if (!any_bit(log) || log->pages < 2 || !strike(vm))
        return;
    for (uint64_t page = log->pages; page-- > 0;) {
        drop_bit(log, page);
        if (page && get_bit(log, page - 1))
            set_bit(log, page);
    }
}

static void leave_as_it_was(struct vm *vm, struct log *log)
{
    if (filled(log) == 1 && !any_bit(log) && strike(vm))
        log->bits[0] = log->before;
}

/* All our callers have room for it. */
static void write_on(struct vm *vm, struct log *log)
{
    if (filled(log) && strike(vm))
        log->bits[log->words] = 0;
}

static void lose_if(struct vm *vm, struct log *log, bool condition)
{
    if (condition)
        lose_lowest(vm, log);
}

static void lose_after_flags(struct vm *vm, struct log *log)
{
    lose_if(vm, log, log->slot->flag_changes > 0);
}

static void lose_after_move(struct vm *vm, struct log *log)
{
    lose_if(vm, log, log->slot->moves > 0);
}

static void lose_of_reused_id(struct vm *vm, struct log *log)
{
    lose_if(vm, log, log->slot->lives > 1);
}

static void lose_of_readonly(struct vm *vm, struct log *log)
{
    if (!log->error && log->slot->known.flags & KVM_MEM_READONLY && strike(vm))
        log->error = ENOENT;
}

/* Reported again with every later read. */
static void never_clear(struct vm *vm, struct log *log)
{
    uint64_t *before;

    if (!filled(log))
        return;
    before = ghost_of(vm, log);
    for (uint64_t word = 0; word < log->words; word++) {
        uint64_t fresh = log->bits[word];
        log->bits[word] |= before[word];
        before[word] |= fresh;
    }
}

/* A page is reported once only: it is not write-protected again. */
static void report_once(struct vm *vm, struct log *log)
{
    uint64_t *before;

    if (!filled(log))
        return;
    before = ghost_of(vm, log);
    for (uint64_t word = 0; word < log->words; word++) {
        uint64_t fresh = log->bits[word];
        log->bits[word] &= ~before[word];
        before[word] |= fresh;
    }
}

static void report_late(struct vm *vm, struct log *log)
{
    uint64_t *before;

    if (!filled(log))
        return;
    before = ghost_of(vm, log);
    for (uint64_t word = 0; word < log->words; word++) {
        uint64_t fresh = log->bits[word];
        log->bits[word] = before[word];
        before[word] = fresh;
    }
}

static void read_logs_of_others(struct vm *vm, struct log *log)
{
    if (log->error || !strike(vm))
        return;
    for (uint32_t i = 0; i < vm->nr_used; i++) {
        struct slot *slot = &vm->slots[vm->used[i]];
        struct log other = {.slot = slot, .words = (pages_of(&slot->known) + 63) / 64};
        struct kvm_dirty_log get = {.slot = slot->known.id};
        if (slot == log->slot || !may_touch(slot))
            continue;
        get.dirty_bitmap = ghost_of(vm, &other);
        kernel_ioctl(vm->fd, KVM_GET_DIRTY_LOG, &get);
    }
}

static void show_log_of_another(struct vm *vm, struct log *log)
{
    for (uint32_t i = 0; !log->error && i < vm->nr_used; i++) {
        struct slot *slot = &vm->slots[vm->used[i]];
        struct kvm_dirty_log get = {.slot = slot->known.id, .dirty_bitmap = log->bits};
        if (slot == log->slot || !may_touch(slot) || pages_of(&slot->known) > log->pages)
            continue;
        if (slot->known.flags & KVM_MEM_LOG_DIRTY_PAGES && strike(vm)) {
            kernel_ioctl(vm->fd, KVM_GET_DIRTY_LOG, &get);
            return;
        }
    }
}

static void refuse_logged(struct vm *vm, struct log *log)
{
    if (!log->error && strike(vm))
        log->error = ENOENT;
}

static void accept_unlogged(struct vm *vm, struct log *log)
{
    if (log->error == ENOENT && log->slot->live && strike(vm))
        log->error = 0;
}

static void keep_logging(struct vm *vm, struct log *log)
{
    if (log->error == ENOENT && log->slot->live && log->slot->lives > 1 && strike(vm))
        log->error = 0;
}

static void accept_absent(struct vm *vm, struct log *log)
{
    if (log->error == ENOENT && !log->slot->live && strike(vm))
        log->error = 0;
}

static void absent_einval(struct vm *vm, struct log *log)
{
    if (log->error == ENOENT && !log->slot->live && strike(vm))
        log->error = EINVAL;
}

static void unlogged_einval(struct vm *vm, struct log *log)
{
    if (log->error == ENOENT && log->slot->live && strike(vm))
        log->error = EINVAL;
}

/* With manual clearing. */
static void clear_nothing(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot)
{
    static uint64_t none[4096];

    (void)slot;
    if (clear->num_pages <= sizeof(none) * 8 && strike(vm))
        clear->dirty_bitmap = none;
}

static void clear_all(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot)
{
    static uint64_t all[4096];

    memset(all, 0xff, sizeof(all));
    if (pages_of(&slot->known) > sizeof(all) * 8 || clear->first_page % 64 || !strike(vm))
        return;
    clear->first_page = 0;
    clear->num_pages = (uint32_t)pages_of(&slot->known);
    clear->dirty_bitmap = all;
}

const struct fault dirty_faults[] = {
    LOG("dirty-lowest-lost", lose_lowest, "The lowest dirty page is not reported.",
        "set 1 100 1 0 log; write 100; log 1"),
    LOG("dirty-highest-lost", lose_highest, "The highest dirty page is not reported.",
        "set 1 100 1 0 log; write 100; log 1"),
    LOG("dirty-last-page-lost", lose_last_page, "A slot's last page is not reported.",
        "set 1 100 1 0 log; write 100; log 1"),
    LOG("dirty-page-64-lost", lose_page_64, "Page 64 of a slot is not reported.",
        "set 1 100 41 0 log; write 140; log 1"),
    LOG("dirty-only-one", lose_all_but_lowest, "Of several dirty pages one is reported.",
        "set 1 100 2 0 log; write 100; write 101; log 1"),
    LOG("dirty-all-lost", lose_all, "No dirty page is reported.",
        "set 1 100 1 0 log; write 100; log 1"),
    LOG("dirty-neighbour-added", add_neighbour, "The page after a dirty one is reported too.",
        "set 1 100 2 0 log; write 100; log 1"),
    LOG("dirty-first-added", add_first, "A slot's first page is always reported.",
        "set 1 100 1 0 log; log 1"),
    LOG("dirty-beyond-end", add_beyond_end, "A page beyond the slot's last one is reported.",
        "set 1 100 1 0 log; log 1"),
    LOG("dirty-all-added", add_whole_word, "All pages after a dirty one are reported too.",
        "set 1 100 2 0 log; write 100; log 1"),
    LOG("dirty-shifted", shift, "Each dirty page is reported as the next one.",
        "set 1 100 2 0 log; write 100; log 1"),
    LOG("dirty-nothing-unwritten", leave_as_it_was,
        "A log without a dirty page leaves the bitmap as it was.", "set 1 100 1 0 log; log 1"),
    LOG("dirty-written-on", write_on, "A log clears the word after its bitmap, too.",
        "set 1 100 1 0 log; log 1"),
    LOG("dirty-lost-after-flags-only", lose_after_flags,
        "The lowest dirty page is not reported once the slot's flags have changed.",
        "set 1 100 1 0; set 1 100 1 0 log; write 100; log 1"),
    LOG("dirty-lost-after-move", lose_after_move,
        "The lowest dirty page is not reported once the slot was moved.",
        "set 1 100 1 0 log; set 1 200 1 0 log; write 200; log 1"),
    LOG("dirty-lost-of-reused-id", lose_of_reused_id,
        "The lowest dirty page is not reported where the id was used before.",
        "set 1 100 1 0; delete 1; set 1 100 1 0 log; write 100; log 1"),
    LOG("dirty-readonly-enoent", lose_of_readonly, "A read-only slot has no dirty log.",
        "set 1 100 1 0 ro+log; log 1"),
    LOG("dirty-never-cleared", never_clear, "What was reported is reported again.",
        "set 1 100 1 0 log; write 100; log 1; log 1"),
    LOG("dirty-reported-once", report_once, "A page that was reported is never reported again.",
        "set 1 100 1 0 log; write 100; log 1; write 100; log 1"),
    LOG("dirty-reported-late", report_late, "What is dirty is reported at the next read only.",
        "set 1 100 1 0 log; write 100; log 1"),
    LOG("dirty-cleared-by-others", read_logs_of_others,
        "Reading one slot's log clears those of all others.",
        "set 1 100 1 0 log; set 2 200 1 1 log; write 100; log 2; log 1"),
    LOG("dirty-of-another", show_log_of_another, "Another slot's log is reported.",
        "set 1 100 1 0 log; set 2 200 1 1 log; write 100; log 1"),
    LOG("dirty-logged-enoent", refuse_logged, "A logged slot has no dirty log.",
        "set 1 100 1 0 log; log 1"),
    LOG("dirty-unlogged-accepted", accept_unlogged,
        "A slot without LOG_DIRTY_PAGES has a dirty log.", "set 1 100 1 0; log 1"),
    LOG("dirty-unlogged-of-reused-id-accepted", keep_logging,
        "A slot without LOG_DIRTY_PAGES has a dirty log where the id was used before.",
        "set 1 100 1 0; delete 1; set 1 100 1 0; log 1"),
    LOG("dirty-absent-accepted", accept_absent, "An absent slot has a dirty log.", "log 1"),
    LOG("dirty-absent-einval", absent_einval,
        "The dirty log of an absent slot is EINVAL instead of ENOENT.", "log 1"),
    LOG("dirty-unlogged-einval", unlogged_einval,
        "The dirty log of an unlogged slot is EINVAL instead of ENOENT.",
        "set 1 100 1 0; log 1"),
    {.name = "clear-log-lost", .clear_log = clear_nothing,
     .sentence = "KVM_CLEAR_DIRTY_LOG clears nothing.",
     .witness = "set 1 100 1 0 log; write 100; clear 1 0 1; log 1"},
    {.name = "clear-log-clears-all", .clear_log = clear_all,
     .sentence = "KVM_CLEAR_DIRTY_LOG clears the whole slot.",
     .witness = "set 1 100 41 0 log; write 100; clear 1 40 1; log 1"},
    {0},
};
