/*@ switchvm */

/* The state of the VMs that are not in use now. */
static struct {
	int vm;
	struct vcpu vcpus[8];
	uint64_t ring_bytes;	/*+ ring */
	int harvested;		/*+ harvested */
} others[4];

static void switch_vm(int number)
{
	static int current;

	others[current].vm = vm;
	memcpy(others[current].vcpus, vcpus, sizeof(vcpus));
	others[current].ring_bytes = ring_bytes;	/*+ ring */
	others[current].harvested = harvested;		/*+ harvested */
	current = number;
	vm = others[current].vm;
	memcpy(vcpus, others[current].vcpus, sizeof(vcpus));
	ring_bytes = others[current].ring_bytes;	/*+ ring */
	harvested = others[current].harvested;		/*+ harvested */
}
/*@ coalesce */

/*
 * KVM_REGISTER_COALESCED_MMIO, or KVM_UNREGISTER_COALESCED_MMIO; 0 or an errno.  The pad is what
 * says that a range is one of ports: older headers have no other name for it.
 */
static int coalesce_mmio(unsigned long request, uint64_t gpa, uint32_t size, uint32_t pio)
{
	struct kvm_coalesced_mmio_zone zone = {.addr = gpa, .size = size, .pad = pio};

	return ioctl(vm, request, &zone) ? errno : SUCCESS;
}
/*@ coalesced */

/* The VM's ring of coalesced MMIO, which is part of every vCPU's mapping. */
static struct kvm_coalesced_mmio_ring *coalesced_ring(void)
{
	int page = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_COALESCED_MMIO);

	for (unsigned i = 0; i < sizeof(vcpus) / sizeof(*vcpus); i++)
		if (vcpus[i].run)
			return (void *)((char *)vcpus[i].run + page * PAGE);
	return NULL;
}

static void expect_no_more_coalesced(void)
{
	struct kvm_coalesced_mmio_ring *ring = coalesced_ring();

	if (ring && ring->first != ring->last)
		leave(WRONG, "a write was coalesced that should not have been");
}
/*@ setring */

/* Says that the ring of coalesced MMIO is empty, and goes on at an index. */
static void set_coalesced_ring(unsigned cpu, uint32_t index)
{
	struct kvm_coalesced_mmio_ring *ring;

	vcpu(cpu);
	ring = coalesced_ring();
	ring->first = ring->last = index;
}
/*@ coalescedwrite */

static void expect_coalesced(uint64_t gpa, unsigned length, const char *data, unsigned pio)
{
	struct kvm_coalesced_mmio_ring *ring = coalesced_ring();
	struct kvm_coalesced_mmio *entry;

	if (!ring || ring->first == ring->last)
		leave(WRONG, "a write to 0x%llx was not coalesced", (unsigned long long)gpa);
	entry = &ring->coalesced_mmio[ring->first];
	if (entry->pio != pio)
		leave(WRONG, "a write to 0x%llx was coalesced with pio=%u, expected %u",
		      (unsigned long long)gpa, entry->pio, pio);
	if (entry->phys_addr != gpa || entry->len != length || memcmp(entry->data, data, length))
		leave(WRONG, "a write of %u bytes to 0x%llx was coalesced, expected %u to 0x%llx",
		      entry->len, (unsigned long long)entry->phys_addr, length,
		      (unsigned long long)gpa);
	ring->first = (ring->first + 1) % ((PAGE - sizeof(*ring)) / sizeof(*entry));
}
/*@ events */

/* KVM_IOEVENTFD; 0 or an errno. */
static int event_on(int file, uint64_t gpa, uint32_t length, uint64_t match, uint32_t flags)
{
	struct kvm_ioeventfd wanted = {
		.datamatch = match, .addr = gpa, .len = length, .fd = file, .flags = flags,
	};

	return ioctl(vm, KVM_IOEVENTFD, &wanted) ? errno : SUCCESS;
}
/*@ ioeventfd */

static struct {
	bool made;
	int fd;
} eventfds[400];

static int io_eventfd(unsigned number, uint64_t gpa, uint32_t length, uint64_t match,
		      unsigned flags)
{
	if (!eventfds[number].made)
		eventfds[number].fd = must(eventfd(0, EFD_NONBLOCK), "eventfd");
	eventfds[number].made = true;
	return event_on(eventfds[number].fd, gpa, length, match, flags);
}
/*@ signals */

static void expect_signals(unsigned number, uint64_t count)
{
	uint64_t found = 0;

	if (read(eventfds[number].fd, &found, sizeof(found)) != sizeof(found))
		found = 0;
	if (found != count)
		leave(WRONG, "eventfd %u was signalled %llu times, expected %llu", number,
		      (unsigned long long)found, (unsigned long long)count);
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
/*@ attributes */

#ifndef KVM_SET_MEMORY_ATTRIBUTES
struct kvm_memory_attributes {
	__u64 address;
	__u64 size;
	__u64 attributes;
	__u64 flags;
};
#define KVM_SET_MEMORY_ATTRIBUTES _IOW(KVMIO, 0xd2, struct kvm_memory_attributes)
#endif

/* KVM_SET_MEMORY_ATTRIBUTES; 0 or an errno. */
static int set_memory_attributes(uint64_t address, uint64_t size, uint64_t attributes,
				 uint64_t flags)
{
	struct kvm_memory_attributes wanted = {
		.address = address,
		.size = size,
		.attributes = attributes,
		.flags = flags,
	};

	return ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &wanted) ? errno : SUCCESS;
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
/*@ prefaultcall */

static struct kvm_pre_fault_memory left;	/* what is left of the latest range */

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
		leave(WRONG,
		      "expected 0x%llx bytes to be left from gpa 0x%llx on, got 0x%llx from 0x%llx",
		      (unsigned long long)size, (unsigned long long)gpa,
		      (unsigned long long)left.size, (unsigned long long)left.gpa);
}
/*@ unmapinternal */

