/* Changes of the pool by the host, other than dropping pages. */
#include "witness.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define READ_WRITE (PROT_READ | PROT_WRITE)
#define FRESH (MAP_PRIVATE | MAP_ANONYMOUS)

static int file = -1, changed;

/* A page may have no memory, or lie beyond the end of its file. */
int may_look_at(uint64_t page)
{
    uint8_t byte;
    struct iovec to = {&byte, 1}, from = {pool + page * PAGE, 1};

    return !changed || process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 1;
}

static void put(uint64_t page, uint64_t count, int protection, int flags, int fd)
{
    void *at = pool + page * PAGE;

    need(mmap(at, count * PAGE, protection, flags | MAP_FIXED, fd, 0) == at, "mmap");
    if (protection != PROT_NONE)
        memcpy(shadow + page * PAGE, at, count * PAGE);
}

static void put_file(uint64_t page, uint64_t count, int flags)
{
    file = memfd_create("witness", 0);
    need(file >= 0 && ftruncate(file, (off_t)(count * PAGE)) == 0, "a file");
    for (uint64_t i = 0; i < count; i++) {
        uint32_t word = 0xf11e0000u + (uint32_t)i;
        need(pwrite(file, &word, sizeof(word), (off_t)(i * PAGE)) == sizeof(word), "pwrite");
    }
    put(page, count, READ_WRITE, flags, file);
}

/* userfaultfd on pages of the pool, answered by a thread. */
static struct {
    int fd, active, guards, stop[2];
    uint64_t start, size, held;
    uint8_t *copy;
    pthread_t thread;
} pager = {.fd = -1};

static void guard(uint64_t start, uint64_t size, uint64_t mode)
{
    struct uffdio_writeprotect protect = {.range = {start, size}, .mode = mode};

    while (ioctl(pager.fd, UFFDIO_WRITEPROTECT, &protect) && errno == EAGAIN)
        ;
}

static void *serve(void *unused)
{
    struct pollfd ready[2] = {{.fd = pager.fd, .events = POLLIN},
                              {.fd = pager.stop[0], .events = POLLIN}};
    struct uffd_msg message;

    while (poll(ready, 2, -1) < 0 || !ready[1].revents)
        while (read(pager.fd, &message, sizeof(message)) == sizeof(message)) {
            uint64_t at = message.arg.pagefault.address & -PAGE;
            struct uffdio_copy copy = {
                .dst = at, .src = (uint64_t)pager.copy + at - pager.start, .len = PAGE,
            };
            pager.held++;
            if (pager.guards)
                guard(at, PAGE, 0);
            else
                ioctl(pager.fd, UFFDIO_COPY, &copy);
        }
    return unused;
}

static void page_later(uint64_t page, uint64_t count, int guards)
{
    struct uffdio_api api = {
        .api = UFFD_API, .features = guards ? UFFD_FEATURE_PAGEFAULT_FLAG_WP : 0,
    };
    struct uffdio_register range = {
        .range = {(uint64_t)pool + page * PAGE, count * PAGE},
        .mode = guards ? UFFDIO_REGISTER_MODE_WP : UFFDIO_REGISTER_MODE_MISSING,
    };

    pager.fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    pager.start = range.range.start;
    pager.size = range.range.len;
    pager.guards = guards;
    pager.held = 0;
    pager.active = 1;
    pager.copy = malloc(pager.size);
    memcpy(pager.copy, pool + page * PAGE, pager.size);
    need(pager.fd >= 0 && !ioctl(pager.fd, UFFDIO_API, &api)
             && !ioctl(pager.fd, UFFDIO_REGISTER, &range) && !pipe(pager.stop),
         "userfaultfd");
    need(!pthread_create(&pager.thread, NULL, serve, NULL), "a thread");
    if (guards)
        guard(pager.start, pager.size, UFFDIO_WRITEPROTECT_MODE_WP);
    else
        need(!madvise(pool + page * PAGE, pager.size, MADV_DONTNEED), "MADV_DONTNEED");
}

