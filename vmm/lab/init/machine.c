/* The machine: modules and their parameters, the clock, random bits, and a sign of life. */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define MAX_MODULES 100
#define ALIVE_SECONDS 5

static const char *loaded[MAX_MODULES];
static int loaded_count;

/* Starts a process that regularly reports a sign of life; it ends with all others. */
void beat(void)
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
void load(char *value)
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

/* The value is seconds since 1970: a restored machine has the time at which it was saved. */
void set_clock(const char *value)
{
	struct timespec now = {.tv_sec = atoll(value)};

	if (clock_settime(CLOCK_REALTIME, &now))
		report("note cannot set the clock: %s", strerror(errno));
}

/* The value is 256 random bits as text, which machines restored from one state would share. */
void stir(const char *value)
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
void tell_parameter(const char *value)
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

/* Ends what is left, and unloads the modules: a leaked VM would keep KVM in use. */
void clean_up(void)
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
