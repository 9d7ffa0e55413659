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
/*@ mmio */

/* Expects the next MMIO exit of the access. */
static void expect_mmio(bool write, uint64_t gpa, unsigned length, const char *data)
{
	unsigned at = access_.expected++;

	if (at >= access_.exits)
		leave(WRONG, "expected an MMIO %s of %u bytes at gpa 0x%llx, got %s",
		      write ? "write" : "read", length, (unsigned long long)gpa,
		      access_.stopped ? access_.stopped : "no exit");
	if (access_.exit[at].write != write || access_.exit[at].gpa != gpa
	    || access_.exit[at].length != length || memcmp(access_.exit[at].data, data, length))
		leave(WRONG,
		      "expected an MMIO %s of %u bytes at gpa 0x%llx, got a %s of %u at 0x%llx",
		      write ? "write" : "read", length, (unsigned long long)gpa,
		      access_.exit[at].write ? "write" : "read", access_.exit[at].length,
		      (unsigned long long)access_.exit[at].gpa);
}
/*@ otherexits */

/* So many exits are right, too, but the later steps assume another outcome. */
static void leave_at_exits(unsigned exits)
{
	if (!access_.stopped && access_.exits == exits)
		leave(CANNOT_RUN, "this kernel gives the other right answer (%u MMIO exits)",
		      exits);
}
/*@ end */

/* The guest finished the access, without another MMIO exit. */
static void expect_end(void)
{
	if (access_.stopped)
		leave(WRONG, "the vCPU stopped: %s", access_.stopped);
	if (access_.exits > access_.expected)
		leave(WRONG, "unexpected MMIO %s at gpa 0x%llx",
		      access_.exit[access_.expected].write ? "write" : "read",
		      (unsigned long long)access_.exit[access_.expected].gpa);
}
/*@ expectport */

static void expect_port(unsigned sent, const char *data, unsigned taken)
{
	if (port_.sent != sent || memcmp(port_.data, data, sent))
		leave(WRONG, "expected %u bytes sent to the port, got %u, or others", sent,
		      port_.sent);
	if (port_.taken != taken)
		leave(WRONG, "expected %u bytes taken from the port, got %u", taken, port_.taken);
}
/*@ value */

/* The access ended without another exit, and read this value (0: it read nothing). */
static void expect_value(uint32_t value)
{
	expect_end();
	if (access_.value != value)
		leave(WRONG, "expected 0x%x, got 0x%x", value, access_.value);
}
/*@ read */

/* The guest reads 1, 2 or 4 bytes at a gpa. */
static void guest_reads(unsigned cpu, uint32_t gpa, unsigned width)
{
	unsigned char code[] = {
		0x90,				/* nop, or the prefix for 32-bit operands */
		0x67, 0xa1, 0, 0, 0, 0,		/* mov eax, [gpa] */
		0x90, 0xe7, PORT_DONE,		/* out PORT_DONE, eax */
	};

	if (width == 4)
		code[0] = code[7] = 0x66;
	if (width == 1)
		code[2] = 0xa0, code[8] = 0xe6;	/* the same with al */
	memcpy(code + 3, &gpa, sizeof(gpa));
	run_code(cpu, code, sizeof(code), (struct kvm_regs){0});
}
/*@ putwrite */

/* Stores the instruction that writes 1, 2 or 4 bytes at a gpa; returns its length. */
static unsigned put_write(unsigned char *code, uint32_t gpa, unsigned width, uint32_t value)
{
	static const unsigned char start[] = {
		0x90,			/* nop, or the prefix for 32-bit operands */
		0x67, 0xc7, 0x05,	/* mov [gpa], value: both follow */
	};

	memcpy(code, start, sizeof(start));
	if (width == 4)
		code[0] = 0x66;
	if (width == 1)
		code[2] = 0xc6;		/* the same with a byte */
	memcpy(code + 4, &gpa, sizeof(gpa));
	memcpy(code + 8, &value, width);
	return 8 + width;
}
/*@ write */

