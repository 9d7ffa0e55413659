/* Accesses from 4 GiB on, and internal slots. */
#include "witness.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define STEP (1ull << 21)
#define MAX_CPUID 256
#define PRESENT 0x63
#define LARGE 0x80

/* At the end of the guest's slot; virtual addresses 0 and STEP map two places. */
enum { CODE = 0x1000, PML4 = 0xd000, PDPT = 0xe000, PD = 0xf000 };

/* 64-bit mode: eax = [rbx]; hlt. */
static const uint8_t code[] = {0x8b, 0x03, 0xf4};

static void put_entry(uint64_t offset, uint64_t value)
{
    memcpy(guest + offset, &value, sizeof(value));
}

static void make_tables(uint64_t gpa)
{
    memset(guest + PML4, 0, 3 * PAGE);
    put_entry(PML4, (GUEST_GPA + PDPT) | PRESENT);
    put_entry(PDPT, (GUEST_GPA + PD) | PRESENT);
    put_entry(PD, (GUEST_GPA & -STEP) | PRESENT | LARGE);
    put_entry(PD + 8, (gpa & -STEP) | PRESENT | LARGE);
}

void set_cpuid(int vcpu)
{
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + MAX_CPUID * sizeof(cpuid->entries[0]));

    cpuid->nent = MAX_CPUID;
    need(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) == 0, "KVM_GET_SUPPORTED_CPUID");
    need(ioctl(vcpu, KVM_SET_CPUID2, cpuid) == 0, "KVM_SET_CPUID2");
    free(cpuid);
}

static void enter_long_mode(int vcpu, uint64_t gpa)
{
    struct kvm_regs registers = {
        .rip = (GUEST_GPA % STEP) + CODE, .rflags = 2, .rbx = STEP + gpa % STEP,
    };
    struct kvm_sregs special;

    need(ioctl(vcpu, KVM_GET_SREGS, &special) == 0, "KVM_GET_SREGS");
    special.cr0 = 0x80010031;
    special.cr3 = GUEST_GPA + PML4;
    special.cr4 = 1 << 5;
    special.efer = 1 << 8 | 1 << 10;
    special.cs.base = 0;
    special.cs.limit = special.ds.limit = special.ss.limit = 0xffffffff;
    special.cs.g = special.ds.g = special.ss.g = special.cs.l = 1;
    need(ioctl(vcpu, KVM_SET_SREGS, &special) == 0, "KVM_SET_SREGS");
    need(ioctl(vcpu, KVM_SET_REGS, &registers) == 0, "KVM_SET_REGS");
}

/* On a vCPU of its own, which goes with the VM. */
static void read_high(uint64_t gpa, int id)
{
    size_t size = (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, id);
    struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    struct kvm_regs registers;

    need(vcpu >= 0 && run != MAP_FAILED, "a vCPU");
    memcpy(guest + CODE, code, sizeof(code));
    make_tables(gpa);
    set_cpuid(vcpu);
    enter_long_mode(vcpu, gpa);
    for (int exits = 0; exits < 4 && !ioctl(vcpu, KVM_RUN, 0); exits++) {
        if (run->exit_reason != KVM_EXIT_MMIO)
            break;
        printf(" mmio %llx/%u", (unsigned long long)run->mmio.phys_addr, run->mmio.len);
    }
    need(ioctl(vcpu, KVM_GET_REGS, &registers) == 0, "KVM_GET_REGS");
    printf(" exit %u eax %llx", run->exit_reason, (unsigned long long)registers.rax);
    munmap(run, size);
    close(vcpu);
}

static uint64_t word_of(char words[][32], int count, int index)
{
    return index < count ? strtoull(words[index], NULL, 16) : 0;
}

static void play_exits(int vcpu, struct kvm_run *run)
{
    for (int exits = 0; exits < 16 && !ioctl(vcpu, KVM_RUN, 0); exits++) {
        if (run->exit_reason != KVM_EXIT_MMIO)
            break;
        printf(" mmio %s %llx/%u", run->mmio.is_write ? "write" : "read",
               (unsigned long long)run->mmio.phys_addr, run->mmio.len);
        if (!run->mmio.is_write)
            memset(run->mmio.data, 0x5a, sizeof(run->mmio.data));
    }
}

/* insn64 CODE GPA [BX AX CX DX SI]: one instruction in 64-bit mode, on a vCPU of its own. */
static void run_long(char words[][32], int count, int id)
{
    size_t size = (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, id);
    struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    uint64_t gpa = word_of(words, count, 2), sum = 0;
    uint8_t *to = guest + CODE;
    struct kvm_regs registers;

    need(vcpu >= 0 && run != MAP_FAILED, "a vCPU");
    for (const char *digits = words[1]; *digits; digits += 2)
        sscanf(digits, "%2hhx", to++);
    *to = 0xf4;
    make_tables(gpa);
    set_cpuid(vcpu);
    enter_long_mode(vcpu, gpa);
    need(ioctl(vcpu, KVM_GET_REGS, &registers) == 0, "KVM_GET_REGS");
    registers.rdi = STEP + gpa % STEP;
    registers.rsp = registers.rdi + 0x20;
    registers.rbx = word_of(words, count, 3);
    registers.rax = word_of(words, count, 4);
    registers.rcx = word_of(words, count, 5);
    registers.rdx = word_of(words, count, 6);
    registers.rsi = STEP + word_of(words, count, 7) % STEP;
    need(ioctl(vcpu, KVM_SET_REGS, &registers) == 0, "KVM_SET_REGS");
    play_exits(vcpu, run);
    need(ioctl(vcpu, KVM_GET_REGS, &registers) == 0, "KVM_GET_REGS");
    for (uint64_t i = 0; i < POOL_PAGES * PAGE; i++)
        sum = (uint32_t)((sum ^ pool[i]) * 16777619);
    printf(" exit %u ax %llx bx %llx sp %llx flags %llx sum %llx", run->exit_reason,
           (unsigned long long)registers.rax, (unsigned long long)registers.rbx,
           (unsigned long long)registers.rsp, (unsigned long long)registers.rflags & 0x8d5,
           (unsigned long long)sum);
    munmap(run, size);
    close(vcpu);
}

