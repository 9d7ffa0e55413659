/*@ threads */
/*@ lives */

#define RING_BYTES (1 << 14)

#include <sys/eventfd.h>

enum shape { PLAIN, WITH_RING, WITH_GUEST_MEMFD, WITH_EVENTFD };

/* Another VM: slots in each address space, a dirty log or ring, and a vCPU that counts for ever. */
struct life {
	unsigned char *memory;
	int vm, vcpu, memfd;
	struct kvm_run *run;
	pthread_t thread;
};

/* Makes two guest_memfds, closes one, and binds the other to a slot. */
static void bind_a_memfd(struct life *life)
{
	struct kvm_create_guest_memfd wanted = {.size = 4 * PAGE};
	struct kvm_userspace_memory_region2 region = {
		.slot = 3,
		.flags = 1u << 2,	/* KVM_MEM_GUEST_MEMFD */
		.guest_phys_addr = 16 * PAGE,
		.memory_size = 4 * PAGE,
		.userspace_addr = (uintptr_t)life->memory,
	};

	close(must(ioctl(life->vm, KVM_CREATE_GUEST_MEMFD, &wanted), "a guest_memfd"));
	life->memfd = must(ioctl(life->vm, KVM_CREATE_GUEST_MEMFD, &wanted), "a guest_memfd");
	region.guest_memfd = life->memfd;
	must(ioctl(life->vm, KVM_SET_USER_MEMORY_REGION2, &region), "a slot with a guest_memfd");
}

/* Has an eventfd signalled where the guest writes nothing. */
static void await_an_event(struct life *life)
{
	struct kvm_ioeventfd event = {
		.addr = 1 << 20, .len = 4, .fd = must(eventfd(0, 0), "an eventfd"),
	};

	must(ioctl(life->vm, KVM_IOEVENTFD, &event), "an ioeventfd");
	close(event.fd);
}

/* Makes two MiB private where there is no slot. */
static void make_private(struct life *life)
{
	struct {
		uint64_t address, size, attributes, flags;
	} wanted = {1 << 30, 2 << 20, 1 << 3, 0};

	/* KVM_SET_MEMORY_ATTRIBUTES */
	must(ioctl(life->vm, _IOC(_IOC_WRITE, KVMIO, 0xd2, sizeof(wanted)), &wanted), "attributes");
}

static void begin_life(struct life *life, enum shape shape)
{
	static const unsigned char count_for_ever[] = {
		0xbb, 0x00, 0x08,		/* mov bx, 0x800 */
		0xfe, 0x07,			/* inc byte [bx] */
		0x81, 0xc3, 0x00, 0x10,		/* add bx, 0x1000 */
		0x73, 0xf8,			/* jnc to inc: in each page */
		0xff, 0x06, 0x00, 0x01,		/* inc word [0x100] */
		0xeb, 0xfa,			/* jmp to that */
	};
	static const struct { unsigned slot, page, pages, flags; } slots[] = {
		{0, 0, 1, 0}, {1, 1, 8, KVM_MEM_LOG_DIRTY_PAGES}, {2, 9, 7, 0},
		{1 << 16, 0, 8, KVM_MEM_LOG_DIRTY_PAGES},
	};
	int size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	struct kvm_enable_cap ring = {.cap = KVM_CAP_DIRTY_LOG_RING, .args = {RING_BYTES}};
	struct kvm_regs regs = {.rflags = 2};
	struct kvm_sregs sregs;
	int spaces;

	life->memory = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			    -1, 0);
	if (life->memory == MAP_FAILED)
		leave(CANNOT_RUN, "mmap: %s", strerror(errno));
	memset(life->memory, 0, 16 * PAGE);	/* what is there already, KVM may map ahead */
	memcpy(life->memory, count_for_ever, sizeof(count_for_ever));
	life->vm = must(ioctl(kvm, KVM_CREATE_VM, shape == WITH_GUEST_MEMFD), "KVM_CREATE_VM");
	if (shape == WITH_RING)
		must(ioctl(life->vm, KVM_ENABLE_CAP, &ring), "KVM_CAP_DIRTY_LOG_RING");
	life->memfd = -1;
	if (shape == WITH_GUEST_MEMFD)
		bind_a_memfd(life);
	spaces = ioctl(life->vm, KVM_CHECK_EXTENSION, KVM_CAP_MULTI_ADDRESS_SPACE);
	for (int i = 0; i < (spaces > 1 ? 4 : 3); i++) {
		struct kvm_userspace_memory_region region = {
			.slot = slots[i].slot,
			.flags = slots[i].flags,
			.guest_phys_addr = slots[i].page * PAGE,
			.memory_size = slots[i].pages * PAGE,
			.userspace_addr = (uintptr_t)life->memory + slots[i].page * PAGE,
		};

		must(ioctl(life->vm, KVM_SET_USER_MEMORY_REGION, &region), "a slot");
	}
	if (shape == WITH_GUEST_MEMFD)
		make_private(life);
	if (shape == WITH_EVENTFD)
		await_an_event(life);
	life->vcpu = must(ioctl(life->vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	life->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, life->vcpu, 0);
	if (life->run == MAP_FAILED)
		leave(CANNOT_RUN, "cannot map struct kvm_run");
	must(ioctl(life->vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = sregs.cs.selector = 0;
	must(ioctl(life->vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	must(ioctl(life->vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}
/*@ closelife */

static void close_life(struct life *life)
{
	munmap(life->run, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	close(life->vcpu);
	close(life->vm);
	if (life->memfd >= 0)
		close(life->memfd);
}

static void forget_life(struct life *life)
{
	munmap(life->memory, 16 * PAGE);
}
/*@ inturn */

/* VMs have in turn a dirty ring, a guest_memfd and an ioeventfd: not all can have everything. */
static enum shape next_shape(void)
{
	static unsigned turn;
	int has_ring = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING) >= RING_BYTES;
	int has_events = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_IOEVENTFD) > 0;
	int types = ioctl(kvm, KVM_CHECK_EXTENSION, 235);	/* KVM_CAP_VM_TYPES */
	int memfds = ioctl(kvm, KVM_CHECK_EXTENSION, 234);	/* KVM_CAP_GUEST_MEMFD */

	switch (turn++ % 4) {
	case 1:
		return has_ring ? WITH_RING : PLAIN;
	case 2:
		return types > 0 && types & 2 && memfds > 0 ? WITH_GUEST_MEMFD : PLAIN;
	case 3:
		return has_events ? WITH_EVENTFD : PLAIN;
	default:
		return PLAIN;
	}
}
/*@ closed */

static void closed(void)
{
	struct life life;

	begin_life(&life, next_shape());
	if (ioctl(life.vm, KVM_CREATE_VCPU, 0) >= 0 || errno != EEXIST)
		leave(WRONG, "KVM_CREATE_VCPU of the same id: not EEXIST");
	close_life(&life);
	forget_life(&life);
}
/*@ running */

static void nothing(int number)
{
	(void)number;
}

static void *run_life(void *life)
{
	ioctl(((struct life *)life)->vcpu, KVM_RUN, 0);
	return NULL;
}

static volatile uint16_t *count_of(struct life *life)
{
	return (volatile uint16_t *)(life->memory + 0x100);
}

/* Waits until the guest has counted on. */
static void wait_for_more(struct life *life)
{
	uint16_t before = *count_of(life);

	while (*count_of(life) == before)
		if (pthread_tryjoin_np(life->thread, NULL) == 0)
			leave(CANNOT_RUN, "the guest does not run");
}

static void let_run(struct life *life)
{
	struct sigaction action = {.sa_handler = nothing};

	sigaction(SIGUSR1, &action, NULL);
	if (pthread_create(&life->thread, NULL, run_life, life))
		leave(CANNOT_RUN, "pthread_create fails");
	wait_for_more(life);
}
/*@ stoprunning */

static void stop_running(struct life *life)
{
	pthread_kill(life->thread, SIGUSR1);
	pthread_join(life->thread, NULL);
}
/*@ byanother */

static void *close_life_of(void *life)
{
	close_life(life);
	return NULL;
}

/* The vCPU is created by this thread, run by another, and closed by a third. */
static void closed_by_another_thread(void)
{
	struct life life;
	pthread_t closer;

	begin_life(&life, PLAIN);
	let_run(&life);
	stop_running(&life);
	if (pthread_create(&closer, NULL, close_life_of, &life))
		leave(CANNOT_RUN, "pthread_create fails");
	pthread_join(closer, NULL);
	forget_life(&life);
}
/*@ whilerunning */

static void closed_while_running(void)
{
	struct life life;

	begin_life(&life, next_shape());
	let_run(&life);
	close_life(&life);
	wait_for_more(&life);
	stop_running(&life);
	forget_life(&life);
}
/*@ heldbyachild */

/* A forked child still holds the VM open, and is the last to close it. */
static void held_by_a_child(void)
{
	struct life life;
	int ends[2];
	char none;
	pid_t child;

	begin_life(&life, PLAIN);
	must(pipe(ends), "pipe");
	child = must(fork(), "fork");
	if (!child) {
		close(ends[1]);
		_exit(read(ends[0], &none, 1) != 0);
	}
	close(ends[0]);
	close_life(&life);
	close(ends[1]);
	must(waitpid(child, NULL, 0), "waitpid");
	forget_life(&life);
}
/*@ killed */

/* A process is killed while its vCPU runs. */
static void killed(void)
{
	struct life life;
	int ends[2];
	char sign = 0;
	pid_t child;

	must(pipe(ends), "pipe");
	child = must(fork(), "fork");
	if (!child) {
		begin_life(&life, PLAIN);
		let_run(&life);
		must(write(ends[1], &sign, 1), "write");
		for (;;)
			pause();
	}
	close(ends[1]);
	if (read(ends[0], &sign, 1) != 1)
		leave(CANNOT_RUN, "the process that is to be killed ended by itself");
	close(ends[0]);
	kill(child, SIGKILL);
	must(waitpid(child, NULL, 0), "waitpid");
}
/*@ killedclosing */

static void *keep_mapping(void *nothing)
{
	for (;;)
		munmap(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096);
	return nothing;
}

/*
 * A process is killed while it closes VMs. A kernel with internal slots then unmaps their memory,
 * and has to wait for the mmap lock, which another thread keeps busy.
 */
static void killed_while_closing(void)
{
	pthread_t thread;
	int ends[2], other, cpu;
	char sign = 0;
	pid_t child;

	must(pipe(ends), "pipe");
	child = must(fork(), "fork");
	if (!child) {
		if (pthread_create(&thread, NULL, keep_mapping, NULL))
			leave(CANNOT_RUN, "pthread_create fails");
		for (;;) {
			other = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
			/* Some kernels lack these two. */
			ioctl(other, KVM_CREATE_IRQCHIP, 0);
			ioctl(other, KVM_SET_TSS_ADDR, TSS_GPA);
			cpu = must(ioctl(other, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
			must(write(ends[1], &sign, 1), "write");
			close(cpu);
			close(other);
		}
	}
	close(ends[1]);
	if (read(ends[0], &sign, 1) != 1)
		leave(CANNOT_RUN, "the process that is to be killed ended by itself");
	kill(child, SIGKILL);
	must(waitpid(child, NULL, 0), "waitpid");
	close(ends[0]);
}