static void settle(void)
{
    uint8_t seen = 0;

    if (!pager.active)
        return;
    for (uint64_t at = 0; at < pager.size && !pager.guards; at += PAGE)
        seen += *(volatile uint8_t *)(pager.start + at);
    need(write(pager.stop[1], &seen, 1) == 1, "write");
    pthread_join(pager.thread, NULL);
    close(pager.fd);
    close(pager.stop[0]);
    close(pager.stop[1]);
    free(pager.copy);
    pager.active = 0;
}

void heal_pool(void)
{
    settle();
    if (changed)
        put(0, POOL_PAGES, READ_WRITE, FRESH, -1);
    if (file >= 0)
        close(file);
    file = -1;
    changed = 0;
}

static uint8_t *elsewhere(void)
{
    static void *room;

    if (!room)
        room = mmap(NULL, POOL_PAGES * PAGE, PROT_NONE, FRESH, -1, 0);
    need(room != MAP_FAILED, "mmap");
    return room;
}

/* Nothing is mapped in place of the pages. */
static void move(uint64_t page, uint64_t count, uint8_t *from, uint8_t *to)
{
    size_t size = count * PAGE;
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;

    from += page * PAGE;
    to += page * PAGE;
    need(mremap(from, size, size, flags, to) == to, "mremap");
    need(mmap(from, size, PROT_NONE, FRESH | MAP_FIXED, -1, 0) == from, "mmap");
}

/* The child ends at once, and then the parent alone has the shared pages. */
static void fork_once(void)
{
    pid_t child = fork();

    need(child >= 0, "fork");
    if (!child)
        _exit(0);
    waitpid(child, NULL, 0);
}

static int protection_of(const char *word)
{
    return !strcmp(word, "none") ? PROT_NONE : !strcmp(word, "ro") ? PROT_READ : READ_WRITE;
}

int play_host(char words[][32], int count)
{
    uint64_t page = count > 2 ? pages(words[1]) / PAGE : 0;
    uint64_t many = count > 2 ? pages(words[2]) / PAGE : 0;

    if (count == 4 && !strcmp(words[0], "protect"))
        need(!mprotect(pool + page * PAGE, many * PAGE, protection_of(words[3])), "mprotect");
    else if (count == 3 && !strcmp(words[0], "fresh"))
        put(page, many, READ_WRITE, FRESH, -1);
    else if (count == 3 && !strcmp(words[0], "unmap"))
        put(page, many, PROT_NONE, FRESH, -1);
    else if (count == 4 && !strcmp(words[0], "file"))
        put_file(page, many, words[3][0] == 's' ? MAP_SHARED : MAP_PRIVATE);
    else if (count == 2 && !strcmp(words[0], "truncate"))
        show_error(ftruncate(file, (off_t)pages(words[1])) ? errno : 0);
    else if (count == 3 && !strcmp(words[0], "moveaway"))
        move(page, many, pool, elsewhere());
    else if (count == 3 && !strcmp(words[0], "moveback"))
        move(page, many, elsewhere(), pool);
    else if (count == 3 && !strcmp(words[0], "pageout"))
        need(!madvise(pool + page * PAGE, many * PAGE, 21), "MADV_PAGEOUT");
    else if (count == 3 && !strcmp(words[0], "merge"))
        need(!madvise(pool + page * PAGE, many * PAGE, MADV_MERGEABLE), "MADV_MERGEABLE");
    else if (count == 3 && !strcmp(words[0], "collapse"))
        (void)!madvise((void *)((uintptr_t)(pool + page * PAGE) & -(2ul << 20)), 2 << 20, 25);
    else if (count == 3 && (!strcmp(words[0], "fetch") || !strcmp(words[0], "guard")))
        page_later(page, many, words[0][0] == 'g');
    else if (count == 1 && !strcmp(words[0], "settle")) {
        settle();
        printf(" held %d", (int)pager.held);
    } else if (count == 1 && !strcmp(words[0], "forked"))
        fork_once();
    else
        return 0;
    changed = 1;
    return 1;
}
