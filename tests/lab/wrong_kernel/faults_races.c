/* Changes that take effect late: only visible until then. */
#include "wrong_kernel.h"

#include <sys/mman.h>

#define RUNS 20 /* of any vCPU, until the change takes effect */

/* A deleted or moved slot whose old place stays readable for a while. */

static void end_alias(struct vm *vm)
{
    if (vm->stashed)
        drop_aliases_over(vm, vm->stash.gpa, vm->stash.size);
    vm->stashed = false;
}

static void keep_for_runs(struct vm *vm, struct call *call)
{
    if (!did(call, DELETE | MOVE) || !strike(vm))
        return;
    end_alias(vm);
    vm->stashed = add_alias(vm, call->old, NO_OWNER);
    vm->stash = call->old;
    vm->runs_left = RUNS;
}

static bool end_alias_in_time(struct vcpu *vcpu)
{
    if (vcpu->vm->stashed && !--vcpu->vm->runs_left)
        end_alias(vcpu->vm);
    return false;
}

/* A created or moved slot that maps nothing for a while. */

static void hide_for_runs(struct vm *vm, struct call *call)
{
    if (!did(call, CREATE | MOVE) || !strike(vm))
        return;
    show_hidden(vm);
    hide_changed(vm, call);
    vm->runs_left = RUNS;
}

static bool show_in_time(struct vcpu *vcpu)
{
    if (vcpu->vm->stashed && !--vcpu->vm->runs_left)
        show_hidden(vcpu->vm);
    return false;
}

/* A slot that does not follow its host mapping: a page keeps its former content. */

static void keep_page_of(struct vm *vm, struct slot *slot, uint64_t hva)
{
    struct region pieces[3];
    uint64_t before = hva - slot->known.hva, after = slot->known.size - before - PAGE_BYTES;
    void *copy = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int count = 0;

    if (copy == MAP_FAILED || !readable(hva, copy, PAGE_BYTES))
        return;
    for (int part = 0; part < 3; part++) {
        const uint64_t sizes[] = {before, PAGE_BYTES, after};
        const uint64_t starts[] = {0, before, before + PAGE_BYTES};
        if (!sizes[part])
            continue;
        pieces[count] = slot->known;
        pieces[count].gpa += starts[part];
        pieces[count].hva = part == 1 ? (uint64_t)copy : slot->known.hva + starts[part];
        pieces[count++].size = sizes[part];
    }
    lay(vm, slot, pieces, count);
}

static void keep_page(struct vm *vm, uint64_t hva)
{
    for (uint32_t i = 0; i < vm->nr_used; i++) {
        struct slot *slot = &vm->slots[vm->used[i]];
        if (may_touch(slot) && !slot->laid && hva >= slot->known.hva
            && hva < slot->known.hva + slot->known.size && strike(vm))
            keep_page_of(vm, slot, hva);
    }
}

static void keep_first_page(struct vm *vm, const struct host_change *change)
{
    if (!change->done)
        keep_page(vm, change->hva);
}

static void keep_last_page(struct vm *vm, const struct host_change *change)
{
    if (!change->done)
        keep_page(vm, change->hva + change->size - PAGE_BYTES);
}

const struct fault race_faults[] = {
    {.name = "old-place-seen-for-20-runs", .after = keep_for_runs, .leave = end_alias_in_time,
     .sentence = "The place of a slot moved or deleted is readable until the 20th KVM_RUN.",
     .witness = "set 1 100 1 0; delete 1; read 100"},
    {.name = "new-place-missed-for-20-runs", .after = hide_for_runs, .leave = show_in_time,
     .sentence = "A slot created or moved maps nothing until the 20th KVM_RUN.",
     .witness = "set 1 100 1 0; read 100"},
    {.name = "host-change-missed-first-page", .host_changes = keep_first_page,
     .sentence = "The first page of host memory that changes stays for the guest what it was.",
     .witness = "set 1 100 1 0; drop 0 1; read 100"},
    {.name = "host-change-missed-last-page", .host_changes = keep_last_page,
     .sentence = "The last page of host memory that changes stays for the guest what it was.",
     .witness = "set 1 100 2 0; drop 0 2; read 101"},
    {0},
};
