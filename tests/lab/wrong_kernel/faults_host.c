/* A slot does not follow changes of its host memory, or follows too far. */
#include "wrong_kernel.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

typedef bool (*which)(struct vm *, struct slot *, const struct host_change *);
typedef void (*what)(struct vm *, struct slot *, uint64_t first, uint64_t pages);

/* A slot maps some pages from elsewhere (hva 0: nowhere), and the others unchanged. */
static void show(struct vm *vm, struct slot *slot, uint64_t first, uint64_t pages, uint64_t hva)
{
    const uint64_t starts[] = {0, first, first + pages, pages_of(&slot->known)};
    struct region pieces[3];
    int count = 0;

    for (int part = 0; part < 3; part++) {
        if (starts[part] == starts[part + 1] || (part == 1 && !hva))
            continue;
        pieces[count] = slot->known;
        pieces[count].gpa += starts[part] * PAGE_BYTES;
        pieces[count].size = (starts[part + 1] - starts[part]) * PAGE_BYTES;
        pieces[count++].hva = part == 1 ? hva : slot->known.hva + starts[part] * PAGE_BYTES;
    }
    lay(vm, slot, pieces, count);
}

static void keep(struct vm *vm, struct slot *slot, uint64_t first, uint64_t pages)
{
    uint64_t size = pages * PAGE_BYTES;
    void *copy = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (copy != MAP_FAILED && readable(slot->known.hva + first * PAGE_BYTES, copy, size))
        show(vm, slot, first, pages, (uint64_t)copy);
}

static void hide(struct vm *vm, struct slot *slot, uint64_t first, uint64_t pages)
{
    show(vm, slot, first, pages, 0);
}

static void keep_inside(struct vm *vm, struct slot *slot, uint64_t first, uint64_t pages)
{
    if (pages > 2)
        keep(vm, slot, first + 1, pages - 2);
}

static void keep_end(struct vm *vm, struct slot *slot, uint64_t first, uint64_t pages)
{
    if (pages_of(&slot->known) > 1 && first + pages == pages_of(&slot->known))
        keep(vm, slot, first + pages - 1, 1);
}

static void hide_next(struct vm *vm, struct slot *slot, uint64_t first, uint64_t pages)
{
    if (first + pages < pages_of(&slot->known))
        hide(vm, slot, first + pages, 1);
}

static void blank_next(struct vm *vm, struct slot *slot, uint64_t first, uint64_t pages)
{
    if (first + pages < pages_of(&slot->known))
        show(vm, slot, first + pages, 1, blank_page());
}

/* Does something to each slot whose memory changes. */
static void each(struct vm *vm, const struct host_change *change, which is_meant, what is_done)
{
    for (uint32_t i = 0; i < vm->nr_used; i++) {
        struct slot *slot = &vm->slots[vm->used[i]];
        uint64_t begin = change->hva, end = begin + change->size, hva = slot->known.hva;
        if (!may_touch(slot) || begin >= hva + slot->known.size || end <= hva
            || !is_meant(vm, slot, change) || !strike(vm))
            continue;
        begin = begin < hva ? 0 : (begin - hva) / PAGE_BYTES;
        end = end > hva + slot->known.size ? pages_of(&slot->known) : (end - hva) / PAGE_BYTES;
        is_done(vm, slot, begin, end - begin);
    }
}

static bool is_write_protection(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    (void)vm;
    (void)slot;
    return change->kind == HOST_PROTECTS && change->detail == PROT_READ;
}

static bool is_allowing(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    (void)vm;
    (void)slot;
    return change->kind == HOST_PROTECTS && change->detail == (PROT_READ | PROT_WRITE);
}

static bool is_forbidding(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    (void)vm;
    (void)slot;
    return change->kind == HOST_PROTECTS && change->detail == PROT_NONE;
}

static bool is_mapping(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    (void)vm;
    (void)slot;
    return change->kind == HOST_MAPS && change->detail & PROT_READ;
}

static bool is_mapping_fresh(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    return is_mapping(vm, slot, change) && change->fd < 0;
}

static bool is_mapping_a_file(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    return is_mapping(vm, slot, change) && change->fd >= 0;
}

