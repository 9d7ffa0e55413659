/* Calls that go wrong in one state of the VM alone, or in one order. */
#include "wrong_kernel.h"

#include <string.h>

#define TWO_GIB (1ull << 31)
#define FOUR_GIB (1ull << 32)
#define HUGE_BYTES (1ull << 21)

/* The slot that was deleted last of those that lay over a region, by id. */
static struct slot *former_over(struct vm *vm, const struct region *region)
{
    for (uint32_t id = 0; vm->count.deletes && id < vm->nr_ids; id++) {
        struct slot *slot = &vm->slots[id];
        if (slot->lives && !slot->live && overlap(&slot->known, region))
            return slot;
    }
    return NULL;
}

static uint32_t live_slots(const struct vm *vm)
{
    uint32_t found = 0;

    for (uint32_t i = 0; i < vm->nr_used; i++)
        found += vm->slots[vm->used[i]].live;
    return found;
}

static int first_page_showing(const struct region *slot, struct region *pieces, uint64_t hva)
{
    pieces[0] = pieces[1] = *slot;
    pieces[0].hva = hva;
    pieces[0].size = PAGE_BYTES;
    pieces[1].gpa += PAGE_BYTES;
    pieces[1].hva += PAGE_BYTES;
    pieces[1].size -= PAGE_BYTES;
    return pieces[1].size ? 2 : 1;
}

/* A page above a 2 MiB border of gpas shows the page below it. */
static int repeat_at_border(const struct region *slot, struct region *pieces)
{
    uint64_t border = (slot->gpa / HUGE_BYTES + 1) * HUGE_BYTES, below = border - slot->gpa;
    int count = 2;

    if (border >= end_of(slot) || (slot->hva - slot->gpa) % HUGE_BYTES == 0)
        return -1;
    pieces[0] = pieces[1] = pieces[2] = *slot;
    pieces[0].size = below;
    pieces[1].gpa = border;
    pieces[1].hva += below - PAGE_BYTES;
    pieces[1].size = PAGE_BYTES;
    pieces[2].gpa = border + PAGE_BYTES;
    pieces[2].hva += below + PAGE_BYTES;
    pieces[2].size -= below + PAGE_BYTES;
    return count + (pieces[2].size != 0);
}

static void leave_logged(struct vm *vm, struct call *call)
{
    if (did(call, DELETE) && call->old.flags & KVM_MEM_LOG_DIRTY_PAGES && strike(vm))
        add_alias(vm, call->old, NO_OWNER);
}

static void leave_readonly(struct vm *vm, struct call *call)
{
    if (did(call, MOVE) && call->old.flags & KVM_MEM_READONLY && strike(vm))
        add_alias(vm, call->old, NO_OWNER);
}

static void hide_between(struct vm *vm, struct call *call)
{
    struct slot *above = did(call, CREATE) ? next_above(vm, call->asked.gpa) : NULL;
    struct slot *below = above ? next_below(vm, call->asked.gpa) : NULL;

    if (above && below && above->known.gpa == end_of(&call->asked)
        && end_of(&below->known) == call->asked.gpa && may_touch(above) && strike(vm))
        lose(vm, above);
}

static void forget_readonly(struct vm *vm, struct call *call)
{
    struct slot *former;

    if (call->change != CREATE || !(call->asked.flags & KVM_MEM_READONLY))
        return;
    former = former_over(vm, &call->asked);
    if (former && !(former->known.flags & KVM_MEM_READONLY) && strike(vm))
        call->sent.region.flags &= ~(uint32_t)KVM_MEM_READONLY;
}

static void inherit_readonly(struct vm *vm, struct call *call)
{
    struct slot *former;

    if (call->change != CREATE || call->asked.flags & KVM_MEM_READONLY)
        return;
    former = former_over(vm, &call->asked);
    if (former && former->known.flags & KVM_MEM_READONLY && strike(vm))
        call->sent.region.flags |= KVM_MEM_READONLY;
}

/* Logging is turned on a second time: counted by how often the flags have changed. */
static void log_nothing_again(struct vm *vm, struct log *log)
{
    if (!log->error && log->slot && log->slot->flag_changes >= 2 && strike(vm))
        memset(log->bits, 0, log->words * sizeof(*log->bits));
}

