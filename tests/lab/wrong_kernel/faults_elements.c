/* Single elements, operands of the stack in memory, comparisons and saved states, gone wrong. */
#include "insn.h"

#include <string.h>

enum { FX_KEPT = 464 };

static bool is_single(const struct insn *insn) { return !insn->repeated; }
static bool lose_element(struct vcpu *vcpu) { return lose_insn(vcpu, STOS, is_single); }
static bool keep_loaded(struct vcpu *vcpu) { return keep_register(vcpu, LODS, NULL, AX); }
static bool keep_source(struct vcpu *vcpu) { return keep_register(vcpu, LODS, NULL, SI); }
static bool keep_target(struct vcpu *vcpu) { return keep_register(vcpu, STOS, is_single, DI); }
static bool turn_element(struct vcpu *vcpu) { return turn_flag(vcpu, SCAS | CMPS, is_single, ZF); }
static bool turn_compared(struct vcpu *vcpu) { return turn_flag(vcpu, COMPARE, NULL, ZF); }
static bool turn_borrow(struct vcpu *vcpu) { return turn_flag(vcpu, COMPARE, NULL, CF); }
static bool keep_elements(struct vcpu *vcpu) { return keep_register(vcpu, CMPS, NULL, CX); }
static bool lose_pushed(struct vcpu *vcpu) { return lose_insn(vcpu, PUSHM, NULL); }
static bool keep_pushing(struct vcpu *vcpu) { return keep_register(vcpu, PUSHM, NULL, SP); }
static bool keep_popping(struct vcpu *vcpu) { return keep_register(vcpu, POPM, NULL, SP); }
static bool keep_di(struct vcpu *vcpu) { return keep_register(vcpu, POPA, NULL, DI); }
static bool keep_ax(struct vcpu *vcpu) { return keep_register(vcpu, POPA, NULL, AX); }
static bool keep_bp(struct vcpu *vcpu) { return keep_register(vcpu, POPA, NULL, BP); }
static bool keep_frame(struct vcpu *vcpu) { return keep_register(vcpu, LEAVE, NULL, BP); }
static bool keep_framed(struct vcpu *vcpu) { return keep_register(vcpu, LEAVE, NULL, SP); }
static bool keep_unframed(struct vcpu *vcpu) { return keep_register(vcpu, ENTER, NULL, BP); }
static bool keep_returning(struct vcpu *vcpu) { return keep_register(vcpu, RET, NULL, SP); }
static bool swallow_frame(struct vcpu *vcpu) { return swallow_exit(vcpu, LEAVE, false); }
static bool keep_all_popping(struct vcpu *vcpu) { return keep_register(vcpu, POPA, NULL, SP); }

static bool write_compared(struct vcpu *vcpu)
{
    struct insn *insn = struck_insn(vcpu, COMPARE, NULL);

    if (insn)
        write_guest(vcpu->vm, insn->gpa, (uint8_t *)&insn->before.rbx, insn->width);
    return false;
}

static bool push_zeros(struct vcpu *vcpu) { return zero_insn(vcpu, PUSHM); }

static bool lose_popped(struct vcpu *vcpu)
{
    struct insn *insn = struck_insn(vcpu, POPM, NULL);

    if (insn)
        write_guest(vcpu->vm, insn->source, insn->operand, insn->width);
    return false;
}

static bool load_stack_pointer(struct vcpu *vcpu)
{
    struct insn *insn = struck_insn(vcpu, POPA, NULL);

    if (!insn)
        return false;
    memcpy(&insn->after.rsp, insn->old + 3 * insn->width, insn->width);
    put_registers(vcpu, insn);
    return false;
}

/* The state. */

static bool lose_state(struct vcpu *vcpu) { return lose_insn(vcpu, FXSAVE, NULL); }
static bool alter_control(struct vcpu *vcpu) { return alter_insn(vcpu, FXSAVE, 0, 0x20); }
static bool alter_tags(struct vcpu *vcpu) { return alter_insn(vcpu, FXSAVE, 4, 0x01); }
static bool alter_kept(struct vcpu *vcpu) { return alter_insn(vcpu, FXSAVE, FX_KEPT, 0x01); }

static bool save_elsewhere(struct vcpu *vcpu)
{
    struct insn *insn = struck_insn(vcpu, FXSAVE, NULL);
    uint8_t saved[5];

    if (!insn)
        return false;
    read_guest(vcpu->vm, insn->gpa, saved, sizeof(saved));
    unwrite(vcpu, insn, 0, FX_KEPT);
    write_guest(vcpu->vm, insn->gpa + 512, saved, sizeof(saved));
    return false;
}

/* Dirty logs. */

