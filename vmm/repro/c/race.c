/*@ race */

/*
 * Host threads and vCPUs act at the same time. Each draws a number, a moment, before and after
 * every action. When all have ended, every access must have met what its gpa reached at some
 * moment of its own interval, with the content that memory may have had then.
 */

#define FOREVER (1ull << 62)

enum reach { NOTHING, READING, EVERYTHING };	/* the host's own access to a page */

/* The slot of a private gfn without private memory: an access is a fault. Without a slot it may be
 * MMIO, too, if a vCPU has cached it as that. */
#define NO_PRIVATE 0xffffffffu
#define NO_SLOT 0xfffffffeu

/* What a gfn reaches: a page of a slot, and the host page behind it. NULL: a hole, or a fault. */
struct place {
	struct mapping *mapping;
	uint64_t page;
	uint32_t slot;
	uint64_t slot_page;
	bool readonly;
	int tracked;		/* index among the pages that the race changes, or -1 */
};

enum action { CALLS, READS_LOG, CLEARS_LOG, HARVESTS, RESETS, HOST_WRITES, CONVERTS };

struct race_operation {
	enum action action;
	int (*call)(void);			/* 0 or an errno */
	uint32_t slot;				/* whose log; for a ring: the vCPU */
	uint64_t pages;				/* of that slot, or how many are cleared */
	uint64_t first;				/* what is cleared, or which gfns change */
	const uint64_t *bits;			/* what is cleared */
	bool clears;				/* whether reading the log clears it */
	struct mapping *mapping;
	uint64_t offset;
	uint32_t value;
};

enum log_event { STAYS, BEGINS, BEGINS_SET, BEGINS_UNTRACKED, ENDS, BEGINS_ANEW };

/* What a call must return, and what it does to the log of its slot. */
struct race_call {
	int expected, other;
	enum log_event log;
	uint32_t slot;
	uint64_t slot_pages;
};

/* What a view may be while a call is under way. */
enum between { NO_OTHER, A_HOLE, A_FAULT };

/* What a call does to the content of a page: while it is under way, writes may be lost, and the
 * page may be fresh memory. */
enum loss { KEEPS, EMPTIES, LOSES_WRITES, PASSES_FRESH };

struct race_page {
	struct mapping *mapping;
	uint64_t page;
};

/* Row n of each table holds after n calls; from `again` on the rows repeat. */
struct race_host {
	const struct race_operation *operations;
	unsigned count, rounds, pause, rows, again;
	const struct race_call *calls;
	const struct place *places;	/* of each view */
	const unsigned char *between;	/* what each view may be while a call is under way */
	const unsigned char *reach;	/* of each page */
	const unsigned char *loss;	/* of the content of each page, by a call */
	const struct race_page *shows;	/* what each page shows */	/*+ raceshows */
};

enum step_kind { READS, WRITES, EXECUTES, PRE_FAULTS };

struct race_step {
	enum step_kind kind;
	uint64_t gpa;
	uint32_t value;
	unsigned view;			/* index of its gfn among those that the race uses */
	bool in_smm;
};

struct race_guest {
	const struct race_step *steps;
	unsigned count, windows, migrates;
};

struct race_log_page {
	uint64_t page;
	bool surely;
};

struct race_log {
	uint32_t slot;
	bool tracked;
	uint64_t count;
	const struct race_log_page *pages;
};

/* A clock of a vCPU, in a view; `surely`: it is written whenever the vCPU runs. */
struct race_clock {							/*+ raceclock */
	unsigned cpu, view;						/*+ raceclock */
	bool surely;							/*+ raceclock */
};									/*+ raceclock */

/* A word that KVM may write. */
struct race_word {							/*+ raceclock */
	struct mapping *mapping;					/*+ raceclock */
	uint64_t offset;						/*+ raceclock */
};									/*+ raceclock */

