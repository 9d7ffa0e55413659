/* SPDX-License-Identifier: MIT */
/*
 * touch: the list of touches is a program that the host writes (templates.S); this is its
 * end.  It is not a record, because the next KVM_RUN continues in it after the host has
 * overwritten the records.
 */

touch_end:
        outb    %al, $GUEST_PORT_END
        jmp     guest_image + GUEST_TOUCHES