static bool note_element(struct vcpu *vcpu) { return note_insn(vcpu, STOS, is_single, false); }
static bool note_compared(struct vcpu *vcpu) { return note_insn(vcpu, COMPARE, NULL, false); }
static bool note_loaded(struct vcpu *vcpu) { return note_insn(vcpu, LODS, NULL, false); }
static bool note_pushed(struct vcpu *vcpu) { return note_insn(vcpu, PUSHM, NULL, false); }
static bool note_all_popped(struct vcpu *vcpu) { return note_insn(vcpu, POPA, NULL, false); }
static bool note_state(struct vcpu *vcpu) { return note_insn(vcpu, FXSAVE, NULL, false); }

static bool note_popped(struct vcpu *vcpu) { return note_source(vcpu, POPM); }
static bool note_pushed_from(struct vcpu *vcpu) { return note_source(vcpu, PUSHM); }

static bool note_second(struct vcpu *vcpu)
{
    struct insn *insn = struck_insn(vcpu, FXSAVE, NULL);

    if (insn && insn->gpa % PAGE_BYTES > PAGE_BYTES - 160)
        vcpu->vm->noted = insn->gpa + 160;
    return false;
}

/* Exits. */

static bool swallow_load(struct vcpu *vcpu) { return swallow_exit(vcpu, LODS, false); }
static bool swallow_compared(struct vcpu *vcpu) { return swallow_exit(vcpu, COMPARE, false); }
static bool swallow_operand(struct vcpu *vcpu) { return swallow_exit(vcpu, PUSHM, false); }
static bool swallow_pushed(struct vcpu *vcpu) { return swallow_exit(vcpu, PUSHM, true); }
static bool swallow_popped(struct vcpu *vcpu) { return swallow_exit(vcpu, POPM, true); }

static bool exit_elsewhere(struct vcpu *vcpu)
{
    struct insn *insn = exiting_insn(vcpu, STOS, true);

    if (insn && is_single(insn) && strike(vcpu->vm))
        vcpu->run->mmio.phys_addr += 1;
    return false;
}

/* lods, cmp, push [edi], pop [edi]; fninit and fxsave */
#define LODS4 "insn 6667ad "
#define STOS4 "insn 6667ab "
#define COMPARE4 "insn 6667391f "
#define PUSHM4 "insn 6667ff37 "
#define POPM4 "insn 66678f07 "
#define POPA4 "insn 6661 "
#define FXSAVE16 "cpuid; insn dbe3670fae07 "

