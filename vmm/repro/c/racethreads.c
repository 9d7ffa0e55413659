/*@ racethreads */

static int race_does(const struct race_operation *op, struct race_answer *answer)
{
	(void)answer;
	if (op->action == HARVESTS)			/*+ racering */
		return race_harvest(op->slot), SUCCESS;	/*+ racering */
	if (op->action == RESETS)			/*+ racering */
		return race_reset();			/*+ racering */
	if (op->action == READS_LOG)			/*+ racelog */
		return race_reads_log(op, answer);	/*+ racelog */
	if (op->action == CLEARS_LOG)			/*+ raceclear */
		return race_clears_log(op);		/*+ raceclear */
	if (op->action == HOST_WRITES)
		return memcpy(op->mapping->host + op->offset, &op->value, sizeof(op->value)),
		       SUCCESS;
	return op->call();
}

/* Waits until every vCPU has completed `windows` more windows. */
static void wait_for_windows(const struct race *race, unsigned windows)
{
	size_t goals[8];

	for (unsigned i = 0; i < race->guest_count; i++)
		goals[i] = done_by(&race_guests[i]) + windows;
	for (unsigned i = 0; i < race->guest_count; i++)
		while (done_by(&race_guests[i]) < goals[i] && !is_over(&race_guests[i].ended))
			usleep(10);
}

/* The host's threads share a CPU, where the grace periods of slot changes are short. */
static cpu_set_t hosts_cpu;

static void *run_host(void *argument)
{
	struct race_worker *me = argument;
	const struct race_host *host = me->host;

	sched_setaffinity(0, sizeof(hosts_cpu), &hosts_cpu);
	pthread_barrier_wait(&race_barrier);
	wait_for_windows(me->race, 1);	/* the vCPUs meet the slots as they are before any change */
	for (unsigned round = 0; host->rounds ? round < host->rounds
					       : round < 2 || !is_over(&hosts_counted); round++)
		for (unsigned i = 0; i < host->count; i++) {
			struct race_answer *answer;

			if (me->count == me->room)
				me->answers = grown(me->answers, me->room = 2 * me->room + 64,
						    sizeof(*me->answers));
			answer = &me->answers[me->count++];
			answer->bitmap = NULL;
			answer->begin = moment();
			answer->answer = race_does(&host->operations[i], answer);
			answer->end = moment();
			if (host->pause)
				wait_for_windows(me->race, host->pause + 1);
		}
	return NULL;
}

/*@ racesmm */

/* Switches a vCPU to as_id 1, or 0. */
static void race_looks_at(struct race_worker *me, bool in_smm)
{
	if (me->in_smm != in_smm)
		set_smm(me->number, in_smm);
	me->in_smm = in_smm;
}

/* Puts a vCPU back into SMM after a stop: on AMD, a shutdown leaves it. */
static void race_stays(const struct race_worker *me)
{
	if (me->in_smm)
		set_smm(me->number, true);
}
/*@ raceguests */

/* The code of a vCPU's program and what it reads: 16 pages for each vCPU. */
static unsigned char *race_code(unsigned cpu)
{
	return guest.host + cpu * 16 * PAGE;
}

#define RACE_VALUES 0x1000u		/* after the code */
#define RACE_AT 0x1ffcu			/* which step is under way */

static unsigned put(unsigned char *code, const char *bytes, unsigned length, uint32_t a, uint32_t b,
		    bool both)
{
	memcpy(code, bytes, length);
	memcpy(code + length, &a, sizeof(a));
	if (both)
		memcpy(code + length + 4, &b, sizeof(b));
	return length + (both ? 8 : 4);
}

/* Stores the code of consecutive touches; `starts` is where each begins. */
static void put_touches(const struct race_worker *me, unsigned first, unsigned last,
			uint32_t window, unsigned *starts)
{
	unsigned char *code = race_code(me->number);
	uint32_t base = GUEST_GPA - me->number * 16 * PAGE;
	unsigned end = 0;

	for (unsigned i = first; i < last; i++) {
		const struct race_step *step = &me->guest->steps[i];
		uint32_t value = base + RACE_VALUES + 4 * i;

		starts[i] = end;	/* mov dword [at], i */
		end += put(code + end, "\x66\x67\xc7\x05", 4, base + RACE_AT, i, true);
		if (step->kind == WRITES) {	/* mov dword [gpa], value */
			end += put(code + end, "\x66\x67\xc7\x05", 4, step->gpa,
				   step->value + window, true);
			continue;
		}			/* mov eax, [gpa]; mov [its value], eax */
		end += put(code + end, "\x66\x67\xa1", 3, step->gpa, 0, false);
		end += put(code + end, "\x66\x67\xa3", 3, value, 0, false);
	}
	starts[last] = end;
	memcpy(code + end, "\xe6\xe0", 2);	/* out PORT_DONE, al */
}

