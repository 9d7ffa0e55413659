/* SPDX-License-Identifier: MIT */
/*
 * The contract between the guests and the host, defined here only.
 *
 * The assembler sources, the compiled module and (through cffi) Python all read this file.
 *
 * The machine.  One memslot of GUEST_SLOT_SIZE bytes, the guest's slot, at any gpa below
 * 4 GiB that is a multiple of its size; one vCPU, in real mode for gpas below 4 GiB:
 *
 *   CS, SS   base = gpa of the guest's slot, limit 0xffff, 16 bits (D/B clear)
 *   DS, ES   base = 0, limit 0xffffffff with G set ("big real mode"): a 32-bit offset is
 *            a gpa
 *   RIP      GUEST_TOUCHES or guest_labels.sweep_entry; other registers are free
 *   RFLAGS   0x2; no interrupt is ever injected, and the VM has no in-kernel irqchip
 *
 * and in 64-bit mode for gpas anywhere, 4 GiB and its border included:
 *
 *   CR3      gpa of the guest's slot + GUEST_PAGE_TABLES
 *   CS       64 bits; the other segments are flat
 *   RIP      GUEST_TOUCHES or one of guest_labels.long_sweeps
 *   RFLAGS   0x2, as above
 *
 * The page tables map the guest's slot to virtual address 0, so that an offset is an
 * address, and everything else through *windows*: window n, from 1 to GUEST_WINDOWS, maps
 * 4 MiB that begin at a multiple of 2 MiB to the virtual address n * GUEST_WINDOW_SIZE.
 * Windows begin every 2 MiB but are twice as large, so that an access across a border lies
 * entirely in one.  In this mode the records below hold virtual addresses instead of gpas.
 * The host fills in a window's entries when it is first needed, and never changes them
 * afterwards: an entry that was not present is cached nowhere, so that nothing needs to be
 * flushed and the vCPU keeps everything else it has cached.
 *
 * The slot begins with the image (guest_image), followed by the mailboxes.  All integers
 * are little endian.  An offset is a distance in bytes from the start of the slot, and is
 * what RIP holds.
 *
 * The guests access memory outside their slot only where a record asks for it.  A record
 * must not reach beyond 0xffffffff: that is a fault, which nothing handles.
 *
 * Both mailboxes are used in the same way.  The host writes records, then an end record, and
 * enters KVM_RUN.
 *
 *   - Any exit of KVM_RUN (an MMIO exit, say) belongs to the current record; those before it
 *     are finished.  In touch, the current record is the one that RIP is in; sweep keeps its
 *     offset in GUEST_SWEEP_CURSOR.  The next KVM_RUN completes an MMIO exit, as usual.
 *   - At the end the guest writes one byte to the port GUEST_PORT_END (KVM_EXIT_IO).  The
 *     next KVM_RUN starts again with the mailbox as it then is: no register needs to be set
 *     between two batches.
 *   - If a record cannot be finished (KVM_RUN fails with EFAULT, or reports an internal
 *     error), the host skips it: in touch by setting RIP to the next record, in sweep by
 *     setting RIP to .sweep_skip; no other register matters.  This must not be done while an
 *     MMIO exit is pending: KVM_RUN with immediate_exit set completes it first.
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
#define GUEST_PAGE_TABLES 0xc000

/* One table of each level; the second last holds the windows, two entries of 2 MiB each. */
#define GUEST_PAGE_TABLES_SIZE 0x4000
#define GUEST_WINDOW_SIZE 0x400000
#define GUEST_WINDOWS 255

/* How many records fit, the end record not counted. */
#define GUEST_MAX_SWEEPS 128
#define GUEST_MAX_TOUCHES 1023

#define GUEST_PORT_END 0xe0
#define GUEST_PORT_EXECUTED 0xe1

/* The offset of the stub in every page that can be executed. */
#define GUEST_STUB_PAGE_OFFSET 0x800

/*
 * What touch and sweep do: a read or a write, and its width in bytes.  The number is the index of a
 * touch's template and of a sweep's code; Python derives names, widths and directions from these
 * lines.  A list of templates ends with that of the end record.
 */
#define GUEST_ACCESS_READ_1 0
#define GUEST_ACCESS_READ_2 1
#define GUEST_ACCESS_READ_4 2
#define GUEST_ACCESS_WRITE_1 3
#define GUEST_ACCESS_WRITE_2 4
#define GUEST_ACCESS_WRITE_4 5
#define GUEST_ACCESSES 6
#define GUEST_TOUCH_END 6
#define GUEST_TOUCH_TEMPLATES 7

#define GUEST_LONG_RESULT_BYTE 4

/* Sizes and offsets of the records below, for the assembler; contract.c checks them. */
#define GUEST_TOUCH_SIZE 16
#define GUEST_SWEEP_SIZE 24
#define GUEST_SWEEP_REMAINING 16

#ifndef __ASSEMBLER__

/*
 * One access, as the instructions that make it: a copy of one of guest_touch_templates, or of
 * guest_long_touch_templates for 64-bit mode, with `gpa` set, and
 *
 *   for a write   the value in the first bytes of `tail`, as many as the access has,
 *   for a read    the offset of its result in two bytes of `tail`: the last ones in real
 *                 mode, GUEST_LONG_RESULT_BYTE and the next in 64-bit mode.
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
 * guest_labels.sweeps and, for the end record, .sweep_end.  A write (rep stos) stores
 * `value` at each element from `destination` on and ignores `source`; a read (rep movs)
 * copies from `source` to `destination` and ignores `value`.  Both are gpas; a read's
 * destination is meant to lie in the buffer of the guest's slot.  `remaining` is what is
 * left of `count`: the guest writes it (0) when the record is finished, and leaves the host's
 * value if the record is skipped.
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
 * Offsets within the image, written by the assembler; those of the stub are relative to its
 * start.  The stub holds the identity twice: for real mode and for 64-bit mode.
 */
struct guest_labels {
    uint16_t image_size;
    uint16_t sweep_entry;
    uint16_t sweep_skip;
    uint16_t sweep_end;
    uint16_t sweeps[GUEST_ACCESSES];
    uint16_t long_sweeps[GUEST_ACCESSES];
    uint16_t long_sweep_end;
    uint16_t stub_size;
    uint16_t stub_identity;
    uint16_t stub_long_identity;
};

extern const struct guest_labels guest_labels;
extern const unsigned char guest_image[];
extern const struct guest_touch guest_touch_templates[];
extern const struct guest_touch guest_long_touch_templates[];
extern const unsigned char guest_stub[];

#endif /* !__ASSEMBLER__ */
#endif /* GUESTS_CONTRACT_H */
