/* Wrong about the clocks that KVM writes to guest memory: where, what, and whether it is logged. */
#include "wrong_kernel.h"

#include <asm/kvm_para.h>
#include <string.h>

#define FLAGS_AT 29 /* of the system time */
#define STEAL_FLAGS_AT 12
#define ODD_BYTE 0xa5

static const uint64_t sizes[] = {[WALL_CLOCK] = 12, [SYSTEM_TIME] = 32, [STEAL_TIME] = 64};
static const uint64_t versions_at[] = {[WALL_CLOCK] = 0, [SYSTEM_TIME] = 0, [STEAL_TIME] = 8};

/* The hva of a clock, or 0: a hole, or memory that must not be written. */
static uint64_t hva_of_clock(struct vm *vm, uint64_t gpa, uint32_t spared_flags)
{
    struct slot *slot = slot_at(vm, gpa);

    if (!slot || slot->known.flags & spared_flags)
        return 0;
    return slot->known.hva + gpa - slot->known.gpa;
}

static struct slot *slot_of_hva(struct vm *vm, uint64_t hva)
{
    for (uint32_t i = 0; i < vm->nr_used; i++) {
        struct slot *slot = &vm->slots[vm->used[i]];
        if (may_touch(slot) && hva >= slot->known.hva && hva < slot->known.hva + slot->known.size)
            return slot;
    }
    return NULL;
}

static struct clock *clock_of(struct vcpu *vcpu, const struct kvm_msr_entry *entry)
{
    enum clock_kind kind;

    if (entry->index == MSR_KVM_WALL_CLOCK_NEW)
        kind = WALL_CLOCK;
    else if (entry->index == MSR_KVM_SYSTEM_TIME_NEW)
        kind = SYSTEM_TIME;
    else if (entry->index == MSR_KVM_STEAL_TIME)
        kind = STEAL_TIME;
    else
        return NULL;
    return vcpu->index < CLOCKS_OF ? &vcpu->vm->clocks[vcpu->index][kind] : NULL;
}

static void note_clock(struct clock *clock, const struct kvm_msr_entry *entry, int result)
{
    if (result != 1)
        return;
    clock->kind = entry->index == MSR_KVM_STEAL_TIME ? STEAL_TIME
        : entry->index == MSR_KVM_SYSTEM_TIME_NEW ? SYSTEM_TIME : WALL_CLOCK;
    clock->on = clock->kind == WALL_CLOCK ? entry->data != 0 : entry->data & 1;
    if (!clock->on)
        return;
    clock->was_set = true;
    clock->gpa = entry->data & ~1ull;
    clock->first = 0;
}

int set_msrs(struct vcpu *vcpu, void *argument)
{
    const struct fault *fault = vcpu->vm->fault;
    struct kvm_msrs *msrs = argument;
    struct clock *clock;
    int result;

    if ((!fault->clock && !fault->set_clock && !fault->log && !fault->entry) || msrs->nmsrs != 1
        || !(clock = clock_of(vcpu, msrs->entries)))
        return kernel_ioctl(vcpu->fd, KVM_SET_MSRS, argument);
    pthread_mutex_lock(&vcpu->vm->lock);
    if (fault->set_clock && strike(vcpu->vm))
        result = fault->set_clock(vcpu, clock, msrs);
    else
        result = kernel_ioctl(vcpu->fd, KVM_SET_MSRS, argument);
    note_clock(clock, msrs->entries, result);
    if (fault->clock && clock->kind == WALL_CLOCK && clock->on) {
        clock->now = hva_of_clock(vcpu->vm, clock->gpa, KVM_MEM_READONLY);
        fault->clock(vcpu, clock);
    }
    pthread_mutex_unlock(&vcpu->vm->lock);
    return result;
}

int pause_clock(struct vcpu *vcpu)
{
    int error = kernel_ioctl(vcpu->fd, KVM_KVMCLOCK_CTRL, NULL) ? errno : 0;

    return vcpu->vm->fault->pause ? vcpu->vm->fault->pause(vcpu, error) : error;
}

void watch_clocks(struct vcpu *vcpu)
{
    struct vm *vm = vcpu->vm;

    if (!vm->fault->clock || vcpu->index >= CLOCKS_OF)
        return;
    pthread_mutex_lock(&vm->lock);
    for (int kind = 0; kind < NR_CLOCKS; kind++) {
        struct clock *clock = &vm->clocks[vcpu->index][kind];
        if (!clock->was_set)
            continue;
        clock->now = hva_of_clock(vm, clock->gpa, KVM_MEM_READONLY);
        if (clock->now && !readable(clock->now, clock->before, sizes[kind]))
            clock->now = 0;
        if (!clock->first)
            clock->first = clock->now;
    }
    pthread_mutex_unlock(&vm->lock);
}