static const char *race_stop(const struct kvm_run *run)
{
	static const char *const names[] = {
		[8] = "shutdown", [9] = "fail-entry", [17] = "internal-error"
	};

	if (run->exit_reason < sizeof(names) / sizeof(*names) && names[run->exit_reason])
		return names[run->exit_reason];
	return "another exit";
}

/*@ raceprivate */

/* Notes what KVM_EXIT_MEMORY_FAULT (Linux 6.8) says of an EFAULT. */
static void race_faults(struct race_worker *me, const struct kvm_run *run)
{
	struct { uint64_t flags, gpa, size; } fault;

	memcpy(&fault, &run->hw, sizeof(fault));
	me->fault.told = errno == EFAULT && run->exit_reason == 39 && fault.flags == 1 << 3;
	me->fault.left_gpa = fault.gpa;
	me->fault.left_size = fault.size;
}

static void note_fault(const struct race_worker *me, struct met *met)
{
	met->told = me->fault.told;
	met->left_gpa = me->fault.left_gpa;
	met->left_size = me->fault.left_size;
}
/*@ raceruns */

/* Runs until a write to the port. Returns NULL, or why the vCPU stopped. */
static const char *race_runs(struct race_worker *me, int port, struct met *met)
{
	struct vcpu *vcpu = &vcpus[me->number];
	const volatile uint32_t *at = (void *)(race_code(me->number) + RACE_AT);

	for (;;) {
		struct kvm_run *run = vcpu->run;
		struct met *step = met;

		if (ioctl(vcpu->fd, KVM_RUN, 0)) {
			if (errno == EINTR)
				continue;
			race_faults(me, run);			/*+ raceprivate */
			return errno == EFAULT ? "EFAULT" : strerror(errno);
		}
		if (run->exit_reason == KVM_EXIT_DIRTY_RING_FULL	/*+ racering */
		    && race_makes_room(me->number))			/*+ racering */
			continue;					/*+ racering */
		if (run->exit_reason == KVM_EXIT_IO && run->io.port == port) {
			if (port == PORT_EXECUTED)
				memcpy(&met->value, (char *)run + run->io.data_offset, 4);
			return NULL;
		}
		if (run->exit_reason != KVM_EXIT_MMIO || port != PORT_DONE) {
			finish(vcpu);
			return race_stop(run);
		}
		step += *at;
		if (!run->mmio.is_write)
			memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
		if (step->exits++ > 64)
			leave(WRONG, "an access of vCPU %u exits for ever", me->number);
		step->exit_gpa = run->mmio.phys_addr;
		step->exit_length = run->mmio.len;
		step->exit_writes = run->mmio.is_write;
		memcpy(&step->exit_data, run->mmio.data, 4);
	}
}

static void race_touches(struct race_worker *me, unsigned first, unsigned last, uint32_t window,
			 struct met *met)
{
	unsigned char *code = race_code(me->number);
	unsigned starts[65];
	unsigned next = first;

	put_touches(me, first, last, window, starts);
	while (next < last) {
		struct kvm_regs regs = {.rip = starts[next]};
		const char *why;
		uint32_t at;

		memcpy(code + RACE_AT, &next, 4);
		enter(&vcpus[me->number], GUEST_GPA - me->number * 16 * PAGE, &regs);
		why = race_runs(me, PORT_DONE, met);
		if (!why)
			break;
		memcpy(&at, code + RACE_AT, 4);
		at = at < next ? next : at >= last ? last - 1 : at;
		note_fault(me, &met[at]);			/*+ raceprivate */
		met[at].stopped = why;
		next = at + 1;
		race_stays(me);					/*+ racesmm */
	}
	for (unsigned i = first; i < last; i++)
		if (me->guest->steps[i].kind == READS)
			memcpy(&met[i].value, code + RACE_VALUES + 4 * i, 4);
}

static void race_executes(struct race_worker *me, const struct race_step *step, struct met *met)
{
	struct kvm_regs regs = {.rip = 0x800};

	enter(&vcpus[me->number], step->gpa, &regs);
	met->stopped = race_runs(me, PORT_EXECUTED, met);
	if (met->stopped)				/*+ racesmm */
		race_stays(me);				/*+ racesmm */
}
/*@ raceprefault */

static void race_pre_faults(const struct race_worker *me, const struct race_step *step,
			    struct met *met)
{
	struct kvm_pre_fault_memory range = {.gpa = step->gpa, .size = PAGE};

