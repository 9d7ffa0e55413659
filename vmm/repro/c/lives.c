/*@ growth */

/*
 * What the kernel's memory is made of, as /proc/meminfo counts it, and what this process has mapped.
 * The former is the whole machine's, so the work is done in rounds, each followed by as long a
 * wait: what others allocate grows during the wait as well, what is freed late is gone after it,
 * and what leaks does neither. The least growth over half of the rounds or more, by either measure,
 * is what the work certainly costs.
 */
enum { COUNTERS = 6, ROUNDS = 8, ATTEMPTS = 2, TOLERANCE = 64 << 10 };

static const char *const counted[COUNTERS] = {
	"SUnreclaim:", "VmallocUsed:", "Percpu:", "KernelStack:", "SecPageTables:",
	"VmSize:",	/* of /proc/self/status: what the kernel has mapped here and left behind */
};

static void read_file(const char *path, long long sizes[COUNTERS])
{
	char line[256];
	FILE *file = fopen(path, "r");

	while (file && fgets(line, sizeof(line), file))
		for (int i = 0; i < COUNTERS; i++)
			if (!strncmp(line, counted[i], strlen(counted[i])))
				sizes[i] = atoll(line + strlen(counted[i])) * 1024;
	if (file)
		fclose(file);
}

static void read_counters(long long sizes[COUNTERS])
{
	char line[256];
	FILE *file = fopen("/proc/sys/vm/stat_refresh", "r");

	/* Reading it has each CPU count what it keeps to itself; only an administrator may. */
	if (file && fgets(line, sizeof(line), file))
		leave(CANNOT_RUN, "/proc/sys/vm/stat_refresh says %s", line);
	if (file)
		fclose(file);
	memset(sizes, 0, COUNTERS * sizeof(sizes[0]));
	read_file("/proc/meminfo", sizes);
	read_file("/proc/self/status", sizes);
}

/* A share of the work, and a wait: how much grew in all, and how much more with the work. */
static void work_a_round(void (*turn)(void), unsigned share, long long grown[2][COUNTERS])
{
	long long before[COUNTERS], between[COUNTERS], after[COUNTERS];
	struct timespec start, end;

	clock_gettime(CLOCK_MONOTONIC, &start);
	read_counters(before);
	for (unsigned i = 0; i < share; i++)
		turn();
	read_counters(between);
	clock_gettime(CLOCK_MONOTONIC, &end);
	usleep((end.tv_sec - start.tv_sec) * 1000000 + (end.tv_nsec - start.tv_nsec) / 1000);
	read_counters(after);
	for (int i = 0; i < COUNTERS; i++) {
		grown[0][i] = after[i] - before[i];
		grown[1][i] = 2 * between[i] - before[i] - after[i];
	}
}

static long long certain(long long rounds[ROUNDS][2][COUNTERS], int counter)
{
	long long least = INT64_MAX;

	for (int first = 0; first < ROUNDS; first++)
		for (int end = first + ROUNDS / 2; end <= ROUNDS; end++)
			for (int measure = 0; measure < 2; measure++) {
				long long sum = 0;

				for (int i = first; i < end; i++)
					sum += rounds[i][measure][counter];
				if (sum / (end - first) < least)
					least = sum / (end - first);
			}
	return least;
}

/* Does something so many times, after which the kernel has no less memory than before. */
static void expect_no_growth(void (*turn)(void), unsigned times)
{
	static long long rounds[ROUNDS][2][COUNTERS];
	unsigned share = (times + ROUNDS - 1) / ROUNDS;
	const char *grown = "";

	work_a_round(turn, share, rounds[0]);	/* What the kernel allocates once. */
	for (int attempt = 0; attempt < ATTEMPTS && grown; attempt++) {
		for (int i = 0; i < ROUNDS; i++)
			work_a_round(turn, share, rounds[i]);
		grown = NULL;
		for (int i = 0; i < COUNTERS; i++)
			if (certain(rounds, i) > TOLERANCE)
				grown = counted[i];
	}
	if (grown)
		leave(WRONG, "%s of /proc/meminfo, or of this process, grows", grown);
}
/*@ threads */
/*@ lives */

/* Another VM: three slots, a dirty log, and a vCPU that counts for ever, in memory that forks share. */
struct life {
	unsigned char *memory;
	int vm, vcpu;
	struct kvm_run *run;
	pthread_t thread;
};