/* The guest writes 1, 2 or 4 bytes at a gpa. */
static void guest_writes(unsigned cpu, uint32_t gpa, unsigned width, uint32_t value)
{
	unsigned char code[16];
	unsigned end = put_write(code, gpa, width, value);

	code[end] = 0xe6;		/* out PORT_DONE, al */
	code[end + 1] = PORT_DONE;
	run_code(cpu, code, end + 2, (struct kvm_regs){0});
	access_.value = 0;
}
/*@ writes */

struct write {
	uint32_t gpa;
	unsigned width;
	uint32_t value;
};

/* The guest makes all these writes in one KVM_RUN. */
static void guest_writes_all(unsigned cpu, unsigned count, const struct write *writes)
{
	static unsigned char code[0xc000];
	unsigned end = 0;

	for (unsigned i = 0; i < count; i++)
		end += put_write(code + end, writes[i].gpa, writes[i].width, writes[i].value);
	code[end] = 0xe6;			/* out PORT_DONE, al */
	code[end + 1] = PORT_DONE;
	run_code(cpu, code, end + 2, (struct kvm_regs){0});
	access_.value = 0;
}
/*@ string */

/* One string instruction: rep stos or rep movs over `count` elements. */
static void run_string(unsigned cpu, unsigned char opcode, unsigned width, struct kvm_regs regs)
{
	unsigned char code[] = {
		0x67, 0x90,			/* 32-bit addresses; 32-bit operands if needed */
		0xf3, 0x90,			/* rep, and the instruction */
		0xe6, PORT_DONE,		/* out PORT_DONE, al */
	};

	code[1] = width == 4 ? 0x66 : 0x3e;	/* 0x3e: a prefix without effect */
	code[3] = width == 1 ? opcode - 1 : opcode;
	run_code(cpu, code, sizeof(code), regs);
	access_.value = 0;
}
/*@ fills */

static void guest_fills(unsigned cpu, uint32_t gpa, unsigned count, unsigned width, uint32_t value)
{
	struct kvm_regs regs = {.rdi = gpa, .rcx = count, .rax = value};

	run_string(cpu, 0xab, width, regs);	/* stos */
}
/*@ copies */

/* The guest reads `count` elements, into its own slot. */
static void guest_copies(unsigned cpu, uint32_t gpa, unsigned count, unsigned width)
{
	struct kvm_regs regs = {.rsi = gpa, .rcx = count, .rdi = GUEST_GPA + GUEST_BUFFER};

	run_string(cpu, 0xa5, width, regs);	/* movs */
}
/*@ elements */

/* Expects this value in `times` elements of what the guest copied, from `first` on. */
static void expect_elements(unsigned first, unsigned times, unsigned width, uint32_t value)
{
	for (unsigned i = first; i < first + times; i++)
		if (memcmp(guest.host + GUEST_BUFFER + i * width, &value, width))
			leave(WRONG, "element %u is not 0x%x", i, value);
}
/*@ execute */

/* The guest executes the code at 0x800 of a page. */
static void guest_executes(unsigned cpu, uint32_t gpa)
{
	struct kvm_regs regs = {.rip = 0x800};

	enter(vcpu(cpu), gpa, &regs);
	run(vcpu(cpu), PORT_EXECUTED);
}
/*@ startreal */

/* Starts the vCPU at a gpa, in real mode. */
static void guest_starts_real(unsigned cpu, uint32_t gpa)
{
	struct kvm_regs regs = {.rip = gpa & 0xffff};

	enter(vcpu(cpu), gpa & 0xffff0000, &regs);
	run(vcpu(cpu), PORT_EXECUTED);
	forget_exceptions(vcpu(cpu));
}
/*@ cannotfetch */

static void expect_no_fetch(void)
{
	if (!access_.stopped)
		leave(WRONG, "code was executed where there is none: 0x%x", access_.value);
}
/*@ registers */

/* The registers before and after one instruction, and their bits that are compared. */
static struct kvm_regs before_, after_;
static uint64_t register_bits;

