/* SPDX-License-Identifier: MIT */
/*
 * The contract between the real-mode guests and the host: the one place that says it.
 *
 * The assembler sources, the compiled module and (through cffi) Python all read this file.
 *
 * The machine.  One memslot of GUEST_SLOT_SIZE bytes, the guest's slot, at any gpa below
 * 4 GiB that is a multiple of its size; one vCPU in real mode:
 *
 *   CS, SS   base = gpa of the guest's slot, limit 0xffff, 16 bits (D/B clear)
 *   DS, ES   base = 0, limit 0xffffffff with G set ("big real mode"): a 32-bit offset is
 *            a gpa
 *   RIP      guest_labels.touch_entry or .sweep_entry; other registers are free
 *   RFLAGS   0x2; no interrupt is ever injected, and the VM has no in-kernel irqchip
 *
 * The slot begins with the image (guest_image); behind it lie the mailboxes.  All integers
 * are little endian.  An offset is a distance in bytes from the start of the slot, and is
 * what RIP, SP and the `code` of a record hold.
 *
 * The guests use no memory outside their slot besides what a record asks for.  A record
 * must not reach beyond 0xffffffff: that is a fault, and nobody handles it.
 *
 * Both mailboxes are used alike.  The host writes records, and behind them a record whose
 * code is guest_labels.touch_end or .sweep_end, then enters KVM_RUN.
 *
 *   - Before each record the guest stores the record's offset in the cursor.  Whatever
 *     KVM_RUN hands out (an MMIO exit, say) belongs to that record; those before it are
 *     finished.  An MMIO exit is completed by the next KVM_RUN, as usual.
 *   - At the end the guest writes one byte to the port GUEST_PORT_END (KVM_EXIT_IO).  The
 *     next KVM_RUN starts over with whatever the mailbox then holds: no register needs to
 *     be set between two batches.
 *   - When a record cannot be finished (KVM_RUN fails with EFAULT, or reports an internal
 *     error) the host sets RIP to .touch_skip or .sweep_skip: the guest marks the record
 *     as given up and goes on with the next one.  Not while an MMIO exit is pending.
 */
#ifndef GUESTS_CONTRACT_H
#define GUESTS_CONTRACT_H

#define GUEST_SLOT_SIZE 0x10000

/* The slot's parts, as offsets. */
#define GUEST_IMAGE_SIZE_MAX 0x1000
#define GUEST_TOUCH_CURSOR 0x1000
#define GUEST_SWEEP_CURSOR 0x1002
#define GUEST_SWEEPS 0x1010
#define GUEST_SWEEP_BUFFER 0x2000
#define GUEST_SWEEP_BUFFER_SIZE 0x4000
#define GUEST_TOUCHES 0x6000

/* How many records fit, the end record not counted. */
#define GUEST_MAX_TOUCHES 3072
#define GUEST_MAX_SWEEPS 128

#define GUEST_PORT_END 0xe0
#define GUEST_PORT_EXECUTED 0xe1

/* Values of a touch's status. */
#define GUEST_STATUS_NONE 0
#define GUEST_STATUS_ABANDONED 1

/* Where a page that can be executed carries its stub: the same place in every page. */
#define GUEST_STUB_PAGE_OFFSET 0x800

/* Sizes and fields of the records below, for the assembler; contract.c compares them. */
#define GUEST_TOUCH_SIZE 12
#define GUEST_TOUCH_VALUE 4
#define GUEST_TOUCH_CODE 8
#define GUEST_TOUCH_STATUS 10
#define GUEST_SWEEP_SIZE 24
#define GUEST_SWEEP_REMAINING 16
#define GUEST_SWEEP_CODE 20

#ifndef __ASSEMBLER__

/*
 * One access of `width` bytes, made by one instruction.  `code` is one of
 * guest_labels.touch_read_* and .touch_write_*.  A read puts what it got, zero extended,
 * into `value`; a write stores the low bytes of `value`.  The guest touches `status` only
 * to write GUEST_STATUS_ABANDONED.
 */
struct guest_touch {
    uint32_t gpa;
    uint32_t value;
    uint16_t code;
    uint16_t status;
};

/*
 * One string instruction over `count` elements, address upward.  A write (rep stos) stores
 * `value` at each element from `destination` on and ignores `source`; a read (rep movs)
 * copies from `source` to `destination` and ignores `value`.  Both are gpas; a read's
 * destination is meant to lie in the buffer of the guest's slot.  `remaining` is what was
 * left of `count` when the record was finished (0) or given up.
 */
struct guest_sweep {
    uint32_t destination;
    uint32_t source;
    uint32_t count;
    uint32_t value;
    uint32_t remaining;
    uint16_t code;
    uint16_t reserved;
};

/*
 * Offsets within the image, written by the assembler; the last two are distances from the
 * start of the stub.
 */
struct guest_labels {
    uint16_t image_size;
    uint16_t touch_entry;
    uint16_t touch_skip;
    uint16_t touch_end;
    uint16_t touch_read_1;
    uint16_t touch_read_2;
    uint16_t touch_read_4;
    uint16_t touch_write_1;
    uint16_t touch_write_2;
    uint16_t touch_write_4;
    uint16_t sweep_entry;
    uint16_t sweep_skip;
    uint16_t sweep_end;
    uint16_t sweep_read_1;
    uint16_t sweep_read_2;
    uint16_t sweep_read_4;
    uint16_t sweep_write_1;
    uint16_t sweep_write_2;
    uint16_t sweep_write_4;
    uint16_t stub_size;
    uint16_t stub_identity;
};

extern const struct guest_labels guest_labels;
extern const unsigned char guest_image[];
extern const unsigned char guest_stub[];

#endif /* !__ASSEMBLER__ */
#endif /* GUESTS_CONTRACT_H */
