/*
 * A deliberately wrong kernel.
 *
 * This library sits between a program and the kernel (LD_PRELOAD), forwards the KVM ioctls and
 * corrupts one thing on the way: an errno, a mapping, a dirty bit, an MMIO exit. It proves that a
 * checker of KVM sees what it claims to see.
 *
 * For every VM it keeps a mirror: the slots as the caller must believe them to be, given a correct
 * kernel, and what each id really is in the kernel. Where the two differ on purpose, the difference
 * is made of real slots: the slot's own id, and hidden slots with ids that the caller does not use,
 * from the highest downward.
 *
 * A call for a slot of exactly 64 KiB is never altered: that is the size of the slot with the
 * guest's own code, without which nothing could be observed.
 */
#ifndef WRONG_KERNEL_H
#define WRONG_KERNEL_H

#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_BYTES 4096ull
#define GUEST_SLOT_BYTES 65536ull
#define SLOTS_PER_SPACE 32768u
#define MAX_SLOTS (2 * SLOTS_PER_SPACE)
#define MAX_PIECES 4
#define NO_OWNER UINT32_MAX

/* The layout of struct kvm_userspace_memory_region, with short names. */
struct region {
    uint32_t id; /* as_id in the high 16 bits */
    uint32_t flags;
    uint64_t gpa;
    uint64_t size;
    uint64_t hva;
};

/* The layout of struct kvm_userspace_memory_region2, which begins with the first form. */
struct region2 {
    struct region region;
    uint64_t guest_memfd_offset;
    uint32_t guest_memfd;
    uint32_t pad1;
    uint64_t pad2[14];
};

#define SET_REGION KVM_SET_USER_MEMORY_REGION
#define SET_REGION2 _IOW(KVMIO, 0x49, struct region2)
#define FLAG_GUEST_MEMFD (1u << 2)
#define CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, uint64_t[8])

/* struct kvm_pre_fault_memory, which older headers lack. */
struct pre_fault {
    uint64_t gpa;
    uint64_t size;
    uint64_t flags;
    uint64_t padding[5];
};

#define PRE_FAULT_MEMORY _IOWR(KVMIO, 0xd5, struct pre_fault)
#define SET_MEMORY_ATTRIBUTES _IOW(KVMIO, 0xd2, uint64_t[4])

struct ghost {
    struct ghost *next; /* of the same VM */
    uint64_t words;
    uint64_t bits[];
};

struct slot {
    bool live;            /* it exists as far as the caller knows */
    bool laid;            /* it is different in the kernel, on purpose */
    bool shaped;          /* and made different again after each change */
    bool untouchable;     /* guest_memfd: forwarded, never mangled */
    struct region known;  /* as the caller knows it, or last knew it */
    struct region real;   /* the kernel's slot with this id; size 0: none */
    uint32_t memfd;       /* its guest_memfd, if it is untouchable, */
    uint64_t memfd_offset; /* and the offset in it */
    uint32_t used_index;  /* its index in vm->used */
    uint32_t hidden_plus1; /* index + 1 of the hidden slot with this id, or 0 */
    uint32_t lives;       /* how many times it was created */
    uint32_t moves;       /* since it was created */
    uint32_t flag_changes; /* since it was created */
    uint64_t former_hva;  /* of the previous slot with this id */
    struct ghost *ghost;  /* a bitmap that some dirty log faults keep */
};

/* A clock that KVM writes to guest memory, as the caller set it. */
enum clock_kind { WALL_CLOCK, SYSTEM_TIME, STEAL_TIME, NR_CLOCKS };
#define CLOCKS_OF 8 /* vCPUs that have clocks here */

struct clock {
    enum clock_kind kind;
    bool was_set, on;
    uint64_t gpa;
    uint64_t first;     /* its hva when its vCPU ran first, or 0 */
    uint64_t now;       /* its hva before this run, or 0 */
    uint8_t before[64]; /* and the content there */
};

/* A slot that the caller does not know. */
struct hidden {
    struct region region;
    uint32_t owner; /* the slot it is a part of, or NO_OWNER: a left-over alias */
};

/* An entry of a guest's page tables, and its former low byte. */
struct entry {
    uint64_t gpa;
    uint8_t low;
};

/* A guest that starts with its own page tables: code and data are gpas, or UINT64_MAX. */
struct start {
    bool under_way, stores, loads;
    uint64_t tables, rip, code, data;
    struct entry entries[4], data_entries[4];
    uint8_t old[8]; /* the former data */
    uint32_t answer;
};

struct fault;

