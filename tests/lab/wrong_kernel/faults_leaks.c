/* A refused call leaks what it has allocated. */
#include "wrong_kernel.h"

#include <sys/socket.h>

#define PIECE_BYTES 3000
#define SLOT_BYTES (8 * PIECE_BYTES) /* including its per-page metadata */
#define CHANGE_BYTES (5 * SLOT_BYTES) /* changes are slow, so that fewer are made */

/* A message that nobody receives takes kernel memory. */
static void leak(uint64_t bytes)
{
    static char piece[PIECE_BYTES];

    for (uint64_t rest = bytes, size; rest; rest -= size) {
        size = rest < PIECE_BYTES ? rest : PIECE_BYTES;
        (void)!send(lost_and_found(), piece, size, 0);
    }
}

/* KVM keeps two bitmaps of a logged slot. */
static uint64_t log_bytes(const struct call *call)
{
    return 2 * (pages_of(&call->asked) + 63) / 64 * 8;
}

static bool is_refused_as(struct vm *vm, const struct call *call, enum refusal why)
{
    return call->refusal == why && strike(vm);
}

static void leak_log_of_creation(struct vm *vm, struct call *call)
{
    if (call->asked.flags & KVM_MEM_LOG_DIRTY_PAGES && pages_of(&call->asked) > 64
        && is_refused_as(vm, call, CREATE_BEYOND_LAST_GFN))
        leak(log_bytes(call) + SLOT_BYTES);
}

static void leak_slot_of_creation(struct vm *vm, struct call *call)
{
    if (is_refused_as(vm, call, CREATE_OVERLAPS))
        leak(SLOT_BYTES);
}

static void leak_invalidated_slot(struct vm *vm, struct call *call)
{
    if (is_refused_as(vm, call, MOVE_BEYOND_LAST_GFN))
        leak(CHANGE_BYTES);
}

static void leak_new_log_of_move(struct vm *vm, struct call *call)
{
    if (~call->old.flags & call->asked.flags & KVM_MEM_LOG_DIRTY_PAGES
        && is_refused_as(vm, call, MOVE_BEYOND_LAST_GFN))
        leak(log_bytes(call) + CHANGE_BYTES);
}

/* Refusals for wrong values, alone or compared with the present slot. */
static void leak_argument(struct vm *vm, struct call *call)
{
    if (call->refusal > BAD_POINTER && call->refusal < CREATE_OVERLAPS && strike(vm))
        leak(SLOT_BYTES);
}

static void leak_old_log(struct vm *vm, struct call *call)
{
    if (did(call, FLAGS_ONLY | MOVE | DELETE) && call->old.flags & KVM_MEM_LOG_DIRTY_PAGES
        && !(call->change != DELETE && call->asked.flags & KVM_MEM_LOG_DIRTY_PAGES)
        && strike(vm))
        leak(log_bytes(call) + CHANGE_BYTES);
}

#define LEAKS(fault_name, function, text, script)                                               \
    {.name = fault_name, .after = function, .sentence = text, .witness = script}

const struct fault leak_faults[] = {
    LEAKS("creation-beyond-last-gfn-leaks-its-log", leak_log_of_creation,
          "A logged slot that is refused for its last gfn leaves its dirty bitmap allocated.",
          "again 100 set 1 beyond 100000 null log"),
    LEAKS("creation-over-another-leaks", leak_slot_of_creation,
          "A slot that is refused for another one in its place stays allocated.",
          "set 1 100 1 0; again 1000 set 2 100 1 1"),
    LEAKS("move-beyond-last-gfn-leaks", leak_invalidated_slot,
          "A move that is refused for its last gfn leaves the invalidated slot allocated.",
          "set 1 100 1 0; again 200 set 1 beyond 1 0"),
    LEAKS("move-beyond-last-gfn-leaks-its-log", leak_new_log_of_move,
          "A move that turns logging on, and is refused late, leaves the bitmap allocated.",
          "set 1 100 1 0; again 200 set 1 beyond 1 0 log"),
    LEAKS("refused-values-leak", leak_argument,
          "A call that is refused for its values leaves something allocated.",
          "again 1000 delete 1"),
    LEAKS("log-of-deleted-slot-leaks", leak_old_log,
          "The dirty bitmap of a slot stays allocated when it is deleted or logs no more.",
          "again 200 passing"),
    {.name = "memfd-refused-kept-open", .memfd = MEMFD_KEPT_OPEN,
     .sentence = "A guest_memfd that cannot be bound is kept open for ever.",
     .witness = "again 9000 refusedfile"},
    {0},
};
