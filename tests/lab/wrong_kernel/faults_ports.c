/* Instructions between a port and memory, gone wrong. */
#include "insn.h"

static bool is_repeated(const struct insn *insn) { return insn->repeated; }
static bool lose_input(struct vcpu *vcpu) { return lose_insn(vcpu, INS, NULL); }
static bool swallow_input(struct vcpu *vcpu) { return swallow_exit(vcpu, INS, true); }
static bool note_input(struct vcpu *vcpu) { return note_insn(vcpu, INS, NULL, true); }
static bool note_output(struct vcpu *vcpu) { return note_insn(vcpu, OUTS, NULL, false); }
static bool keep_source(struct vcpu *vcpu) { return keep_register(vcpu, OUTS, NULL, SI); }

static bool lose_highest(struct vcpu *vcpu)
{
    struct insn *insn = struck_insn(vcpu, INS, is_repeated);

    if (insn)
        unwrite(vcpu, insn, insn->size - insn->width, insn->width);
    return false;
}

static bool alter_output(struct vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;

    if (is_at_port(vcpu) && run->io.direction == KVM_EXIT_IO_OUT && strike(vcpu->vm))
        ((uint8_t *)run)[run->io.data_offset] ^= 1;
    ended_insn(vcpu, 0);
    return false;
}

/* insl (%dx), %es:(%edi); outsl %ds:(%esi), (%dx); and repeated, with the port in DX */
#define INS4 "insn 67666d 100000 0 0 0 e2"
#define REP_INS4 "insn 67f3666d 100000 0 0 2 e2"
#define OUTS4 "insn 67666f 0 0 0 0 e2 100000"

const struct fault port_faults[] = {
    INSN("port-input-lost", lose_input, "What comes from a port is lost.",
         "set 1 100 1 0; " INS4),
    INSN("port-input-highest-lost", lose_highest,
         "The highest element of several from a port is lost.", "set 1 100 1 0; " REP_INS4),
    INSN("port-input-exit-swallowed", swallow_input,
         "What comes from a port does not exit where no slot is.", INS4),
    INSN("port-output-altered", alter_output, "Another byte goes to a port than memory holds.",
         OUTS4),
    INSN("port-output-keeps-the-pointer", keep_source,
         "What is sent to a port leaves the source's pointer.", OUTS4),
    INSN_LOG("port-input-not-logged", note_input, drop_noted,
             "The last page that is written from a port is not in the dirty log.",
             "set 1 100 1 0 log; " INS4 "; log 1"),
    INSN_LOG("port-output-logged", note_output, add_noted,
             "The page that is sent to a port is in the dirty log.",
             "set 1 100 1 0 log; " OUTS4 "; log 1"),
    {0},
};
