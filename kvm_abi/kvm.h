/*
 * The structures of KVM's userspace ABI (x86-64), restated from
 * Documentation/virt/kvm/api.rst so that the age of the installed <linux/kvm.h>
 * does not matter.
 *
 * kvm_abi/_build.py gives this one text both to cffi and to the C compiler, so
 * it keeps to what both understand: no preprocessor, array sizes as literals.
 * ioctl numbers and constants are in uapi.py. tests/unit/test_abi.py compares
 * all of it with the installed header.
 */

/* KVM_SET_USER_MEMORY_REGION */
struct kvm_userspace_memory_region {
    uint32_t slot; /* bits 0-15: slot id, bits 16-31: as_id */
    uint32_t flags;
    uint64_t guest_phys_addr;
    uint64_t memory_size; /* bytes; 0 deletes the slot */
    uint64_t userspace_addr;
};

/* KVM_REGISTER_COALESCED_MMIO, KVM_UNREGISTER_COALESCED_MMIO */
struct kvm_coalesced_mmio_zone {
    uint64_t addr;
    uint32_t size; /* bytes */
    uint32_t pio;
};

/* An entry of the ring of coalesced writes. */
struct kvm_coalesced_mmio {
    uint64_t phys_addr;
    uint32_t len;
    uint32_t pio;
    uint8_t data[8];
};

/* KVM_IOEVENTFD */
struct kvm_ioeventfd {
    uint64_t datamatch;
    uint64_t addr;
    uint32_t len; /* 1, 2, 4 or 8 bytes; 0: any */
    int32_t fd;
    uint32_t flags;
    uint8_t pad[36];
};

/* KVM_SET_USER_MEMORY_REGION2 */
struct kvm_userspace_memory_region2 {
    uint32_t slot;
    uint32_t flags;
    uint64_t guest_phys_addr;
    uint64_t memory_size;
    uint64_t userspace_addr;
    uint64_t guest_memfd_offset;
    uint32_t guest_memfd;
    uint32_t pad1;
    uint64_t pad2[14];
};

/* KVM_CREATE_GUEST_MEMFD */
struct kvm_create_guest_memfd {
    uint64_t size; /* bytes */
    uint64_t flags;
    uint64_t reserved[6];
};

/* KVM_SET_MEMORY_ATTRIBUTES */
struct kvm_memory_attributes {
    uint64_t address; /* gpa */
    uint64_t size;    /* bytes */
    uint64_t attributes;
    uint64_t flags;
};

/* KVM_PRE_FAULT_MEMORY: gpa and size advance by what was done. */
struct kvm_pre_fault_memory {
    uint64_t gpa;
    uint64_t size; /* bytes */
    uint64_t flags;
    uint64_t padding[5];
};

/* KVM_GET_DIRTY_LOG: the bitmap holds one bit a page, rounded up to 64. */
struct kvm_dirty_log {
    uint32_t slot;
    uint32_t padding1;
    union {
        void *dirty_bitmap;
        uint64_t padding2;
    };
};

/* KVM_CLEAR_DIRTY_LOG */
struct kvm_clear_dirty_log {
    uint32_t slot;
    uint32_t num_pages;
    uint64_t first_page;
    union {
        void *dirty_bitmap;
        uint64_t padding2;
    };
};

/* One entry of a vCPU's dirty ring. */
struct kvm_dirty_gfn {
    uint32_t flags;
    uint32_t slot;   /* slot id and as_id, as in a memory region */
    uint64_t offset; /* pages from the start of the slot */
};

/* KVM_ENABLE_CAP */
struct kvm_enable_cap {
    uint32_t cap;
    uint32_t flags;
    uint64_t args[4];
    uint8_t pad[64];
};

/* KVM_GET_REGS, KVM_SET_REGS */
struct kvm_regs {
    uint64_t rax, rbx, rcx, rdx;
    uint64_t rsi, rdi, rsp, rbp;
    uint64_t r8, r9, r10, r11;
    uint64_t r12, r13, r14, r15;
    uint64_t rip, rflags;
};

