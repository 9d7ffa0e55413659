/*@ racedirty */

struct race_read {
	uint64_t begin, end;
	const uint64_t *bitmap;
	uint64_t first, count;		/* the pages of `bitmap`; if that is NULL, all are meant */
	bool names, clears, whole;
};

struct page_write {
	uint64_t page, begin, end;
	bool surely;
};

/* A period in which a slot was logged. */
static struct logging {
	uint32_t slot;
	uint64_t on_begin, on_end, off_begin, off_end, tracked;
	struct race_read *reads;
	struct page_write *writes;
	size_t read_count, count, room;
} *loggings;
static size_t logging_count;

static struct logging *logging_of(uint32_t slot)
{
	for (size_t i = logging_count; i--;)
		if (loggings[i].slot == slot)
			return &loggings[i];
	leave(CANNOT_RUN, "slot %u was never logged", slot);
}

static void note_page(struct logging *log, uint64_t page, uint64_t begin, uint64_t end, bool surely)
{
	if (end <= log->on_begin || begin >= log->off_end)
		return;
	if (log->count == log->room)
		log->writes = grown(log->writes, log->room = 2 * log->room + 64,
				    sizeof(*log->writes));
	log->writes[log->count++] = (struct page_write){
		page, begin, end, surely && begin > log->tracked && end < log->off_begin,
	};
}

static void log_begins(uint32_t slot, uint64_t begin, uint64_t end, bool tracked)
{
	loggings = grown(loggings, logging_count + 1, sizeof(*loggings));
	loggings[logging_count++] = (struct logging){
		.slot = slot, .on_begin = begin, .on_end = end, .off_begin = FOREVER,
		.off_end = FOREVER, .tracked = tracked ? end : FOREVER,
	};
}

static void note_dirty(const struct place *place, uint64_t begin, uint64_t end, bool surely)
{
	for (size_t i = 0; i < logging_count; i++)
		if (loggings[i].slot == place->slot)
			note_page(&loggings[i], place->slot_page, begin, end, surely);
}

static void note_log_call(const struct race_operation *op, const struct race_answer *answer)
{
	struct logging *log;

	if (answer->answer || (op->action != READS_LOG && op->action != CLEARS_LOG))
		return;
	log = logging_of(op->slot);
	log->reads = grown(log->reads, log->read_count + 1, sizeof(*log->reads));
	log->reads[log->read_count++] = (struct race_read){
		.begin = answer->begin, .end = answer->end, .first = op->first, .count = op->pages,
		.bitmap = op->action == READS_LOG ? answer->bitmap : op->bits,
		.names = op->action == READS_LOG, .clears = op->action == CLEARS_LOG || op->clears,
		.whole = op->action == READS_LOG,
	};
}

/*@ racejudgelogs */

static bool names(const struct race_read *read, uint64_t page)
{
	if (page < read->first || page - read->first >= read->count)
		return false;
	page -= read->first;
	return !read->bitmap || read->bitmap[page / 64] >> page % 64 & 1;
}

/* A read names this page: it must have been written since it was cleared. */
static void expect_no_invention(const struct logging *log, const struct race_read *read,
				uint64_t page)
{
	uint64_t since = log->on_begin;

	for (size_t i = 0; i < log->read_count; i++) {
		const struct race_read *clear = &log->reads[i];

		if (clear->clears && clear->end < read->begin && clear->begin > since
		    && (clear->whole || names(clear, page)))
			since = clear->begin;
	}
	for (size_t i = 0; i < log->count; i++)
		if (log->writes[i].page == page && log->writes[i].begin < read->end
		    && log->writes[i].end > since)
			return;
	leave(WRONG, "page %llu of slot %u is in a dirty log, and was not written",
	      (unsigned long long)page, log->slot);
}