/* One instruction ended without another exit. sp, si, di: changes; mask: flags that count. */
static void expect_registers(uint64_t ax, uint64_t bx, uint64_t cx, uint64_t dx, int64_t sp,
			     int64_t si, int64_t di, uint64_t bp, unsigned flags, unsigned mask)
{
	const uint64_t want[] = {
		ax, bx, cx, dx, before_.rsp + sp, before_.rsi + si, before_.rdi + di, bp, flags,
	};
	const uint64_t got[] = {
		after_.rax, after_.rbx, after_.rcx, after_.rdx, after_.rsp, after_.rsi, after_.rdi,
		after_.rbp, after_.rflags & mask,
	};
	static const char *const names[] = {
		"ax", "bx", "cx", "dx", "sp", "si", "di", "bp", "flags"
	};

	expect_end();
	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if ((got[i] ^ want[i]) & register_bits)
			leave(WRONG, "expected %s=0x%llx, got 0x%llx", names[i],
			      (unsigned long long)want[i], (unsigned long long)got[i]);
}
/*@ tables */

static struct kvm_dtable tables;

/* Sets what GDTR and IDTR hold from the next instruction, or start, on. */
static void set_tables(uint64_t base, unsigned limit)
{
	tables = (struct kvm_dtable){.base = base, .limit = limit};
}

static void store_tables(struct vcpu *vcpu)
{
	struct kvm_sregs sregs;

	must(ioctl(vcpu->fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.gdt = sregs.idt = tables;
	must(ioctl(vcpu->fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
}
/*@ startflat */

/* Starts the vCPU at a gpa, in real mode, with a flat stack segment and with tables. */
static void guest_starts_flat(unsigned cpu, uint32_t gpa, uint32_t stack)
{
	struct kvm_regs regs = {.rip = gpa & 0xffff, .rsp = stack};
	struct kvm_sregs sregs;

	enter(vcpu(cpu), gpa & 0xffff0000, &regs);
	must(ioctl(vcpu(cpu)->fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.ss = sregs.ds;
	sregs.ss.db = 1;
	must(ioctl(vcpu(cpu)->fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	store_tables(vcpu(cpu));
	run(vcpu(cpu), PORT_EXECUTED);
	forget_exceptions(vcpu(cpu));
}
/*@ oneinstruction */

/* Puts an instruction at 0x8000 of the guest's slot, and after it out PORT_DONE, al. */
static void put_instruction(const char *code, unsigned length, struct kvm_regs *regs)
{
	memcpy(guest.host + 0x8000, code, length);
	guest.host[0x8000 + length] = 0xe6;
	guest.host[0x8000 + length + 1] = PORT_DONE;
	regs->rip = 0x8000;
	before_ = *regs;
}

static void never_came_back(int signal)
{
	(void)signal;
	leave(WRONG, "the guest has no exit within 5 s");
}

static void run_instruction(struct vcpu *vcpu)
{
	signal(SIGALRM, never_came_back);
	alarm(5);
	must(ioctl(vcpu->fd, KVM_SET_REGS, &before_), "KVM_SET_REGS");
	run(vcpu, PORT_DONE);
	alarm(0);
	must(ioctl(vcpu->fd, KVM_GET_REGS, &after_), "KVM_GET_REGS");
}
/*@ instruction */

/* The guest executes one instruction in real mode, with a flat stack segment. */
static void guest_runs(unsigned cpu, const char *code, unsigned length, struct kvm_regs regs)
{
	struct kvm_sregs sregs;

	register_bits = 0xffffffff;
	put_instruction(code, length, &regs);
	enter(vcpu(cpu), GUEST_GPA, &regs);
	must(ioctl(vcpu(cpu)->fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.ss = sregs.ds;
	sregs.ss.db = 1;
	must(ioctl(vcpu(cpu)->fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	store_tables(vcpu(cpu));		/*+ tables */
	run_instruction(vcpu(cpu));
}
