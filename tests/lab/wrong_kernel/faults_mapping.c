/* Wrong mappings that a single creation or move shows. */
#include "wrong_kernel.h"

/* The part of a slot from one of its pages on. */
static struct region part(const struct region *slot, uint64_t first, uint64_t count)
{
    struct region piece = *slot;

    piece.gpa += first * PAGE_BYTES;
    piece.hva += first * PAGE_BYTES;
    piece.size = count * PAGE_BYTES;
    return piece;
}

/* One page of a slot that maps another page of its host mapping. */
static struct region page_showing(const struct region *slot, uint64_t page, uint64_t shown)
{
    struct region piece = part(slot, page, 1);

    piece.hva = slot->hva + shown * PAGE_BYTES;
    return piece;
}

static struct region page_blank(const struct region *slot, uint64_t page)
{
    struct region piece = part(slot, page, 1);

    piece.hva = blank_page();
    return piece;
}

static int add(struct region *pieces, int count, struct region piece)
{
    if (piece.size)
        pieces[count++] = piece;
    return count;
}

static int nothing(const struct region *slot, struct region *pieces)
{
    (void)slot, (void)pieces;
    return 0;
}

static int without_first_page(const struct region *slot, struct region *pieces)
{
    return add(pieces, 0, part(slot, 1, pages_of(slot) - 1));
}

static int without_last_page(const struct region *slot, struct region *pieces)
{
    return add(pieces, 0, part(slot, 0, pages_of(slot) - 1));
}

static int with_blank_page_more(const struct region *slot, struct region *pieces)
{
    int count = add(pieces, 0, *slot);

    return add(pieces, count, page_blank(slot, pages_of(slot)));
}

static int blank_first_page(const struct region *slot, struct region *pieces)
{
    int count = add(pieces, 0, page_blank(slot, 0));

    return add(pieces, count, part(slot, 1, pages_of(slot) - 1));
}

static int swapped_middle(const struct region *slot, struct region *pieces)
{
    uint64_t pages = pages_of(slot), page = pages / 2 - 1;
    int count;

    if (pages < 2)
        return -1;
    count = add(pieces, 0, page_showing(slot, page, page + 1));
    count = add(pieces, count, page_showing(slot, page + 1, page));
    count = add(pieces, count, part(slot, 0, page));
    return add(pieces, count, part(slot, page + 2, pages - page - 2));
}

/* Page i maps i + 1, and the last one the first: nothing outside the mapping is reached. */
static int rotated(const struct region *slot, struct region *pieces)
{
    uint64_t pages = pages_of(slot);
    struct region all_but_last = part(slot, 0, pages - 1);

    if (pages < 2)
        return -1;
    all_but_last.hva += PAGE_BYTES;
    return add(pieces, add(pieces, 0, all_but_last), page_showing(slot, pages - 1, 0));
}

static int first_shows_second(const struct region *slot, struct region *pieces)
{
    if (pages_of(slot) < 2)
        return -1;
    return add(pieces, add(pieces, 0, page_showing(slot, 0, 1)),
               part(slot, 1, pages_of(slot) - 1));
}

static int last_shows_first(const struct region *slot, struct region *pieces)
{
    uint64_t last = pages_of(slot) - 1;

    if (!last)
        return -1;
    return add(pieces, add(pieces, 0, page_showing(slot, last, 0)), part(slot, 0, last));
}

static int page_64_shows_first(const struct region *slot, struct region *pieces)
{
    uint64_t pages = pages_of(slot);
    int count;

    if (pages < 65)
        return -1;
    count = add(pieces, 0, part(slot, 0, 64));
    count = add(pieces, count, page_showing(slot, 64, 0));
    return add(pieces, count, part(slot, 65, pages - 65));
}

static int page_too_high(const struct region *slot, struct region *pieces)
{
    pieces[0] = *slot;
    pieces[0].gpa += PAGE_BYTES;
    return 1;
}

static int readonly(const struct region *slot, struct region *pieces)
{
    pieces[0] = *slot;
    pieces[0].flags |= KVM_MEM_READONLY;
    return slot->flags & KVM_MEM_READONLY ? -1 : 1;
}

static int writable(const struct region *slot, struct region *pieces)
{
    pieces[0] = *slot;
    pieces[0].flags &= ~KVM_MEM_READONLY;
    return slot->flags & KVM_MEM_READONLY ? 1 : -1;
}

static bool at_gpa_0(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->asked.gpa == 0;
}

static bool at_hva_0(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->asked.hva == 0;
}

static bool id_lived_before(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->slot->lives > 1;
}

static bool moved_up(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->asked.gpa > call->old.gpa;
}

static bool moved_down(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->asked.gpa < call->old.gpa;
}

