/*@ base */
#define _GNU_SOURCE
#include <dirent.h>	/*+ traces */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>	/*+ threads */
#include <sched.h>	/*+ race */
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>	/*+ events */
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>	/*+ growth */
#include <unistd.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#define PAGE 4096ull
#define SUCCESS 0

enum { RIGHT = 0, WRONG = 1, NOT_KNOWN = 3, CANNOT_RUN = 4 };

static int kvm, vm = -1;	/* /dev/kvm, and the VM made from it */
static int step;		/* the number of the current step, as in its comment */
static bool is_quiet;		/* an earlier round has printed the error */	/*+ rounds */

static __attribute__((noreturn, format(printf, 2, 3))) void leave(int status, const char *text, ...)
{
	va_list arguments;

	if (is_quiet && status == WRONG)	/*+ rounds */
		_exit(status);			/*+ rounds */
	printf("%s at step %d: ", status == WRONG ? "WRONG" : "cannot run", step);
	va_start(arguments, text);
	vprintf(text, arguments);
	va_end(arguments);
	putchar('\n');
	exit(status);
}

/* For calls that the host must grant: their failure says nothing about KVM. */
static int must(int result, const char *what)
{
	if (result < 0)
		leave(CANNOT_RUN, "%s: %s", what, strerror(errno));
	return result;
}

static void expect(int got, int expected)
{
	if (got != expected)
		leave(WRONG, "expected %s, got %s", expected ? strerror(expected) : "success",
		      got ? strerror(got) : "success");
}
/*@ either */

/* Kernels differ here, and both answers are right. */
static void expect_either(int got, int first, int second)
{
	if (got != second)
		expect(got, first);
}
/*@ thisone */

/* Both answers are right, but the later steps assume the expected one. */
static void expect_this_one(int got, int expected, int other)
{
	if (got == other)
		leave(CANNOT_RUN, "this kernel gives the other right answer, %s",
		      other ? strerror(other) : "success");
	expect(got, expected);
}
/*@ require */

static void require(int capability, int at_least, const char *name)
{
	if (ioctl(kvm, KVM_CHECK_EXTENSION, capability) < at_least)
		leave(CANNOT_RUN, "%s is missing", name);
}
/*@ bits */

static void require_bits(int capability, int bits, const char *name)
{
	int found = ioctl(kvm, KVM_CHECK_EXTENSION, capability);

	if (found < 0 || (found & bits) != bits)
		leave(CANNOT_RUN, "%s is missing", name);
}
/*@ exactly */

/* The expectations below hold only for a kernel with exactly this value. */
static void require_exactly(int capability, int value, const char *name)
{
	int found = ioctl(kvm, KVM_CHECK_EXTENSION, capability);

	if ((found > 0 ? found : 1) != value)
		leave(CANNOT_RUN, "%s is %d, and this program is for %d", name, found, value);
}