static void begin_life(struct life *life)
{
	static const unsigned char count_for_ever[] = {
		0xff, 0x06, 0x00, 0x01,		/* inc word [0x100] */
		0xeb, 0xfa,			/* jmp to the start */
	};
	static const struct { unsigned page, pages, flags; } slots[] = {
		{0, 1, 0}, {1, 8, KVM_MEM_LOG_DIRTY_PAGES}, {9, 7, 0},
	};
	int size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	struct kvm_regs regs = {.rflags = 2};
	struct kvm_sregs sregs;

	life->memory = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			    -1, 0);
	if (life->memory == MAP_FAILED)
		leave(CANNOT_RUN, "mmap: %s", strerror(errno));
	memcpy(life->memory, count_for_ever, sizeof(count_for_ever));
	life->vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	for (unsigned slot = 0; slot < 3; slot++) {
		struct kvm_userspace_memory_region region = {
			.slot = slot,
			.flags = slots[slot].flags,
			.guest_phys_addr = slots[slot].page * PAGE,
			.memory_size = slots[slot].pages * PAGE,
			.userspace_addr = (uintptr_t)life->memory + slots[slot].page * PAGE,
		};

		must(ioctl(life->vm, KVM_SET_USER_MEMORY_REGION, &region), "a slot");
	}
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
}

static void forget_life(struct life *life)
{
	munmap(life->memory, 16 * PAGE);
}
/*@ closed */

static void closed(void)
{
	struct life life;

	begin_life(&life);
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

/* The vCPU has run in one thread, was made in this one, and a third one closes. */
static void closed_by_another_thread(void)
{
	struct life life;
	pthread_t closer;

	begin_life(&life);
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

	begin_life(&life);
	let_run(&life);
	close_life(&life);
	wait_for_more(&life);
	stop_running(&life);
	forget_life(&life);
}
/*@ heldbyachild */

/* A forked child still has the VM open, and lets go last. */
static void held_by_a_child(void)
{
	struct life life;
	int ends[2];
	char none;
	pid_t child;

	begin_life(&life);
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
		begin_life(&life);
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
 * A process is killed while it closes VMs. Where the kernel has slots of its own their memory is
 * unmapped then, for which it has to wait: another thread keeps the memory map busy.
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
			/* Not every kernel has these two. */
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
/*@ again */

static void again(void (*turn)(void), unsigned times)
{
	for (unsigned i = 0; i < times; i++)
		turn();
}
/*@ churn */

static uint32_t churned;	/* the slot */

/* Creates, logs, moves, refuses and deletes one slot of two pages between 0x8000 and 0xd000. */
static void churn(void)
{
	static unsigned char memory[3 * PAGE];
	uint64_t hva = ((uintptr_t)memory + PAGE - 1) & -PAGE;
	uint32_t slot = churned, logged = KVM_MEM_LOG_DIRTY_PAGES;

	expect(set_region(slot, 0, 0x8000, 2 * PAGE, hva), SUCCESS);
	expect(set_region(slot, logged, 0x8000, 2 * PAGE, hva), SUCCESS);
	expect(set_region(slot, logged, 0xa000, 2 * PAGE, hva), SUCCESS);
	set_region(slot, 0, 1ull << 63, 2 * PAGE, hva);
	set_region(slot, 0, 0xa000, PAGE, hva);
	expect(set_region(slot, 0, 0xb000, 2 * PAGE, hva), SUCCESS);
	expect(set_region(slot, 0, 0, 0, 0), SUCCESS);
}
/*@ twoslots */

enum { FIRST = 0x8000, SECOND = 0xa000, THIRD = 0xb000 };

#define PAIR (2 * PAGE)
#define BEYOND (1ull << 63)	/* the last gfn, where there is one: it is looked at last */
#define LOGGED KVM_MEM_LOG_DIRTY_PAGES
#define READ_ONLY KVM_MEM_READONLY

static uint32_t refused;	/* the slot; the next id is used as well */
static uint64_t pair;		/* two pages */

static void prepare(uint32_t slot)
{
	refused = slot;
	if (!pair)
		pair = (uintptr_t)mmap(NULL, PAIR, PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void delete_both(void)
{
	set_region(refused, 0, 0, 0, 0);
	set_region(refused + 1, 0, 0, 0, 0);
}
/*@ refuse */

static void refuse(uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size, uint64_t hva)
{
	if (set_region(slot, flags, gpa, size, hva) == SUCCESS)
		leave(WRONG, "slot %#x, %#llx bytes at %#llx, flags %#x: success", slot,
		      (unsigned long long)size, (unsigned long long)gpa, flags);
}
/*@ refusecreations */

#define LARGE (1ull << 28)	/* of a slot whose two dirty bitmaps take 16 KiB */

static uint64_t large;

/* Asks for a slot for every reason to refuse one. */
static void refuse_creations(void)
{
	static const uint32_t flags[] = {0, LOGGED, READ_ONLY};
	uint32_t slot = refused, other = refused + 1;

	for (int i = 0; i < 3; i++) {
		refuse(other, flags[i], FIRST + PAGE, PAIR, pair);
		refuse(other, flags[i], FIRST, LARGE, large);
		refuse(other, flags[i], -PAGE, PAIR, pair);
		refuse(other, flags[i], THIRD, 1ull << 43, 0);
		if (set_region(other, flags[i], BEYOND, PAIR, pair) == SUCCESS)
			set_region(other, 0, 0, 0, 0);
		if (set_region(other, flags[i], BEYOND, LARGE, large) == SUCCESS)
			set_region(other, 0, 0, 0, 0);
	}
	refuse(other, 1u << 30, THIRD, PAIR, pair);
	refuse(0xffff, LOGGED, THIRD, PAIR, pair);
	refuse(other | 0xffff0000, LOGGED, THIRD, PAIR, pair);
	refuse(other, LOGGED, THIRD, PAIR + 1, pair);
	refuse(other, LOGGED, THIRD + 1, PAIR, pair);
	refuse(other, LOGGED, THIRD, PAIR, 1);
	refuse(other, LOGGED, THIRD, PAIR, 1ull << 63);
	refuse(other, 0, 0, 0, 0);
	refuse(slot, LOGGED, FIRST, PAGE, pair);
	refuse(slot, LOGGED, FIRST, PAIR, 0);
	refuse(slot, LOGGED | READ_ONLY, FIRST, PAIR, pair);
}

static void prepare_creations(uint32_t slot)
{
	prepare(slot);
	if (!large)
		large = (uintptr_t)mmap(NULL, LARGE, PROT_NONE,
					MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	expect(set_region(slot, LOGGED, FIRST, PAIR, pair), SUCCESS);
}
/*@ refusemoves */

/* Asks for moves of a slot and of a logged one, with and without a change of flags. */
static void refuse_moves(void)
{
	static const uint64_t gpas[] = {FIRST, THIRD};
	static const uint32_t flags[] = {0, LOGGED};

	for (int which = 0; which < 2; which++)
		for (int wanted = 0; wanted < 2; wanted++) {
			uint32_t slot = refused + which;
			refuse(slot, flags[wanted], gpas[!which], PAIR, pair);
			refuse(slot, flags[wanted], SECOND, PAGE, pair);
			refuse(slot, flags[wanted], SECOND, PAIR, 0);
			if (set_region(slot, flags[wanted], BEYOND, PAIR, pair) == SUCCESS)
				set_region(slot, flags[which], gpas[which], PAIR, pair);
		}
}

static void prepare_moves(uint32_t slot)
{
	prepare(slot);
	expect(set_region(slot, 0, FIRST, PAIR, pair), SUCCESS);
	expect(set_region(slot + 1, LOGGED, THIRD, PAIR, pair), SUCCESS);
}
/*@ refusebindings */

#define GUEST_MEMFD (1u << 2)

static void refuse_binding(uint32_t slot, uint64_t gpa, int memfd, uint64_t offset, uint32_t flags)
{
	if (set_region2(slot, GUEST_MEMFD | flags, gpa, PAIR, pair, memfd, offset) == SUCCESS)
		leave(WRONG, "offset %#llx of a guest_memfd at %#llx: success",
		      (unsigned long long)offset, (unsigned long long)gpa);
}

/* Makes a guest_memfd that one slot binds and another one cannot, and closes it. */
static void refuse_bindings(void)
{
	uint32_t slot = refused, other = refused + 1;
	int memfd = -1;

	expect(create_guest_memfd(&memfd, 8 * PAGE, 0), SUCCESS);
	expect(set_region2(slot, GUEST_MEMFD, FIRST, PAIR, pair, memfd, 0), SUCCESS);
	refuse_binding(other, THIRD, memfd, 4 * PAGE, LOGGED);
	refuse_binding(other, THIRD, memfd, 4 * PAGE, READ_ONLY);
	refuse_binding(other, FIRST + PAGE, memfd, 4 * PAGE, 0);
	refuse_binding(other, THIRD, memfd, PAGE, 0);
	refuse_binding(other, THIRD, memfd, 7 * PAGE, 0);
	refuse_binding(other, THIRD, memfd, 4 * PAGE + 1, 0);
	refuse_binding(other, THIRD, memfd, -PAGE, 0);
	refuse_binding(other, THIRD, vm, 0, 0);
	refuse_binding(other, THIRD, -1, 0, 0);
	refuse_binding(slot, THIRD, memfd, 0, 0);
	if (set_region2(other, GUEST_MEMFD, BEYOND, PAIR, pair, memfd, 4 * PAGE) == SUCCESS)
		set_region(other, 0, 0, 0, 0);
	expect(set_region(slot, 0, 0, 0, 0), SUCCESS);
	close(memfd);
}

static void prepare_bindings(uint32_t slot)
{
	prepare(slot);
}
