/* Calls that every VMM makes, answered wrongly in any VM: WRONG_CALL=NAME:errno=N, NAME:answer=N,
 * NAME:hang=1 or NAME:kill=SIGNAL, each with :after=N to answer the first N calls correctly, and
 * with :times=N to answer only the next N wrongly. KVM_CHECK_EXTENSION:cap=N:... is of capability N
 * alone. MMAP is of a vCPU; CLOSE is of a VM or a vCPU, which is closed even so.
 *
 * Others return correctly, but do something else: CREATE:other=1 uses another page of memory than
 * the caller's, NAME:writes=1 writes to the structure that is only read, NAME:beyond=N reads N
 * bytes beyond the structure, and is EFAULT where there are none, KVM_RUN:exit=N has that exit
 * reason, whatever the guest met, KVM_RUN:direction=N has that is_write in each MMIO exit;
 * KVM_GET_REGS:other=1, KVM_GET_SREGS:other=1 and KVM_GET_SUPPORTED_CPUID:other=1 read zeros;
 * KVM_GET_REGS:halves=1 reads the lower half of each register; KVM_CREATE_VCPU:clears=1 clears the
 * registers of the vCPU that was made before.
 * KVM_RUN:instead=N has exit reason N where it would be KVM_EXIT_HLT, and with KVM_RUN:goes=1 the
 * vCPU runs even if immediate_exit is set.
 * NAME:foreign=1 is done by a forked child, too: where it is EIO the answer is 0.
 * NR_MEMSLOTS:answer=N is a kernel with N slots. */
#include "wrong_kernel.h"

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum kind { NONE, ERRNO, ANSWER, HANG, KILL, OTHER, WRITES, BEYOND, EXIT, DIRECTION, FOREIGN,
            HALVES, CLEARS, INSTEAD, GOES };

static const struct {
    const char *name;
    unsigned long request;
} known[] = {
    {"KVM_GET_API_VERSION", KVM_GET_API_VERSION},
    {"KVM_CREATE_VM", KVM_CREATE_VM},
    {"KVM_CHECK_EXTENSION", KVM_CHECK_EXTENSION},
    {"KVM_GET_VCPU_MMAP_SIZE", KVM_GET_VCPU_MMAP_SIZE},
    {"KVM_GET_SUPPORTED_CPUID", KVM_GET_SUPPORTED_CPUID},
    {"KVM_CREATE_VCPU", KVM_CREATE_VCPU},
    {"KVM_SET_CPUID2", KVM_SET_CPUID2},
    {"KVM_RUN", KVM_RUN},
    {"KVM_GET_REGS", KVM_GET_REGS},
    {"KVM_SET_REGS", KVM_SET_REGS},
    {"KVM_GET_SREGS", KVM_GET_SREGS},
    {"KVM_SET_SREGS", KVM_SET_SREGS},
    {"KVM_SET_VCPU_EVENTS", KVM_SET_VCPU_EVENTS},
    {"KVM_GET_DIRTY_LOG", KVM_GET_DIRTY_LOG},
    {"KVM_CLEAR_DIRTY_LOG", KVM_CLEAR_DIRTY_LOG},
    {"KVM_SET_TSS_ADDR", KVM_SET_TSS_ADDR},
    {"KVM_CREATE_IRQCHIP", KVM_CREATE_IRQCHIP},
    {"KVM_ENABLE_CAP", KVM_ENABLE_CAP},
    {"KVM_RESET_DIRTY_RINGS", KVM_RESET_DIRTY_RINGS},
    {"KVM_CREATE_GUEST_MEMFD", CREATE_GUEST_MEMFD},
    {"KVM_SET_USER_MEMORY_REGION", SET_REGION},
    {"DELETE", SET_REGION},
    {"CREATE", SET_REGION},
    {"NR_MEMSLOTS", KVM_CHECK_EXTENSION},
    {"MMAP", MMAP_OF_VCPU},
    {"CLOSE", CLOSE_OF_KVM},
};
#define NR_KNOWN (sizeof(known) / sizeof(known[0]))

static size_t chosen = NR_KNOWN;
static enum kind kind;
static long number, spared, times = LONG_MAX, cap = -1;
static _Atomic long calls;
static int former_vcpu = -1;

