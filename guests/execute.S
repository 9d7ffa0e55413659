/* SPDX-License-Identifier: MIT */
/*
 * execute: what a page carries so that executing it tells which page it is.
 *
 * The host puts a copy, with the page's identity patched in, at GUEST_STUB_PAGE_OFFSET of
 * each page.  To execute a page it sets CS.base to the page's gpa and RIP to that offset;
 * nothing else about the registers matters.  The stub answers with KVM_EXIT_IO: four bytes
 * to the port GUEST_PORT_EXECUTED, the identity (EAX holds it too).  The exit's data make
 * it unnecessary to read the registers.
 */

        .globl  guest_stub
guest_stub:
        movl    $0, %eax
        .set    stub_identity, . - 4    /* The immediate ends the instruction. */
        outl    %eax, $GUEST_PORT_EXECUTED
        hlt                             /* Never run into the page's data. */
guest_stub_end:
