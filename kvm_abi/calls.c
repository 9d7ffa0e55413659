/*
 * Included by the module that kvm_abi/_build.py generates.
 *
 * The functions are called through their ordinary symbols of libc, so a library
 * in LD_PRELOAD can stand between this program and the kernel.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

static int abi_result(int result) { return result < 0 ? -errno : result; }

static int abi_ioctl_struct(int fd, unsigned long request, void *arg)
{
    return abi_result(ioctl(fd, request, arg));
}

static int abi_ioctl_value(int fd, unsigned long request, unsigned long arg)
{
    return abi_result(ioctl(fd, request, arg));
}

/* The compiler may assume that no object lives at address 0; here one can.
 * An address that has passed through the asm is one it knows nothing about. */
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

static int abi_punch_hole(int fd, int keep_size, uint64_t offset, uint64_t size_bytes)
{
    int mode = FALLOC_FL_PUNCH_HOLE | (keep_size ? FALLOC_FL_KEEP_SIZE : 0);

    return abi_result(fallocate(fd, mode, (off_t)offset, (off_t)size_bytes));
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
