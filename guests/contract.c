/* SPDX-License-Identifier: MIT */
/* Checks that the assembler's numbers match the structures that Python uses. */
#include <stddef.h>
#include <stdint.h>

#include "contract.h"

#define ENDS_AT(start, count, type) ((start) + (count) * sizeof(type))

_Static_assert(sizeof(struct guest_touch) == GUEST_TOUCH_SIZE, "size of a touch");
_Static_assert(sizeof(struct guest_sweep) == GUEST_SWEEP_SIZE, "size of a sweep");
_Static_assert(offsetof(struct guest_sweep, remaining) == GUEST_SWEEP_REMAINING, "remaining");

/* No record of touch crosses a page, which would make an emulator fetch twice. */
_Static_assert(GUEST_TOUCHES % GUEST_TOUCH_SIZE == 0, "aligned touches");

/* The parts follow each other and fit; each list has room for its end record. */
_Static_assert(GUEST_SWEEP_CURSOR >= GUEST_IMAGE_SIZE_MAX, "cursor after the image");
_Static_assert(ENDS_AT(GUEST_SWEEPS, GUEST_MAX_SWEEPS + 1, struct guest_sweep)
               <= GUEST_SWEEP_BUFFER, "sweeps");
_Static_assert(GUEST_SWEEP_BUFFER + GUEST_SWEEP_BUFFER_SIZE <= GUEST_TOUCH_RESULTS, "buffer");
_Static_assert(ENDS_AT(GUEST_TOUCH_RESULTS, GUEST_MAX_TOUCHES, uint32_t)
               <= GUEST_TOUCHES, "results");
_Static_assert(ENDS_AT(GUEST_TOUCHES, GUEST_MAX_TOUCHES + 1, struct guest_touch)
               <= GUEST_PAGE_TABLES, "touches");
_Static_assert(GUEST_PAGE_TABLES + GUEST_PAGE_TABLES_SIZE <= GUEST_SLOT_SIZE, "page tables");