struct vm {
    int fd;
    uint64_t serial; /* counts the VMs of the program, from 1 */
    int references; /* the VM's descriptor and those of its vCPUs */
    pthread_mutex_t lock;
    const struct fault *fault;
    uint64_t sleeps_for; /* changes until the fault becomes active */
    bool awake;
    uint64_t every;      /* it strikes on every n-th occasion */
    uint64_t occasions;
    bool is_joint;
    uint32_t nr_ids;    /* of each address space */
    uint32_t nr_spaces; /* at most two */
    uint32_t nr_used;
    uint32_t nr_hidden;
    uint32_t next_hidden_id;
    struct {
        uint64_t changes, creates, deletes, moves, refused_creates, refusals, bad_pointers;
    } count;
    bool stashed; /* the active fault keeps one region for later */
    struct region stash;
    bool armed;   /* and one flag */
    unsigned runs_left; /* KVM_RUNs until it repairs what it broke last */
    uint64_t noted; /* a gpa of the page whose dirty bit will be wrong, or 0 */
    uint64_t tss; /* the gpa of the TSS, or 0 */
    bool has_answer;
    struct start answer; /* the last start that ended */
    uint64_t ring_bytes; /* of each vCPU's dirty ring; 0 is none */
    bool has_run;        /* a vCPU of it ran, last in the thread `runner` */
    pthread_t runner;
    struct ghost *ghosts;
    struct clock clocks[CLOCKS_OF][NR_CLOCKS];
    uint32_t used[MAX_SLOTS];
    struct hidden hidden[MAX_SLOTS];
    struct slot slots[MAX_SLOTS];
};

/* The kind of a guest's instruction; bits, so that a fault can name several. */
enum insn_kind {
    CMPXCHG = 1, XADD = 2, PAIR = 4, BTS = 8, XCHG = 16, UPDATE = 32, INC = 64,
    PUSH = 128, POP = 256, PUSHA = 512, CALL = 1024, ENTER = 2048, TABLE = 4096,
    MOVS = 8192, STOS = 16384, SCAS = 32768, CMPS = 65536,
    LODS = 1 << 17, COMPARE = 1 << 18, PUSHM = 1 << 19, POPM = 1 << 20, POPA = 1 << 21,
    FXSAVE = 1 << 22, LEAVE = 1 << 23, RET = 1 << 24, INS = 1 << 25, OUTS = 1 << 26,
    UPDATES = CMPXCHG | XADD | PAIR | BTS | XCHG | UPDATE | INC,
    OPERANDS = PUSHM | POPM,
    STACK = PUSH | POP | PUSHA | CALL | ENTER | POPA | LEAVE | RET | OPERANDS,
    PORTS = INS | OUTS,
    STRINGS = MOVS | STOS | SCAS | CMPS | LODS | PORTS,
    AT_DI = UPDATES | TABLE | COMPARE | FXSAVE | OPERANDS,
};

/* One instruction: its memory is at gpa, with this content before it. */
struct insn {
    bool under_way;
    unsigned kind;
    bool locked, down, repeated, is_long;
    uint64_t width, gpa, size, source;
    struct kvm_regs before, after;
    uint8_t old[0x4000];
    uint8_t operand[8];  /* the former content of its source, if that is a stack operand */
};

struct vcpu {
    struct vm *vm;
    int fd;
    unsigned references; /* one for its descriptor, and one for each KVM_RUN under way */
    struct start start;
    unsigned index;
    struct insn insn;    /* if the active fault looks at instructions */
    struct kvm_run *run; /* the caller's mapping, or NULL if it has none */
    struct kvm_dirty_gfn *ring; /* our own mapping, if the active fault looks at it */
    uint64_t entries;    /* ring entries that the fault has seen, and the last of them */
    struct kvm_dirty_gfn last;
};

/* Why a correct kernel refuses, in the order of its checks. */
enum refusal {
    NOT_REFUSED,
    FOREIGN_PROCESS,
    BAD_POINTER,
    UNKNOWN_FLAG,
    BAD_ID,
    SIZE_UNALIGNED,
    GPA_UNALIGNED,
    HVA_UNALIGNED,
    HVA_OF_KERNEL,
    BAD_SPACE,
    WRAPS,
    TOO_MANY_PAGES,
    ABSENT_DELETE,
    HVA_CHANGED,
    SIZE_CHANGED,
    READONLY_TOGGLED,
    CREATE_OVERLAPS,
    MOVE_OVERLAPS,
    CREATE_BEYOND_LAST_GFN,
    MOVE_BEYOND_LAST_GFN,
};

