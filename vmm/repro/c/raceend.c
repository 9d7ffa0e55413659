/*@ raceclock */

/* Notes pages that logs may, or must, name for KVM's clocks: each run writes the steal time. */
static void judge_clocks(const struct race *race)
{
	for (unsigned i = 0; i < race->clock_count; i++) {
		const struct race_clock *clock = &race->clocks[i];

		for (size_t j = 0; j < race_guests[clock->cpu].count; j++) {
			const struct window *window = &race_guests[clock->cpu].windows[j];
			struct places found = reached(race, clock->view, window, true);
			bool alone = found.count == 1 && !found.hole && !found.readonly
				     && !found.denied;

			for (unsigned k = 0; k < found.count; k++)
				note_dirty(&found.place[k], window->begin, window->end,
					   alone && clock->surely);
		}
	}
}

/* Whether KVM may have written to a word. */
static bool is_unknown_word(const struct race *race, const struct mapping *mapping, uint64_t offset)
{
	for (unsigned i = 0; i < race->word_count; i++)
		if (file_of(race->unknown_words[i].mapping) == file_of(mapping)
		    && race->unknown_words[i].offset == offset)
			return true;
	return false;
}
/*@ racejudgepages */

static void judge_page(const struct race *race, struct mapping *mapping, uint64_t page)
{
	unsigned char *host = mapping->host + page * PAGE;
	struct race_page shown[MOST_STORES];
	bool written;

	stores_of(race, tracked_page(race, mapping, page), mapping, page, FOREVER - 1, FOREVER,
		  shown);
	written = is_written(shown->mapping, shown->page);
	for (uint64_t at = 0; at < PAGE; at += 4) {
		uint64_t offset = shown->page * PAGE + at;
		uint32_t value;

		if (is_unknown_word(race, shown->mapping, offset))	/*+ raceclock */
			continue;					/*+ raceclock */
		memcpy(&value, host + at, sizeof(value));
		if (written ? !may_hold(shown->mapping, offset, FOREVER - 1, FOREVER, value)
			    : memcmp(shown->mapping->before + offset, &value, sizeof(value)))
			leave(WRONG, "%s+0x%llx holds 0x%08x when all threads have ended",
			      mapping->name, (unsigned long long)(page * PAGE + at), value);
	}
	memcpy(mapping->expected + page * PAGE, host, PAGE);
}

static void judge_memory(const struct race *race)
{
	for (unsigned i = 0; i < race->mapping_count; i++)
		for (uint64_t page = 0; page < race->mappings[i]->pages; page++)
			if (race->mappings[i]->expected
			    && can_be_seen(race, race->mappings[i], page))
				judge_page(race, race->mappings[i], page);
}

static void race(const struct race *race)
{
	cell_count = logging_count = 0;
	for (unsigned i = 0; i < race->log_count; i++) {
		const struct race_log *log = &race->logs[i];

		log_begins(log->slot, 1, 2, log->tracked);
		for (uint64_t j = 0; j < log->count; j++) {
			note_page(&loggings[i], log->pages[j].page, 3, 4, false);
			loggings[i].writes[j].surely = log->pages[j].surely;
		}
	}
	keep_memory(race);
	run_race(race);
	judge_calls(race);
	judge_accesses(race, true);
	sort_writes();
	judge_accesses(race, false);
	judge_clocks(race);		/*+ raceclock */
	judge_logs();			/*+ racelog */
	judge_rings(race);		/*+ racering */
	judge_memory(race);
}
/*@ rounds */

#define ROUND_LIMIT_S 60

/* Waits for a round; kills it and returns false if it does not end in time. */
static bool has_ended(pid_t child, int *status)
{
	for (int waited = 0; waited < ROUND_LIMIT_S * 1000; waited++) {
		if (waitpid(child, status, WNOHANG) == child)
			return true;
		usleep(1000);
	}
	kill(child, SIGKILL);
	waitpid(child, status, 0);
	return false;
}

/* Plays all steps `rounds` times, each in a child process, and prints how often they fail. */
static int play_rounds(unsigned rounds, void (*play)(void))
{
	unsigned wrong = 0, hung = 0, died = 0;

	for (unsigned round = 0; round < rounds; round++) {
		int status;
		pid_t child;

		fflush(stdout);
		child = must(fork(), "fork");
		if (!child) {
			is_quiet = wrong > 0;
			play();
			fflush(stdout);
			_exit(LAST_STATUS);
		}
		if (!has_ended(child, &status)) {
			hung++;
		} else if (!WIFEXITED(status)) {
			died++;
		} else if (WEXITSTATUS(status) == WRONG) {
			wrong++;
		} else if (WEXITSTATUS(status) != LAST_STATUS) {
			return WEXITSTATUS(status);
		}
	}
	if (hung || died)
		printf("%u of %u rounds did not end within %d s, %u died\n", hung, rounds,
		       ROUND_LIMIT_S, died);
	printf("wrong in %u of %u rounds (%u %%)\n", wrong, rounds,
	       rounds ? 100 * wrong / rounds : 0);
	return wrong ? WRONG : hung || died ? NOT_KNOWN : LAST_STATUS;
}
