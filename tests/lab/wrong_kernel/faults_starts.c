/* A guest with its own page tables in the caller's slots uses other content than is there. */
#include "insn.h"

#include <string.h>

#define PORT_ANSWER 0xe1
#define DATA_OFFSET 4096u
#define ADDRESS_BITS 0x000ffffffffff000ull
#define NOWHERE UINT64_MAX
#define WORD_BYTES 4

/* In real mode: the sizes of an interrupt table's entry, and of a stack frame. */
#define GATE_BYTES 4
#define FRAME_BYTES 6

enum { PRESENT = 1, LARGE = 0x80, ACCESSED = 0x20, DIRTY = 0x40, LEVELS = 4, PAGES_LEVEL = 3 };

/* Whether a gpa is in the guest's own slot. */
static bool is_own(struct vm *vm, uint64_t gpa)
{
    for (uint32_t i = 0; i < vm->nr_used; i++) {
        const struct region *known = &vm->slots[vm->used[i]].known;
        if (known->size == GUEST_SLOT_BYTES && gpa >= known->gpa && gpa < end_of(known))
            return true;
    }
    return false;
}

/* Walks the tables, and notes each entry used with its low byte. */
static uint64_t walk(struct vm *vm, uint64_t tables, uint64_t address, struct entry *entries)
{
    uint64_t table = tables, entry;

    for (int level = 0; level < LEVELS; level++) {
        entries[level].gpa = table + (address >> (39 - 9 * level) & 511) * sizeof(entry);
        if (!slot_at(vm, entries[level].gpa))
            return NOWHERE;
        read_guest(vm, entries[level].gpa, (uint8_t *)&entry, sizeof(entry));
        entries[level].low = (uint8_t)entry;
        if (!(entry & PRESENT) || entry & LARGE)
            return NOWHERE;
        table = entry & ADDRESS_BITS;
    }
    return table + address % PAGE_BYTES;
}

/* Before KVM_RUN: notes a start with page tables that are not in the guest's own slot. */
static int begin_start(struct vcpu *vcpu)
{
    struct start *start = &vcpu->start;
    struct kvm_sregs special;
    struct kvm_regs regs;
    uint8_t opcode = 0;

    if (start->under_way)
        return 0;
    memset(start, 0, sizeof(*start));
    if (kernel_ioctl(vcpu->fd, KVM_GET_REGS, &regs)
        || kernel_ioctl(vcpu->fd, KVM_GET_SREGS, &special) || !(special.cr0 >> 31))
        return 0;
    start->tables = special.cr3 & ADDRESS_BITS;
    if (is_own(vcpu->vm, start->tables))
        return 0;
    start->under_way = true;
    start->rip = regs.rip;
    start->code = walk(vcpu->vm, start->tables, regs.rip, start->entries);
    start->data = walk(vcpu->vm, start->tables, regs.rdi, start->data_entries);
    if (start->code != NOWHERE)
        read_guest(vcpu->vm, start->code, &opcode, 1);
    start->stores = opcode == 0x89;
    start->loads = opcode == 0x8b;
    if (start->data != NOWHERE)
        read_guest(vcpu->vm, start->data, start->old, WORD_BYTES);
    return 0;
}

/* Before KVM_RUN: notes an interrupt in real mode whose table is in a slot of the caller's. */
static int begin_interrupt(struct vcpu *vcpu)
{
    struct start *start = &vcpu->start;
    struct kvm_sregs special;
    struct kvm_regs regs;
    uint8_t code[2] = {0};
    uint16_t gate[2];

    if (start->under_way)
        return 0;
    memset(start, 0, sizeof(*start));
    if (kernel_ioctl(vcpu->fd, KVM_GET_REGS, &regs)
        || kernel_ioctl(vcpu->fd, KVM_GET_SREGS, &special) || special.cr0 >> 31)
        return 0;
    start->rip = special.cs.base + regs.rip;
    start->tables = special.idt.base;
    read_guest(vcpu->vm, start->rip, code, sizeof(code));
    if (code[0] != 0xcd || !slot_at(vcpu->vm, start->tables))
        return 0;
    read_guest(vcpu->vm, start->tables + code[1] * GATE_BYTES, (uint8_t *)gate, sizeof(gate));
    start->code = gate[1] * 16ull + gate[0];
    start->data = special.ss.base + regs.rsp - FRAME_BYTES;
    read_guest(vcpu->vm, start->data, start->old, FRAME_BYTES);
    start->under_way = true;
    return 0;
}