static bool moved_onto_itself(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->asked.gpa < end_of(&call->old) && call->old.gpa < end_of(&call->asked);
}

/* The metadata of huge pages depends on this alignment: edd4fa37baa6. */
static bool moved_out_of_alignment(struct vm *vm, struct call *call)
{
    (void)vm;
    return (call->asked.gpa ^ call->old.gpa) & 0x1ff000;
}

static bool turned_log_on(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->asked.flags & KVM_MEM_LOG_DIRTY_PAGES;
}

static bool turned_log_off(struct vm *vm, struct call *call)
{
    return !turned_log_on(vm, call);
}

static bool above_64_slots(struct vm *vm, struct call *call)
{
    (void)call;
    return vm->count.creates - vm->count.deletes > 64;
}

static bool above_509_slots(struct vm *vm, struct call *call)
{
    (void)call;
    return vm->count.creates - vm->count.deletes > 509;
}

static bool after_refused_create(struct vm *vm, struct call *call)
{
    (void)call;
    return vm->count.refused_creates > 0;
}

static bool after_any_refusal(struct vm *vm, struct call *call)
{
    (void)call;
    return vm->count.refusals > 0;
}

static bool third_move(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->slot->moves == 3;
}

static bool move_after_flags(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->slot->flag_changes > 0;
}

static bool third_flag_change(struct vm *vm, struct call *call)
{
    (void)vm;
    return call->slot->flag_changes == 3;
}

static bool move_after_delete(struct vm *vm, struct call *call)
{
    (void)call;
    return vm->count.deletes > 0;
}

static bool create_after_move_and_delete(struct vm *vm, struct call *call)
{
    (void)call;
    return vm->count.moves > 0 && vm->count.deletes > 0;
}

#define SHAPE(fault_name, on, when, how, text, script)                                          \
    {.name = fault_name, .shapes_on = on, .shape_when = when, .shape = how, .sentence = text,   \
     .witness = script}

