/*@ atend */

/* A copy of a structure at the end of memory, so that a kernel that reads beyond it fails. */
static void *at_end_of_memory(const void *structure, size_t size)
{
	static __thread char *end;

	if (!end) {
		char *pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (pages == MAP_FAILED || mprotect(pages + PAGE, PAGE, PROT_NONE))
			leave(CANNOT_RUN, "mmap: %s", strerror(errno));
		end = pages + PAGE;
	}
	return memcpy(end - size, structure, size);
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

	return ioctl(vm, KVM_SET_USER_MEMORY_REGION, at_end_of_memory(&region, sizeof(region)))
		       ? errno : SUCCESS;
}
/*@ region2abi */

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
/*@ region2 */

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

	return ioctl(vm, KVM_SET_USER_MEMORY_REGION2, at_end_of_memory(&region, sizeof(region)))
		       ? errno : SUCCESS;
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
/*@ failnth */

/* Makes a call whose nth allocation fails. */
static int with_failing_allocation(int (*call)(void), int nth)
{
	int result, file = must(open("/proc/thread-self/fail-nth", O_RDWR), "fail-nth");

	if (dprintf(file, "%d", nth) < 0)
		leave(CANNOT_RUN, "fail-nth: %s", strerror(errno));
	result = call();
	must(write(file, "0", 1), "fail-nth");
	close(file);
	return result;
}
/*@ canfail */

/* Allocations that may sleep are made to fail only if ignore-gfp-wait is N. */
static void require_failing_allocations(void)
{
	char answer = 0;
	int file = open("/sys/kernel/debug/failslab/ignore-gfp-wait", O_RDONLY);

	if (file < 0 || read(file, &answer, 1) != 1 || answer != 'N'
	    || access("/proc/thread-self/fail-nth", W_OK))
		leave(CANNOT_RUN, "allocations cannot be made to fail");
	close(file);
}
/*@ child */

/* Makes a call in a forked child, whose mm is not the VM's. */
static int in_a_child(int (*call)(void))
{
	int status;
	pid_t child = must(fork(), "fork");

	if (!child)
		_exit(call());
	must(waitpid(child, &status, 0), "waitpid");
	return WEXITSTATUS(status);
}
/*@ memfdabi */

#ifndef KVM_CREATE_GUEST_MEMFD
struct kvm_create_guest_memfd {
	__u64 size;
	__u64 flags;
	__u64 reserved[6];
};
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct kvm_create_guest_memfd)
#endif
/*@ memfd */

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
/*@ needs32bit */

/* Ends the program where guests with page tables run in 64-bit mode only. */
static void require_starts_32_bit(void)
{
	if (!access("/sys/module/kvm_pvm", F_OK))
		leave(CANNOT_RUN, "guests with page tables run in 64-bit mode only (kvm_pvm)");
}
/*@ forced */

/* Ends the program unless KVM honours the prefix that forces emulation. */
static void require_forced_emulation(void)
{
	char value = 0;
	int file = open("/sys/module/kvm/parameters/force_emulation_prefix", O_RDONLY);

	if (file < 0 || read(file, &value, 1) != 1 || value == '0' || value == 'N')
		leave(CANNOT_RUN, "kvm.force_emulation_prefix is not set");
	close(file);
}
/*@ punchmemfd */

/* Punches pages out of a guest_memfd, or allocates them; 0 or an errno. */
static int fallocate_guest_memfd(int fd, int mode, uint64_t offset, uint64_t size)
{
	return fallocate(fd, mode, offset, size) ? errno : SUCCESS;
}
/*@ resizememfd */

/* ftruncate of a guest_memfd; 0 or an errno. */
static int resize_guest_memfd(int fd, uint64_t size)
{
	return ftruncate(fd, size) ? errno : SUCCESS;
}
/*@ mapmemfd */

/* Maps a guest_memfd over a reserved mapping, and fills it if it is shared; 0 or an errno. */
static int map_guest_memfd(int fd, struct mapping *mapping, int sharing, bool shared)
{
	int both = PROT_READ | PROT_WRITE;
	uint64_t size = mapping->pages * PAGE;
	void *elsewhere = mmap(NULL, size, both, sharing, fd, 0);

	if (elsewhere == MAP_FAILED)
		return errno;
	munmap(elsewhere, size);
	if (mmap(mapping->host, size, both, sharing | MAP_FIXED, fd, 0) == MAP_FAILED)
		return errno;
	if (shared && !mapping->expected)
		fill(mapping);
	return SUCCESS;
}
