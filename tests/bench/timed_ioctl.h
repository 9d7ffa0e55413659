/* Put before an emitted program (cc -include): says on standard error how long its ioctls took. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <time.h>

static uint64_t all_ns, run_ns, calls;

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static void __attribute__((destructor)) tell(void)
{
	fprintf(stderr, "%llu %llu %llu\n", (unsigned long long)all_ns,
		(unsigned long long)run_ns, (unsigned long long)calls);
}

static int timed_ioctl(int fd, unsigned long request, ...)
{
	uint64_t begun, took;
	va_list arguments;
	void *argument;
	int result, error;

	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	begun = now_ns();
	result = ioctl(fd, request, argument);
	error = errno;
	took = now_ns() - begun;
	all_ns += took;
	calls++;
	/* KVM_SET_USER_MEMORY_REGION, KVM_RUN and the dirty log: what a scenario asks for. */
	if (request == 0x4020ae46 || request == 0xae80 || request == 0x4010ae42)
		run_ns += took;
	errno = error;
	return result;
}

#define ioctl timed_ioctl
