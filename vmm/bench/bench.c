/*
 * SPDX-License-Identifier: MIT
 *
 * The work of vmm/bench/library.py in C, to measure the kernel's share of its cost.
 *
 * bench WORK SLOTS PAGES VCPUS HUGE: makes the VM, then reads lines from stdin. A line is a number:
 * the work is done this many times, and the nanoseconds are printed. Ends at the end of its input.
 * Addresses and sizes come from vmm/bench/setup.py, code from vmm/bench/guest.py (-D).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static int vm, vcpu;
static struct kvm_run *run;
static struct kvm_dirty_gfn *ring;
static unsigned long ring_next;
static uint32_t work_slot;
static uint64_t slot_pages, memory_hva;

/* Issues a call again that was interrupted, KVM_RUN too: somebody has stopped this process. */
static long call(const char *name, int fd, unsigned long request, void *argument)
{
	long result = ioctl(fd, request, argument);
	int times;

	for (times = 0; result < 0 && errno == EINTR && times < MOST_INTERRUPTIONS; times++)
		result = ioctl(fd, request, argument);
	if (result < 0) {
		fprintf(stderr, "%s: %s\n", name, strerror(errno));
		exit(1);
	}
	return result;
}
#define CALL(fd, request, argument) call(#request, fd, request, (void *)(argument))