/* Which call on a guest_memfd goes wrong: a refusal, a success, or its effect. */
enum memfd_case {
    MEMFD_NOTHING,
    MEMFD_SIZE,
    MEMFD_FLAGS,
    MEMFD_NO_MMAP,
    MEMFD_PRIVATE_MMAP,
    MEMFD_BAD_FD,
    MEMFD_NOT_ONE,
    MEMFD_FOREIGN,
    MEMFD_PAST_END,
    MEMFD_BAD_OFFSET,
    MEMFD_OVERLAP,
    MEMFD_FLAGS_BESIDE,
    MEMFD_CHANGE,
    MEMFD_TOGGLE,
    MEMFD_PLACE, /* refused for its gpa, not for its guest_memfd */
    MEMFD_MAKE,
    MEMFD_MMAP,
    MEMFD_BIND,
    MEMFD_DELETE,
    MEMFD_CLOSE,
    MEMFD_SHIFTED,
    MEMFD_AT_START,
    MEMFD_HELD_BY_DELETED,
    MEMFD_HELD_BY_REFUSED,
    MEMFD_PUNCH,
    MEMFD_PUNCH_RANGE,
    MEMFD_PUNCH_MODE,
    MEMFD_PUNCH_UNBOUND,
    MEMFD_PUNCH_WIDE,
    MEMFD_PUNCH_FIRST,
    MEMFD_PUNCH_UNSEEN,
    MEMFD_ALLOCATE,
    MEMFD_ALLOCATE_ZEROS,
    MEMFD_KEPT_OPEN,
};

/* The change that a legal call makes; bits, so that a fault can name several. */
enum change { REFUSED = 0, CREATE = 1, DELETE = 2, MOVE = 4, FLAGS_ONLY = 8, NOTHING = 16 };

/* One KVM_SET_USER_MEMORY_REGION under way. */
struct call {
    unsigned long request;
    struct region2 sent;  /* what is sent to the kernel; initially what was asked */
    struct region asked;
    struct region old;    /* the slot before the call, if it was live */
    struct slot *slot;    /* NULL where the id has none */
    enum refusal refusal;
    enum change change;   /* REFUSED if refusal says why */
    bool withheld;        /* not to be sent: error is the answer */
    int error;            /* 0 or an errno */
};

/* One KVM_GET_DIRTY_LOG under way. */
struct log {
    struct kvm_dirty_log *argument;
    struct slot *slot; /* NULL where the id has none */
    uint64_t *bits;
    uint64_t pages, words;
    uint64_t before; /* the first word before the call */
    int error;
};

enum host_call { HOST_ADVISES, HOST_MAPS, HOST_PROTECTS, HOST_CUTS, HOST_GROWS, HOST_MOVES,
                 HOST_FORKS, HOST_FETCHES, HOST_GUARDS, HOST_COPIES };

/* A change of host memory, or of the size of its file. */
struct host_change {
    enum host_call kind;
    bool done;
    int detail; /* the advice, the protection, or whether pages are moved back */
    int fd;     /* the file that is mapped or resized, or -1 */
    uint64_t hva, size;
    uint64_t *part; /* for userfaultfd: an argument of the ioctl (length, or a page's source) */
};

/*
 * One way to be wrong. All hooks are optional, and run with the VM locked.
 *
 * witness: the shortest operations that show it, in the language of witness.c.
 */
struct fault {
    const char *name;
    const char *sentence;
    const char *witness;
    uint64_t every; /* default of the parameter of that name; 0 is 1 */

    /* A refusal, or a legal call, that gets this answer instead. */
    enum refusal refusal;
    bool (*legal)(struct vm *, struct call *);
    enum memfd_case memfd; /* likewise; the other hooks do not see slots with a guest_memfd */
    int answer;

    /* Region calls: before() may change call->sent or withhold it, after() sees the answer. */
    void (*before)(struct vm *, struct call *);
    void (*after)(struct vm *, struct call *);

    /* How a slot is laid out in the kernel after one of these changes: shape() fills up to
     * MAX_PIECES regions and returns how many, or -1 to leave the slot alone. */
    unsigned shapes_on;
    bool (*shape_when)(struct vm *, struct call *);
    int (*shape)(const struct region *, struct region *pieces);

    /* The VM was created; its file is about to be closed. */
    void (*made)(struct vm *);
    void (*closing)(struct vm *);