/* A read does not name this page: all writes to it were cleared, or had not ended. */
static void expect_no_loss(const struct logging *log, const struct race_read *read, uint64_t page)
{
	uint64_t since = log->on_begin - 1;

	for (size_t i = 0; i < log->read_count; i++) {
		const struct race_read *clear = &log->reads[i];

		if (clear->clears && clear->begin < read->begin && clear->end > since
		    && names(clear, page))
			since = clear->end;
	}
	for (size_t i = 0; i < log->count; i++) {
		const struct page_write *write = &log->writes[i];

		if (write->page == page && write->surely && write->begin > since
		    && write->end < read->begin)
			leave(WRONG, "page %llu of slot %u was written, and no dirty log names it",
			      (unsigned long long)page, log->slot);
	}
}

static void judge_logs(void)
{
	for (size_t i = 0; i < logging_count; i++)
		for (size_t j = 0; j < loggings[i].read_count; j++)
			for (uint64_t page = 0; page < loggings[i].reads[j].count; page++) {
				const struct race_read *read = &loggings[i].reads[j];

				if (!read->names)
					continue;
				if (names(read, page))
					expect_no_invention(&loggings[i], read, page);
				else
					expect_no_loss(&loggings[i], read, page);
			}
}
/*@ raceleft */

/* The first log after a race, in `dirty`, must name what was written and not cleared. */
static void expect_race_in_log(uint32_t slot)
{
	const struct logging *log = NULL;

	for (size_t i = 0; i < logging_count; i++)
		if (loggings[i].slot == slot && loggings[i].off_end == FOREVER)
			log = &loggings[i];
	for (size_t i = 0; log && i < log->count; i++) {
		const struct page_write *write = &log->writes[i];
		uint64_t since = log->on_begin - 1;

		for (size_t j = 0; j < log->read_count; j++)
			if (log->reads[j].clears && log->reads[j].end > since
			    && names(&log->reads[j], write->page))
				since = log->reads[j].end;
		if (write->surely && write->begin > since
		    && !(dirty[write->page / 64] >> write->page % 64 & 1))
			leave(WRONG,
			      "page %llu of slot %u was written in the race, and is not in the "
			      "dirty log", (unsigned long long)write->page, slot);
	}
}
/*@ racerings */

static bool is_logged(const struct logging *log, const struct slot_page *page)
{
	for (size_t i = 0; log->slot == page->slot && i < log->count; i++)
		if (log->writes[i].page == page->page)
			return true;
	return false;
}

/* The rings must name every page that was surely written, and none that cannot have been. */
static void judge_rings(const struct race *race)
{
	for (unsigned cpu = 0; cpu < race->guest_count; cpu++)
		race_harvest(cpu);
	expect(race_reset(), SUCCESS);
	if (race_resets != harvested)
		leave(WRONG, "%d entries were reset, and %d harvested", race_resets, harvested);
	for (size_t i = 0; i < logging_count; i++)
		for (size_t j = 0; j < loggings[i].count; j++) {
			const struct page_write *write = &loggings[i].writes[j];
			bool found = !write->surely;

			for (unsigned cpu = 0; cpu < race->guest_count && !found; cpu++)
				found = is_among((struct slot_page){loggings[i].slot, write->page},
						 vcpus[cpu].ring.found, vcpus[cpu].ring.pages);
			if (!found)
				leave(WRONG, "page %llu of slot %u was written, and is in no ring",
				      (unsigned long long)write->page, loggings[i].slot);
		}
	for (unsigned cpu = 0; cpu < race->guest_count; cpu++) {
		struct ring *ring = &vcpus[cpu].ring;

		for (unsigned k = 0; k < ring->found; k++) {
			bool found = false;

			for (size_t i = 0; i < logging_count && !found; i++)
				found = is_logged(&loggings[i], &ring->pages[k]);
			if (!found)
				leave(WRONG,
				      "page %llu of slot %u is in a ring, and was not written",
				      (unsigned long long)ring->pages[k].page, ring->pages[k].slot);
		}
		ring->found = ring->full = 0;
	}
	harvested = race_resets = 0;
}
