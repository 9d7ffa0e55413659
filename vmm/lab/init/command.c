/* The command: where its output goes, how it is started, and how it ends. */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define LOADED_FD 3

/*
 * A port of the virtio console, which appears some time after its module, or a serial line, as a
 * descriptor (-1: any).
 */
int port(const char *path, int descriptor)
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

void become(char **words, char **environment, const char *folder)
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
int preload(char **words, char **environment, pid_t *child)
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

void tell(int fd, const char *text, size_t length)
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

int status_of(pid_t child)
{
	int status = 0;
	pid_t ended;

	do {
		ended = waitpid(-1, &status, 0);
	} while (ended != child && (ended > 0 || errno == EINTR));
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