    /* KVM_SET_TSS_ADDR, KVM_SET_IDENTITY_MAP_ADDR and KVM_CREATE_IRQCHIP, after the call: returns
     * the answer, given the kernel's (an errno). */
    int (*placed)(struct vm *, unsigned long request, uint64_t argument, int error);

    /* KVM_CHECK_EXTENSION of the VM: returns the answer, given the kernel's. */
    int (*extension)(struct vm *, uintptr_t cap, int answer);

    /* KVM_(UN)REGISTER_COALESCED_MMIO and KVM_IOEVENTFD in place of the kernel: an errno. */
    int (*device)(struct vm *, unsigned long request, void *argument);

    /* KVM_SET_MSRS for a clock in place of the kernel: how many are set, or -1. After KVM_RUN: each
     * clock of the vCPU that was ever set. After KVM_KVMCLOCK_CTRL: the errno, given the
     * kernel's. */
    int (*set_clock)(struct vcpu *, struct clock *, struct kvm_msrs *);
    void (*clock)(struct vcpu *, struct clock *);
    int (*pause)(struct vcpu *, int error);

    /* KVM_PRE_FAULT_MEMORY, likewise. */
    int (*ahead)(struct pre_fault *, int error);

    /* KVM_SET_MEMORY_ATTRIBUTES, likewise. */
    int (*attributes)(int error);

    /* Dirty log: after the kernel's answer. */
    void (*log)(struct vm *, struct log *);
    void (*clear_log)(struct vm *, struct kvm_clear_dirty_log *, struct slot *);
    /* After the call: returns the answer, given the kernel's (an errno); slot may be NULL. */
    int (*cleared)(struct vm *, struct kvm_clear_dirty_log *, struct slot *, int error);

    /* KVM_ENABLE_CAP and KVM_RESET_DIRTY_RINGS in place of the kernel (the latter returns like
     * ioctl), and each new entry of a dirty ring before the caller sees it. */
    int (*enable_manual)(struct vm *, struct kvm_enable_cap *);
    int (*enable_ring)(struct vm *, struct kvm_enable_cap *);
    int (*reset)(struct vm *);
    void (*entry)(struct vcpu *, struct kvm_dirty_gfn *);

    /* KVM_RUN: enter() may answer in place of the kernel (an errno); leave() may change the exit,
     * and returns whether to enter the vCPU again, unseen by the caller. */
    int (*enter)(struct vcpu *);
    bool (*leave)(struct vcpu *);

    /* The caller is about to change its own memory; called again when it has. */
    void (*host_changes)(struct vm *vm, const struct host_change *);
};

/* Rows of faults that are one hook. */
#define BEFORE(fault_name, function, text, script)                                              \
    {.name = fault_name, .before = function, .sentence = text, .witness = script}
#define AFTER(fault_name, function, text, script)                                               \
    {.name = fault_name, .after = function, .sentence = text, .witness = script}
#define LOG(fault_name, function, text, script)                                                 \
    {.name = fault_name, .log = function, .sentence = text, .witness = script}

/* rings.c: capabilities and dirty rings. */
int forward_cap(struct vm *vm, struct kvm_enable_cap *cap);
int enable_cap(struct vm *vm, void *argument);
int reset_rings(struct vm *vm);
void map_ring(struct vcpu *vcpu, int fd);
void unmap_ring(struct vcpu *vcpu);
void show_entries(struct vcpu *vcpu);

/* calls_refused.c: calls that every VMM makes, and two that are no ioctl. */
enum { MMAP_OF_VCPU, CLOSE_OF_KVM };
bool answered_wrongly(int fd, unsigned long request, void *argument, int *result);
void spoil_exit(struct kvm_run *run);
void spoil_entry(struct kvm_run *run);
void spoil_former_vcpu(int fd);

/* select.c: which fault is active. */
void select_fault(struct vm *vm);
bool strike(struct vm *vm);
extern const struct fault answer_faults[], call_faults[], mapping_faults[], sequence_faults[],
    dirty_faults[], run_faults[], memfd_faults[], lives_faults[], tracking_faults[],
    places_faults[], ahead_faults[], leak_faults[], patch_faults[], insn_faults[], string_faults[],
    port_faults[], element_faults[], long_faults[], host_faults[], others_faults[], device_faults[],
    beside_faults[],
    start_faults[], clock_faults[], state_faults[], history_faults[], combined_faults[],
    refusal_faults[], condition_faults[], space_faults[], bystander_faults[];

/* kernel.c: the system call itself, and what a fault may do to a VM. All return 0 or an errno. */
int kernel_ioctl(int fd, unsigned long request, void *argument);
int kernel_set(struct vm *vm, struct region region);
int forward_device(struct vm *vm, unsigned long request, void *argument);
bool add_alias(struct vm *vm, struct region region, uint32_t owner);
bool drop_aliases_over(struct vm *vm, uint64_t gpa, uint64_t size);
void free_id(struct vm *vm, uint32_t id);
void lay(struct vm *vm, struct slot *slot, const struct region *pieces, int count);
void restore(struct vm *vm, struct slot *slot);
void lose(struct vm *vm, struct slot *slot);
void hide_changed(struct vm *vm, struct call *call);
void show_hidden(struct vm *vm);
bool show_hidden_at_exit(struct vcpu *vcpu);
uint64_t blank_page(void);

/* mirror.c: the slots as the caller knows them. */
struct slot *slot_of(struct vm *vm, uint32_t id);
bool open_call(struct vm *vm, struct call *call, unsigned long request, const void *argument);
void name_refusal(struct call *call);
void remember(struct vm *vm, struct call *call);
struct slot *slot_at(struct vm *vm, uint64_t gpa);
struct slot *next_above(struct vm *vm, uint64_t gpa);
struct slot *next_below(struct vm *vm, uint64_t gpa);
bool may_touch(const struct slot *slot);
/* insn.c: single instructions. begin_insn() is a hook, leave() calls the others. */
int begin_insn(struct vcpu *vcpu);
struct insn *ended_insn(struct vcpu *vcpu, unsigned kinds);
struct insn *exiting_insn(struct vcpu *vcpu, unsigned kinds, bool write);
void unwrite(struct vcpu *vcpu, const struct insn *insn, uint64_t first, uint64_t size);
void put_registers(struct vcpu *vcpu, struct insn *insn);
void read_guest(struct vm *vm, uint64_t gpa, uint8_t *data, uint64_t size);
void write_guest(struct vm *vm, uint64_t gpa, const uint8_t *data, uint64_t size);
bool readable(uint64_t hva, void *copy, size_t size);
void overwrite(uint64_t hva, void *data, size_t size);

/* faults_host.c: the mappings of the part of a file that is cut off or comes back. */
void note_resize(int fd, uint64_t size, void (*note)(const struct host_change *));

/* faults_clocks.c: the complete ioctls, and the work before and after KVM_RUN. */
int set_msrs(struct vcpu *vcpu, void *argument);
int pause_clock(struct vcpu *vcpu);
void watch_clocks(struct vcpu *vcpu);
void spoil_clocks(struct vcpu *vcpu);

/* faults_ahead.c: the two complete ioctls. */
int set_attributes(struct vm *vm, void *argument);
int pre_fault_memory(int fd, struct vcpu *vcpu, struct pre_fault *range);

/* faults_memfd.c: everything on guest_memfds. */
int create_memfd(struct vm *vm, const void *argument);
void forget_memfd(int fd);
void wrong_mmap(int fd, int flags, size_t size, void **mapped);
int punch_memfd(int fd, int mode, int64_t offset, int64_t size);
bool concerns_memfd(const struct call *call);
void set_memfd_region(struct vm *vm, struct call *call);

extern const struct fault race_faults[], thread_faults[]; /* faults_races.c, faults_threads.c */

/* faults_lives.c: a socket whose messages nobody receives; sends it a file to keep it open. */
int lost_and_found(void);
void keep_open(int fd);

/* interpose.c: the VM of a descriptor, if it still is the one with this serial. */
struct vm *vm_of(int fd, uint64_t serial);
/* Iterates over the other VMs: starts after NULL, and ends with NULL. */
struct vm *next_besides(const struct vm *vm, const struct vm *after);

/* regions.c, dirty.c: the complete ioctls. */
void forward(struct vm *vm, struct call *call);
int set_region(struct vm *vm, unsigned long request, void *argument);
int into_nothing(const struct region *region, struct region *pieces); /* a shape */
uint64_t *ghost_of(struct vm *vm, const struct log *log);
int get_dirty_log(struct vm *vm, void *argument);
int clear_dirty_log(struct vm *vm, void *argument);

/* Did the caller see this change succeed? */
static inline bool did(const struct call *call, unsigned changes)
{
    return !call->error && (call->change & changes);
}

static inline uint64_t end_of(const struct region *region)
{
    return region->gpa + region->size;
}

static inline bool overlap(const struct region *one, const struct region *other)
{
    return one->gpa < end_of(other) && other->gpa < end_of(one);
}

static inline uint64_t pages_of(const struct region *region)
{
    return region->size / PAGE_BYTES;
}

#endif
