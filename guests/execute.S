/* SPDX-License-Identifier: MIT */
/*
 * execute: code in every page that tells which page was executed.
 *
 * The host puts a copy, with the page's identity patched in twice, at GUEST_STUB_PAGE_OFFSET
 * of each page.  To execute a page it sets RIP to that offset, relative to a CS.base that is
 * the page's gpa in real mode, or to the page's virtual address in 64-bit mode; other
 * registers do not matter.  The stub answers with KVM_EXIT_IO: it writes the identity, four
 * bytes, to the port GUEST_PORT_EXECUTED.  EAX holds it, too, but the exit's data make it
 * unnecessary to read the registers.
 *
 * The same bytes run in both modes: the first instruction has an immediate of two bytes in
 * real mode and of four in 64-bit mode, where it swallows the jump that real mode executes.
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
        .set    stub_identity, . - 4    /* The immediate is the end of the instruction. */
        outl    %eax, $GUEST_PORT_EXECUTED
        hlt
guest_stub_end:
