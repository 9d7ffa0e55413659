/* Wrong dirty tracking: manual clearing, capabilities, and dirty rings. */
#include "wrong_kernel.h"

#include <string.h>

/* KVM_CLEAR_DIRTY_LOG: other answers. */

static bool is_beyond(const struct kvm_clear_dirty_log *clear, const struct slot *slot)
{
    uint64_t pages = pages_of(&slot->known);

    return clear->first_page > pages || clear->num_pages > pages - clear->first_page;
}

static int accept_unaligned(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot,
                            int error)
{
    (void)slot;
    return error == EINVAL && clear->first_page % 64 && strike(vm) ? 0 : error;
}

static int accept_partial(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot,
                          int error)
{
    bool partial = error == EINVAL && clear->first_page % 64 == 0 && slot && slot->live
        && !is_beyond(clear, slot);

    return partial && strike(vm) ? 0 : error;
}

static int accept_beyond(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot,
                         int error)
{
    bool beyond = error == EINVAL && clear->first_page % 64 == 0 && slot && slot->live
        && is_beyond(clear, slot);

    return beyond && strike(vm) ? 0 : error;
}

static int accept_no_log(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot,
                         int error)
{
    (void)clear, (void)slot;
    return error == ENOENT && strike(vm) ? 0 : error;
}

static int no_log_einval(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot,
                         int error)
{
    (void)clear, (void)slot;
    return error == ENOENT && strike(vm) ? EINVAL : error;
}

static int accept_pointer(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot,
                          int error)
{
    (void)clear, (void)slot;
    return error == EFAULT && strike(vm) ? 0 : error;
}

static int accept_with_ring(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot,
                            int error)
{
    (void)clear, (void)slot;
    return error == ENXIO && strike(vm) ? 0 : error;
}

static int refuse_end(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot,
                      int error)
{
    (void)slot;
    return !error && clear->num_pages % 64 && strike(vm) ? EINVAL : error;
}

/* KVM_CLEAR_DIRTY_LOG: other pages. */

static bool is_legal(const struct kvm_clear_dirty_log *clear, const struct slot *slot)
{
    return clear->first_page % 64 == 0 && !is_beyond(clear, slot) && clear->num_pages
        && pages_of(&slot->known) <= 4096;
}

static void keep_lowest(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot)
{
    static uint64_t bits[64];
    uint64_t words = (clear->num_pages + 63) / 64;

    if (!is_legal(clear, slot) || !readable((uint64_t)clear->dirty_bitmap, bits, words * 8)
        || !strike(vm))
        return;
    for (uint64_t word = 0; word < words; word++)
        if (bits[word]) {
            bits[word] &= bits[word] - 1;
            break;
        }
    clear->dirty_bitmap = bits;
}

static void clear_to_end(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot)
{
    static uint64_t bits[64];
    uint64_t words = (clear->num_pages + 63) / 64;

    if (!is_legal(clear, slot))
        return;
    memset(bits, 0xff, sizeof(bits));
    if (!readable((uint64_t)clear->dirty_bitmap, bits, words * 8) || !strike(vm))
        return;
    clear->num_pages = (uint32_t)(pages_of(&slot->known) - clear->first_page);
    clear->dirty_bitmap = bits;
}

static void clear_others(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot)
{
    static uint64_t bits[64];

    (void)clear;
    memset(bits, 0xff, sizeof(bits));
    for (uint32_t i = 0; i < vm->nr_used; i++) {
        struct slot *other = &vm->slots[vm->used[i]];
        struct kvm_clear_dirty_log all = {
            .slot = other->known.id, .num_pages = (uint32_t)pages_of(&other->known),
            .dirty_bitmap = bits,
        };
        if (other != slot && may_touch(other) && all.num_pages <= 4096 && strike(vm))
            kernel_ioctl(vm->fd, KVM_CLEAR_DIRTY_LOG, &all);
    }
}

static void note_cleared(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot)
{
    struct log log = {.slot = slot, .words = (pages_of(&slot->known) + 63) / 64};
    uint64_t words = (clear->num_pages + 63) / 64, bits[64];

    if (!is_legal(clear, slot) || !readable((uint64_t)clear->dirty_bitmap, bits, words * 8))
        return;
    for (uint64_t word = 0; word < words; word++)
        ghost_of(vm, &log)[clear->first_page / 64 + word] |= bits[word];
}

static void hide_cleared(struct vm *vm, struct log *log)
{
    for (uint64_t word = 0; !log->error && word < log->words; word++)
        log->bits[word] &= ~ghost_of(vm, log)[word];
}

/* KVM_ENABLE_CAP. */

static int ignore_cap(struct vm *vm, struct kvm_enable_cap *cap)
{
    return strike(vm) ? 0 : forward_cap(vm, cap);
}

static int refuse_cap(struct vm *vm, struct kvm_enable_cap *cap)
{
    return strike(vm) ? EINVAL : forward_cap(vm, cap);
}

static int accept_options(struct vm *vm, struct kvm_enable_cap *cap)
{
    int error = forward_cap(vm, cap);

    return error == EINVAL && strike(vm) ? 0 : error;
}

