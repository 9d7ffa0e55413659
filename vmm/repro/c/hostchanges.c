/*@ hostwrite */

static void host_writes(struct mapping *mapping, uint64_t offset, uint32_t value)
{
	memcpy(mapping->host + offset, &value, sizeof(value));
}
/*@ change */

/* These bytes must have changed since host memory was last compared. */
static void expect_change(struct mapping *mapping, uint64_t offset, unsigned length,
			  const char *data)
{
	memcpy(mapping->expected + offset, data, length);
}
/*@ hostchange */

/* Notes whether the host cannot read these pages (`absent`): then they are not compared. */
static void mark_absent(struct mapping *mapping, uint64_t offset, uint64_t pages, bool absent)
{
	if (!mapping->absent)
		mapping->absent = calloc(mapping->pages, sizeof(*mapping->absent));
	for (uint64_t page = 0; page < pages; page++)
		mapping->absent[offset / PAGE + page] = absent;
}
/*@ advise */

static void host_advises(struct mapping *mapping, uint64_t offset, uint64_t pages, int advice)
{
	must(madvise(mapping->host + offset, pages * PAGE, advice), "madvise");
}
/*@ newadvice */
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

/*@ mayadvise */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* The advice may fail at any time, but the kernel must know it. */
static void host_may_advise(struct mapping *mapping, uint64_t offset, uint64_t pages, int advice)
{
	if (madvise(NULL, 2 << 20, advice) && errno == EINVAL)
		leave(CANNOT_RUN, "madvise(%d) is missing", advice);
	(void)!madvise(mapping->host + offset, pages * PAGE, advice);
}
/*@ merge */

static long number_in(const char *path)
{
	FILE *file = fopen(path, "r");
	long number = 0;

	if (!file || fscanf(file, "%ld", &number) != 1)
		number = 0;
	if (file)
		fclose(file);
	return number;
}

/* KSM merges a page only if it has not changed since the previous scan. On a busy machine its
 * thread may hardly run: all calls together wait no longer than ten seconds or so. */
static _Atomic int ksm_waits = 1000;

static void host_merges(struct mapping *mapping, uint64_t offset, uint64_t pages)
{
	const char *scans = "/sys/kernel/mm/ksm/full_scans";
	long goal = number_in(scans) + 3;

	if (number_in("/sys/kernel/mm/ksm/run") != 1)
		leave(CANNOT_RUN, "KSM does not run (/sys/kernel/mm/ksm/run)");
	must(madvise(mapping->host + offset, pages * PAGE, MADV_MERGEABLE), "MADV_MERGEABLE");
	for (int tries = 0; tries < 200 && number_in(scans) < goal && ksm_waits > 0; tries++) {
		ksm_waits--;
		usleep(10000);
	}
}
/*@ movepages */
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

/* Moves pages elsewhere, which leaves their place inaccessible, or back. */
static void host_moves(struct mapping *mapping, uint64_t offset, uint64_t pages, bool away)
{
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
	int reserved = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

	if (!mapping->elsewhere)
		mapping->elsewhere = mmap(NULL, mapping->pages * PAGE, PROT_NONE, reserved, -1, 0);
	for (uint64_t at = offset; at < offset + pages * PAGE; at += PAGE) {
		unsigned char *from = (away ? mapping->host : mapping->elsewhere) + at;
		unsigned char *to = (away ? mapping->elsewhere : mapping->host) + at;

		if (mremap(from, PAGE, PAGE, flags, to) == MAP_FAILED)
			leave(CANNOT_RUN, "mremap: %s", strerror(errno));
		if (away && mmap(from, PAGE, PROT_NONE, reserved | MAP_FIXED, -1, 0) == MAP_FAILED)
			leave(CANNOT_RUN, "mmap: %s", strerror(errno));
	}
}
/*@ forks */

static pid_t child;
static int to_child;

/* Forks a child that keeps all memory as it is now; host_reaps() has it check that. */
static void host_forks(int count, struct mapping **watched)
{
	int down[2], ready[2];
	char byte = 0;

	must(pipe(down), "pipe");
	must(pipe(ready), "pipe");
	fflush(stdout);
	child = must(fork(), "fork");
	if (!child) {
		unsigned char **before = calloc(count + 1, sizeof(*before));

		close(down[1]);
		for (int i = 0; i < count; i++) {
			before[i] = malloc(watched[i]->pages * PAGE);
			memcpy(before[i], watched[i]->host, watched[i]->pages * PAGE);
		}
		if (write(ready[1], &byte, 1) != 1 || read(down[0], &byte, 1) < 0)
			_exit(2);
		for (int i = 0; i < count; i++)
			if (memcmp(before[i], watched[i]->host, watched[i]->pages * PAGE))
				_exit(1);
		_exit(0);
	}
	close(down[0]);
	must(read(ready[0], &byte, 1), "read");
	close(ready[0]);
	close(ready[1]);
	to_child = down[1];
}
/*@ reaps */

static void host_reaps(void)
{
	int status;

	close(to_child);
	must(waitpid(child, &status, 0), "waitpid");
	if (status)
		leave(WRONG, "a forked child sees what was written after it was forked");
}
/*@ pager */
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/syscall.h>

/* userfaultfd on pages of a mapping: a thread fetches them or, if it guards, lets writes go on. */
struct pager {
	struct mapping *mapping;
	uint64_t start, pages;
	bool guards;
	int fd, stop[2];
	unsigned char *copy, *met;
	pthread_t thread;
};
static struct pager pagers[256];
static unsigned pagers_used;

static bool pager_lost(const struct pager *pager, uint64_t page)
{
	const unsigned char *now = (const unsigned char *)(uintptr_t)pager->start + page * PAGE;

	return memcmp(now, pager->copy + page * PAGE, PAGE);
}