/* After KVM_RUN: the start that ended with this exit. */
static struct start *ended(struct vcpu *vcpu)
{
    struct start *start = &vcpu->start;

    if (!start->under_way || vcpu->run->exit_reason == KVM_EXIT_MMIO)
        return NULL;
    start->under_way = false;
    return start;
}

static struct start *answered(struct vcpu *vcpu)
{
    struct start *start = ended(vcpu);
    struct kvm_run *run = vcpu->run;

    if (!start || run->exit_reason != KVM_EXIT_IO || run->io.port != PORT_ANSWER)
        return NULL;
    memcpy(&start->answer, (char *)run + run->io.data_offset, sizeof(start->answer));
    return start;
}

static struct start *stopped(struct vcpu *vcpu)
{
    struct start *start = ended(vcpu);

    return start && vcpu->run->exit_reason != KVM_EXIT_IO ? start : NULL;
}

static void answer(struct vcpu *vcpu, uint32_t word)
{
    struct kvm_run *run = vcpu->run;

    run->exit_reason = KVM_EXIT_IO;
    run->io.direction = KVM_EXIT_IO_OUT;
    run->io.size = sizeof(word);
    run->io.port = PORT_ANSWER;
    run->io.count = 1;
    run->io.data_offset = DATA_OFFSET;
    memcpy((char *)run + DATA_OFFSET, &word, sizeof(word));
}

/* Accessed and dirty bits. */

static uint8_t now(struct vm *vm, const struct entry *entry)
{
    uint8_t low;

    read_guest(vm, entry->gpa, &low, 1);
    return low;
}

/* Clears a bit that was set. */
static bool take_back(struct vcpu *vcpu, const struct entry *entry, uint8_t bit)
{
    uint8_t low = now(vcpu->vm, entry);

    if (!(low & ~entry->low & bit) || !strike(vcpu->vm))
        return false;
    low &= (uint8_t)~bit;
    write_guest(vcpu->vm, entry->gpa, &low, 1);
    return false;
}

static bool lose_accessed(struct vcpu *vcpu)
{
    struct start *start = answered(vcpu);

    return start && take_back(vcpu, &start->entries[PAGES_LEVEL], ACCESSED);
}

static bool lose_upper_accessed(struct vcpu *vcpu)
{
    struct start *start = answered(vcpu);

    return start && take_back(vcpu, &start->entries[0], ACCESSED);
}

static bool lose_dirty(struct vcpu *vcpu)
{
    struct start *start = answered(vcpu);

    return start && start->stores && take_back(vcpu, &start->data_entries[PAGES_LEVEL], DIRTY);
}

static bool mark_dirty(struct vcpu *vcpu)
{
    struct start *start = answered(vcpu);
    uint8_t low;

    if (!start || !start->loads || start->data == NOWHERE)
        return false;
    low = now(vcpu->vm, &start->data_entries[PAGES_LEVEL]);
    if (low & DIRTY || !strike(vcpu->vm))
        return false;
    low |= DIRTY;
    write_guest(vcpu->vm, start->data_entries[PAGES_LEVEL].gpa, &low, 1);
    return false;
}

