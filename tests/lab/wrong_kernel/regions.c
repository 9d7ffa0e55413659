/* KVM_SET_USER_MEMORY_REGION and its second form: the caller's call, with the fault in it. */
#include "wrong_kernel.h"

/* Sends the call; left-overs of a fault give way to it. */
static int send_call(struct vm *vm, struct call *call)
{
    struct region *sent = &call->sent.region;
    struct slot *slot = slot_of(vm, sent->id);
    int error;

    free_id(vm, sent->id);
    do
        error = kernel_ioctl(vm->fd, call->request, &call->sent) ? errno : 0;
    while (error == EEXIST && drop_aliases_over(vm, sent->gpa, sent->size));
    if (!error && slot)
        slot->real = *sent;
    return error;
}

void forward(struct vm *vm, struct call *call)
{
    struct slot *slot = call->slot;

    if (slot && slot->laid) {
        if (call->refusal) {
            /* Only a repaired slot could be refused correctly, and it must not be repaired. */
            call->error = EINVAL;
            return;
        }
        restore(vm, slot);
    }
    call->error = send_call(vm, call);
    name_refusal(call);
}

int into_nothing(const struct region *region, struct region *pieces)
{
    (void)region;
    (void)pieces;
    return 0;
}

static void shape_slot(struct vm *vm, struct call *call)
{
    const struct fault *fault = vm->fault;
    struct slot *slot = call->slot;
    struct region pieces[MAX_PIECES];
    int count;

    if (!fault->shape || !slot || !slot->live)
        return;
    if (call->change == CREATE)
        slot->shaped = false;
    if (!slot->shaped && !(call->change & fault->shapes_on))
        return;
    if (!slot->shaped && fault->shape_when && !fault->shape_when(vm, call))
        return;
    count = fault->shape(&slot->known, pieces);
    if (count < 0 || (!slot->shaped && !strike(vm)))
        return;
    slot->shaped = true;
    lay(vm, slot, pieces, count);
}

static void wrong_call(struct vm *vm, struct call *call)
{
    const struct fault *fault = vm->fault;

    if (fault->legal && !call->refusal && fault->legal(vm, call) && strike(vm)) {
        call->withheld = true;
        call->error = fault->answer;
    }
    if (fault->before)
        fault->before(vm, call);
    if (!call->withheld)
        forward(vm, call);
    remember(vm, call);
    if (fault->refusal && call->refusal == fault->refusal && strike(vm))
        call->error = fault->answer;
    if (fault->after)
        fault->after(vm, call);
    shape_slot(vm, call);
}

static bool concerns_guest(const struct call *call)
{
    const struct region *asked = &call->asked;

    if (!call->slot)
        return false;
    return call->slot->live ? !may_touch(call->slot) : asked->size == GUEST_SLOT_BYTES;
}

int set_region(struct vm *vm, unsigned long request, void *argument)
{
    struct call call;

    pthread_mutex_lock(&vm->lock);
    if (!open_call(vm, &call, request, argument)) {
        call.error = kernel_ioctl(vm->fd, request, argument) ? errno : 0;
        vm->count.bad_pointers++;
        if (vm->fault->refusal == BAD_POINTER && strike(vm))
            call.error = vm->fault->answer;
    } else if (concerns_memfd(&call)) {
        set_memfd_region(vm, &call);
    } else if (concerns_guest(&call)) {
        forward(vm, &call);
        remember(vm, &call);
    } else {
        wrong_call(vm, &call);
    }
    vm->awake = vm->count.changes >= vm->sleeps_for;
    pthread_mutex_unlock(&vm->lock);
    return call.error;
}
