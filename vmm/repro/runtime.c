/*@ base */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#define PAGE 4096ull
#define SUCCESS 0

enum { RIGHT = 0, WRONG = 1, CANNOT_RUN = 4 };

static int kvm, vm = -1;	/* /dev/kvm, and the VM made from it */
static int step;		/* the number in the comments of main() */

static __attribute__((noreturn, format(printf, 2, 3))) void leave(int status, const char *text, ...)
{
	va_list arguments;

	printf("%s at step %d: ", status == WRONG ? "WRONG" : "cannot run", step);
	va_start(arguments, text);
	vprintf(text, arguments);
	va_end(arguments);
	putchar('\n');
	exit(status);
}

/* What the host has to give: without it nothing is said about KVM. */
static int must(int result, const char *what)
{
	if (result < 0)
		leave(CANNOT_RUN, "%s: %s", what, strerror(errno));
	return result;
}

static void expect(int got, int expected)
{
	if (got != expected)
		leave(WRONG, "expected %s, got %s", expected ? strerror(expected) : "success",
		      got ? strerror(got) : "success");
}
/*@ either */

/* Kernels differ here, and both answers are right. */
static void expect_either(int got, int first, int second)
{
	if (got != second)
		expect(got, first);
}
/*@ require */

static void require(int capability, int at_least, const char *name)
{
	if (ioctl(kvm, KVM_CHECK_EXTENSION, capability) < at_least)
		leave(CANNOT_RUN, "%s is missing", name);
}
/*@ exactly */

/* The expectations below are those of a kernel with exactly this answer. */
static void require_exactly(int capability, int value, const char *name)
{
	int found = ioctl(kvm, KVM_CHECK_EXTENSION, capability);

	if ((found > 0 ? found : 1) != value)
		leave(CANNOT_RUN, "%s is %d, and this program is for %d", name, found, value);
}
/*@ mapping */

/*
 * Host memory. Every page is filled with a word of its own, so that the guest's reads tell which
 * page of which mapping they reached; at 0x800 it has code that answers with the same word.
 */
struct mapping {
	const char *name;
	unsigned number;
	uint64_t pages;
	unsigned char *host;
	unsigned char *expected; /* what it must look like; NULL if nobody may look */
};

static uint32_t word_of(const struct mapping *mapping, uint64_t page)
{
	return ((mapping->number + 1) << 20 | (uint32_t)page) * 0x9E3779B1u;
}

static void fill(struct mapping *mapping)
{
	static const unsigned char code[] = {
		0x66, 0xb8, 0, 0, 0, 0,	/* mov eax, the word */
		0x66, 0xe7, 0xe1,	/* out 0xe1, eax */
		0xf4, 0, 0,		/* hlt */
	};

	for (uint64_t page = 0; page < mapping->pages; page++) {
		uint32_t word = word_of(mapping, page);
		unsigned char *host = mapping->host + page * PAGE;

		for (uint64_t at = 0; at < PAGE; at += sizeof(word))
			memcpy(host + at, &word, sizeof(word));
		memcpy(host + 0x800, code, sizeof(code));
		memcpy(host + 0x802, &word, sizeof(word));
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
/*@ thp */

static void map_huge(struct mapping *mapping)
{
	uint64_t size = mapping->pages * PAGE, huge = 2 << 20;
	unsigned char *room = mmap(NULL, size + huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (room == MAP_FAILED)
		leave(CANNOT_RUN, "no room for %s", mapping->name);
	mapping->host = (unsigned char *)(((uintptr_t)room + huge - 1) & -huge);
	must(mprotect(mapping->host, size, PROT_READ | PROT_WRITE), "mprotect");
	must(madvise(mapping->host, size, MADV_HUGEPAGE), "MADV_HUGEPAGE");
	fill(mapping);
}
/*@ region */

/* KVM_SET_USER_MEMORY_REGION; 0 or an errno. A memory_size of 0 deletes the slot. */
static int set_region(uint32_t slot, uint32_t flags, uint64_t guest_phys_addr,
		      uint64_t memory_size, uint64_t userspace_addr)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = guest_phys_addr,
		.memory_size = memory_size,
		.userspace_addr = userspace_addr,
	};

	return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) ? errno : SUCCESS;
}
/*@ at */