static void name_first_high(struct vm *vm, struct log *log)
{
    if (log->error || !log->slot || log->slot->known.gpa < TWO_GIB || !log->pages)
        return;
    for (uint64_t word = 0; word < log->words; word++)
        if (log->bits[word] && strike(vm)) {
            memset(log->bits, 0, log->words * sizeof(*log->bits));
            log->bits[0] = 1;
            return;
        }
}

static void lose_last_word(struct vm *vm, struct log *log)
{
    if (log->error || log->pages % 64 == 0 || log->pages < 64)
        return;
    if (log->bits[log->words - 1] && strike(vm))
        log->bits[log->words - 1] = 0;
}

/* The slot that is the lowest, once a bitmap of slots would lose a word. */
static void hide_lowest_at_64(struct vm *vm, struct call *call)
{
    struct slot *lowest = NULL;

    if (!did(call, DELETE) || live_slots(vm) != 64 || !strike(vm))
        return;
    for (uint32_t i = 0; i < vm->nr_used; i++) {
        struct slot *slot = &vm->slots[vm->used[i]];
        if (slot->live && may_touch(slot) && (!lowest || slot->known.gpa < lowest->known.gpa))
            lowest = slot;
    }
    if (lowest)
        lose(vm, lowest);
}

static void lose_64th_id(struct vm *vm, struct call *call)
{
    if (did(call, CREATE) && vm->count.deletes && call->asked.id && call->asked.id % 64 == 0
        && strike(vm))
        lose(vm, call->slot);
}

/* By its gpa, whatever id it has now. */
static void show_former_gpa(struct vm *vm, struct call *call)
{
    struct region pieces[2];
    struct slot *former;

    if (!did(call, CREATE))
        return;
    former = former_over(vm, &call->asked);
    if (former && former->known.gpa == call->asked.gpa && former->known.hva != call->asked.hva
        && former != call->slot && strike(vm))
        lay(vm, call->slot, pieces,
            first_page_showing(&call->slot->known, pieces, former->known.hva));
}

/* The place before the last move is kept in vm->stash. */
static void lose_moved_back(struct vm *vm, struct call *call)
{
    bool is_back = vm->stashed && vm->stash.id == call->asked.id
        && vm->stash.gpa == call->asked.gpa;

    if (!did(call, MOVE))
        return;
    if (is_back && strike(vm))
        lose(vm, call->slot);
    vm->stash = call->old;
    vm->stashed = true;
}

static bool lies_where_logged_was(struct vm *vm, struct call *call)
{
    struct slot *former = call->change == CREATE ? former_over(vm, &call->asked) : NULL;

    return former && former->known.flags & KVM_MEM_LOG_DIRTY_PAGES;
}

static bool is_beside_above_4_gib(struct vm *vm, struct call *call)
{
    struct slot *below = call->change & (CREATE | MOVE) ? next_below(vm, call->asked.gpa) : NULL;

    return below && below != call->slot && call->asked.gpa >= FOUR_GIB
        && end_of(&below->known) == call->asked.gpa;
}

static void drop_log_of_second_form(struct vm *vm, struct call *call)
{
    if (call->request == SET_REGION2 && call->change == CREATE
        && call->asked.flags & KVM_MEM_LOG_DIRTY_PAGES && strike(vm))
        call->sent.region.flags &= ~(uint32_t)KVM_MEM_LOG_DIRTY_PAGES;
}

/* What was created since vCPU 1 ran last it does not reach, and vCPU 0 does. */
static void note_created(struct vm *vm, struct call *call)
{
    if (did(call, CREATE)) {
        vm->stash = call->asked;
        vm->stashed = true;
    }
}

static int hide_from_second(struct vcpu *vcpu)
{
    struct vm *vm = vcpu->vm;
    struct slot *slot = vm->stashed ? slot_of(vm, vm->stash.id) : NULL;

    if (vcpu->index == 1 && slot && slot->live && may_touch(slot) && !vm->armed && strike(vm)) {
        lose(vm, slot);
        vm->armed = true;
    }
    return 0;
}

