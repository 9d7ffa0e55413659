/*@ privatefault */

/* The reason of an EFAULT. <linux/kvm.h> has KVM_EXIT_MEMORY_FAULT only since Linux 6.8. */
static const char *fault_of(const struct kvm_run *run)
{
	static char reason[64];
	struct { uint64_t flags, gpa, size; } fault;

	memcpy(&fault, &run->hw, sizeof(fault));
	if (run->exit_reason != 39 || fault.flags != 1 << 3)
		return "EFAULT";
	snprintf(reason, sizeof(reason), "private memory-fault at 0x%llx+0x%llx",
		 (unsigned long long)fault.gpa, (unsigned long long)fault.size);
	return reason;
}
/*@ starting */

/* The gpa of the scenario's own page tables, while a vCPU uses those. */
#define NO_TABLES (~0ull)
static uint64_t own_tables = NO_TABLES;
/*@ finish */

/* Completes the access of an exit without running the guest further. */
static void finish(struct vcpu *vcpu)
{
	vcpu->run->immediate_exit = 1;
	for (int i = 0; i < 64 && !ioctl(vcpu->fd, KVM_RUN, 0); i++)
		;
	vcpu->run->immediate_exit = 0;
}
/*@ ports */

/* The port that ins reads and outs writes to. */
#define PORT_DATA 0xe2
static struct {
	uint32_t value;			/* what each element is that is read */
	unsigned width, sent, taken;
	unsigned char data[0x4000];
} port_;

static void port_gives(uint32_t value, unsigned width)
{
	port_.value = value;
	port_.width = width;
	port_.sent = port_.taken = 0;
}

/* Serves an exit for the port; false if it is none. */
static bool at_port(struct kvm_run *run)
{
	unsigned char *data = (unsigned char *)run + run->io.data_offset;
	unsigned bytes = run->io.size * run->io.count;

	if (run->exit_reason != KVM_EXIT_IO || run->io.port != PORT_DATA)
		return false;
	if (run->io.size != port_.width || port_.taken + bytes > 0x80000
	    || port_.sent + bytes > sizeof(port_.data))
		leave(WRONG, "an access of %u bytes to the port", bytes);
	if (run->io.direction == KVM_EXIT_IO_OUT) {
		memcpy(port_.data + port_.sent, data, bytes);
		port_.sent += bytes;
	} else {
		for (unsigned at = 0; at < bytes; at += port_.width)
			memcpy(data + at, &port_.value, port_.width);
		port_.taken += bytes;
	}
	return true;
}
/*@ run */

/* No access has more MMIO exits or bytes: one instruction reads and writes 0x4000 of them. */
#define MOST_EXITS 0x8000u

/* The result of the guest's latest access. */
static struct {
	const char *stopped;	/* why the vCPU could not go on */
	uint32_t value;		/* what was read */
	unsigned exits, expected, bytes;
	struct {
		uint64_t gpa;
		bool write;
		unsigned length;
		unsigned char *data;
	} exit[MOST_EXITS];	/* MMIO; adjacent exits are joined */
	unsigned char data[MOST_EXITS];
} access_;

static void note_mmio(struct kvm_run *run)
{
	unsigned last = access_.exits - 1;

	if (!run->mmio.is_write)
		memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
	if (run->mmio.len > 8)
		leave(WRONG, "an MMIO exit of %u bytes", run->mmio.len);
	if (!run->mmio.len || access_.bytes + run->mmio.len > MOST_EXITS)
		leave(WRONG, "too many MMIO exits");
	if (!access_.exits || access_.exit[last].write != run->mmio.is_write
	    || access_.exit[last].gpa + access_.exit[last].length != run->mmio.phys_addr) {
		last = access_.exits++;
		access_.exit[last].gpa = run->mmio.phys_addr;
		access_.exit[last].write = run->mmio.is_write;
		access_.exit[last].length = 0;
		access_.exit[last].data = access_.data + access_.bytes;
	}
	memcpy(access_.data + access_.bytes, run->mmio.data, run->mmio.len);
	access_.exit[last].length += run->mmio.len;
	access_.bytes += run->mmio.len;
}