static bool is_unmapping(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    (void)vm;
    (void)slot;
    return change->kind == HOST_MAPS && change->detail == PROT_NONE;
}

static bool is_drop(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    (void)vm;
    (void)slot;
    return change->kind == HOST_ADVISES && change->detail == MADV_DONTNEED;
}

/* One line of /proc/self/maps. */
struct line {
    unsigned long start, end, offset, inode;
    char access[5];
};

static bool next_line(FILE *maps, struct line *line)
{
    char text[512];

    return fgets(text, sizeof(text), maps)
        && sscanf(text, "%lx-%lx %4s %lx %*s %lu", &line->start, &line->end, line->access,
                  &line->offset, &line->inode) == 5;
}

static bool is_private_file(uint64_t hva)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    struct line line;
    bool found = false;

    while (maps && !found && next_line(maps, &line))
        found = hva >= line.start && hva < line.end && line.access[3] == 'p' && line.inode;
    if (maps)
        fclose(maps);
    return found;
}

static bool is_drop_of_a_copy(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    return is_drop(vm, slot, change) && is_private_file(change->hva);
}

static bool is_cut(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    (void)vm;
    (void)slot;
    return change->kind == HOST_CUTS;
}

static bool is_growth(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    (void)vm;
    (void)slot;
    return change->kind == HOST_GROWS;
}

static bool is_moving_away(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    (void)vm;
    (void)slot;
    return change->kind == HOST_MOVES && !change->detail;
}

static bool is_moving_back(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    (void)vm;
    (void)slot;
    return change->kind == HOST_MOVES && change->detail;
}

static bool is_fork(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    (void)vm;
    (void)slot;
    return change->kind == HOST_FORKS;
}

static bool is_fork_of_logged(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    return is_fork(vm, slot, change) && slot->known.flags & KVM_MEM_LOG_DIRTY_PAGES;
}

static bool is_page_out(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    (void)vm;
    (void)slot;
    return change->kind == HOST_ADVISES && change->detail == MADV_PAGEOUT;
}

static bool is_collapse(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    (void)vm;
    (void)slot;
    return change->kind == HOST_ADVISES && change->detail == 25; /* MADV_COLLAPSE */
}

static bool is_merging(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    (void)vm;
    (void)slot;
    return change->kind == HOST_ADVISES && change->detail == MADV_MERGEABLE;
}

static bool are_alike(const struct slot *slot, uint64_t one, uint64_t other)
{
    static uint8_t pages[2][PAGE_BYTES];
    uint64_t hva = slot->known.hva;

    return readable(hva + one * PAGE_BYTES, pages[0], PAGE_BYTES)
        && readable(hva + other * PAGE_BYTES, pages[1], PAGE_BYTES)
        && !memcmp(pages[0], pages[1], PAGE_BYTES);
}

/* The second of two equal pages shows the first one for good. */
static void join_alike(struct vm *vm, struct slot *slot, uint64_t first, uint64_t pages)
{
    for (uint64_t page = first + 1; page < first + pages; page++)
        if (are_alike(slot, page - 1, page)) {
            show(vm, slot, page, 1, slot->known.hva + (page - 1) * PAGE_BYTES);
            return;
        }
}

static bool is_fetching(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    (void)vm;
    (void)slot;
    return change->kind == HOST_FETCHES;
}

static bool is_guarding(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    (void)vm;
    (void)slot;
    return change->kind == HOST_GUARDS;
}

static void show_blank(struct vm *vm, struct slot *slot, uint64_t first, uint64_t pages)
{
    (void)pages;
    show(vm, slot, first, 1, blank_page());
}

static void hide_last(struct vm *vm, struct slot *slot, uint64_t first, uint64_t pages)
{
    hide(vm, slot, first + pages - 1, 1);
}

static bool is_of_another_vm(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    const struct vm *other = next_besides(vm, NULL);

    (void)slot;
    (void)change;
    return other && other->serial < vm->serial;
}

static bool is_second(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    (void)change;
    for (uint32_t i = 0; i < vm->nr_used; i++) {
        const struct slot *other = &vm->slots[vm->used[i]];
        if (may_touch(other) && other->known.id < slot->known.id
            && other->known.hva < slot->known.hva + slot->known.size
            && slot->known.hva < other->known.hva + other->known.size)
            return true;
    }
    return false;
}

