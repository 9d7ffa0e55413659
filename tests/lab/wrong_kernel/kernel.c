/* The system call itself, hidden slots, and slots that are made wrong. */
#include "wrong_kernel.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

int kernel_ioctl(int fd, unsigned long request, void *argument)
{
    return (int)syscall(SYS_ioctl, fd, request, argument);
}

int kernel_set(struct vm *vm, struct region region)
{
    struct slot *slot = slot_of(vm, region.id);

    if (kernel_ioctl(vm->fd, SET_REGION, &region) != 0)
        return errno;
    if (slot)
        slot->real = region;
    return 0;
}

int forward_device(struct vm *vm, unsigned long request, void *argument)
{
    return kernel_ioctl(vm->fd, request, argument) ? errno : 0;
}

static int kernel_delete(struct vm *vm, uint32_t id)
{
    return kernel_set(vm, (struct region){.id = id});
}

/* An anonymous page of our own, which a guest sees where content was lost. */
uint64_t blank_page(void)
{
    static void *page;
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

    pthread_mutex_lock(&lock);
    if (!page)
        page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_mutex_unlock(&lock);
    return (uint64_t)page;
}

static bool is_free(const struct slot *slot)
{
    return !slot->live && !slot->hidden_plus1 && !slot->real.size;
}

static bool find_hidden_id(struct vm *vm, uint32_t *id)
{
    if (vm->nr_used + vm->nr_hidden >= vm->nr_ids)
        return false;
    for (uint32_t tried = 0; tried < vm->nr_ids; tried++) {
        *id = vm->next_hidden_id;
        vm->next_hidden_id = *id ? *id - 1 : vm->nr_ids - 1;
        if (is_free(&vm->slots[*id]))
            return true;
    }
    return false;
}

static void drop_hidden(struct vm *vm, uint32_t index)
{
    struct slot *holder = slot_of(vm, vm->hidden[index].region.id);

    kernel_delete(vm, vm->hidden[index].region.id);
    holder->hidden_plus1 = 0;
    vm->hidden[index] = vm->hidden[--vm->nr_hidden];
    if (index < vm->nr_hidden)
        slot_of(vm, vm->hidden[index].region.id)->hidden_plus1 = index + 1;
}

/* Adds a slot that the caller does not know, with an id chosen here. */
bool add_alias(struct vm *vm, struct region region, uint32_t owner)
{
    uint32_t id;

    if (!region.size || vm->nr_hidden >= MAX_SLOTS || !find_hidden_id(vm, &id))
        return false;
    region.id = id | (region.id & 0xffff0000u);
    if (region.id >> 16 || kernel_set(vm, region) != 0)
        return false;
    vm->hidden[vm->nr_hidden++] = (struct hidden){.region = region, .owner = owner};
    vm->slots[id].hidden_plus1 = vm->nr_hidden;
    return true;
}

/* Makes room for the caller: removes aliases in this range. */
bool drop_aliases_over(struct vm *vm, uint64_t gpa, uint64_t size)
{
    bool dropped = false;

    for (uint32_t i = vm->nr_hidden; i-- > 0;) {
        const struct region *region = &vm->hidden[i].region;
        if (region->gpa < gpa + size && gpa < end_of(region)) {
            drop_hidden(vm, i);
            dropped = true;
        }
    }
    return dropped;
}

/* The caller wants this id: a hidden slot that has it gets another one, if possible. */
void free_id(struct vm *vm, uint32_t id)
{
    struct slot *slot = slot_of(vm, id);

    if (!slot || !slot->hidden_plus1)
        return;
    struct hidden hidden = vm->hidden[slot->hidden_plus1 - 1];
    drop_hidden(vm, slot->hidden_plus1 - 1);
    slot->live = true; /* or it would get the same id again */
    add_alias(vm, hidden.region, hidden.owner);
    slot->live = false;
}

static void drop_pieces(struct vm *vm, uint32_t owner)
{
    for (uint32_t i = vm->nr_hidden; i-- > 0;)
        if (vm->hidden[i].owner == owner)
            drop_hidden(vm, i);
}

/* Creates these regions in the kernel in place of the slot that the caller knows. */
void lay(struct vm *vm, struct slot *slot, const struct region *pieces, int count)
{
    drop_pieces(vm, slot->known.id);
    if (slot->real.size)
        kernel_delete(vm, slot->known.id);
    for (int i = 0; i < count; i++) {
        struct region piece = pieces[i];
        piece.id = slot->known.id;
        if (i == 0)
            kernel_set(vm, piece);
        else
            add_alias(vm, piece, slot->known.id);
    }
    slot->laid = true;
}

/* Makes the slot correct in the kernel again. */
void restore(struct vm *vm, struct slot *slot)
{
    if (!slot->laid)
        return;
    lay(vm, slot, &slot->known, slot->live ? 1 : 0);
    slot->laid = false;
}

/* Removes the slot from the kernel without the caller's knowledge. */
void lose(struct vm *vm, struct slot *slot)
{
    lay(vm, slot, NULL, 0);
}

/* Loses a slot that the caller has just made or moved, until show_hidden(). */
void hide_changed(struct vm *vm, struct call *call)
{
    vm->stashed = true;
    vm->stash = call->asked;
    lose(vm, call->slot);
}

void show_hidden(struct vm *vm)
{
    struct slot *slot = vm->stashed ? slot_of(vm, vm->stash.id) : NULL;

    vm->stashed = false;
    if (slot && slot->live)
        restore(vm, slot);
}

bool show_hidden_at_exit(struct vcpu *vcpu)
{
    show_hidden(vcpu->vm);
    return false;
}
