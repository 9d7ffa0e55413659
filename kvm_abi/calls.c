/*
 * Included by the module that kvm_abi/_build.py generates.
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

#define ABI_EXIT_CODES (1ll << 60)
#define ABI_PORT_CODE (ABI_EXIT_CODES << 1)
#define ABI_PORT_DATA_AT 4096 /* KVM_PIO_PAGE_OFFSET */

static int64_t abi_port_code(const struct kvm_run *run)
{
    const struct kvm_exit_io *io = &run->io;
    uint64_t size = (uint64_t)io->size * io->count;
    uint32_t data = 0;

    if (!size || size > sizeof(data) || io->direction > 1 || io->data_offset != ABI_PORT_DATA_AT)
        return 0;
    memcpy(&data, (const char *)run + ABI_PORT_DATA_AT, size);
    return ABI_PORT_CODE | (int64_t)data | (int64_t)io->port << 32 | (int64_t)io->size << 48 |
           (int64_t)io->count << 51 | (int64_t)io->direction << 54;
}

static int64_t abi_read_code(const struct kvm_run *run)
{
    const struct kvm_exit_mmio *mmio = &run->mmio;

    if (mmio->is_write || !mmio->len || mmio->len > 8 || mmio->phys_addr >> 52)
        return 0;
    return ABI_EXIT_CODES | (int64_t)mmio->phys_addr | (int64_t)mmio->len << 52;
}

struct abi_vcpu {
    int fd;
    const struct kvm_run *run;
};

static int64_t abi_run(const struct abi_vcpu *vcpu)
{
    const struct kvm_run *run = vcpu->run;
    int result = abi_ioctl_value(vcpu->fd, ABI_KVM_RUN, 0);

    if (result)
        return result;
    switch (run->exit_reason) {
    case ABI_KVM_EXIT_IO:
        return abi_port_code(run);
    case ABI_KVM_EXIT_MMIO:
        return abi_read_code(run);
    default:
        return 0;
    }
}

static int abi_set_user_memory_region(int fd, uint32_t slot, uint32_t flags,
                                      uint64_t guest_phys_addr, uint64_t memory_size,
                                      uint64_t userspace_addr)
{
    struct kvm_userspace_memory_region region = {
        .slot = slot,
        .flags = flags,
        .guest_phys_addr = guest_phys_addr,
        .memory_size = memory_size,
        .userspace_addr = userspace_addr,
    };

    return abi_ioctl_struct(fd, ABI_KVM_SET_USER_MEMORY_REGION, &region);
}

static uint32_t abi_harvest(struct kvm_dirty_gfn *entries, uint32_t count, uint32_t next,
                            uint64_t *found)
{
    uint32_t harvested;

    for (harvested = 0; harvested < count; harvested++, next++, found += 2) {
        volatile struct kvm_dirty_gfn *entry = &entries[next % count];

        /* The kernel writes an entry before its flags. x86 keeps the order of loads and stores, and
         * the compiler that of volatile accesses. */
        if (entry->flags != ABI_KVM_DIRTY_GFN_DIRTY)
            break;
        found[0] = entry->slot;
        found[1] = entry->offset;
        entry->flags = ABI_KVM_DIRTY_GFN_RESET;
    }
    return harvested;
}

static int abi_run_past_mmio(int fd, struct kvm_run *run, uint8_t answer, uint16_t end_port,
                             uint64_t *passed, uint32_t room, uint32_t *count)
{
    const struct kvm_regs *shared = (const void *)run->s.padding;
    const struct kvm_exit_mmio *mmio = &run->mmio;
    int result = 0;

    for (*count = 0; *count < room; ++*count, passed += 4) {
        result = abi_ioctl_value(fd, ABI_KVM_RUN, 0);
        if (result || run->exit_reason != ABI_KVM_EXIT_MMIO || mmio->is_write > 1)
            break;
        if (!mmio->is_write)
            memset(run->mmio.data, answer, sizeof(mmio->data));
        passed[0] = shared->rip;
        passed[1] = mmio->phys_addr;
        passed[2] = mmio->len | (uint64_t)mmio->is_write << 32;
        memcpy(&passed[3], mmio->data, sizeof(mmio->data));
    }
    if (!result && run->exit_reason == ABI_KVM_EXIT_IO && run->io.port == end_port)
        result = ABI_AT_END;
    return result;
}

/* The compiler may assume that there is no object at address 0, but here there can be.
 * It knows nothing about an address that comes out of asm. */
static void *abi_pointer(uint64_t address)
{
    __asm__("" : "+r"(address));
    return (void *)address;
}

