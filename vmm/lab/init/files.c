/* File systems: the kernel's own, and the host's. */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

const char *root = "/root";

void put(const char *path, const char *text)
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

void enter_kernels_files(void)
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

/*
 * The value is "TAG PATH": a folder of the host, at the same path. Writes are not cached: a cache
 * would lose them in a panic, and would hide that the host's disk is full.
 */
void share(char *value, int readonly)
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
void keep(const char *path, int again)
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

void enter_hosts_files(void)
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
