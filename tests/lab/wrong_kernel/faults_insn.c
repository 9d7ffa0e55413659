/* Instructions that read memory and write it, gone wrong. */
#include "insn.h"

#include <string.h>

static uint64_t to_border(const struct insn *insn)
{
    uint64_t rest = PAGE_BYTES - insn->gpa % PAGE_BYTES;

    return rest < insn->size ? rest : 0;
}

static bool is_equal(const struct insn *insn)
{
    return insn->after.rflags & ZF;
}

static bool is_unequal(const struct insn *insn) { return !is_equal(insn); }
static bool is_atomic(const struct insn *insn) { return insn->locked; }
static bool is_plain(const struct insn *insn) { return !insn->locked; }
static bool crosses(const struct insn *insn) { return to_border(insn) != 0; }
static bool lose_atomic(struct vcpu *vcpu) { return lose_insn(vcpu, UPDATES, is_atomic); }
static bool lose_plain(struct vcpu *vcpu) { return lose_insn(vcpu, UPDATES, is_plain); }
static bool lose_equal(struct vcpu *vcpu) { return lose_insn(vcpu, CMPXCHG, is_equal); }

static bool lose_second_page(struct vcpu *vcpu)
{
    struct insn *insn = struck_insn(vcpu, UPDATES, crosses);

    if (insn)
        unwrite(vcpu, insn, to_border(insn), insn->size - to_border(insn));
    return false;
}

static bool lose_first_page(struct vcpu *vcpu)
{
    struct insn *insn = struck_insn(vcpu, UPDATES, crosses);

    if (insn)
        unwrite(vcpu, insn, 0, to_border(insn));
    return false;
}

static bool lose_high_half(struct vcpu *vcpu)
{
    struct insn *insn = struck_insn(vcpu, PAIR, NULL);

    if (insn)
        unwrite(vcpu, insn, insn->size / 2, insn->size / 2);
    return false;
}

static bool write_unequal(struct vcpu *vcpu)
{
    struct insn *insn = struck_insn(vcpu, CMPXCHG, is_unequal);

    if (insn)
        write_guest(vcpu->vm, insn->gpa, (uint8_t *)&insn->before.rbx, insn->width);
    return false;
}

static bool set_other_bit(struct vcpu *vcpu) { return alter_insn(vcpu, BTS, 1, 0x80); }
static bool count_wrongly(struct vcpu *vcpu) { return alter_insn(vcpu, INC, 0, 0x02); }
static bool keep_accumulator(struct vcpu *vcpu)
{
    return keep_register(vcpu, CMPXCHG, is_unequal, AX);
}

static bool keep_exchanged(struct vcpu *vcpu) { return keep_register(vcpu, XCHG, NULL, BX); }

static bool give_sum(struct vcpu *vcpu)
{
    struct insn *insn = struck_insn(vcpu, XADD, NULL);

    if (!insn || !slot_at(vcpu->vm, insn->gpa))
        return false;
    read_guest(vcpu->vm, insn->gpa, (uint8_t *)&insn->after.rbx, insn->width);
    put_registers(vcpu, insn);
    return false;
}

static bool turn_equal(struct vcpu *vcpu) { return turn_flag(vcpu, CMPXCHG, NULL, ZF); }
static bool turn_pair(struct vcpu *vcpu) { return turn_flag(vcpu, PAIR, NULL, ZF); }
static bool turn_bit(struct vcpu *vcpu) { return turn_flag(vcpu, BTS, NULL, CF); }

/* Dirty logs. */

static bool note_atomic(struct vcpu *vcpu) { return note_insn(vcpu, UPDATES, is_atomic, false); }
static bool note_unequal(struct vcpu *vcpu) { return note_insn(vcpu, CMPXCHG, is_unequal, false); }
static bool note_second(struct vcpu *vcpu) { return note_insn(vcpu, UPDATES, crosses, true); }
static bool note_updated(struct vcpu *vcpu) { return note_insn(vcpu, UPDATES, NULL, false); }

static void add_noted_readonly(struct vm *vm, struct log *log)
{
    if (log->slot->known.flags & KVM_MEM_READONLY)
        add_noted(vm, log);
}

/* Exits. */

static bool swallow_update(struct vcpu *vcpu) { return swallow_exit(vcpu, UPDATES, true); }
static bool swallow_update_read(struct vcpu *vcpu) { return swallow_exit(vcpu, UPDATES, false); }

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

/* The slot that was last deleted here. */
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

/* lock cmpxchg, xadd, or, cmpxchg8b */
#define CMPXCHG4 "insn 6766f00fb11f "
#define XADD4 "insn 6766f00fc11f "
#define OR4 "insn 6766091f "
#define PAIR8 "insn 67f00fc70f "

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
    INSN_LOG("atomic-not-logged", note_atomic, drop_noted,
             "What an atomic instruction writes is not in the dirty log.",
             "set 1 100 1 0 log; " XADD4 "100000 1; log 1"),
    INSN_LOG("compared-unequal-not-logged", note_unequal, drop_noted,
             "A comparison that fails is not in the dirty log.",
             "set 1 100 1 0 log; " CMPXCHG4 "100000 7; log 1"),
    INSN_LOG("update-second-page-not-logged", note_second, drop_noted,
             "Of an instruction over a page border the second page is not in the dirty log.",
             "set 1 100 2 0 log; " XADD4 "100ffe 1; log 1"),
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
    INSN("update-reaches-a-deleted-slot", reach_deleted,
         "An instruction reaches the memory of a slot that was deleted.",
         "set 1 100 1 0; delete 1; " XADD4 "100000 1"),
    {0},
};