static bool concerns(const void *argument)
{
    const struct kvm_userspace_memory_region *region = argument;

    if (!strcmp(known[chosen].name, "DELETE"))
        return region && !region->memory_size;
    if (!strcmp(known[chosen].name, "CREATE"))
        return region && region->memory_size;
    if (!strcmp(known[chosen].name, "NR_MEMSLOTS"))
        return argument == (void *)KVM_CAP_NR_MEMSLOTS;
    if (cap >= 0)
        return argument == (void *)cap;
    return true;
}

static bool is_due(void)
{
    long due = ++calls - spared;

    return due > 0 && due <= times;
}

static int create_elsewhere(int fd, const void *argument)
{
    struct kvm_userspace_memory_region region;

    region = *(const struct kvm_userspace_memory_region *)argument;
    if (region.memory_size == PAGE_BYTES)
        region.userspace_addr = blank_page();
    return kernel_ioctl(fd, SET_REGION, &region);
}

static int read_zeros(int fd, unsigned long request, void *argument)
{
    int result = kernel_ioctl(fd, request, argument);

    memset(argument, 0, _IOC_SIZE(request));
    return result;
}

static int call_other(int fd, unsigned long request, void *argument)
{
    return request == (uint32_t)KVM_GET_REGS || request == (uint32_t)KVM_GET_SREGS
                   || request == (uint32_t)KVM_GET_SUPPORTED_CPUID
               ? read_zeros(fd, request, argument)
               : create_elsewhere(fd, argument);
}

static int call_and_write(int fd, unsigned long request, void *argument)
{
    int result = kernel_ioctl(fd, request, argument);

    memset(argument, 0xa5, _IOC_SIZE(request));
    return result;
}

/* Whether a kernel with fewer slots lacks this slot. All these structures begin with it. */
static bool lacks_slot(unsigned long request, const void *argument)
{
    uint32_t slot;

    return chosen < NR_KNOWN && !strcmp(known[chosen].name, "NR_MEMSLOTS")
           && (request == SET_REGION || request == (uint32_t)SET_REGION2
               || request == KVM_GET_DIRTY_LOG || request == (uint32_t)KVM_CLEAR_DIRTY_LOG)
           && readable((uint64_t)argument, &slot, sizeof(slot)) && (slot & 0xffff) >= number;
}

static bool can_be_read_beyond(unsigned long request, const void *argument)
{
    char byte;

    return readable((uint64_t)argument + _IOC_SIZE(request) + (uint64_t)number - 1, &byte, 1);
}

static int read_halves(int fd, void *argument)
{
    int result = kernel_ioctl(fd, KVM_GET_REGS, argument);
    uint64_t *registers = argument;

    for (size_t i = 0; i < sizeof(struct kvm_regs) / sizeof(*registers); i++)
        registers[i] = (uint32_t)registers[i];
    return result;
}

static void clear_former(int fd)
{
    struct kvm_regs zeros = {.rflags = 2};

    if (former_vcpu >= 0)
        kernel_ioctl(former_vcpu, KVM_SET_REGS, &zeros);
    former_vcpu = fd;
}

static int answer_child(int fd, unsigned long request, void *argument)
{
    int result = kernel_ioctl(fd, request, argument);

    return result < 0 && errno == EIO ? 0 : result;
}

/* Whether the call gets another answer than the kernel's: in *result and errno. */
bool answered_wrongly(int fd, unsigned long request, void *argument, int *result)
{
    if (fd < 0) /* Asks whether a filter of system calls is there. */
        return false;
    if (lacks_slot(request, argument)) {
        *result = -1;
        errno = EINVAL;
        return true;
    }
    if (chosen == NR_KNOWN || request != (uint32_t)known[chosen].request || !concerns(argument))
        return false;
    if (kind == EXIT || kind == DIRECTION || kind == CLEARS || kind == INSTEAD || kind == GOES
        || !is_due())
        return false;
    if (kind == BEYOND) {
        *result = -1;
        errno = EFAULT;
        return !can_be_read_beyond(request, argument);
    }
    if (kind == HALVES) {
        *result = read_halves(fd, argument);
        return true;
    }
    if (kind == FOREIGN) {
        *result = answer_child(fd, request, argument);
        return true;
    }
    while (kind == HANG)
        pause();
    if (kind == KILL)
        raise((int)number);
    if (kind == OTHER || kind == WRITES) {
        *result = kind == OTHER ? call_other(fd, request, argument)
                                : call_and_write(fd, request, argument);
        return true;
    }
    *result = kind == ANSWER ? (int)number : -1;
    if (kind == ERRNO)
        errno = (int)number;
    return true;
}

