/* Stacks, strings and descriptor tables, gone wrong. */
#include "insn.h"

#include <string.h>

static bool goes_down(const struct insn *insn) { return insn->down; }
static bool lose_push(struct vcpu *vcpu) { return lose_insn(vcpu, PUSH, NULL); }
static bool lose_table(struct vcpu *vcpu) { return lose_insn(vcpu, TABLE, NULL); }
static bool return_elsewhere(struct vcpu *vcpu) { return alter_insn(vcpu, CALL, 0, 0x01); }
static bool frame_wrongly(struct vcpu *vcpu) { return alter_insn(vcpu, ENTER, 0, 0x10); }
static bool alter_limit(struct vcpu *vcpu) { return alter_insn(vcpu, TABLE, 1, 0x01); }
static bool alter_base(struct vcpu *vcpu) { return alter_insn(vcpu, TABLE, 5, 0x01); }
static bool keep_pointer(struct vcpu *vcpu) { return keep_register(vcpu, PUSH, NULL, SP); }
static bool keep_popped(struct vcpu *vcpu) { return keep_register(vcpu, POP, NULL, BX); }
static bool keep_count(struct vcpu *vcpu) { return keep_register(vcpu, STOS, NULL, CX); }
static bool keep_destination(struct vcpu *vcpu) { return keep_register(vcpu, MOVS, NULL, DI); }
static bool turn_found(struct vcpu *vcpu) { return turn_flag(vcpu, SCAS | CMPS, NULL, ZF); }

static bool lose_part(struct vcpu *vcpu, unsigned kinds, insn_is *when, bool highest)
{
    struct insn *insn = struck_insn(vcpu, kinds, when);

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

static bool copy_zeros(struct vcpu *vcpu) { return zero_insn(vcpu, MOVS); }

/* Dirty logs. */

static bool note_stack(struct vcpu *vcpu)
{
    return note_insn(vcpu, PUSH | PUSHA | CALL, NULL, false);
}

static bool note_string(struct vcpu *vcpu) { return note_insn(vcpu, MOVS | STOS, NULL, true); }
static bool note_table(struct vcpu *vcpu) { return note_insn(vcpu, TABLE, NULL, false); }

static bool note_copied(struct vcpu *vcpu) { return note_source(vcpu, MOVS); }

static bool note_read(struct vcpu *vcpu)
{
    return note_insn(vcpu, POP | SCAS, NULL, false);
}

/* Exits. */

static bool swallow_push(struct vcpu *vcpu)
{
    return swallow_exit(vcpu, PUSH | CALL | ENTER, true);
}

static bool swallow_pop(struct vcpu *vcpu) { return swallow_exit(vcpu, POP, false); }
static bool swallow_string(struct vcpu *vcpu) { return swallow_exit(vcpu, MOVS | STOS, true); }
static bool swallow_source(struct vcpu *vcpu) { return swallow_exit(vcpu, MOVS | CMPS, false); }

/* push, movs, stos */
#define PUSH4 "insn 6653 "
#define MOVS4 "insn 67f366a5 "
#define STOS4 "insn 67f366ab "

const struct fault string_faults[] = {
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
    INSN_LOG("push-not-logged", note_stack, drop_noted,
             "What is pushed is not in the dirty log.",
             "set 1 100 1 0 log; " PUSH4 "100000 1; log 1"),
    INSN_LOG("string-not-logged", note_string, drop_noted,
             "The last page of a string instruction is not in the dirty log.",
             "set 1 100 1 0 log; " STOS4 "100100 0 5 1; log 1"),
    INSN_LOG("table-not-logged", note_table, drop_noted,
             "What sgdt and sidt store is not in the dirty log.",
             "set 1 100 1 0 log; insn 67660f0107 100000; log 1"),
    INSN_LOG("string-source-logged", note_copied, add_noted,
             "The page that a copy is made from is in the dirty log.",
             "set 1 100 2 0 log; " MOVS4 "101000 0 0 1 0 100000; log 1"),
    INSN_LOG("read-logged", note_read, add_noted,
             "A page that is popped from, or searched, is in the dirty log.",
             "set 1 100 1 0 log; insn 665b 100000; log 1"),
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
    {0},
};