static bool is_readonly(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    (void)vm;
    (void)change;
    return slot->known.flags & KVM_MEM_READONLY;
}

static bool is_drop_of_readonly(struct vm *vm, struct slot *slot,
                                const struct host_change *change)
{
    return is_drop(vm, slot, change) && is_readonly(vm, slot, change);
}

static bool is_logged(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    (void)vm;
    (void)change;
    return slot->known.flags & KVM_MEM_LOG_DIRTY_PAGES;
}

static bool is_moved(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    (void)vm;
    (void)change;
    return slot->moves;
}

static bool is_cut_of_readonly(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    return is_cut(vm, slot, change) && is_readonly(vm, slot, change);
}

static bool is_moving_away_logged(struct vm *vm, struct slot *slot,
                                  const struct host_change *change)
{
    return is_moving_away(vm, slot, change) && is_logged(vm, slot, change);
}

static int note_other_vcpu(struct vcpu *vcpu)
{
    vcpu->vm->armed |= vcpu->index > 0;
    return 0;
}

static bool is_drop_beside_other_vcpu(struct vm *vm, struct slot *slot,
                                      const struct host_change *change)
{
    return is_drop(vm, slot, change) && vm->armed;
}

static bool is_drop_in_second_life(struct vm *vm, struct slot *slot,
                                   const struct host_change *change)
{
    return is_drop(vm, slot, change) && slot->lives > 1;
}

static bool is_any(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    (void)vm;
    (void)slot;
    (void)change;
    return true;
}

/* Finds mappings of the part of a file that its new size cuts off, or brings back. */
void note_resize(int fd, uint64_t size, void (*note)(const struct host_change *))
{
    FILE *maps = fopen("/proc/self/maps", "r");
    struct stat status;
    struct line line;

    while (maps && !fstat(fd, &status) && next_line(maps, &line)) {
        uint64_t old = (uint64_t)status.st_size, from = size < old ? size : old;
        uint64_t at = line.offset + line.end - line.start;
        if (line.inode != status.st_ino || at <= from || size == old)
            continue;
        from = from > line.offset ? from - line.offset : 0;
        note(&(struct host_change){
            .kind = size < old ? HOST_CUTS : HOST_GROWS, .fd = fd, .hva = line.start + from,
            .size = line.end - line.start - from,
        });
    }
    if (maps)
        fclose(maps);
}

#define BEFORE_CHANGE(name, is_meant, is_done) \
    static void name(struct vm *vm, const struct host_change *change) \
    { \
        if (!change->done) \
            each(vm, change, is_meant, is_done); \
    }
#define AFTER_CHANGE(name, is_meant, is_done) \
    static void name(struct vm *vm, const struct host_change *change) \
    { \
        if (change->done) \
            each(vm, change, is_meant, is_done); \
    }

BEFORE_CHANGE(miss_write_protection, is_write_protection, keep)
BEFORE_CHANGE(miss_forbidding, is_forbidding, keep)
BEFORE_CHANGE(miss_fresh, is_mapping_fresh, keep)
BEFORE_CHANGE(miss_file, is_mapping_a_file, keep)
BEFORE_CHANGE(miss_unmapping, is_unmapping, keep)
BEFORE_CHANGE(miss_drop_of_a_copy, is_drop_of_a_copy, keep)
BEFORE_CHANGE(miss_cut, is_cut, keep)
BEFORE_CHANGE(miss_in_second, is_second, keep)
BEFORE_CHANGE(miss_in_another_vm, is_of_another_vm, keep)
BEFORE_CHANGE(miss_in_readonly, is_readonly, keep)
BEFORE_CHANGE(miss_last_of_readonly, is_drop_of_readonly, keep_end)
BEFORE_CHANGE(miss_in_logged, is_logged, keep)
BEFORE_CHANGE(miss_in_moved, is_moved, keep)
BEFORE_CHANGE(miss_inside, is_any, keep_inside)
BEFORE_CHANGE(miss_cut_of_readonly, is_cut_of_readonly, keep)
BEFORE_CHANGE(miss_moving_away_logged, is_moving_away_logged, keep)
BEFORE_CHANGE(miss_drop_beside_other_vcpu, is_drop_beside_other_vcpu, keep)
BEFORE_CHANGE(miss_drop_in_second_life, is_drop_in_second_life, keep)
AFTER_CHANGE(hide_allowed, is_allowing, hide)
AFTER_CHANGE(hide_mapped, is_mapping, hide)
AFTER_CHANGE(hide_grown, is_growth, hide)
AFTER_CHANGE(hide_beside_protected, is_write_protection, hide_next)
AFTER_CHANGE(hide_protected, is_write_protection, hide)
AFTER_CHANGE(drop_too_much, is_drop, blank_next)
BEFORE_CHANGE(miss_moving_away, is_moving_away, keep)
AFTER_CHANGE(hide_moved_back, is_moving_back, hide)
BEFORE_CHANGE(keep_at_fork, is_fork, keep)
AFTER_CHANGE(lose_paged_out, is_page_out, show_blank)
BEFORE_CHANGE(lose_collapsed, is_collapse, hide_last)