static uint64_t at(const struct mapping *mapping, uint64_t offset)
{
	return (uintptr_t)mapping->host + offset;
}
/*@ region2 */

#ifndef KVM_SET_USER_MEMORY_REGION2
struct kvm_userspace_memory_region2 {
	__u32 slot;
	__u32 flags;
	__u64 guest_phys_addr;
	__u64 memory_size;
	__u64 userspace_addr;
	__u64 guest_memfd_offset;
	__u32 guest_memfd;
	__u32 pad1;
	__u64 pad2[14];
};
#define KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)
#endif

/* KVM_SET_USER_MEMORY_REGION2; 0 or an errno. */
static int set_region2(uint32_t slot, uint32_t flags, uint64_t guest_phys_addr,
		       uint64_t memory_size, uint64_t userspace_addr, int guest_memfd,
		       uint64_t guest_memfd_offset)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = guest_phys_addr,
		.memory_size = memory_size,
		.userspace_addr = userspace_addr,
		.guest_memfd = guest_memfd,
		.guest_memfd_offset = guest_memfd_offset,
	};

	return ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &region) ? errno : SUCCESS;
}
/*@ nowhere */

/* A page that the kernel can neither read nor write. */
static void *nowhere(void)
{
	static void *page;

	if (!page)
		page = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return page;
}
/*@ badpointer */

static int set_region_from_nowhere(unsigned long request)
{
	return ioctl(vm, request, nowhere()) ? errno : SUCCESS;
}
/*@ child */

/* The same call by a child process, to which the VM does not belong. */
static int in_a_child(int (*call)(void))
{
	int status;
	pid_t child = must(fork(), "fork");

	if (!child)
		_exit(call());
	must(waitpid(child, &status, 0), "waitpid");
	return WEXITSTATUS(status);
}
/*@ guest */

/* The guest's own slot: code at its start, and at 0x2000 room for what it copies. */
static struct mapping guest = {.name = "guest", .pages = 16};

#define GUEST_BUFFER 0x2000u
#define PORT_DONE 0xe0
#define PORT_EXECUTED 0xe1
/*@ vcpus */

struct vcpu {
	int fd;
	struct kvm_run *run;
};

static struct vcpu vcpus[8];
/*@ run */

/* What the guest's latest access came to. */
static struct {
	const char *stopped;	/* why the vCPU could not go on */
	uint32_t value;		/* what was read */
	unsigned exits, expected;
	struct {
		uint64_t gpa;
		bool write;
		unsigned length;
		unsigned char data[0x4000];
	} exit[16];		/* MMIO; adjacent ones joined */
} access_;

static struct vcpu *vcpu(unsigned number)
{
	struct vcpu *vcpu = &vcpus[number];

	if (!vcpu->run) {
		int size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");

		vcpu->fd = must(ioctl(vm, KVM_CREATE_VCPU, number), "KVM_CREATE_VCPU");
		vcpu->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
		if (vcpu->run == MAP_FAILED)
			leave(CANNOT_RUN, "cannot map struct kvm_run");
	}
	return vcpu;
}

