/* Wrong answers for guest_memfds: creating, mapping, binding and closing them. */
#include "wrong_kernel.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_FILES 65536

/* struct kvm_create_guest_memfd. */
struct wanted {
    uint64_t size, flags, reserved[6];
};

/* A descriptor that is a guest_memfd; serial 0: it is not one. */
static struct {
    uint64_t serial; /* of its VM */
    int vm_fd;
} files[MAX_FILES];

static bool is_memfd(uint32_t fd)
{
    return fd < MAX_FILES && files[fd].serial;
}

/* Whether the active fault answers wrongly here and now. */
static bool wrong_about(struct vm *vm, enum memfd_case which)
{
    return which && vm->fault->memfd == which && strike(vm);
}

static int raw_create(struct vm *vm, uint64_t size, uint64_t flags)
{
    struct wanted wanted = {.size = size, .flags = flags};
    int fd = kernel_ioctl(vm->fd, CREATE_GUEST_MEMFD, &wanted);

    if (fd >= 0 && fd < MAX_FILES) {
        files[fd].serial = vm->serial;
        files[fd].vm_fd = vm->fd;
    }
    return fd;
}

int create_memfd(struct vm *vm, const void *argument)
{
    struct wanted wanted;
    int fd;

    if (!readable((uint64_t)argument, &wanted, sizeof(wanted)))
        return kernel_ioctl(vm->fd, CREATE_GUEST_MEMFD, (void *)argument);
    pthread_mutex_lock(&vm->lock);
    fd = raw_create(vm, wanted.size, wanted.flags);
    if (fd >= 0 && wrong_about(vm, MEMFD_MAKE)) {
        close(fd);
        errno = vm->fault->answer;
        fd = -1;
    } else if (fd < 0) {
        bool sized = wanted.size && wanted.size % PAGE_BYTES == 0 && (int64_t)wanted.size > 0;
        if (wrong_about(vm, sized ? MEMFD_FLAGS : MEMFD_SIZE))
            fd = raw_create(vm, PAGE_BYTES, 0);
    }
    pthread_mutex_unlock(&vm->lock);
    return fd;
}

void forget_memfd(int fd)
{
    struct vm *vm;

    if (!is_memfd((uint32_t)fd))
        return;
    vm = vm_of(files[fd].vm_fd, files[fd].serial);
    files[fd].serial = 0;
    if (!vm || vm->fault->memfd != MEMFD_CLOSE)
        return;
    pthread_mutex_lock(&vm->lock);
    for (uint32_t i = 0; i < vm->nr_used; i++)
        if (vm->slots[vm->used[i]].untouchable)
            kernel_set(vm, (struct region){.id = vm->slots[vm->used[i]].known.id});
    pthread_mutex_unlock(&vm->lock);
}

/* Replaces the result of an mmap, *mapped, if the fault concerns it. */
void wrong_mmap(int fd, int flags, size_t size, void **mapped)
{
    struct vm *vm = is_memfd((uint32_t)fd) ? vm_of(files[fd].vm_fd, files[fd].serial) : NULL;
    int kind = MAP_PRIVATE | MAP_ANONYMOUS | (flags & MAP_FIXED);
    bool failed = *mapped == MAP_FAILED;
    enum memfd_case which = !failed ? MEMFD_MMAP
                          : errno == ENODEV ? MEMFD_NO_MMAP : MEMFD_PRIVATE_MMAP;

    if (!vm || !wrong_about(vm, which))
        return;
    if (failed) {
        *mapped = (void *)syscall(SYS_mmap, NULL, size, PROT_READ | PROT_WRITE, kind, -1, 0);
        return;
    }
    syscall(SYS_munmap, *mapped, size);
    *mapped = MAP_FAILED;
    errno = vm->fault->answer;
}

