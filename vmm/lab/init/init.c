/*
 * The first process of a lab's machine: loads modules, enters the host's files, runs one command
 * and reports its status. Linked statically, from all files here.
 *
 * What to do is in /lab.conf: pairs of strings, each ended by a NUL byte, written by
 * vmm/lab/settings.py. More may come over a port of the virtio console: until then none of the
 * host's files is in use, and the machine's state can be saved and restored. A command that is
 * loaded before that waits for the same pairs on its standard input.
 *
 * Reports go to the kernel's log, in order with the kernel's own messages:
 *
 *     memslot-lab NONCE booted          the kernel has: its complaints count from now on
 *     memslot-lab NONCE waiting         for orders
 *     memslot-lab NONCE alive           every few seconds, as long as the kernel runs processes
 *     memslot-lab NONCE ready           the command is about to run
 *     memslot-lab NONCE parameter M.P=V the value that a module's parameter has
 *     memslot-lab NONCE fatal WHY       the command could not be run
 *     memslot-lab NONCE status N        the command has ended
 *     memslot-lab NONCE over            nothing is left of it, and KVM's modules are unloaded
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_WORDS 1000
#define MAX_TEXT (256 * 1024)

static char *next(char *at)
{
	return at + strlen(at) + 1;
}

/* Settings that take effect later. */
static struct {
	char *words[MAX_WORDS + 1], *environment[MAX_WORDS + 1], *parameters[MAX_WORDS];
	char *preloaded[MAX_WORDS + 1];
	int word_count, variable_count, parameter_count, preloaded_count, needs_kvm, has_share;
	const char *folder, *orders;
} job;

static void put_word(char **words, int *count, char *value)
{
	if (*count == MAX_WORDS)
		fatal("too many words in /lab.conf", value);
	words[(*count)++] = value;
}

static void follow(char *text, ssize_t length)
{
	char *value, *following;

	for (char *key = text; key < text + length; key = following) {
		value = next(key);
		following = next(value);
		if (!strcmp(key, "nonce")) {
			nonce = value;
			put("/proc/sys/kernel/panic_on_warn", "1");
			report("booted");
			beat();
		} else if (!strcmp(key, "module"))
			load(value);
		else if (!strcmp(key, "clock"))
			set_clock(value);
		else if (!strcmp(key, "random"))
			stir(value);
		else if (!strcmp(key, "root"))
			root = value;
		else if (!strcmp(key, "readonly"))
			job.has_share = 1, share(value, 1);
		else if (!strcmp(key, "writable"))
			share(value, 0);
		else if (!strcmp(key, "keep"))
			keep(value, 0);
		else if (!strcmp(key, "again"))
			keep(value, 1);
		else if (!strcmp(key, "folder"))
			job.folder = value;
		else if (!strcmp(key, "out"))
			port(value, 1);
		else if (!strcmp(key, "err"))
			port(value, 2);
		else if (!strcmp(key, "orders"))
			job.orders = value;
		else if (!strcmp(key, "kvm"))
			job.needs_kvm = 1;
		else if (!strcmp(key, "parameter"))
			put_word(job.parameters, &job.parameter_count, value);
		else if (!strcmp(key, "variable"))
			put_word(job.environment, &job.variable_count, value);
		else if (!strcmp(key, "preloaded"))
			put_word(job.preloaded, &job.preloaded_count, value);
		else if (!strcmp(key, "word"))
			put_word(job.words, &job.word_count, value);
		else if (strcmp(key, "end"))
			fatal("cannot understand /lab.conf", key);
	}
}

/* Reads pairs from a port of the virtio console, up to "end" with an empty value. */
static ssize_t ordered(const char *path, char *text)
{
	static const char last[] = "end\0";
	ssize_t length = 0, count;
	int fd = port(path, -1);

	while (length < (ssize_t)sizeof(last) ||
	       memcmp(text + length - sizeof(last), last, sizeof(last))) {
		count = read(fd, text + length, MAX_TEXT - length);
		if (count < 0 || length == MAX_TEXT)
			fatal("cannot read what to do",
			      count < 0 ? strerror(errno) : "it is too long");
		if (count == 0)
			usleep(10000); /* The other end is not open yet. */
		length += count;
	}
	close(fd);
	return length;
}

/*
 * Loads a program that takes its orders from a pipe, if there is one, and follows the orders that
 * come over the console, which text gets. Returns the end of the pipe, or -1.
 */
static int take_orders(char *text, ssize_t *length, pid_t *child)
{
	int orders = -1;

	if (job.preloaded_count)
		orders = preload(job.preloaded, job.environment, child);
	if (job.preloaded_count && orders < 0)
		report("note the command could not be loaded before the machine was saved");
	memset(job.environment, 0, sizeof(job.environment));
	job.variable_count = 0;
	report("waiting");
	*length = ordered(job.orders, text);
	follow(text, *length);
	return orders;
}

int main(void)
{
	static char first[MAX_TEXT], then[MAX_TEXT];
	int orders = -1, fd = open("/lab.conf", O_RDONLY | O_CLOEXEC);
	ssize_t length;
	pid_t child = 0;

	signal(SIGPIPE, SIG_IGN);
	enter_kernels_files();
	length = read(fd, first, sizeof(first) - 1);
	if (length <= 0)
		fatal("cannot read /lab.conf", strerror(errno));
	close(0);
	open("/dev/null", O_RDONLY);
	job.folder = "/";
	follow(first, length);
	if (job.orders)
		orders = take_orders(then, &length, &child);
	if (job.has_share)
		enter_hosts_files();
	/* With fault injection, allocations that may sleep shall fail, too. */
	put("/sys/kernel/debug/failslab/ignore-gfp-wait", "N");
	for (int i = 0; i < job.parameter_count; i++)
		tell_parameter(job.parameters[i]);
	if (job.needs_kvm && access("/dev/kvm", F_OK))
		fatal("there is no /dev/kvm", "is KVM built in or among the modules?");
	report("ready");
	if (orders >= 0)
		tell(orders, then, length);
	else
		child = fork();
	if (child < 0)
		fatal("cannot fork", strerror(errno));
	if (child == 0) {
		signal(SIGPIPE, SIG_DFL);
		become(job.words, job.environment, job.folder);
	}
	report("status %d", status_of(child));
	clean_up();
	report("over");
	stop();
}
