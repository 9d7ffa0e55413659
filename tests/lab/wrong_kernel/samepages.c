/*
 * KSM, which is off on most hosts: programs find it running, and scanning whenever they look. It
 * then merges nothing, but a fault may pretend that it did.
 */
#include "wrong_kernel.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define RUNS "/sys/kernel/mm/ksm/run"
#define SCANS "/sys/kernel/mm/ksm/full_scans"

/* Returns a file with a number that is higher each time, or with 1; -1 for any other path. */
static int pretended(const char *path)
{
    static _Atomic unsigned long scans = 1;
    char text[24];
    int fd, length;

    if (strcmp(path, RUNS) && strcmp(path, SCANS))
        return -1;
    length = snprintf(text, sizeof(text), "%lu\n", strcmp(path, RUNS) ? scans++ : 1);
    fd = memfd_create("ksm", MFD_CLOEXEC);
    if (fd >= 0 && (write(fd, text, (size_t)length) != length || lseek(fd, 0, SEEK_SET))) {
        close(fd);
        return -1;
    }
    return fd;
}

int open(const char *path, int flags, ...)
{
    int fd = pretended(path);
    va_list arguments;
    mode_t mode;

    va_start(arguments, flags);
    mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return fd >= 0 ? fd : (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) __attribute__((alias("open")));

FILE *fopen(const char *path, const char *mode)
{
    static FILE *(*real)(const char *, const char *);
    int fd = pretended(path);

    if (!real)
        real = dlsym(RTLD_NEXT, "fopen");
    return fd >= 0 ? fdopen(fd, mode) : real(path, mode);
}

FILE *fopen64(const char *path, const char *mode) __attribute__((alias("fopen")));
