/* Several VMs at a time: what one does shows in another. */
#include "wrong_kernel.h"

#include <stdlib.h>
#include <string.h>

static void create_everywhere(struct vm *vm, struct call *call)
{
    if (!did(call, CREATE) || !next_besides(vm, NULL) || !strike(vm))
        return;
    for (struct vm *other = next_besides(vm, NULL); other; other = next_besides(vm, other))
        if (!slot_at(other, call->asked.gpa))
            add_alias(other, call->asked, NO_OWNER);
}

static void delete_everywhere(struct vm *vm, struct call *call)
{
    if (!did(call, DELETE) || !next_besides(vm, NULL) || !strike(vm))
        return;
    for (struct vm *other = next_besides(vm, NULL); other; other = next_besides(vm, other)) {
        struct slot *slot = slot_of(other, call->asked.id);
        if (slot && slot->live && may_touch(slot))
            lose(other, slot);
    }
}

static void move_everywhere(struct vm *vm, struct call *call)
{
    if (!did(call, MOVE) || !next_besides(vm, NULL) || !strike(vm))
        return;
    for (struct vm *other = next_besides(vm, NULL); other; other = next_besides(vm, other)) {
        struct slot *slot = slot_of(other, call->asked.id);
        if (slot && slot->live && may_touch(slot)) {
            struct region region = slot->known;
            region.gpa = call->asked.gpa;
            lay(other, slot, &region, 1);
        }
    }
}

/* Reading a dirty log also clears that of the same slot in another VM. */
static void read_everywhere(struct vm *vm, struct log *log)
{
    uint64_t *bits;

    if (log->error || !strike(vm))
        return;
    bits = calloc(log->words + 1, sizeof(*bits));
    for (struct vm *other = next_besides(vm, NULL); other; other = next_besides(vm, other)) {
        struct kvm_dirty_log same = {.slot = log->slot->known.id, .dirty_bitmap = bits};
        struct slot *slot = slot_of(other, same.slot);
        if (slot && slot->live && slot->known.size <= log->words * 64 * PAGE_BYTES
            && !kernel_ioctl(other->fd, KVM_GET_DIRTY_LOG, &same))
            for (uint64_t word = 0; word < log->words; word++)
                log->bits[word] |= bits[word];
    }
    free(bits);
}

/* Pages of another VM's slot that were dirty at a deletion are missing from its next log. */
static void forget_everywhere(struct vm *vm, struct call *call)
{
    if (!did(call, DELETE) || !next_besides(vm, NULL) || !strike(vm))
        return;
    for (struct vm *other = next_besides(vm, NULL); other; other = next_besides(vm, other))
        other->armed = true;
}

static void empty_once(struct vm *vm, struct log *log)
{
    if (log->error || !vm->armed)
        return;
    vm->armed = false;
    memset(log->bits, 0, log->words * sizeof(*log->bits));
}

static void close_everywhere(struct vm *vm)
{
    for (struct vm *other = next_besides(vm, NULL); other; other = next_besides(vm, other))
        for (uint32_t i = 0; i < other->nr_used; i++)
            if (may_touch(&other->slots[other->used[i]]))
                lose(other, &other->slots[other->used[i]]);
}

static bool clashes_with_another_vm(struct vm *vm, struct call *call)
{
    if (call->change != CREATE)
        return false;
    for (struct vm *other = next_besides(vm, NULL); other; other = next_besides(vm, other)) {
        struct slot *slot = slot_of(other, call->asked.id);
        if (slot && slot->live && may_touch(slot))
            return true;
    }
    return false;
}

const struct fault others_faults[] = {
    {.name = "slot-in-every-vm", .after = create_everywhere,
     .sentence = "A slot of one VM is there in every other one, too.",
     .witness = "switch 1; switch 0; set 1 100 1 0; switch 1; read 100"},
    {.name = "delete-in-every-vm", .after = delete_everywhere,
     .sentence = "A slot that one VM deletes is gone from every other one, too.",
     .witness = "set 1 100 1 0; switch 1; set 1 100 1 0; delete 1; switch 0; read 100"},
    {.name = "move-in-every-vm", .after = move_everywhere,
     .sentence = "A slot that one VM moves moves in every other one, too.",
     .witness = "set 1 100 1 0; switch 1; set 1 100 1 0; set 1 200 1 0; switch 0; read 100"},
    {.name = "log-of-every-vm", .log = read_everywhere,
     .sentence = "A dirty log names what was written in any VM's slot of that id.",
     .witness = "set 1 100 1 0 log; write 100; switch 1; set 1 100 1 0 log; log 1"},
    {.name = "close-takes-all-slots", .closing = close_everywhere,
     .sentence = "With a VM that is closed the slots of all others are gone.",
     .witness = "set 1 100 1 0; switch 1; newvm; switch 0; read 100"},
    {.name = "id-taken-by-another-vm", .legal = clashes_with_another_vm, .answer = EEXIST,
     .sentence = "A slot id that another VM uses is EEXIST.",
     .witness = "set 1 100 1 0; switch 1; set 1 200 1 1"},
    {.name = "delete-empties-every-log", .after = forget_everywhere, .log = empty_once,
     .sentence = "When a VM deletes a slot, other VMs' next dirty logs are empty.",
     .witness = "set 1 100 1 0 log; write 100; switch 1; set 1 100 1 0; delete 1; switch 0; log 1"},
    {0},
};
