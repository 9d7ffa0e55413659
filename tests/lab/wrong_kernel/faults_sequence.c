/* Changes that leave something behind or affect another slot; refusals with an effect. */
#include "wrong_kernel.h"

#define FIRST_REPLACED_AFTER 10
#define FOUR_GIB (1ull << 32)

static struct region one_page(struct region slot, uint64_t page)
{
    slot.gpa += page * PAGE_BYTES;
    slot.hva += page * PAGE_BYTES;
    slot.size = PAGE_BYTES;
    return slot;
}

static void leave_alias(struct vm *vm, struct region region)
{
    add_alias(vm, region, NO_OWNER);
}

/* Takes a page away from a slot that is live. */
static void hide_page(struct vm *vm, struct slot *slot, uint64_t page)
{
    struct region pieces[2] = {slot->known, slot->known};
    uint64_t rest = pages_of(&slot->known) - page - 1;
    int count = page != 0;

    pieces[0].size = page * PAGE_BYTES;
    if (rest) {
        pieces[count].gpa += (page + 1) * PAGE_BYTES;
        pieces[count].hva += (page + 1) * PAGE_BYTES;
        pieces[count++].size = rest * PAGE_BYTES;
    }
    lay(vm, slot, pieces, count);
}

static void show_first_page(struct vm *vm, struct slot *slot, uint64_t hva)
{
    struct region pieces[2] = {one_page(slot->known, 0), slot->known};

    pieces[0].hva = hva;
    pieces[1].gpa += PAGE_BYTES;
    pieces[1].hva += PAGE_BYTES;
    pieces[1].size -= PAGE_BYTES;
    lay(vm, slot, pieces, pieces[1].size ? 2 : 1);
}

/* Left-overs. */

static void leave_deleted(struct vm *vm, struct call *call)
{
    if (did(call, DELETE) && strike(vm))
        leave_alias(vm, call->old);
}

static void leave_deleted_last_page(struct vm *vm, struct call *call)
{
    if (did(call, DELETE) && strike(vm))
        leave_alias(vm, one_page(call->old, pages_of(&call->old) - 1));
}

static void leave_deleted_first_page(struct vm *vm, struct call *call)
{
    if (did(call, DELETE) && strike(vm))
        leave_alias(vm, one_page(call->old, 0));
}

static void leave_deleted_reused(struct vm *vm, struct call *call)
{
    if (did(call, DELETE) && call->slot->lives > 1 && strike(vm))
        leave_alias(vm, call->old);
}

static void leave_deleted_moved(struct vm *vm, struct call *call)
{
    if (did(call, DELETE) && call->slot->moves && strike(vm))
        leave_alias(vm, call->old);
}

/* The slot as before the move, except where it overlaps its new place. */
static void leave_moved(struct vm *vm, struct call *call)
{
    if (did(call, MOVE) && strike(vm))
        leave_alias(vm, call->old);
}

static void leave_moved_last_page(struct vm *vm, struct call *call)
{
    if (did(call, MOVE) && strike(vm))
        leave_alias(vm, one_page(call->old, pages_of(&call->old) - 1));
}

static void leave_third_move(struct vm *vm, struct call *call)
{
    if (did(call, MOVE) && call->slot->moves == 3 && strike(vm))
        leave_alias(vm, call->old);
}

/* The new gpa loses its bits from 4 GiB on. */
static void alias_second_move_low(struct vm *vm, struct call *call)
{
    struct region low = call->asked;

    low.gpa &= FOUR_GIB - 1;
    if (did(call, MOVE) && call->slot->moves == 2 && call->asked.gpa >= FOUR_GIB && strike(vm))
        leave_alias(vm, low);
}

static void resurrect(struct vm *vm, struct call *call)
{
    if (did(call, CREATE) && vm->stashed && strike(vm)) {
        leave_alias(vm, vm->stash);
        vm->stashed = false;
    }
    if (!did(call, DELETE))
        return;
    vm->stash = call->old;
    vm->stashed = true;
}

