/*@ racewords */

/* A write to a word of host memory, or to a whole page at once. */
struct kept_write {
	uint64_t begin, end, floor;	/* floor: latest begin of the certain writes so far */
	uint32_t value;
	bool surely;
};

static struct cell {
	const struct mapping *mapping;
	uint64_t offset;
	bool is_page;
	struct kept_write *writes;
	size_t count, room;
	uint64_t longest;
} *cells;
static size_t cell_count;

/* Mappings of one file share their words. */
static const struct mapping *file_of(const struct mapping *mapping)
{
	if (mapping->of)			/*+ another */
		return mapping->of;		/*+ another */
	return mapping;
}

static struct cell *cell_of(const struct mapping *mapping, uint64_t offset, bool is_page)
{
	mapping = file_of(mapping);
	for (size_t i = 0; i < cell_count; i++)
		if (cells[i].mapping == mapping && cells[i].offset == offset
		    && cells[i].is_page == is_page)
			return &cells[i];
	return NULL;
}

static void note_write(const struct mapping *mapping, uint64_t offset, bool is_page, uint64_t begin,
		       uint64_t end, uint32_t value, bool surely)
{
	struct cell *cell = cell_of(mapping, offset, is_page);

	if (!cell) {
		cells = grown(cells, cell_count + 1, sizeof(*cells));
		cell = &cells[cell_count++];
		*cell = (struct cell){
			.mapping = file_of(mapping), .offset = offset, .is_page = is_page
		};
	}
	if (cell->count == cell->room)
		cell->writes = grown(cell->writes, cell->room = 2 * cell->room + 64,
				     sizeof(*cell->writes));
	cell->writes[cell->count++] = (struct kept_write){
		.begin = begin, .end = end, .value = value, .surely = surely,
	};
}

static int by_end(const void *one, const void *other)
{
	const struct kept_write *a = one, *b = other;

	return a->end < b->end ? -1 : a->end > b->end;
}

/* Sorts the writes, once all are known. */
static void sort_writes(void)
{
	for (size_t i = 0; i < cell_count; i++) {
		uint64_t floor = 0;
		struct cell *cell = &cells[i];

		qsort(cell->writes, cell->count, sizeof(*cell->writes), by_end);
		for (size_t j = 0; j < cell->count; j++) {
			struct kept_write *write = &cell->writes[j];

			if (write->surely && write->begin > floor)
				floor = write->begin;
			write->floor = floor;
			if (write->end - write->begin > cell->longest)
				cell->longest = write->end - write->begin;
		}
	}
}

/* How many writes had ended before a moment. */
static size_t ended_before(const struct cell *cell, uint64_t moment)
{
	size_t low = 0, high = cell->count;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (cell->writes[middle].end < moment)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static uint64_t floor_before(const struct cell *cell, uint64_t moment)
{
	size_t ended = cell ? ended_before(cell, moment) : 0;

	return ended ? cell->writes[ended - 1].floor : 0;
}

static bool was_written(const struct cell *cell, uint64_t floor, uint64_t end, uint32_t value)
{
	for (size_t i = cell ? ended_before(cell, floor + 1) : 0;
	     cell && i < cell->count && cell->writes[i].end <= end + cell->longest; i++)
		if (cell->writes[i].begin < end && cell->writes[i].value == value)
			return true;
	return false;
}

/* Whether a word may have held this at some moment of an interval. */
static bool may_hold(const struct mapping *mapping, uint64_t offset, uint64_t begin, uint64_t end,
		     uint32_t value)
{
	const struct cell *word = cell_of(mapping, offset, false);
	const struct cell *page = cell_of(mapping, offset / PAGE * PAGE, true);
	uint64_t floor = floor_before(word, begin);

	if (floor_before(page, begin) > floor)
		floor = floor_before(page, begin);
	return was_written(word, floor, end, value) || was_written(page, floor, end, value)
	       || (!floor && !memcmp(mapping->before + offset, &value, sizeof(value)));
}