static bool shows(const struct slot *slot, int fd, int64_t offset, int64_t size)
{
    uint64_t begin = slot->memfd_offset, end = begin + slot->known.size;

    return slot->untouchable && slot->memfd == (uint32_t)fd && begin < (uint64_t)(offset + size)
        && (uint64_t)offset < end;
}

static bool is_bound(const struct vm *vm, int fd, int64_t offset, int64_t size)
{
    for (uint32_t i = 0; i < vm->nr_used; i++)
        if (shows(&vm->slots[vm->used[i]], fd, offset, size))
            return true;
    return false;
}

/* Replaces a slot's memory by a copy, if the host can read it. */
static void show_copy(struct vm *vm, const struct slot *slot)
{
    struct region region = slot->known;
    size_t size = region.size;
    void *copy = (void *)syscall(SYS_mmap, NULL, size, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (copy == MAP_FAILED || !readable(region.hva, copy, size))
        return;
    region.flags = 0;
    region.hva = (uint64_t)copy;
    kernel_set(vm, (struct region){.id = region.id});
    kernel_set(vm, region);
}

static long punch_wrongly(struct vm *vm, int fd, int mode, int64_t offset, int64_t size)
{
    if (wrong_about(vm, MEMFD_PUNCH_WIDE))
        size += PAGE_BYTES;
    else if (wrong_about(vm, MEMFD_PUNCH_FIRST))
        size = PAGE_BYTES;
    else if (wrong_about(vm, MEMFD_PUNCH_UNSEEN))
        for (uint32_t i = 0; i < vm->nr_used; i++)
            if (shows(&vm->slots[vm->used[i]], fd, offset, size))
                show_copy(vm, &vm->slots[vm->used[i]]);
    return syscall(SYS_fallocate, fd, mode, offset, size);
}

/* fallocate(2) of any file. */
int punch_memfd(int fd, int mode, int64_t offset, int64_t size)
{
    struct vm *vm = is_memfd((uint32_t)fd) ? vm_of(files[fd].vm_fd, files[fd].serial) : NULL;
    bool keeps = mode & FALLOC_FL_KEEP_SIZE, punches = mode & FALLOC_FL_PUNCH_HOLE;
    bool aligned = (offset | size) % PAGE_BYTES == 0 && offset >= 0 && size > 0
                && size <= INT64_MAX - offset;
    long result;

    if (!vm)
        return (int)syscall(SYS_fallocate, fd, mode, offset, size);
    pthread_mutex_lock(&vm->lock);
    if (!keeps || !aligned) {
        result = syscall(SYS_fallocate, fd, mode, offset, size);
        if (result && wrong_about(vm, aligned ? MEMFD_PUNCH_MODE : MEMFD_PUNCH_RANGE))
            result = 0;
    } else if (!punches) {
        if (wrong_about(vm, MEMFD_ALLOCATE_ZEROS))
            syscall(SYS_fallocate, fd, mode | FALLOC_FL_PUNCH_HOLE, offset, size);
        result = syscall(SYS_fallocate, fd, mode, offset, size);
        if (result && wrong_about(vm, MEMFD_ALLOCATE))
            result = 0;
    } else if (wrong_about(vm, MEMFD_PUNCH)
               || (!is_bound(vm, fd, offset, size) && wrong_about(vm, MEMFD_PUNCH_UNBOUND))) {
        errno = vm->fault->answer;
        result = errno ? -1 : 0;
    } else {
        result = punch_wrongly(vm, fd, mode, offset, size);
    }
    pthread_mutex_unlock(&vm->lock);
    return (int)result;
}

bool concerns_memfd(const struct call *call)
{
    if (call->request == SET_REGION2 && call->asked.flags & FLAG_GUEST_MEMFD)
        return true;
    return call->slot && call->slot->live && call->slot->untouchable;
}

static enum memfd_case why_not_bound(const struct vm *vm, const struct call *call)
{
    uint64_t offset = call->sent.guest_memfd_offset, size = call->asked.size;
    uint32_t fd = call->sent.guest_memfd;
    struct stat status;

    if (call->asked.flags & ~FLAG_GUEST_MEMFD)
        return MEMFD_FLAGS_BESIDE;
    if (call->error == EEXIST && call->slot && !call->slot->live)
        return MEMFD_PLACE;
    if (call->error == EBADF)
        return MEMFD_BAD_FD;
    if (offset % PAGE_BYTES || offset + size < offset)
        return MEMFD_BAD_OFFSET;
    if (call->slot && call->slot->live && call->asked.size)
        return call->slot->untouchable ? MEMFD_CHANGE : MEMFD_TOGGLE;
    if (!is_memfd(fd))
        return MEMFD_NOT_ONE;
    if (files[fd].serial != vm->serial)
        return MEMFD_FOREIGN;
    if (fstat((int)fd, &status) || offset + size > (uint64_t)status.st_size)
        return MEMFD_PAST_END;
    return call->asked.gpa >> 36 ? MEMFD_PLACE : MEMFD_OVERLAP;
}

static enum memfd_case case_of(const struct vm *vm, const struct call *call, enum change change)
{
    if (call->error)
        return why_not_bound(vm, call);
    return change == DELETE ? MEMFD_DELETE : change == CREATE ? MEMFD_BIND : MEMFD_NOTHING;
}

static void undo(struct vm *vm, struct call *call, int answer)
{
    kernel_set(vm, (struct region){.id = call->asked.id});
    call->error = answer;
}

/* Alters the call before it is sent. */
static void misplace(struct vm *vm, struct call *call)
{
    if (call->change != CREATE)
        return;
    if (vm->fault->memfd == MEMFD_SHIFTED)
        call->sent.region.hva += PAGE_BYTES;
    if (vm->fault->memfd == MEMFD_AT_START)
        call->sent.guest_memfd_offset = 0;
}

/* A region call with a guest_memfd, or for a slot that has one. */
void set_memfd_region(struct vm *vm, struct call *call)
{
    enum change change = call->change;
    enum memfd_case which, wrong = vm->fault->memfd;

    if (change == DELETE && wrong_about(vm, MEMFD_DELETE)) {
        call->error = vm->fault->answer;
        return;
    }
    misplace(vm, call);
    forward(vm, call);
    which = case_of(vm, call, change);
    if (which == MEMFD_BIND && (wrong_about(vm, MEMFD_BIND) || vm->armed))
        undo(vm, call, vm->fault->answer);
    remember(vm, call);
    if (call->error && is_memfd(call->sent.guest_memfd) && wrong_about(vm, MEMFD_KEPT_OPEN))
        keep_open((int)call->sent.guest_memfd);
    if (call->error && wrong_about(vm, which))
        call->error = vm->fault->answer;
    vm->armed |= (wrong == MEMFD_HELD_BY_DELETED && which == MEMFD_DELETE)
              || (wrong == MEMFD_HELD_BY_REFUSED && which == MEMFD_PLACE);
}

#define MEMFD(fault_name, which, error, text, script)                                           \
    {.name = fault_name, .memfd = which, .answer = error, .sentence = text, .witness = script}

const struct fault memfd_faults[] = {
    MEMFD("memfd-refused", MEMFD_MAKE, EINVAL, "A guest_memfd cannot be made.", "memfd 4 0"),
    MEMFD("memfd-size-accepted", MEMFD_SIZE, 0,
          "A guest_memfd of a bad size is made, of one page.", "memfd 0 0"),
    MEMFD("memfd-flags-accepted", MEMFD_FLAGS, 0, "Unknown flags of a guest_memfd are dropped.",
          "memfd 4 80"),
    MEMFD("memfd-mmap-accepted", MEMFD_NO_MMAP, 0,
          "A guest_memfd without MMAP is mapped, as other memory.", "memfd 4 0; show 0 shared"),
    MEMFD("memfd-mmap-private-accepted", MEMFD_PRIVATE_MMAP, 0,
          "A guest_memfd is mapped privately, as other memory.", "memfd 4 3; show 0 private"),
    MEMFD("memfd-mmap-refused", MEMFD_MMAP, EPERM, "A guest_memfd with MMAP cannot be mapped.",
          "memfd 4 3; show 0 shared"),
    MEMFD("memfd-bad-fd-accepted", MEMFD_BAD_FD, 0,
          "A slot with a guest_memfd that is not open is answered with 0.",
          "bind 1 100 2 0 none 0"),
    MEMFD("memfd-bad-fd-einval", MEMFD_BAD_FD, EINVAL,
          "A guest_memfd that is not open is EINVAL instead of EBADF.", "bind 1 100 2 0 none 0"),
    MEMFD("memfd-other-file-accepted", MEMFD_NOT_ONE, 0,
          "A slot with a file that is no guest_memfd is answered with 0.",
          "bind 1 100 2 0 other 0"),
    MEMFD("memfd-foreign-accepted", MEMFD_FOREIGN, 0,
          "A slot with another VM's guest_memfd is answered with 0.",
          "foreign 4; bind 1 100 2 0 0 0"),
    MEMFD("memfd-past-end-accepted", MEMFD_PAST_END, 0,
          "A slot beyond the end of its guest_memfd is answered with 0.",
          "memfd 4 0; bind 1 100 2 0 0 3"),
    MEMFD("memfd-offset-accepted", MEMFD_BAD_OFFSET, 0,
          "A slot at a bad offset into its guest_memfd is answered with 0.",
          "bind 1 100 2 0 none 0+800"),
    MEMFD("memfd-overlap-accepted", MEMFD_OVERLAP, 0,
          "A second slot on the same pages of a guest_memfd is answered with 0.",
          "memfd 4 0; bind 1 100 2 0 0 0; bind 2 200 2 0 0 1"),
    MEMFD("memfd-overlap-ebusy", MEMFD_OVERLAP, EBUSY,
          "A second slot on the same pages of a guest_memfd is EBUSY.",
          "memfd 4 0; bind 1 100 2 0 0 0; bind 2 200 2 0 0 1"),
    MEMFD("memfd-flags-beside-accepted", MEMFD_FLAGS_BESIDE, 0,
          "A flag that GUEST_MEMFD excludes is answered with 0.",
          "bind 1 100 2 0 none 0 ro"),
    MEMFD("memfd-change-accepted", MEMFD_CHANGE, 0,
          "A change of a slot with a guest_memfd is answered with 0, and nothing is done.",
          "memfd 4 0; bind 1 100 2 0 0 0; bind 1 200 2 0 0 0"),
    MEMFD("memfd-toggle-accepted", MEMFD_TOGGLE, 0,
          "GUEST_MEMFD set on a slot that is there is answered with 0, and nothing is done.",
          "set 1 100 2 0; bind 1 100 2 0 none 0"),
    MEMFD("memfd-bind-refused", MEMFD_BIND, EINVAL, "No slot can be bound to a guest_memfd.",
          "memfd 4 0; bind 1 100 2 0 0 0"),
    MEMFD("memfd-bind-lost", MEMFD_BIND, 0,
          "A slot with a guest_memfd is answered with 0, and not made.",
          "memfd 4 0; bind 1 100 2 0 0 0; read 100"),
    MEMFD("memfd-bind-shifted", MEMFD_SHIFTED, 0,
          "A slot with a guest_memfd reaches the next page each.",
          "memfd 4 0; bind 1 100 2 0 0 0; read 100"),
    MEMFD("memfd-offset-ignored", MEMFD_AT_START, 0,
          "Every slot is bound to the start of its guest_memfd.",
          "memfd 4 0; bind 1 100 2 0 0 0; bind 2 200 2 0 0 2"),
    MEMFD("memfd-delete-refused", MEMFD_DELETE, EINVAL,
          "A slot with a guest_memfd cannot be deleted.",
          "memfd 4 0; bind 1 100 2 0 0 0; delete 1"),
    MEMFD("memfd-delete-lost", MEMFD_DELETE, 0,
          "Deletion of a slot with a guest_memfd answers 0 and does nothing.",
          "memfd 4 0; bind 1 100 2 0 0 0; delete 1; read 100"),
    MEMFD("memfd-held-by-deleted-slot", MEMFD_HELD_BY_DELETED, EEXIST,
          "A deleted slot holds on to its pages of the guest_memfd.",
          "memfd 4 0; bind 1 100 2 0 0 0; delete 1; bind 1 100 2 0 0 0"),
    MEMFD("memfd-held-by-refused-slot", MEMFD_HELD_BY_REFUSED, EEXIST,
          "A refused slot holds on to its pages of the guest_memfd.",
          "memfd 4 0; set 1 100 2 0; bind 2 100 2 0 0 0; bind 2 200 2 0 0 0"),
    MEMFD("memfd-closed-takes-slots", MEMFD_CLOSE, 0,
          "Closing a guest_memfd takes the slots that hold its pages away.",
          "memfd 4 0; bind 1 100 2 0 0 0; unmake 0; read 100"),
    MEMFD("memfd-punch-refused", MEMFD_PUNCH, EOPNOTSUPP,
          "No hole can be punched into a guest_memfd.", "memfd 4 0; punch 0 0 1"),
    MEMFD("memfd-punch-lost", MEMFD_PUNCH, 0,
          "A hole in a guest_memfd is answered with 0, and not punched.",
          "memfd 4 3; cover 0 4; bind 1 100 2 0 0 0; write 100; punch 0 0 1; read 100"),
    MEMFD("memfd-punch-range-accepted", MEMFD_PUNCH_RANGE, 0,
          "A hole of a bad offset or size is answered with 0.", "memfd 4 0; punch 0 0+800 1"),
    MEMFD("memfd-punch-mode-accepted", MEMFD_PUNCH_MODE, 0,
          "A hole that does not keep the size is answered with 0.", "memfd 4 0; punch 0 0 1 grow"),
    MEMFD("memfd-allocated-beyond", MEMFD_ALLOCATE, 0,
          "fallocate beyond the end of a guest_memfd is answered with 0.",
          "memfd 4 0; punch 0 4 1 fill"),
    MEMFD("memfd-allocated-anew", MEMFD_ALLOCATE_ZEROS, 0,
          "fallocate takes the pages that are there, and makes new ones.",
          "memfd 4 3; cover 0 4; bind 1 100 2 0 0 0; write 100; punch 0 0 1 fill; read 100"),
    MEMFD("memfd-punch-unbound-lost", MEMFD_PUNCH_UNBOUND, 0,
          "A hole where no slot is bound is answered with 0, and not punched.",
          "memfd 4 3; cover 0 4; bind 1 100 2 0 0 0; write 100; delete 1; punch 0 0 1; read 100"),
    MEMFD("memfd-punch-takes-the-next-page", MEMFD_PUNCH_WIDE, 0,
          "A hole in a guest_memfd is one page longer than asked.",
          "memfd 4 3; cover 0 4; bind 1 100 2 0 0 0; write 101; punch 0 0 1; read 101"),
    MEMFD("memfd-punch-takes-one-page", MEMFD_PUNCH_FIRST, 0,
          "A hole in a guest_memfd is one page long.",
          "memfd 4 3; cover 0 4; bind 1 100 2 0 0 0; write 101; punch 0 0 2; read 101"),
    MEMFD("memfd-punch-unseen-by-the-guest", MEMFD_PUNCH_UNSEEN, 0,
          "The guest goes on with what it knew of a page that was punched out of a guest_memfd.",
          "memfd 4 3; cover 0 4; bind 1 100 2 0 0 0; write 100; punch 0 0 1; read 100"),
    {0},
};
