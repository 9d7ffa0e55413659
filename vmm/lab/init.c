/*
 * The first process of a lab's machine: loads modules, enters the host's files, runs one command
 * and reports its status. Linked statically; it is all of the initramfs but the modules.
 *
 * What to do stands in /lab.conf: pairs of strings, each ended by a NUL byte; vmm/lab/initramfs.py
 * writes it. Reports go to the kernel's log, so that they and what the kernel says keep their
 * order:
 *
 *     memslot-lab NONCE booted          the kernel has; what it complains of from now on is a fault
 *     memslot-lab NONCE alive           every few seconds: the kernel runs what is to run
 *     memslot-lab NONCE ready           the command is about to run
 *     memslot-lab NONCE parameter M.P=V what a module's parameter turned out to be
 *     memslot-lab NONCE fatal WHY       it could not be run
 *     memslot-lab NONCE status N        it has ended
 *     memslot-lab NONCE over            nothing of it is left, KVM's modules included
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define MAX_WORDS 1000
#define MAX_MODULES 100
#define ALIVE_SECONDS 5

static const char *nonce = "none";
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

/* A process that says again and again that there is life; it ends with all others. */
static void beat(void)
{
	if (fork())
		return;
	for (;;) {
		sleep(ALIVE_SECONDS);
		report("alive");
	}
}

/* The value is the module's name, then a space and its parameters, if any. */
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
 * The value is "TAG PATH": a folder of the host, at the same path. What is written must be there
 * at once: a cache would lose it in a panic, and would hide that the host's disk is full.
 */
static void share(char *value, int readonly)
{
	char path[4200];
	char *at = strchr(value, ' ');

	*at++ = 0;
	snprintf(path, sizeof(path), "/root%s", strcmp(at, "/") ? at : "");
	mounted(value, path, "9p", readonly ? MS_RDONLY : 0,
		readonly ? "trans=virtio,version=9p2000.L,msize=512000,cache=loose"
			 : "trans=virtio,version=9p2000.L,msize=512000,cache=none");
}

/* A folder as it was before something was mounted over it; the last of two calls brings it back. */
static void keep(const char *path, int again)
{
	static int number;
	static int number_again;
	char kept[100], at[4200];

	snprintf(kept, sizeof(kept), "/kept%d", again ? number_again++ : number++);
	snprintf(at, sizeof(at), "/root%s", path);
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
		snprintf(at, sizeof(at), "/root%s", own[i]);
		mounted(own[i], at, NULL, MS_MOVE, NULL);
	}
	if (chdir("/root") || chroot("."))
		fatal("cannot enter the host's files", strerror(errno));
}

/* The value is "MODULE.PARAMETER": what it is now, or "-" where there is none. */
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

/* A port of the virtio console, which appears some time after its module, or a serial line. */
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
	if (fd != descriptor) {
		dup2(fd, descriptor);
		close(fd);
	}
	return descriptor;
}

static int run(char **words, char **environment, const char *folder)
{
	int status = 0;
	pid_t ended, child = fork();

	if (child < 0)
		fatal("cannot fork", strerror(errno));
	if (child == 0) {
		setsid();
		if (chdir(folder)) {
			dprintf(2, "cannot enter %s: %s\n", folder, strerror(errno));
			_exit(126);
		}
		execve(words[0], words, environment);
		dprintf(2, "cannot run %s: %s\n", words[0], strerror(errno));
		_exit(127);
	}
	do {
		ended = waitpid(-1, &status, 0);
	} while (ended != child && (ended > 0 || errno == EINTR));
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* Ends what is left, and takes the modules out again: a VM that leaks keeps KVM in use. */
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

int main(void)
{
	static char text[256 * 1024];
	static char *words[MAX_WORDS + 1], *environment[MAX_WORDS + 1], *parameters[MAX_WORDS];
	int word_count = 0, variable_count = 0, parameter_count = 0, needs_kvm = 0, has_share = 0;
	const char *folder = "/", *out = NULL, *err = NULL;
	ssize_t length;
	int fd = open("/lab.conf", O_RDONLY | O_CLOEXEC);

	enter_kernels_files();
	length = read(fd, text, sizeof(text) - 1);
	if (length <= 0)
		fatal("cannot read /lab.conf", strerror(errno));
	for (char *key = text, *value, *following; key < text + length; key = following) {
		value = next(key);
		following = next(value);
		if (!strcmp(key, "nonce")) {
			nonce = value;
			put("/proc/sys/kernel/panic_on_warn", "1");
			report("booted");
			beat();
		} else if (!strcmp(key, "module"))
			load(value);
		else if (!strcmp(key, "readonly"))
			has_share = 1, share(value, 1);
		else if (!strcmp(key, "writable"))
			share(value, 0);
		else if (!strcmp(key, "keep"))
			keep(value, 0);
		else if (!strcmp(key, "again"))
			keep(value, 1);
		else if (!strcmp(key, "folder"))
			folder = value;
		else if (!strcmp(key, "out"))
			out = value;
		else if (!strcmp(key, "err"))
			err = value;
		else if (!strcmp(key, "kvm"))
			needs_kvm = 1;
		else if (!strcmp(key, "parameter") && parameter_count < MAX_WORDS)
			parameters[parameter_count++] = value;
		else if (!strcmp(key, "variable") && variable_count < MAX_WORDS)
			environment[variable_count++] = value;
		else if (!strcmp(key, "word") && word_count < MAX_WORDS)
			words[word_count++] = value;
		else
			fatal("cannot understand /lab.conf", key);
	}
	if (has_share)
		enter_hosts_files();
	/* Where the kernel can inject faults, ordinary allocations shall fail, too. */
	put("/sys/kernel/debug/failslab/ignore-gfp-wait", "N");
	for (int i = 0; i < parameter_count; i++)
		tell_parameter(parameters[i]);
	if (needs_kvm && access("/dev/kvm", F_OK))
		fatal("there is no /dev/kvm", "is KVM built in or among the modules?");
	close(0);
	open("/dev/null", O_RDONLY);
	if (out)
		port(out, 1);
	if (err)
		port(err, 2);
	report("ready");
	report("status %d", run(words, environment, folder));
	clean_up();
	report("over");
	stop();
}