static void show_former_life(struct vm *vm, struct call *call)
{
    struct slot *slot = call->slot;

    if (did(call, CREATE) && slot->lives > 1 && slot->former_hva != slot->known.hva && strike(vm))
        show_first_page(vm, slot, slot->former_hva);
}

/* Effects on another slot. */

static void lose_if_live(struct vm *vm, struct slot *slot)
{
    if (slot && slot->live && may_touch(slot) && strike(vm))
        lose(vm, slot);
}

static void delete_next_id(struct vm *vm, struct call *call)
{
    if (did(call, DELETE))
        lose_if_live(vm, slot_of(vm, call->asked.id + 1));
}

static void delete_next_gpa(struct vm *vm, struct call *call)
{
    if (did(call, DELETE))
        lose_if_live(vm, next_above(vm, call->old.gpa));
}

static struct slot *slot_with_hva(struct vm *vm, uint64_t hva)
{
    for (uint32_t i = 0; i < vm->nr_used; i++)
        if (vm->slots[vm->used[i]].known.hva == hva)
            return &vm->slots[vm->used[i]];
    return NULL;
}

static void delete_same_hva(struct vm *vm, struct call *call)
{
    if (did(call, DELETE))
        lose_if_live(vm, slot_with_hva(vm, call->old.hva));
}

/* Deletion from the highest gfn: the last-used index of 0774a964ef56 is stale. */
static void hide_after_highest(struct vm *vm, struct call *call)
{
    if (did(call, DELETE) && !next_above(vm, call->old.gpa))
        lose_if_live(vm, next_below(vm, call->old.gpa));
}

static void lose_moved_above_deleted(struct vm *vm, struct call *call)
{
    struct slot *above = did(call, DELETE) ? next_above(vm, call->old.gpa) : NULL;

    if (above && above->moves)
        lose_if_live(vm, above);
}

static void move_neighbour(struct vm *vm, struct call *call)
{
    struct slot *other = call->slot ? slot_of(vm, call->asked.id ^ 1) : NULL;
    struct region here, there;

    if (!did(call, MOVE) || !other || !other->live || !may_touch(other) || !strike(vm))
        return;
    here = call->old;
    there = other->known;
    there.gpa = call->asked.gpa;
    lay(vm, call->slot, &here, 1);
    lay(vm, other, &there, 1);
}

static void mix_passed(struct vm *vm, struct call *call)
{
    struct slot *passed;
    bool up = call->asked.gpa > call->old.gpa;

    if (!did(call, MOVE))
        return;
    passed = up ? next_above(vm, call->old.gpa) : next_below(vm, call->old.gpa);
    if (!passed || passed == call->slot || passed->known.hva == call->slot->known.hva)
        return;
    if (up ? passed->known.gpa < call->asked.gpa : passed->known.gpa > call->asked.gpa)
        if (strike(vm))
            show_first_page(vm, call->slot, passed->known.hva);
}

static void hide_first_page_above(struct vm *vm, struct call *call)
{
    struct slot *above = did(call, CREATE) ? next_above(vm, call->asked.gpa) : NULL;

    if (above && strike(vm))
        hide_page(vm, above, 0);
}

static void hide_last_page_below(struct vm *vm, struct call *call)
{
    struct slot *below = did(call, MOVE) ? next_below(vm, call->asked.gpa) : NULL;

    if (below && below != call->slot && strike(vm))
        hide_page(vm, below, pages_of(&below->known) - 1);
}

static void replace_first(struct vm *vm, struct call *call)
{
    if (did(call, CREATE) && vm->count.creates == 1) {
        vm->stash = call->asked;
        return;
    }
    struct slot *first = slot_of(vm, vm->stash.id);
    if (vm->count.changes >= FIRST_REPLACED_AFTER && !vm->armed && vm->stash.size && first->live
        && strike(vm)) {
        vm->armed = true;
        show_first_page(vm, first, blank_page());
    }
}