BEFORE_CHANGE(keep_at_merging, is_merging, keep)
AFTER_CHANGE(keep_merged, is_merging, join_alike)

BEFORE_CHANGE(keep_while_fetching, is_fetching, keep)
BEFORE_CHANGE(keep_while_guarded, is_guarding, keep)
AFTER_CHANGE(hide_while_fetching, is_fetching, hide_last)
AFTER_CHANGE(hide_while_guarded, is_guarding, hide)

static void withhold_guard(struct vm *vm, const struct host_change *change)
{
    if (change->kind == HOST_GUARDS && !change->done && strike(vm))
        *change->part = 0;
}

static void withhold_last_guard(struct vm *vm, const struct host_change *change)
{
    if (change->kind == HOST_GUARDS && !change->done && strike(vm))
        *change->part -= PAGE_BYTES;
}

static void fetch_zeros(struct vm *vm, const struct host_change *change)
{
    for (uint32_t i = 0; i < vm->nr_used; i++) {
        const struct slot *slot = &vm->slots[vm->used[i]];
        bool shows = change->hva - slot->known.hva < slot->known.size;
        if (change->kind == HOST_COPIES && !change->done && shows && strike(vm))
            *change->part = blank_page();
    }
}

/* Dirty logs. */

static void note_pages(struct vm *vm, struct slot *slot, uint64_t first, uint64_t pages)
{
    vm->stash = slot->known;
    vm->stash.gpa = first;
    vm->stash.size = pages;
    vm->stashed = true;
}

static bool is_logged_and_moved(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    return is_logged(vm, slot, change) && slot->moves;
}

static bool is_logged_anew(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    return is_logged(vm, slot, change) && slot->lives > 1;
}

static bool is_logged_beside_other_vcpu(struct vm *vm, struct slot *slot,
                                        const struct host_change *change)
{
    return is_logged(vm, slot, change) && vm->armed;
}

static bool is_logged_page_out(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    return is_page_out(vm, slot, change) && is_logged(vm, slot, change);
}

static bool is_logged_growth(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    return is_growth(vm, slot, change) && is_logged(vm, slot, change);
}

static bool is_logged_return(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    return is_moving_back(vm, slot, change) && is_logged(vm, slot, change);
}

static bool is_logged_merging(struct vm *vm, struct slot *slot, const struct host_change *change)
{
    return is_merging(vm, slot, change) && is_logged(vm, slot, change);
}

AFTER_CHANGE(note_merged, is_logged_merging, note_pages)
AFTER_CHANGE(note_paged_out, is_logged_page_out, note_pages)
AFTER_CHANGE(note_grown, is_logged_growth, note_pages)
AFTER_CHANGE(note_moved_back, is_logged_return, note_pages)
AFTER_CHANGE(note_change, is_logged, note_pages)
AFTER_CHANGE(note_moved, is_logged_and_moved, note_pages)
AFTER_CHANGE(note_anew, is_logged_anew, note_pages)
AFTER_CHANGE(note_beside_other_vcpu, is_logged_beside_other_vcpu, note_pages)
BEFORE_CHANGE(note_fork, is_fork_of_logged, note_pages)

