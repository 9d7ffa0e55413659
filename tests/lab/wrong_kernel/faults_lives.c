/* VMs that outlive their closing, as seen in the process or only in the kernel's memory. */
#include "wrong_kernel.h"

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define QUEUE_BYTES (1 << 30)

/* A file that is sent here and never received stays open, invisibly, and for children, too: the
 * first process with this library creates the socket. */
static int queue[2];

static __attribute__((constructor)) void open_queue(void)
{
    int size = QUEUE_BYTES;

    if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, queue) == 0)
        setsockopt(queue[0], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
}

int lost_and_found(void)
{
    return queue[0];
}

void keep_open(int fd)
{
    char byte = 0;
    struct iovec data = {.iov_base = &byte, .iov_len = 1};
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control,
        .msg_controllen = sizeof(control.room),
    };

    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(sizeof(int));
    *(int *)CMSG_DATA(&control.header) = fd;
    (void)!sendmsg(queue[0], &message, 0);
}

static void keep_vm(struct vm *vm)
{
    if (vm->serial % vm->every == 0)
        keep_open(vm->fd);
}

static void leave_file(struct vm *vm)
{
    (void)!syscall(SYS_dup, vm->fd);
}

/* Unlike the memory of an internal slot, nothing tells whose this is. */
static void leave_memory(struct vm *vm, struct call *call)
{
    if (did(call, MOVE) && strike(vm))
        mmap(NULL, PAGE_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void write_on_leaving(struct vm *vm)
{
    uint32_t word = 0x1eaf;

    for (uint32_t i = 0; i < vm->nr_used; i++) {
        struct slot *slot = &vm->slots[vm->used[i]];
        if (may_touch(slot) && strike(vm))
            overwrite(slot->known.hva, &word, sizeof(word));
    }
}

/* Kernel memory is leaked by leaking a VM: nothing smaller shows as clearly. */
static void lose_memory(struct vm *vm, struct call *call)
{
    static int any = -1;
    int lost;

    if (any < 0)
        any = (int)syscall(SYS_openat, -100, "/dev/kvm", 02000002);
    if (!did(call, MOVE) || !strike(vm))
        return;
    lost = kernel_ioctl(any, KVM_CREATE_VM, NULL);
    keep_open(lost);
    syscall(SYS_close, lost);
}

const struct fault lives_faults[] = {
    {.name = "closed-vms-kept", .made = keep_vm, .every = 8,
     .sentence = "The kernel keeps every eighth VM for ever.", .witness = "vms 1000"},
    {.name = "killed-vms-kept", .made = keep_vm, .every = 2,
     .sentence = "The kernel keeps every second VM for ever.", .witness = "vms 240"},
    {.name = "vm-file-left", .closing = leave_file,
     .sentence = "A VM that is closed leaves an open file behind.", .witness = "vms 1"},
    {.name = "changes-lose-addresses", .after = leave_memory,
     .sentence = "Every move leaves a page of anonymous memory behind in the process.",
     .witness = "shuttle 1000"},
    {.name = "closing-writes-to-slots", .closing = write_on_leaving,
     .sentence = "Closing a VM writes to the first page of each slot.",
     .witness = "set 1 100 1 0; newvm"},
    {.name = "changes-lose-memory", .after = lose_memory, .every = 3,
     .sentence = "Every third move loses memory of the kernel.", .witness = "shuttle 1000"},
    {0},
};
