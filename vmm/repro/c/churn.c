/*@ churn */

static uint32_t churned;	/* the slot */

/* Creates, logs, moves and deletes a slot of two pages, with calls that may be refused. */
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
	expect(set_region(slot, logged, 0x8000, 2 * PAGE, hva), SUCCESS);
	expect(set_region(slot, 0, 0, 0, 0), SUCCESS);
}
/*@ twoslots */

enum { FIRST = 0x8000, SECOND = 0xa000, THIRD = 0xb000 };

#define PAIR (2 * PAGE)
#define BEYOND (1ull << 63)	/* beyond the last gfn, where there is one: checked last */
#define LOGGED KVM_MEM_LOG_DIRTY_PAGES
#define READ_ONLY KVM_MEM_READONLY

static uint32_t refused;	/* the slot; the next id is used, too */
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

#define LARGE (1ull << 28)	/* a slot of this size has two dirty bitmaps of 8 KiB each */

static uint64_t large;

/* Tries to create a slot once for each reason to refuse it. */
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

/* Tries bad moves of a plain and of a logged slot, with and without a change of flags. */
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

/* Binds a new guest_memfd to one slot, tries bad bindings to another, and closes it. */
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
/*@ refuseeventfds */

static int bell;

static void refuse_event(int file, uint64_t gpa, uint32_t length, uint64_t match, uint32_t flags)
{
	if (event_on(file, gpa, length, match, flags) == SUCCESS)
		leave(WRONG, "an ioeventfd of %u bytes at %#llx, flags %#x: success", length,
		      (unsigned long long)gpa, flags);
}

/* Tries to have the same writes signal another eventfd, and more that makes no sense. */
static void refuse_eventfds(void)
{
	int other = must(eventfd(0, 0), "eventfd");

	refuse_event(other, FIRST, 4, 0, 0);
	for (int match = 0; match < 8; match++)
		refuse_event(other, FIRST, 4, match, KVM_IOEVENTFD_FLAG_DATAMATCH);
	refuse_event(other, FIRST, 3, 0, 0);
	refuse_event(other, -4ull, 8, 0, 0);
	refuse_event(vm, SECOND, 4, 0, 0);
	refuse_event(other, FIRST, 4, 0, KVM_IOEVENTFD_FLAG_DEASSIGN);
	close(other);
}

/* Lets writes at a gpa signal an eventfd. */
static void prepare_eventfds(uint32_t slot)
{
	prepare(slot);
	bell = must(eventfd(0, 0), "eventfd");
	expect(event_on(bell, FIRST, 4, 0, 0), SUCCESS);
}

static void end_eventfds(void)
{
	expect(event_on(bell, FIRST, 4, 0, KVM_IOEVENTFD_FLAG_DEASSIGN), SUCCESS);
	close(bell);
}
/*@ failchanges */

static struct { uint32_t flags; uint64_t gpa, size; } failing;

static int set_failing(void)
{
	return set_region(refused, failing.flags, failing.gpa, failing.size, pair);
}

static int failing_bell;

/* Of any length: on two buses. */
static int set_failing_event(void)
{
	return event_on(failing_bell, SECOND, 0, 0, 0);
}

static void fail_in_turn(int (*call)(void))
{
	int result = ENOMEM;

	for (int nth = 1; nth < 40 && result == ENOMEM; nth++)
		result = with_failing_allocation(call, nth);
	expect(result == ENOMEM ? call() : result, SUCCESS);
}

/*
 * Creates, logs, moves and deletes a slot, and adds an eventfd: each only after each of its
 * allocations failed.
 */
static void fail_changes(void)
{
	static const typeof(failing) changes[] = {
		{0, FIRST, PAIR}, {LOGGED, FIRST, PAIR}, {LOGGED, SECOND, PAIR}, {0, THIRD, PAIR},
		{0, 0, 0},
	};

	for (int i = 0; i < 5; i++) {
		failing = changes[i];
		fail_in_turn(set_failing);
	}
	if (ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_IOEVENTFD) <= 0)
		return;
	failing_bell = must(eventfd(0, 0), "eventfd");
	fail_in_turn(set_failing_event);
	/* A kernel that has no memory for a smaller bus gives up the bus. */
	expect(event_on(failing_bell, SECOND, 0, 0, KVM_IOEVENTFD_FLAG_DEASSIGN), SUCCESS);
	close(failing_bell);
}

static void prepare_changes(uint32_t slot)
{
	prepare(slot);
}
