/* The libc functions that the program calls instead of the kernel. */
#include "wrong_kernel.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define MAX_DESCRIPTORS 65536

static _Atomic(struct vm *) vms[MAX_DESCRIPTORS];
static _Atomic(struct vcpu *) vcpus[MAX_DESCRIPTORS];
static pthread_mutex_t tables_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic int highest_vm;

/* Shared with children, so that each child's first VM has another number. */
static _Atomic uint64_t *last_serial;

static __attribute__((constructor)) void share_serial(void)
{
    last_serial = (void *)syscall(SYS_mmap, NULL, PAGE_BYTES, PROT_READ | PROT_WRITE,
                                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static void lock_tables(void)
{
    pthread_mutex_lock(&tables_lock);
}

static void unlock_tables(void)
{
    pthread_mutex_unlock(&tables_lock);
}

/* Else a child that is forked while another thread has the lock would wait for it for ever. */
static __attribute__((constructor)) void keep_tables_whole_in_children(void)
{
    pthread_atfork(lock_tables, unlock_tables, unlock_tables);
}

static bool in_tables(int fd)
{
    return fd >= 0 && fd < MAX_DESCRIPTORS;
}

/* Megabytes, of which only what is used takes memory. From the heap they would be what another VM
 * has left there, and all of them would be cleared; a forked child would copy them first. */
static struct vm *new_vm(void)
{
    void *vm = (void *)syscall(SYS_mmap, NULL, sizeof(struct vm), PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (vm == MAP_FAILED)
        abort();
    return vm;
}

static void put_vm(struct vm *vm)
{
    if (!vm || --vm->references)
        return;
    while (vm->ghosts) {
        struct ghost *ghost = vm->ghosts;
        vm->ghosts = ghost->next;
        free(ghost);
    }
    pthread_mutex_destroy(&vm->lock);
    syscall(SYS_munmap, vm, sizeof(*vm));
}

static void put_vcpu(struct vcpu *vcpu)
{
    if (!vcpu || --vcpu->references)
        return;
    unmap_ring(vcpu);
    put_vm(vcpu->vm);
    free(vcpu);
}

struct vm *vm_of(int fd, uint64_t serial)
{
    struct vm *vm = in_tables(fd) ? vms[fd] : NULL;

    return vm && vm->serial == serial ? vm : NULL;
}

struct vm *next_besides(const struct vm *vm, const struct vm *after)
{
    for (int fd = after ? after->fd + 1 : 0; fd <= highest_vm; fd++)
        if (vms[fd] && vms[fd] != vm)
            return vms[fd];
    return NULL;
}

/* The descriptor is closed, or was closed unnoticed and is another file now. */
static void forget(int fd)
{
    if (!in_tables(fd) || (!vms[fd] && !vcpus[fd]))
        return;
    pthread_mutex_lock(&tables_lock);
    put_vm(vms[fd]);
    vms[fd] = NULL;
    if (vcpus[fd])
        vcpus[fd]->run = NULL;
    put_vcpu(vcpus[fd]);
    vcpus[fd] = NULL;
    pthread_mutex_unlock(&tables_lock);
}

/* How many the VM has, from 1 to what the mirror has room for. */
static uint32_t capability(int fd, long which, uint32_t room)
{
    int found = kernel_ioctl(fd, KVM_CHECK_EXTENSION, (void *)which);

    if (found < 1)
        return 1;
    return (uint32_t)found < room ? (uint32_t)found : room;
}

static int create_vm(int system_fd, void *argument)
{
    int fd = kernel_ioctl(system_fd, KVM_CREATE_VM, argument);
    struct vm *vm;

    if (!in_tables(fd))
        return fd;
    forget(fd);
    vm = new_vm();
    vm->fd = fd;
    vm->serial = ++*last_serial;
    vm->references = 1;
    pthread_mutex_init(&vm->lock, NULL);
    vm->nr_ids = capability(fd, KVM_CAP_NR_MEMSLOTS, SLOTS_PER_SPACE);
    vm->nr_spaces = capability(fd, KVM_CAP_MULTI_ADDRESS_SPACE, 2);
    vm->next_hidden_id = vm->nr_ids - 1;
    select_fault(vm);
    if (fd > highest_vm)
        highest_vm = fd;
    vms[fd] = vm;
    if (vm->fault->made)
        vm->fault->made(vm);
    return fd;
}

static int create_vcpu(struct vm *vm, void *argument)
{
    int fd = kernel_ioctl(vm->fd, KVM_CREATE_VCPU, argument);
    struct vcpu *vcpu;

    if (!in_tables(fd))
        return fd;
    forget(fd);
    vcpu = calloc(1, sizeof(*vcpu));
    vcpu->vm = vm;
    vcpu->fd = fd;
    vcpu->references = 1;
    vcpu->index = (unsigned)(uintptr_t)argument;
    pthread_mutex_lock(&tables_lock);
    vm->references++;
    pthread_mutex_unlock(&tables_lock);
    map_ring(vcpu, fd);
    vcpus[fd] = vcpu;
    spoil_former_vcpu(fd);
    return fd;
}

/* Sets the registers that the caller left in kvm_run, so that a fault can read them. */
static int take_registers(struct vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;

    if (run->kvm_dirty_regs & KVM_SYNC_X86_REGS
        && kernel_ioctl(vcpu->fd, KVM_SET_REGS, &run->s.regs.regs))
        return errno;
    if (run->kvm_dirty_regs & KVM_SYNC_X86_SREGS
        && kernel_ioctl(vcpu->fd, KVM_SET_SREGS, &run->s.regs.sregs))
        return errno;
    run->kvm_dirty_regs = 0;
    return 0;
}

static int run_vcpu(int fd, struct vcpu *vcpu, void *argument)
{
    struct vm *vm = vcpu->vm;
    const struct fault *fault = vm->fault;
    bool again = false;
    int error = 0;

    pthread_mutex_lock(&vm->lock);
    vm->has_run = true;
    vm->runner = pthread_self();
    if (fault->enter && vcpu->run)
        error = take_registers(vcpu);
    if (!error && fault->enter && vcpu->run)
        error = fault->enter(vcpu);
    pthread_mutex_unlock(&vm->lock);
    if (error)
        return error;
    do {
        watch_clocks(vcpu);
        if (vcpu->run)
            spoil_entry(vcpu->run);
        error = kernel_ioctl(fd, KVM_RUN, argument) ? errno : 0;
        spoil_clocks(vcpu);
        show_entries(vcpu);
        if (!error && vcpu->run)
            spoil_exit(vcpu->run);
        if (error || !fault->leave || !vcpu->run)
            break;
        pthread_mutex_lock(&vm->lock);
        again = fault->leave(vcpu);
        pthread_mutex_unlock(&vm->lock);
    } while (again);
    return error;
}

/* The caller may close the vCPU, and its VM, while another thread is in KVM_RUN. */
static int run_held_vcpu(int fd, void *argument)
{
    struct vcpu *vcpu;
    int error;

    pthread_mutex_lock(&tables_lock);
    vcpu = vcpus[fd];
    if (vcpu)
        vcpu->references++;
    pthread_mutex_unlock(&tables_lock);
    if (!vcpu)
        return EBADF;
    error = run_vcpu(fd, vcpu, argument);
    pthread_mutex_lock(&tables_lock);
    put_vcpu(vcpu);
    pthread_mutex_unlock(&tables_lock);
    return error;
}

static int place(struct vm *vm, unsigned long request, void *argument)
{
    int error = kernel_ioctl(vm->fd, request, argument) ? errno : 0;

    pthread_mutex_lock(&vm->lock);
    if (vm->fault->placed)
        error = vm->fault->placed(vm, request, (uint64_t)argument, error);
    pthread_mutex_unlock(&vm->lock);
    return error;
}

static bool is_of_devices(unsigned long request)
{
    return request == KVM_REGISTER_COALESCED_MMIO || request == KVM_UNREGISTER_COALESCED_MMIO
        || request == KVM_IOEVENTFD;
}

static int set_device(struct vm *vm, unsigned long request, void *argument)
{
    int error;

    pthread_mutex_lock(&vm->lock);
    if (vm->fault->device)
        error = vm->fault->device(vm, request, argument);
    else
        error = kernel_ioctl(vm->fd, request, argument) ? errno : 0;
    pthread_mutex_unlock(&vm->lock);
    return error;
}

static int check_extension(struct vm *vm, void *cap)
{
    int found = kernel_ioctl(vm->fd, KVM_CHECK_EXTENSION, cap);

    pthread_mutex_lock(&vm->lock);
    if (vm->fault->extension)
        found = vm->fault->extension(vm, (uintptr_t)cap, found);
    pthread_mutex_unlock(&vm->lock);
    return found;
}

static int answer(int error)
{
    if (!error)
        return 0;
    errno = error;
    return -1;
}

static void note_host_change(const struct host_change *change);
static void note_done(struct host_change *change);

/* userfaultfd: pages are registered to be fetched or guarded; or one is fetched. */
static int page_memory(int fd, unsigned long request, void *argument)
{
    struct uffdio_writeprotect protect;
    struct uffdio_register range;
    struct uffdio_copy copy;
    struct host_change change = {.fd = -1};
    int result;

    if (request == (uint32_t)UFFDIO_REGISTER) {
        range = *(struct uffdio_register *)argument;
        change.kind = HOST_FETCHES;
        change.hva = range.range.start;
        change.size = range.mode == UFFDIO_REGISTER_MODE_MISSING ? range.range.len : 0;
        argument = &range;
    } else if (request == (uint32_t)UFFDIO_WRITEPROTECT) {
        protect = *(struct uffdio_writeprotect *)argument;
        change.kind = HOST_GUARDS;
        change.hva = protect.range.start;
        change.size = protect.mode ? protect.range.len : 0;
        change.part = (uint64_t *)&protect.range.len;
        argument = &protect;
    } else {
        copy = *(struct uffdio_copy *)argument;
        change.kind = HOST_COPIES;
        change.hva = copy.dst;
        change.size = copy.len;
        change.part = (uint64_t *)&copy.src;
        argument = &copy;
    }
    if (change.size)
        note_host_change(&change);
    if (change.kind == HOST_GUARDS && !protect.range.len)
        return 0;
    result = kernel_ioctl(fd, request, argument);
    if (change.size && !result)
        note_done(&change);
    return result;
}

int ioctl(int fd, unsigned long request, ...)
{
    struct vm *vm = in_tables(fd) ? vms[fd] : NULL;
    struct vcpu *vcpu = in_tables(fd) ? vcpus[fd] : NULL;
    void *argument;
    va_list arguments;
    int result;

    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    request = (uint32_t)request;
    if (answered_wrongly(fd, request, argument, &result))
        return result;
    if (request == (uint32_t)UFFDIO_REGISTER || request == (uint32_t)UFFDIO_WRITEPROTECT
        || request == (uint32_t)UFFDIO_COPY)
        return page_memory(fd, request, argument);
    if (request == KVM_RUN && vcpu)
        return answer(run_held_vcpu(fd, argument));
    if (vcpu && request == (uint32_t)PRE_FAULT_MEMORY)
        return answer(pre_fault_memory(fd, vcpu, argument));
    if (vcpu && request == KVM_SET_MSRS)
        return set_msrs(vcpu, argument);
    if (vcpu && request == KVM_KVMCLOCK_CTRL)
        return answer(pause_clock(vcpu));
    if (request == KVM_CREATE_VM)
        return create_vm(fd, argument);
    if (vm && request == (uint32_t)SET_MEMORY_ATTRIBUTES)
        return answer(set_attributes(vm, argument));
    if (vm && request == KVM_CREATE_VCPU)
        return create_vcpu(vm, argument);
    if (vm && request == (uint32_t)CREATE_GUEST_MEMFD)
        return create_memfd(vm, argument);
    if (vm && (request == SET_REGION || request == SET_REGION2))
        return answer(set_region(vm, request, argument));
    if (vm && request == KVM_CHECK_EXTENSION)
        return check_extension(vm, argument);
    if (vm && request == KVM_GET_DIRTY_LOG)
        return answer(get_dirty_log(vm, argument));
    if (vm && request == KVM_CLEAR_DIRTY_LOG)
        return answer(clear_dirty_log(vm, argument));
    if (vm && request == KVM_ENABLE_CAP)
        return answer(enable_cap(vm, argument));
    if (vm && request == KVM_RESET_DIRTY_RINGS)
        return reset_rings(vm);
    if (vm && is_of_devices(request))
        return answer(set_device(vm, request, argument));
    if (vm && (request == KVM_SET_TSS_ADDR || request == (uint32_t)KVM_SET_IDENTITY_MAP_ADDR
               || request == KVM_CREATE_IRQCHIP))
        return answer(place(vm, request, argument));
    return kernel_ioctl(fd, request, argument);
}

/* Memory of slots is about to change, or has changed. */
static void note_host_change(const struct host_change *change)
{
    for (int fd = 0; fd <= highest_vm; fd++) {
        struct vm *vm = vms[fd];
        if (!vm || !vm->fault->host_changes)
            continue;
        /* Who has the lock may wait for a vCPU that waits for this page. */
        if (change->kind == HOST_COPIES && pthread_mutex_trylock(&vm->lock))
            continue;
        if (change->kind != HOST_COPIES)
            pthread_mutex_lock(&vm->lock);
        vm->fault->host_changes(vm, change);
        pthread_mutex_unlock(&vm->lock);
    }
}

static void note_done(struct host_change *change)
{
    int error = errno;

    change->done = true;
    note_host_change(change);
    errno = error;
}

/* Finds out where the caller maps struct kvm_run, which it does first. */
void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
    void *mapped;
    int result;

    if (in_tables(fd) && vcpus[fd] && answered_wrongly(fd, MMAP_OF_VCPU, NULL, &result))
        return MAP_FAILED;
    struct host_change change = {
        .kind = HOST_MAPS, .detail = protection, .fd = flags & MAP_ANONYMOUS ? -1 : fd,
        .hva = (uint64_t)address, .size = size,
    };
    if (flags & MAP_FIXED)
        note_host_change(&change);
    mapped = (void *)syscall(SYS_mmap, address, size, protection, flags, fd, offset);
    if (flags & MAP_FIXED && mapped != MAP_FAILED)
        note_done(&change);
    if (mapped != MAP_FAILED && offset == 0 && in_tables(fd) && vcpus[fd] && !vcpus[fd]->run)
        vcpus[fd]->run = mapped;
    else
        wrong_mmap(fd, flags, size, &mapped);
    return mapped;
}

void *mmap64(void *address, size_t size, int protection, int flags, int fd, off_t offset)
    __attribute__((alias("mmap")));

int close(int fd)
{
    bool is_of_kvm = in_tables(fd) && (vms[fd] || vcpus[fd]);
    int result, closed;

    if (in_tables(fd) && vms[fd] && vms[fd]->fault->closing)
        vms[fd]->fault->closing(vms[fd]);
    forget(fd);
    forget_memfd(fd);
    closed = (int)syscall(SYS_close, fd);
    return is_of_kvm && answered_wrongly(fd, CLOSE_OF_KVM, NULL, &result) ? result : closed;
}

int fallocate(int fd, int mode, off_t offset, off_t size)
{
    return punch_memfd(fd, mode, offset, size);
}

int fallocate64(int fd, int mode, off_t offset, off_t size) __attribute__((alias("fallocate")));

static int change_memory(long number, enum host_call kind, void *address, size_t size, int detail)
{
    struct host_change change = {
        .kind = kind, .detail = detail, .fd = -1, .hva = (uint64_t)address, .size = size,
    };
    int result;

    note_host_change(&change);
    result = (int)syscall(number, address, size, detail);
    if (!result)
        note_done(&change);
    return result;
}

int madvise(void *address, size_t size, int advice)
{
    return change_memory(SYS_madvise, HOST_ADVISES, address, size, advice);
}

int mprotect(void *address, size_t size, int protection)
{
    return change_memory(SYS_mprotect, HOST_PROTECTS, address, size, protection);
}

static void note_growth(const struct host_change *change)
{
    struct host_change growth = *change;

    if (change->kind == HOST_GROWS)
        note_done(&growth);
}

static void note_cut(const struct host_change *change)
{
    if (change->kind == HOST_CUTS)
        note_host_change(change);
}

int ftruncate(int fd, off_t size)
{
    bool watched = false;

    for (int vm = 0; vm <= highest_vm; vm++)
        watched |= vms[vm] && vms[vm]->fault->host_changes;
    if (watched) {
        note_resize(fd, (uint64_t)size, note_cut);
        note_resize(fd, (uint64_t)size, note_growth);
    }
    return (int)syscall(SYS_ftruncate, fd, size);
}

int ftruncate64(int fd, off_t size) __attribute__((alias("ftruncate")));

void *mremap(void *old, size_t old_size, size_t size, int flags, ...)
{
    struct host_change leaves = {
        .kind = HOST_MOVES, .detail = 0, .fd = -1, .hva = (uint64_t)old, .size = old_size,
    };
    struct host_change comes = {.kind = HOST_MOVES, .detail = 1, .fd = -1, .size = size};
    void *to, *moved;
    va_list arguments;

    va_start(arguments, flags);
    to = va_arg(arguments, void *);
    va_end(arguments);
    comes.hva = (uint64_t)to;
    note_host_change(&leaves);
    moved = (void *)syscall(SYS_mremap, old, old_size, size, flags, to);
    if (moved != MAP_FAILED && flags & MREMAP_FIXED)
        note_done(&comes);
    return moved;
}

pid_t fork(void)
{
    static pid_t (*real)(void);
    struct host_change change = {.kind = HOST_FORKS, .fd = -1, .hva = 0, .size = INT64_MAX};

    if (!real)
        real = dlsym(RTLD_NEXT, "fork");
    note_host_change(&change);
    return real();
}