	met->error = ioctl(vcpus[me->number].fd, KVM_PRE_FAULT_MEMORY, &range) ? errno : SUCCESS;
	met->left_gpa = range.gpa;
	met->left_size = range.size;
}
/*@ racewindows */

static void race_window(struct race_worker *me)
{
	const struct race_guest *program = me->guest;
	struct met *met;
	struct window *window;

	if (me->count == me->room) {
		me->room = 2 * me->room + 256;
		me->windows = grown(me->windows, me->room, sizeof(*me->windows));
		me->met = grown(me->met, me->room * program->count, sizeof(*me->met));
	}
	met = memset(&me->met[me->count * program->count], 0, program->count * sizeof(*met));
	window = &me->windows[me->count];
	window->begin = moment();
	for (unsigned i = 0, last; i < program->count; i = last) {
		last = i + 1;
		race_looks_at(me, program->steps[i].in_smm);	/*+ racesmm */
		if (program->steps[i].kind == EXECUTES) {
			race_executes(me, &program->steps[i], &met[i]);
			continue;
		}
		if (program->steps[i].kind == PRE_FAULTS) {	/*+ raceprefault */
			race_pre_faults(me, &program->steps[i], &met[i]);	/*+ raceprefault */
			continue;						/*+ raceprefault */
		}							/*+ raceprefault */
		while (last < program->count && program->steps[last].kind <= WRITES
		       && program->steps[last].in_smm == program->steps[i].in_smm)
			last++;
		race_touches(me, i, last, me->count, met);
	}
	window->end = moment();
	__atomic_store_n(&me->count, me->count + 1, __ATOMIC_RELEASE);
}

/* Runs windows; the last one begins after all calls have ended. */
static void *run_windows(void *argument)
{
	struct race_worker *me = argument;
	size_t end = me->guest->windows;

	if (me->guest->migrates && me->count + me->guest->migrates < end)
		end = me->count + me->guest->migrates;
	while (me->count < end && !me->ended) {
		bool last = is_over(&hosts_over);

		race_window(me);
		if (last)
			__atomic_store_n(&me->ended, true, __ATOMIC_RELEASE);
	}
	return NULL;
}

static void *run_guest(void *argument)
{
	struct race_worker *me = argument;

	pthread_barrier_wait(&race_barrier);
	while (!me->ended && me->count < me->guest->windows) {
		pthread_t other;

		if (!me->guest->migrates)
			run_windows(me);
		else if (pthread_create(&other, NULL, run_windows, me) || pthread_join(other, NULL))
			leave(CANNOT_RUN, "cannot create another thread for a vCPU");
	}
	__atomic_store_n(&me->ended, true, __ATOMIC_RELEASE);
	return NULL;
}

static void begin(struct race_worker *worker, void *(*work)(void *))
{
	if (pthread_create(&worker->thread, NULL, work, worker))
		leave(CANNOT_RUN, "cannot create a thread for a race");
}

/* Lets all threads go at once, and waits for them. */
static void run_race(const struct race *race)
{
	race_moments = 8;	/* what precedes the race has lower ones */
	hosts_counted = hosts_over = false;
	CPU_ZERO(&hosts_cpu);
	CPU_SET(sched_getcpu(), &hosts_cpu);
	memset(race_hosts, 0, sizeof(race_hosts));
	memset(race_guests, 0, sizeof(race_guests));
	pthread_barrier_init(&race_barrier, NULL, race->host_count + race->guest_count);
	for (unsigned i = 0; i < race->guest_count; i++) {
		race_guests[i] = (struct race_worker){
			.race = race, .guest = &race->guests[i], .number = i,
		};
		vcpu(i);
		begin(&race_guests[i], run_guest);
	}
	for (unsigned i = 0; i < race->host_count; i++) {
		race_hosts[i] = (struct race_worker){.race = race, .host = &race->hosts[i]};
		begin(&race_hosts[i], run_host);
	}
	for (int uncounted = 0; uncounted < 2; uncounted++) {
		for (unsigned i = 0; i < race->host_count; i++)
			if ((race->hosts[i].rounds == 0) == uncounted)
				pthread_join(race_hosts[i].thread, NULL);
		__atomic_store_n(&hosts_counted, true, __ATOMIC_RELEASE);
	}
	if (race->host_count)
		__atomic_store_n(&hosts_over, true, __ATOMIC_RELEASE);
	for (unsigned i = 0; i < race->guest_count; i++) {
		pthread_join(race_guests[i].thread, NULL);
		race_looks_at(&race_guests[i], false);	/*+ racesmm */
	}
	pthread_barrier_destroy(&race_barrier);
}