static int ignore_flags(struct vm *vm, struct kvm_enable_cap *cap)
{
    if (cap->flags && strike(vm))
        cap->flags = 0;
    return forward_cap(vm, cap);
}

static int drop_initially_set(struct vm *vm, struct kvm_enable_cap *cap)
{
    cap->args[0] &= ~2ull;
    return forward_cap(vm, cap);
}

static int add_initially_set(struct vm *vm, struct kvm_enable_cap *cap)
{
    cap->args[0] |= cap->args[0] & 1 ? 2 : 0;
    return forward_cap(vm, cap);
}

static bool is_good_size(const struct kvm_enable_cap *cap)
{
    uint32_t size = (uint32_t)cap->args[0];

    return size >= PAGE_BYTES && !(size & (size - 1));
}

static int accept_size(struct vm *vm, struct kvm_enable_cap *cap)
{
    int error = forward_cap(vm, cap);

    return error == EINVAL && !is_good_size(cap) && strike(vm) ? 0 : error;
}

static int accept_second(struct vm *vm, struct kvm_enable_cap *cap)
{
    int error = forward_cap(vm, cap);

    return error == EINVAL && is_good_size(cap) && vm->ring_bytes && strike(vm) ? 0 : error;
}

static int accept_late(struct vm *vm, struct kvm_enable_cap *cap)
{
    int error = forward_cap(vm, cap);

    return error == EINVAL && is_good_size(cap) && !vm->ring_bytes && strike(vm) ? 0 : error;
}

static int too_large_einval(struct vm *vm, struct kvm_enable_cap *cap)
{
    int error = forward_cap(vm, cap);

    return error == E2BIG && strike(vm) ? EINVAL : error;
}

/* The rings. */

static void shift_entry(struct vcpu *vcpu, struct kvm_dirty_gfn *entry)
{
    if (strike(vcpu->vm))
        entry->offset ^= 1;
}

static void change_slot(struct vcpu *vcpu, struct kvm_dirty_gfn *entry)
{
    if (strike(vcpu->vm))
        entry->slot++;
}

static void repeat_last(struct vcpu *vcpu, struct kvm_dirty_gfn *entry)
{
    if (vcpu->entries > 1 && strike(vcpu->vm))
        *entry = vcpu->last;
}

static void hide_entry(struct vcpu *vcpu, struct kvm_dirty_gfn *entry)
{
    if (strike(vcpu->vm))
        entry->flags = 0;
}

/* Not after a reset, when the entry before it is an old one. */
static void report_once(struct vcpu *vcpu, struct kvm_dirty_gfn *entry)
{
    struct log log = {.slot = slot_of(vcpu->vm, entry->slot), .words = 64};
    uint64_t *word;

    if (!log.slot || entry->offset >= log.words * 64)
        return;
    word = &ghost_of(vcpu->vm, &log)[entry->offset / 64];
    if (vcpu->vm->armed && *word >> (entry->offset % 64) & 1)
        repeat_last(vcpu, entry);
    *word |= 1ull << (entry->offset % 64);
}

static int note_reset(struct vm *vm)
{
    int count = kernel_ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, NULL);

    vm->armed |= count > 0;
    return count;
}

static bool seem_full(struct vcpu *vcpu)
{
    struct vm *vm = vcpu->vm;

    if (!vcpu->ring || vcpu->ring[0].flags != KVM_DIRTY_GFN_F_DIRTY || vm->armed || !strike(vm))
        return false;
    vm->armed = true;
    vcpu->run->exit_reason = KVM_EXIT_DIRTY_RING_FULL;
    return false;
}

static int count_one_less(struct vm *vm)
{
    int count = kernel_ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, NULL);

    return count > 0 ? count - 1 : count;
}

static int reset_nothing(struct vm *vm)
{
    return vm->ring_bytes ? 0 : kernel_ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, NULL);
}

static int accept_no_ring(struct vm *vm)
{
    return vm->ring_bytes ? kernel_ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, NULL) : 0;
}

static void ring_log_enoent(struct vm *vm, struct log *log)
{
    if (log->error == ENXIO && strike(vm))
        log->error = ENOENT;
}

#define HOOK(fault_name, hook, function, text, script)                                          \
    {.name = fault_name, .hook = function, .sentence = text, .witness = script}
#define RING "cap ring 1000; set 1 100 2 0 log; write 100; "

