/* One instruction of a guest: its kind, its memory, and the content before it. */
#include "insn.h"

#include <string.h>
#include <sys/ioctl.h>

/* A slot that the guest may write to, or any slot for code, the guest's own included. */
static const struct slot *holder(struct vm *vm, uint64_t gpa)
{
    for (uint32_t i = 0; i < vm->nr_used; i++) {
        const struct slot *slot = &vm->slots[vm->used[i]];
        if (gpa >= slot->known.gpa && gpa < end_of(&slot->known))
            return slot;
    }
    return NULL;
}

static bool read_byte(struct vm *vm, uint64_t gpa, uint8_t *byte)
{
    const struct slot *slot = holder(vm, gpa);

    return slot && readable(slot->known.hva + gpa - slot->known.gpa, byte, 1);
}

void write_guest(struct vm *vm, uint64_t gpa, const uint8_t *data, uint64_t size)
{
    for (uint64_t i = 0; i < size; i++) {
        const struct slot *slot = holder(vm, gpa + i);
        if (slot && may_touch(slot) && !(slot->known.flags & KVM_MEM_READONLY))
            overwrite(slot->known.hva + gpa + i - slot->known.gpa, (void *)(data + i), 1);
    }
}

void read_guest(struct vm *vm, uint64_t gpa, uint8_t *data, uint64_t size)
{
    for (uint64_t i = 0; i < size; i++)
        if (!read_byte(vm, gpa + i, data + i))
            data[i] = 0;
}

static unsigned kind_of_two(const uint8_t *code, unsigned reg)
{
    switch (code[0]) {
    case 0xb0: case 0xb1: return CMPXCHG;
    case 0xc0: case 0xc1: return XADD;
    case 0xc7: return PAIR;
    case 0xba: return BTS;
    case 0x01: return reg < 2 ? TABLE : 0;
    case 0xae: return reg == 0 ? FXSAVE : 0;
    }
    return 0;
}

static unsigned kind_of_one(uint8_t opcode, unsigned reg)
{
    switch (opcode) {
    case 0x38: case 0x39: return COMPARE;
    case 0x8f: return POPM;
    case 0x61: return POPA;
    case 0x86: case 0x87: return XCHG;
    case 0x00: case 0x01: case 0x08: case 0x09: case 0x20: case 0x21: return UPDATE;
    case 0xf6: case 0xf7: return UPDATE;
    case 0xfe: case 0xff: return reg == 6 ? PUSHM : INC;
    case 0x53: case 0x9c: return PUSH;
    case 0x5b: return POP;
    case 0x60: return PUSHA;
    case 0xe8: return CALL;
    case 0xc8: return ENTER;
    case 0xc9: return LEAVE;
    case 0xc3: return RET;
    case 0x6c: case 0x6d: return INS;
    case 0x6e: case 0x6f: return OUTS;
    case 0xa4: case 0xa5: return MOVS;
    case 0xaa: case 0xab: return STOS;
    case 0xac: case 0xad: return LODS;
    case 0xae: case 0xaf: return SCAS;
    case 0xa6: case 0xa7: return CMPS;
    }
    return 0;
}

/* Whether the ModRM byte names memory at [edi], and nothing after it. */
static bool is_at_di(uint8_t modrm)
{
    return modrm >> 6 == 0 && (modrm & 7) == 7;
}

/* The gpa of an address, in 64-bit mode by the vCPU's page tables. */
static uint64_t gpa_of_address(const struct vcpu *vcpu, uint64_t address)
{
    struct kvm_translation at = {.linear_address = address};

    if (!vcpu->insn.is_long)
        return (uint32_t)address;
    if (kernel_ioctl(vcpu->fd, KVM_TRANSLATE, &at) || !at.valid)
        return 0;
    return at.physical_address;
}

static void place(const struct vcpu *vcpu, struct insn *insn, uint64_t count)
{
    uint64_t last = insn->down ? (count - 1) * insn->width : 0;

    insn->gpa = gpa_of_address(vcpu, insn->before.rdi) - last;
    insn->source = gpa_of_address(vcpu, insn->before.rsi) - last;
    insn->size = insn->width * count;
    if (insn->kind & (LODS | OUTS))
        insn->gpa = insn->source;
    if (insn->kind & OPERANDS)
        insn->source = gpa_of_address(vcpu, insn->before.rdi);
    if (insn->kind & STACK) {
        insn->size = insn->kind & (PUSHA | POPA) ? 8 * insn->width : insn->width;
        insn->gpa = gpa_of_address(vcpu, insn->kind == LEAVE ? insn->before.rbp : insn->before.rsp);
        insn->gpa -= insn->kind & (POP | POPA | POPM | LEAVE | RET) ? 0 : insn->size;
    }
    if (insn->kind == FXSAVE)
        insn->size = 512;
    if (insn->kind == TABLE)
        insn->size = insn->is_long ? 10 : 6;
}

