/* Reports to the kernel's log, and the end of the machine. */
#include "init.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <unistd.h>

const char *nonce = "none";
int kmsg = -1;

void report(const char *format, ...)
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

void stop(void)
{
	sync();
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

void fatal(const char *what, const char *why)
{
	report("fatal %s: %s", what, why);
	stop();
}
