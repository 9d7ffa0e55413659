/* Wrong at special places: gpas from 4 GiB on, and internal slots. */
#include "wrong_kernel.h"

#include <sys/mman.h>

#define FOUR_GIB (1ull << 32)
#define TSS_BYTES (3 * PAGE_BYTES)

static bool lies_high(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->asked.gpa >= FOUR_GIB;
}

static bool ends_at_a_power_of_two(struct vm *vm, struct call *call)
{
    uint64_t end = end_of(&call->asked);

    return lies_high(vm, call) && !(end & (end - 1));
}

static int into_low_twin(const struct region *region, struct region *pieces)
{
    pieces[0] = *region;
    pieces[0].gpa %= FOUR_GIB;
    return 1;
}

static int without_last_page(const struct region *region, struct region *pieces)
{
    pieces[0] = *region;
    pieces[0].size -= PAGE_BYTES;
    return pieces[0].size ? 1 : 0;
}

static bool shares_with_two(struct vm *vm, struct call *call)
{
    int sharing = 0;

    for (uint32_t i = 0; i < vm->nr_used; i++) {
        struct slot *slot = &vm->slots[vm->used[i]];
        sharing += slot != call->slot && slot->known.hva == call->asked.hva;
    }
    return sharing >= 2;
}

static bool cut_exit(struct vcpu *vcpu)
{
    if (vcpu->run->exit_reason == KVM_EXIT_MMIO && vcpu->run->mmio.phys_addr >= FOUR_GIB
        && strike(vcpu->vm))
        vcpu->run->mmio.phys_addr %= FOUR_GIB;
    return false;
}

static int note_tss(struct vm *vm, unsigned long request, uint64_t argument, int error)
{
    if (request == KVM_SET_TSS_ADDR && !error)
        vm->tss = argument;
    return error;
}

static bool lies_over_tss(struct vm *vm, struct call *call)
{
    return call->change & (CREATE | MOVE) && vm->tss && call->asked.gpa < vm->tss + TSS_BYTES
        && vm->tss < end_of(&call->asked);
}

static int leave_mapping(struct vm *vm, unsigned long request, uint64_t argument, int error)
{
    (void)argument;
    if (request == KVM_SET_TSS_ADDR && !error && strike(vm))
        mmap(NULL, TSS_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return error;
}

static int tss_refused(struct vm *vm, unsigned long request, uint64_t argument, int error)
{
    (void)argument;
    return request == KVM_SET_TSS_ADDR && !error && strike(vm) ? EINVAL : error;
}

static int tss_accepted(struct vm *vm, unsigned long request, uint64_t argument, int error)
{
    (void)argument;
    return request == KVM_SET_TSS_ADDR && error && strike(vm) ? 0 : error;
}

static int identity_map_refused(struct vm *vm, unsigned long request, uint64_t argument, int error)
{
    (void)argument;
    return request == KVM_SET_IDENTITY_MAP_ADDR && !error && strike(vm) ? EINVAL : error;
}

static int identity_map_accepted(struct vm *vm, unsigned long request, uint64_t argument,
                                 int error)
{
    (void)argument;
    return request == KVM_SET_IDENTITY_MAP_ADDR && error && strike(vm) ? 0 : error;
}

static int irqchip_refused(struct vm *vm, unsigned long request, uint64_t argument, int error)
{
    (void)argument;
    return request == KVM_CREATE_IRQCHIP && !error && strike(vm) ? EINVAL : error;
}

static int irqchip_accepted(struct vm *vm, unsigned long request, uint64_t argument, int error)
{
    (void)argument;
    return request == KVM_CREATE_IRQCHIP && error && strike(vm) ? 0 : error;
}

static int note_irqchip(struct vm *vm, unsigned long request, uint64_t argument, int error)
{
    (void)argument;
    vm->armed |= request == KVM_CREATE_IRQCHIP && !error;
    return error;
}

static bool lies_over_apic_page(struct vm *vm, struct call *call)
{
    return call->change & (CREATE | MOVE) && vm->armed && call->asked.gpa <= 0xfee00000
        && 0xfee00000 < end_of(&call->asked);
}

#define SHAPE(fault_name, when, how, what, shortest) \
    {.name = fault_name, .sentence = what, .witness = shortest, .shapes_on = CREATE | MOVE, \
     .shape_when = when, .shape = how}
#define PLACED(fault_name, hook, what, shortest) \
    {.name = fault_name, .sentence = what, .witness = shortest, .placed = hook}

const struct fault places_faults[] = {
    SHAPE("high-slot-lost", lies_high, into_nothing, "A slot from 4 GiB on maps nothing.",
          "set 1 100100 1 0; readhigh 100100"),
    SHAPE("high-slot-at-low-twin", lies_high, into_low_twin,
          "A slot from 4 GiB on lands where the low 32 bits of its gpa say.",
          "set 1 100100 1 0; read 100"),
    SHAPE("high-end-lost", ends_at_a_power_of_two, without_last_page,
          "A slot that ends at a power of two from 4 GiB on maps all but its last page.",
          "set 1 1fffff 1 0; readhigh 1fffff"),
    SHAPE("third-of-an-hva-cut", shares_with_two, without_last_page,
          "The third slot on one hva maps all but its last page.",
          "set 1 100 1 0; set 2 200 1 0; set 3 300 1 0; read 300"),
    {.name = "high-exit-cut", .leave = cut_exit,
     .sentence = "An MMIO exit from 4 GiB on names the low 32 bits of its gpa only.",
     .witness = "readhigh 100100"},
    {.name = "tss-takes-a-slot", .placed = note_tss, .legal = lies_over_tss, .answer = EEXIST,
     .sentence = "A slot over the TSS is EEXIST where nothing is in its way.",
     .witness = "tss fff00000; set 1 fff00 1 0"},
    {.name = "apic-page-takes-a-slot", .placed = note_irqchip, .legal = lies_over_apic_page,
     .answer = EEXIST,
     .sentence = "A slot over the APIC's page is EEXIST where nothing is in its way.",
     .witness = "irqchip; set 1 fee00 1 0"},
    PLACED("tss-refused", tss_refused, "KVM_SET_TSS_ADDR is EINVAL.", "tss fff00000"),
    PLACED("tss-accepted", tss_accepted, "KVM_SET_TSS_ADDR is answered with 0 at any place.",
           "tss fffff000"),
    PLACED("tss-leaves-mapping", leave_mapping,
           "The memory of the TSS stays mapped when the VM is gone.", "tss fff00000"),
    PLACED("identity-map-refused", identity_map_refused,
           "KVM_SET_IDENTITY_MAP_ADDR is EINVAL before a vCPU exists.", "identity fffbc000"),
    PLACED("identity-map-accepted", identity_map_accepted,
           "KVM_SET_IDENTITY_MAP_ADDR is answered with 0 after a vCPU exists.",
           "vcpu; identity fffbc000"),
    PLACED("irqchip-refused", irqchip_refused, "KVM_CREATE_IRQCHIP is EINVAL.", "irqchip"),
    PLACED("irqchip-accepted", irqchip_accepted,
           "KVM_CREATE_IRQCHIP is answered with 0 a second time.", "irqchip; irqchip"),
    {0},
};
