/* Instructions that go wrong in 64-bit mode alone. */
#include "insn.h"

static bool is_long(const struct insn *insn) { return insn->is_long; }
static bool is_atomic(const struct insn *insn) { return insn->is_long && insn->locked; }
static bool is_plain(const struct insn *insn) { return insn->is_long && !insn->locked; }
static bool is_quad(const struct insn *insn) { return insn->is_long && insn->width == 8; }

static bool lose_from(struct vcpu *vcpu, unsigned kinds, insn_is *when, uint64_t first)
{
    struct insn *insn = struck_insn(vcpu, kinds, when);

    if (insn)
        unwrite(vcpu, insn, first, insn->size - first);
    return false;
}

static bool lose_atomic(struct vcpu *vcpu) { return lose_insn(vcpu, UPDATES, is_atomic); }
static bool lose_plain(struct vcpu *vcpu) { return lose_insn(vcpu, UPDATES, is_plain); }
static bool cut_quad(struct vcpu *vcpu) { return lose_from(vcpu, UPDATES, is_quad, 4); }
static bool lose_push(struct vcpu *vcpu) { return lose_insn(vcpu, PUSH, is_long); }
static bool cut_push(struct vcpu *vcpu) { return lose_from(vcpu, PUSH, is_quad, 4); }
static bool keep_popped(struct vcpu *vcpu) { return keep_register(vcpu, POP, is_long, BX); }
static bool turn_equal(struct vcpu *vcpu) { return turn_flag(vcpu, CMPXCHG, is_long, ZF); }
static bool note_update(struct vcpu *vcpu) { return note_insn(vcpu, UPDATES, is_long, false); }
static bool note_push(struct vcpu *vcpu) { return note_insn(vcpu, PUSH, is_long, false); }
static bool note_string(struct vcpu *vcpu) { return note_insn(vcpu, MOVS | STOS, is_long, true); }

static bool lose_last(struct vcpu *vcpu)
{
    struct insn *insn = struck_insn(vcpu, MOVS | STOS, is_long);

    if (insn)
        unwrite(vcpu, insn, insn->size - insn->width, insn->width);
    return false;
}

static bool swallow_update(struct vcpu *vcpu)
{
    const struct insn *insn = exiting_insn(vcpu, UPDATES, true);

    return insn && insn->is_long && strike(vcpu->vm);
}

/* In 64-bit mode: lock cmpxchg, lock xadd, or, rep stos. */
#define CMPXCHG8 "insn64 f0480fb11f "
#define XADD8 "insn64 f0480fc11f "
#define OR4 "insn64 091f "
#define STOS8 "insn64 f348ab "

const struct fault long_faults[] = {
    INSN("long-atomic-write-lost", lose_atomic,
         "What an atomic instruction writes in 64-bit mode is lost.",
         "set 1 100 1 0; " XADD8 "100000 1"),
    INSN("long-update-write-lost", lose_plain,
         "What an instruction without a lock writes in 64-bit mode is lost.",
         "set 1 100 1 0; " OR4 "100000 ff"),
    INSN("long-upper-half-lost", cut_quad, "Of eight bytes that are updated the upper four stay.",
         "set 1 100 1 0; " XADD8 "100000 c0de0000c0de0000"),
    INSN("long-push-lost", lose_push, "What is pushed in 64-bit mode is lost.",
         "set 1 100 1 0; insn64 53 100000 1"),
    INSN("long-push-upper-half-lost", cut_push, "Of eight bytes that are pushed four are lost.",
         "set 1 100 1 0; insn64 53 100000 c0de0000c0de0000"),
    INSN("long-pop-loads-nothing", keep_popped, "In 64-bit mode pop leaves its register.",
         "insn64 5b fffe0 5"),
    INSN("long-compared-flag-turned", turn_equal,
         "In 64-bit mode cmpxchg says equal where it is not.",
         CMPXCHG8 "100000 7"),
    INSN("long-string-last-lost", lose_last,
         "The highest element that a string instruction writes in 64-bit mode is lost.",
         "set 1 100 1 0; " STOS8 "100100 0 5 2"),
    INSN_LOG("long-update-not-logged", note_update, drop_noted,
             "What an instruction updates in 64-bit mode is not in the dirty log.",
             "set 1 100 1 0 log; " OR4 "100000 1; log 1"),
    INSN_LOG("long-push-not-logged", note_push, drop_noted,
             "What is pushed in 64-bit mode is not in the dirty log.",
             "set 1 100 1 0 log; insn64 53 100000 1; log 1"),
    INSN_LOG("long-string-not-logged", note_string, drop_noted,
             "The last page of a string instruction in 64-bit mode is not in the dirty log.",
             "set 1 100 1 0 log; " STOS8 "100100 0 5 1; log 1"),
    INSN("long-update-write-exit-swallowed", swallow_update,
         "An instruction that reads and writes in 64-bit mode exits for its read only.",
         OR4 "100000 1"),
    {0},
};