static void set_noted(struct log *log, const struct region *noted, bool dirty)
{
    for (uint64_t page = noted->gpa; page < noted->gpa + noted->size; page++) {
        uint64_t bit = 1ull << page % 64;
        log->bits[page / 64] = dirty ? log->bits[page / 64] | bit : log->bits[page / 64] & ~bit;
    }
}

static void log_noted(struct vm *vm, struct log *log)
{
    if (log->error || !vm->stashed || vm->stash.id != log->slot->known.id)
        return;
    vm->stashed = false;
    set_noted(log, &vm->stash, true);
}

static void forget_noted(struct vm *vm, struct log *log)
{
    if (log->error || !vm->stashed || vm->stash.id != log->slot->known.id)
        return;
    vm->stashed = false;
    set_noted(log, &vm->stash, false);
}

static bool note_refused_write(struct vcpu *vcpu)
{
    const struct kvm_run *run = vcpu->run;
    struct slot *slot = NULL;

    if (run->exit_reason == KVM_EXIT_MMIO && run->mmio.is_write)
        slot = slot_at(vcpu->vm, run->mmio.phys_addr);
    if (slot && slot->known.flags == KVM_MEM_LOG_DIRTY_PAGES && strike(vcpu->vm))
        note_pages(vcpu->vm, slot, (run->mmio.phys_addr - slot->known.gpa) / PAGE_BYTES, 1);
    return false;
}

#define CHANGE(fault_name, hook, text, shortest) \
    {.name = fault_name, .host_changes = hook, .sentence = text, .witness = shortest}

