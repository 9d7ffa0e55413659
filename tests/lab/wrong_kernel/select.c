/* Which fault is active: WRONG_KERNEL=name[:after=N][:every=N][:joint=1], read for each new
 * VM. Joint occasions are counted for all VMs of the process together. */
#include "wrong_kernel.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint64_t all_occasions;

static const struct fault no_fault = {.name = "none"};

static const struct fault *const tables[] = {
    race_faults, thread_faults,
    answer_faults, call_faults, mapping_faults, sequence_faults, dirty_faults, run_faults,
    memfd_faults, lives_faults, tracking_faults, places_faults, ahead_faults,
    leak_faults, patch_faults, insn_faults, string_faults, port_faults, element_faults, long_faults,
    host_faults,
    others_faults,
    device_faults, beside_faults, start_faults, clock_faults, state_faults, history_faults,
    combined_faults, refusal_faults, condition_faults,
    space_faults, bystander_faults,
};
#define NR_TABLES (sizeof(tables) / sizeof(tables[0]))

static const struct fault *find_fault(const char *name, size_t length)
{
    for (size_t i = 0; i < NR_TABLES; i++)
        for (const struct fault *fault = tables[i]; fault->name; fault++)
            if (strlen(fault->name) == length && !memcmp(fault->name, name, length))
                return fault;
    return NULL;
}

/* A misspelt fault must not look like a correct kernel. */
static void give_up(const char *text)
{
    fprintf(stderr, "wrong_kernel: WRONG_KERNEL=%s: no such fault or parameter\n", text);
    _exit(2);
}

static void read_parameters(struct vm *vm, const char *text, const char *from)
{
    while (*from == ':') {
        char *end = NULL;
        if (!strncmp(from, ":after=", 7))
            vm->sleeps_for = strtoull(from + 7, &end, 10);
        else if (!strncmp(from, ":every=", 7))
            vm->every = strtoull(from + 7, &end, 10);
        else if (!strncmp(from, ":joint=", 7))
            vm->is_joint = strtoull(from + 7, &end, 10) != 0;
        if (!end || end == from + 7 || !vm->every)
            give_up(text);
        from = end;
    }
    if (*from)
        give_up(text);
}

void select_fault(struct vm *vm)
{
    const char *text = getenv("WRONG_KERNEL");
    size_t length = text ? strcspn(text, ":") : 0;

    vm->fault = &no_fault;
    vm->every = 1;
    if (!length)
        return;
    vm->fault = find_fault(text, length);
    if (!vm->fault)
        give_up(text);
    vm->every = vm->fault->every ? vm->fault->every : 1;
    read_parameters(vm, text, text + length);
    vm->awake = !vm->sleeps_for;
}

/* Whether the fault strikes on this occasion. */
bool strike(struct vm *vm)
{
    uint64_t *occasions = vm->is_joint ? &all_occasions : &vm->occasions;

    return vm->awake && ++*occasions % vm->every == 0;
}

/* WRONG_KERNEL=list: name, sentence and witness of each fault, separated by tabs. */
static __attribute__((constructor)) void list_faults(void)
{
    const char *text = getenv("WRONG_KERNEL");

    if (!text || strcmp(text, "list"))
        return;
    for (size_t i = 0; i < NR_TABLES; i++)
        for (const struct fault *fault = tables[i]; fault->name; fault++)
            printf("%s\t%s\t%s\n", fault->name, fault->sentence, fault->witness);
    fflush(stdout);
    _exit(0);
}