void spoil_clocks(struct vcpu *vcpu)
{
    struct vm *vm = vcpu->vm;

    if (!vm->fault->clock || vcpu->index >= CLOCKS_OF)
        return;
    pthread_mutex_lock(&vm->lock);
    for (int kind = 0; kind < NR_CLOCKS; kind++)
        if (vm->clocks[vcpu->index][kind].was_set)
            vm->fault->clock(vcpu, &vm->clocks[vcpu->index][kind]);
    pthread_mutex_unlock(&vm->lock);
}

/* Ways to corrupt a structure. */

static void renew(const struct clock *clock, uint64_t hva)
{
    uint32_t version;

    if (!hva || !readable(hva + versions_at[clock->kind], &version, sizeof(version)))
        return;
    version += 2 + (version & 1);
    overwrite(hva + versions_at[clock->kind], &version, sizeof(version));
}

static void undo(struct clock *clock)
{
    if (clock->now)
        overwrite(clock->now, clock->before, sizes[clock->kind]);
}

static void change_byte(uint64_t hva, uint8_t and_mask, uint8_t or_mask)
{
    uint8_t byte;

    if (!readable(hva, &byte, 1))
        return;
    byte = (byte & and_mask) | or_mask;
    overwrite(hva, &byte, 1);
}

static bool is_elsewhere(const struct clock *clock)
{
    return clock->on && clock->kind != WALL_CLOCK && clock->first && clock->now != clock->first;
}

/* Faults. */

static void stay_after_move(struct vcpu *vcpu, struct clock *clock)
{
    if (!is_elsewhere(clock) || !slot_of_hva(vcpu->vm, clock->first) || !strike(vcpu->vm))
        return;
    undo(clock);
    renew(clock, clock->first);
}

static void write_both(struct vcpu *vcpu, struct clock *clock)
{
    if (is_elsewhere(clock) && clock->now && strike(vcpu->vm))
        renew(clock, clock->first);
}

static void write_after_deletion(struct vcpu *vcpu, struct clock *clock)
{
    if (is_elsewhere(clock) && !slot_of_hva(vcpu->vm, clock->first) && strike(vcpu->vm))
        renew(clock, clock->first);
}

static void lose_after_change(struct vcpu *vcpu, struct clock *clock)
{
    if (is_elsewhere(clock) && clock->now && strike(vcpu->vm))
        undo(clock);
}

static void write_readonly(struct vcpu *vcpu, struct clock *clock)
{
    if (clock->on && !clock->now && strike(vcpu->vm))
        renew(clock, hva_of_clock(vcpu->vm, clock->gpa, 0));
}

static void never_write(struct vcpu *vcpu, struct clock *clock)
{
    if (clock->on && clock->kind != WALL_CLOCK && strike(vcpu->vm))
        undo(clock);
}

static void leave_odd(struct vcpu *vcpu, struct clock *clock)
{
    if (clock->on && clock->now && strike(vcpu->vm))
        change_byte(clock->now + versions_at[clock->kind], 0xfe, 1);
}

static void hide_pause(struct vcpu *vcpu, struct clock *clock)
{
    if (clock->kind == SYSTEM_TIME && clock->on && clock->now && strike(vcpu->vm))
        change_byte(clock->now + FLAGS_AT, 0xfd, 0);
}

static void write_beyond(struct vcpu *vcpu, struct clock *clock)
{
    if (clock->on && clock->now && strike(vcpu->vm))
        change_byte(clock->now + sizes[clock->kind], 0, ODD_BYTE);
}

static void write_before(struct vcpu *vcpu, struct clock *clock)
{
    if (clock->on && clock->now && strike(vcpu->vm))
        change_byte(clock->now - 1, 0, ODD_BYTE);
}

static void write_flags(struct vcpu *vcpu, struct clock *clock)
{
    if (clock->kind == STEAL_TIME && clock->on && clock->now && strike(vcpu->vm))
        change_byte(clock->now + STEAL_FLAGS_AT, 0, ODD_BYTE);
}

