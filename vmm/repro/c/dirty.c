/*@ dirty */

static uint64_t dirty[DIRTY_WORDS];	/* larger than the log of any slot here */
/*@ getdirty */

#define UNWRITTEN 0xf1846b92c31e5da7ull	/* a word of a bitmap that the kernel has not written */

/* KVM_GET_DIRTY_LOG; 0 or an errno. */
static int get_dirty_log(uint32_t slot, void *bitmap)
{
	struct kvm_dirty_log log = {.slot = slot, .dirty_bitmap = bitmap};

	for (unsigned i = 0; i < DIRTY_WORDS; i++)
		dirty[i] = UNWRITTEN;
	return ioctl(vm, KVM_GET_DIRTY_LOG, at_end_of_memory(&log, sizeof(log))) ? errno : SUCCESS;
}
/*@ expectdirty */

/* The log has this many words; it names all of `pages`, maybe some of `perhaps`, no others. */
static void expect_dirty(unsigned words, unsigned count, const uint32_t *pages,
			 unsigned optional, const uint32_t *perhaps)
{
	unsigned written = DIRTY_WORDS;

	while (written && dirty[written - 1] == UNWRITTEN)
		dirty[--written] = 0;
	if (written != words)
		leave(WRONG, "%u words of the bitmap were written, expected %u", written, words);
	for (unsigned i = 0; i < count; i++) {
		if (!(dirty[pages[i] / 64] >> pages[i] % 64 & 1))
			leave(WRONG, "page %u is not in the dirty log", pages[i]);
		dirty[pages[i] / 64] &= ~(1ull << pages[i] % 64);
	}
	for (unsigned i = 0; i < optional; i++)
		dirty[perhaps[i] / 64] &= ~(1ull << perhaps[i] % 64);
	for (unsigned i = 0; i < sizeof(dirty) * 8; i++)
		if (dirty[i / 64] >> i % 64 & 1)
			leave(WRONG, "page %u is in the dirty log, and was not written", i);
}
/*@ cleardirty */

/* KVM_CLEAR_DIRTY_LOG with the bits that are set in `dirty`; 0 or an errno. */
static int clear_dirty_log(uint32_t slot, uint64_t first_page, uint32_t num_pages, void *bitmap)
{
	struct kvm_clear_dirty_log clear = {
		.slot = slot,
		.num_pages = num_pages,
		.first_page = first_page,
		.dirty_bitmap = bitmap,
	};

	return ioctl(vm, KVM_CLEAR_DIRTY_LOG, at_end_of_memory(&clear, sizeof(clear)))
		       ? errno : SUCCESS;
}
/*@ markall */

static void mark_all(void)
{
	memset(dirty, 0xff, sizeof(dirty));
}
/*@ mark */

static void mark(unsigned count, const uint32_t *bits)
{
	memset(dirty, 0, sizeof(dirty));
	for (unsigned i = 0; i < count; i++)
		dirty[bits[i] / 64] |= 1ull << bits[i] % 64;
}
/*@ cap */

#ifndef KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
#define KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 168
#endif
#ifndef KVM_CAP_DIRTY_LOG_RING
#define KVM_CAP_DIRTY_LOG_RING 192
#endif
#ifndef KVM_CAP_DIRTY_LOG_RING_ACQ_REL
#define KVM_CAP_DIRTY_LOG_RING_ACQ_REL 223
#endif

/* KVM_ENABLE_CAP on the VM; 0 or an errno. */
static int enable_cap(uint32_t cap, uint32_t flags, uint64_t argument)
{
	struct kvm_enable_cap wanted = {.cap = cap, .flags = flags, .args = {argument}};

	return ioctl(vm, KVM_ENABLE_CAP, &wanted) ? errno : SUCCESS;
}
/*@ enablering */

/* KVM_ENABLE_CAP: vCPUs get rings of this size from now on; 0 or an errno. */
static int enable_ring(uint32_t cap, uint32_t flags, uint64_t argument)
{
	int error = enable_cap(cap, flags, argument);

	if (!error)
		ring_bytes = (uint32_t)argument;
	return error;
}
/*@ resetrings */

/* KVM_RESET_DIRTY_RINGS; 0 or an errno. It must reset exactly what was harvested. */
static int reset_dirty_rings(void)
{
	int entries = ioctl(vm, KVM_RESET_DIRTY_RINGS, 0);

	if (entries < 0)
		return errno;
	if (entries != harvested)
		leave(WRONG, "%d entries were reset, and %d were harvested", entries, harvested);
	harvested = 0;
	return SUCCESS;
}
/*@ harvest */

static bool is_among(struct slot_page wanted, unsigned count, const struct slot_page *pages)
{
	for (unsigned i = 0; i < count; i++)
		if (pages[i].slot == wanted.slot && pages[i].page == wanted.page)
			return true;
	return false;
}

/*
 * Harvests a vCPU's ring. Since the last harvest it must have named all of `pages`, maybe some of
 * `perhaps`, and no others, and been full `full` times, or more if `may_be_full`.
 */
static void expect_harvest(unsigned cpu, unsigned count, const struct slot_page *pages,
			   unsigned optional, const struct slot_page *perhaps, unsigned full,
			   bool may_be_full)
{
	struct ring *ring = &vcpu(cpu)->ring;

	collect(ring);
	for (unsigned i = 0; i < count; i++)
		if (!is_among(pages[i], ring->found, ring->pages))
			leave(WRONG, "page %llu of slot %u is not in the dirty ring",
			      (unsigned long long)pages[i].page, pages[i].slot);
	for (unsigned i = 0; i < ring->found; i++)
		if (!is_among(ring->pages[i], count, pages)
		    && !is_among(ring->pages[i], optional, perhaps))
			leave(WRONG,
			      "page %llu of slot %u is in the dirty ring, and was not written",
			      (unsigned long long)ring->pages[i].page, ring->pages[i].slot);
	if (ring->full < full || (!may_be_full && ring->full != full))
		leave(WRONG, "the dirty ring was full %u times, expected %u", ring->full, full);
	ring->found = ring->full = 0;
}
