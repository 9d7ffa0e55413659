/*@ mapping */

/*
 * Host memory. Every page is filled with a word that identifies it, so that a guest's read tells
 * which page of which mapping it reached; the code at 0x800 writes the same word to a port.
 */
struct mapping {
	const char *name;
	unsigned number;
	uint64_t pages;
	unsigned char *host;
	unsigned char *elsewhere;	/* where pages are moved to */	/*+ movepages */
	unsigned char *expected; /* the content it must have; NULL if the host cannot read it */
	unsigned char *before;	/* the content when a race began */	/*+ race */
	bool *absent;		/* pages that the host cannot read now */	/*+ hostchange */
	const struct mapping *of;	/* whose file it maps; NULL: its own */	/*+ another */
};

static uint32_t word_of(const struct mapping *mapping, uint64_t page)
{
	return ((mapping->number + 1) << 20 | (uint32_t)page) * 0x9E3779B1u;
}

static void fill(struct mapping *mapping)
{
	static const unsigned char code[] = {
		0xb8, 0, 0, 0xeb, 0x08,		/* real mode: mov ax, 0; jmp to its part */
		0xb8, 0, 0, 0, 0, 0xe7, 0xe1,	/* 64-bit mode: mov eax, the word; out 0xe1, eax */
		0xf4,				/* hlt */
		0x66, 0xb8, 0, 0, 0, 0,		/* real mode: mov eax, the word */
		0x66, 0xe7, 0xe1,		/* out 0xe1, eax */
		0xf4, 0,			/* hlt */
	};

	for (uint64_t page = 0; page < mapping->pages; page++) {
		uint32_t word = word_of(mapping, page);
		unsigned char *host = mapping->host + page * PAGE;

		for (uint64_t at = 0; at < PAGE; at += sizeof(word))
			memcpy(host + at, &word, sizeof(word));
		memcpy(host + 0x800, code, sizeof(code));
		memcpy(host + 0x806, &word, sizeof(word));
		memcpy(host + 0x80f, &word, sizeof(word));
	}
	mapping->expected = malloc(mapping->pages * PAGE);
	memcpy(mapping->expected, mapping->host, mapping->pages * PAGE);
}

static void map(struct mapping *mapping, unsigned char *at, int protection, int flags, int fd)
{
	mapping->host = mmap(at, mapping->pages * PAGE, protection, flags, fd, 0);
	if (mapping->host == MAP_FAILED || (at && mapping->host != at)
	    || (flags & MAP_FIXED_NOREPLACE && mapping->host != at))
		leave(CANNOT_RUN, "cannot map %s: %s", mapping->name, strerror(errno));
	if (protection != PROT_NONE)
		fill(mapping);
}
/*@ another */

/* Maps a file that is filled already: shared once more, or private. */
static void map_another(struct mapping *mapping, int sharing, int fd)
{
	uint64_t size = mapping->pages * PAGE;

	if (mapping->host)
		munmap(mapping->host, size);
	mapping->host = mmap(NULL, size, PROT_READ | PROT_WRITE, sharing, fd, 0);
	if (mapping->host == MAP_FAILED)
		leave(CANNOT_RUN, "cannot map %s: %s", mapping->name, strerror(errno));
	if (!mapping->expected) {
		mapping->expected = malloc(size);
		memcpy(mapping->expected, mapping->host, size);
	}
}
/*@ frames */
/* Page frames of a memfd, to be mapped as a driver maps those of a device (VM_PFNMAP). */
static int frames_of(int fd, const struct mapping *mapping)
{
	struct {
		uint32_t memfd, flags;
		uint64_t offset, size;
	} create = {.memfd = fd, .size = mapping->pages * PAGE};
	int device = open("/dev/udmabuf", O_RDWR), frames;

	if (device < 0)
		leave(CANNOT_RUN, "/dev/udmabuf: %s", strerror(errno));
	must(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), "F_ADD_SEALS");
	frames = must(ioctl(device, _IOW('u', 0x42, typeof(create)), &create), "UDMABUF_CREATE");
	close(device);
	return frames;
}
/*@ thp */

static void map_huge(struct mapping *mapping)
{
	uint64_t size = mapping->pages * PAGE, huge = 2 << 20;
	unsigned char *room =
		mmap(NULL, size + huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (room == MAP_FAILED)
		leave(CANNOT_RUN, "no room for %s", mapping->name);
	mapping->host = (unsigned char *)(((uintptr_t)room + huge - 1) & -huge);
	must(mprotect(mapping->host, size, PROT_READ | PROT_WRITE), "mprotect");
	must(madvise(mapping->host, size, MADV_HUGEPAGE), "MADV_HUGEPAGE");
	fill(mapping);
}
/*@ hugememfd */
#ifndef MFD_HUGETLB
#define MFD_HUGETLB 4
#endif

static void map_huge_file(struct mapping *mapping)
{
	int fd = memfd_create("memslot", MFD_HUGETLB | 21u << 26);

	if (fd < 0 || ftruncate(fd, mapping->pages * PAGE))
		leave(CANNOT_RUN, "a file of huge pages: %s", strerror(errno));
	map(mapping, NULL, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
}
/*@ at */

static uint64_t at(const struct mapping *mapping, uint64_t offset)
{
	return (uintptr_t)mapping->host + offset;
}