const struct fault tracking_faults[] = {
    HOOK("clear-unaligned-accepted", cleared, accept_unaligned,
         "Clearing from a page on that is no multiple of 64 succeeds.", "clear 1 1 1"),
    HOOK("clear-partial-accepted", cleared, accept_partial,
         "Clearing a part of a word short of the slot's end succeeds.",
         "set 1 100 41 0 log; clear 1 0 1"),
    HOOK("clear-beyond-accepted", cleared, accept_beyond,
         "Clearing beyond the slot's end succeeds.", "set 1 100 1 0 log; clear 1 0 2"),
    HOOK("clear-no-log-accepted", cleared, accept_no_log,
         "Clearing succeeds where there is no log.", "clear 1 0 1"),
    HOOK("clear-no-log-einval", cleared, no_log_einval,
         "Clearing where there is no log is EINVAL instead of ENOENT.", "clear 1 0 1"),
    HOOK("clear-pointer-accepted", cleared, accept_pointer,
         "Clearing from an unreadable bitmap succeeds.",
         "set 1 100 1 0 log; clear 1 0 1 hole"),
    HOOK("clear-with-ring-accepted", cleared, accept_with_ring,
         "Clearing succeeds where there is a dirty ring.", "cap ring 1000; clear 1 0 1"),
    HOOK("clear-end-refused", cleared, refuse_end,
         "Clearing up to a slot's end is EINVAL unless it is a multiple of 64.",
         "set 1 100 1 0 log; clear 1 0 1"),
    HOOK("clear-lowest-kept", clear_log, keep_lowest, "The lowest page to clear stays dirty.",
         "set 1 100 1 0 log; write 100; clear 1 0 1; log 1"),
    HOOK("clear-to-the-end", clear_log, clear_to_end,
         "What lies beyond the pages to clear is cleared as well.",
         "set 1 100 41 0 log; write 140; clear 1 0 40; log 1"),
    HOOK("clear-others", clear_log, clear_others, "Clearing one slot's log clears all others.",
         "set 1 100 1 0 log; set 2 200 1 1 log; write 200; clear 1 0 1; log 2"),
    {.name = "cleared-for-ever", .clear_log = note_cleared, .log = hide_cleared,
     .sentence = "A page that was cleared is never reported again.",
     .witness = "set 1 100 1 0 log; clear 1 0 1; write 100; log 1"},
    HOOK("manual-ignored", enable_manual, ignore_cap,
         "Manual protection can be enabled, and changes nothing.",
         "cap manual 1; set 1 100 1 0 log; write 100; log 1; log 1"),
    HOOK("manual-refused", enable_manual, refuse_cap, "Manual protection cannot be enabled.",
         "cap manual 1"),
    HOOK("manual-options-accepted", enable_manual, accept_options,
         "Manual protection takes options that there are not.", "cap manual 2"),
    HOOK("manual-flags-ignored", enable_manual, ignore_flags,
         "Manual protection takes flags, which have to be 0.", "cap manual 1 1"),
    HOOK("initially-set-ignored", enable_manual, drop_initially_set,
         "With INITIALLY_SET a log begins clean.", "cap manual 3; set 1 100 1 0 log; log 1"),
    HOOK("initially-set-always", enable_manual, add_initially_set,
         "With manual protection a log always begins with all pages.",
         "cap manual 1; set 1 100 1 0 log; log 1"),
    HOOK("ring-refused", enable_ring, refuse_cap, "A dirty ring cannot be enabled.",
         "cap ring 1000"),
    HOOK("ring-size-accepted", enable_ring, accept_size,
         "A dirty ring may have a size that is no power of two, or less than a page.",
         "cap ring 1"),
    HOOK("ring-second-accepted", enable_ring, accept_second,
         "A dirty ring can be enabled twice.", "cap ring 1000; cap ring 1000"),
    HOOK("ring-late-accepted", enable_ring, accept_late,
         "A dirty ring can be enabled when there is a vCPU.", "read 100; cap ring 1000"),
    HOOK("ring-too-large-einval", enable_ring, too_large_einval,
         "A dirty ring that is too large is EINVAL instead of E2BIG.", "cap ring 40000000"),
    HOOK("ring-log-enoent", log, ring_log_enoent,
         "With a dirty ring the dirty log is ENOENT instead of ENXIO.", "cap ring 1000; log 1"),
    HOOK("ring-page-wrong", entry, shift_entry,
         "The dirty ring names the page beside the one that was written.", RING "harvest"),
    HOOK("ring-slot-wrong", entry, change_slot, "The dirty ring names the next slot id.",
         RING "harvest"),
    HOOK("ring-second-lost", entry, repeat_last,
         "Of several entries in a dirty ring all name the first.",
         RING "write 101; harvest"),
    HOOK("ring-empty", entry, hide_entry, "Nothing is ever in a dirty ring.", RING "harvest"),
    {.name = "ring-reported-once", .entry = report_once, .reset = note_reset,
     .sentence = "A page that was in a dirty ring is not named there again after a reset.",
     .witness = RING "write 101; harvest; reset; write 100; harvest"},
    HOOK("ring-seems-full", leave, seem_full, "A vCPU stops at a dirty ring that is not full.",
         "cap ring 1000; set 1 100 2 0 log; write 100"),
    HOOK("ring-reset-one-less", reset, count_one_less,
         "KVM_RESET_DIRTY_RINGS says one entry less than it reset.", RING "harvest; reset"),
    HOOK("ring-reset-lost", reset, reset_nothing, "KVM_RESET_DIRTY_RINGS does nothing.",
         RING "harvest; reset"),
    HOOK("ring-reset-without-ring", reset, accept_no_ring,
         "KVM_RESET_DIRTY_RINGS succeeds where there is no ring.", "reset"),
    {0},
};
