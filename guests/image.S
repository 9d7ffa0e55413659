/* SPDX-License-Identifier: MIT */
/*
 * Everything that is assembled: the image at the start of the guest's slot, the templates of
 * touch, the stub for pages that are executed, and the labels that the host needs.
 *
 * No code contains an address, only offsets from the start of the slot, so that it runs at
 * any gpa.
 */
#include "contract.h"

        .section .rodata
        .code16                         /* Files for 64-bit mode switch, and switch back. */

        .globl  guest_image
guest_image:
#include "touch.S"
#include "sweep.S"
#include "long.S"
guest_image_end:
        /* The assembler refuses this if the image does not fit before the mailboxes. */
        .org    guest_image + GUEST_IMAGE_SIZE_MAX

#include "templates.S"
#include "long_templates.S"
#include "execute.S"

        .macro  offset_of label
        .2byte  \label - guest_image
        .endm

        /* Each at its access's index in the contract, whatever the order here. */
        .macro  offsets_of_accesses prefix
        .set    accesses, .
        offset_of_access \prefix\()_read_1, GUEST_ACCESS_READ_1
        offset_of_access \prefix\()_read_2, GUEST_ACCESS_READ_2
        offset_of_access \prefix\()_read_4, GUEST_ACCESS_READ_4
        offset_of_access \prefix\()_write_1, GUEST_ACCESS_WRITE_1
        offset_of_access \prefix\()_write_2, GUEST_ACCESS_WRITE_2
        offset_of_access \prefix\()_write_4, GUEST_ACCESS_WRITE_4
        .endm

        .macro  offset_of_access label, access
        .org    accesses + 2 * \access
        offset_of \label
        .endm

        .globl  guest_labels
        .balign 2
guest_labels:                           /* In the order of struct guest_labels. */
        offset_of guest_image_end
        offset_of sweep_entry
        offset_of sweep_skip
        offset_of sweep_end
        offsets_of_accesses sweep
        offsets_of_accesses long_sweep
        offset_of long_sweep_end
        .2byte  guest_stub_end - guest_stub
        .2byte  stub_identity - guest_stub
        .2byte  stub_long_identity - guest_stub

        .section .note.GNU-stack, "", @progbits
