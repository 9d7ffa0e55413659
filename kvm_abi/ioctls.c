/*
 * The ioctls. Included by the module that kvm_abi/_build.py generates, and by frequent.c.
 *
 * System calls go through libc's ordinary symbols, so that a library in
 * LD_PRELOAD can intercept them.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
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
#define ABI_PAGE 4096ull
#define ABI_SMALL 512

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
 * size in the request's number answers EFAULT. A system call may cost its caller the TLB: so the
 * first place, for small structures, is at the end of the page where other variables are. */
static unsigned char abi_area[2 * ABI_PLACES * ABI_PAGE + ABI_SMALL];
static struct {
    atomic_flag taken;
    int ends;
} abi_places[ABI_PLACES];

static unsigned char *abi_end_of(int place)
{
    uintptr_t first = ((uintptr_t)abi_area + ABI_SMALL + ABI_PAGE - 1) & -(uintptr_t)ABI_PAGE;

    return abi_area + (first - (uintptr_t)abi_area) + 2 * place * ABI_PAGE;
}

/* Of the threads, a new process has the one that forked: no other gives its place back. */
static void abi_free_places(void)
{
    int place;

    for (place = 0; place < ABI_PLACES; place++)
        atomic_flag_clear(&abi_places[place].taken);
}

static void __attribute__((constructor)) abi_free_places_after_fork(void)
{
    pthread_atfork(NULL, NULL, abi_free_places);
}

/* Returns a place that no other thread uses, or -1. */
static int abi_take_place(unsigned long size)
{
    int place = size > ABI_SMALL;

    while (atomic_flag_test_and_set(&abi_places[place].taken))
        if (++place == ABI_PLACES)
            return -1;
    if (!abi_places[place].ends)
        abi_places[place].ends = !mprotect(abi_end_of(place), ABI_PAGE, PROT_NONE);
    return place;
}

/* For structures that have no place; a copy says whether the kernel wrote. */
static int abi_ioctl_copied(int fd, unsigned long request, void *arg)
{
    unsigned char copy[1 << _IOC_SIZEBITS];
    unsigned long size = _IOC_SIZE(request);
    int result;

    memcpy(copy, arg, size);
    errno = 0;
    result = abi_result(ioctl(fd, request, arg));
    return abi_only_reads(request) && memcmp(copy, arg, size) ? ABI_WRITTEN_TO : result;
}

/* Inline, so that the structure of a request that is a constant is copied by a few instructions. */
static inline __attribute__((always_inline)) int abi_issue_struct(int fd, unsigned long request,
                                                                  void *arg)
{
    unsigned long size = _IOC_SIZE(request);
    int result, place = abi_has_array(request) || size > ABI_PAGE ? -1 : abi_take_place(size);
    void *passed;

    if (place < 0)
        return abi_ioctl_copied(fd, request, arg);
    passed = abi_end_of(place) - size;
    memcpy(passed, arg, size);
    errno = 0;
    result = abi_result(ioctl(fd, request, passed));
    if (!abi_only_reads(request))
        memcpy(arg, passed, size);
    else if (memcmp(arg, passed, size))
        result = ABI_WRITTEN_TO;
    atomic_flag_clear(&abi_places[place].taken);
    return result;
}

static int abi_ioctl_value(int fd, unsigned long request, unsigned long arg)
{
    errno = 0;
    return abi_result(ioctl(fd, request, arg));
}
