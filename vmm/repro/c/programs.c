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