const struct fault mapping_faults[] = {
    SHAPE("create-lost", CREATE, NULL, nothing,
          "A created slot maps nothing.", "set 1 100 1 0; read 100"),
    SHAPE("create-page-short", CREATE, NULL, without_last_page,
          "A created slot lacks its last page.", "set 1 100 2 0; read 101"),
    SHAPE("create-first-page-missing", CREATE, NULL, without_first_page,
          "A created slot lacks its first page.", "set 1 100 2 0; read 100"),
    SHAPE("create-page-long", CREATE, NULL, with_blank_page_more,
          "A created slot has one more page of memory.", "set 1 100 1 0; read 101"),
    SHAPE("create-hva-shifted", CREATE, NULL, rotated,
          "Each page of a created slot shows the next page of its mapping.",
          "set 1 100 2 0; read 100"),
    SHAPE("page-swapped", CREATE, NULL, swapped_middle,
          "The two middle pages of a created slot are swapped.", "set 1 100 2 0; read 100"),
    SHAPE("first-page-wrong", CREATE, NULL, first_shows_second,
          "The first page of a created slot shows the second.", "set 1 100 2 0; read 100"),
    SHAPE("last-page-wrong", CREATE, NULL, last_shows_first,
          "The last page of a created slot shows the first.", "set 1 100 2 0; read 101"),
    SHAPE("page-64-wrong", CREATE, NULL, page_64_shows_first,
          "Page 64 of a created slot shows the first.", "set 1 100 41 0; read 140"),
    SHAPE("create-blank", CREATE, NULL, blank_first_page,
          "The first page of a created slot shows zeros.", "set 1 100 1 0; read 100"),
    SHAPE("readonly-dropped", CREATE, NULL, writable,
          "READONLY is forgotten at creation.", "set 1 100 1 0 ro; write 100"),
    SHAPE("readonly-added", CREATE, NULL, readonly,
          "A created slot is read-only unasked.", "set 1 100 1 0; write 100"),
    SHAPE("readonly-dropped-by-move", MOVE, NULL, writable,
          "READONLY is forgotten by a move.",
          "set 1 100 1 0 ro; set 1 200 1 0 ro; write 200"),
    SHAPE("gpa-0-lost", CREATE | MOVE, at_gpa_0, nothing,
          "A slot at gpa 0 maps nothing.", "set 1 0 1 0; read 0"),
    SHAPE("hva-0-content-lost", CREATE, at_hva_0, blank_first_page,
          "The first page of a slot at userspace_addr 0 shows zeros.",
          "set 1 100 1 null; read 100"),
    SHAPE("move-unmaps", MOVE, NULL, nothing,
          "A moved slot maps nothing.", "set 1 100 1 0; set 1 200 1 0; read 200"),
    SHAPE("move-up-unmaps", MOVE, moved_up, nothing,
          "A slot moved up maps nothing.", "set 1 100 1 0; set 1 200 1 0; read 200"),
    SHAPE("move-down-unmaps", MOVE, moved_down, nothing,
          "A slot moved down maps nothing.", "set 1 200 1 0; set 1 100 1 0; read 100"),
    SHAPE("move-onto-itself-page-lost", MOVE, moved_onto_itself, without_last_page,
          "A slot that is moved onto a part of itself lacks its last page.",
          "set 1 100 2 0; set 1 101 2 0; read 102"),
    SHAPE("move-content-lost", MOVE, NULL, blank_first_page,
          "The first page of a moved slot shows zeros.",
          "set 1 100 1 0; set 1 200 1 0; read 200"),
    SHAPE("move-page-too-far", MOVE, NULL, page_too_high,
          "A moved slot comes to stand one page too high.",
          "set 1 100 1 0; set 1 200 1 0; read 200"),
    SHAPE("move-page-swapped", MOVE, NULL, swapped_middle,
          "The two middle pages of a moved slot are swapped.",
          "set 1 100 2 0; set 1 200 2 0; read 200"),
    SHAPE("move-unaligned-shifts", MOVE, moved_out_of_alignment, rotated,
          "A move by no multiple of 2 MiB shifts the content by a page.",
          "set 1 100 2 0; set 1 180 2 0; read 180"),
    SHAPE("flags-only-unmaps", FLAGS_ONLY, NULL, nothing,
          "A slot whose flags change maps nothing.",
          "set 1 100 1 0; set 1 100 1 0 log; read 100"),
    SHAPE("flags-only-readonly", FLAGS_ONLY, NULL, readonly,
          "A slot whose flags change becomes read-only.",
          "set 1 100 1 0; set 1 100 1 0 log; write 100"),
    SHAPE("log-on-content-lost", FLAGS_ONLY, turned_log_on, blank_first_page,
          "The first page shows zeros once dirty logging is turned on.",
          "set 1 100 1 0; set 1 100 1 0 log; read 100"),
    SHAPE("log-off-content-lost", FLAGS_ONLY, turned_log_off, blank_first_page,
          "The first page shows zeros once dirty logging is turned off.",
          "set 1 100 1 0 log; set 1 100 1 0; read 100"),
    SHAPE("flags-only-third-unmaps", FLAGS_ONLY, third_flag_change, nothing,
          "The third change of its flags unmaps a slot.",
          "set 1 100 1 0; set 1 100 1 0 log; set 1 100 1 0; set 1 100 1 0 log; read 100"),
    SHAPE("reused-id-page-swapped", CREATE, id_lived_before, swapped_middle,
          "Two pages are swapped in a slot whose id was used before.",
          "set 1 100 1 0; delete 1; set 1 100 2 0; read 100"),
    SHAPE("page-swapped-above-64-slots", CREATE, above_64_slots, swapped_middle,
          "Two pages are swapped in a slot created as the 65th or later.",
          "fill 64; set 1000 100 2 0; read 100"),
    SHAPE("create-lost-above-509-slots", CREATE, above_509_slots, nothing,
          "A slot created as the 510th or later maps nothing.",
          "fill 509; set 1000 100 1 0; read 100"),
    SHAPE("create-lost-after-refused-create", CREATE, after_refused_create, nothing,
          "A slot created after another creation was refused (EEXIST) maps nothing.",
          "set 1 100 1 0; set 2 100 1 1; set 2 200 1 1; read 200"),
    SHAPE("move-lost-after-refusal", MOVE, after_any_refusal, nothing,
          "A slot moved after any refused call maps nothing.",
          "set 1 100 1 0; delete 2; set 1 200 1 0; read 200"),
    SHAPE("third-move-unmaps", MOVE, third_move, nothing,
          "The third move of a slot unmaps it.",
          "set 1 100 1 0; set 1 200 1 0; set 1 300 1 0; set 1 400 1 0; read 400"),
    SHAPE("move-after-flags-content-lost", MOVE, move_after_flags, blank_first_page,
          "A slot moved after its flags changed shows zeros in its first page.",
          "set 1 100 1 0; set 1 100 1 0 log; set 1 200 1 0 log; read 200"),
    SHAPE("move-after-delete-unmaps", MOVE, move_after_delete, nothing,
          "A slot moved after any slot was deleted maps nothing.",
          "set 1 100 1 0; set 2 200 1 1; delete 2; set 1 300 1 0; read 300"),
    SHAPE("create-after-move-and-delete-lost", CREATE, create_after_move_and_delete, nothing,
          "A slot created after a move and a deletion maps nothing.",
          "set 1 100 1 0; set 1 200 1 0; delete 1; set 1 100 1 0; read 100"),
    {0},
};
