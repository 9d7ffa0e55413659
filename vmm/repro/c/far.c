/*@ paging */

/* The offset of the guest's page tables in its slot. */
#define PAGE_TABLES 0xc000u
/*@ windows */

/*
 * 64-bit mode. The guest's slot is mapped at virtual address 0. Window n maps 4 MiB from a
 * multiple of 2 MiB on, at virtual address n * 4 MiB. Entries are only ever added, so that what a
 * vCPU has cached stays cached until KVM flushes it.
 */
#define WINDOW_STEP (2ull << 20)
#define GPA_END (1ull << 52)

enum { PRESENT = 0x63, LARGE = 0x80 };	/* present, writable, accessed and dirty */

static uint64_t *table(unsigned level)
{
	return (uint64_t *)(guest.host + PAGE_TABLES) + level * 512;
}

/* The virtual address of a gpa; at least 2 MiB are mapped from there on. */
static uint64_t address_of(uint64_t gpa)
{
	static uint64_t starts[256];
	static unsigned windows;
	uint64_t start = gpa & -WINDOW_STEP;
	unsigned n = 1;

	for (unsigned level = 0; !windows && level < 3; level++)
		table(level)[0] = (GUEST_GPA + PAGE_TABLES + (level + 1) * PAGE) | PRESENT;
	for (unsigned page = 0; !windows && page < guest.pages; page++)
		table(3)[page] = (GUEST_GPA + page * PAGE) | PRESENT;
	while (n <= windows && starts[n] != start)
		n++;
	if (n == 256)
		leave(CANNOT_RUN, "all windows are in use");
	if (n > windows) {
		starts[n] = start;
		windows = n;
		table(2)[2 * n] = start | PRESENT | LARGE;
		if (start + WINDOW_STEP < GPA_END)
			table(2)[2 * n + 1] = (start + WINDOW_STEP) | PRESENT | LARGE;
	}
	return n * 2 * WINDOW_STEP + gpa % WINDOW_STEP;
}
/*@ mode32bit */

/* Whether a vCPU with the scenario's own page tables is in 32-bit mode, and with which. */
static enum { LONG_TABLES, PAE_TABLES, TABLES_OF_TWO_LEVELS } own_paging;

static void enter_32_bit_mode(struct kvm_sregs *sregs)
{
	if (own_paging == LONG_TABLES)
		return;
	sregs->cs.l = 0;
	sregs->cs.db = 1;
	sregs->cr4 ^= own_paging == PAE_TABLES ? 0 : 0x30;	/* PSE in place of PAE */
	sregs->efer = 0;
}
/*@ long */

