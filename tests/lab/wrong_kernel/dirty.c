/* KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG, with the fault applied. */
#include "wrong_kernel.h"

#include <stdlib.h>
#include <string.h>

static bool test_bit(const uint64_t *bits, uint64_t bit)
{
    return bits[bit / 64] >> (bit % 64) & 1;
}

/* Adds a piece's dirty pages to the log of the slot that it is a part of. */
static void add_piece(const struct log *log, const struct region *piece, const uint64_t *bits)
{
    uint64_t first = (piece->gpa - log->slot->known.gpa) / PAGE_BYTES;

    for (uint64_t page = 0; page < pages_of(piece); page++)
        if (first + page < log->pages && test_bit(bits, page))
            log->bits[(first + page) / 64] |= 1ull << ((first + page) % 64);
}

/* A slot made of several pieces has several logs; the caller gets one. */
static void compose(struct vm *vm, const struct log *log)
{
    uint64_t *bits = calloc(log->words + 1, sizeof(*bits));

    memcpy(bits, log->bits, (pages_of(&log->slot->real) + 63) / 64 * sizeof(*bits));
    memset(log->bits, 0, log->words * sizeof(*bits));
    add_piece(log, &log->slot->real, bits);
    for (uint32_t i = 0; i < vm->nr_hidden; i++) {
        struct region *piece = &vm->hidden[i].region;
        struct kvm_dirty_log get = {.slot = piece->id, .dirty_bitmap = bits};
        if (vm->hidden[i].owner != log->slot->known.id || piece->size > log->slot->known.size)
            continue;
        if (kernel_ioctl(vm->fd, KVM_GET_DIRTY_LOG, &get) == 0)
            add_piece(log, piece, bits);
    }
    free(bits);
}

/* A second bitmap for the slot, zero when first used. */
uint64_t *ghost_of(struct vm *vm, const struct log *log)
{
    struct ghost *ghost = log->slot->ghost;

    if (!ghost || ghost->words < log->words) {
        ghost = calloc(1, sizeof(*ghost) + log->words * sizeof(uint64_t));
        ghost->words = log->words;
        ghost->next = vm->ghosts;
        vm->ghosts = log->slot->ghost = ghost;
    }
    return ghost->bits;
}

int get_dirty_log(struct vm *vm, void *argument)
{
    struct kvm_dirty_log copy;
    struct log log = {.argument = argument};

    if (!readable((uint64_t)argument, &copy, sizeof(copy)))
        return kernel_ioctl(vm->fd, KVM_GET_DIRTY_LOG, argument) ? errno : 0;
    pthread_mutex_lock(&vm->lock);
    log.bits = copy.dirty_bitmap;
    log.slot = slot_of(vm, copy.slot);
    if (log.slot && log.slot->live) {
        log.pages = pages_of(&log.slot->known);
        log.words = (log.pages + 63) / 64;
    }
    if (log.words)
        readable((uint64_t)log.bits, &log.before, sizeof(log.before));
    log.error = kernel_ioctl(vm->fd, KVM_GET_DIRTY_LOG, argument) ? errno : 0;
    if (!log.error && log.words && log.slot->laid)
        compose(vm, &log);
    if (vm->fault->log && may_touch(log.slot))
        vm->fault->log(vm, &log);
    pthread_mutex_unlock(&vm->lock);
    return log.error;
}

int clear_dirty_log(struct vm *vm, void *argument)
{
    struct kvm_clear_dirty_log copy;
    struct slot *slot;
    int error;

    if (!readable((uint64_t)argument, &copy, sizeof(copy)))
        return kernel_ioctl(vm->fd, KVM_CLEAR_DIRTY_LOG, argument) ? errno : 0;
    pthread_mutex_lock(&vm->lock);
    slot = slot_of(vm, copy.slot);
    if (vm->fault->clear_log && slot && slot->live && may_touch(slot))
        vm->fault->clear_log(vm, &copy, slot);
    error = kernel_ioctl(vm->fd, KVM_CLEAR_DIRTY_LOG, &copy) ? errno : 0;
    if (vm->fault->cleared && (!slot || may_touch(slot)))
        error = vm->fault->cleared(vm, &copy, slot, error);
    pthread_mutex_unlock(&vm->lock);
    return error;
}