static void pager_fetches(struct pager *pager, uint64_t page)
{
	struct uffdio_copy copy = {
		.dst = pager->start + page * PAGE, .len = PAGE,
		.src = (uintptr_t)pager->copy + page * PAGE,
	};
	struct uffdio_range woken = {.start = copy.dst, .len = PAGE};

	while (ioctl(pager->fd, UFFDIO_COPY, &copy) && errno == EAGAIN)
		;
	ioctl(pager->fd, UFFDIO_WAKE, &woken);
}

static int pager_guards(struct pager *pager, uint64_t page, uint64_t pages, uint64_t mode)
{
	struct uffdio_writeprotect protect = {
		.range = {.start = pager->start + page * PAGE, .len = pages * PAGE}, .mode = mode,
	};
	int result;

	while ((result = ioctl(pager->fd, UFFDIO_WRITEPROTECT, &protect)) && errno == EAGAIN)
		;
	return result;
}

static void *pager_serves(void *argument)
{
	struct pager *pager = argument;
	struct pollfd ready[2] = {{.fd = pager->fd, .events = POLLIN},
				  {.fd = pager->stop[0], .events = POLLIN}};
	struct uffd_msg message;

	while (poll(ready, 2, -1) < 0 || !ready[1].revents)
		while (read(pager->fd, &message, sizeof(message)) == sizeof(message)) {
			uint64_t page = (message.arg.pagefault.address - pager->start) / PAGE;

			if (!pager->guards) {
				pager_fetches(pager, page);
				continue;
			}
			if (!pager->met[page])
				pager->met[page] = 1 + pager_lost(pager, page);
			pager_guards(pager, page, 1, 0);
		}
	return NULL;
}

static void host_pages(struct mapping *mapping, uint64_t offset, uint64_t pages, bool guards)
{
	struct pager *pager = &pagers[pagers_used++ % 256];
	struct uffdio_api api = {
		.api = UFFD_API, .features = guards ? UFFD_FEATURE_PAGEFAULT_FLAG_WP : 0,
	};
	struct uffdio_register range = {
		.range = {.start = (uintptr_t)mapping->host + offset, .len = pages * PAGE},
		.mode = guards ? UFFDIO_REGISTER_MODE_WP : UFFDIO_REGISTER_MODE_MISSING,
	};

	*pager = (struct pager){
		.mapping = mapping, .start = range.range.start, .pages = pages, .guards = guards,
		.copy = malloc(pages * PAGE), .met = calloc(pages, 1),
	};
	memcpy(pager->copy, mapping->host + offset, pages * PAGE);
	pager->fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (pager->fd < 0 || ioctl(pager->fd, UFFDIO_API, &api))
		leave(CANNOT_RUN, "userfaultfd: %s", strerror(errno));
	must(ioctl(pager->fd, UFFDIO_REGISTER, &range), "UFFDIO_REGISTER");
	if (guards) { /* Who writes now waits until the thread serves. */
		must(pager_guards(pager, 0, pages, UFFDIO_WRITEPROTECT_MODE_WP),
		     "UFFDIO_WRITEPROTECT");
		memcpy(pager->copy, mapping->host + offset, pages * PAGE);
	}
	must(pipe(pager->stop), "pipe");
	must(-pthread_create(&pager->thread, NULL, pager_serves, pager), "pthread_create");
	if (!guards)
		must(madvise(mapping->host + offset, pages * PAGE, MADV_DONTNEED), "MADV_DONTNEED");
}
/*@ settles */

static void host_settles(struct mapping *mapping)
{
	struct pager *pager = &pagers[(pagers_used - 1) % 256];

	while (pager->mapping != mapping)
		pager--;
	pager->mapping = NULL;
	for (uint64_t page = 0; page < pager->pages && !pager->guards; page++)
		pager_fetches(pager, page);
	must(write(pager->stop[1], "", 1), "write");
	pthread_join(pager->thread, NULL);
	for (uint64_t page = 0; page < pager->pages && pager->guards; page++)
		if (pager->met[page] ? pager->met[page] > 1 : pager_lost(pager, page))
			leave(WRONG, "a guarded page was written without a userfaultfd event");
	close(pager->fd);
}
/*@ remap */

/* Maps a file, or fresh memory (fd -1), in place of pages. */
static void host_maps(struct mapping *mapping, uint64_t offset, uint64_t pages, int protection,
		      int flags, int fd, uint64_t file_offset)
{
	if (mmap(mapping->host + offset, pages * PAGE, protection, flags | MAP_FIXED, fd,
		 file_offset) == MAP_FAILED)
		leave(CANNOT_RUN, "mmap: %s", strerror(errno));
}
/*@ protect */

static void host_protects(struct mapping *mapping, uint64_t offset, uint64_t pages, int protection)
{
	must(mprotect(mapping->host + offset, pages * PAGE, protection), "mprotect");
}
/*@ look */

static void look_at(const struct mapping *mapping)
{
	for (uint64_t page = 0; mapping->expected && page < mapping->pages; page++) {
		const unsigned char *host = mapping->host + page * PAGE;
		const unsigned char *expected = mapping->expected + page * PAGE;

		if (mapping->absent && mapping->absent[page])	/*+ hostchange */
			continue;				/*+ hostchange */
		if (!memcmp(host, expected, PAGE))
			continue;
		for (uint64_t at = 0; at < PAGE; at++)
			if (host[at] != expected[at])
				leave(WRONG, "%s+0x%llx holds 0x%02x, expected 0x%02x",
				      mapping->name, (unsigned long long)(page * PAGE + at),
				      host[at], expected[at]);
	}
}