/* The width of an operand that is not a byte. */
static uint64_t width_of(const struct insn *insn, bool has_66, bool has_rex)
{
    if (!insn->is_long)
        return has_66 ? 4 : 2;
    if (has_66)
        return 2;
    return has_rex || insn->kind & STACK ? 8 : 4;
}

static bool decode(const struct vcpu *vcpu, struct insn *insn, const uint8_t *code)
{
    bool wide = false, has_rex = false;
    uint64_t count = 1;
    uint8_t opcode;

    if (!memcmp(code, "\xdb\xe3", 2)) /* fninit, which precedes fxsave */
        code += 2;
    for (;; code++) {
        wide |= *code == 0x66;
        insn->locked |= *code == 0xf0;
        insn->repeated |= *code == 0xf3 || *code == 0xf2;
        if (!memchr("\x66\x67\xf0\xf2\xf3", *code, 5))
            break;
    }
    if (insn->is_long && *code == 0x48) {
        has_rex = true;
        code++;
    }
    opcode = code[0] == 0x0f ? code[1] : code[0];
    insn->kind = code[0] == 0x0f ? kind_of_two(code + 1, code[2] >> 3 & 7)
                                 : kind_of_one(opcode, code[1] >> 3 & 7);
    if (insn->kind & AT_DI && !is_at_di(code[code[0] == 0x0f ? 2 : 1]))
        return false;
    insn->width = width_of(insn, wide, has_rex);
    if (!(opcode & 1) && insn->kind & (UPDATES | STRINGS | COMPARE) && insn->kind != BTS)
        insn->width = 1;
    if (insn->kind == PAIR)
        insn->width = has_rex ? 16 : 8;
    insn->locked |= insn->kind == XCHG;
    if (insn->kind & PORTS && insn->before.rdx != DATA_PORT)
        return false;
    insn->down = insn->before.rflags >> 10 & 1;
    if (insn->repeated && insn->kind & STRINGS)
        count = (uint32_t)insn->before.rcx;
    place(vcpu, insn, count);
    return insn->kind && count && insn->size <= sizeof(insn->old);
}

/* Before KVM_RUN: notes the instruction under way, unless it began earlier. */
int begin_insn(struct vcpu *vcpu)
{
    struct insn *insn = &vcpu->insn;
    struct kvm_sregs special;
    uint8_t code[16];
    uint64_t at;

    if (insn->under_way)
        return 0;
    memset(insn, 0, sizeof(*insn));
    if (kernel_ioctl(vcpu->fd, KVM_GET_REGS, &insn->before)
        || kernel_ioctl(vcpu->fd, KVM_GET_SREGS, &special))
        return 0;
    insn->is_long = special.cr0 >> 31;
    if (!insn->is_long)
        at = special.cs.base + insn->before.rip;
    else
        at = gpa_of_address(vcpu, insn->before.rip);
    read_guest(vcpu->vm, at, code, sizeof(code));
    insn->under_way = decode(vcpu, insn, code);
    if (insn->under_way)
        read_guest(vcpu->vm, insn->gpa, insn->old, insn->size);
    if (insn->under_way && insn->kind & OPERANDS)
        read_guest(vcpu->vm, insn->source, insn->operand, insn->width);
    return 0;
}

/* Whether an instruction that has begun asks a port for data, or sends some there. */
bool is_at_port(const struct vcpu *vcpu)
{
    return vcpu->insn.under_way && vcpu->insn.kind & PORTS
           && vcpu->run->exit_reason == KVM_EXIT_IO
           && vcpu->run->io.port == DATA_PORT;
}

/* After KVM_RUN: the instruction that ended with this exit, if it is of these kinds. */
struct insn *ended_insn(struct vcpu *vcpu, unsigned kinds)
{
    struct insn *insn = &vcpu->insn;

    if (!insn->under_way || vcpu->run->exit_reason == KVM_EXIT_MMIO || is_at_port(vcpu))
        return NULL;
    insn->under_way = false;
    if (vcpu->run->exit_reason == KVM_EXIT_SHUTDOWN)
        return NULL;
    if (kernel_ioctl(vcpu->fd, KVM_GET_REGS, &insn->after))
        return NULL;
    return insn->kind & kinds ? insn : NULL;
}

