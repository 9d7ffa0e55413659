/* SPDX-License-Identifier: MIT */
/*
 * The records of touch in 64-bit mode.  What templates.S says applies here, too, except that
 * the offset of a read's result begins at byte 12, because an address has 32 bits.
 */
        .code64

        .macro  long_template number
        .org    guest_long_touch_templates + \number * GUEST_TOUCH_SIZE
        .endm

        .balign GUEST_TOUCH_SIZE
        .globl  guest_long_touch_templates
guest_long_touch_templates:

        long_template GUEST_ACCESS_READ_1
        fill    DS_PREFIX, 1
        movb    ANYWHERE, %cl
        fill    DS_PREFIX, 1
        movb    %cl, ANYWHERE

        long_template GUEST_ACCESS_READ_2
        movw    ANYWHERE, %cx
        movw    %cx, ANYWHERE

        long_template GUEST_ACCESS_READ_4
        fill    DS_PREFIX, 1
        movl    ANYWHERE, %ecx
        fill    DS_PREFIX, 1
        movl    %ecx, ANYWHERE

        long_template GUEST_ACCESS_WRITE_1
        fill    DS_PREFIX, 1
        movb    $0, ANYWHERE
        fill    DS_PREFIX, 6
        nop

        long_template GUEST_ACCESS_WRITE_2
        movw    $0, ANYWHERE
        fill    DS_PREFIX, 5
        nop

        long_template GUEST_ACCESS_WRITE_4
        fill    DS_PREFIX, 1
        movl    $0, ANYWHERE
        fill    DS_PREFIX, 3
        nop

        long_template GUEST_TOUCH_END
        movl    $long_touch_end - guest_image, %eax
        jmp     *%rax                   /* The slot is at address 0. */

        .org    guest_long_touch_templates + GUEST_TOUCH_TEMPLATES * GUEST_TOUCH_SIZE

        .code16