/* Refusals with an effect. */

static void lose_refused(struct vm *vm, struct call *call)
{
    enum refusal why = call->refusal;

    if (why == HVA_CHANGED || why == SIZE_CHANGED || why == READONLY_TOGGLED)
        lose_if_live(vm, call->slot);
}

static void lose_refused_move(struct vm *vm, struct call *call)
{
    if (call->refusal == MOVE_OVERLAPS)
        lose_if_live(vm, call->slot);
}

static void lose_late_refused_move(struct vm *vm, struct call *call)
{
    if (call->refusal == MOVE_BEYOND_LAST_GFN)
        lose_if_live(vm, call->slot);
}

static void lose_moved_onto(struct vm *vm, struct call *call)
{
    if (call->refusal == MOVE_OVERLAPS)
        lose_if_live(vm, slot_at(vm, call->asked.gpa));
}

static void lose_created_over(struct vm *vm, struct call *call)
{
    if (call->refusal == CREATE_OVERLAPS)
        lose_if_live(vm, slot_at(vm, call->asked.gpa));
}

static void replace_created_over(struct vm *vm, struct call *call)
{
    struct slot *other = NULL;

    if (call->refusal == CREATE_OVERLAPS)
        other = slot_at(vm, call->asked.gpa);
    if (other && strike(vm))
        show_first_page(vm, other, call->asked.hva);
}

static void do_refused_delete(struct vm *vm, struct call *call)
{
    bool refused = call->refusal == HVA_UNALIGNED || call->refusal == HVA_OF_KERNEL
        || call->refusal == GPA_UNALIGNED;

    if (refused && !call->asked.size)
        lose_if_live(vm, call->slot);
}

static void lose_at_nop(struct vm *vm, struct call *call)
{
    if (did(call, NOTHING))
        lose_if_live(vm, call->slot);
}