static void *map(size_t size, int fd, off_t offset)
{
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	void *place = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, offset);

	if (place == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	return place;
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

/* The least that reading the clock takes: a time between two readings has it once. */
static uint64_t reading(void)
{
	uint64_t least = UINT64_MAX, begun, ended;
	unsigned each;

	for (each = 0; each < READINGS; each++) {
		begun = now();
		ended = now();
		if (ended - begun < least)
			least = ended - begun;
	}
	return least;
}

static void region(uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size, uint64_t hva)
{
	struct kvm_userspace_memory_region wanted = {
		.slot = slot, .flags = flags, .guest_phys_addr = gpa,
		.memory_size = size, .userspace_addr = hva,
	};

	CALL(vm, KVM_SET_USER_MEMORY_REGION, &wanted);
}

static void work_region(uint32_t flags, uint64_t gpa)
{
	region(work_slot, flags, gpa, slot_pages * 4096, memory_hva);
}

static void start(uint64_t rip, uint64_t gpa, uint64_t count)
{
	struct kvm_regs regs = {.rip = rip, .rbx = gpa, .rcx = count, .rflags = 2};

	CALL(vcpu, KVM_SET_REGS, &regs);
}

static void enter_real_mode(int fd)
{
	struct kvm_sregs sregs;
	struct kvm_segment *data[] = {&sregs.ds, &sregs.es, &sregs.fs, &sregs.gs, &sregs.ss};
	unsigned each;

	CALL(fd, KVM_GET_SREGS, &sregs);
	for (each = 0; each < 5; each++) {
		data[each]->base = data[each]->selector = 0;
		data[each]->limit = 0xffffffff;
		data[each]->g = 1;
	}
	sregs.cs.base = CODE_GPA;
	sregs.cs.selector = CODE_GPA >> 4;
	CALL(fd, KVM_SET_SREGS, &sregs);
}

static void write_pages(void)
{
	start(OFFSET_WRITE, WORK_GPA, slot_pages < TOUCHED_PAGES ? slot_pages : TOUCHED_PAGES);
	CALL(vcpu, KVM_RUN, 0);
}

static uint64_t creating, deleting;

static void create_and_delete(unsigned long times)
{
	uint64_t begun, created, deleted;

	for (creating = deleting = -times * reading(); times; times--) {
		begun = now();
		work_region(0, WORK_GPA);
		created = now();
		region(work_slot, 0, 0, 0, 0);
		deleted = now();
		creating += created - begun;
		deleting += deleted - created;
	}
}

static uint64_t create(unsigned long times)
{
	create_and_delete(times);
	return creating;
}

static uint64_t delete(unsigned long times)
{
	create_and_delete(times);
	return deleting;
}

static uint64_t both(unsigned long times)
{
	uint64_t begun = now();

	for (; times; times--) {
		work_region(0, WORK_GPA);
		region(work_slot, 0, 0, 0, 0);
	}
	return now() - begun;
}

static uint64_t move(unsigned long times)
{
	uint64_t begun = now();

	for (times /= 2; times; times--) {
		work_region(0, OTHER_GPA);
		work_region(0, WORK_GPA);
	}
	return now() - begun;
}

static uint64_t flags(unsigned long times)
{
	uint64_t begun = now();

	for (times /= 2; times; times--) {
		work_region(KVM_MEM_LOG_DIRTY_PAGES, WORK_GPA);
		work_region(0, WORK_GPA);
	}
	return now() - begun;
}

static uint64_t nop(unsigned long times)
{
	uint64_t begun = now();

	for (; times; times--)
		work_region(0, WORK_GPA);
	return now() - begun;
}

static volatile uint64_t seen;

static uint64_t enter(unsigned long times)
{
	uint64_t begun = now();

	for (; times; times--) {
		CALL(vcpu, KVM_RUN, 0);
		/* A caller would look at the exit reason. */
		seen = run->exit_reason == KVM_EXIT_MMIO ? run->mmio.phys_addr : run->io.port;
	}
	return now() - begun;
}

static uint64_t dirty_log(unsigned long times)
{
	uint64_t begun, spent = 0;
	uint64_t *bitmap = calloc((slot_pages + 63) / 64, 8);
	struct kvm_dirty_log log = {.slot = work_slot, .dirty_bitmap = bitmap};

	for (; times; times--) {
		write_pages();
		begun = now();
		CALL(vm, KVM_GET_DIRTY_LOG, &log);
		spent += now() - begun;
	}
	free(bitmap);
	return spent;
}

static uint64_t dirty_ring(unsigned long times)
{
	const unsigned long entries = RING_BYTES / sizeof(*ring);
	uint64_t begun, spent = 0;

	if (!ring)
		ring = map(RING_BYTES, vcpu, KVM_DIRTY_LOG_PAGE_OFFSET * 4096);
	for (; times; times--) {
		write_pages();
		begun = now();
		while (ring[ring_next % entries].flags == KVM_DIRTY_GFN_F_DIRTY) {
			seen = ring[ring_next % entries].offset;
			ring[ring_next++ % entries].flags = KVM_DIRTY_GFN_F_RESET;
		}
		CALL(vm, KVM_RESET_DIRTY_RINGS, 0);
		spent += now() - begun;
	}
	return spent;
}

static const struct work {
	const char *name;
	uint64_t (*round)(unsigned long times);
	int has_slot, is_logged;
	uint64_t rip;
} works[] = {
	{"create", create, 0, 0, 0},	   {"delete", delete, 0, 0, 0},
	{"both", both, 0, 0, 0},	   {"pairs", both, 0, 0, 0},
	{"move", move, 1, 0, 0},
	{"flags", flags, 1, 0, 0},	   {"nop", nop, 1, 0, 0},
	{"run", enter, 0, 0, OFFSET_RUN},  {"mmio", enter, 0, 0, OFFSET_MMIO},
	{"dirty-log", dirty_log, 1, 1, 0}, {"dirty-ring", dirty_ring, 1, 1, 0},
};

static const struct work *work_named(const char *name)
{
	unsigned each;

	for (each = 0; each < sizeof(works) / sizeof(works[0]); each++)
		if (!strcmp(works[each].name, name))
			return &works[each];
	fprintf(stderr, "no work is named %s\n", name);
	exit(1);
}

static void make_vcpus(int kvm, unsigned long vcpus)
{
	long size = CALL(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	unsigned long number;

	for (number = 0; number < vcpus; number++) {
		int fd = CALL(vm, KVM_CREATE_VCPU, number);

		if (!number) {
			vcpu = fd;
			run = map(size, fd, 0);
		}
		enter_real_mode(fd);
		CALL(fd, KVM_SET_REGS, &((struct kvm_regs){.rip = OFFSET_RUN, .rflags = 2}));
		CALL(fd, KVM_RUN, 0);
	}
}

int main(int count, char **arguments)
{
	static const unsigned char code[] = {CODE_BYTES};
	const struct work *work;
	unsigned long slots, slot, times;
	size_t size;
	uint64_t last;
	void *code_page;
	char *memory;
	int kvm, huge;

	if (count != 6)
		return 2;
	work = work_named(arguments[1]);
	slots = strtoul(arguments[2], NULL, 0);
	slot_pages = strtoul(arguments[3], NULL, 0);
	huge = atoi(arguments[5]);
	size = slot_pages * 4096;
	if (huge)
		size = (size + HUGE_PAGE_BYTES - 1) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
	memory = map(size + HUGE_PAGE_BYTES, -1, 0);
	if (huge) {
		memory += -(uintptr_t)memory % HUGE_PAGE_BYTES;
		madvise(memory, size, MADV_HUGEPAGE);
	}
	memory_hva = (uintptr_t)memory;
	code_page = map(4096, -1, 0);
	memcpy(code_page, code, sizeof(code));

	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	vm = CALL(kvm, KVM_CREATE_VM, 0);
	if (work->round == dirty_ring)
		CALL(vm, KVM_ENABLE_CAP, &((struct kvm_enable_cap){
			.cap = KVM_CAP_DIRTY_LOG_RING_ACQ_REL, .args = {RING_BYTES}}));
	last = CALL(kvm, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS) - 1;
	work_slot = last - 1;
	region(last, 0, CODE_GPA, 4096, (uintptr_t)code_page);
	make_vcpus(kvm, strtoul(arguments[4], NULL, 0));
	for (slot = 0; slot < slots; slot++)
		region(slot, 0, FILL_GPA + slot * (slot_pages + 1) * 4096, slot_pages * 4096,
		       memory_hva);
	if (work->has_slot)
		work_region(work->is_logged ? KVM_MEM_LOG_DIRTY_PAGES : 0, WORK_GPA);
	if (work->round == enter)
		start(work->rip, HOLE_GPA, 0);
	while (scanf("%lu", &times) == 1) {
		printf("%llu\n", (unsigned long long)work->round(times));
		fflush(stdout);
	}
	return 0;
}
