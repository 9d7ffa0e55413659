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
 *   RIP      GUEST_TOUCHES or guest_labels.sweep_entry; other registers are free
 *   RFLAGS   0x2; no interrupt is ever injected, and the VM has no in-kernel irqchip
 *
 * The slot begins with the image (guest_image); behind it lie the mailboxes.  All integers
 * are little endian.  An offset is a distance in bytes from the start of the slot, and is
 * what RIP holds.
 *
 * The guests use no memory outside their slot besides what a record asks for.  A record
 * must not reach beyond 0xffffffff: that is a fault, and nobody handles it.
 *
 * Both mailboxes are used alike.  The host writes records, and behind them an end record,
 * then enters KVM_RUN.
 *
 *   - Whatever KVM_RUN hands out (an MMIO exit, say) belongs to the record under way; those
 *     before it are finished.  In touch, the record under way is the one RIP lies in; sweep
 *     keeps its offset in GUEST_SWEEP_CURSOR.  An MMIO exit is completed by the next
 *     KVM_RUN, as usual.
 *   - At the end the guest writes one byte to the port GUEST_PORT_END (KVM_EXIT_IO).  The
 *     next KVM_RUN starts over with whatever the mailbox then holds: no register needs to
 *     be set between two batches.
 *   - When a record cannot be finished (KVM_RUN fails with EFAULT, or reports an internal
 *     error) the host gives it up and goes on: in touch by setting RIP to the next record,
 *     in sweep by setting it to .sweep_skip; no other register matters.  Not while an MMIO
 *     exit is pending: KVM_RUN with immediate_exit set completes it first.
 */
#ifndef GUESTS_CONTRACT_H
#define GUESTS_CONTRACT_H

#define GUEST_SLOT_SIZE 0x10000

/* The slot's parts, as offsets. */
#define GUEST_IMAGE_SIZE_MAX 0x1000
#define GUEST_SWEEP_CURSOR 0x1000
#define GUEST_SWEEPS 0x1010
#define GUEST_SWEEP_BUFFER 0x2000
#define GUEST_SWEEP_BUFFER_SIZE 0x4000
#define GUEST_TOUCH_RESULTS 0x6000
#define GUEST_TOUCHES 0x8000

/* How many records fit, the end record not counted. */
#define GUEST_MAX_SWEEPS 128
#define GUEST_MAX_TOUCHES 2047

#define GUEST_PORT_END 0xe0
#define GUEST_PORT_EXECUTED 0xe1

/* Where a page that can be executed carries its stub: the same place in every page. */
#define GUEST_STUB_PAGE_OFFSET 0x800

/* What a touch does: the index of its template.  A read or a write, and its width. */
#define GUEST_TOUCH_READ_1 0
#define GUEST_TOUCH_READ_2 1
#define GUEST_TOUCH_READ_4 2
#define GUEST_TOUCH_WRITE_1 3
#define GUEST_TOUCH_WRITE_2 4
#define GUEST_TOUCH_WRITE_4 5
#define GUEST_TOUCH_END 6
#define GUEST_TOUCH_TEMPLATES 7

/* Sizes and fields of the records below, for the assembler; contract.c compares them. */
#define GUEST_TOUCH_SIZE 16
#define GUEST_SWEEP_SIZE 24
#define GUEST_SWEEP_REMAINING 16

#ifndef __ASSEMBLER__

/*
 * One access, as the instructions that make it: a copy of one of guest_touch_templates with
 * `gpa` set, and
 *
 *   for a write   the value in the first bytes of `tail`, as many as the access has,
 *   for a read    the offset of its result in the last two bytes of `tail`.
 *
 * The end record is a plain copy of its template.
 *
 * The results are 32-bit integers at GUEST_TOUCH_RESULTS, by the record's index.  A read
 * stores as many bytes as the access has; the host clears the result beforehand.
 */
struct guest_touch {
    uint32_t head;
    uint32_t gpa;
    uint64_t tail;
};

/*
 * One string instruction over `count` elements, address upward; `code` is one of
 * guest_labels.sweep_read_*, .sweep_write_* and, for the end record, .sweep_end.  A write (rep stos) stores
 * `value` at each element from `destination` on and ignores `source`; a read (rep movs)
 * copies from `source` to `destination` and ignores `value`.  Both are gpas; a read's
 * destination is meant to lie in the buffer of the guest's slot.  `remaining` is what is
 * left of `count`: the guest writes it (0) when the record is finished, and leaves what the
 * host had put there when the record is given up.
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
extern const struct guest_touch guest_touch_templates[];
extern const unsigned char guest_stub[];

#endif /* !__ASSEMBLER__ */
#endif /* GUESTS_CONTRACT_H */
