/* KVM_ENABLE_CAP, KVM_RESET_DIRTY_RINGS and the dirty rings, with the fault applied. */
#include "wrong_kernel.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static bool is_ring(uint32_t cap)
{
    return cap == KVM_CAP_DIRTY_LOG_RING || cap == KVM_CAP_DIRTY_LOG_RING_ACQ_REL;
}

/* Sends the call, and remembers its effect on the VM. */
int forward_cap(struct vm *vm, struct kvm_enable_cap *cap)
{
    int error = kernel_ioctl(vm->fd, KVM_ENABLE_CAP, cap) ? errno : 0;

    if (!error && is_ring(cap->cap))
        vm->ring_bytes = (uint32_t)cap->args[0];
    return error;
}

int enable_cap(struct vm *vm, void *argument)
{
    struct kvm_enable_cap copy;
    int error;

    if (!readable((uint64_t)argument, &copy, sizeof(copy)))
        return kernel_ioctl(vm->fd, KVM_ENABLE_CAP, argument) ? errno : 0;
    pthread_mutex_lock(&vm->lock);
    if (vm->fault->enable_manual && copy.cap == KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)
        error = vm->fault->enable_manual(vm, &copy);
    else if (vm->fault->enable_ring && is_ring(copy.cap))
        error = vm->fault->enable_ring(vm, &copy);
    else
        error = forward_cap(vm, &copy);
    pthread_mutex_unlock(&vm->lock);
    return error;
}

/* Returns how many entries were reset, or -1 with errno. */
int reset_rings(struct vm *vm)
{
    int count;

    pthread_mutex_lock(&vm->lock);
    if (vm->fault->reset && strike(vm))
        count = vm->fault->reset(vm);
    else
        count = kernel_ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, NULL);
    pthread_mutex_unlock(&vm->lock);
    return count;
}

/* Our own mapping of the ring: what is changed here the caller sees, too. */
void map_ring(struct vcpu *vcpu, int fd)
{
    void *mapped;

    if (!vcpu->vm->ring_bytes)
        return;
    mapped = (void *)syscall(SYS_mmap, NULL, vcpu->vm->ring_bytes, PROT_READ | PROT_WRITE,
                             MAP_SHARED, fd, KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_BYTES);
    if (mapped != MAP_FAILED)
        vcpu->ring = mapped;
}

void unmap_ring(struct vcpu *vcpu)
{
    if (vcpu->ring)
        syscall(SYS_munmap, vcpu->ring, vcpu->vm->ring_bytes);
}

/* Passes each entry since the last call to the fault. */
void show_entries(struct vcpu *vcpu)
{
    uint64_t count = vcpu->vm->ring_bytes / sizeof(*vcpu->ring);

    if (!vcpu->ring || !vcpu->vm->fault->entry)
        return;
    pthread_mutex_lock(&vcpu->vm->lock);
    /* Where a ring was overrun, all its entries are dirty. */
    for (uint64_t seen = 0; seen < count; seen++) {
        struct kvm_dirty_gfn *entry = &vcpu->ring[vcpu->entries % count];
        if (entry->flags != KVM_DIRTY_GFN_F_DIRTY)
            break;
        vcpu->entries++;
        vcpu->vm->fault->entry(vcpu, entry);
        vcpu->last = *entry;
    }
    pthread_mutex_unlock(&vcpu->vm->lock);
}
