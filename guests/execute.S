/* SPDX-License-Identifier: MIT */
/*
 * execute: what a page carries so that executing it tells which page it is.
 *
 * The host puts a copy, with the page's identity patched in twice, at GUEST_STUB_PAGE_OFFSET
 * of each page.  To execute a page it sets RIP to that offset, from a CS.base that is the
 * page's gpa in real mode and from the page's virtual address in 64-bit mode; nothing else
 * about the registers matters.  The stub answers with KVM_EXIT_IO: four bytes to the port
 * GUEST_PORT_EXECUTED, the identity (EAX holds it too).  The exit's data make it unnecessary
 * to read the registers.
 *
 * The same bytes run in both modes: the first instruction has an immediate of two bytes in
 * real mode and of four in 64-bit mode, and so skips the jump that real mode meets.
 */

        .globl  guest_stub
guest_stub:
        movw    $0, %ax
        jmp     stub_real

        .code64
        movl    $0, %eax
        .set    stub_long_identity, . - 4
        outl    %eax, $GUEST_PORT_EXECUTED
        hlt                             /* Never run into the page's data. */

        .code16
stub_real:
        movl    $0, %eax
        .set    stub_identity, . - 4    /* The immediate ends the instruction. */
        outl    %eax, $GUEST_PORT_EXECUTED
        hlt
guest_stub_end:
