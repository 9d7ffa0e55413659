/* Instructions that read memory and write it, stacks and strings, gone wrong. */
#include "wrong_kernel.h"

#include <string.h>

#define ZF 0x40ull
#define CF 0x1ull

static uint64_t to_border(const struct insn *insn)
{
    uint64_t rest = PAGE_BYTES - insn->gpa % PAGE_BYTES;

    return rest < insn->size ? rest : 0;
}

static bool is_equal(const struct insn *insn)
{
    return insn->after.rflags & ZF;
}

static struct insn *struck(struct vcpu *vcpu, unsigned kinds, bool (*when)(const struct insn *))
{
    struct insn *insn = ended_insn(vcpu, kinds);

    return insn && (!when || when(insn)) && strike(vcpu->vm) ? insn : NULL;
}

static bool is_atomic(const struct insn *insn) { return insn->locked; }
static bool is_plain(const struct insn *insn) { return !insn->locked; }
static bool is_unequal(const struct insn *insn) { return !is_equal(insn); }
static bool crosses(const struct insn *insn) { return to_border(insn) != 0; }
static bool goes_down(const struct insn *insn) { return insn->down; }

static bool loses(struct vcpu *vcpu, unsigned kinds, bool (*when)(const struct insn *))
{
    struct insn *insn = struck(vcpu, kinds, when);

    if (insn)
        unwrite(vcpu, insn, 0, insn->size);
    return false;
}

static bool lose_atomic(struct vcpu *vcpu) { return loses(vcpu, UPDATES, is_atomic); }
static bool lose_plain(struct vcpu *vcpu) { return loses(vcpu, UPDATES, is_plain); }
static bool lose_equal(struct vcpu *vcpu) { return loses(vcpu, CMPXCHG, is_equal); }
static bool lose_push(struct vcpu *vcpu) { return loses(vcpu, PUSH, NULL); }
static bool lose_table(struct vcpu *vcpu) { return loses(vcpu, TABLE, NULL); }

static bool lose_second_page(struct vcpu *vcpu)
{
    struct insn *insn = struck(vcpu, UPDATES, crosses);

    if (insn)
        unwrite(vcpu, insn, to_border(insn), insn->size - to_border(insn));
    return false;
}

static bool lose_first_page(struct vcpu *vcpu)
{
    struct insn *insn = struck(vcpu, UPDATES, crosses);

    if (insn)
        unwrite(vcpu, insn, 0, to_border(insn));
    return false;
}

static bool lose_high_half(struct vcpu *vcpu)
{
    struct insn *insn = struck(vcpu, PAIR, NULL);

    if (insn)
        unwrite(vcpu, insn, insn->size / 2, insn->size / 2);
    return false;
}

static bool write_unequal(struct vcpu *vcpu)
{
    struct insn *insn = struck(vcpu, CMPXCHG, is_unequal);

    if (insn)
        write_guest(vcpu->vm, insn->gpa, (uint8_t *)&insn->before.rbx, insn->width);
    return false;
}

static bool alter_memory(struct vcpu *vcpu, unsigned kinds, uint64_t at, uint8_t bits)
{
    struct insn *insn = struck(vcpu, kinds, NULL);
    uint8_t byte;

    if (!insn)
        return false;
    read_guest(vcpu->vm, insn->gpa + at, &byte, 1);
    byte ^= bits;
    write_guest(vcpu->vm, insn->gpa + at, &byte, 1);
    return false;
}

static bool set_other_bit(struct vcpu *vcpu) { return alter_memory(vcpu, BTS, 1, 0x80); }
static bool count_wrongly(struct vcpu *vcpu) { return alter_memory(vcpu, INC, 0, 0x02); }
static bool return_elsewhere(struct vcpu *vcpu) { return alter_memory(vcpu, CALL, 0, 0x01); }
static bool frame_wrongly(struct vcpu *vcpu) { return alter_memory(vcpu, ENTER, 0, 0x10); }
static bool alter_limit(struct vcpu *vcpu) { return alter_memory(vcpu, TABLE, 1, 0x01); }
static bool alter_base(struct vcpu *vcpu) { return alter_memory(vcpu, TABLE, 5, 0x01); }

/* Registers. */

enum reg { AX, BX, CX, SP, DI };

static __u64 *reg_of(struct kvm_regs *regs, enum reg reg)
{
    __u64 *const all[] = {
        [AX] = &regs->rax, [BX] = &regs->rbx, [CX] = &regs->rcx, [SP] = &regs->rsp,
        [DI] = &regs->rdi,
    };

    return all[reg];
}

static bool keeps(struct vcpu *vcpu, unsigned kinds, bool (*when)(const struct insn *),
                  enum reg reg)
{
    struct insn *insn = struck(vcpu, kinds, when);

    if (!insn)
        return false;
    *reg_of(&insn->after, reg) = *reg_of(&insn->before, reg);
    put_registers(vcpu, insn);
    return false;
}

static bool keep_accumulator(struct vcpu *vcpu) { return keeps(vcpu, CMPXCHG, is_unequal, AX); }
static bool keep_exchanged(struct vcpu *vcpu) { return keeps(vcpu, XCHG, NULL, BX); }
static bool keep_pointer(struct vcpu *vcpu) { return keeps(vcpu, PUSH, NULL, SP); }
static bool keep_popped(struct vcpu *vcpu) { return keeps(vcpu, POP, NULL, BX); }
static bool keep_count(struct vcpu *vcpu) { return keeps(vcpu, STOS, NULL, CX); }
static bool keep_destination(struct vcpu *vcpu) { return keeps(vcpu, MOVS, NULL, DI); }

static bool give_sum(struct vcpu *vcpu)
{
    struct insn *insn = struck(vcpu, XADD, NULL);

    if (!insn || !slot_at(vcpu->vm, insn->gpa))
        return false;
    read_guest(vcpu->vm, insn->gpa, (uint8_t *)&insn->after.rbx, insn->width);
    put_registers(vcpu, insn);
    return false;
}

static bool turn_flag(struct vcpu *vcpu, unsigned kinds, uint64_t flag)
{
    struct insn *insn = struck(vcpu, kinds, NULL);

    if (!insn)
        return false;
    insn->after.rflags ^= flag;
    put_registers(vcpu, insn);
    return false;
}

static bool turn_equal(struct vcpu *vcpu) { return turn_flag(vcpu, CMPXCHG, ZF); }
static bool turn_pair(struct vcpu *vcpu) { return turn_flag(vcpu, PAIR, ZF); }
static bool turn_bit(struct vcpu *vcpu) { return turn_flag(vcpu, BTS, CF); }
static bool turn_found(struct vcpu *vcpu) { return turn_flag(vcpu, SCAS | CMPS, ZF); }

/* Stacks and strings. */

static bool lose_part(struct vcpu *vcpu, unsigned kinds, bool (*when)(const struct insn *),
                      bool highest)
{
    struct insn *insn = struck(vcpu, kinds, when);

    if (insn)
        unwrite(vcpu, insn, highest ? insn->size - insn->width : 0, insn->width);
    return false;
}

static bool lose_di(struct vcpu *vcpu) { return lose_part(vcpu, PUSHA, NULL, false); }
static bool lose_ax(struct vcpu *vcpu) { return lose_part(vcpu, PUSHA, NULL, true); }
static bool lose_last(struct vcpu *vcpu) { return lose_part(vcpu, MOVS, NULL, true); }
static bool lose_filled(struct vcpu *vcpu) { return lose_part(vcpu, STOS, NULL, true); }
static bool lose_down(struct vcpu *vcpu) { return lose_part(vcpu, MOVS | STOS, goes_down, false); }

static bool lose_next_slot(struct vcpu *vcpu)
{
    struct insn *insn = ended_insn(vcpu, MOVS | STOS);
    struct slot *first = insn ? slot_at(vcpu->vm, insn->gpa) : NULL;
    uint64_t end = first ? end_of(&first->known) : 0;

    if (first && end < insn->gpa + insn->size && strike(vcpu->vm))
        unwrite(vcpu, insn, end - insn->gpa, insn->gpa + insn->size - end);
    return false;
}

static bool copy_zeros(struct vcpu *vcpu)
{
    struct insn *insn = struck(vcpu, MOVS, NULL);
    static const uint8_t zeros[16];

    if (insn)
        write_guest(vcpu->vm, insn->gpa, zeros, insn->width);
    return false;
}

/* Dirty logs: pages whose bits are lost, or too many, until the log is read. */

static bool note(struct vcpu *vcpu, unsigned kinds, bool (*when)(const struct insn *),
                 bool second)
{
    struct insn *insn = struck(vcpu, kinds, when);

    if (insn)
        vcpu->vm->noted = insn->gpa + (second ? insn->size - 1 : 0);
    return false;
}

static bool note_atomic(struct vcpu *vcpu) { return note(vcpu, UPDATES, is_atomic, false); }
static bool note_unequal(struct vcpu *vcpu) { return note(vcpu, CMPXCHG, is_unequal, false); }
static bool note_second(struct vcpu *vcpu) { return note(vcpu, UPDATES, crosses, true); }
static bool note_stack(struct vcpu *vcpu) { return note(vcpu, PUSH | PUSHA | CALL, NULL, false); }
static bool note_string(struct vcpu *vcpu) { return note(vcpu, MOVS | STOS, NULL, true); }
static bool note_table(struct vcpu *vcpu) { return note(vcpu, TABLE, NULL, false); }
static bool note_updated(struct vcpu *vcpu) { return note(vcpu, UPDATES, NULL, false); }

static bool note_source(struct vcpu *vcpu)
{
    struct insn *insn = struck(vcpu, MOVS, NULL);

    if (insn)
        vcpu->vm->noted = insn->source;
    return false;
}

static bool note_read(struct vcpu *vcpu)
{
    return note(vcpu, POP | SCAS, NULL, false);
}

/* The page that was noted, within this log; false if it is of another slot's. */
static bool take_noted(struct vm *vm, const struct log *log, uint64_t *page)
{
    uint64_t gpa = vm->noted;

    if (!gpa || log->error || gpa < log->slot->known.gpa || gpa >= end_of(&log->slot->known))
        return false;
    vm->noted = 0;
    *page = (gpa - log->slot->known.gpa) / PAGE_BYTES;
    return true;
}

void drop_noted(struct vm *vm, struct log *log)
{
    uint64_t page;

    if (take_noted(vm, log, &page))
        log->bits[page / 64] &= ~(1ull << (page % 64));
}

static void add_noted(struct vm *vm, struct log *log)
{
    uint64_t page;

    if (take_noted(vm, log, &page))
        log->bits[page / 64] |= 1ull << (page % 64);
}

static void add_noted_readonly(struct vm *vm, struct log *log)
{
    if (log->slot->known.flags & KVM_MEM_READONLY)
        add_noted(vm, log);
}

/* Exits. */

static bool swallow(struct vcpu *vcpu, unsigned kinds, bool write)
{
    if (!exiting_insn(vcpu, kinds, write) || !strike(vcpu->vm))
        return false;
    if (!write)
        memset(vcpu->run->mmio.data, 0, sizeof(vcpu->run->mmio.data));
    return true;
}

static bool swallow_update(struct vcpu *vcpu) { return swallow(vcpu, UPDATES, true); }
static bool swallow_update_read(struct vcpu *vcpu) { return swallow(vcpu, UPDATES, false); }
static bool swallow_push(struct vcpu *vcpu) { return swallow(vcpu, PUSH | CALL | ENTER, true); }
static bool swallow_pop(struct vcpu *vcpu) { return swallow(vcpu, POP, false); }
static bool swallow_string(struct vcpu *vcpu) { return swallow(vcpu, MOVS | STOS, true); }
static bool swallow_source(struct vcpu *vcpu) { return swallow(vcpu, MOVS | CMPS, false); }

static bool swallow_unequal(struct vcpu *vcpu)
{
    struct insn *insn = exiting_insn(vcpu, CMPXCHG, true);

    return insn && memcmp(vcpu->run->mmio.data, &insn->before.rbx, vcpu->run->mmio.len)
        && strike(vcpu->vm);
}

static bool exit_with_new(struct vcpu *vcpu)
{
    struct insn *insn = exiting_insn(vcpu, CMPXCHG, true);

    if (insn && vcpu->run->mmio.len == insn->width && strike(vcpu->vm))
        memcpy(vcpu->run->mmio.data, &insn->before.rbx, insn->width);
    return false;
}

static bool cut_wide_exit(struct vcpu *vcpu)
{
    struct insn *insn = exiting_insn(vcpu, PAIR, true);

    if (insn && vcpu->run->mmio.len == 8 && strike(vcpu->vm))
        vcpu->run->mmio.len = 4;
    return false;
}

static bool land_on_readonly(struct vcpu *vcpu)
{
    struct insn *insn = exiting_insn(vcpu, UPDATES, true);
    uint64_t gpa = vcpu->run->mmio.phys_addr;
    struct slot *slot = insn ? slot_at(vcpu->vm, gpa) : NULL;

    if (slot && slot->known.flags & KVM_MEM_READONLY && strike(vcpu->vm))
        overwrite(slot->known.hva + gpa - slot->known.gpa, vcpu->run->mmio.data,
                  vcpu->run->mmio.len);
    return false;
}

/* The slot that was deleted here last. */
static struct slot *former(struct vm *vm, uint64_t gpa)
{
    for (uint32_t id = 0; vm->count.deletes && id < vm->nr_ids; id++) {
        struct slot *slot = &vm->slots[id];
        if (slot->lives && !slot->live && gpa >= slot->known.gpa && gpa < end_of(&slot->known))
            return slot;
    }
    return NULL;
}

static bool reach_deleted(struct vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    bool write = run->exit_reason == KVM_EXIT_MMIO && run->mmio.is_write;
    struct insn *insn = exiting_insn(vcpu, UPDATES, write);
    struct slot *slot = insn ? former(vcpu->vm, run->mmio.phys_addr) : NULL;
    uint64_t hva;

    if (!slot || !strike(vcpu->vm))
        return false;
    hva = slot->known.hva + run->mmio.phys_addr - slot->known.gpa;
    if (write)
        overwrite(hva, run->mmio.data, run->mmio.len);
    else
        readable(hva, run->mmio.data, run->mmio.len);
    return true;
}

#define INSN(fault_name, function, text, script)                                                \
    {.name = fault_name, .enter = begin_insn, .leave = function, .sentence = text,              \
     .witness = script}
#define INSN_LOG(fault_name, function, log_function, text, script)                              \
    {.name = fault_name, .enter = begin_insn, .leave = function, .log = log_function,           \
     .sentence = text, .witness = script}

/* lock cmpxchg, xadd, xchg, or, bts, inc; push, pop, pusha, call, enter; sgdt; movs, stos, scas */
#define CMPXCHG4 "insn 6766f00fb11f "
#define XADD4 "insn 6766f00fc11f "
#define OR4 "insn 6766091f "
#define PAIR8 "insn 67f00fc70f "
#define PUSH4 "insn 6653 "
#define MOVS4 "insn 67f366a5 "
#define STOS4 "insn 67f366ab "

const struct fault insn_faults[] = {
    INSN("atomic-write-lost", lose_atomic, "What an atomic instruction writes is lost.",
         "set 1 100 1 0; " XADD4 "100000 1"),
    INSN("update-write-lost", lose_plain, "What an instruction without a lock writes is lost.",
         "set 1 100 1 0; " OR4 "100000 ff"),
    INSN("compared-equal-write-lost", lose_equal,
         "A comparison that is equal does not write the new value.",
         "set 1 100 1 0; " CMPXCHG4 "100000 7 c0de0000"),
    INSN("compared-unequal-written", write_unequal,
         "A comparison that fails writes the new value.",
         "set 1 100 1 0; " CMPXCHG4 "100000 7"),
    INSN("update-second-page-lost", lose_second_page,
         "Of an instruction over a page border the part on the second page is lost.",
         "set 1 100 2 0; " XADD4 "100ffe ffffffff"),
    INSN("update-first-page-lost", lose_first_page,
         "Of an instruction over a page border the part on the first page is lost.",
         "set 1 100 2 0; " XADD4 "100ffe ffffffff"),
    INSN("pair-high-half-lost", lose_high_half,
         "Of eight bytes that are compared and exchanged the upper half stays.",
         "set 1 100 1 0; " PAIR8 "100000 7 c0de0000 5"),
    INSN("bit-set-elsewhere", set_other_bit, "bts sets another bit besides.",
         "set 1 100 1 0; insn 6766f00fba2f03 100000"),
    INSN("inc-adds-wrongly", count_wrongly, "inc leaves another value.",
         "set 1 100 1 0; insn 6766ff07 100000"),
    INSN("compared-unequal-not-loaded", keep_accumulator,
         "A comparison that fails does not load the old value.",
         CMPXCHG4 "100000 7"),
    INSN("compared-flag-turned", turn_equal, "cmpxchg says equal where it is not.",
         CMPXCHG4 "100000 7"),
    INSN("pair-flag-turned", turn_pair, "cmpxchg8b says equal where it is not.",
         PAIR8 "100000 7"),
    INSN("bit-flag-turned", turn_bit, "bts says that the bit was another.",
         "insn 6766f00fba2f03 100000"),
    INSN("xadd-gives-the-sum", give_sum, "xadd gives the sum instead of the old value.",
         "set 1 100 1 0; " XADD4 "100000 1"),
    INSN("xchg-keeps-its-register", keep_exchanged, "xchg does not load the old value.",
         "insn 6766871f 100000 1"),
    INSN("push-lost", lose_push, "What is pushed is lost.", "set 1 100 1 0; " PUSH4 "100000 1"),
    INSN("push-keeps-the-pointer", keep_pointer, "push leaves the stack pointer.",
         PUSH4 "100000 1"),
    INSN("pop-loads-nothing", keep_popped, "pop leaves its register.",
         "insn 665b fffe0"),
    INSN("call-returns-elsewhere", return_elsewhere, "call pushes another address.",
         "set 1 100 1 0; insn e80000 100000"),
    INSN("enter-pushes-another", frame_wrongly, "enter pushes another frame pointer.",
         "set 1 100 1 0; insn 66c8000000 100000"),
    INSN("pusha-loses-di", lose_di, "The last register that pusha pushes is lost.",
         "set 1 100 1 0; insn 6660 100000"),
    INSN("pusha-loses-ax", lose_ax, "The first register that pusha pushes is lost.",
         "set 1 100 1 0; insn 6660 100000 0 5"),
    INSN("table-lost", lose_table, "What sgdt and sidt store is lost.",
         "set 1 100 1 0; insn 67660f0107 100000"),
    INSN("table-limit-altered", alter_limit, "sgdt and sidt store another limit.",
         "set 1 100 1 0; insn 67660f0107 100000"),
    INSN("table-base-altered", alter_base, "sgdt and sidt store another base.",
         "set 1 100 1 0; insn 67660f0107 100000"),
    INSN("string-last-copy-lost", lose_last, "The highest element that is copied is lost.",
         "set 1 100 1 0; " MOVS4 "100100 0 0 1 0 100000"),
    INSN("string-last-fill-lost", lose_filled, "The highest element that is filled is lost.",
         "set 1 100 1 0; " STOS4 "100100 0 5 2"),
    INSN("string-downward-end-lost", lose_down,
         "Going downward, the last element is lost.",
         "set 1 100 1 0; insn 67f366ab 100100 0 5 2 0 0 down"),
    INSN("string-next-slot-lost", lose_next_slot,
         "What a string instruction writes beyond the end of a slot is lost.",
         "set 1 100 1 0; set 2 101 1 1; " STOS4 "100ffc 0 5 2"),
    INSN("string-copies-zeros", copy_zeros, "The first element is copied as zero.",
         "set 1 100 1 0; " MOVS4 "100100 0 0 1 0 100000"),
    INSN("string-count-kept", keep_count, "The count of a string instruction stays.",
         STOS4 "100100 0 5 2"),
    INSN("string-pointer-kept", keep_destination, "A copy leaves the destination's pointer.",
         MOVS4 "100100 0 0 1 0 100000"),
    INSN("search-flag-turned", turn_found, "A search says found where it is not.",
         "insn 67f266af 100000 0 5 1"),
    INSN_LOG("atomic-not-logged", note_atomic, drop_noted,
             "What an atomic instruction writes is not in the dirty log.",
             "set 1 100 1 0 log; " XADD4 "100000 1; log 1"),
    INSN_LOG("compared-unequal-not-logged", note_unequal, drop_noted,
             "A comparison that fails is not in the dirty log.",
             "set 1 100 1 0 log; " CMPXCHG4 "100000 7; log 1"),
    INSN_LOG("update-second-page-not-logged", note_second, drop_noted,
             "Of an instruction over a page border the second page is not in the dirty log.",
             "set 1 100 2 0 log; " XADD4 "100ffe 1; log 1"),
    INSN_LOG("push-not-logged", note_stack, drop_noted,
             "What is pushed is not in the dirty log.",
             "set 1 100 1 0 log; " PUSH4 "100000 1; log 1"),
    INSN_LOG("string-not-logged", note_string, drop_noted,
             "The last page of a string instruction is not in the dirty log.",
             "set 1 100 1 0 log; " STOS4 "100100 0 5 1; log 1"),
    INSN_LOG("table-not-logged", note_table, drop_noted,
             "What sgdt and sidt store is not in the dirty log.",
             "set 1 100 1 0 log; insn 67660f0107 100000; log 1"),
    INSN_LOG("string-source-logged", note_source, add_noted,
             "The page that a copy is made from is in the dirty log.",
             "set 1 100 2 0 log; " MOVS4 "101000 0 0 1 0 100000; log 1"),
    INSN_LOG("read-logged", note_read, add_noted,
             "A page that is popped from, or searched, is in the dirty log.",
             "set 1 100 1 0 log; insn 665b 100000; log 1"),
    INSN_LOG("readonly-update-logged", note_updated, add_noted_readonly,
             "An instruction that exits makes a page of a read-only slot dirty.",
             "set 1 100 1 0 ro+log; " OR4 "100000 1; log 1"),
    INSN("update-write-exit-swallowed", swallow_update,
         "An instruction that reads and writes exits for its read only.",
         OR4 "100000 1"),
    INSN("update-read-exit-swallowed", swallow_update_read,
         "An instruction that reads and writes exits for its write only.",
         OR4 "100000 1"),
    INSN("compared-unequal-exit-swallowed", swallow_unequal,
         "A comparison that fails does not exit for its write.", CMPXCHG4 "100000 7"),
    INSN("compared-unequal-exit-has-new", exit_with_new,
         "A comparison that fails exits with the new value.", CMPXCHG4 "100000 7"),
    INSN("pair-exit-cut", cut_wide_exit, "An exit of eight bytes has four.",
         PAIR8 "100000 7"),
    INSN("readonly-update-lands", land_on_readonly,
         "An instruction on a read-only slot exits, and changes the memory too.",
         "set 1 100 1 0 ro; " XADD4 "100000 1"),
    INSN("push-exit-swallowed", swallow_push, "What is pushed without a slot does not exit.",
         PUSH4 "100000 1"),
    INSN("pop-exit-swallowed", swallow_pop, "What is popped without a slot is zero.",
         "insn 665b 100000"),
    INSN("string-exit-swallowed", swallow_string,
         "What a string instruction writes without a slot does not exit.",
         STOS4 "100100 0 5 1"),
    INSN("string-source-exit-swallowed", swallow_source,
         "What a string instruction reads without a slot is zero.",
         MOVS4 "100100 0 0 1 0 200000"),
    INSN("update-reaches-a-deleted-slot", reach_deleted,
         "An instruction reaches the memory of a slot that was deleted.",
         "set 1 100 1 0; delete 1; " XADD4 "100000 1"),
    {0},
};
