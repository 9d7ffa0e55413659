/* SPDX-License-Identifier: MIT */
/*
 * sweep: one string instruction per record of the mailbox.
 *
 * The mailbox is the stack: SP walks the records upward, pops load the operands, and `ret`
 * uses the record's code as its return address, which is both the dispatch and the loop.
 *
 *   esp  the record (upper half zero); the end of the record while its code runs
 *   edi  destination
 *   esi  source
 *   ecx  elements left
 *   eax  the value
 */

        /* A field of the current record, relative to its end. */
#define FIELD(offset) (offset) - GUEST_SWEEP_SIZE(%esp)

        .macro  sweep_next
        movw    %sp, %ss:GUEST_SWEEP_CURSOR
        popl    %edi
        popl    %esi
        popl    %ecx
        popl    %eax
        popl    %edx                    /* `remaining`, which is never read. */
        ret     $2                      /* Jumps to the code, and drops the reserved word. */
        .endm

sweep_end:
        outb    %al, $GUEST_PORT_END
        /* The next KVM_RUN continues here, with a new batch. */
sweep_entry:
        cld
        movl    $GUEST_SWEEPS, %esp
        sweep_next

        /* addr32: the counter and the pointers are ECX, ESI and EDI, not CX, SI and DI. */
sweep_read_1:
        addr32 rep movsb
        jmp     sweep_done

sweep_read_2:
        addr32 rep movsw
        jmp     sweep_done

sweep_read_4:
        addr32 rep movsl
        jmp     sweep_done

sweep_write_1:
        addr32 rep stosb
        jmp     sweep_done

sweep_write_2:
        addr32 rep stosw
        jmp     sweep_done

sweep_write_4:
        addr32 rep stosl
sweep_done:
        movl    %ecx, FIELD(GUEST_SWEEP_REMAINING)
        sweep_next

        /* The host may have set all registers: only the cursor tells the current record. */
sweep_skip:
        cld
        movzwl  %ss:GUEST_SWEEP_CURSOR, %esp
        addl    $GUEST_SWEEP_SIZE, %esp
        sweep_next

#undef FIELD
