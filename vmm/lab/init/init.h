/* Shared by the parts of the first process. */
#ifndef INIT_H
#define INIT_H

#define _GNU_SOURCE

#include <sys/types.h>

/* reports.c: to the kernel's log; fatal() and stop() do not return. */
extern const char *nonce;
extern int kmsg;
void report(const char *format, ...);
void stop(void);
void fatal(const char *what, const char *why);

/* files.c */
extern const char *root;
void put(const char *path, const char *text);
void enter_kernels_files(void);
void share(char *value, int readonly);
void keep(const char *path, int again);
void enter_hosts_files(void);

/* machine.c */
void beat(void);
void load(char *value);
void set_clock(const char *value);
void stir(const char *value);
void tell_parameter(const char *value);
void clean_up(void);

/* command.c */
int port(const char *path, int descriptor);
void become(char **words, char **environment, const char *folder);
int preload(char **words, char **environment, pid_t *child);
void tell(int fd, const char *text, size_t length);
int status_of(pid_t child);

#endif
