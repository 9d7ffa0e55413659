/*@ guest */

/*
 * The guest's own slot: code at its start, a buffer for copies at 0x2000, and at 0xc000 page
 * tables if it needs them.
 */
static struct mapping guest = {.name = "guest", .pages = GUEST_PAGES};

#define GUEST_BUFFER 0x2000u
#define PORT_DONE 0xe0
#define PORT_EXECUTED 0xe1
/*@ ring */

#ifndef KVM_DIRTY_LOG_PAGE_OFFSET
#define KVM_DIRTY_LOG_PAGE_OFFSET 64
#define KVM_DIRTY_GFN_F_DIRTY 1
#define KVM_DIRTY_GFN_F_RESET 2
#define KVM_EXIT_DIRTY_RING_FULL 31
#define KVM_RESET_DIRTY_RINGS _IO(KVMIO, 0xc7)
struct kvm_dirty_gfn {
	__u32 flags;
	__u32 slot;
	__u64 offset;
};
#endif

struct slot_page {
	uint32_t slot;
	uint64_t page;
};

/* A vCPU's dirty ring, and what was found in it since the last harvest. */
struct ring {
	struct kvm_dirty_gfn *entries;
	unsigned next, found, full;
	struct slot_page *pages;
};

static uint64_t ring_bytes;	/* of the rings of vCPUs created from now on; 0: none */
/*@ harvested */

static int harvested;		/* ring entries harvested since the last reset */
/*@ vcpus */

struct vcpu {
	int fd;
	struct kvm_run *run;
	struct kvm_sregs reset;	/* the registers after its creation */
	struct ring ring;	/*+ ring */
};

static struct vcpu vcpus[8];
/*@ mapring */

static void map_ring(struct vcpu *vcpu)
{
	vcpu->ring = (struct ring){0};
	if (!ring_bytes)
		return;
	vcpu->ring.entries = mmap(NULL, ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd,
				  KVM_DIRTY_LOG_PAGE_OFFSET * PAGE);
	if (vcpu->ring.entries == MAP_FAILED)
		leave(CANNOT_RUN, "cannot map the dirty ring: %s", strerror(errno));
}
/*@ collect */

/* Reads the new entries of a ring and marks them as harvested; returns how many. */
static int collect(struct ring *ring)
{
	unsigned size = ring_bytes / sizeof(*ring->entries), count = 0;

	for (; ring->entries && count < size; count++) {
		struct kvm_dirty_gfn *entry = &ring->entries[ring->next % size];

		if (__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY)
			break;
		ring->pages = realloc(ring->pages, (ring->found + 1) * sizeof(*ring->pages));
		ring->pages[ring->found++] = (struct slot_page){entry->slot, entry->offset};
		/* The kernel ignores the flag of a dirty entry here: every other one keeps it. */
		__atomic_store_n(&entry->flags,
				 KVM_DIRTY_GFN_F_RESET | (ring->next & KVM_DIRTY_GFN_F_DIRTY),
				 __ATOMIC_RELEASE);
		ring->next++;
	}
	harvested += count;
	return count;
}
/*@ makeroom */

/* Empties a full ring, so that its vCPU can go on; false if there is nothing to harvest. */
static bool make_room(struct ring *ring)
{
	ring->full++;
	if (!collect(ring))
		return false;
	harvested -= must(ioctl(vm, KVM_RESET_DIRTY_RINGS, 0), "KVM_RESET_DIRTY_RINGS");
	return true;
}
/*@ setcpuid */

