/*
 * The first process of a lab's machine: loads modules, enters the host's files, runs one command
 * and reports its status. Linked statically.
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
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define MAX_WORDS 1000
#define MAX_MODULES 100
#define MAX_TEXT (256 * 1024)
#define ALIVE_SECONDS 5
#define LOADED_FD 3

static const char *nonce = "none";
static const char *root = "/root";
static const char *loaded[MAX_MODULES];
static int loaded_count;
static int kmsg = -1;

static void report(const char *format, ...)
{
	char line[900];
	int length;
	va_list arguments;

	length = snprintf(line, sizeof(line), "<1>memslot-lab %s ", nonce);
	va_start(arguments, format);
	vsnprintf(line + length, sizeof(line) - length, format, arguments);
	va_end(arguments);
	if (kmsg < 0 || write(kmsg, line, strlen(line)) < 0)
		dprintf(1, "%s\n", line + 3);
}

static void stop(void)
{
	sync();
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

static void fatal(const char *what, const char *why)
{
	report("fatal %s: %s", what, why);
	stop();
}

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (write(fd, text, strlen(text)) < 0)
		report("note cannot write %s: %s", path, strerror(errno));
	close(fd);
}

static void mounted(const char *from, const char *to, const char *type, unsigned long flags,
		    const char *options)
{
	char what[600];

	if (mount(from, to, type, flags, options) == 0)
		return;
	snprintf(what, sizeof(what), "cannot mount %s (%s) at %s", from, type ? type : "bind", to);
	if (errno == ENODEV)
		fatal(what, "the kernel has no such file system");
	if (errno == ENOENT && type && !strcmp(type, "9p"))
		fatal(what, "no such share (or the kernel has no virtio for it)");
	fatal(what, strerror(errno));
}

static void enter_kernels_files(void)
{
	mkdir("/dev", 0755);
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mounted("dev", "/dev", "devtmpfs", 0, NULL);
	kmsg = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	mounted("proc", "/proc", "proc", 0, NULL);
	mounted("sys", "/sys", "sysfs", 0, NULL);
	mount("debug", "/sys/kernel/debug", "debugfs", 0, NULL);
	mkdir("/dev/shm", 01777);
	mount("shm", "/dev/shm", "tmpfs", 0, "mode=1777");
	mkdir("/dev/pts", 0755);
	mount("pts", "/dev/pts", "devpts", 0, NULL);
}

/* Starts a process that regularly reports a sign of life; it ends with all others. */
static void beat(void)
{
	static pid_t beating;

	if (beating > 0) {
		kill(beating, SIGKILL);
		waitpid(beating, NULL, 0);
	}
	beating = fork();
	if (beating)
		return;
	for (int fd = 0; fd < 100; fd++) /* Or readers of pipes would wait for it. */
		if (fd != kmsg)
			close(fd);
	for (;;) {
		sleep(ALIVE_SECONDS);
		report("alive");
	}
}

/* The value is the module's name and, after spaces, its parameters. */
static void load(char *value)
{
	char path[300], what[400];
	char *options = strchr(value, ' ');
	int fd;

	if (options)
		*options++ = 0;
	snprintf(path, sizeof(path), "/modules/%s.ko", value);
	snprintf(what, sizeof(what), "module %s does not load", value);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		fatal(what, strerror(errno));
	if (syscall(SYS_finit_module, fd, options ? options : "", 0)) {
		if (errno == EEXIST) {
			close(fd);
			return;
		}
		if (errno == ENOEXEC)
			fatal(what, "it is damaged, or of another kernel");
		if (errno == EOPNOTSUPP)
			fatal(what, "the processor cannot virtualise what it needs");
		fatal(what, strerror(errno));
	}
	close(fd);
	unlink(path);
	if (loaded_count < MAX_MODULES)
		loaded[loaded_count++] = value;
}

/*
 * The value is "TAG PATH": a folder of the host, at the same path. Writes are not cached: a cache
 * would lose them in a panic, and would hide that the host's disk is full.
 */
static void share(char *value, int readonly)
{
	char path[4200];
	char *at = strchr(value, ' ');

	*at++ = 0;
	snprintf(path, sizeof(path), "%s%s", root, strcmp(at, "/") ? at : "");
	mounted(value, path, "9p", readonly ? MS_RDONLY : 0,
		readonly ? "trans=virtio,version=9p2000.L,msize=512000,cache=loose"
			 : "trans=virtio,version=9p2000.L,msize=512000,cache=none");
}

/* Keeps a folder before something is mounted over it; a second call restores it. */
static void keep(const char *path, int again)
{
	static int number;
	static int number_again;
	char kept[100], at[4200];

	snprintf(kept, sizeof(kept), "/kept%d", again ? number_again++ : number++);
	snprintf(at, sizeof(at), "%s%s", root, path);
	mkdir(kept, 0755);
	if (again)
		mounted(kept, at, NULL, MS_BIND, NULL);
	else
		mounted(at, kept, NULL, MS_BIND, NULL);
}

static void enter_hosts_files(void)
{
	const char *const own[] = {"/dev", "/proc", "/sys"};
	char at[100];

	for (unsigned i = 0; i < sizeof(own) / sizeof(*own); i++) {
		snprintf(at, sizeof(at), "%s%s", root, own[i]);
		mounted(own[i], at, NULL, MS_MOVE, NULL);
	}
	if (chdir(root) || chroot("."))
		fatal("cannot enter the host's files", strerror(errno));
}