/* The instruction that exits with MMIO, if it is of these kinds. */
struct insn *exiting_insn(struct vcpu *vcpu, unsigned kinds, bool write)
{
    struct insn *insn = &vcpu->insn;
    bool is_mmio = vcpu->run->exit_reason == KVM_EXIT_MMIO;

    if (is_at_port(vcpu))
        return NULL;
    if (!insn->under_way || !is_mmio) {
        insn->under_way = false;
        return NULL;
    }
    return insn->kind & kinds && vcpu->run->mmio.is_write == write ? insn : NULL;
}

/* Restores `size` bytes of its memory. */
void unwrite(struct vcpu *vcpu, const struct insn *insn, uint64_t first, uint64_t size)
{
    write_guest(vcpu->vm, insn->gpa + first, insn->old + first, size);
}

/* Gives the guest the registers of insn->after. */
void put_registers(struct vcpu *vcpu, struct insn *insn)
{
    kernel_ioctl(vcpu->fd, KVM_SET_REGS, &insn->after);
    vcpu->run->s.regs.regs = insn->after;
}

/* Shared by faults: effects on an instruction, and on its page in the dirty log. */

struct insn *struck_insn(struct vcpu *vcpu, unsigned kinds, insn_is *when)
{
    struct insn *insn = ended_insn(vcpu, kinds);

    return insn && (!when || when(insn)) && strike(vcpu->vm) ? insn : NULL;
}

bool lose_insn(struct vcpu *vcpu, unsigned kinds, insn_is *when)
{
    struct insn *insn = struck_insn(vcpu, kinds, when);

    if (insn)
        unwrite(vcpu, insn, 0, insn->size);
    return false;
}

bool alter_insn(struct vcpu *vcpu, unsigned kinds, uint64_t at, uint8_t bits)
{
    struct insn *insn = struck_insn(vcpu, kinds, NULL);
    uint8_t byte;

    if (!insn)
        return false;
    read_guest(vcpu->vm, insn->gpa + at, &byte, 1);
    byte ^= bits;
    write_guest(vcpu->vm, insn->gpa + at, &byte, 1);
    return false;
}

static __u64 *reg_of(struct kvm_regs *regs, enum reg reg)
{
    __u64 *const all[] = {
        [AX] = &regs->rax, [BX] = &regs->rbx, [CX] = &regs->rcx, [SP] = &regs->rsp,
        [DI] = &regs->rdi, [SI] = &regs->rsi, [BP] = &regs->rbp,
    };

    return all[reg];
}

bool keep_register(struct vcpu *vcpu, unsigned kinds, insn_is *when, enum reg reg)
{
    struct insn *insn = struck_insn(vcpu, kinds, when);

    if (!insn)
        return false;
    *reg_of(&insn->after, reg) = *reg_of(&insn->before, reg);
    put_registers(vcpu, insn);
    return false;
}

bool turn_flag(struct vcpu *vcpu, unsigned kinds, insn_is *when, uint64_t flag)
{
    struct insn *insn = struck_insn(vcpu, kinds, when);

    if (!insn)
        return false;
    insn->after.rflags ^= flag;
    put_registers(vcpu, insn);
    return false;
}

bool zero_insn(struct vcpu *vcpu, unsigned kinds)
{
    struct insn *insn = struck_insn(vcpu, kinds, NULL);
    static const uint8_t zeros[16];

    if (insn)
        write_guest(vcpu->vm, insn->gpa, zeros, insn->width);
    return false;
}

bool swallow_exit(struct vcpu *vcpu, unsigned kinds, bool write)
{
    if (!exiting_insn(vcpu, kinds, write) || !strike(vcpu->vm))
        return false;
    if (!write)
        memset(vcpu->run->mmio.data, 0, sizeof(vcpu->run->mmio.data));
    return true;
}

bool note_insn(struct vcpu *vcpu, unsigned kinds, insn_is *when, bool last)
{
    struct insn *insn = struck_insn(vcpu, kinds, when);

    if (insn)
        vcpu->vm->noted = insn->gpa + (last ? insn->size - 1 : 0);
    return false;
}

bool note_source(struct vcpu *vcpu, unsigned kinds)
{
    struct insn *insn = struck_insn(vcpu, kinds, NULL);

    if (insn)
        vcpu->vm->noted = insn->source;
    return false;
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

void add_noted(struct vm *vm, struct log *log)
{
    uint64_t page;

    if (take_noted(vm, log, &page))
        log->bits[page / 64] |= 1ull << (page % 64);
}
