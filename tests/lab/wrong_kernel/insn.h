/* What faults of instructions share: see insn.c. */
#ifndef INSN_H
#define INSN_H

#include "wrong_kernel.h"

#define ZF 0x40ull
#define CF 0x1ull
#define DATA_PORT 0xe2

enum reg { AX, BX, CX, SP, DI, SI, BP };

typedef bool insn_is(const struct insn *);

/* The instruction that ended, if it is of these kinds and the fault strikes; else NULL. */
struct insn *struck_insn(struct vcpu *vcpu, unsigned kinds, insn_is *when);

bool is_at_port(const struct vcpu *vcpu);

/* Each does one thing to it, and returns false, for leave(). */
bool lose_insn(struct vcpu *vcpu, unsigned kinds, insn_is *when);
bool alter_insn(struct vcpu *vcpu, unsigned kinds, uint64_t at, uint8_t bits);
bool zero_insn(struct vcpu *vcpu, unsigned kinds);
bool keep_register(struct vcpu *vcpu, unsigned kinds, insn_is *when, enum reg reg);
bool turn_flag(struct vcpu *vcpu, unsigned kinds, insn_is *when, uint64_t flag);

/* Whether to hide its exit. */
bool swallow_exit(struct vcpu *vcpu, unsigned kinds, bool write);

/* Dirty logs: the bit of the page of its first or last byte, or of its source, is lost or added. */
bool note_insn(struct vcpu *vcpu, unsigned kinds, insn_is *when, bool last);
bool note_source(struct vcpu *vcpu, unsigned kinds);
void drop_noted(struct vm *vm, struct log *log);
void add_noted(struct vm *vm, struct log *log);

#define INSN(fault_name, function, text, script)                                                \
    {.name = fault_name, .enter = begin_insn, .leave = function, .sentence = text,              \
     .witness = script}
#define INSN_LOG(fault_name, function, log_function, text, script)                              \
    {.name = fault_name, .enter = begin_insn, .leave = function, .log = log_function,           \
     .sentence = text, .witness = script}

#endif