static void write_next_page(struct vcpu *vcpu, struct clock *clock)
{
    if (!clock->on || !clock->now || clock->kind == WALL_CLOCK || !strike(vcpu->vm))
        return;
    undo(clock);
    renew(clock, hva_of_clock(vcpu->vm, clock->gpa ^ PAGE_BYTES, 0));
}

static void write_when_off(struct vcpu *vcpu, struct clock *clock)
{
    if (!clock->on && strike(vcpu->vm))
        renew(clock, clock->now);
}

static void write_wall_again(struct vcpu *vcpu, struct clock *clock)
{
    if (clock->kind == WALL_CLOCK && clock->first && strike(vcpu->vm))
        renew(clock, clock->now);
}

static void write_others(struct vcpu *vcpu, struct clock *clock)
{
    struct clock *other = &vcpu->vm->clocks[!vcpu->index][clock->kind];

    if (clock->on && other->on && vcpu->index < 2 && strike(vcpu->vm))
        renew(other, hva_of_clock(vcpu->vm, other->gpa, KVM_MEM_READONLY));
}

/* The clock of a closed VM is written when the next VM's vCPU runs. */
static struct clock left_over;

static void leave_over(struct vm *vm)
{
    for (int kind = 0; kind < NR_CLOCKS; kind++)
        if (vm->clocks[0][kind].on)
            left_over = vm->clocks[0][kind];
}

static int write_left_over(struct vcpu *vcpu)
{
    if (left_over.was_set && !vcpu->vm->clocks[0][left_over.kind].was_set && strike(vcpu->vm))
        renew(&left_over, left_over.now);
    left_over.was_set = false;
    return 0;
}

static void keep_place(struct vcpu *vcpu, struct clock *clock)
{
    (void)vcpu;
    (void)clock;
}

/* Host memory has changed: KVM writes to the former pages, which nobody sees. */
static void note_change(struct vm *vm, const struct host_change *change)
{
    for (int kind = 0; kind < NR_CLOCKS; kind++) {
        struct clock *clock = &vm->clocks[0][kind];
        if (clock->on && clock->now >= change->hva && clock->now < change->hva + change->size)
            vm->armed = true;
    }
}

static void lose_when_armed(struct vcpu *vcpu, struct clock *clock)
{
    if (clock->on && vcpu->vm->armed && clock->kind != WALL_CLOCK && strike(vcpu->vm))
        undo(clock);
}

/* Logs. */

typedef void (*bit_change)(uint64_t *bits, uint64_t page, uint64_t pages);

static void change_bits(struct vm *vm, struct log *log, bool are_on, bit_change change)
{
    for (int i = 0; i < CLOCKS_OF * NR_CLOCKS; i++) {
        struct clock *clock = &vm->clocks[i / NR_CLOCKS][i % NR_CLOCKS];
        if (!clock->was_set || log->error || clock->on != are_on
            || slot_at(vm, clock->gpa) != log->slot || !strike(vm))
            continue;
        change(log->bits, (clock->gpa - log->slot->known.gpa) / PAGE_BYTES, log->pages);
    }
}

static void clear_bit(uint64_t *bits, uint64_t page, uint64_t pages)
{
    (void)pages;
    bits[page / 64] &= ~(1ull << page % 64);
}

static void set_bit(uint64_t *bits, uint64_t page, uint64_t pages)
{
    (void)pages;
    bits[page / 64] |= 1ull << page % 64;
}

static void shift_bit(uint64_t *bits, uint64_t page, uint64_t pages)
{
    if (!(bits[page / 64] >> page % 64 & 1))
        return;
    clear_bit(bits, page, pages);
    set_bit(bits, (page + 1) % pages, pages);
}

static void not_logged(struct vm *vm, struct log *log)
{
    change_bits(vm, log, true, clear_bit);
}

static void logged_beside(struct vm *vm, struct log *log)
{
    change_bits(vm, log, true, shift_bit);
}

static void logged_when_off(struct vm *vm, struct log *log)
{
    change_bits(vm, log, false, set_bit);
}

/* Only for another thread than the one that ran a vCPU last. */
static void not_logged_elsewhere(struct vm *vm, struct log *log)
{
    if (vm->has_run && !pthread_equal(vm->runner, pthread_self()))
        change_bits(vm, log, true, clear_bit);
}

