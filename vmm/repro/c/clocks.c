/*@ setclock */

#include <asm/kvm_para.h>

/* KVM_SET_MSRS: how many were set, or -1. */
static int set_msr(unsigned cpu, uint32_t index, uint64_t data)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} msrs = {.head = {.nmsrs = 1}, .entry = {.index = index, .data = data}};

	return ioctl(vcpu(cpu)->fd, KVM_SET_MSRS, &msrs);
}

static __attribute__((unused)) void expect_msrs(int got, int expected)
{
	if (got != expected)
		leave(WRONG, "%d MSRs were set, expected %d", got, expected);
}
/*@ smbase */

/* Where a vCPU begins, and saves its state, in system management mode. */
static void set_smbase(unsigned cpu, uint32_t smbase)
{
	if (set_msr(cpu, 0x9e /* MSR_IA32_SMBASE */, smbase) != 1)
		leave(CANNOT_RUN, "the kernel does not set SMBASE");
}
/*@ thisnumber */

/* One MSR set, or none: both are right, but the later steps assume the expected one. */
static void expect_this_number(int got, int expected)
{
	if (got == !expected)
		leave(CANNOT_RUN, "this kernel sets %d MSRs here, which is right, too", got);
	expect_msrs(got, expected);
}
/*@ pauseclock */

/* KVM_KVMCLOCK_CTRL; 0 or an errno. */
static int pause_clock(unsigned cpu)
{
	return ioctl(vcpu(cpu)->fd, KVM_KVMCLOCK_CTRL, 0) ? errno : SUCCESS;
}
/*@ due */

/* KVM must have written a clock since the last comparison: its version is new and even. */
static void expect_clock(struct mapping *mapping, uint64_t offset, unsigned version_at,
			 bool stopped)
{
	const unsigned char *host = mapping->host + offset, *before = mapping->expected + offset;

	if (!memcmp(host + version_at, before + version_at, 4))
		leave(WRONG, "KVM has not written its clock to %s+0x%llx", mapping->name,
		      (unsigned long long)offset);
	if (host[version_at] % 2)
		leave(WRONG, "the clock at %s+0x%llx has an odd version", mapping->name,
		      (unsigned long long)offset);
	if (stopped && !(host[29] & 2))
		leave(WRONG, "the clock at %s+0x%llx does not report the pause", mapping->name,
		      (unsigned long long)offset);
}
/*@ room */

/* KVM may have written these bytes: any content is right. */
static void may_change(struct mapping *mapping, uint64_t offset, uint64_t size)
{
	memcpy(mapping->expected + offset, mapping->host + offset, size);
}
/*@ paravirtual */

#include <asm/kvm_para.h>

/* Ends the program unless KVM's CPUID offers guests this feature. */
static void require_paravirtual(int feature, const char *name)
{
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[512];
	} offered;

	offered.head.nent = 512;
	must(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &offered), "KVM_GET_SUPPORTED_CPUID");
	for (unsigned i = 0; i < offered.head.nent; i++)
		if (offered.entries[i].function == 0x40000001
		    && offered.entries[i].eax >> feature & 1)
			return;
	leave(CANNOT_RUN, "%s is missing", name);
}
