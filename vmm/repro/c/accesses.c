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
