/* The mirror: the slots as the caller knows them, given the answers of a correct kernel. */
#include "wrong_kernel.h"

#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define USER_SPACE_END 0x7ffffffff000ull
#define MAX_PAGES 0x7fffffffull

struct slot *slot_of(struct vm *vm, uint32_t id)
{
    uint32_t low = id & 0xffff, space = id >> 16;

    if (low >= vm->nr_ids || space >= vm->nr_spaces)
        return NULL;
    return &vm->slots[space * SLOTS_PER_SPACE + low];
}

/* Copies through a pipe, where the kernel is made without CONFIG_CROSS_MEMORY_ATTACH. */
static bool copied(const void *from, void *to, size_t size)
{
    bool done = false;
    int ends[2];

    if (pipe(ends))
        return false;
    done = write(ends[1], from, size) == (ssize_t)size
        && read(ends[0], to, size) == (ssize_t)size;
    syscall(SYS_close, ends[0]);
    syscall(SYS_close, ends[1]);
    return done;
}

/* Copies memory that may be inaccessible: a bad pointer is for the kernel to refuse. */
bool readable(uint64_t hva, void *copy, size_t size)
{
    struct iovec to = {.iov_base = copy, .iov_len = size};
    struct iovec from = {.iov_base = (void *)hva, .iov_len = size};

    if (process_vm_readv(getpid(), &to, 1, &from, 1, 0) == (ssize_t)size)
        return true;
    return errno == ENOSYS && copied((void *)hva, copy, size);
}

/* Writes to memory that may be protected: if it is, nothing happens. */
void overwrite(uint64_t hva, void *data, size_t size)
{
    struct iovec from = {.iov_base = data, .iov_len = size};
    struct iovec to = {.iov_base = (void *)hva, .iov_len = size};

    if (process_vm_writev(getpid(), &from, 1, &to, 1, 0) < 0 && errno == ENOSYS)
        copied(data, (void *)hva, size);
}

/* The first checks, which look only at the call. */
static enum refusal refusal_of_values(const struct vm *vm, const struct call *call)
{
    const struct region *asked = &call->asked;
    uint32_t known_flags = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY;

    if (call->request == SET_REGION2)
        known_flags |= FLAG_GUEST_MEMFD;
    if (call->asked.flags & ~known_flags)
        return UNKNOWN_FLAG;
    if ((asked->id & 0xffff) >= vm->nr_ids)
        return BAD_ID;
    if (asked->size % PAGE_BYTES)
        return SIZE_UNALIGNED;
    if (asked->gpa % PAGE_BYTES)
        return GPA_UNALIGNED;
    if (asked->hva % PAGE_BYTES)
        return HVA_UNALIGNED;
    if (asked->size > USER_SPACE_END || asked->hva > USER_SPACE_END - asked->size)
        return HVA_OF_KERNEL;
    if (!call->slot)
        return BAD_SPACE;
    if (asked->size && asked->gpa + asked->size < asked->gpa + 1)
        return WRAPS;
    if (asked->size / PAGE_BYTES > MAX_PAGES)
        return TOO_MANY_PAGES;
    return NOT_REFUSED;
}

/* The later checks, which compare it with the slot that has the id. */
static enum refusal refusal_of_change(const struct call *call)
{
    const struct region *asked = &call->asked, *old = &call->old;

    if (!asked->size)
        return call->slot->live ? NOT_REFUSED : ABSENT_DELETE;
    if (!call->slot->live)
        return NOT_REFUSED;
    if (asked->hva != old->hva)
        return HVA_CHANGED;
    if (asked->size != old->size)
        return SIZE_CHANGED;
    if ((asked->flags ^ old->flags) & KVM_MEM_READONLY)
        return READONLY_TOGGLED;
    return NOT_REFUSED;
}

static enum change change_of(const struct call *call)
{
    if (call->refusal)
        return REFUSED;
    if (!call->asked.size)
        return DELETE;
    if (!call->slot->live)
        return CREATE;
    if (call->asked.gpa != call->old.gpa)
        return MOVE;
    return call->asked.flags != call->old.flags ? FLAGS_ONLY : NOTHING;
}