const struct fault element_faults[] = {
    INSN("element-store-lost", lose_element, "A single element that is stored is lost.",
         "set 1 100 1 0; " STOS4 "100000 0 5"),
    INSN("element-load-lost", keep_loaded, "lods leaves its register.",
         LODS4 "100000 0 5 0 0 fffe0"),
    INSN("element-load-keeps-its-pointer", keep_source, "lods leaves the pointer to its source.",
         LODS4 "100000 0 0 0 0 fffe0"),
    INSN("element-store-keeps-its-pointer", keep_target, "stos leaves its pointer.",
         STOS4 "100000 0 5"),
    INSN("element-comparison-turned", turn_element,
         "scas or cmps says equal where it is not.", "insn 6667af 100000 0 5"),
    INSN("comparison-turned", turn_compared, "cmp says equal where it is not.",
         COMPARE4 "100000 5"),
    INSN("comparison-borrow-turned", turn_borrow, "cmp says above where it is below.",
         COMPARE4 "100000 5"),
    INSN("comparison-writes", write_compared, "cmp writes what it compares.",
         "set 1 100 1 0; " COMPARE4 "100000 5"),
    INSN("popa-keeps-bp", keep_bp, "popa leaves BP.", "insn 6661 100000"),
    INSN("leave-keeps-bp", keep_frame, "leave leaves BP.", "insn 66c9 100000"),
    INSN("leave-keeps-the-pointer", keep_framed, "leave does not take SP from BP.",
         "insn 66c9 100000"),
    INSN("leave-exit-swallowed", swallow_frame, "leave reads zeros where it ought to exit.",
         "insn 66c9 100000"),
    INSN("enter-keeps-bp", keep_unframed, "enter leaves BP.", "insn 66c8000000 100000"),
    INSN("ret-keeps-the-pointer", keep_returning, "ret leaves the stack pointer.",
         "set 1 100 1 0; insn c3 100000"),
    INSN("comparison-count-kept", keep_elements, "repe cmps leaves its count.",
         "insn 67f366a7 100000 0 0 2 0 100000"),
    INSN("operand-push-lost", lose_pushed, "What is pushed from memory is lost.",
         "set 1 100 1 0; " PUSHM4 "100000"),
    INSN("operand-push-zero", push_zeros, "What is pushed from memory is zero.",
         "set 1 100 1 0; " PUSHM4 "100000"),
    INSN("operand-push-keeps-the-pointer", keep_pushing,
         "A push from memory leaves the stack pointer.", PUSHM4 "100000"),
    INSN("operand-pop-lost", lose_popped, "What is popped to memory is lost.",
         "set 1 100 1 0; " POPM4 "100000"),
    INSN("operand-pop-keeps-the-pointer", keep_popping,
         "A pop to memory leaves the stack pointer.", POPM4 "100000"),
    INSN("popa-keeps-di", keep_di, "The first register that popa pops is lost.",
         POPA4 "100000"),
    INSN("popa-keeps-ax", keep_ax, "The last register that popa pops is lost.",
         POPA4 "100000 0 5"),
    INSN("popa-loads-sp", load_stack_pointer, "popa loads the stack pointer, too.",
         POPA4 "100000"),
    INSN("popa-keeps-the-pointer", keep_all_popping, "popa leaves the stack pointer.",
         POPA4 "100000"),
    INSN("state-lost", lose_state, "What fxsave saves is lost.",
         "set 1 100 1 0; " FXSAVE16 "100000"),
    INSN("state-control-altered", alter_control, "fxsave saves another control word.",
         "set 1 100 1 0; " FXSAVE16 "100000"),
    INSN("state-tags-altered", alter_tags, "fxsave says that a register is in use.",
         "set 1 100 1 0; " FXSAVE16 "100000"),
    INSN("state-writes-beyond", alter_kept, "fxsave writes bytes that are left to software.",
         "set 1 100 1 0; " FXSAVE16 "100000"),
    INSN("state-saved-elsewhere", save_elsewhere, "fxsave saves 512 bytes further.",
         "set 1 100 1 0; " FXSAVE16 "100000"),
    INSN_LOG("element-store-not-logged", note_element, drop_noted,
             "A single element that is stored is not in the dirty log.",
             "set 1 100 1 0 log; " STOS4 "100000 0 5; log 1"),
    INSN_LOG("element-load-logged", note_loaded, add_noted,
             "The page that lods loads from is in the dirty log.",
             "set 1 100 1 0 log; " LODS4 "100000 0 0 0 0 100000; log 1"),
    INSN_LOG("comparison-logged", note_compared, add_noted,
             "A page that is only compared is in the dirty log.",
             "set 1 100 1 0 log; " COMPARE4 "100000 5; log 1"),
    INSN_LOG("operand-push-not-logged", note_pushed, drop_noted,
             "What is pushed from memory is not in the dirty log.",
             "set 1 100 1 0 log; " PUSHM4 "100000; log 1"),
    INSN_LOG("operand-push-logs-its-operand", note_pushed_from, add_noted,
             "The page that is pushed from is in the dirty log.",
             "set 1 100 2 0 log; " PUSHM4 "100ff0; log 1"),
    INSN_LOG("operand-pop-not-logged", note_popped, drop_noted,
             "What is popped to memory is not in the dirty log.",
             "set 1 100 1 0 log; " POPM4 "100000; log 1"),
    INSN_LOG("popa-logged", note_all_popped, add_noted,
             "A page that popa pops from is in the dirty log.",
             "set 1 100 1 0 log; " POPA4 "100000; log 1"),
    INSN_LOG("state-not-logged", note_state, drop_noted,
             "What fxsave saves is not in the dirty log.",
             "set 1 100 1 0 log; " FXSAVE16 "100000; log 1"),
    INSN_LOG("state-second-page-not-logged", note_second, drop_noted,
             "Of a state over a page border the second page is not in the dirty log.",
             "set 1 100 2 0 log; " FXSAVE16 "100fe0; log 1"),
    INSN("element-load-exit-swallowed", swallow_load, "lods without a slot loads zero.",
         LODS4 "100000 0 5 0 0 100000"),
    INSN("comparison-exit-swallowed", swallow_compared, "cmp without a slot compares zero.",
         COMPARE4 "100000 5"),
    INSN("operand-read-exit-swallowed", swallow_operand,
         "What is pushed from where no slot is is zero, without an exit.", PUSHM4 "100000"),
    INSN("operand-push-exit-swallowed", swallow_pushed,
         "What is pushed from memory to where no slot is does not exit.", PUSHM4 "100000"),
    INSN("operand-pop-exit-swallowed", swallow_popped,
         "What is popped to where no slot is does not exit.", POPM4 "100000"),
    INSN("element-exit-elsewhere", exit_elsewhere, "An element exits at the gpa above its own.",
         STOS4 "100000 0 5"),
    {0},
};
