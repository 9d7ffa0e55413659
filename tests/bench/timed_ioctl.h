/*
 * Put before an emitted program (cc -include): says on standard error when it began, and how long
 * its ioctls took.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <time.h>

static uint64_t begun_ns, all_ns;

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static void __attribute__((constructor)) begin(void)
{
	begun_ns = now_ns();
}

static void __attribute__((destructor)) tell(void)
{
	fprintf(stderr, "%llu %llu\n", (unsigned long long)begun_ns, (unsigned long long)all_ns);
}

static int timed_ioctl(int fd, unsigned long request, ...)
{
	uint64_t begun;
	va_list arguments;
	void *argument;
	int result, error;

	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	begun = now_ns();
	result = ioctl(fd, request, argument);
	error = errno;
	all_ns += now_ns() - begun;
	errno = error;
	return result;
}

#define ioctl timed_ioctl