/* The kernel's own mappings look like shared anonymous memory. */
static int shared_mappings(void)
{
    char line[512];
    int count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");

    need(maps != NULL, "/proc/self/maps");
    while (fgets(line, sizeof(line), maps))
        count += strstr(line, "/dev/zero (deleted)") != NULL;
    fclose(maps);
    return count;
}

static void set_tss(uint64_t gpa)
{
    int before = shared_mappings();

    show_error(ioctl(vm, KVM_SET_TSS_ADDR, gpa) ? errno : 0);
    printf(" mappings %d", shared_mappings() - before);
}

/* On a vCPU of its own, which goes with the VM. */
static void map_ahead(uint64_t gpa, uint64_t size, int id)
{
    uint64_t range[8] = {gpa, size};
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, id);

    need(vcpu >= 0, "a vCPU");
    show_error(ioctl(vcpu, _IOWR(KVMIO, 0xd5, uint64_t[8]), range) ? errno : 0);
    printf(" left %llx from %llx", (unsigned long long)range[1], (unsigned long long)range[0]);
    close(vcpu);
}

static void set_attributes(uint64_t address, uint64_t size, uint64_t bits)
{
    uint64_t wanted[4] = {address, size, bits};

    show_error(ioctl(vm, _IOW(KVMIO, 0xd2, uint64_t[4]), wanted) ? errno : 0);
}

static int event_file = -1;

static void set_event(char words[][32], int count)
{
    struct kvm_ioeventfd wanted = {
        .addr = pages(words[1]), .len = (uint32_t)atoi(words[2]),
        .datamatch = count > 3 ? strtoull(words[3], NULL, 16) : 0,
        .flags = (count > 3 ? KVM_IOEVENTFD_FLAG_DATAMATCH : 0)
            | (words[0][0] == 'u' ? KVM_IOEVENTFD_FLAG_DEASSIGN : 0),
    };

    if (event_file < 0)
        event_file = eventfd(0, EFD_NONBLOCK);
    wanted.fd = event_file;
    show_error(ioctl(vm, KVM_IOEVENTFD, &wanted) ? errno : 0);
}

static void coalesce(char words[][32], bool is_of_ports)
{
    struct kvm_coalesced_mmio_zone zone = {
        .addr = pages(words[1]), .size = (uint32_t)pages(words[2]), .pio = is_of_ports,
    };
    int request = words[0][0] == 'u' ? KVM_UNREGISTER_COALESCED_MMIO : KVM_REGISTER_COALESCED_MMIO;

    show_error(ioctl(vm, (unsigned)request, &zone) ? errno : 0);
}

static void show_kept(void)
{
    struct kvm_coalesced_mmio_ring *ring;

    need_vcpu();
    ring = (void *)((char *)run + KVM_COALESCED_MMIO_PAGE_OFFSET * PAGE);
    if (ring->last >= 170) {
        printf(" kept up to entry %u", ring->last);
        return;
    }
    for (; ring->first != ring->last; ring->first = (ring->first + 1) % 170) {
        struct kvm_coalesced_mmio *entry = &ring->coalesced_mmio[ring->first];
        uint32_t value;
        memcpy(&value, entry->data, sizeof(value));
        printf(" kept %llx/%u %x%s", (unsigned long long)entry->phys_addr, entry->len, value,
               entry->pio ? " as a port" : "");
    }
}

int play_place(char words[][32], int count)
{
    static int next_id;
    uint64_t address = count == 2 ? strtoull(words[1], NULL, 16) : 0;

    if (count >= 3 && (!strcmp(words[0], "event") || !strcmp(words[0], "unevent")))
        set_event(words, count);
    else if ((count == 3 || (count == 4 && !strcmp(words[3], "ports")))
             && (!strcmp(words[0], "coalesce") || !strcmp(words[0], "uncoalesce")))
        coalesce(words, count == 4);
    else if (count == 1 && !strcmp(words[0], "kept"))
        show_kept();
    else if (count == 2 && !strcmp(words[0], "readhigh"))
        read_high(pages(words[1]), 1 + next_id++ % 64);
    else if (count >= 3 && !strcmp(words[0], "insn64"))
        run_long(words, count, 1 + next_id++ % 64);
    else if (count == 4 && !strcmp(words[0], "attribute"))
        set_attributes(pages(words[1]), pages(words[2]), strtoull(words[3], NULL, 16));
    else if (count == 3 && !strcmp(words[0], "ahead"))
        map_ahead(pages(words[1]), pages(words[2]), 1 + next_id++ % 64);
    else if (count == 2 && !strcmp(words[0], "tss"))
        set_tss(address);
    else if (count == 2 && !strcmp(words[0], "identity"))
        show_error(ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &address) ? errno : 0);
    else if (count == 1 && !strcmp(words[0], "irqchip"))
        show_error(ioctl(vm, KVM_CREATE_IRQCHIP, 0) ? errno : 0);
    else if (count == 1 && !strcmp(words[0], "vcpu"))
        need_vcpu();
    else
        return 0;
    return 1;
}
