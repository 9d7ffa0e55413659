/* Dirty logs and dirty rings. */
#include "witness.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#define LOG_WORDS 64
#define UNWRITTEN 0xf1846b92c31e5da7ull /* a word of a bitmap that the kernel has not written */

static uint64_t harvested;

static void show_log(uint32_t id)
{
    uint64_t bits[LOG_WORDS];
    struct kvm_dirty_log log = {.slot = id, .dirty_bitmap = bits};
    int error, words = LOG_WORDS;

    for (int word = 0; word < LOG_WORDS; word++)
        bits[word] = UNWRITTEN;
    error = ioctl(vm, KVM_GET_DIRTY_LOG, &log) ? errno : 0;
    show_error(error);
    while (words && bits[words - 1] == UNWRITTEN)
        words--;
    printf(" words %d:", words);
    for (int bit = 0; bit < words * 64; bit++)
        if (bits[bit / 64] >> (bit % 64) & 1)
            printf(" %x", bit);
}

static void clear_log(uint32_t id, uint64_t first, uint32_t count, int from_hole)
{
    uint64_t bits[LOG_WORDS];
    struct kvm_clear_dirty_log log = {
        .slot = id, .num_pages = count, .first_page = first,
        .dirty_bitmap = from_hole ? (void *)hole : bits,
    };

    memset(bits, 0xff, sizeof(bits));
    show_error(ioctl(vm, KVM_CLEAR_DIRTY_LOG, &log) ? errno : 0);
}

static void enable_cap(const char *name, uint64_t argument, uint32_t flags)
{
    int is_ring = !strcmp(name, "ring");
    struct kvm_enable_cap cap = {
        .cap = is_ring ? KVM_CAP_DIRTY_LOG_RING : KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
        .flags = flags,
        .args = {argument},
    };
    int error = ioctl(vm, KVM_ENABLE_CAP, &cap) ? errno : 0;

    show_error(error);
    if (is_ring && !error && vcpu < 0) {
        ring_bytes = argument;
        harvested = 0;
    }
}

static void harvest_ring(void)
{
    uint64_t count = ring_bytes / sizeof(*ring);

    need_vcpu();
    for (; ring; harvested++) {
        struct kvm_dirty_gfn *entry = &ring[harvested % count];
        if (entry->flags != KVM_DIRTY_GFN_F_DIRTY)
            break;
        printf(" %u:%llx", entry->slot, (unsigned long long)entry->offset);
        entry->flags = KVM_DIRTY_GFN_F_RESET;
    }
}

static void reset_rings(void)
{
    int count = ioctl(vm, KVM_RESET_DIRTY_RINGS, 0);

    if (count < 0)
        show_error(errno);
    else
        printf(" %d", count);
}

int play_dirty(char words[][32], int count)
{
    if (count == 2 && !strcmp(words[0], "log"))
        show_log(id_of(words[1]));
    else if (count >= 4 && !strcmp(words[0], "clear"))
        clear_log(id_of(words[1]), strtoull(words[2], NULL, 16),
                  (uint32_t)strtoul(words[3], NULL, 16), count > 4);
    else if (count >= 3 && !strcmp(words[0], "cap"))
        enable_cap(words[1], strtoull(words[2], NULL, 16),
                   count > 3 ? (uint32_t)strtoul(words[3], NULL, 16) : 0);
    else if (count == 1 && !strcmp(words[0], "harvest"))
        harvest_ring();
    else if (count == 1 && !strcmp(words[0], "reset"))
        reset_rings();
    else
        return 0;
    return 1;
}
