/* SPDX-License-Identifier: MIT */
/*
 * touch: one memory access per record of the mailbox.
 *
 * Where KVM emulates each instruction, their number is what a touch costs.  So the mailbox
 * is the stack: SP walks the records upward, two pops load the operands, and `ret` takes
 * the record's code as its return address, which is both the dispatch and the loop.  While
 * a record's code runs, ESP points behind the record.
 *
 *   esp  the record (its upper half is zero, so that it serves as a 32-bit address)
 *   ebx  the gpa to touch
 *   eax  the value
 */

        /* A field of the record under way, seen from behind the record. */
#define FIELD(offset) (offset) - GUEST_TOUCH_SIZE(%esp)

        .macro  touch_next
        movw    %sp, %ss:GUEST_TOUCH_CURSOR
        popl    %ebx
        popl    %eax
        ret     $2                      /* Takes the code, and drops the status. */
        .endm

touch_end:
        outb    %al, $GUEST_PORT_END
        /* The next KVM_RUN goes on here: a new batch. */
touch_entry:
        movl    $GUEST_TOUCHES, %esp
        touch_next

touch_read_1:
        movzbl  (%ebx), %eax
        movl    %eax, FIELD(GUEST_TOUCH_VALUE)
        touch_next

touch_read_2:
        movzwl  (%ebx), %eax
        movl    %eax, FIELD(GUEST_TOUCH_VALUE)
        touch_next

touch_read_4:
        movl    (%ebx), %eax
        movl    %eax, FIELD(GUEST_TOUCH_VALUE)
        touch_next

touch_write_1:
        movb    %al, (%ebx)
        touch_next

touch_write_2:
        movw    %ax, (%ebx)
        touch_next

touch_write_4:
        movl    %eax, (%ebx)
        touch_next

touch_skip:
        movw    $GUEST_STATUS_ABANDONED, FIELD(GUEST_TOUCH_STATUS)
        touch_next

#undef FIELD
