/* Wrong coalesced MMIO and ioeventfds. */
#include "wrong_kernel.h"

#include <string.h>

#define RING_PAGE 2 /* KVM_COALESCED_MMIO_PAGE_OFFSET on x86 */
#define RING_ENTRIES 170

static int never_register(struct vm *vm, unsigned long request, void *argument)
{
    if (request == KVM_REGISTER_COALESCED_MMIO && strike(vm))
        return 0;
    return forward_device(vm, request, argument);
}

static int never_unregister(struct vm *vm, unsigned long request, void *argument)
{
    if (request == KVM_UNREGISTER_COALESCED_MMIO && strike(vm))
        return 0;
    return forward_device(vm, request, argument);
}

static int register_a_page(struct vm *vm, unsigned long request, void *argument)
{
    struct kvm_coalesced_mmio_zone zone;

    if (request == KVM_REGISTER_COALESCED_MMIO) {
        memcpy(&zone, argument, sizeof(zone));
        if (zone.size > PAGE_BYTES && strike(vm))
            zone.size = PAGE_BYTES;
        return forward_device(vm, request, &zone);
    }
    return forward_device(vm, request, argument);
}

/* A range of ports is one of gpas, and the other way round. */

static int end_of_the_other_bus(struct vm *vm, unsigned long request, void *argument)
{
    struct kvm_coalesced_mmio_zone zone;
    int error = forward_device(vm, request, argument);

    memcpy(&zone, argument, sizeof(zone));
    if (request == KVM_UNREGISTER_COALESCED_MMIO && zone.pio == 1 && strike(vm)) {
        zone.pio = 0;
        forward_device(vm, request, &zone);
    }
    return error;
}

static int ports_as_gpas(struct vm *vm, unsigned long request, void *argument)
{
    struct kvm_coalesced_mmio_zone zone;

    if (request == KVM_IOEVENTFD)
        return forward_device(vm, request, argument);
    memcpy(&zone, argument, sizeof(zone));
    if (zone.pio == 1 && strike(vm))
        zone.pio = 0;
    return forward_device(vm, request, &zone);
}

static int refuse_ports(struct vm *vm, unsigned long request, void *argument)
{
    const struct kvm_coalesced_mmio_zone *zone = argument;

    if (request != KVM_IOEVENTFD && zone->pio == 1 && strike(vm))
        return EINVAL;
    return forward_device(vm, request, argument);
}

static bool is_assignment(unsigned long request, const void *argument)
{
    const struct kvm_ioeventfd *event = argument;

    return request == KVM_IOEVENTFD && !(event->flags & KVM_IOEVENTFD_FLAG_DEASSIGN);
}

static int never_assign(struct vm *vm, unsigned long request, void *argument)
{
    if (is_assignment(request, argument) && strike(vm))
        return 0;
    return forward_device(vm, request, argument);
}

static int never_deassign(struct vm *vm, unsigned long request, void *argument)
{
    int error = forward_device(vm, request, argument);
    struct kvm_ioeventfd event;

    if (request == KVM_IOEVENTFD && !is_assignment(request, argument) && !error && strike(vm)) {
        memcpy(&event, argument, sizeof(event));
        event.flags &= ~(uint32_t)KVM_IOEVENTFD_FLAG_DEASSIGN;
        forward_device(vm, request, &event);
    }
    return error;
}

static int ignore_match(struct vm *vm, unsigned long request, void *argument)
{
    struct kvm_ioeventfd event;

    if (!is_assignment(request, argument))
        return forward_device(vm, request, argument);
    memcpy(&event, argument, sizeof(event));
    if (event.flags & KVM_IOEVENTFD_FLAG_DATAMATCH && strike(vm))
        event.flags = 0;
    return forward_device(vm, request, &event);
}

static int ignore_length(struct vm *vm, unsigned long request, void *argument)
{
    struct kvm_ioeventfd event;

    if (!is_assignment(request, argument))
        return forward_device(vm, request, argument);
    memcpy(&event, argument, sizeof(event));
    if (event.len && event.len <= 8 && !event.flags && strike(vm))
        event.len = 0;
    return forward_device(vm, request, &event);
}

