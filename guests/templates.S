/* SPDX-License-Identifier: MIT */
/*
 * The records of touch: one memory access each.
 *
 * If KVM emulates each instruction, a touch costs as much as it has instructions.  So there
 * is no loop that reads records: the records are the program.  The host copies one of these
 * templates for each touch, with its operands patched in, and the guest executes the list.
 *
 *   bytes 0 to 3    the start of the access: prefixes and opcode
 *   bytes 4 to 7    the gpa
 *   bytes 8 to 15   a write: the value first; a read: the offset of its result last
 *
 * A record does not end with the access itself; a write has a nop after it.  So when KVM_RUN
 * returns, RIP is inside the record, whether it is at the access or past it.
 *
 * The result of a read has the width of the access; the host clears it beforehand, so that
 * it needs no extension.
 */

        .set    ANYWHERE, 0             /* Patched; addr32 makes it 32 bits wide. */

        .macro  template number
        .org    guest_touch_templates + \number * GUEST_TOUCH_SIZE
        .endm

        /* Prefixes without effect, so that fields are at their offsets and a record is full. */
        .macro  fill prefix, count
        .rept   \count
        .byte   \prefix
        .endr
        .endm

        .set    DS_PREFIX, 0x3e
        .set    SS_PREFIX, 0x36

        .balign GUEST_TOUCH_SIZE
        .globl  guest_touch_templates
guest_touch_templates:

        template GUEST_ACCESS_READ_1
        fill    DS_PREFIX, 2
        addr32 movb ANYWHERE, %al
        fill    SS_PREFIX, 4
        movb    %al, %ss:0

        template GUEST_ACCESS_READ_2
        fill    DS_PREFIX, 2
        addr32 movw ANYWHERE, %ax
        fill    SS_PREFIX, 4
        movw    %ax, %ss:0

        template GUEST_ACCESS_READ_4
        fill    DS_PREFIX, 1
        addr32 movl ANYWHERE, %eax
        fill    SS_PREFIX, 3
        movl    %eax, %ss:0

        template GUEST_ACCESS_WRITE_1
        fill    DS_PREFIX, 1
        addr32 movb $0, ANYWHERE
        fill    DS_PREFIX, 6
        nop

        template GUEST_ACCESS_WRITE_2
        fill    DS_PREFIX, 1
        addr32 movw $0, ANYWHERE
        fill    DS_PREFIX, 5
        nop

        template GUEST_ACCESS_WRITE_4
        addr32 movl $0, ANYWHERE
        fill    DS_PREFIX, 3
        nop

        template GUEST_TOUCH_END
        movw    $touch_end - guest_image, %ax
        jmp     *%ax                    /* An offset, wherever the record is. */

        .org    guest_touch_templates + GUEST_TOUCH_TEMPLATES * GUEST_TOUCH_SIZE