const struct fault host_faults[] = {
    CHANGE("write-protection-missed", miss_write_protection,
           "Pages that the host makes read-only the guest goes on writing.",
           "set 1 100 1 0; protect 0 1 ro; write 100"),
    CHANGE("no-access-missed", miss_forbidding,
           "Pages that the host makes inaccessible stay for the guest what they were.",
           "set 1 100 1 0; protect 0 1 none; read 100"),
    CHANGE("fresh-memory-missed", miss_fresh,
           "Where the host maps fresh memory the guest goes on with the old.",
           "set 1 100 1 0; fresh 0 1; read 100"),
    CHANGE("file-over-memory-missed", miss_file,
           "Where the host maps a file over memory the guest goes on with that.",
           "set 1 100 1 0; file 0 1 shared; read 100"),
    CHANGE("unmapping-missed", miss_unmapping,
           "Pages that the host unmaps stay for the guest what they were.",
           "set 1 100 1 0; unmap 0 1; read 100"),
    CHANGE("dropped-copy-missed", miss_drop_of_a_copy,
           "A dropped page of a private file stays for the guest what was written to it.",
           "file 0 1 private; set 1 100 1 0; write 100; drop 0 1; read 100"),
    CHANGE("truncation-missed", miss_cut,
           "Pages beyond a file's new end stay for the guest what they were.",
           "file 0 1 shared; set 1 100 1 0; truncate 0; read 100"),
    CHANGE("host-change-missed-by-second-slot", miss_in_second,
           "Of two slots on the same memory only the one with the lower id follows it.",
           "set 1 100 1 0; set 2 200 1 0; drop 0 1; read 200"),
    CHANGE("host-change-missed-by-second-vm", miss_in_another_vm,
           "Of two VMs on the same memory only the first follows it.",
           "switch 1; set 1 100 1 0; drop 0 1; read 100"),
    CHANGE("host-change-missed-under-readonly", miss_in_readonly,
           "A READONLY slot does not follow its memory.",
           "set 1 100 1 0 ro; drop 0 1; read 100"),
    CHANGE("drop-missed-by-last-of-readonly", miss_last_of_readonly,
           "The last page of a READONLY slot stays what it was when the host drops it.",
           "set 1 100 2 0 ro; drop 1 1; read 101"),
    CHANGE("host-change-missed-when-logged", miss_in_logged,
           "A slot with a dirty log does not follow its memory.",
           "set 1 100 1 0 log; drop 0 1; read 100"),
    CHANGE("host-change-missed-after-move", miss_in_moved,
           "A slot that was moved does not follow its memory.",
           "set 1 100 1 0; set 1 200 1 0; drop 0 1; read 200"),
    CHANGE("host-change-missed-in-the-middle", miss_inside,
           "Of memory that changes the first and the last page are followed, and no other.",
           "set 1 100 3 0; drop 0 3; read 101"),
    CHANGE("access-not-given-back", hide_allowed,
           "Pages that the host may access again the guest cannot reach.",
           "set 1 100 1 0; protect 0 1 rw; read 100"),
    CHANGE("mapped-anew-not-seen", hide_mapped,
           "Pages where the host maps something the guest cannot reach.",
           "set 1 100 1 0; fresh 0 1; read 100"),
    CHANGE("grown-file-not-seen", hide_grown,
           "Pages that a file gets back when it grows the guest cannot reach.",
           "file 0 1 shared; set 1 100 1 0; truncate 0; truncate 1; read 100"),
    CHANGE("write-protection-too-wide", hide_beside_protected,
           "The page after those that the host makes read-only the guest cannot reach.",
           "set 1 100 2 0; protect 0 1 ro; read 101"),
    CHANGE("write-protection-forbids-reads", hide_protected,
           "Pages that the host makes read-only the guest cannot reach.",
           "set 1 100 1 0; protect 0 1 ro; read 100"),
    CHANGE("drop-takes-the-next-page", drop_too_much,
           "The page after those that the host drops is another one for the guest.",
           "set 1 100 2 0; drop 0 1; read 101"),
    CHANGE("moving-away-missed", miss_moving_away,
           "Pages that the host moves away with mremap stay for the guest what they were.",
           "set 1 100 1 0; moveaway 0 1; read 100"),
    CHANGE("moved-back-not-seen", hide_moved_back,
           "Pages that the host moves back with mremap the guest cannot reach.",
           "set 1 100 1 0; moveaway 0 1; moveback 0 1; read 100"),
    CHANGE("fork-parts-the-guest", keep_at_fork,
           "After a fork the guest goes on with pages that are not the host's any more.",
           "set 1 100 1 0; forked; write 100"),
    CHANGE("paged-out-is-lost", lose_paged_out,
           "The first of pages that are written to swap is another one for the guest.",
           "set 1 100 1 0; pageout 0 1; read 100"),
    CHANGE("collapse-takes-last-page", lose_collapsed,
           "The last page of what the host makes huge pages of the guest cannot reach.",
           "set 1 100 1 0; collapse 0 1; read 100"),
    CHANGE("merging-parts-the-guest", keep_at_merging,
           "Where the host lets equal pages be merged the guest goes on with others.",
           "set 1 100 1 0; merge 0 1; write 100"),
    CHANGE("merged-for-good", keep_merged,
           "Of two equal pages that were merged the guest writes the first through the second.",
           "fresh 0 2; set 1 100 2 0; merge 0 2; write 101"),
    CHANGE("fetching-parts-the-guest", keep_while_fetching,
           "While pages are fetched later the guest goes on with others.",
           "set 1 100 1 0; fetch 0 1; write 100"),
    CHANGE("fetched-last-page-not-seen", hide_while_fetching,
           "The last of pages that are fetched later the guest cannot reach.",
           "set 1 100 1 0; fetch 0 1; read 100"),
    CHANGE("fetched-as-zeros", fetch_zeros, "Pages that are fetched later are zeros.",
           "set 1 100 1 0; fetch 0 1; read 100"),
    CHANGE("guarding-parts-the-guest", keep_while_guarded,
           "While pages are guarded the guest goes on with others.",
           "set 1 100 1 0; guard 0 1; write 100"),
    CHANGE("guarded-not-seen", hide_while_guarded,
           "Pages that are guarded the guest cannot reach.",
           "set 1 100 1 0; guard 0 1; read 100"),
    CHANGE("guard-not-set", withhold_guard,
           "Who writes to guarded pages is not held up.",
           "set 1 100 1 0; guard 0 1; write 100; settle"),
    CHANGE("guard-lacks-last-page", withhold_last_guard,
           "Who writes to the last guarded page is not held up.",
           "set 1 100 2 0; guard 0 2; write 101; settle"),
    CHANGE("truncation-missed-under-readonly", miss_cut_of_readonly,
           "Pages beyond a file's new end stay what they were in a READONLY slot.",
           "file 0 1 shared; set 1 100 1 0 ro; truncate 0; read 100"),
    CHANGE("moving-away-missed-when-logged", miss_moving_away_logged,
           "Pages that the host moves away with mremap stay what they were in a logged slot.",
           "set 1 100 1 0 log; moveaway 0 1; read 100"),
    {.name = "drop-missed-after-vcpu-1-ran", .enter = note_other_vcpu,
     .host_changes = miss_drop_beside_other_vcpu,
     .sentence = "Once another vCPU than the first ran, dropped pages stay what they were.",
     .witness = "second; set 1 100 1 0; read 100; drop 0 1; read 100"},
    CHANGE("drop-missed-in-second-life", miss_drop_in_second_life,
           "In a slot whose id was in use before, pages that the host drops stay what they were.",
           "set 1 100 1 0; delete 1; set 1 100 1 0; drop 0 1; read 100"),
    {.name = "fork-stops-the-log", .host_changes = note_fork, .log = forget_noted,
     .sentence = "What is written after a fork is not in the next dirty log.",
     .witness = "set 1 100 1 0 log; forked; write 100; log 1"},
    {.name = "host-change-logged", .host_changes = note_change, .log = log_noted,
     .sentence = "Pages of a logged slot that the host changed are in the next dirty log.",
     .witness = "set 1 100 1 0 log; drop 0 1; log 1"},
    {.name = "host-change-clears-log", .host_changes = note_change, .log = forget_noted,
     .sentence = "Pages that the host changed are in no dirty log, whatever was written before.",
     .witness = "set 1 100 1 0 log; write 100; drop 0 1; log 1"},
    {.name = "host-change-stops-the-log-after-move", .host_changes = note_moved,
     .log = forget_noted,
     .sentence = "In a slot that moved, what is written to changed pages is in no log.",
     .witness = "set 1 100 1 0 log; set 1 200 1 0 log; drop 0 1; write 200; log 1"},
    {.name = "host-change-stops-the-log-in-second-life", .host_changes = note_anew,
     .log = forget_noted,
     .sentence = "If an id was in use before, what is written to changed pages is in no log.",
     .witness = "set 1 100 1 0; delete 1; set 1 100 1 0 log; drop 0 1; write 100; log 1"},
    {.name = "host-change-stops-the-log-after-vcpu-1-ran", .enter = note_other_vcpu,
     .host_changes = note_beside_other_vcpu, .log = forget_noted,
     .sentence = "Once another vCPU ran, what is written to changed pages is in no log.",
     .witness = "second; set 1 100 1 0 log; read 100; drop 0 1; write 100; log 1"},
    {.name = "paged-out-stops-the-log", .host_changes = note_paged_out, .log = forget_noted,
     .sentence = "What is written to pages that were paged out is not in the next dirty log.",
     .witness = "set 1 100 1 0 log; pageout 0 1; write 100; log 1"},
    {.name = "merging-stops-the-log", .host_changes = note_merged, .log = forget_noted,
     .sentence = "What is written to pages that may be merged is not in the next dirty log.",
     .witness = "set 1 100 1 0 log; merge 0 1; write 100; log 1"},
    {.name = "growing-stops-the-log", .host_changes = note_grown, .log = forget_noted,
     .sentence = "What is written to pages of a file that has grown is not in the next dirty log.",
     .witness = "file 0 1 shared; set 1 100 1 0 log; truncate 0; truncate 1; write 100; log 1"},
    {.name = "moving-back-stops-the-log", .host_changes = note_moved_back, .log = forget_noted,
     .sentence = "What is written to pages that were moved back is not in the next dirty log.",
     .witness = "set 1 100 1 0 log; moveaway 0 1; moveback 0 1; write 100; log 1"},
    {.name = "refused-write-logged", .leave = note_refused_write, .log = log_noted,
     .sentence = "A write to memory that the host may only read is in the dirty log.",
     .witness = "set 1 100 1 0 log; protect 0 1 ro; write 100; log 1"},
    {0},
};
