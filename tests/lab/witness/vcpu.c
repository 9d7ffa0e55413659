/* A vCPU, and what its guest does in real mode. */
#include "witness.h"

#include <errno.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#define MMIO_ANSWER 0x5a5a0000u

/* Real mode with 32-bit addresses and operands: eax = [ebx]; hlt, and [ebx] = eax; hlt. */
static const uint8_t code[] = {0x67, 0x66, 0x8b, 0x03, 0xf4, 0, 0, 0, 0x67, 0x66, 0x89, 0x03, 0xf4};
enum { READ_ENTRY = 0, WRITE_ENTRY = 8 };

int vcpu = -1, vcpu_id;
struct kvm_run *run;
struct kvm_dirty_gfn *ring;
uint64_t ring_bytes;

static size_t run_size;

void prepare_guest(void)
{
    run_size = (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    memcpy(guest, code, sizeof(code));
}

void unmap_run(struct kvm_run *which)
{
    munmap(which, run_size);
}

/* Looks for what the guest wrote in all memory that it could have reached. */
void show_written_pages(void)
{
    for (uint64_t page = 0; page < POOL_PAGES; page++) {
        uint8_t *now = pool + page * PAGE, *before = shadow + page * PAGE;
        if (!may_look_at(page) || !memcmp(now, before, PAGE))
            continue;
        printf(" page %llx", (unsigned long long)page);
        memcpy(before, now, PAGE);
    }
}

static void show_mmio(uint32_t *answer)
{
    uint32_t value = 0;

    memcpy(&value, run->mmio.data, run->mmio.len);
    printf(" mmio %s %llx/%u", run->mmio.is_write ? "write" : "read",
           (unsigned long long)run->mmio.phys_addr, run->mmio.len);
    if (run->mmio.is_write)
        printf(" %x", value);
    else
        memcpy(run->mmio.data, answer, sizeof(*answer));
}

/* A vCPU is created on first use: some capabilities must be enabled before. */
int need_vcpu(void)
{
    struct kvm_sregs special;

    if (vcpu >= 0)
        return vcpu;
    vcpu = ioctl(vm, KVM_CREATE_VCPU, vcpu_id);
    need(vcpu >= 0, "KVM_CREATE_VCPU");
    run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    need(run != MAP_FAILED, "mmap of kvm_run");
    need(ioctl(vcpu, KVM_GET_SREGS, &special) == 0, "KVM_GET_SREGS");
    special.cs.base = GUEST_GPA;
    special.ds.limit = special.es.limit = special.ss.limit = 0xffffffff;
    special.ds.g = special.es.g = special.ss.g = special.ss.db = 1;
    need(ioctl(vcpu, KVM_SET_SREGS, &special) == 0, "KVM_SET_SREGS");
    if (!ring_bytes)
        return vcpu;
    ring = mmap(NULL, ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu,
                KVM_DIRTY_LOG_PAGE_OFFSET * PAGE);
    need(ring != MAP_FAILED, "mmap of the dirty ring");
    return vcpu;
}

static void access_gpa(uint64_t gpa, int write)
{
    uint32_t answer = MMIO_ANSWER;
    struct kvm_regs registers = {
        .rip = write ? WRITE_ENTRY : READ_ENTRY, .rflags = 2, .rbx = gpa, .rax = 0x77770001,
    };

    need_vcpu();
    need(ioctl(vcpu, KVM_SET_REGS, &registers) == 0, "KVM_SET_REGS");
    for (int exits = 0; exits < 8; exits++) {
        if (ioctl(vcpu, KVM_RUN, 0)) {
            show_error(errno);
            return;
        }
        if (run->exit_reason != KVM_EXIT_MMIO)
            break;
        show_mmio(&answer);
    }
    need(ioctl(vcpu, KVM_GET_REGS, &registers) == 0, "KVM_GET_REGS");
    printf(" exit %u eax %llx", run->exit_reason, (unsigned long long)registers.rax);
    show_written_pages();
}

static uint64_t number(char words[][32], int count, int at)
{
    return at < count ? strtoull(words[at], NULL, 16) : 0;
}

static void wake(int signal)
{
    (void)signal;
}

/* Some instructions never exit outside memory: that is a result, too. */
void limit_run(int microseconds)
{
    const struct itimerval every = {
        .it_value.tv_usec = microseconds, .it_interval.tv_usec = microseconds,
    };
    struct sigaction action = {.sa_handler = wake};

    sigaction(SIGPROF, &action, NULL);
    setitimer(ITIMER_PROF, &every, NULL);
}

/* insn CODE GPA [BX AX CX DX SI down]: one instruction, and a halt after it. */
static void run_insn(char words[][32], int count)
{
    uint64_t gpa = number(words, count, 2);
    uint8_t *to = guest + 0x8000;
    uint32_t sum = 0;
    struct kvm_regs registers = {
        .rip = 0x8000, .rflags = count > 8 ? 0x402 : 2, .rdi = gpa,
        .rbx = number(words, count, 3), .rax = number(words, count, 4),
        .rcx = number(words, count, 5), .rdx = number(words, count, 6),
        .rsi = number(words, count, 7), .rbp = 0x77, .rsp = gpa + 0x20,
    };

    for (const char *digits = words[1]; *digits; digits += 2)
        sscanf(digits, "%2hhx", to++);
    *to = 0xf4;
    need_vcpu();
    need(ioctl(vcpu, KVM_SET_REGS, &registers) == 0, "KVM_SET_REGS");
    limit_run(100000);
    for (int exits = 0; exits < 16; exits++) {
        if (ioctl(vcpu, KVM_RUN, 0)) {
            limit_run(0);
            show_error(errno);
            return;
        }
        if (run->exit_reason == KVM_EXIT_IO) {
            uint8_t *at = (uint8_t *)run + run->io.data_offset;
            printf(" port %u*%u %02x", run->io.count, run->io.size, at[0]);
            if (run->io.direction == KVM_EXIT_IO_IN)
                memset(at, 0x3c, run->io.count * run->io.size);
            continue;
        }
        if (run->exit_reason != KVM_EXIT_MMIO)
            break;
        printf(" mmio %s %llx/%u", run->mmio.is_write ? "write" : "read",
               (unsigned long long)run->mmio.phys_addr, run->mmio.len);
        for (unsigned i = 0; i < run->mmio.len && run->mmio.is_write; i++)
            printf("%s%02x", i ? "" : " ", run->mmio.data[i]);
        if (!run->mmio.is_write)
            memset(run->mmio.data, 0x5a, sizeof(run->mmio.data));
    }
    limit_run(0);
    need(ioctl(vcpu, KVM_GET_REGS, &registers) == 0, "KVM_GET_REGS");
    for (uint64_t i = 0; i < POOL_PAGES * PAGE; i++)
        sum = (sum ^ pool[i]) * 16777619;
    printf(" exit %u ax %x bx %x cx %x sp %x bp %x si %x di %x flags %x sum %x", run->exit_reason,
           (uint32_t)registers.rax, (uint32_t)registers.rbx, (uint32_t)registers.rcx,
           (uint32_t)registers.rsp, (uint32_t)registers.rbp, (uint32_t)registers.rsi,
           (uint32_t)registers.rdi,
           (uint32_t)registers.rflags & 0x8d5, sum);
    show_written_pages();
}

void drop_vcpu(void)
{
    if (vcpu < 0)
        return;
    if (ring)
        munmap(ring, ring_bytes);
    unmap_run(run);
    close(vcpu);
    vcpu = -1;
    run = NULL;
    ring = NULL;
}

/* cpuid: KVM's emulator accepts some instructions only if CPUID has them. */
static void describe_processor(void)
{
    need_vcpu();
    set_cpuid(vcpu);
}

int play_guest(char words[][32], int count)
{
    if (count == 2 && (!strcmp(words[0], "read") || !strcmp(words[0], "write")))
        access_gpa(gpa_of(words[1]), words[0][0] == 'w');
    else if (count == 1 && !strcmp(words[0], "second"))
        vcpu_id = 1;
    else if (count == 1 && !strcmp(words[0], "cpuid"))
        describe_processor();
    else if (count >= 3 && !strcmp(words[0], "insn"))
        run_insn(words, count);
    else
        return 0;
    return 1;
}
