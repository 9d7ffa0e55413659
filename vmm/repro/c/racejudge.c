/*@ racejudge */

static unsigned row_after(const struct race_host *host, size_t calls)
{
	if (calls < host->rows)
		return calls;
	return host->again + (calls - host->again) % (host->rows - host->again);
}

/* How many calls of a thread had surely, or at most, taken effect at a moment. */
static size_t calls_by(const struct race_worker *host, uint64_t moment, bool surely)
{
	size_t low = 0, high = host->count;

	while (low < high) {
		size_t middle = (low + high) / 2;
		const struct race_answer *call = &host->answers[middle];

		if ((surely ? call->end : call->begin) < moment)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

enum { MOST_PLACES = 64, MOST_STORES = 8 };
/*@ raceshows */

/* What a page that a host thread changes may have shown in an interval. */
static unsigned shown_by(const struct race *race, int page, uint64_t begin, uint64_t end,
			 struct race_page found[MOST_STORES])
{
	int owner = race->page_owners[page];
	const struct race_host *host = &race->hosts[owner];
	unsigned count = 0;

	for (size_t i = calls_by(&race_hosts[owner], begin, true);
	     i <= calls_by(&race_hosts[owner], end, false); i++) {
		size_t at = row_after(host, i) * race->page_count + page;
		const struct race_page *shown = &host->shows[at];
		unsigned j = 0;

		while (j < count && (found[j].mapping != shown->mapping
				     || found[j].page != shown->page))
			j++;
		if (j == count && count < MOST_STORES)
			found[count++] = *shown;
	}
	return count;
}
/*@ racejudgeaccesses */

struct places {
	struct place place[MOST_PLACES];
	unsigned count;
	bool hole, readonly, denied, absent, fault, bare;
};

/* What access the host had to a page in an interval: a bit for each `enum reach`. */
static unsigned reach_of(const struct race *race, int page, uint64_t begin, uint64_t end)
{
	unsigned found = 0;
	int owner = page < 0 ? -1 : race->page_owners[page];

	if (owner < 0)
		return 1 << EVERYTHING;
	for (size_t i = calls_by(&race_hosts[owner], begin, true);
	     i <= calls_by(&race_hosts[owner], end, false); i++) {
		const struct race_host *host = &race->hosts[owner];

		found |= 1 << host->reach[row_after(host, i) * race->page_count + page];
	}
	return found;
}

/* Whether a page may have suffered at least this loss in an interval. */
static bool may_lose(const struct race *race, int page, uint64_t begin, uint64_t end,
		     enum loss least)
{
	int owner = page < 0 ? -1 : race->page_owners[page];

	if (owner < 0)
		return false;
	for (size_t i = calls_by(&race_hosts[owner], begin, true) + 1;
	     i <= calls_by(&race_hosts[owner], end, false); i++) {
		const struct race_host *host = &race->hosts[owner];

		if (host->loss[row_after(host, i) * race->page_count + page] >= least)
			return true;
	}
	return false;
}

/* What a page may have shown in an interval: itself, or pages of files mapped over it. */
static unsigned stores_of(const struct race *race, int page, struct mapping *mapping, uint64_t at,
			  uint64_t begin, uint64_t end, struct race_page found[MOST_STORES])
{
	(void)race, (void)page, (void)begin, (void)end;
	if (page >= 0 && race->page_owners[page] >= 0)		/*+ raceshows */
		return shown_by(race, page, begin, end, found);	/*+ raceshows */
	*found = (struct race_page){mapping, at};
	return 1;
}

/* The index of a page among those that the race changes, or -1. */
static int tracked_page(const struct race *race, const struct mapping *mapping, uint64_t page)
{
	for (unsigned i = 0; i < race->page_count; i++)
		if (race->pages[i].mapping == mapping && race->pages[i].page == page)
			return i;
	return -1;
}

/* Notes a write of a word at a place that may show one memory or another meanwhile. */
static void note_write_at(const struct race *race, int tracked, struct mapping *mapping,
			  uint64_t offset, const struct window *within, uint32_t value, bool surely)
{
	struct race_page stores[MOST_STORES];
	unsigned count = stores_of(race, tracked, mapping, offset / PAGE, within->begin,
				   within->end, stores);

	for (unsigned i = 0; i < count; i++)
		note_write(stores[i].mapping, stores[i].page * PAGE + offset % PAGE, false,
			   within->begin, within->end, value, surely && count == 1);
}

/* Whether a word of a page may have held this at some moment of an interval. */
static bool may_show(const struct race *race, int tracked, struct mapping *mapping,
		     uint64_t offset, uint64_t begin, uint64_t end, uint32_t value)
{
	struct race_page stores[MOST_STORES];
	unsigned count = stores_of(race, tracked, mapping, offset / PAGE, begin, end, stores);

	for (unsigned i = 0; i < count; i++)
		if (may_hold(stores[i].mapping, stores[i].page * PAGE + offset % PAGE, begin, end,
			     value))
			return true;
	return false;
}

static bool is_same(const struct place *one, const struct place *other)
{
	return one->mapping == other->mapping && one->page == other->page
	       && one->slot == other->slot && one->slot_page == other->slot_page
	       && one->readonly == other->readonly;
}

/* What a view may have reached in an interval; with `writes`, only what was writable. */
static struct places reached(const struct race *race, unsigned view, const struct window *within,
			     bool writes)
{
	struct places found = {.count = 0};
	int owner = race->view_owners[view];
	unsigned thread = owner < 0 ? 0 : owner;
	size_t first = 0, last = 0;

	if (owner >= 0) {
		first = calls_by(&race_hosts[thread], within->begin, true);
		last = calls_by(&race_hosts[thread], within->end, false);
	}
	for (size_t i = first; i <= last; i++) {
		const struct race_host *host = &race->hosts[thread];
		unsigned at = row_after(host, i) * race->views + view, j = 0;
		const struct place *place = &host->places[at];
		unsigned reach;

		found.hole |= i > first && host->between[at] == A_HOLE;
		found.bare |= i > first && host->between[at] == A_FAULT;
		if (!place->mapping) {
			found.bare |= place->slot == NO_SLOT;
			found.fault |= place->slot == NO_PRIVATE;
			found.hole |= !place->slot;
			continue;
		}
		reach = reach_of(race, place->tracked, within->begin, within->end);
		found.absent |= reach & 1 << NOTHING;
		found.denied |= reach & (1 << NOTHING | 1 << READING);
		found.readonly |= place->readonly;
		if (writes ? place->readonly || !(reach & 1 << EVERYTHING) : reach == 1 << NOTHING)
			continue;
		while (j < found.count && !is_same(&found.place[j], place))
			j++;
		if (j == found.count && found.count < MOST_PLACES)
			found.place[found.count++] = *place;
	}
	return found;
}

static __attribute__((noreturn)) void wrong_access(unsigned cpu, size_t window,
						   const struct race_step *step,
						   const struct met *met, const char *why)
{
	leave(WRONG,
	      "window %zu of vCPU %u, gpa 0x%llx: %s%s%s, value 0x%x, %u exits (the last one: "
	      "0x%llx+%u)", window, cpu, (unsigned long long)step->gpa, why,
	      met->stopped ? "; the vCPU stopped: " : "", met->stopped ? met->stopped : "",
	      met->value, met->exits, (unsigned long long)met->exit_gpa, met->exit_length);
}

static bool is_stop(const struct met *met, const char *why)
{
	return met->stopped && !strcmp(met->stopped, why);
}

static bool is_exit(const struct met *met, const struct race_step *step, bool writes, uint32_t data)
{
	return !met->stopped && met->exits == 1 && met->exit_gpa == step->gpa
	       && met->exit_length == 4 && met->exit_writes == writes && met->exit_data == data;
}

/*@ racefaults */

/* Whether the attributes of a gfn were being set at some moment of a window. */
static bool converts_within(const struct race *race, uint64_t gpa, const struct window *window)
{
	for (unsigned i = 0; i < race->host_count; i++)
		for (size_t j = calls_by(&race_hosts[i], window->begin, true);
		     j < calls_by(&race_hosts[i], window->end, false); j++) {
			const struct race_operation *op =
				&race->hosts[i].operations[j % race->hosts[i].count];

			if (op->action == CONVERTS && gpa / PAGE - op->first < op->pages)
				return true;
		}
	return false;
}

/* Whether a step stopped at a private gpa without private memory, or while it was converted. */
static bool is_right_fault(const struct race *race, const struct race_step *step,
			   const struct met *met, const struct places *found,
			   const struct window *window)
{
	bool is_told = met->told && met->left_gpa == step->gpa / PAGE * PAGE
		       && met->left_size == PAGE;

	if (step->kind == PRE_FAULTS)
		return met->error == EFAULT
		       && (found->fault || found->bare
			   || converts_within(race, step->gpa, window));
	if (!is_stop(met, "EFAULT"))
		return false;
	if (is_told && (found->fault || found->bare))
		return true;
	return (is_told || !met->told)
	       && (found->bare || converts_within(race, step->gpa, window));
}

/*@ raceprivatebegins */

/* Private memory, which the host cannot see, is empty before the race. */
static void begin_private(struct mapping *memory)
{
	memory->before = calloc(memory->pages, PAGE);
}
/*@ raceprivateholds */

static void private_holds(struct mapping *memory, uint64_t offset, uint32_t value)
{
	memcpy(memory->before + offset, &value, sizeof(value));
}
/*@ racejudgesteps */

static void judge_write(const struct race *race, unsigned cpu, size_t number,
			const struct race_step *step, const struct met *met)
{
	const struct window *window = &race_guests[cpu].windows[number];
	struct places found = reached(race, step->view, window, true);
	uint32_t value = step->value + number;

	if (!met->stopped && !met->exits && found.count) {
		for (unsigned i = 0; i < found.count; i++) {
			const struct place *place = &found.place[i];
			bool lasts = found.count == 1
				     && !may_lose(race, place->tracked, window->begin, window->end,
						  LOSES_WRITES);

			note_write_at(race, place->tracked, place->mapping,
				      place->page * PAGE + step->gpa % PAGE, window, value, lasts);
			note_dirty(place, window->begin, window->end, found.count == 1);
		}
		return;
	}
	if (is_right_fault(race, step, met, &found, window))	/*+ raceprivate */
		return;						/*+ raceprivate */
	if ((found.hole || found.readonly || found.denied || found.bare)
	    && is_exit(met, step, true, value))
		return;
	if (found.denied && is_stop(met, "EFAULT"))
		return;
	wrong_access(cpu, number, step, met, "no state of its interval explains this write");
}

static bool slots_change_within(const struct race *race, const struct window *window)
{
	for (unsigned i = 0; i < race->host_count; i++)
		for (size_t j = calls_by(&race_hosts[i], window->begin, true);
		     j < calls_by(&race_hosts[i], window->end, false); j++)
			if (race->hosts[i].operations[j % race->hosts[i].count].action == CALLS)
				return true;
	return false;
}

static bool is_right_pre_fault(const struct race *race, const struct race_step *step,
			   const struct met *met, const struct places *found,
			   const struct window *window)
{
	switch (met->error) {
	case SUCCESS:
		return found->count && met->left_gpa == step->gpa + PAGE && !met->left_size;
	case ENOENT:
		return found->hole;
	case EFAULT:
		return found->absent;
	case EAGAIN:
		return slots_change_within(race, window);
	default:
		return false;
	}
}

static bool is_right_read(const struct race *race, const struct race_step *step,
			  const struct met *met, const struct places *found,
			  const struct window *window)
{
	if (found->hole || found->absent || found->bare) {
		if (is_exit(met, step, false, 0xffffffff) && met->value == 0xffffffff)
			return true;
		if (found->absent && is_stop(met, "EFAULT"))
			return true;
	}
	for (unsigned i = 0; i < found->count && !met->stopped && !met->exits; i++) {
		const struct place *place = &found->place[i];

		if (may_show(race, place->tracked, place->mapping,
			     place->page * PAGE + step->gpa % PAGE, window->begin, window->end,
			     met->value))
			return true;
		if (!met->value
		    && may_lose(race, place->tracked, window->begin, window->end, PASSES_FRESH))
			return true;
	}
	return false;
}

static bool is_right_code(const struct met *met, const struct places *found)
{
	if (met->stopped)
		return found->hole || found->absent;
	for (unsigned i = 0; i < found->count; i++)
		if (met->value == word_of(file_of(found->place[i].mapping), found->place[i].page))
			return true;
	return false;
}

static void judge_read(const struct race *race, unsigned cpu, size_t number,
		       const struct race_step *step, const struct met *met)
{
	const struct window *window = &race_guests[cpu].windows[number];
	struct places found = reached(race, step->view, window, false);

	for (unsigned i = 0; race->reads_make_dirty && i < found.count; i++)
		note_dirty(&found.place[i], window->begin, window->end, false);
	if (is_right_fault(race, step, met, &found, window))	/*+ raceprivate */
		return;						/*+ raceprivate */
	if (step->kind == READS && !is_right_read(race, step, met, &found, window))
		wrong_access(cpu, number, step, met, "no state of its interval explains this read");
	if (step->kind == EXECUTES && !is_right_code(met, &found))
		wrong_access(cpu, number, step, met, "no state of its interval explains this code");
	if (step->kind == PRE_FAULTS && !is_right_pre_fault(race, step, met, &found, window))
		leave(WRONG, "window %zu of vCPU %u: KVM_PRE_FAULT_MEMORY at gpa 0x%llx: %s",
		      number, cpu, (unsigned long long)step->gpa,
		      met->error ? strerror(met->error) : "success");
}

static void judge_accesses(const struct race *race, bool writes)
{
	for (unsigned cpu = 0; cpu < race->guest_count; cpu++)
		for (size_t number = 0; number < race_guests[cpu].count; number++)
			for (unsigned i = 0; i < race->guests[cpu].count; i++) {
				const struct race_step *step = &race->guests[cpu].steps[i];
				const struct met *met =
					&race_guests[cpu].met[number * race->guests[cpu].count + i];

				if ((step->kind == WRITES) != writes)
					continue;
				(writes ? judge_write : judge_read)(race, cpu, number, step, met);
			}
}

static void note_log_event(const struct race_call *call, const struct race_answer *answer)
{
	struct logging *log;

	switch (call->log) {
	case BEGINS:
	case BEGINS_SET:
	case BEGINS_UNTRACKED:
		log_begins(call->slot, answer->begin, answer->end, call->log != BEGINS_UNTRACKED);
		log = logging_of(call->slot);
		if (call->log != BEGINS_SET)
			break;
		for (uint64_t page = 0; page < call->slot_pages; page++) {
			note_page(log, page, answer->begin, answer->end, false);
			log->writes[log->count - 1].surely = true;
		}
		break;
	case ENDS:
		log = logging_of(call->slot);
		log->off_begin = answer->begin;
		log->off_end = answer->end;
		break;
	case BEGINS_ANEW:
		log = logging_of(call->slot);
		if (answer->end < log->tracked)
			log->tracked = answer->end;
		break;
	case STAYS:
		break;
	}
}

/* Checks what each call returned, and notes what it changed. */
static void judge_calls(const struct race *race)
{
	for (unsigned i = 0; i < race->host_count; i++)
		for (size_t j = 0; j < race_hosts[i].count; j++) {
			const struct race_host *host = &race->hosts[i];
			const struct race_operation *op = &host->operations[j % host->count];
			const struct race_answer *answer = &race_hosts[i].answers[j];
			unsigned row = row_after(host, j + 1);
			const struct race_call *call = &host->calls[row];

			if (answer->answer != call->expected && answer->answer == call->other)
				leave(CANNOT_RUN,
				      "this kernel gives the other right answer in a race");
			if (answer->answer != call->expected)
				leave(WRONG, "call %zu of host thread %u: expected %s, got %s",
				      j, i, call->expected ? strerror(call->expected) : "success",
				      answer->answer ? strerror(answer->answer) : "success");
			if (op->action == HOST_WRITES) {
				struct window within = {answer->begin, answer->end};

				note_write_at(race,
					      tracked_page(race, op->mapping, op->offset / PAGE),
					      op->mapping, op->offset, &within, op->value, true);
			}
			for (unsigned page = 0; page < race->page_count; page++)
				if (host->loss[row * race->page_count + page] == EMPTIES)
					note_write(race->pages[page].mapping,
						   race->pages[page].page * PAGE, true,
						   answer->begin, answer->end, 0, true);
			note_log_event(call, answer);
			note_log_call(op, answer);
		}
}

/* Whether the host can read a page when no thread runs. */
static bool can_be_seen(const struct race *race, const struct mapping *mapping, uint64_t page)
{
	int tracked = tracked_page(race, mapping, page);

	if (tracked >= 0)
		return !(reach_of(race, tracked, FOREVER, FOREVER) & 1 << NOTHING);
	if (mapping->absent && mapping->absent[page])	/*+ hostchange */
		return false;				/*+ hostchange */
	return true;
}

/* Saves the content of host memory before a race. */
static void keep_memory(const struct race *race)
{
	for (unsigned i = 0; i < race->mapping_count; i++) {
		struct mapping *mapping = race->mappings[i];

		if (!mapping->expected)
			continue;
		mapping->before = grown(mapping->before, mapping->pages, PAGE);
		memcpy(mapping->before, mapping->expected, mapping->pages * PAGE);
		for (uint64_t page = 0; page < mapping->pages; page++)
			if (can_be_seen(race, mapping, page))
				memcpy(mapping->before + page * PAGE, mapping->host + page * PAGE,
				       PAGE);
	}
}

/* Whether a race may have written anything to a page. */
static bool is_written(const struct mapping *mapping, uint64_t page)
{
	for (size_t i = 0; i < cell_count; i++)
		if (cells[i].mapping == file_of(mapping) && cells[i].offset / PAGE == page)
			return true;
	return false;
}