/* Reads the caller's structure and finds what it asks for; false if it cannot be read. */
bool open_call(struct vm *vm, struct call *call, unsigned long request, const void *argument)
{
    size_t size = request == SET_REGION2 ? sizeof(struct region2) : sizeof(struct region);

    memset(call, 0, sizeof(*call));
    call->request = request;
    if (!readable((uint64_t)argument, &call->sent, size)) {
        call->refusal = BAD_POINTER;
        return false;
    }
    call->asked = call->sent.region;
    call->slot = slot_of(vm, call->asked.id);
    if (call->slot && call->slot->live)
        call->old = call->slot->known;
    call->refusal = refusal_of_values(vm, call);
    if (!call->refusal)
        call->refusal = refusal_of_change(call);
    call->change = change_of(call);
    return true;
}

/* Names refusals that only the kernel's answer reveals. */
void name_refusal(struct call *call)
{
    bool move = call->change == MOVE;

    if (call->error == EIO)
        call->refusal = FOREIGN_PROCESS;
    else if (call->refusal || !call->error)
        return;
    else if (call->error == EEXIST)
        call->refusal = move ? MOVE_OVERLAPS : CREATE_OVERLAPS;
    else if (call->error == EINVAL)
        call->refusal = move ? MOVE_BEYOND_LAST_GFN : CREATE_BEYOND_LAST_GFN;
    else
        return;
    call->change = REFUSED;
}

static void enter_slot(struct vm *vm, struct slot *slot)
{
    slot->live = true;
    slot->lives++;
    slot->moves = slot->flag_changes = 0;
    slot->used_index = vm->nr_used;
    vm->used[vm->nr_used++] = (uint32_t)(slot - vm->slots);
}

static void leave_slot(struct vm *vm, struct slot *slot)
{
    uint32_t last = vm->used[--vm->nr_used];

    vm->used[slot->used_index] = last;
    vm->slots[last].used_index = slot->used_index;
    slot->live = false;
    slot->former_hva = slot->known.hva;
}

/* Updates the mirror after a call. The guest's own slot is not counted as a change. */
void remember(struct vm *vm, struct call *call)
{
    struct slot *slot = call->slot;

    if (call->refusal) {
        vm->count.refusals++;
        vm->count.refused_creates += call->refusal == CREATE_OVERLAPS;
        return;
    }
    if (call->error)
        return;
    if (call->change == DELETE) {
        leave_slot(vm, slot);
    } else {
        if (call->change == CREATE)
            enter_slot(vm, slot);
        slot->known = call->asked;
        slot->untouchable = call->asked.flags & FLAG_GUEST_MEMFD;
        slot->memfd = call->sent.guest_memfd;
        slot->memfd_offset = call->sent.guest_memfd_offset;
    }
    if (!may_touch(slot))
        return;
    slot->moves += call->change == MOVE;
    slot->flag_changes += call->change == FLAGS_ONLY;
    vm->count.changes++;
    vm->count.creates += call->change == CREATE;
    vm->count.deletes += call->change == DELETE;
    vm->count.moves += call->change == MOVE;
}

/* May a fault change this slot? Not the guest's own. */
bool may_touch(const struct slot *slot)
{
    return slot && slot->known.size != GUEST_SLOT_BYTES && !slot->untouchable;
}

/* Finds live slots of the first address space, which are unordered, by walking over all. */
struct slot *slot_at(struct vm *vm, uint64_t gpa)
{
    for (uint32_t i = 0; i < vm->nr_used; i++) {
        struct slot *slot = &vm->slots[vm->used[i]];
        if (gpa >= slot->known.gpa && gpa < end_of(&slot->known) && may_touch(slot))
            return slot;
    }
    return NULL;
}

struct slot *next_above(struct vm *vm, uint64_t gpa)
{
    struct slot *best = NULL;

    for (uint32_t i = 0; i < vm->nr_used; i++) {
        struct slot *slot = &vm->slots[vm->used[i]];
        if (slot->known.gpa > gpa && may_touch(slot)
            && (!best || slot->known.gpa < best->known.gpa))
            best = slot;
    }
    return best;
}

struct slot *next_below(struct vm *vm, uint64_t gpa)
{
    struct slot *best = NULL;

    for (uint32_t i = 0; i < vm->nr_used; i++) {
        struct slot *slot = &vm->slots[vm->used[i]];
        if (slot->known.gpa < gpa && may_touch(slot)
            && (!best || slot->known.gpa > best->known.gpa))
            best = slot;
    }
    return best;
}