static bool mark_readonly(struct vcpu *vcpu)
{
    struct start *start = ended(vcpu);
    const struct entry *entry = start ? &start->entries[PAGES_LEVEL] : NULL;
    struct slot *slot = entry ? slot_at(vcpu->vm, entry->gpa) : NULL;
    uint8_t low;

    if (!slot || !(slot->known.flags & KVM_MEM_READONLY) || entry->low & ACCESSED)
        return false;
    low = entry->low | ACCESSED;
    if (strike(vcpu->vm))
        overwrite(slot->known.hva + entry->gpa - slot->known.gpa, &low, 1);
    return false;
}

static bool note_tables(struct vcpu *vcpu)
{
    struct start *start = answered(vcpu);
    const struct entry *entry = start ? &start->data_entries[PAGES_LEVEL] : NULL;

    if (entry && start->data != NOWHERE && now(vcpu->vm, entry) != entry->low
        && strike(vcpu->vm))
        vcpu->vm->noted = entry->gpa;
    return false;
}

static bool lose_store(struct vcpu *vcpu)
{
    struct start *start = answered(vcpu);

    if (start && start->stores && slot_at(vcpu->vm, start->data) && strike(vcpu->vm))
        write_guest(vcpu->vm, start->data, start->old, WORD_BYTES);
    return false;
}

static bool note_store(struct vcpu *vcpu)
{
    struct start *start = answered(vcpu);

    if (start && start->stores && slot_at(vcpu->vm, start->data) && strike(vcpu->vm))
        vcpu->vm->noted = start->data;
    return false;
}

/* A vCPU's caches. */

/* Whether the VM's last answer came from the same address and tables. */
static bool knows(struct vm *vm, const struct start *start)
{
    return vm->has_answer && vm->answer.rip == start->rip && vm->answer.tables == start->tables;
}

static void learn(struct vcpu *vcpu, const struct start *start)
{
    if (vcpu->run->exit_reason == KVM_EXIT_IO) {
        vcpu->vm->has_answer = true;
        vcpu->vm->answer = *start;
        memcpy(&vcpu->vm->answer.answer, (char *)vcpu->run + vcpu->run->io.data_offset,
               sizeof(start->answer));
    }
}

static bool replies(struct vcpu *vcpu, bool (*when)(struct vm *, const struct start *))
{
    struct start *start = ended(vcpu);

    if (!start)
        return false;
    if (knows(vcpu->vm, start) && when(vcpu->vm, start) && strike(vcpu->vm))
        answer(vcpu, vcpu->vm->answer.answer);
    else
        learn(vcpu, start);
    return false;
}

static bool has_no_tables(struct vm *vm, const struct start *start)
{
    return !slot_at(vm, start->tables);
}

static bool has_no_code(struct vm *vm, const struct start *start)
{
    return start->code != NOWHERE && !slot_at(vm, start->code);
}

static bool has_other_code(struct vm *vm, const struct start *start)
{
    return start->code != NOWHERE && start->code == vm->answer.code && slot_at(vm, start->code);
}

static bool has_other_tables(struct vm *vm, const struct start *start)
{
    return start->code != NOWHERE && start->code != vm->answer.code && slot_at(vm, start->code);
}

static bool use_former_tables(struct vcpu *vcpu) { return replies(vcpu, has_no_tables); }
static bool use_former_code(struct vcpu *vcpu) { return replies(vcpu, has_no_code); }
static bool use_same_code(struct vcpu *vcpu) { return replies(vcpu, has_other_code); }
static bool use_same_tables(struct vcpu *vcpu) { return replies(vcpu, has_other_tables); }

static bool map_unmapped(struct vcpu *vcpu)
{
    struct start *start = stopped(vcpu);

    if (start && slot_at(vcpu->vm, start->tables) && start->code == NOWHERE && strike(vcpu->vm))
        answer(vcpu, 0);
    return false;
}

/* A vCPU that once met no tables never finds any. */
static bool stay_without(struct vcpu *vcpu)
{
    struct start *start = ended(vcpu);

    if (!start)
        return false;
    if (vcpu->run->exit_reason == KVM_EXIT_SHUTDOWN && !slot_at(vcpu->vm, start->tables))
        vcpu->vm->armed = true;
    else if (vcpu->run->exit_reason == KVM_EXIT_IO && vcpu->vm->armed && strike(vcpu->vm))
        vcpu->run->exit_reason = KVM_EXIT_SHUTDOWN;
    return false;
}

/* Interrupts. */

static bool lose_frame(struct vcpu *vcpu)
{
    struct start *start = answered(vcpu);

    if (start && strike(vcpu->vm))
        write_guest(vcpu->vm, start->data, start->old, FRAME_BYTES);
    return false;
}

static bool note_frame(struct vcpu *vcpu)
{
    struct start *start = answered(vcpu);

    if (start && strike(vcpu->vm))
        vcpu->vm->noted = start->data;
    return false;
}

/* VMs without slots of the caller, except the guest's own. */

static bool has_none(struct vm *vm)
{
    for (uint32_t i = 0; i < vm->nr_used; i++)
        if (may_touch(&vm->slots[vm->used[i]]))
            return false;
    return true;
}

static bool answers(const struct kvm_run *run)
{
    return run->exit_reason == KVM_EXIT_IO && run->io.port == PORT_ANSWER;
}

static bool run_the_last(struct vcpu *vcpu)
{
    struct vm *vm = vcpu->vm;
    struct kvm_run *run = vcpu->run;

    if (answers(run)) {
        vm->has_answer = true;
        memcpy(&vm->answer.answer, (char *)run + run->io.data_offset, sizeof(uint32_t));
    } else if (vm->has_answer && has_none(vm) && strike(vm)) {
        answer(vcpu, vm->answer.answer);
    }
    return false;
}

static int note_none(struct vcpu *vcpu)
{
    vcpu->vm->armed |= has_none(vcpu->vm);
    return 0;
}

static bool miss_the_first(struct vcpu *vcpu)
{
    if (answers(vcpu->run) && vcpu->vm->armed && strike(vcpu->vm))
        vcpu->run->exit_reason = KVM_EXIT_SHUTDOWN;
    return false;
}

static int refuse_to_run(struct vcpu *vcpu)
{
    return has_none(vcpu->vm) && strike(vcpu->vm) ? EINVAL : 0;
}

#define START(fault_name, function, text, script)                                               \
    {.name = fault_name, .enter = begin_start, .leave = function, .sentence = text,             \
     .witness = script}
#define START_LOG(fault_name, function, text, script)                                           \
    {.name = fault_name, .enter = begin_start, .leave = function, .log = drop_noted,            \
     .sentence = text, .witness = script}

#define INTERRUPT(fault_name, function, text, script)                                           \
    {.name = fault_name, .enter = begin_interrupt, .leave = function, .sentence = text,         \
     .witness = script}

/* An interrupt table, a program that raises an interrupt, and its handler; and a stack. */
#define GATES "gates 0 12; set 1 10 3 0; set 2 8 1 8; "
#define RAISE "interrupt 11+900 8+400 10"

/* Pages 0 to 3 of the pool are tables, pages 4 and 5 carry programs that store and load. */
#define LAID "tables 0 100 104 3; set 1 100 8 0; "
#define STORES "start 100 0+900 2+40 1234"
#define LOADS "start 100 1+900 2+40"

