/*
 * The ioctls. Included by the module that kvm_abi/_build.py generates, and by frequent.c.
 *
 * System calls go through libc's ordinary symbols, so that a library in
 * LD_PRELOAD can intercept them.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define ABI_KVM_RUN 0xae80
#define ABI_KVM_EXIT_IO 2
#define ABI_KVM_EXIT_MMIO 6
#define ABI_KVM_GET_SUPPORTED_CPUID 0xc008ae05
#define ABI_KVM_SET_USER_MEMORY_REGION 0x4020ae46
#define ABI_KVM_GET_MSRS 0xc008ae88
#define ABI_KVM_SET_MSRS 0x4008ae89
#define ABI_KVM_SET_CPUID2 0x4008ae90
#define ABI_KVM_CLEAR_DIRTY_LOG 0xc018aec0
#define ABI_KVM_CREATE_GUEST_MEMFD 0xc040aed4
#define ABI_KVM_DIRTY_GFN_DIRTY 1
#define ABI_KVM_DIRTY_GFN_RESET 2

/* PROCMAP_QUERY (struct procmap_query), which headers before Linux 6.11 lack. */
#define ABI_PROCMAP_QUERY _IOWR('f', 17, struct abi_procmap_query)
#define ABI_PROCMAP_SHARED 0x08
#define ABI_PROCMAP_COVERING_OR_NEXT 0x10

struct abi_procmap_query {
    uint64_t size, flags, address;
    uint64_t start, end, vma_flags, page_size, offset, inode;
    uint32_t dev_major, dev_minor, name_size, build_id_size;
    uint64_t name, build_id;
};

#define ABI_NO_ERRNO 4095 /* MAX_ERRNO: for a call that failed without setting errno */

static int abi_result(int result)
{
    return result < 0 ? -(errno ? errno : ABI_NO_ERRNO) : result;
}

#define ABI_WRITTEN_TO 0x40000000
#define ABI_AT_END 0x20000000
#define ABI_PLACES 16
#define ABI_PAGE 4096

/* By their numbers two requests write to their argument; in fact the kernel only reads it. */
static int abi_only_reads(unsigned long request)
{
    return _IOC_DIR(request) == _IOC_WRITE || request == ABI_KVM_CLEAR_DIRTY_LOG ||
           request == ABI_KVM_CREATE_GUEST_MEMFD;
}

/* Structures that are followed by an array whose length is a field. */
static int abi_has_array(unsigned long request)
{
    return request == ABI_KVM_GET_SUPPORTED_CPUID || request == ABI_KVM_SET_CPUID2 ||
           request == ABI_KVM_GET_MSRS || request == ABI_KVM_SET_MSRS;
}

/* Places for structures, each at the end of memory: a kernel that reads or writes more than the
 * size in the request's number answers EFAULT. */
static struct {
    unsigned char room[ABI_PAGE], end[ABI_PAGE];
} abi_places[ABI_PLACES] __attribute__((aligned(ABI_PAGE)));
static _Atomic uint32_t abi_taken;

/* Returns a place that no other thread uses, or -1. */
static int abi_take_place(void)
{
    static unsigned char ends[ABI_PLACES];
    int place;

    for (place = 0; place < ABI_PLACES; place++)
        if (!(atomic_fetch_or(&abi_taken, 1u << place) >> place & 1))
            break;
    if (place == ABI_PLACES)
        return -1;
    if (!ends[place])
        ends[place] = !mprotect(abi_places[place].end, ABI_PAGE, PROT_NONE);
    return place;
}

static int abi_ioctl_struct(int fd, unsigned long request, void *arg)
{
    unsigned char copy[1 << _IOC_SIZEBITS];
    unsigned long size = _IOC_SIZE(request);
    int result, place = abi_has_array(request) || size > ABI_PAGE ? -1 : abi_take_place();
    void *passed = place < 0 ? arg : abi_places[place].end - size;
    void *kept = place < 0 ? copy : arg;

    memcpy(place < 0 ? kept : passed, arg, size);
    errno = 0;
    result = abi_result(ioctl(fd, request, passed));
    if (!abi_only_reads(request))
        memmove(arg, passed, size);
    else if (memcmp(kept, passed, size))
        result = ABI_WRITTEN_TO;
    if (place >= 0)
        atomic_fetch_and(&abi_taken, ~(1u << place));
    return result;
}

static int abi_ioctl_value(int fd, unsigned long request, unsigned long arg)
{
    errno = 0;
    return abi_result(ioctl(fd, request, arg));
}
