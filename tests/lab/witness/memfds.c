/* guest_memfds. */
#include "witness.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_FILES 4

struct region2 {
    struct kvm_userspace_memory_region region;
    uint64_t guest_memfd_offset;
    uint32_t guest_memfd, pad1;
    uint64_t pad2[14];
};

static int other_vm = -1, files[MAX_FILES], nr_files;
static uint64_t covered; /* bytes of the pool that map a guest_memfd */

static void make_memfd(int owner, uint64_t size, uint64_t flags)
{
    uint64_t wanted[8] = {size, flags};
    int fd = ioctl(owner, _IOWR(KVMIO, 0xd4, uint64_t[8]), wanted);

    show_error(fd < 0 ? errno : 0);
    if (fd >= 0 && nr_files < MAX_FILES)
        files[nr_files++] = fd;
}

static int file_of(const char *text)
{
    if (!strcmp(text, "other"))
        return kvm;
    return atoi(text) < nr_files && strcmp(text, "none") ? files[atoi(text)] : -1;
}

static void bind_memfd(char words[][32], int count)
{
    bool is_plain = !strcmp(words[5], "plain");
    struct region2 call = {
        .region = {
            .slot = id_of(words[1]),
            .flags = (is_plain ? 0 : 1u << 2) | (count > 7 ? flags_of(words[7]) : 0),
            .guest_phys_addr = gpa_of(words[2]), .memory_size = pages(words[3]),
            .userspace_addr = hva_of(words[4]),
        },
        .guest_memfd = is_plain ? 0 : (uint32_t)file_of(words[5]),
        .guest_memfd_offset = pages(words[6]),
    };

    show_error(ioctl(vm, _IOW(KVMIO, 0x49, struct region2), &call) ? errno : 0);
}

static void show_memfd(int fd, int kind)
{
    void *mapped = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, kind, fd, 0);

    show_error(mapped == MAP_FAILED ? errno : 0);
    if (mapped != MAP_FAILED)
        munmap(mapped, PAGE);
}

static void cover_pool(int fd, uint64_t size)
{
    void *at = mmap(pool, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);

    show_error(at == MAP_FAILED ? errno : 0);
    memcpy(shadow, pool, size);
    covered = at == MAP_FAILED ? 0 : size;
}

static void uncover_pool(void)
{
    int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;

    if (covered)
        need(mmap(pool, covered, PROT_READ | PROT_WRITE, kind, -1, 0) == pool, "the pool");
    covered = 0;
}

static void punch_memfd(int fd, uint64_t offset, uint64_t size, const char *how)
{
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

    if (!strcmp(how, "grow"))
        mode &= ~FALLOC_FL_KEEP_SIZE;
    else if (!strcmp(how, "fill"))
        mode &= ~FALLOC_FL_PUNCH_HOLE;
    show_error(fallocate(fd, mode, (off_t)offset, (off_t)size) ? errno : 0);
}

static void refuse_file(void)
{
    char words[][32] = {"bind", "1", "100", "2", "0", "0", "1"};

    make_memfd(vm, PAGE, 0);
    bind_memfd(words, 7);
    close(files[--nr_files]);
}

void close_memfds(void)
{
    while (nr_files)
        close(files[--nr_files]);
    if (other_vm >= 0)
        close(other_vm);
    other_vm = -1;
    uncover_pool();
}

int play_memfd(char words[][32], int count)
{
    if (count == 3 && !strcmp(words[0], "memfd")) {
        make_memfd(vm, pages(words[1]), strtoull(words[2], NULL, 16));
    } else if (count == 2 && !strcmp(words[0], "foreign")) {
        other_vm = ioctl(kvm, KVM_CREATE_VM, 0);
        make_memfd(other_vm, pages(words[1]), 0);
    } else if (count >= 7 && !strcmp(words[0], "bind")) {
        bind_memfd(words, count);
    } else if (count == 3 && !strcmp(words[0], "cover")) {
        cover_pool(file_of(words[1]), pages(words[2]));
    } else if (count >= 4 && !strcmp(words[0], "punch")) {
        punch_memfd(file_of(words[1]), pages(words[2]), pages(words[3]),
                    count > 4 ? words[4] : "");
    } else if (count == 3 && !strcmp(words[0], "show")) {
        show_memfd(file_of(words[1]), words[2][0] == 's' ? MAP_SHARED : MAP_PRIVATE);
    } else if (count == 2 && !strcmp(words[0], "unmake")) {
        show_error(close(file_of(words[1])) ? errno : 0);
    } else if (count == 1 && !strcmp(words[0], "refusedfile")) {
        refuse_file();
    } else {
        return 0;
    }
    return 1;
}