static int accept_any(struct vm *vm, unsigned long request, void *argument, int refusal)
{
    int error = forward_device(vm, request, argument);

    return request == KVM_IOEVENTFD && error == refusal && strike(vm) ? 0 : error;
}

static int accept_taken(struct vm *vm, unsigned long request, void *argument)
{
    return accept_any(vm, request, argument, EEXIST);
}

static int accept_absent(struct vm *vm, unsigned long request, void *argument)
{
    return accept_any(vm, request, argument, ENOENT);
}

static int accept_bad(struct vm *vm, unsigned long request, void *argument)
{
    return accept_any(vm, request, argument, EINVAL);
}

/* Remembers the last range or eventfd: slots that are created there meet it. */

static int note_device(struct vm *vm, unsigned long request, void *argument)
{
    const struct kvm_coalesced_mmio_zone *zone = argument;
    int error = forward_device(vm, request, argument);

    if (request == KVM_REGISTER_COALESCED_MMIO && !error) {
        vm->stashed = true;
        vm->stash.gpa = zone->addr;
        vm->stash.size = zone->size;
    }
    return error;
}

static bool lies_over_device(const struct vm *vm, const struct region *region)
{
    return vm->stashed && region->gpa < end_of(&vm->stash) && vm->stash.gpa < end_of(region);
}

static bool is_over_device(struct vm *vm, struct call *call)
{
    return lies_over_device(vm, &call->asked);
}

static void end_with_slot(struct vm *vm, struct call *call)
{
    struct kvm_coalesced_mmio_zone zone = {
        .addr = vm->stash.gpa, .size = (uint32_t)vm->stash.size,
    };

    if (did(call, DELETE) && lies_over_device(vm, &call->old) && strike(vm))
        kernel_ioctl(vm->fd, KVM_UNREGISTER_COALESCED_MMIO, &zone);
}

static bool refuse_over_device(struct vm *vm, struct call *call)
{
    return call->change & (CREATE | MOVE) && lies_over_device(vm, &call->asked);
}

/* The content of the ring. */

static struct kvm_coalesced_mmio *newest(struct vcpu *vcpu, struct kvm_coalesced_mmio_ring **ring)
{
    *ring = (void *)((char *)vcpu->run + RING_PAGE * PAGE_BYTES);
    if ((*ring)->last == vcpu->entries)
        return NULL;
    vcpu->entries = (*ring)->last;
    return &(*ring)->coalesced_mmio[((*ring)->last + RING_ENTRIES - 1) % RING_ENTRIES];
}

static bool lose_newest(struct vcpu *vcpu)
{
    struct kvm_coalesced_mmio_ring *ring;

    if (newest(vcpu, &ring) && strike(vcpu->vm))
        vcpu->entries = ring->last = (ring->last + RING_ENTRIES - 1) % RING_ENTRIES;
    return false;
}

static bool end_nowhere(struct vcpu *vcpu)
{
    struct kvm_coalesced_mmio_ring *ring;

    if (newest(vcpu, &ring) && strike(vcpu->vm))
        vcpu->entries = ring->last = 4 * RING_ENTRIES;
    return false;
}

static bool alter_newest(struct vcpu *vcpu)
{
    struct kvm_coalesced_mmio_ring *ring;
    struct kvm_coalesced_mmio *entry = newest(vcpu, &ring);

    if (entry && strike(vcpu->vm))
        entry->data[0] ^= 1;
    return false;
}

static bool shift_newest(struct vcpu *vcpu)
{
    struct kvm_coalesced_mmio_ring *ring;
    struct kvm_coalesced_mmio *entry = newest(vcpu, &ring);

    if (entry && strike(vcpu->vm))
        entry->phys_addr ^= PAGE_BYTES;
    return false;
}

#define DEVICE(fault_name, hook, text, shortest) \
    {.name = fault_name, .device = hook, .sentence = text, .witness = shortest}

