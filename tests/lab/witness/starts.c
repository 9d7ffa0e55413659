/* A guest in 64-bit mode with its own page tables, in the pool. */
#include "witness.h"

#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define LEVELS 4
#define MAPPED 8

enum { STORES = 4, LOADS = 5, CODE = 0x900, HANDLER = 0x800 };

/* [rdi] = ecx; and, of the second from here on, eax = [rdi]; out 0xe1, eax; hlt. */
static const uint8_t stores[] = {0x89, 0x0f, 0x8b, 0x07, 0xe7, 0xe1, 0xf4};

static void put(uint64_t page, uint64_t index, uint64_t value)
{
    memcpy(pool + page * PAGE + index * sizeof(value), &value, sizeof(value));
}

/* Page tables at a page of the pool, for a gpa: addresses from 0 on are pages from a target on. */
static void lay_tables(uint64_t page, uint64_t gpa, uint64_t target, uint64_t bits)
{
    memset(pool + page * PAGE, 0, LEVELS * PAGE);
    for (uint64_t level = 0; level < LEVELS - 1; level++)
        put(page + level, 0, (gpa + (level + 1) * PAGE) | bits);
    for (uint64_t i = 0; i < MAPPED; i++)
        put(page + LEVELS - 1, i, (target + i * PAGE) | bits);
    memcpy(pool + (page + STORES) * PAGE + CODE, stores, sizeof(stores));
    memcpy(pool + (page + LOADS) * PAGE + CODE, stores + 2, sizeof(stores) - 2);
    memcpy(shadow + page * PAGE, pool + page * PAGE, (LOADS + 1) * PAGE);
}

static void enter(int vcpu, uint64_t tables, uint64_t rip, uint64_t rdi, uint64_t rcx)
{
    struct kvm_regs registers = {.rip = rip, .rflags = 2, .rdi = rdi, .rcx = rcx};
    struct kvm_sregs special;

    need(ioctl(vcpu, KVM_GET_SREGS, &special) == 0, "KVM_GET_SREGS");
    special.cr0 = 0x80010031;
    special.cr3 = tables;
    special.cr4 = 1 << 5;
    special.efer = 1 << 8 | 1 << 10;
    special.cs.base = 0;
    special.cs.limit = special.ds.limit = special.ss.limit = 0xffffffff;
    special.cs.g = special.ds.g = special.ss.g = special.cs.l = 1;
    special.idt.limit = 0;
    need(ioctl(vcpu, KVM_SET_SREGS, &special) == 0, "KVM_SET_SREGS");
    need(ioctl(vcpu, KVM_SET_REGS, &registers) == 0, "KVM_SET_REGS");
}

static void show(struct kvm_run *run)
{
    uint32_t word = 0;

    if (run->exit_reason == KVM_EXIT_IO)
        memcpy(&word, (char *)run + run->io.data_offset, sizeof(word));
    printf(" exit %u %x", run->exit_reason, word);
}

/* On a vCPU of its own, which goes with the VM. */
static void start(int id, uint64_t tables, uint64_t rip, uint64_t rdi, uint64_t rcx)
{
    size_t size = (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, id);
    struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);

    need(vcpu >= 0 && run != MAP_FAILED, "a vCPU");
    set_cpuid(vcpu);
    enter(vcpu, tables, rip, rdi, rcx);
    for (int exits = 0; exits < 4 && !ioctl(vcpu, KVM_RUN, 0); exits++) {
        if (run->exit_reason != KVM_EXIT_MMIO)
            break;
        printf(" mmio %llx/%u", (unsigned long long)run->mmio.phys_addr, run->mmio.len);
    }
    show(run);
    printf(" bits");
    for (uint64_t level = 0; level < LEVELS; level++)
        for (uint64_t i = 0; i < 3; i++)
            printf("%s%02x", i ? "" : " ", pool[level * PAGE + i * 8]);
    munmap(run, size);
    close(vcpu);
}

/* Real mode: a table at a page of the pool, after it a program and a handler, which is at a gpa. */
static void lay_gates(uint64_t page, uint64_t handler)
{
    static const uint8_t program[] = {0xcd, 0x20, 0xf4};
    uint8_t code[] = {0x66, 0xb8, (uint8_t)page, 0, 0, 0x10, 0x66, 0xe7, 0xe1, 0xf4};
    uint16_t gate[] = {HANDLER, (uint16_t)(handler >> 4)};

    memset(pool + page * PAGE, 0, PAGE);
    memcpy(pool + page * PAGE + 0x20 * sizeof(gate), gate, sizeof(gate));
    memcpy(pool + (page + 1) * PAGE + CODE, program, sizeof(program));
    memcpy(pool + (page + 2) * PAGE + HANDLER, code, sizeof(code));
    memcpy(shadow + page * PAGE, pool + page * PAGE, 3 * PAGE);
}

static void enter_real(int vcpu, uint64_t code, uint64_t stack, uint64_t table)
{
    struct kvm_regs registers = {.rip = code % PAGE, .rflags = 2, .rsp = stack};
    struct kvm_sregs special;

    need(ioctl(vcpu, KVM_GET_SREGS, &special) == 0, "KVM_GET_SREGS");
    special.cs.base = code & -PAGE;
    special.cs.selector = (uint16_t)(special.cs.base >> 4);
    special.idt.base = table;
    special.idt.limit = PAGE - 1;
    need(ioctl(vcpu, KVM_SET_SREGS, &special) == 0, "KVM_SET_SREGS");
    need(ioctl(vcpu, KVM_SET_REGS, &registers) == 0, "KVM_SET_REGS");
}

static void interrupt(int id, uint64_t code, uint64_t stack, uint64_t table)
{
    size_t size = (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, id);
    struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);

    need(vcpu >= 0 && run != MAP_FAILED, "a vCPU");
    enter_real(vcpu, code, stack, table);
    limit_run(20000); /* Without a table some kernels never exit. */
    if (ioctl(vcpu, KVM_RUN, 0) == 0)
        show(run);
    limit_run(0);
    munmap(run, size);
    close(vcpu);
}

int play_start(char words[][32], int count)
{
    static int next_id;

    if (count == 5 && !strcmp(words[0], "tables"))
        lay_tables(pages(words[1]) / PAGE, pages(words[2]), pages(words[3]),
                   strtoull(words[4], NULL, 16));
    else if (count >= 3 && !strcmp(words[0], "start"))
        start(100 + next_id++ % 64, pages(words[1]), pages(words[2]),
              count > 3 ? pages(words[3]) : 0, count > 4 ? strtoull(words[4], NULL, 16) : 0);
    else if (count == 3 && !strcmp(words[0], "gates"))
        lay_gates(pages(words[1]) / PAGE, pages(words[2]));
    else if (count == 4 && !strcmp(words[0], "interrupt"))
        interrupt(100 + next_id++ % 64, pages(words[1]), pages(words[2]), pages(words[3]));
    else
        return 0;
    return 1;
}