struct kvm_segment {
    uint64_t base;
    uint32_t limit; /* bytes - 1 */
    uint16_t selector;
    uint8_t type;
    uint8_t present, dpl, db, s, l, g, avl;
    uint8_t unusable;
    uint8_t padding;
};

struct kvm_dtable {
    uint64_t base;
    uint16_t limit;
    uint16_t padding[3];
};

/* KVM_GET_SREGS, KVM_SET_SREGS */
struct kvm_sregs {
    struct kvm_segment cs, ds, es, fs, gs, ss;
    struct kvm_segment tr, ldt;
    struct kvm_dtable gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8;
    uint64_t efer;
    uint64_t apic_base;
    uint64_t interrupt_bitmap[4];
};

/* KVM_GET_SUPPORTED_CPUID, KVM_SET_CPUID2 */
struct kvm_cpuid_entry2 {
    uint32_t function;
    uint32_t index;
    uint32_t flags;
    uint32_t eax;
    uint32_t ebx;
    uint32_t ecx;
    uint32_t edx;
    uint32_t padding[3];
};

struct kvm_cpuid2 {
    uint32_t nent;
    uint32_t padding;
    struct kvm_cpuid_entry2 entries[];
};

/* KVM_GET_MSRS, KVM_SET_MSRS */
struct kvm_msr_entry {
    uint32_t index;
    uint32_t reserved;
    uint64_t data;
};

struct kvm_msrs {
    uint32_t nmsrs;
    uint32_t pad;
    struct kvm_msr_entry entries[];
};

/* KVM_GET_LAPIC, KVM_SET_LAPIC */
struct kvm_lapic_state {
    char regs[0x400];
};

/* KVM_SET_VAPIC_ADDR */
struct kvm_vapic_addr {
    uint64_t vapic_addr;
};

/* KVM_GET_MP_STATE, KVM_SET_MP_STATE */
struct kvm_mp_state {
    uint32_t mp_state;
};

/* KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS */
struct kvm_vcpu_events_exception {
    uint8_t injected;
    uint8_t nr;
    uint8_t has_error_code;
    uint8_t pending;
    uint32_t error_code;
};

struct kvm_vcpu_events_interrupt {
    uint8_t injected;
    uint8_t nr;
    uint8_t soft;
    uint8_t shadow;
};

struct kvm_vcpu_events_nmi {
    uint8_t injected;
    uint8_t pending;
    uint8_t masked;
    uint8_t pad;
};

struct kvm_vcpu_events_smi {
    uint8_t smm;
    uint8_t pending;
    uint8_t smm_inside_nmi;
    uint8_t latched_init;
};

struct kvm_vcpu_events_triple_fault {
    uint8_t pending;
};

struct kvm_vcpu_events {
    struct kvm_vcpu_events_exception exception;
    struct kvm_vcpu_events_interrupt interrupt;
    struct kvm_vcpu_events_nmi nmi;
    uint32_t sipi_vector;
    uint32_t flags;
    struct kvm_vcpu_events_smi smi;
    struct kvm_vcpu_events_triple_fault triple_fault;
    uint8_t reserved[26];
    uint8_t exception_has_payload;
    uint64_t exception_payload;
};

/* The arms of kvm_run, named after the exit reason that fills them. */
struct kvm_exit_unknown {
    uint64_t hardware_exit_reason;
};

struct kvm_exit_fail_entry {
    uint64_t hardware_entry_failure_reason;
    uint32_t cpu;
};

struct kvm_exit_exception {
    uint32_t exception;
    uint32_t error_code;
};

struct kvm_exit_io {
    uint8_t direction;
    uint8_t size; /* bytes of one access */
    uint16_t port;
    uint32_t count;       /* accesses */
    uint64_t data_offset; /* bytes from the start of kvm_run */
};

struct kvm_debug_exit_arch {
    uint32_t exception;
    uint32_t pad;
    uint64_t pc;
    uint64_t dr6;
    uint64_t dr7;
};

struct kvm_exit_debug {
    struct kvm_debug_exit_arch arch;
};