/* Runs until the guest writes to the port. Where its code is under test, MMIO is a stop. */
static void run(struct vcpu *vcpu, int port)
{
	static char reason[32];
	bool passes = port == PORT_DONE; /* Whether the guest goes on after MMIO. */

	passes |= own_tables != NO_TABLES;	/*+ starting */
	access_.stopped = NULL;
	access_.exits = access_.expected = access_.bytes = access_.value = 0;
	for (;;) {
		if (ioctl(vcpu->fd, KVM_RUN, 0)) {
			if (errno == EINTR)
				continue;
			access_.stopped = errno == EFAULT ? "EFAULT" : strerror(errno);
			if (errno == EFAULT)				/*+ privatefault */
				access_.stopped = fault_of(vcpu->run);	/*+ privatefault */
			return;
		}
		if (vcpu->run->exit_reason == KVM_EXIT_DIRTY_RING_FULL	/*+ ring */
		    && make_room(&vcpu->ring))				/*+ ring */
			continue;					/*+ ring */
		if (at_port(vcpu->run))	/*+ ports */
			continue;	/*+ ports */
		if (vcpu->run->exit_reason == KVM_EXIT_MMIO && passes) {
			note_mmio(vcpu->run);
		} else if (vcpu->run->exit_reason == KVM_EXIT_IO && vcpu->run->io.port == port) {
			memcpy(&access_.value, (char *)vcpu->run + vcpu->run->io.data_offset,
			       vcpu->run->io.size);
			return;
		} else {
			snprintf(reason, sizeof(reason), "exit reason %u",
				 vcpu->run->exit_reason);
			access_.stopped = reason;
			finish(vcpu);
			return;
		}
	}
}
/*@ forget */

/* After a triple fault some kernels would deliver the last exception in the next run. */
static void forget_exceptions(struct vcpu *vcpu)
{
	struct kvm_vcpu_events events = {0};

	if (access_.stopped)
		must(ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events), "KVM_SET_VCPU_EVENTS");
}
/*@ real */

/* Real mode with code at `base`; data segments reach all of the first 4 GiB. */
static void enter(struct vcpu *vcpu, uint64_t base, struct kvm_regs *regs)
{
	struct kvm_sregs sregs = vcpu->reset;
	struct kvm_segment data = {.limit = 0xffffffff, .type = 3, .present = 1, .s = 1, .g = 1};

	sregs.ds = sregs.es = sregs.fs = sregs.gs = data;
	sregs.cs.base = sregs.ss.base = base;
	sregs.cs.selector = sregs.ss.selector = base >> 4 & 0xffff;
	sregs.cs.limit = sregs.ss.limit = 0xffff;
	sregs.cs.type = 0xb;
	sregs.ss.type = 3;
	must(ioctl(vcpu->fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	regs->rflags = 2;
	must(ioctl(vcpu->fd, KVM_SET_REGS, regs), "KVM_SET_REGS");
}
/*@ code */

/* Puts instructions at the start of the guest's slot and runs them. */
static void run_code(unsigned cpu, const unsigned char *code, unsigned length, struct kvm_regs regs)
{
	memcpy(guest.host, code, length);
	enter(vcpu(cpu), GUEST_GPA, &regs);
	run(vcpu(cpu), PORT_DONE);
}
/*@ smm */

/* Puts a vCPU into system management mode, where it sees as_id 1, or takes it out. */
static void set_smm(unsigned cpu, bool inside)
{
	struct kvm_vcpu_events events = {.flags = KVM_VCPUEVENT_VALID_SMM, .smi.smm = inside};

	must(ioctl(vcpu(cpu)->fd, KVM_SET_VCPU_EVENTS, &events), "KVM_SET_VCPU_EVENTS");
}
/*@ smi */

/* A system management interrupt is pending when the vCPU runs next. */
static void send_smi(unsigned cpu)
{
	must(ioctl(vcpu(cpu)->fd, KVM_SMI), "KVM_SMI");
}
/*@ stopped */

static bool stopped(const char *why)
{
	return access_.stopped && !strcmp(access_.stopped, why);
}
/*@ otherstop */

/* A stop is right, too, but the later steps assume memory as it is without one. */
static void leave_if_stopped(const char *why)
{
	if (stopped(why))
		leave(CANNOT_RUN, "this kernel gives the other right answer (the vCPU stops: %s)",
		      why);
}
/*@ otherend */

/* No stop is right, too, but the later steps assume memory as a stop leaves it. */
static void leave_at_other_end(void)
{
	leave(CANNOT_RUN, "this kernel gives the other right answer (the vCPU does not stop)");
}
/*@ onlystopped */

static void expect_stopped(const char *why)
{
	if (!stopped(why))
		leave(WRONG, "expected the vCPU to stop (%s), got %s", why,
		      access_.stopped ? access_.stopped : "no stop");
}
