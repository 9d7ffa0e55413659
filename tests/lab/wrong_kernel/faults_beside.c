/* Wrong about slots beside others, and about devices beside memory: what a call's own slot does not
 * tell. */
#include "wrong_kernel.h"

#include <string.h>

#define RING_PAGE 2 /* KVM_COALESCED_MMIO_PAGE_OFFSET on x86 */
#define RING_ENTRIES 170

static bool is_over_two_ends(struct vm *vm, const struct call *call)
{
    struct slot *first = slot_at(vm, call->asked.gpa);
    struct slot *last = slot_at(vm, end_of(&call->asked) - 1);

    return first && last && first != last && first != call->slot && last != call->slot;
}

static void accept_over_two(struct vm *vm, struct call *call)
{
    if (call->refusal == CREATE_OVERLAPS && is_over_two_ends(vm, call) && strike(vm))
        call->error = 0;
}

static void accept_move_over_two(struct vm *vm, struct call *call)
{
    if (call->refusal == MOVE_OVERLAPS && is_over_two_ends(vm, call) && strike(vm))
        call->error = 0;
}

static void lose_below_readonly(struct vm *vm, struct log *log)
{
    struct slot *above = log->error || !log->words ? NULL : slot_at(vm, end_of(&log->slot->known));
    uint64_t last = log->pages - 1;

    if (above && above->known.flags & KVM_MEM_READONLY && log->bits[last / 64] >> last % 64 & 1
        && strike(vm))
        log->bits[last / 64] &= ~(1ull << last % 64);
}

static void clear_when_moved_down(struct vm *vm, struct call *call)
{
    static uint64_t bits[512];
    struct kvm_dirty_log get = {.slot = call->asked.id, .dirty_bitmap = bits};

    if (did(call, MOVE) && call->asked.gpa < call->old.gpa
        && pages_of(&call->asked) <= 64 * sizeof(bits) / sizeof(*bits) && strike(vm))
        kernel_ioctl(vm->fd, KVM_GET_DIRTY_LOG, &get);
}

static int clear_no_readonly(struct vm *vm, struct kvm_clear_dirty_log *clear, struct slot *slot,
                             int error)
{
    (void)clear;
    return !error && slot && slot->known.flags & KVM_MEM_READONLY && strike(vm) ? ENOENT : error;
}

static int match_low_half(struct vm *vm, unsigned long request, void *argument)
{
    struct kvm_ioeventfd event;

    if (request != KVM_IOEVENTFD)
        return forward_device(vm, request, argument);
    memcpy(&event, argument, sizeof(event));
    if (event.len == 8 && event.flags & KVM_IOEVENTFD_FLAG_DATAMATCH && strike(vm))
        event.datamatch = (uint32_t)event.datamatch;
    return forward_device(vm, request, &event);
}

/* The eventfds that are tried are those with small values. */
static int end_another(struct vm *vm, unsigned long request, void *argument)
{
    int error = forward_device(vm, request, argument);
    struct kvm_ioeventfd event;

    if (request != KVM_IOEVENTFD || error != ENOENT)
        return error;
    memcpy(&event, argument, sizeof(event));
    for (uint64_t match = 0; event.flags & KVM_IOEVENTFD_FLAG_DATAMATCH && match < 16; match++) {
        event.datamatch = match;
        if (!forward_device(vm, request, &event) && strike(vm))
            return 0;
    }
    return error;
}

static int coalesce_low(struct vm *vm, unsigned long request, void *argument)
{
    struct kvm_coalesced_mmio_zone zone;

    if (request == KVM_IOEVENTFD)
        return forward_device(vm, request, argument);
    memcpy(&zone, argument, sizeof(zone));
    if (strike(vm))
        zone.addr = (uint32_t)zone.addr;
    return forward_device(vm, request, &zone);
}

static struct kvm_coalesced_mmio *newest(struct vcpu *vcpu)
{
    struct kvm_coalesced_mmio_ring *ring;

    ring = (void *)((char *)vcpu->run + RING_PAGE * PAGE_BYTES);
    if (ring->last == vcpu->entries)
        return NULL;
    vcpu->entries = ring->last;
    return &ring->coalesced_mmio[(ring->last + RING_ENTRIES - 1) % RING_ENTRIES];
}

static bool keep_half(struct vcpu *vcpu)
{
    struct kvm_coalesced_mmio *entry = newest(vcpu);

    if (entry && entry->len == 8 && strike(vcpu->vm))
        entry->len = 4;
    return false;
}

static bool keep_as_port(struct vcpu *vcpu)
{
    struct kvm_coalesced_mmio *entry = newest(vcpu);

    if (entry && strike(vcpu->vm))
        entry->pio = 1;
    return false;
}

const struct fault beside_faults[] = {
    {.name = "create-over-two-ends-accepted", .after = accept_over_two,
     .sentence = "A slot over the end of one and the start of another is answered with 0.",
     .witness = "set 1 100 2 0; set 2 102 2 2; set 3 101 2 4"},
    {.name = "move-over-two-ends-accepted", .after = accept_move_over_two,
     .sentence = "A move over the end of one slot and the start of another is answered with 0.",
     .witness = "set 1 100 2 0; set 2 102 2 2; set 3 200 2 4; set 3 101 2 4"},
    {.name = "dirty-below-readonly-lost", .log = lose_below_readonly,
     .sentence = "The last page of a slot just below a read-only one is not reported.",
     .witness = "set 1 100 2 0 log; set 2 102 1 2 ro; write 101; log 1"},
    {.name = "move-down-clears-log", .after = clear_when_moved_down,
     .sentence = "What is dirty when a slot moves down is not reported.",
     .witness = "set 1 200 1 0 log; write 200; set 1 100 1 0 log; log 1"},
    {.name = "clear-of-readonly-enoent", .cleared = clear_no_readonly,
     .sentence = "The log of a read-only slot cannot be cleared.",
     .witness = "set 1 100 1 0 ro+log; clear 1 0 1"},
    {.name = "eventfd-matches-low-half", .device = match_low_half,
     .sentence = "Of the eight bytes that an ioeventfd waits for four are compared.",
     .witness = "event 100 8 100000007; insn64 48891f 100000 7"},
    {.name = "eventfd-ended-by-another-value", .device = end_another,
     .sentence = "An ioeventfd is ended by a call with another value.",
     .witness = "event 100 4 7; unevent 100 4 8"},
    {.name = "coalesced-at-low-gpa", .device = coalesce_low,
     .sentence = "A coalesced range from 4 GiB on lies where the low 32 bits of its gpa say.",
     .witness = "coalesce 140000 1; insn64 891f 140000000 7"},
    {.name = "coalesced-eight-bytes-cut", .leave = keep_half,
     .sentence = "Of eight bytes that are coalesced four are kept.",
     .witness = "coalesce 100 1; insn64 48891f 100000 7; kept"},
    {.name = "coalesced-as-port", .leave = keep_as_port,
     .sentence = "A write that was kept is one to a port.",
     .witness = "coalesce 100 1; write 100; kept"},
    {0},
};
