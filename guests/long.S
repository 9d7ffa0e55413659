/* SPDX-License-Identifier: MIT */
/*
 * touch and sweep in 64-bit mode.  The guest's slot is at virtual address 0.
 */
        .code64

long_touch_end:
        outb    %al, $GUEST_PORT_END
        jmp     guest_image + GUEST_TOUCHES

        /* The host loads the operands before each sweep. */
long_sweep_read_1:
        rep movsb
        jmp     long_sweep_end

long_sweep_read_2:
        rep movsw
        jmp     long_sweep_end

long_sweep_read_4:
        rep movsl
        jmp     long_sweep_end

long_sweep_write_1:
        rep stosb
        jmp     long_sweep_end

long_sweep_write_2:
        rep stosw
        jmp     long_sweep_end

long_sweep_write_4:
        rep stosl
long_sweep_end:
        outb    %al, $GUEST_PORT_END
        hlt                             /* Never run into the data that follows. */

        .code16
