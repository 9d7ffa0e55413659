/* What stays in the kernel's memory, and in this process. */
#include "witness.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

long unreclaimable_kib(void)
{
    char line[128];
    long kib = 0;
    FILE *refresh = fopen("/proc/sys/vm/stat_refresh", "r"), *info = fopen("/proc/meminfo", "r");

    need(info != NULL, "/proc/meminfo");
    if (refresh) {
        (void)!fgets(line, sizeof(line), refresh);
        fclose(refresh);
    }
    while (fgets(line, sizeof(line), info))
        sscanf(line, "SUnreclaim: %ld", &kib);
    fclose(info);
    return kib;
}

static int mappings(void)
{
    int count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");

    need(maps != NULL, "/proc/self/maps");
    for (int byte = fgetc(maps); byte != EOF; byte = fgetc(maps))
        count += byte == '\n';
    fclose(maps);
    return count;
}

static int open_files(void)
{
    int count = 0;

    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* Others allocate and free, too. */
void show_growth(long before_kib, long at_least_kib)
{
    bool grown = unreclaimable_kib() - before_kib > at_least_kib;

    printf(" memory %s", grown ? "used up" : "as before");
}

static void make_vms(int count)
{
    long before_kib = unreclaimable_kib();
    int before = open_files();

    for (int i = 0; i < count; i++)
        close(ioctl(kvm, KVM_CREATE_VM, 0));
    printf(" files %d", open_files() - before);
    show_growth(before_kib, 3000); /* A VM that stays takes some 40 KiB. */
}

static void shuttle(int count)
{
    long before_kib = unreclaimable_kib();
    int mapped = mappings();
    int errors = set_region(1, 0x100000, PAGE, (uint64_t)pool, 0) != 0;

    for (int i = 1; i <= count; i++)
        errors += set_region(1, i % 2 ? 0x200000 : 0x100000, PAGE, (uint64_t)pool, 0) != 0;
    printf(" errors %d mappings %d", errors, mappings() - mapped);
    show_growth(before_kib, 3000);
}

int play_growth(char words[][32], int count)
{
    if (count == 2 && !strcmp(words[0], "vms"))
        make_vms(atoi(words[1]));
    else if (count == 2 && !strcmp(words[0], "shuttle"))
        shuttle(atoi(words[1]));
    else
        return 0;
    return 1;
}