static int64_t abi_mmap(uint64_t address, uint64_t size_bytes, int protection, int flags,
                        int fd, int64_t offset_bytes)
{
    void *mapped = mmap(abi_pointer(address), size_bytes, protection, flags, fd, offset_bytes);

    return mapped == MAP_FAILED ? -errno : (int64_t)mapped;
}

static int abi_munmap(uint64_t address, uint64_t size_bytes)
{
    return abi_result(munmap(abi_pointer(address), size_bytes));
}

static int abi_mprotect(uint64_t address, uint64_t size_bytes, int protection)
{
    return abi_result(mprotect(abi_pointer(address), size_bytes, protection));
}

static int abi_madvise(uint64_t address, uint64_t size_bytes, int advice)
{
    return abi_result(madvise(abi_pointer(address), size_bytes, advice));
}

/*
 * Moves pages elsewhere, one by one, since adjacent pages may be separate mappings. At every moment
 * something is mapped at both the old and the new addresses.
 */
static int abi_move_pages(uint64_t address, uint64_t pages, uint64_t to)
{
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED | 4 /* MREMAP_DONTUNMAP */;

	for (uint64_t at = 0; at < pages * 4096; at += 4096)
		if (mremap((void *)(address + at), 4096, 4096, flags, (void *)(to + at))
		    == MAP_FAILED)
			return -1;
	return 0;
}

static int abi_fallocate(int fd, int mode, uint64_t offset, uint64_t size_bytes)
{
    return abi_result(fallocate(fd, mode, (off_t)offset, (off_t)size_bytes));
}

static int abi_die_with_parent(int parent)
{
    int result = abi_result(prctl(PR_SET_PDEATHSIG, SIGKILL));

    /* The parent may have died before the prctl. */
    if (!result && getppid() != parent)
        raise(SIGKILL);
    return result;
}

static int abi_name_process(const char *name)
{
    return abi_result(prctl(PR_SET_NAME, name));
}

static uint64_t abi_differences(uint64_t address, const void *from, uint64_t size_bytes,
                                uint64_t block_bytes, uint64_t *found, uint64_t max_found)
{
    const unsigned char *now = abi_pointer(address), *then = from;
    uint64_t block, at, start, end, count = 0;

    for (block = 0; block < size_bytes; block += block_bytes) {
        if (!memcmp(now + block, then + block, block_bytes))
            continue;
        end = block + block_bytes;
        for (at = block; at < end; at++) {
            if (now[at] == then[at])
                continue;
            if (count == max_found)
                return count;
            for (start = at; at < end && now[at] != then[at]; at++)
                ;
            found[2 * count] = start;
            found[2 * count + 1] = at - start;
            count++;
        }
    }
    return count;
}

static uint64_t abi_news(const uint64_t *watched, uint64_t count, uint64_t *place,
                         uint64_t block_bytes, uint64_t *found, uint64_t max_found, void *data,
                         uint64_t max_data)
{
    uint64_t at, start, end, used = 0, news = 0;
    unsigned char *to = data;

    for (; place[0] < count; place[0]++, place[1] = 0) {
        const uint64_t *stretch = &watched[3 * place[0]];
        const unsigned char *now = abi_pointer(stretch[0]);
        unsigned char *then = abi_pointer(stretch[1]);

        for (; place[1] < stretch[2]; place[1] += block_bytes) {
            if (!memcmp(now + place[1], then + place[1], block_bytes))
                continue;
            end = place[1] + block_bytes;
            for (at = place[1]; at < end; at++) {
                if (now[at] == then[at])
                    continue;
                if (news == max_found || max_data - used < end - at)
                    return news;
                for (start = at; at < end && now[at] != then[at]; at++)
                    to[used++] = then[at] = now[at];
                found[3 * news] = place[0];
                found[3 * news + 1] = start;
                found[3 * news + 2] = at - start;
                news++;
            }
        }
    }
    return news;
}

static int abi_next_shared_mapping(int fd, uint64_t address, uint64_t *place, char *name,
                                   uint32_t name_size)
{
    struct abi_procmap_query query = {
        .size = sizeof(query),
        .flags = ABI_PROCMAP_SHARED | ABI_PROCMAP_COVERING_OR_NEXT,
        .address = address,
        .name_size = name_size,
        .name = (uintptr_t)name,
    };
    int result = abi_ioctl_struct(fd, ABI_PROCMAP_QUERY, &query);

    place[0] = query.start;
    place[1] = query.end;
    if (!query.name_size)
        *name = 0;
    return result;
}