static bool is_clock_entry(struct vcpu *vcpu, const struct kvm_dirty_gfn *entry)
{
    for (int kind = 0; kind < NR_CLOCKS; kind++) {
        struct clock *clock = &vcpu->vm->clocks[vcpu->index][kind];
        struct slot *slot = clock->on ? slot_at(vcpu->vm, clock->gpa) : NULL;
        if (slot && entry->slot == slot->known.id
            && entry->offset == (clock->gpa - slot->known.gpa) / PAGE_BYTES)
            return true;
    }
    return false;
}

static void entry_of_another_page(struct vcpu *vcpu, struct kvm_dirty_gfn *entry)
{
    if (vcpu->index < CLOCKS_OF && is_clock_entry(vcpu, entry) && strike(vcpu->vm))
        entry->offset ^= 1;
}

static void entry_of_another_slot(struct vcpu *vcpu, struct kvm_dirty_gfn *entry)
{
    if (vcpu->index < CLOCKS_OF && is_clock_entry(vcpu, entry) && strike(vcpu->vm))
        entry->slot ^= 1;
}

/* Calls. */

static int forward_msrs(struct vcpu *vcpu, struct kvm_msrs *msrs)
{
    return kernel_ioctl(vcpu->fd, KVM_SET_MSRS, msrs);
}

static int ignore_clock(struct vcpu *vcpu, struct clock *clock, struct kvm_msrs *msrs)
{
    (void)clock;
    return msrs->entries[0].data ? 1 : forward_msrs(vcpu, msrs);
}

static int refuse_clock(struct vcpu *vcpu, struct clock *clock, struct kvm_msrs *msrs)
{
    (void)clock;
    return msrs->entries[0].data ? 0 : forward_msrs(vcpu, msrs);
}

static int accept_clock(struct vcpu *vcpu, struct clock *clock, struct kvm_msrs *msrs)
{
    int result = forward_msrs(vcpu, msrs);

    (void)clock;
    return result ? result : 1;
}

static int never_end_clock(struct vcpu *vcpu, struct clock *clock, struct kvm_msrs *msrs)
{
    return clock->on && !msrs->entries[0].data ? 1 : forward_msrs(vcpu, msrs);
}

static int accept_pause(struct vcpu *vcpu, int error)
{
    return error == EINVAL && strike(vcpu->vm) ? 0 : error;
}

static int refuse_pause(struct vcpu *vcpu, int error)
{
    return !error && strike(vcpu->vm) ? EINVAL : error;
}

#define CLOCK(fault_name, hook, text, shortest) \
    {.name = fault_name, .clock = hook, .sentence = text, .witness = shortest}