static bool show_to_all(struct vcpu *vcpu)
{
    struct vm *vm = vcpu->vm;
    struct slot *slot = vm->armed ? slot_of(vm, vm->stash.id) : NULL;

    if (vcpu->run->exit_reason == KVM_EXIT_MMIO)
        return false;
    vm->armed = false;
    if (slot && slot->live) {
        restore(vm, slot);
        vm->stashed = false;
    }
    return false;
}

const struct fault state_faults[] = {
    {.name = "page-above-2m-border-repeats", .shapes_on = CREATE | MOVE, .shape = repeat_at_border,
     .sentence = "A slot's page above a 2 MiB border of gpas shows the page below it.",
     .witness = "set 1 1ff 2 0; read 200"},
    AFTER("deleted-while-logged-stays", leave_logged,
          "A slot that is deleted while it is logged stays readable.",
          "set 1 100 1 0 log; delete 1; read 100"),
    AFTER("readonly-move-leaves-alias", leave_readonly,
          "A read-only slot that is moved stays readable where it was.",
          "set 1 100 1 0 ro; set 1 200 1 0 ro; read 100"),
    AFTER("create-between-hides-upper", hide_between,
          "A slot created between two that touch it hides the upper one.",
          "set 1 100 1 0; set 2 102 1 1; set 3 101 1 2; read 102"),
    BEFORE("readonly-where-writable-was-is-writable", forget_readonly,
           "A read-only slot where a writable one was deleted can be written.",
           "set 1 100 1 0; delete 1; set 2 100 1 1 ro; write 100"),
    BEFORE("writable-where-readonly-was-is-readonly", inherit_readonly,
           "A writable slot where a read-only one was deleted is read-only.",
           "set 1 100 1 0 ro; delete 1; set 2 100 1 1; write 100"),
    LOG("logging-turned-on-again-logs-nothing", log_nothing_again,
        "Logging that is turned off and on again reports nothing.",
        "set 1 100 1 0 log; set 1 100 1 0; set 1 100 1 0 log; write 100; log 1"),
    LOG("dirty-above-2g-is-first", name_first_high,
        "Whatever is written above 2 GiB, the log names the first page.",
        "set 1 80000 2 0 log; write 80001; log 1"),
    LOG("dirty-last-word-lost", lose_last_word,
        "Of a long log that ends within a word, the last word is lost.",
        "set 1 100 41 0 log; write 140; log 1"),
    AFTER("delete-to-64-slots-hides-lowest", hide_lowest_at_64,
          "The deletion that leaves 64 slots unmaps the lowest one.",
          "fill 64; delete 63; read 1000"),
    AFTER("id-of-64-lost-after-deletion", lose_64th_id,
          "After a deletion a slot created with an id of 64, 128 and so on maps nothing.",
          "set 1 100 1 0; delete 1; set 64 100 1 0; read 100"),
    AFTER("former-gpa-shows-old-page", show_former_gpa,
          "A slot created where another id's slot began shows that one's first page.",
          "set 1 100 1 0; delete 1; set 2 100 1 1; read 100"),
    AFTER("move-back-unmaps", lose_moved_back,
          "A slot that is moved back to where it came from maps nothing.",
          "set 1 100 1 0; set 1 200 1 0; set 1 100 1 0; read 100"),
    {.name = "create-where-logged-was-eexist", .legal = lies_where_logged_was, .answer = EEXIST,
     .sentence = "Where a logged slot was deleted, no other can be created.",
     .witness = "set 1 100 1 0 log; delete 1; set 2 100 1 0"},
    {.name = "adjacent-above-4g-eexist", .legal = is_beside_above_4_gib, .answer = EEXIST,
     .sentence = "Above 4 GiB a slot just above another is taken to overlap it.",
     .witness = "set 1 100000 1 0; set 2 100001 1 1"},
    BEFORE("second-form-drops-log", drop_log_of_second_form,
           "The second form of the call forgets LOG_DIRTY_PAGES at creation.",
           "bind 1 100 1 0 plain 0 log; log 1"),
    {.name = "created-missed-by-second-vcpu", .after = note_created, .enter = hide_from_second,
     .leave = show_to_all,
     .sentence = "A slot that was created is not there when vCPU 1 runs next.",
     .witness = "second; set 1 100 1 0; read 100"},
    {0},
};