static void enter_long(struct vcpu *vcpu, struct kvm_regs *regs)
{
	struct kvm_sregs sregs = vcpu->reset;
	struct kvm_segment data = {
		.limit = 0xffffffff, .selector = 0x10, .type = 3, .present = 1, .s = 1, .db = 1,
		.g = 1,
	};

	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = sregs.cs = data;
	sregs.cs.selector = 8;
	sregs.cs.type = 0xb;
	sregs.cs.db = 0;
	sregs.cs.l = 1;
	sregs.idt.limit = 0;
	sregs.cr0 = 0x80010031;		/* PG, WP, NE, ET, PE */
	sregs.cr3 = GUEST_GPA + PAGE_TABLES;
	if (own_tables != NO_TABLES)		/*+ starting */
		sregs.cr3 = own_tables;		/*+ starting */
	sregs.cr4 = 0x620;		/* PAE, OSFXSR, OSXMMEXCPT */
	sregs.efer = 0x500;		/* LME, LMA */
	enter_32_bit_mode(&sregs);		/*+ mode32bit */
	must(ioctl(vcpu->fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	regs->rflags = 2;
	must(ioctl(vcpu->fd, KVM_SET_REGS, regs), "KVM_SET_REGS");
}
/*@ longcode */

/* run_code() in 64-bit mode. */
static void run_long(unsigned cpu, const unsigned char *code, unsigned length, struct kvm_regs regs)
{
	memcpy(guest.host, code, length);
	enter_long(vcpu(cpu), &regs);
	run(vcpu(cpu), PORT_DONE);
}
/*@ farread */

/* The guest reads 1, 2 or 4 bytes at a gpa, in 64-bit mode. */
static void guest_reads_far(unsigned cpu, uint64_t gpa, unsigned width)
{
	unsigned char code[] = {
		0x90,				/* nop, or the prefix for 16-bit operands */
		0x8b, 0x04, 0x25, 0, 0, 0, 0,	/* mov eax, [address] */
		0x90, 0xe7, PORT_DONE,		/* out PORT_DONE, eax */
	};
	uint32_t address = address_of(gpa);

	if (width == 2)
		code[0] = code[8] = 0x66;
	if (width == 1)
		code[1] = 0x8a, code[9] = 0xe6;	/* the same with al */
	memcpy(code + 4, &address, sizeof(address));
	run_long(cpu, code, sizeof(code), (struct kvm_regs){0});
}
/*@ farwrite */

/* The guest writes 1, 2 or 4 bytes at a gpa, in 64-bit mode. */
static void guest_writes_far(unsigned cpu, uint64_t gpa, unsigned width, uint32_t value)
{
	unsigned char code[16] = {
		0x90,				/* nop, or the prefix for 16-bit operands */
		0xc7, 0x04, 0x25, 0, 0, 0, 0,	/* mov [address], value */
	};
	uint32_t address = address_of(gpa);
	unsigned end = 8 + width;

	if (width == 2)
		code[0] = 0x66;
	if (width == 1)
		code[1] = 0xc6;			/* the same with a byte */
	memcpy(code + 4, &address, sizeof(address));
	memcpy(code + 8, &value, width);
	code[end] = 0xe6;			/* out PORT_DONE, al */
	code[end + 1] = PORT_DONE;
	run_long(cpu, code, end + 2, (struct kvm_regs){0});
	access_.value = 0;
}
/*@ farstring */

/* One string instruction in 64-bit mode: rep stos or rep movs over `count` elements. */
static void run_long_string(unsigned cpu, unsigned char opcode, unsigned width,
			    struct kvm_regs regs)
{
	unsigned char code[] = {
		0x3e, 0xf3, 0x90,	/* 16-bit operands if needed, rep, the instruction */
		0xe6, PORT_DONE,		/* out PORT_DONE, al */
	};

	if (width == 2)
		code[0] = 0x66;			/* 0x3e is a prefix without effect */
	code[2] = width == 1 ? opcode - 1 : opcode;
	run_long(cpu, code, sizeof(code), regs);
	access_.value = 0;
}
/*@ farfills */

static void guest_fills_far(unsigned cpu, uint64_t gpa, unsigned count, unsigned width,
			    uint32_t value)
{
	struct kvm_regs regs = {.rdi = address_of(gpa), .rcx = count, .rax = value};

	run_long_string(cpu, 0xab, width, regs);	/* stos */
}
/*@ farcopies */

/* The guest reads `count` elements, into its own slot. */
static void guest_copies_far(unsigned cpu, uint64_t gpa, unsigned count, unsigned width)
{
	struct kvm_regs regs = {.rsi = address_of(gpa), .rcx = count, .rdi = GUEST_BUFFER};

	run_long_string(cpu, 0xa5, width, regs);	/* movs */
}
/*@ farexecute */

/* The guest executes the code at 0x800 of a page, in 64-bit mode. */
static void guest_executes_far(unsigned cpu, uint64_t gpa)
{
	struct kvm_regs regs = {.rip = address_of(gpa) + 0x800};

	enter_long(vcpu(cpu), &regs);
	run(vcpu(cpu), PORT_EXECUTED);
}
/*@ start */

/* Starts the vCPU at regs.rip in 64-bit mode, with the scenario's page tables. */
static void guest_starts(unsigned cpu, uint64_t tables, struct kvm_regs regs)
{
	own_tables = tables;
	enter_long(vcpu(cpu), &regs);
	store_tables(vcpu(cpu));		/*+ starttables */
	run(vcpu(cpu), PORT_EXECUTED);
	forget_exceptions(vcpu(cpu));
	own_tables = NO_TABLES;
}
/*@ start32bit */

/* The same in 32-bit mode. */
static void guest_starts_with(unsigned cpu, int paging, uint64_t tables, struct kvm_regs regs)
{
	own_paging = paging;
	guest_starts(cpu, tables, regs);
	own_paging = LONG_TABLES;
}
/*@ farinstruction */

/* The guest executes one instruction in 64-bit mode. */
static void guest_runs_far(unsigned cpu, const char *code, unsigned length, struct kvm_regs regs)
{
	register_bits = ~0ull;
	put_instruction(code, length, &regs);
	enter_long(vcpu(cpu), &regs);
	store_tables(vcpu(cpu));		/*+ tables */
	run_instruction(vcpu(cpu));
}
/*@ reach */

/* Ends the program unless guests reach this page. A child tries it: failing may kill it. */
static void require_reach(uint64_t page)
{
	static unsigned char memory[2 * PAGE];
	int status;
	pid_t child = must(fork(), "fork");

	if (!child) {
		uint64_t host = ((uintptr_t)memory + PAGE - 1) & -PAGE;

		memset(memory, 0x5a, sizeof(memory));
		vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
		if (set_region(0, 0, GUEST_GPA, guest.pages * PAGE, (uintptr_t)guest.host)
		    || set_region(1, 0, page, PAGE, host))
			_exit(CANNOT_RUN);
		guest_reads_far(0, page + PAGE - 4, 4);
		_exit(access_.value == 0x5a5a5a5a ? RIGHT : CANNOT_RUN);
	}
	must(waitpid(child, &status, 0), "waitpid");
	if (status)
		leave(CANNOT_RUN, "guests do not reach gpa 0x%llx", (unsigned long long)page);
}