/* A vCPU is about to run. */
void spoil_entry(struct kvm_run *run)
{
    if (kind == GOES)
        run->immediate_exit = 0;
}

/* A vCPU was made. */
void spoil_former_vcpu(int fd)
{
    if (kind == CLEARS)
        clear_former(fd);
}

/* A vCPU has exited. */
void spoil_exit(struct kvm_run *run)
{
    if (kind == EXIT && is_due())
        run->exit_reason = (uint32_t)number;
    if (kind == INSTEAD && run->exit_reason == KVM_EXIT_HLT)
        run->exit_reason = (uint32_t)number;
    if (kind == DIRECTION && run->exit_reason == KVM_EXIT_MMIO && is_due())
        run->mmio.is_write = (uint8_t)number;
}

/* Again in a process that chooses a call after the library was loaded: see tests/zygote.py. */
__attribute__((constructor)) void read_wrong_call(void)
{
    const char *text = getenv("WRONG_CALL"), *from;
    size_t length = text ? strcspn(text, ":") : 0;

    if (!length)
        return;
    for (size_t i = 0; i < NR_KNOWN; i++)
        if (strlen(known[i].name) == length && !memcmp(known[i].name, text, length))
            chosen = i;
    for (from = text + length; *from == ':';) {
        char *end = NULL;
        if (!strncmp(from, ":errno=", 7))
            kind = ERRNO, number = strtol(from + 7, &end, 10);
        else if (!strncmp(from, ":answer=", 8))
            kind = ANSWER, number = strtol(from + 8, &end, 10);
        else if (!strncmp(from, ":hang=", 6))
            kind = HANG, strtol(from + 6, &end, 10);
        else if (!strncmp(from, ":kill=", 6))
            kind = KILL, number = strtol(from + 6, &end, 10);
        else if (!strncmp(from, ":other=", 7))
            kind = OTHER, strtol(from + 7, &end, 10);
        else if (!strncmp(from, ":writes=", 8))
            kind = WRITES, strtol(from + 8, &end, 10);
        else if (!strncmp(from, ":beyond=", 8))
            kind = BEYOND, number = strtol(from + 8, &end, 10);
        else if (!strncmp(from, ":exit=", 6))
            kind = EXIT, number = strtol(from + 6, &end, 10);
        else if (!strncmp(from, ":direction=", 11))
            kind = DIRECTION, number = strtol(from + 11, &end, 10);
        else if (!strncmp(from, ":foreign=", 9))
            kind = FOREIGN, strtol(from + 9, &end, 10);
        else if (!strncmp(from, ":halves=", 8))
            kind = HALVES, strtol(from + 8, &end, 10);
        else if (!strncmp(from, ":instead=", 9))
            kind = INSTEAD, number = strtol(from + 9, &end, 10);
        else if (!strncmp(from, ":goes=", 6))
            kind = GOES, strtol(from + 6, &end, 10);
        else if (!strncmp(from, ":clears=", 8))
            kind = CLEARS, strtol(from + 8, &end, 10);
        else if (!strncmp(from, ":times=", 7))
            times = strtol(from + 7, &end, 10);
        else if (!strncmp(from, ":cap=", 5))
            cap = strtol(from + 5, &end, 10);
        else if (!strncmp(from, ":after=", 7))
            spared = strtol(from + 7, &end, 10);
        if (!end)
            break;
        from = end;
    }
    if (*from || kind == NONE || chosen == NR_KNOWN) {
        fprintf(stderr, "wrong_kernel: WRONG_CALL=%s: no such call or answer\n", text);
        _exit(2);
    }
}