/* Real mode with code at `base`; data segments reach all of the first 4 GiB. */
static void enter(struct vcpu *vcpu, uint64_t base, struct kvm_regs *regs)
{
	struct kvm_sregs sregs;
	struct kvm_segment data = {.limit = 0xffffffff, .type = 3, .present = 1, .s = 1, .g = 1};

	must(ioctl(vcpu->fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.ds = sregs.es = sregs.fs = sregs.gs = data;
	sregs.cs.base = sregs.ss.base = base;
	sregs.cs.selector = sregs.ss.selector = base >> 4 & 0xffff;
	sregs.cs.limit = sregs.ss.limit = 0xffff;
	sregs.cs.type = 0xb;
	sregs.ss.type = 3;
	must(ioctl(vcpu->fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	regs->rflags = 2;
	must(ioctl(vcpu->fd, KVM_SET_REGS, regs), "KVM_SET_REGS");
}

static void note_mmio(struct kvm_run *run)
{
	unsigned last = access_.exits - 1;

	if (!run->mmio.is_write)
		memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
	if (!access_.exits || access_.exit[last].write != run->mmio.is_write
	    || access_.exit[last].gpa + access_.exit[last].length != run->mmio.phys_addr) {
		last = access_.exits++;
		if (last == sizeof(access_.exit) / sizeof(access_.exit[0]))
			leave(WRONG, "too many MMIO exits");
		access_.exit[last].gpa = run->mmio.phys_addr;
		access_.exit[last].write = run->mmio.is_write;
		access_.exit[last].length = 0;
	}
	if (run->mmio.len > 8 || access_.exit[last].length + run->mmio.len > 0x4000)
		leave(WRONG, "an MMIO exit of %u bytes", run->mmio.len);
	memcpy(access_.exit[last].data + access_.exit[last].length, run->mmio.data, run->mmio.len);
	access_.exit[last].length += run->mmio.len;
}

static void run(struct vcpu *vcpu, int port)
{
	static char reason[32];

	access_.stopped = NULL;
	access_.exits = access_.expected = access_.value = 0;
	for (;;) {
		if (ioctl(vcpu->fd, KVM_RUN, 0)) {
			if (errno == EINTR)
				continue;
			access_.stopped = errno == EFAULT ? "EFAULT" : strerror(errno);
			return;
		}
		if (vcpu->run->exit_reason == KVM_EXIT_MMIO) {
			note_mmio(vcpu->run);
		} else if (vcpu->run->exit_reason == KVM_EXIT_IO && vcpu->run->io.port == port) {
			memcpy(&access_.value, (char *)vcpu->run + vcpu->run->io.data_offset,
			       vcpu->run->io.size);
			return;
		} else {
			snprintf(reason, sizeof(reason), "exit reason %u",
				 vcpu->run->exit_reason);
			access_.stopped = reason;
			return;
		}
	}
}
/*@ code */

/* Puts instructions at the start of the guest's slot and runs them. */
static void run_code(unsigned cpu, const unsigned char *code, unsigned length, struct kvm_regs regs)
{
	memcpy(guest.host, code, length);
	enter(vcpu(cpu), GUEST_GPA, &regs);
	run(vcpu(cpu), PORT_DONE);
}
/*@ smm */

/* Puts a vCPU into system management mode, where it sees as_id 1, or takes it out. */
static void set_smm(unsigned cpu, bool inside)
{
	struct kvm_vcpu_events events = {.flags = KVM_VCPUEVENT_VALID_SMM, .smi.smm = inside};

	must(ioctl(vcpu(cpu)->fd, KVM_SET_VCPU_EVENTS, &events), "KVM_SET_VCPU_EVENTS");
}
/*@ stopped */

static bool stopped(const char *why)
{
	return access_.stopped && !strcmp(access_.stopped, why);
}
/*@ mmio */

/* The next MMIO exit of the access. */
static void expect_mmio(bool write, uint64_t gpa, unsigned length, const char *data)
{
	unsigned at = access_.expected++;

	if (at >= access_.exits)
		leave(WRONG, "expected an MMIO %s of %u bytes at gpa 0x%llx, got %s",
		      write ? "write" : "read", length, (unsigned long long)gpa,
		      access_.stopped ? access_.stopped : "no exit");
	if (access_.exit[at].write != write || access_.exit[at].gpa != gpa
	    || access_.exit[at].length != length || memcmp(access_.exit[at].data, data, length))
		leave(WRONG, "expected an MMIO %s of %u bytes at gpa 0x%llx, got a %s of %u at 0x%llx",
		      write ? "write" : "read", length, (unsigned long long)gpa,
		      access_.exit[at].write ? "write" : "read", access_.exit[at].length,
		      (unsigned long long)access_.exit[at].gpa);
}
/*@ value */

/* The end of the access: no other exit, and this value was read (0: nothing was). */
static void expect_value(uint32_t value)
{
	if (access_.stopped)
		leave(WRONG, "the vCPU stopped: %s", access_.stopped);
	if (access_.exits > access_.expected)
		leave(WRONG, "an MMIO %s at gpa 0x%llx that nobody expected",
		      access_.exit[access_.expected].write ? "write" : "read",
		      (unsigned long long)access_.exit[access_.expected].gpa);
	if (access_.value != value)
		leave(WRONG, "expected 0x%x, got 0x%x", value, access_.value);
}
/*@ read */

/* The guest reads 1, 2 or 4 bytes at a gpa. */
static void guest_reads(unsigned cpu, uint32_t gpa, unsigned width)
{
	unsigned char code[] = {
		0x90,				/* nop, or the prefix for 32-bit operands */
		0x67, 0xa1, 0, 0, 0, 0,		/* mov eax, [gpa] */
		0x90, 0xe7, PORT_DONE,		/* out PORT_DONE, eax */
	};

	if (width == 4)
		code[0] = code[7] = 0x66;
	if (width == 1)
		code[2] = 0xa0, code[8] = 0xe6;	/* the same with al */
	memcpy(code + 3, &gpa, sizeof(gpa));
	run_code(cpu, code, sizeof(code), (struct kvm_regs){0});
}
/*@ write */

/* The guest writes 1, 2 or 4 bytes at a gpa. */
static void guest_writes(unsigned cpu, uint32_t gpa, unsigned width, uint32_t value)
{
	unsigned char code[16] = {
		0x90,				/* nop, or the prefix for 32-bit operands */
		0x67, 0xc7, 0x05, 0, 0, 0, 0,	/* mov [gpa], value */
	};
	unsigned end = 8 + width;

	if (width == 4)
		code[0] = 0x66;
	if (width == 1)
		code[2] = 0xc6;			/* the same with a byte */
	memcpy(code + 4, &gpa, sizeof(gpa));
	memcpy(code + 8, &value, width);
	code[end] = 0xe6;			/* out PORT_DONE, al */
	code[end + 1] = PORT_DONE;
	run_code(cpu, code, end + 2, (struct kvm_regs){0});
	access_.value = 0;
}
/*@ string */

/* One string instruction: rep stos or rep movs over `count` elements. */
static void run_string(unsigned cpu, unsigned char opcode, unsigned width, struct kvm_regs regs)
{
	unsigned char code[] = {
		0x67, 0x90,			/* 32-bit addresses; 32-bit operands if needed */
		0xf3, 0x90,			/* rep, and the instruction */
		0xe6, PORT_DONE,		/* out PORT_DONE, al */
	};

	code[1] = width == 4 ? 0x66 : 0x3e;	/* 0x3e: a prefix without effect */
	code[3] = width == 1 ? opcode - 1 : opcode;
	run_code(cpu, code, sizeof(code), regs);
	access_.value = 0;
}
/*@ fills */

static void guest_fills(unsigned cpu, uint32_t gpa, unsigned count, unsigned width, uint32_t value)
{
	struct kvm_regs regs = {.rdi = gpa, .rcx = count, .rax = value};

	run_string(cpu, 0xab, width, regs);	/* stos */
}
/*@ copies */

/* The guest reads `count` elements, into its own slot. */
static void guest_copies(unsigned cpu, uint32_t gpa, unsigned count, unsigned width)
{
	struct kvm_regs regs = {.rsi = gpa, .rcx = count, .rdi = GUEST_GPA + GUEST_BUFFER};

	run_string(cpu, 0xa5, width, regs);	/* movs */
}

/* What it read: the same element, so many times, from this element on. */
static void expect_elements(unsigned first, unsigned times, unsigned width, uint32_t value)
{
	for (unsigned i = first; i < first + times; i++)
		if (memcmp(guest.host + GUEST_BUFFER + i * width, &value, width))
			leave(WRONG, "element %u is not 0x%x", i, value);
}
/*@ execute */

/* The guest executes the code at 0x800 of a page. */
static void guest_executes(unsigned cpu, uint32_t gpa)
{
	struct kvm_regs regs = {.rip = 0x800};

	enter(vcpu(cpu), gpa, &regs);
	run(vcpu(cpu), PORT_EXECUTED);
}
/*@ cannotfetch */

static void expect_no_fetch(void)
{
	if (!access_.stopped)
		leave(WRONG, "code was executed where there is none: 0x%x", access_.value);
}
/*@ hostwrite */

static void host_writes(struct mapping *mapping, uint64_t offset, uint32_t value)
{
	memcpy(mapping->host + offset, &value, sizeof(value));
}
/*@ change */

/* Bytes that must have changed since the last look at host memory. */
static void expect_change(struct mapping *mapping, uint64_t offset, unsigned length, const char *data)
{
	memcpy(mapping->expected + offset, data, length);
}
/*@ look */

static void look_at(const struct mapping *mapping)
{
	uint64_t size = mapping->pages * PAGE;

	if (!mapping->expected || !memcmp(mapping->host, mapping->expected, size))
		return;
	for (uint64_t at = 0; at < size; at++)
		if (mapping->host[at] != mapping->expected[at])
			leave(WRONG, "%s+0x%llx holds 0x%02x, expected 0x%02x", mapping->name,
			      (unsigned long long)at, mapping->host[at], mapping->expected[at]);
}
/*@ dirty */

static uint64_t dirty[DIRTY_WORDS];	/* larger than the log of any slot here */
/*@ getdirty */

/* KVM_GET_DIRTY_LOG; 0 or an errno. */
static int get_dirty_log(uint32_t slot, void *bitmap)
{
	struct kvm_dirty_log log = {.slot = slot, .dirty_bitmap = bitmap};

	memset(dirty, 0, sizeof(dirty));
	return ioctl(vm, KVM_GET_DIRTY_LOG, &log) ? errno : SUCCESS;
}
/*@ expectdirty */

/* The log names these pages, perhaps the optional ones, and no other. */
static void expect_dirty(unsigned count, const uint32_t *pages, unsigned optional,
			 const uint32_t *perhaps)
{
	for (unsigned i = 0; i < count; i++) {
		if (!(dirty[pages[i] / 64] >> pages[i] % 64 & 1))
			leave(WRONG, "page %u is not in the dirty log", pages[i]);
		dirty[pages[i] / 64] &= ~(1ull << pages[i] % 64);
	}
	for (unsigned i = 0; i < optional; i++)
		dirty[perhaps[i] / 64] &= ~(1ull << perhaps[i] % 64);
	for (unsigned i = 0; i < sizeof(dirty) * 8; i++)
		if (dirty[i / 64] >> i % 64 & 1)
			leave(WRONG, "page %u is in the dirty log, and was not written", i);
}
/*@ cleardirty */

/* KVM_CLEAR_DIRTY_LOG with the bits that are set in `dirty`; 0 or an errno. */
static int clear_dirty_log(uint32_t slot, uint64_t first_page, uint32_t num_pages, void *bitmap)
{
	struct kvm_clear_dirty_log clear = {
		.slot = slot,
		.num_pages = num_pages,
		.first_page = first_page,
		.dirty_bitmap = bitmap,
	};

	return ioctl(vm, KVM_CLEAR_DIRTY_LOG, &clear) ? errno : SUCCESS;
}
/*@ markall */

static void mark_all(void)
{
	memset(dirty, 0xff, sizeof(dirty));
}
/*@ mark */

static void mark(unsigned count, const uint32_t *bits)
{
	memset(dirty, 0, sizeof(dirty));
	for (unsigned i = 0; i < count; i++)
		dirty[bits[i] / 64] |= 1ull << bits[i] % 64;
}
/*@ cap */

#ifndef KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
#define KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 168
#endif
#ifndef KVM_CAP_DIRTY_LOG_RING
#define KVM_CAP_DIRTY_LOG_RING 192
#endif
#ifndef KVM_CAP_DIRTY_LOG_RING_ACQ_REL
#define KVM_CAP_DIRTY_LOG_RING_ACQ_REL 223
#endif

/* KVM_ENABLE_CAP on the VM; 0 or an errno. */
static int enable_cap(uint32_t cap, uint64_t argument)
{
	struct kvm_enable_cap wanted = {.cap = cap, .args = {argument}};

	return ioctl(vm, KVM_ENABLE_CAP, &wanted) ? errno : SUCCESS;
}
/*@ simple */

/* An ioctl of the VM that takes a number; 0 or an errno. */
static int vm_ioctl(unsigned long request, uint64_t argument)
{
	return ioctl(vm, request, argument) ? errno : SUCCESS;
}
/*@ identity */

static int set_identity_map_addr(uint64_t gpa)
{
	return ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &gpa) ? errno : SUCCESS;
}
/*@ newvcpu */

static int create_vcpu(unsigned number)
{
	int fd = ioctl(vm, KVM_CREATE_VCPU, number);

	if (fd < 0)
		return errno;
	vcpus[number].fd = fd;
	vcpus[number].run = mmap(NULL, must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "mmap size"),
				 PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	return SUCCESS;
}
/*@ prefault */

#ifndef KVM_PRE_FAULT_MEMORY
struct kvm_pre_fault_memory {
	__u64 gpa;
	__u64 size;
	__u64 flags;
	__u64 padding[5];
};
#define KVM_PRE_FAULT_MEMORY _IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)
#endif

static struct kvm_pre_fault_memory left;	/* of the latest range that was mapped ahead */

/* KVM_PRE_FAULT_MEMORY; 0 or an errno. */
static int pre_fault(unsigned cpu, uint64_t gpa, uint64_t size, uint64_t flags)
{
	left = (struct kvm_pre_fault_memory){.gpa = gpa, .size = size, .flags = flags};
	return ioctl(vcpu(cpu)->fd, KVM_PRE_FAULT_MEMORY, &left) ? errno : SUCCESS;
}
/*@ left */

static void expect_left(uint64_t gpa, uint64_t size)
{
	if (left.gpa != gpa || left.size != size)
		leave(WRONG, "expected 0x%llx bytes to be left from gpa 0x%llx on, got 0x%llx from 0x%llx",
		      (unsigned long long)size, (unsigned long long)gpa,
		      (unsigned long long)left.size, (unsigned long long)left.gpa);
}
/*@ memfd */

#ifndef KVM_CREATE_GUEST_MEMFD
struct kvm_create_guest_memfd {
	__u64 size;
	__u64 flags;
	__u64 reserved[6];
};
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct kvm_create_guest_memfd)
#endif
#define NO_OPEN_FILE (1 << 30)

/* KVM_CREATE_GUEST_MEMFD; 0 or an errno. */
static int create_guest_memfd(int *fd, uint64_t size, uint64_t flags)
{
	struct kvm_create_guest_memfd wanted = {.size = size, .flags = flags};
	int made = ioctl(vm, KVM_CREATE_GUEST_MEMFD, &wanted);

	if (made < 0)
		return errno;
	*fd = made;
	return SUCCESS;
}
/*@ closememfd */

static int close_guest_memfd(int *fd)
{
	int result = close(*fd) ? errno : SUCCESS;

	*fd = NO_OPEN_FILE;
	return result;
}
/*@ internal */

/* Where memory begins that looks like what the kernel maps for slots of its own. */
static uintptr_t known[256];
static unsigned known_count;

/* Puts memory without access in the place of such memory that is new, and says how much was. */
static int unmap_internal_slots(void)
{
	static char line[512];
	struct { uintptr_t start, end; } found[16];
	unsigned count = 0;
	FILE *maps = fopen("/proc/self/maps", "r");

	while (maps && count < 16 && fgets(line, sizeof(line), maps)) {
		unsigned i = 0;

		if (!strstr(line, "/dev/zero (deleted)")
		    || sscanf(line, "%lx-%lx", &found[count].start, &found[count].end) != 2)
			continue;
		while (i < known_count && known[i] != found[count].start)
			i++;
		if (i == known_count && known_count < 256)
			known[known_count++] = found[count++].start;
	}
	if (maps)
		fclose(maps);
	for (unsigned i = 0; vm >= 0 && i < count; i++)
		mmap((void *)found[i].start, found[i].end - found[i].start, PROT_NONE,
		     MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	return count;
}
/*@ newvm */

static void close_vm(void)
{
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	for (unsigned i = 0; i < sizeof(vcpus) / sizeof(vcpus[0]); i++)
		if (vcpus[i].run) {
			munmap(vcpus[i].run, size);
			close(vcpus[i].fd);
			vcpus[i].run = NULL;
		}
	close(vm);
	vm = -1;
}
/*@ leftovers */

/* How many mappings there are of a kind that the kernel makes for a VM. */
static int traces(void)
{
	static char line[512];
	FILE *maps = fopen("/proc/self/maps", "r");
	int found = 0;

	while (maps && fgets(line, sizeof(line), maps))
		found += strstr(line, "anon_inode:kvm") || strstr(line, "/dev/zero (deleted)");
	if (maps)
		fclose(maps);
	return found;
}