/* The start of each mapping that looks like those the kernel makes for internal slots. */
static uintptr_t known[256];
static unsigned known_count;

/* Makes new ones inaccessible (without a VM it only notes them); returns how many. */
static int unmap_internal_slots(void)
{
	static char line[512];
	struct { uintptr_t start, end; } found[16];
	unsigned count = 0;
	FILE *maps = fopen("/proc/self/maps", "r");

	if (!maps)
		leave(CANNOT_RUN, "/proc/self/maps: %s", strerror(errno));
	while (count < 16 && fgets(line, sizeof(line), maps)) {
		unsigned i = 0;

		if (!strstr(line, "/dev/zero (deleted)")
		    || sscanf(line, "%lx-%lx", &found[count].start, &found[count].end) != 2)
			continue;
		while (i < known_count && known[i] != found[count].start)
			i++;
		if (i == known_count && known_count < 256)
			known[known_count++] = found[count++].start;
	}
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
			if (vcpus[i].ring.entries)			/*+ ring */
				munmap(vcpus[i].ring.entries, ring_bytes);	/*+ ring */
			munmap(vcpus[i].run, size);
			close(vcpus[i].fd);
			vcpus[i].run = NULL;
		}
	ring_bytes = 0;	/*+ ring */
	harvested = 0;	/*+ harvested */
	close(vm);
	vm = -1;
}
/*@ traces */

/* Counts what VMs can leave in the process: pages of the kernel's mappings, and KVM's files. */
static int traces(void)
{
	static char line[512];
	FILE *maps = fopen("/proc/self/maps", "r");
	DIR *files = opendir("/proc/self/fd");
	int found = 0;

	if (!maps || !files)
		leave(CANNOT_RUN, "/proc/self/maps and fd: %s", strerror(errno));
	while (fgets(line, sizeof(line), maps)) {
		unsigned long start, end;

		if ((strstr(line, "anon_inode:kvm") || strstr(line, "/dev/zero (deleted)"))
		    && sscanf(line, "%lx-%lx", &start, &end) == 2)
			found += (end - start) / PAGE;
	}
	fclose(maps);
	for (struct dirent *file; (file = readdir(files));) {
		ssize_t length = readlinkat(dirfd(files), file->d_name, line, sizeof(line) - 1);

		line[length > 0 ? length : 0] = 0;
		found += !strncmp(line, "anon_inode:kvm", 14);
	}
	closedir(files);
	return found;
}

static void expect_traces(int before)
{
	int found = traces();

	if (found > before)
		leave(WRONG, "a VM that is gone left %d pages or files behind", found - before);
}
/*@ probe */

/* Tries to create a slot of one page at this gpa in another VM; 0 or an errno. */
static int try_page(int other, uint64_t gpa)
{
	static unsigned char memory[2 * PAGE];
	struct kvm_userspace_memory_region region = {
		.guest_phys_addr = gpa,
		.memory_size = PAGE,
		.userspace_addr = ((uintptr_t)memory + PAGE - 1) & -PAGE,
	};

	return ioctl(other, KVM_SET_USER_MEMORY_REGION, &region) ? errno : SUCCESS;
}
/*@ places */

/* Where a kernel's internal slots lie. */
#define TSS_GPA 0xfffbd000ul
#define IDENTITY_MAP_GPA 0xfffbc000ul
#define APIC_GPA 0xfee00000ul
/*@ internal */

enum internal { TSS, IDENTITY_MAP, APIC_PAGE };

/* Ends the program unless the kernel has this internal slot: a user's slot there is EEXIST. */
static void require_internal(enum internal which, const char *name)
{
	static const uint64_t gpas[] = {TSS_GPA, IDENTITY_MAP_GPA, APIC_GPA};
	uint64_t gpa = gpas[which];
	int vcpu = -1, other = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");

	if (which == TSS)
		must(ioctl(other, KVM_SET_TSS_ADDR, gpa), "KVM_SET_TSS_ADDR");
	else if (which == IDENTITY_MAP)
		must(ioctl(other, KVM_SET_IDENTITY_MAP_ADDR, &gpa), "KVM_SET_IDENTITY_MAP_ADDR");
	else
		must(ioctl(other, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
	if (which != TSS)
		vcpu = must(ioctl(other, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	if (try_page(other, gpa) != EEXIST)
		leave(CANNOT_RUN, "%s is missing", name);
	close(vcpu);
	close(other);
}
/*@ lastgfn */

/* The expectations below hold only for a kernel with exactly this last gfn, 2^n - 1. */
static void require_last_gfn(uint64_t gfn)
{
	int other = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");

	if (try_page(other, gfn * PAGE) || (2 * gfn * PAGE < 1ull << 52
					    && !try_page(other, (2 * gfn + 1) * PAGE)))
		leave(CANNOT_RUN, "the last gfn is not 0x%llx", (unsigned long long)gfn);
	close(other);
}