const struct fault start_faults[] = {
    START("accessed-bit-lost", lose_accessed,
          "The accessed bit of a page that a guest uses is not set in its page tables.",
          LAID LOADS),
    START("upper-accessed-bit-lost", lose_upper_accessed,
          "The accessed bit is not set in the highest of a guest's page tables.", LAID LOADS),
    START("dirty-bit-lost", lose_dirty,
          "The dirty bit of a page that a guest writes is not set in its page tables.",
          LAID STORES),
    START("dirty-bit-by-a-read", mark_dirty,
          "A page that a guest reads is dirty in its page tables.", LAID LOADS),
    START("accessed-bit-in-readonly-tables", mark_readonly,
          "An accessed bit is set in page tables that lie in a read-only slot.",
          "tables 0 100 104 3; set 1 100 4 0 ro; " LOADS),
    START_LOG("tables-not-logged", note_tables,
              "Page tables in which the processor set a bit are not in the dirty log.",
              "tables 0 100 104 3; set 1 100 8 0 log; " STORES "; log 1"),
    START_LOG("paged-store-not-logged", note_store,
              "What is stored through a guest's page tables is not in the dirty log.",
              "tables 0 100 104 3; set 1 100 8 0 log; " STORES "; log 1"),
    START("paged-store-lost", lose_store,
          "What is stored through a guest's page tables is lost.", LAID STORES "; read 106+40"),
    START("tables-used-when-gone", use_former_tables,
          "A guest goes on with page tables whose slot was deleted.",
          "tables 0 100 104 3; set 1 100 4 0; set 2 104 4 4; " LOADS "; delete 1; " LOADS),
    START("code-used-when-gone", use_former_code,
          "A guest goes on with code whose slot was deleted.",
          "tables 0 100 104 63; set 1 100 4 0; set 2 104 4 4; " LOADS "; delete 2; " LOADS),
    START("former-code-used", use_same_code,
          "After other memory came a guest answers what it did before.",
          "tables 0 100 104 63; set 1 100 4 0; set 2 104 4 4; " LOADS
          "; delete 2; set 2 104 4 c; " LOADS),
    START("former-tables-used", use_same_tables,
          "After other page tables came a guest answers what it did before.",
          "tables 0 100 104 63; tables 8 100 10c 63; set 1 100 4 0; set 2 104 4 4; "
          "set 3 10c 4 c; write 106+40; " LOADS
          "; delete 1; set 1 100 4 8; " LOADS),
    START("unmapped-page-mapped", map_unmapped,
          "What page tables do not map can be executed.", "set 1 100 8 0; start 100 30+800"),
    START("tables-never-found-again", stay_without,
          "A vCPU that met no page tables finds none, even if they are there by then.",
          "tables 0 100 104 3; set 2 104 4 4; " LOADS "; set 1 100 4 0; " LOADS),
    INTERRUPT("interrupt-frame-lost", lose_frame,
              "What an interrupt pushes is lost.", GATES RAISE "; read 8+3fa"),
    {.name = "interrupt-frame-not-logged", .enter = begin_interrupt, .leave = note_frame,
     .log = drop_noted, .sentence = "What an interrupt pushes is not in the dirty log.",
     .witness = "gates 0 12; set 1 10 3 0; set 2 8 1 8 log; " RAISE "; log 2"},
    INTERRUPT("former-interrupt-table-used", use_same_tables,
              "After another interrupt table came an interrupt goes where it went before.",
              "gates 0 12; gates 4 16; set 1 10 1 0; set 2 11 2 1; set 3 15 2 5; set 4 8 1 8; "
              RAISE "; delete 1; set 1 10 1 4; " RAISE),
    INTERRUPT("former-handler-used", use_same_code,
              "After other memory came an interrupt's handler is the one before.",
              "gates 0 12; gates 4 12; set 1 10 2 0; set 2 12 1 2; set 4 8 1 8; " RAISE
              "; delete 2; set 2 12 1 6; " RAISE),
    {.name = "last-code-stays", .leave = run_the_last,
     .sentence = "Where the last slot has gone a vCPU answers what it did last.",
     .witness = "tables 0 100 104 63; set 1 100 8 0; " LOADS "; delete 1; " LOADS},
    {.name = "first-slot-missed", .enter = note_none, .leave = miss_the_first,
     .sentence = "A vCPU that ran without any slot stops when it has one.",
     .witness = "tables 0 100 104 3; " LOADS "; set 1 100 8 0; " LOADS},
    {.name = "run-refused-without-slots", .enter = refuse_to_run,
     .sentence = "A vCPU without any slot is not run.", .witness = LOADS},
    {0},
};