struct race {
	const struct race_host *hosts;
	const struct race_guest *guests;
	const struct race_log *logs;		/* those in use when the race begins */
	const int *view_owners, *page_owners;	/* host threads, or -1 */
	struct mapping *const *mappings;
	const struct race_page *pages;
	unsigned host_count, guest_count, log_count, views, page_count, mapping_count;
	bool reads_make_dirty;
	const struct race_clock *clocks;	/*+ raceclock */
	const struct race_word *unknown_words;		/*+ raceclock */
	unsigned clock_count, word_count;	/*+ raceclock */
};

struct race_answer {
	uint64_t begin, end;
	int answer;
	uint64_t *bitmap;
};

/* What a step met: a value, perhaps after one MMIO exit, or why the vCPU stopped; or an errno. */
struct met {
	const char *stopped;
	uint64_t exit_gpa, left_gpa, left_size;
	uint32_t value, exit_data;
	unsigned exits, exit_length;
	bool exit_writes;
	int error;
	bool told;		/* left_gpa and left_size say where a private page was missed */
};

struct window {
	uint64_t begin, end;
};

static struct race_worker {
	const struct race *race;
	const struct race_host *host;
	const struct race_guest *guest;
	unsigned number;
	pthread_t thread;
	struct race_answer *answers;
	struct window *windows;
	struct met *met;
	size_t count, room;
	struct met fault;			/*+ raceprivate */
	bool ended, in_smm;
} race_hosts[4], race_guests[8];

static uint64_t race_moments;
static bool hosts_counted, hosts_over;
static pthread_barrier_t race_barrier;

static uint64_t moment(void)
{
	return __atomic_add_fetch(&race_moments, 1, __ATOMIC_SEQ_CST);
}

static bool is_over(const bool *what)
{
	return __atomic_load_n(what, __ATOMIC_ACQUIRE);
}

static size_t done_by(const struct race_worker *worker)
{
	return __atomic_load_n(&worker->count, __ATOMIC_ACQUIRE);
}

static void *grown(void *old, size_t count, size_t size)
{
	void *room = realloc(old, count * size);

	if (!room)
		leave(CANNOT_RUN, "no memory for the results of a race");
	return room;
}
/*@ racering */

static pthread_mutex_t one_harvests = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t one_resets = PTHREAD_MUTEX_INITIALIZER;
static int race_resets;		/* entries that the kernel says it reset */

static int race_harvest(unsigned cpu)
{
	int found;

	pthread_mutex_lock(&one_harvests);
	found = collect(&vcpu(cpu)->ring);
	pthread_mutex_unlock(&one_harvests);
	return found;
}

static int race_reset(void)
{
	int entries;

	pthread_mutex_lock(&one_resets);
	entries = ioctl(vm, KVM_RESET_DIRTY_RINGS, 0);
	race_resets += entries > 0 ? entries : 0;
	pthread_mutex_unlock(&one_resets);
	return entries < 0 ? errno : SUCCESS;
}

static bool race_makes_room(unsigned cpu)
{
	static _Thread_local unsigned in_vain;

	in_vain = race_harvest(cpu) ? 0 : in_vain + 1;
	return !race_reset() && in_vain < 8;
}
/*@ racelog */

/* KVM_GET_DIRTY_LOG into a bitmap of its own. */
static int race_reads_log(const struct race_operation *op, struct race_answer *answer)
{
	struct kvm_dirty_log log = {.slot = op->slot};

	answer->bitmap = calloc(op->pages / 64 + 1, sizeof(*answer->bitmap));
	log.dirty_bitmap = answer->bitmap;
	return ioctl(vm, KVM_GET_DIRTY_LOG, at_end_of_memory(&log, sizeof(log))) ? errno : SUCCESS;
}
/*@ raceclear */

static int race_clears_log(const struct race_operation *op)
{
	struct kvm_clear_dirty_log clear = {
		.slot = op->slot,
		.num_pages = op->pages,
		.first_page = op->first,
		.dirty_bitmap = (void *)op->bits,
	};

	return ioctl(vm, KVM_CLEAR_DIRTY_LOG, at_end_of_memory(&clear, sizeof(clear)))
		       ? errno : SUCCESS;
}
