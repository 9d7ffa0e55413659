/*@ growth */

/*
 * The kernel's memory as /proc/meminfo counts it, and what this process has mapped. The former is
 * machine-wide, so the work is done in rounds, each followed by an equally long wait: what others
 * allocate also grows during the wait, what is freed late is gone after it, and a leak does
 * neither. The least average growth over half of the rounds or more, by either measure, is what
 * the work certainly leaks.
 */
enum { COUNTERS = 6, ROUNDS = 8, ATTEMPTS = 2, TOLERANCE = 64 << 10 };

static const char *const counted[COUNTERS] = {
	"SUnreclaim:", "VmallocUsed:", "Percpu:", "KernelStack:", "SecPageTables:",
	"VmSize:",	/* of /proc/self/status: mappings that the kernel left here */
};

static void read_file(const char *path, long long sizes[COUNTERS])
{
	char line[256];
	FILE *file = fopen(path, "r");

	if (!file)
		leave(CANNOT_RUN, "%s: %s", path, strerror(errno));
	while (fgets(line, sizeof(line), file))
		for (int i = 0; i < COUNTERS; i++)
			if (!strncmp(line, counted[i], strlen(counted[i])))
				sizes[i] = atoll(line + strlen(counted[i])) * 1024;
	fclose(file);
}

static void read_counters(long long sizes[COUNTERS])
{
	char line[256];
	FILE *file = fopen("/proc/sys/vm/stat_refresh", "r");

	/* Reading it adds the per-CPU counts to the totals; only an administrator may. */
	if (file && fgets(line, sizeof(line), file))
		leave(CANNOT_RUN, "/proc/sys/vm/stat_refresh says %s", line);
	if (file)
		fclose(file);
	memset(sizes, 0, COUNTERS * sizeof(sizes[0]));
	read_file("/proc/meminfo", sizes);
	read_file("/proc/self/status", sizes);
}

/* Works, then waits as long: growth in all, and growth at work minus that of the wait. */
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

/* Does something `times` times: neither the kernel nor this process may grow by it. */
static void expect_no_growth(void (*turn)(void), unsigned times)
{
	static long long rounds[ROUNDS][2][COUNTERS];
	unsigned share = (times + ROUNDS - 1) / ROUNDS;
	const char *grown = "";

	work_a_round(turn, share, rounds[0]);	/* the kernel allocates some memory once */
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
/*@ again */

static void again(void (*turn)(void), unsigned times)
{
	for (unsigned i = 0; i < times; i++)
		turn();
}