struct kvm_exit_mmio {
    uint64_t phys_addr;
    uint8_t data[8];
    uint32_t len; /* bytes */
    uint8_t is_write;
};

struct kvm_exit_hypercall {
    uint64_t nr;
    uint64_t args[6];
    uint64_t ret;
    uint32_t longmode;
};

struct kvm_exit_tpr_access {
    uint64_t rip;
    uint32_t is_write;
    uint32_t pad;
};

struct kvm_exit_internal {
    uint32_t suberror;
    uint32_t ndata;
    uint64_t data[16];
};

struct kvm_exit_emulation_failure {
    uint32_t suberror;
    uint32_t ndata;
    uint64_t flags;
    uint8_t insn_size; /* bytes */
    uint8_t insn_bytes[15];
};

struct kvm_exit_system_event {
    uint32_t type;
    uint32_t ndata;
    union {
        uint64_t flags;
        uint64_t data[16];
    };
};

struct kvm_exit_eoi {
    uint8_t vector;
};

struct kvm_exit_hyperv_synic {
    uint32_t msr;
    uint32_t pad2;
    uint64_t control;
    uint64_t evt_page;
    uint64_t msg_page;
};

struct kvm_exit_hyperv_hcall {
    uint64_t input;
    uint64_t result;
    uint64_t params[2];
};

struct kvm_exit_hyperv_syndbg {
    uint32_t msr;
    uint32_t pad2;
    uint64_t control;
    uint64_t status;
    uint64_t send_page;
    uint64_t recv_page;
    uint64_t pending_page;
};

union kvm_hyperv_exit_details {
    struct kvm_exit_hyperv_synic synic;
    struct kvm_exit_hyperv_hcall hcall;
    struct kvm_exit_hyperv_syndbg syndbg;
};

struct kvm_hyperv_exit {
    uint32_t type;
    uint32_t pad1;
    union kvm_hyperv_exit_details u;
};

struct kvm_exit_msr {
    uint8_t error; /* in */
    uint8_t pad[7];
    uint32_t reason;
    uint32_t index;
    uint64_t data; /* in for a read, out for a write */
};

struct kvm_exit_xen_hcall {
    uint32_t longmode;
    uint32_t cpl;
    uint64_t input;
    uint64_t result;
    uint64_t params[6];
};

union kvm_xen_exit_details {
    struct kvm_exit_xen_hcall hcall;
};

struct kvm_xen_exit {
    uint32_t type;
    union kvm_xen_exit_details u;
};

struct kvm_exit_notify {
    uint32_t flags;
};

struct kvm_exit_memory_fault {
    uint64_t flags;
    uint64_t gpa;
    uint64_t size; /* bytes */
};

/* The synchronised registers are not used here: their room alone counts. */
union kvm_sync_area {
    char padding[2048];
};

/* Shared with the kernel: mmap of a vCPU file at offset 0. */
struct kvm_run {
    uint8_t request_interrupt_window; /* in */
    uint8_t immediate_exit;           /* in */
    uint8_t padding1[6];

    uint32_t exit_reason;
    uint8_t ready_for_interrupt_injection;
    uint8_t if_flag;
    uint16_t flags;

    uint64_t cr8;
    uint64_t apic_base;

    union {
        struct kvm_exit_unknown hw;
        struct kvm_exit_fail_entry fail_entry;
        struct kvm_exit_exception ex;
        struct kvm_exit_io io;
        struct kvm_exit_debug debug;
        struct kvm_exit_mmio mmio;
        struct kvm_exit_hypercall hypercall;
        struct kvm_exit_tpr_access tpr_access;
        struct kvm_exit_internal internal;
        struct kvm_exit_emulation_failure emulation_failure;
        struct kvm_exit_system_event system_event;
        struct kvm_exit_eoi eoi;
        struct kvm_hyperv_exit hyperv;
        struct kvm_exit_msr msr;
        struct kvm_xen_exit xen;
        struct kvm_exit_notify notify;
        struct kvm_exit_memory_fault memory_fault;
        char padding[256];
    };

    uint64_t kvm_valid_regs;
    uint64_t kvm_dirty_regs;
    union kvm_sync_area s;
};