/* The value is seconds since 1970: a restored machine has the time at which it was saved. */
static void set_clock(const char *value)
{
	struct timespec now = {.tv_sec = atoll(value)};

	if (clock_settime(CLOCK_REALTIME, &now))
		report("note cannot set the clock: %s", strerror(errno));
}

/* The value is 256 random bits as text, which machines restored from one state would share. */
static void stir(const char *value)
{
	struct {
		int bits, size;
		char data[64];
	} pool = {.bits = 256, .size = sizeof(pool.data)};
	int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);

	strncpy(pool.data, value, sizeof(pool.data));
	if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool))
		report("note cannot add random bits: %s", strerror(errno));
	else
		ioctl(fd, RNDRESEEDCRNG);
	close(fd);
}

/* The value is "MODULE.PARAMETER": reports its value, or "-" if there is none. */
static void tell_parameter(const char *value)
{
	char path[300], now[100] = "-";
	const char *dot = strchr(value, '.');
	int fd;
	ssize_t length;

	snprintf(path, sizeof(path), "/sys/module/%.*s/parameters/%s", (int)(dot - value), value,
		 dot + 1);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		length = read(fd, now, sizeof(now) - 1);
		now[length < 0 ? 0 : length] = 0;
		now[strcspn(now, "\n")] = 0;
		close(fd);
	}
	report("parameter %s=%s", value, now);
}

/*
 * A port of the virtio console, which appears some time after its module, or a serial line, as a
 * descriptor (-1: any).
 */
static int port(const char *path, int descriptor)
{
	struct termios line;
	int fd = -1;

	for (int tries = 0; tries < 500 && fd < 0; tries++) {
		fd = open(path, O_RDWR | O_NOCTTY);
		if (fd < 0)
			usleep(10000);
	}
	if (fd < 0)
		fatal("no console for the command", "the kernel has no driver for it");
	if (!tcgetattr(fd, &line)) {
		cfmakeraw(&line);
		cfsetspeed(&line, B115200);
		tcsetattr(fd, TCSANOW, &line);
	}
	if (descriptor >= 0 && fd != descriptor) {
		dup2(fd, descriptor);
		close(fd);
		return descriptor;
	}
	return fd;
}

static void become(char **words, char **environment, const char *folder)
{
	setsid();
	if (chdir(folder)) {
		dprintf(2, "cannot enter %s: %s\n", folder, strerror(errno));
		_exit(126);
	}
	execve(words[0], words, environment);
	dprintf(2, "cannot run %s: %s\n", words[0], strerror(errno));
	_exit(127);
}

/*
 * Starts a program that loads what takes long, writes a byte to LOADED_FD, and reads its orders
 * from standard input. Returns the end of the pipe to write them to, or -1 if it failed before.
 */
static int preload(char **words, char **environment, pid_t *child)
{
	int orders[2], loaded_ends[2];
	ssize_t heard;
	char byte;

	if (pipe(orders) || pipe(loaded_ends))
		fatal("cannot make pipes", strerror(errno));
	*child = fork();
	if (*child < 0)
		fatal("cannot fork", strerror(errno));
	if (*child == 0) {
		close(orders[1]);
		close(loaded_ends[0]);
		dup2(orders[0], 0);
		dup2(loaded_ends[1], LOADED_FD);
		become(words, environment, "/");
	}
	close(orders[0]);
	close(loaded_ends[1]);
	heard = read(loaded_ends[0], &byte, 1);
	close(loaded_ends[0]);
	if (heard == 1) {
		fcntl(orders[1], F_SETFD, FD_CLOEXEC);
		return orders[1];
	}
	close(orders[1]);
	waitpid(*child, NULL, 0);
	return -1;
}

static void tell(int fd, const char *text, size_t length)
{
	while (length > 0) {
		ssize_t count = write(fd, text, length);

		if (count <= 0)
			return; /* It has ended, and its status will tell. */
		text += count;
		length -= count;
	}
	close(fd);
}

static int status_of(pid_t child)
{
	int status = 0;
	pid_t ended;

	do {
		ended = waitpid(-1, &status, 0);
	} while (ended != child && (ended > 0 || errno == EINTR));
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* Ends what is left, and unloads the modules: a leaked VM would keep KVM in use. */
static void clean_up(void)
{
	tcdrain(1);
	tcdrain(2);
	kill(-1, SIGKILL);
	while (waitpid(-1, NULL, 0) > 0)
		;
	for (int i = loaded_count - 1; i >= 0; i--)
		if (!strncmp(loaded[i], "kvm", 3) &&
		    syscall(SYS_delete_module, loaded[i], O_NONBLOCK) && errno != ENOSYS)
			report("note module %s stays: %s", loaded[i], strerror(errno));
}

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
	if (job.orders) {
		if (job.preloaded_count)
			orders = preload(job.preloaded, job.environment, &child);
		if (job.preloaded_count && orders < 0)
			report("note the command could not be loaded before the machine was saved");
		memset(job.environment, 0, sizeof(job.environment));
		job.variable_count = 0;
		report("waiting");
		length = ordered(job.orders, then);
		follow(then, length);
	}
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