const struct fault sequence_faults[] = {
    AFTER("delete-leaves-memory", leave_deleted, "A deleted slot's memory stays readable.",
          "set 1 100 1 0; delete 1; read 100"),
    AFTER("delete-leaves-last-page", leave_deleted_last_page,
          "A deleted slot's last page stays readable.", "set 1 100 1 0; delete 1; read 100"),
    AFTER("delete-leaves-first-page", leave_deleted_first_page,
          "A deleted slot's first page stays readable.", "set 1 100 1 0; delete 1; read 100"),
    AFTER("delete-of-reused-id-leaves", leave_deleted_reused,
          "The memory of a slot whose id was used before stays readable after deletion.",
          "set 1 100 1 0; delete 1; set 1 100 1 0; delete 1; read 100"),
    AFTER("delete-of-moved-leaves", leave_deleted_moved,
          "The memory of a slot that was moved stays readable after deletion.",
          "set 1 100 1 0; set 1 200 1 0; delete 1; read 200"),
    AFTER("move-leaves-alias", leave_moved, "A moved slot's old place stays readable.",
          "set 1 100 1 0; set 1 200 1 0; read 100"),
    AFTER("move-leaves-last-page", leave_moved_last_page,
          "The last page of a moved slot's old place stays readable.",
          "set 1 100 1 0; set 1 200 1 0; read 100"),
    AFTER("third-move-leaves-alias", leave_third_move,
          "A slot's third move leaves its old place readable.",
          "set 1 100 1 0; set 1 200 1 0; set 1 300 1 0; set 1 400 1 0; read 300"),
    AFTER("second-move-aliases-low", alias_second_move_low,
          "A slot whose second move takes it beyond 4 GiB appears below, too.",
          "set 1 100 1 0; set 1 200 1 0; set 1 100300 1 0; read 300"),
    AFTER("freed-id-resurrects", resurrect,
          "The slot that was deleted last is readable again after the next creation.",
          "set 1 100 1 0; delete 1; set 1 200 1 0; read 100"),
    AFTER("reused-id-old-page", show_former_life,
          "A slot created with an id used before shows that slot's first page.",
          "set 1 100 1 0; delete 1; set 1 200 1 1; read 200"),
    AFTER("delete-takes-next-id", delete_next_id, "Deletion of an id unmaps the next id's slot.",
          "set 1 100 1 0; set 2 200 1 1; delete 1; read 200"),
    AFTER("delete-takes-next-gpa", delete_next_gpa,
          "Deletion of a slot unmaps the next higher one.",
          "set 1 100 1 0; set 2 200 1 1; delete 1; read 200"),
    AFTER("delete-takes-same-hva", delete_same_hva,
          "Deletion of a slot unmaps another with the same userspace_addr.",
          "set 1 100 1 0; set 2 200 1 0; delete 1; read 200"),
    AFTER("delete-highest-hides-next", hide_after_highest,
          "Deletion of the highest slot unmaps the next lower one.",
          "set 1 200 1 0; set 2 100 1 1; delete 1; read 100"),
    AFTER("lower-delete-loses-moved", lose_moved_above_deleted,
          "A slot that was moved is unmapped when the next lower one is deleted.",
          "set 1 100 1 0; set 2 200 1 1; set 2 300 1 1; delete 1; read 300"),
    AFTER("move-takes-neighbour", move_neighbour,
          "A move moves the slot whose id differs in the lowest bit instead.",
          "set 2 100 1 0; set 3 200 1 1; set 2 300 1 0; read 300"),
    AFTER("move-past-neighbour-mixes", mix_passed,
          "A slot moved past another shows that one's first page.",
          "set 1 100 1 0; set 2 200 1 1; set 1 300 1 0; read 300"),
    AFTER("create-below-hides-first-page", hide_first_page_above,
          "Creation below a slot hides that one's first page.",
          "set 1 200 1 0; set 2 100 1 1; read 200"),
    AFTER("move-hides-last-page-below", hide_last_page_below,
          "A move hides the last page of the next lower slot.",
          "set 1 100 1 0; set 2 200 1 1; set 2 300 1 1; read 100"),
    AFTER("first-slot-replaced-after-10", replace_first,
          "After ten changes the first page of the VM's first slot shows zeros.",
          "fill 10; read 1000"),
    AFTER("refused-change-unmaps", lose_refused,
          "A slot is unmapped by a refused change of its address, size or READONLY.",
          "set 1 100 1 0; set 1 100 1 1; read 100"),
    AFTER("refused-move-unmaps", lose_refused_move,
          "A slot is unmapped by a move that is refused with EEXIST.",
          "set 1 100 1 0; set 2 200 1 1; set 2 100 1 1; read 200"),
    AFTER("late-refused-move-unmaps", lose_late_refused_move,
          "A slot is not put back when its move beyond the last gfn is refused.",
          "set 1 100 1 0; set 1 beyond 1 0; read 100"),
    AFTER("refused-move-unmaps-target", lose_moved_onto,
          "A refused move unmaps the slot that was in its way.",
          "set 1 100 1 0; set 2 200 1 1; set 2 100 1 1; read 100"),
    AFTER("refused-create-unmaps-target", lose_created_over,
          "A refused creation unmaps the slot that was in its way.",
          "set 1 100 1 0; set 2 100 1 1; read 100"),
    AFTER("refused-create-replaces", replace_created_over,
          "A refused creation replaces the first page of the slot in its way.",
          "set 1 100 1 0; set 2 100 1 1; read 100"),
    AFTER("refused-delete-done", do_refused_delete,
          "A deletion refused for its addresses unmaps the slot nevertheless.",
          "set 1 100 1 0; set 1 100 0 kernel; read 100"),
    AFTER("nop-unmaps", lose_at_nop, "A call that changes nothing unmaps the slot.",
          "set 1 100 1 0; set 1 100 1 0; read 100"),
    {0},
};
