/* KVM_PRE_FAULT_MEMORY and KVM_SET_MEMORY_ATTRIBUTES accept bad calls, or do impossible ones. */
#include "wrong_kernel.h"

static int take_anything(struct pre_fault *range, int error)
{
    range->gpa += range->size;
    range->size = 0;
    return error == EINVAL ? 0 : error;
}

static int pretend(struct pre_fault *range, int error)
{
    if (!error || error == EINVAL)
        return error;
    range->gpa += range->size;
    range->size = 0;
    return 0;
}

int pre_fault_memory(int fd, struct vcpu *vcpu, struct pre_fault *range)
{
    struct vm *vm = vcpu->vm;
    int error = kernel_ioctl(fd, PRE_FAULT_MEMORY, range) ? errno : 0;

    pthread_mutex_lock(&vm->lock);
    if (vm->fault->ahead && strike(vm))
        error = vm->fault->ahead(range, error);
    pthread_mutex_unlock(&vm->lock);
    return error;
}

static int take_attributes(int error)
{
    (void)error;
    return 0;
}

int set_attributes(struct vm *vm, void *argument)
{
    int error = kernel_ioctl(vm->fd, SET_MEMORY_ATTRIBUTES, argument) ? errno : 0;

    pthread_mutex_lock(&vm->lock);
    if (vm->fault->attributes && strike(vm))
        error = vm->fault->attributes(error);
    pthread_mutex_unlock(&vm->lock);
    return error;
}

const struct fault ahead_faults[] = {
    {.name = "pre-fault-unchecked", .ahead = take_anything,
     .sentence = "A bad range of KVM_PRE_FAULT_MEMORY is answered with 0.",
     .witness = "ahead 100 0"},
    {.name = "pre-fault-pretended", .ahead = pretend,
     .sentence = "KVM_PRE_FAULT_MEMORY is answered with 0 where nothing can be mapped ahead.",
     .witness = "ahead 100 1"},
    {.name = "attributes-taken", .attributes = take_attributes,
     .sentence = "KVM_SET_MEMORY_ATTRIBUTES is answered with 0 whatever it asks for.",
     .witness = "attribute 100 1 1"},
    {0},
};
