/* Faults that show only in a combination: of a value with a flag, of two calls, of two VMs. */
#include "wrong_kernel.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static void accept_readonly_unaligned(struct vm *vm, struct call *call)
{
    bool readonly = call->asked.flags & KVM_MEM_READONLY;

    if (call->refusal == HVA_UNALIGNED && readonly && call->asked.size && strike(vm))
        call->error = 0;
}

static void accept_log_of_large(struct vm *vm, struct log *log)
{
    if (log->error == ENOENT && log->pages > 64 && strike(vm))
        log->error = 0;
}

static int lose_range(struct vm *vm, unsigned long request, void *argument)
{
    if (request == KVM_REGISTER_COALESCED_MMIO && strike(vm))
        return 0;
    return forward_device(vm, request, argument);
}

/* Gpas of eventfds are not 0: vm->noted is that of the last one that ended. */
static int lose_returning_eventfd(struct vm *vm, unsigned long request, void *argument)
{
    const struct kvm_ioeventfd *event = argument;
    int error;

    if (request != KVM_IOEVENTFD)
        return forward_device(vm, request, argument);
    if (event->flags & KVM_IOEVENTFD_FLAG_DEASSIGN) {
        error = forward_device(vm, request, argument);
        vm->noted = error ? 0 : event->addr;
        return error;
    }
    if (vm->noted == event->addr && strike(vm))
        return 0;
    vm->noted = 0;
    return forward_device(vm, request, argument);
}

static bool same_place(const struct region *one, const struct region *other)
{
    return one->gpa == other->gpa && one->hva == other->hva;
}

static void delete_in_all_vms(struct vm *vm, struct call *call)
{
    if (!did(call, DELETE))
        return;
    for (struct vm *other = next_besides(vm, NULL); other; other = next_besides(vm, other)) {
        struct slot *slot = slot_of(other, call->asked.id);
        if (slot && slot->live && may_touch(slot) && same_place(&slot->known, &call->old)
            && strike(vm))
            lose(other, slot);
    }
}

static bool is_in_another_vm(struct vm *vm, struct call *call)
{
    if (call->change != CREATE)
        return false;
    for (struct vm *other = next_besides(vm, NULL); other; other = next_besides(vm, other)) {
        struct slot *slot = slot_at(other, call->asked.gpa);
        if (slot && slot->known.id != call->asked.id && same_place(&slot->known, &call->asked))
            return true;
    }
    return false;
}

/* The last of several pages that are dropped stays as it was, where a READONLY slot shows it. */
static void keep_last_page(struct vm *vm, const struct host_change *change)
{
    uint64_t last = change->hva + change->size - PAGE_BYTES;

    if (change->kind != HOST_ADVISES || change->detail != MADV_DONTNEED || change->done
        || change->size < 2 * PAGE_BYTES)
        return;
    for (uint32_t i = 0; i < vm->nr_used; i++) {
        struct slot *slot = &vm->slots[vm->used[i]];
        struct region whole = slot->known, parts[3] = {whole, whole, whole};
        void *kept;
        if (!may_touch(slot) || !(whole.flags & KVM_MEM_READONLY) || last <= whole.hva
            || last >= whole.hva + whole.size || !strike(vm))
            continue;
        kept = (void *)syscall(SYS_mmap, NULL, PAGE_BYTES, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        readable(last, kept, PAGE_BYTES);
        parts[0].size = last - whole.hva;
        parts[1].gpa += parts[0].size;
        parts[1].hva = (uint64_t)kept;
        parts[1].size = PAGE_BYTES;
        parts[2].gpa = parts[1].gpa + PAGE_BYTES;
        parts[2].hva = last + PAGE_BYTES;
        parts[2].size = end_of(&whole) - parts[2].gpa;
        lay(vm, slot, parts, parts[2].size ? 3 : 2);
    }
}

static int accept_identity_after_run(struct vm *vm, unsigned long request, uint64_t argument,
                                     int error)
{
    (void)argument;
    if (request == (uint32_t)KVM_SET_IDENTITY_MAP_ADDR && vm->has_run && strike(vm))
        return 0;
    return error;
}

static bool is_readonly_at_zero(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->change == CREATE && !call->asked.hva && call->asked.flags & KVM_MEM_READONLY;
}

static void end_log_of_refused(struct vm *vm, struct call *call)
{
    struct region unlogged = call->old;

    if (call->refusal != MOVE_BEYOND_LAST_GFN || !(unlogged.flags & KVM_MEM_LOG_DIRTY_PAGES)
        || !strike(vm))
        return;
    unlogged.flags &= ~KVM_MEM_LOG_DIRTY_PAGES;
    lay(vm, call->slot, &unlogged, 1);
}

static void lose_gfn_0(struct vm *vm, struct log *log)
{
    if (!log->error && log->words && !log->slot->known.gpa && log->bits[0] & 1 && strike(vm))
        log->bits[0] &= ~1ull;
}

const struct fault combined_faults[] = {
    {.name = "unaligned-hva-of-readonly-accepted", .after = accept_readonly_unaligned,
     .sentence = "A read-only slot may have an hva that is not page aligned.",
     .witness = "set 1 100 1 0+800 ro"},
    {.name = "log-of-large-unlogged-accepted", .log = accept_log_of_large,
     .sentence = "The log of more than 64 pages can be read although there is none.",
     .witness = "set 1 100 41 0; log 1"},
    {.name = "third-range-lost", .device = lose_range, .every = 3,
     .sentence = "Each third coalesced range is not there.",
     .witness = "coalesce 100 1; coalesce 102 1; coalesce 104 1; write 104"},
    {.name = "eventfd-that-comes-back-lost", .device = lose_returning_eventfd,
     .sentence = "An ioeventfd at the gpa of one that ended is not there.",
     .witness = "event 100 4; unevent 100 4; event 100 4; write 100"},
    {.name = "delete-takes-that-of-another-vm", .after = delete_in_all_vms,
     .sentence = "A deletion takes the same slot from other VMs, too.",
     .witness = "set 1 100 1 0; switch 1; set 1 100 1 0; delete 1; switch 0; read 100"},
    {.name = "place-in-another-vm-eexist", .legal = is_in_another_vm, .answer = EEXIST,
     .sentence = "A slot is EEXIST where another VM has the same memory with another id.",
     .witness = "set 1 100 1 0; switch 1; set 2 100 1 0"},
    {.name = "drop-under-readonly-misses-last", .host_changes = keep_last_page,
     .sentence = "Of pages that are dropped a read-only slot still shows the last one.",
     .witness = "set 1 100 2 0 ro; drop 0 2; read 101"},
    {.name = "identity-map-accepted-after-run", .placed = accept_identity_after_run,
     .sentence = "The identity map may be placed once a vCPU has run.",
     .witness = "read 100; identity fffbc000"},
    {.name = "readonly-at-zero-refused", .legal = is_readonly_at_zero, .answer = EINVAL,
     .sentence = "A read-only slot at address 0 is refused.",
     .witness = "set 1 100 1 null ro"},
    {.name = "move-beyond-last-gfn-ends-log", .after = end_log_of_refused,
     .sentence = "A slot that cannot move beyond the last gfn is no longer logged.",
     .witness = "set 1 100 1 0 log; set 1 beyond 1 0 log; log 1"},
    {.name = "gfn-0-never-dirty", .log = lose_gfn_0,
     .sentence = "The page at gfn 0 is not reported.",
     .witness = "set 1 0 1 0 log; write 0; log 1"},
    {0},
};