const struct fault clock_faults[] = {
    CLOCK("clock-stays-after-move", stay_after_move,
          "After a move KVM writes its clock to where the gpa was mapped before.",
          "set 1 100 1 0; clock steal 100+400; read 200; set 1 101 1 0; read 200"),
    CLOCK("clock-in-two-places", write_both,
          "Where another slot has come to a clock's gpa KVM writes it to the memory of both.",
          "set 1 100 1 0; clock steal 100+400; read 200; delete 1; set 2 100 1 1; read 200"),
    CLOCK("clock-after-deletion", write_after_deletion,
          "After a deletion KVM writes its clock to memory that no slot shows.",
          "set 1 100 1 0; clock steal 100+400; read 200; delete 1; read 200"),
    CLOCK("clock-lost-after-change", lose_after_change,
          "Where another slot has come to a clock's gpa KVM does not write it.",
          "set 1 100 1 0; clock steal 100+400; read 200; delete 1; set 2 100 1 1; read 200"),
    CLOCK("clock-into-readonly", write_readonly, "KVM writes its clock into a READONLY slot.",
          "set 1 100 1 0 ro; clock steal 100+400; read 200"),
    CLOCK("clock-lost", never_write, "KVM never writes its clock.",
          "set 1 100 1 0; clock steal 100+400; read 200"),
    CLOCK("clock-version-odd", leave_odd, "KVM leaves an odd version in its clock.",
          "set 1 100 1 0; clock steal 100+400; read 200; bit 0+408 0"),
    CLOCK("clock-pause-hidden", hide_pause, "The system time does not tell of a pause.",
          "set 1 100 1 0; clock system 100+400; pause; read 200; bit 0+41d 1"),
    CLOCK("clock-writes-beyond", write_beyond, "KVM writes a byte too many of its clock.",
          "set 1 100 1 0; clock steal 100+400; read 200; bit 0+440 0"),
    CLOCK("clock-writes-before", write_before, "KVM writes the byte before its clock.",
          "set 1 100 1 0; clock steal 100+400; read 200; bit 0+3ff 0"),
    CLOCK("clock-writes-flags", write_flags, "KVM writes what the flags of the steal time are for.",
          "set 1 100 1 0; clock steal 100+400; read 200; bit 0+40c 0"),
    CLOCK("clock-in-the-next-page", write_next_page, "KVM writes its clock to the page beside.",
          "set 1 100 2 0; clock steal 100+400; read 200"),
    CLOCK("clock-written-when-off", write_when_off, "KVM writes a clock that was switched off.",
          "set 1 100 1 0; clock steal 100+400; unclock steal; read 200"),
    CLOCK("clock-wall-written-again", write_wall_again,
          "KVM writes the wall clock again whenever a vCPU runs.",
          "set 1 100 1 0; clock wall 100+400; read 200; read 200"),
    CLOCK("clock-of-another-vcpu", write_others,
          "When a vCPU runs KVM writes the clock of another one, too.",
          "set 1 100 2 0; clock steal 101+400 1; clock steal 100+400; read 200"),
    {.name = "clock-of-a-vm-that-is-gone", .clock = keep_place, .closing = leave_over,
     .enter = write_left_over,
     .sentence = "The clock of a VM that is gone is written when the next one runs.",
     .witness = "set 1 100 1 0; clock steal 100+400; read 200; newvm; read 200"},
    {.name = "clock-lost-after-host-change", .clock = lose_when_armed, .host_changes = note_change,
     .sentence = "After the host has changed its memory KVM writes to what was there.",
     .witness = "set 1 100 1 0; clock steal 100+400; read 200; fresh 0 1; read 200"},
    {.name = "clock-not-logged", .log = not_logged,
     .sentence = "What KVM writes of a clock is not in the dirty log.",
     .witness = "set 1 100 1 0 log; clock steal 100+400; read 200; log 1"},
    {.name = "clock-not-logged-beside-a-vcpu", .log = not_logged_elsewhere,
     .sentence = "Another thread than the vCPU's does not find a clock in the dirty log.",
     .witness = "set 1 100 1 0 log; clock steal 100+400; read 200; thread log 1"},
    {.name = "clock-logged-beside", .log = logged_beside,
     .sentence = "What KVM writes of a clock is in the dirty log as the page after it.",
     .witness = "set 1 100 2 0 log; clock steal 100+400; read 200; log 1"},
    {.name = "clock-logged-when-off", .log = logged_when_off,
     .sentence = "The page of a clock that was switched off is in every dirty log.",
     .witness = "set 1 100 1 0 log; clock steal 100+400; unclock steal; log 1"},
    {.name = "clock-in-the-ring-as-another-page", .entry = entry_of_another_page,
     .sentence = "What KVM writes of a clock is in the dirty ring as the page beside it.",
     .witness = "cap ring 1000; set 1 100 2 0 log; clock steal 100+400; read 200; harvest"},
    {.name = "clock-in-the-ring-as-another-slot", .entry = entry_of_another_slot,
     .sentence = "What KVM writes of a clock is in the dirty ring as another slot's.",
     .witness = "cap ring 1000; set 1 100 2 0 log; clock steal 100+400; read 200; harvest"},
    {.name = "clock-msr-ignored", .set_clock = ignore_clock,
     .sentence = "KVM_SET_MSRS sets no clock, and says that it does.",
     .witness = "set 1 100 1 0; clock steal 100+400; read 200"},
    {.name = "clock-msr-refused", .set_clock = refuse_clock,
     .sentence = "KVM_SET_MSRS refuses the MSR of a clock.", .witness = "clock system 100+400"},
    {.name = "clock-unaligned-accepted", .set_clock = accept_clock,
     .sentence = "A steal time at an odd place is taken.", .witness = "clock steal 100+404"},
    {.name = "clock-never-ends", .set_clock = never_end_clock, .clock = keep_place,
     .sentence = "A clock is written on when it is switched off.",
     .witness = "set 1 100 1 0; clock steal 100+400; unclock steal; read 200"},
    {.name = "clock-pause-accepted", .pause = accept_pause,
     .sentence = "KVM_KVMCLOCK_CTRL succeeds where there is no clock.", .witness = "pause"},
    {.name = "clock-pause-refused", .pause = refuse_pause,
     .sentence = "KVM_KVMCLOCK_CTRL is EINVAL where there is a clock.",
     .witness = "clock system 100+400; pause"},
    {0},
};
