/* Calls that a VMM needs for itself, answered wrongly whatever the VM: WRONG_CALL=NAME:errno=N,
 * NAME:answer=N or NAME:hang=1, each with :after=N for the N calls before that are right. */
#include "wrong_kernel.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum kind { NONE, ERRNO, ANSWER, HANG };

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
    {"KVM_SET_TSS_ADDR", KVM_SET_TSS_ADDR},
    {"KVM_CREATE_IRQCHIP", KVM_CREATE_IRQCHIP},
    {"KVM_ENABLE_CAP", KVM_ENABLE_CAP},
    {"KVM_CREATE_GUEST_MEMFD", CREATE_GUEST_MEMFD},
    {"KVM_SET_USER_MEMORY_REGION", SET_REGION},
    {"DELETE", SET_REGION},
    {"CREATE", SET_REGION},
    {"MMAP", 0},
};
#define NR_KNOWN (sizeof(known) / sizeof(known[0]))

static size_t chosen = NR_KNOWN;
static enum kind kind;
static long number, spared;
static _Atomic long calls;

static bool concerns(const void *argument)
{
    const struct kvm_userspace_memory_region *region = argument;

    if (!strcmp(known[chosen].name, "DELETE"))
        return region && !region->memory_size;
    if (!strcmp(known[chosen].name, "CREATE"))
        return region && region->memory_size;
    return true;
}

/* Does the call get another answer than the kernel's? Then it is in *result, and errno is set. */
bool answered_wrongly(unsigned long request, const void *argument, int *result)
{
    if (chosen == NR_KNOWN || request != (uint32_t)known[chosen].request || !concerns(argument))
        return false;
    if (++calls <= spared)
        return false;
    while (kind == HANG)
        pause();
    *result = kind == ANSWER ? (int)number : -1;
    if (kind == ERRNO)
        errno = (int)number;
    return true;
}

static __attribute__((constructor)) void read_wrong_call(void)
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
