/*
 * Included by the module that kvm_abi/_build.py generates: userfaultfd, and its thread.
 *
 * The thread is written in C, since a thread that waits for a page may hold the GIL.
 */

#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/syscall.h>

struct abi_pager {
    int fd, stop[2];
    int guards;           /* write faults; else missing pages are fetched */
    uint64_t start, pages;
    unsigned char *copy;  /* the initial content of the pages */
    unsigned char *met;   /* by page: whether there was a write fault */
    unsigned char *bad;   /* by page: whether it had changed before the fault */
    pthread_t thread;
};

static int abi_uffd(struct abi_pager *pager, unsigned long request, void *argument)
{
    return ioctl(pager->fd, request, argument) ? -errno : 0;
}

static int abi_fetch(struct abi_pager *pager, uint64_t page)
{
    struct uffdio_copy copy = {
        .dst = pager->start + page * ABI_PAGE,
        .src = (uintptr_t)(pager->copy + page * ABI_PAGE),
        .len = ABI_PAGE,
    };
    struct uffdio_range woken = {.start = copy.dst, .len = ABI_PAGE};
    int result;

    do
        result = abi_uffd(pager, UFFDIO_COPY, &copy);
    while (result == -EAGAIN);
    if (result == -EEXIST) /* Two threads faulted at once. */
        result = abi_uffd(pager, UFFDIO_WAKE, &woken);
    return result;
}

static int abi_guard(struct abi_pager *pager, uint64_t page, uint64_t pages, int mode)
{
    struct uffdio_writeprotect protect = {
        .range = {.start = pager->start + page * ABI_PAGE, .len = pages * ABI_PAGE},
        .mode = mode,
    };
    int result;

    do
        result = abi_uffd(pager, UFFDIO_WRITEPROTECT, &protect);
    while (result == -EAGAIN);
    return result;
}

static int abi_has_changed(const struct abi_pager *pager, uint64_t page)
{
    const unsigned char *now = (const unsigned char *)(uintptr_t)pager->start;

    return memcmp(now + page * ABI_PAGE, pager->copy + page * ABI_PAGE, ABI_PAGE) != 0;
}

static void abi_answer(struct abi_pager *pager, const struct uffd_msg *message)
{
    uint64_t page = (message->arg.pagefault.address - pager->start) / ABI_PAGE;

    if (message->event != UFFD_EVENT_PAGEFAULT || page >= pager->pages)
        return;
    if (!pager->guards) {
        abi_fetch(pager, page);
        return;
    }
    if (!pager->met[page])
        pager->bad[page] = abi_has_changed(pager, page);
    pager->met[page] = 1;
    abi_guard(pager, page, 1, 0);
}

static void *abi_serve(void *argument)
{
    struct abi_pager *pager = argument;
    struct pollfd ready[2] = {{.fd = pager->fd, .events = POLLIN},
                              {.fd = pager->stop[0], .events = POLLIN}};
    struct uffd_msg message;

    for (;;) {
        if (poll(ready, 2, -1) < 0 && errno != EINTR)
            return NULL;
        while (read(pager->fd, &message, sizeof(message)) == sizeof(message))
            abi_answer(pager, &message);
        if (ready[1].revents)
            return NULL;
    }
}

static void abi_pager_free(struct abi_pager *pager)
{
    if (pager->fd >= 0)
        close(pager->fd);
    for (int end = 0; end < 2; end++)
        if (pager->stop[end] >= 0)
            close(pager->stop[end]);
    free(pager->copy);
    free(pager->met);
    free(pager->bad);
    free(pager);
}

static int abi_pager_register(struct abi_pager *pager)
{
    struct uffdio_api api = {
        .api = UFFD_API, .features = pager->guards ? UFFD_FEATURE_PAGEFAULT_FLAG_WP : 0,
    };
    struct uffdio_register range = {
        .range = {.start = pager->start, .len = pager->pages * ABI_PAGE},
        .mode = pager->guards ? UFFDIO_REGISTER_MODE_WP : UFFDIO_REGISTER_MODE_MISSING,
    };
    int result = abi_uffd(pager, UFFDIO_API, &api);

    return result ? result : abi_uffd(pager, UFFDIO_REGISTER, &range);
}

/* The copy is of pages that nobody can write: who tries waits until the thread serves. */
static int abi_pager_guard(struct abi_pager *pager)
{
    int result = abi_guard(pager, 0, pager->pages, UFFDIO_WRITEPROTECT_MODE_WP);

    memcpy(pager->copy, abi_pointer(pager->start), pager->pages * ABI_PAGE);
    return result;
}

static int abi_pager_begin(struct abi_pager *pager)
{
    sigset_t every, before;
    int result;

    pager->fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (pager->fd < 0 || pipe2(pager->stop, O_CLOEXEC))
        return -errno;
    result = abi_pager_register(pager);
    if (!result && pager->guards)
        result = abi_pager_guard(pager);
    if (result)
        return result;
    sigfillset(&every); /* The existing threads handle signals. */
    pthread_sigmask(SIG_SETMASK, &every, &before);
    result = -pthread_create(&pager->thread, NULL, abi_serve, pager);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return result;
}

static int abi_pager_start(uint64_t start, uint64_t pages, int guards, void **started)
{
    struct abi_pager *pager = calloc(1, sizeof(*pager));
    uint64_t size = pages * ABI_PAGE;
    int result;

    *pager = (struct abi_pager){
        .fd = -1, .stop = {-1, -1}, .guards = guards, .start = start, .pages = pages,
        .copy = malloc(size), .met = calloc(pages, 1), .bad = calloc(pages, 1),
    };
    memcpy(pager->copy, abi_pointer(start), size); /* Only pages that are present are guarded. */
    result = abi_pager_begin(pager);
    if (result) {
        abi_pager_free(pager);
        return result;
    }
    result = guards ? 0 : abi_madvise(start, size, MADV_DONTNEED);
    *started = pager;
    return result;
}

static int abi_pager_stop(void *started, unsigned char *bad)
{
    struct abi_pager *pager = started;
    struct uffdio_range range = {.start = pager->start, .len = pager->pages * ABI_PAGE};
    int result = 0;

    for (uint64_t page = 0; page < pager->pages && !result && !pager->guards; page++)
        result = abi_fetch(pager, page);
    if (write(pager->stop[1], "", 1) == 1)
        pthread_join(pager->thread, NULL);
    for (uint64_t page = 0; page < pager->pages && pager->guards; page++)
        bad[page] = pager->met[page] ? pager->bad[page] : abi_has_changed(pager, page);
    if (!result)
        result = abi_uffd(pager, UFFDIO_UNREGISTER, &range);
    abi_pager_free(pager);
    return result;
}

static int abi_can_page(void)
{
    struct abi_pager pager = {.fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)};
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP};
    int result;

    if (pager.fd < 0)
        return -errno;
    result = abi_uffd(&pager, UFFDIO_API, &api);
    close(pager.fd);
    return result;
}