/* Gives a vCPU guest-physical addresses of GPA_BITS bits. */
static void set_cpuid(struct vcpu *vcpu)
{
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[512];
	} cpuid;

	cpuid.head.nent = 512;
	must(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
	for (unsigned i = 0; i < cpuid.head.nent; i++)
		if (cpuid.entries[i].function == 0x80000008)
			cpuid.entries[i].eax = (cpuid.entries[i].eax & ~0xffu) | GPA_BITS;
	must(ioctl(vcpu->fd, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
}
/*@ makevcpu */

/* KVM_CREATE_VCPU; 0 or an errno. */
static int create_vcpu(unsigned number)
{
	struct vcpu *vcpu = &vcpus[number];
	int size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	int fd = ioctl(vm, KVM_CREATE_VCPU, number);

	if (fd < 0)
		return errno;
	vcpu->fd = fd;
	vcpu->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (vcpu->run == MAP_FAILED)
		leave(CANNOT_RUN, "cannot map struct kvm_run");
	must(ioctl(fd, KVM_GET_SREGS, &vcpu->reset), "KVM_GET_SREGS");
	set_cpuid(vcpu);	/*+ cpuid */
	map_ring(vcpu);		/*+ ring */
	return SUCCESS;
}
/*@ vcpu */

/* A vCPU is created on first use. */
static struct vcpu *vcpu(unsigned number)
{
	if (!vcpus[number].run) {
		int error = create_vcpu(number);

		if (error)
			leave(CANNOT_RUN, "KVM_CREATE_VCPU: %s", strerror(error));
	}
	return &vcpus[number];
}
/*@ mappedring */

/* Where pages of a vCPU's file are mapped, those of its ring show its ring. */
static void expect_ring(unsigned cpu, const char *mapped, uint64_t first_page, uint64_t pages)
{
	for (uint64_t page = first_page; page < first_page + pages; page++) {
		uint64_t in_ring = (page - KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE;

		if (page < KVM_DIRTY_LOG_PAGE_OFFSET || in_ring >= ring_bytes)
			continue;
		if (memcmp(mapped + (page - first_page) * PAGE,
			   (const char *)vcpu(cpu)->ring.entries + in_ring, PAGE))
			leave(WRONG, "page %llu of the vCPU's file is mapped as another",
			      (unsigned long long)page);
	}
}
/*@ mapvcpu */

/* Maps pages of a vCPU's file, and unmaps them; 0 or an errno. */
static int map_vcpu_pages(unsigned cpu, uint64_t first_page, uint64_t pages, int protection,
			  int flags)
{
	uint64_t size = pages * PAGE;
	void *mapped = mmap(NULL, size, protection, flags, vcpu(cpu)->fd, first_page * PAGE);

	if (mapped == MAP_FAILED)
		return errno;
	expect_ring(cpu, mapped, first_page, pages);	/*+ ring */
	munmap(mapped, size);
	return SUCCESS;
}
/*@ apicbase */

/* Moves the page of a vCPU's local APIC: takes effect with the mode of the next guest. */
static void set_apic_base(unsigned cpu, uint64_t gpa)
{
	struct kvm_sregs *reset = &vcpu(cpu)->reset;

	reset->apic_base = gpa | (reset->apic_base & 0xfff);
}
/*@ setapic */

/*
 * Enables a vCPU's local APIC by software, or not, with this task priority (-1: as it is); 0 or an
 * errno.
 */
static int set_apic(unsigned cpu, bool enabled, int priority)
{
	struct kvm_lapic_state lapic;
	uint32_t *spurious = (uint32_t *)&lapic.regs[0xf0], *tpr = (uint32_t *)&lapic.regs[0x80];

	if (ioctl(vcpu(cpu)->fd, KVM_GET_LAPIC, &lapic))
		return errno;
	*spurious = (*spurious & ~0x100u) | (enabled ? 0x100u : 0);
	if (priority >= 0)
		*tpr = priority;
	if (ioctl(vcpu(cpu)->fd, KVM_SET_LAPIC, &lapic))
		return errno;
	vcpu(cpu)->reset.cr8 = *tpr >> 4;	/* The mode of the next guest sets it. */
	return SUCCESS;
}
/*@ vapicaddr */

/* KVM_SET_VAPIC_ADDR; 0 or an errno. */
static int set_vapic_addr(unsigned cpu, uint64_t gpa)
{
	struct kvm_vapic_addr address = {.vapic_addr = gpa};

	return ioctl(vcpu(cpu)->fd, KVM_SET_VAPIC_ADDR, &address) ? errno : SUCCESS;
}