static int refuse_over_slots(struct vm *vm, unsigned long request, void *argument)
{
    const struct kvm_ioeventfd *event = argument;

    if (is_assignment(request, argument) && slot_at(vm, event->addr) && strike(vm))
        return EEXIST;
    return forward_device(vm, request, argument);
}

const struct fault device_faults[] = {
    DEVICE("coalescing-ignored", never_register, "A coalesced range is taken, and never served.",
           "coalesce 100 1; write 100"),
    DEVICE("coalescing-never-ends", never_unregister, "A coalesced range does not end.",
           "coalesce 100 1; uncoalesce 100 1; write 100"),
    DEVICE("coalescing-of-one-page", register_a_page, "Of a coalesced range the first page is one.",
           "coalesce 100 2; write 101"),
    DEVICE("coalesced-ends-with-ports", end_of_the_other_bus,
           "The end of a coalesced range of ports ends one of gpas.",
           "coalesce 100 1; uncoalesce 100 1 ports; write 100"),
    DEVICE("coalesced-ports-are-gpas", ports_as_gpas,
           "A coalesced range of ports is one of gpas.", "coalesce 100 1 ports; write 100"),
    DEVICE("coalesced-ports-refused", refuse_ports, "A coalesced range of ports is EINVAL.",
           "coalesce 100 1 ports"),
    DEVICE("eventfd-ignored", never_assign, "An ioeventfd is taken, and never signalled.",
           "event 100 4; write 100"),
    DEVICE("eventfd-never-ends", never_deassign, "An ioeventfd does not end.",
           "event 100 4; unevent 100 4; write 100"),
    DEVICE("eventfd-of-any-value", ignore_match, "An ioeventfd is signalled by any value.",
           "event 100 4 5; write 100"),
    DEVICE("eventfd-of-any-length", ignore_length, "An ioeventfd is signalled at any length.",
           "event 100 2; write 100"),
    DEVICE("eventfd-collision-accepted", accept_taken,
           "A second ioeventfd for the same write is taken.", "event 100 4; event 100 4"),
    DEVICE("eventfd-absent-accepted", accept_absent,
           "The end of an ioeventfd that is not there is answered with 0.", "unevent 100 4"),
    DEVICE("eventfd-bad-length-accepted", accept_bad,
           "An ioeventfd of a bad length is answered with 0.", "event 100 3"),
    {.name = "slot-over-coalesced-lost", .device = note_device, .shapes_on = CREATE | MOVE,
     .shape_when = is_over_device, .shape = into_nothing,
     .sentence = "A slot over a coalesced range maps nothing.",
     .witness = "coalesce 100 1; set 1 100 1 0; read 100"},
    {.name = "slot-over-coalesced-refused", .device = note_device, .legal = refuse_over_device,
     .answer = EEXIST, .sentence = "A slot over a coalesced range is EEXIST.",
     .witness = "coalesce 100 1; set 1 100 1 0"},
    {.name = "coalesced-ends-with-slot", .device = note_device, .after = end_with_slot,
     .sentence = "A coalesced range is gone with a slot that lay over it.",
     .witness = "coalesce 100 1; set 1 100 1 0; delete 1; write 100"},
    {.name = "coalesced-write-lost", .leave = lose_newest,
     .sentence = "A write that was kept is not in the ring.",
     .witness = "coalesce 100 1; write 100; kept"},
    {.name = "coalesced-end-nowhere", .leave = end_nowhere,
     .sentence = "The ring of writes that were kept ends beyond its last entry.",
     .witness = "coalesce 100 1; write 100; kept"},
    {.name = "coalesced-value-wrong", .leave = alter_newest,
     .sentence = "A write that was kept is another one.",
     .witness = "coalesce 100 1; write 100; kept"},
    {.name = "coalesced-place-wrong", .leave = shift_newest,
     .sentence = "A write that was kept is one to the next page.",
     .witness = "coalesce 100 1; write 100; kept"},
    {.name = "eventfd-over-a-slot-eexist", .device = refuse_over_slots,
     .sentence = "An ioeventfd at a gpa with a slot is EEXIST.",
     .witness = "set 1 100 1 0; event 100 4"},
    {0},
};
