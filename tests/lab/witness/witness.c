/*
 * Plays short scripts of memslot operations on /dev/kvm, and prints the outcome of each.
 *
 * It does not know which answers are right: a script that is played with a fault and without
 * one shows the fault by its two outputs. One line of input is a fault's name ("-" for none), a tab
 * and a script; one line of output is what happened. Each script has a VM of its own.
 *
 *   set ID GPA SIZE HVA [log|ro|ro+log|unknown]   KVM_SET_USER_MEMORY_REGION, in pages
 *   child ID GPA SIZE HVA    the same from a forked child
 *   delete ID                the same with everything else 0
 *   pointer                  the same with a bad pointer
 *   fill N, empty N          N one-page slots, ids 0 to N - 1, at gpa 0x1000, 0x1002, ...
 *   read GPA, write GPA      a guest's access of four bytes
 *   log ID                   KVM_GET_DIRTY_LOG
 *   clear ID FIRST COUNT [hole]  KVM_CLEAR_DIRTY_LOG, every bit of the bitmap set
 *   cap manual|ring ARGUMENT KVM_ENABLE_CAP; a vCPU is made by the first access or harvest
 *   harvest, reset           what is in the dirty ring; KVM_RESET_DIRTY_RINGS
 *   memfd PAGES FLAGS        KVM_CREATE_GUEST_MEMFD; the files are 0, 1, ...
 *   foreign PAGES            the same in another VM
 *   bind ID GPA SIZE HVA FILE OFFSET [ro]   KVM_SET_USER_MEMORY_REGION2 with a guest_memfd
 *   punch FILE PAGE PAGES [grow|fill]       fallocate(2) with PUNCH_HOLE and KEEP_SIZE; grow: not
 *                                           with KEEP_SIZE, fill: not with PUNCH_HOLE
 *   cover FILE PAGES         map a file over the pages at the start of the pool
 *   show FILE shared|private, unmake FILE   mmap(2) and close(2) of one
 *   vms N                    N VMs are made and closed: which files and how much memory stay?
 *   coalesce GPA N, uncoalesce GPA N, kept   KVM_(UN)REGISTER_COALESCED_MMIO, and its ring
 *   event GPA LENGTH [MATCH], unevent ...    KVM_IOEVENTFD
 *   clock wall|system|steal GPA [1], unclock CLOCK   KVM_SET_MSRS, on vCPU 0 or 1; unaligned: odd
 *   pause, bit HVA N         KVM_KVMCLOCK_CTRL; a bit of a byte of the pool
 *   switch N                 another VM, made when it is first named
 *   newvm                    the VM is closed, and another one made
 *   shuttle N                a slot is moved N times: how much of the kernel's memory stays?
 *   again N OPERATION        the same N times, unseen: how much of the kernel's memory stays?
 *   passing                  a logged slot is created and deleted
 *   refusedfile              a guest_memfd is made, cannot be bound past its end, and is closed
 *   drop PAGE N              MADV_DONTNEED of the pool's pages
 *   protect PAGE N none|ro|rw, fresh PAGE N, unmap PAGE N   mprotect(2), mmap(2) of them
 *   fetch PAGE N, guard PAGE N, settle   userfaultfd: how often was somebody held up?
 *   moveaway PAGE N, moveback PAGE N, pageout PAGE N, collapse PAGE N, forked   likewise
 *   file PAGE N shared|private, truncate PAGES   a memory file over them, and its size
 *   readhigh GPA             a read of four bytes in 64-bit mode
 *   tss GPA, identity GPA    KVM_SET_TSS_ADDR, KVM_SET_IDENTITY_MAP_ADDR, in bytes
 *   irqchip, vcpu            KVM_CREATE_IRQCHIP, KVM_CREATE_VCPU
 *   second                   the vCPU that is made is vCPU 1
 *   ahead GPA N              KVM_PRE_FAULT_MEMORY of N pages
 *   attribute GPA N BITS     KVM_SET_MEMORY_ATTRIBUTES of N pages
 *   tables PAGE GPA TARGET BITS   page tables, and programs after them, in the pool
 *   gates PAGE HANDLER       an interrupt table, and after it code, for real mode, in the pool
 *   interrupt CODE STACK TABLE   an interrupt that is raised there
 *   start TABLES ADDRESS [DATA [VALUE]]   a guest with those, at a program of them
 *   thread OPERATION         the same from another thread, which is waited for
 *
 * Numbers are hexadecimal but for ids and N. "1+800" is a page and 0x800 bytes. ID may be
 * "last", "beyond" or "1/1" (address space 1); GPA "last", "beyond" or "top"; HVA, else a page
 * of the pool, "null", "hole" or "kernel". FILE may be "none" or "other" (no guest_memfd), or
 * "plain": the second form without one.
 */
#include "witness.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define GUEST_SIZE 65536u
#define GUEST_ID 32762
#define MMIO_ANSWER 0x5a5a0000u
#define LOG_WORDS 64

/* Real mode with 32-bit addresses and operands: eax = [ebx]; hlt, and [ebx] = eax; hlt. */
static const uint8_t code[] = {0x67, 0x66, 0x8b, 0x03, 0xf4, 0, 0, 0, 0x67, 0x66, 0x89, 0x03, 0xf4};
enum { READ_ENTRY = 0, WRITE_ENTRY = 8 };

#define MAX_FILES 4

struct region2 {
    struct kvm_userspace_memory_region region;
    uint64_t guest_memfd_offset;
    uint32_t guest_memfd, pad1;
    uint64_t pad2[14];
};

int kvm, vm;
static int other_vm = -1, vcpu = -1, vcpu_id, run_size, files[MAX_FILES], nr_files;
static struct kvm_dirty_gfn *ring;
static uint64_t ring_bytes, harvested;
struct kvm_run *run;
uint8_t *guest, *pool, *shadow;
static uint8_t *hole;
static uint64_t covered; /* bytes of the pool that map a guest_memfd */

void need(int good, const char *what)
{
    if (good)
        return;
    perror(what);
    exit(3);
}

static void *map(size_t size, int protection)
{
    void *mapped = mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    need(mapped != MAP_FAILED, "mmap");
    return mapped;
}

static const char *error_name(int error)
{
    const char *name = strerrorname_np(error);

    return name ? name : "?";
}

uint64_t pages(const char *text)
{
    char *end;
    uint64_t bytes = strtoull(text, &end, 16) * PAGE;

    return *end == '+' ? bytes + strtoull(end + 1, NULL, 16) : bytes;
}

static uint32_t id_of(const char *text)
{
    uint32_t count = (uint32_t)ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS);
    const char *slash = strchr(text, '/');

    if (!strcmp(text, "last"))
        return count - 1;
    if (!strcmp(text, "beyond"))
        return count;
    return slash ? (uint32_t)(atoi(text) << 16 | atoi(slash + 1)) : (uint32_t)atoi(text);
}

static int set_region(uint32_t id, uint64_t gpa, uint64_t size, uint64_t hva, uint32_t flags)
{
    struct kvm_userspace_memory_region region = {
        .slot = id, .flags = flags, .guest_phys_addr = gpa, .memory_size = size,
        .userspace_addr = hva,
    };

    return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) ? errno : 0;
}

/* The last page up to the last gfn, found by trying: a slot beyond it is EINVAL. */
static uint64_t last_page(void)
{
    for (int bits = 52; bits > 32; bits--) {
        uint64_t gpa = (1ull << bits) - PAGE;
        const char *fault = getenv("WRONG_KERNEL");
        char kept[128];
        int other, error;
        snprintf(kept, sizeof(kept), "%s", fault ? fault : "");
        unsetenv("WRONG_KERNEL");
        other = vm;
        vm = ioctl(kvm, KVM_CREATE_VM, 0);
        error = set_region(1, gpa, PAGE, (uint64_t)pool, 0);
        close(vm);
        vm = other;
        setenv("WRONG_KERNEL", kept, 1);
        if (!error)
            return gpa;
    }
    return 0;
}

static uint64_t gpa_of(const char *text)
{
    if (!strcmp(text, "top"))
        return -PAGE;
    if (!strcmp(text, "last"))
        return last_page();
    return strcmp(text, "beyond") ? pages(text) : 1ull << 52;
}

static uint64_t hva_of(const char *text)
{
    if (!strcmp(text, "null"))
        return 0;
    if (!strcmp(text, "kernel"))
        return 0xffff800000000000ull;
    return !strcmp(text, "hole") ? (uint64_t)hole : (uint64_t)pool + pages(text);
}

static uint32_t flags_of(const char *text)
{
    return (strstr(text, "log") ? KVM_MEM_LOG_DIRTY_PAGES : 0)
        | (strstr(text, "ro") ? KVM_MEM_READONLY : 0) | (strstr(text, "unknown") ? 1u << 7 : 0);
}

void show_error(int error)
{
    printf(" %s", error ? error_name(error) : "0");
}

static int set_from_words(char words[][32], int count)
{
    return set_region(id_of(words[1]), gpa_of(words[2]), pages(words[3]), hva_of(words[4]),
                      count > 5 ? flags_of(words[5]) : 0);
}

static int set_in_child(char words[][32], int count)
{
    int status;
    pid_t child = fork();

    need(child >= 0, "fork");
    if (child == 0)
        _exit(set_from_words(words, count));
    need(waitpid(child, &status, 0) == child, "waitpid");
    return WEXITSTATUS(status);
}

/* Looks for what the guest wrote in all memory that it could have reached. */
static void show_written_pages(void)
{
    for (uint64_t page = 0; page < POOL_PAGES; page++) {
        uint8_t *now = pool + page * PAGE, *before = shadow + page * PAGE;
        if (!may_look_at(page) || !memcmp(now, before, PAGE))
            continue;
        printf(" page %llx", (unsigned long long)page);
        memcpy(before, now, PAGE);
    }
}

static void show_mmio(uint32_t *answer)
{
    uint32_t value = 0;

    memcpy(&value, run->mmio.data, run->mmio.len);
    printf(" mmio %s %llx/%u", run->mmio.is_write ? "write" : "read",
           (unsigned long long)run->mmio.phys_addr, run->mmio.len);
    if (run->mmio.is_write)
        printf(" %x", value);
    else
        memcpy(run->mmio.data, answer, sizeof(*answer));
}

/* A vCPU is created on first use: some capabilities must be enabled before. */
int need_vcpu(void)
{
    struct kvm_sregs special;

    if (vcpu >= 0)
        return vcpu;
    vcpu = ioctl(vm, KVM_CREATE_VCPU, vcpu_id);
    need(vcpu >= 0, "KVM_CREATE_VCPU");
    run = mmap(NULL, (size_t)run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    need(run != MAP_FAILED, "mmap of kvm_run");
    need(ioctl(vcpu, KVM_GET_SREGS, &special) == 0, "KVM_GET_SREGS");
    special.cs.base = GUEST_GPA;
    special.ds.limit = special.es.limit = special.ss.limit = 0xffffffff;
    special.ds.g = special.es.g = special.ss.g = special.ss.db = 1;
    need(ioctl(vcpu, KVM_SET_SREGS, &special) == 0, "KVM_SET_SREGS");
    if (!ring_bytes)
        return vcpu;
    ring = mmap(NULL, ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu,
                KVM_DIRTY_LOG_PAGE_OFFSET * PAGE);
    need(ring != MAP_FAILED, "mmap of the dirty ring");
    return vcpu;
}

static void access_gpa(uint64_t gpa, int write)
{
    uint32_t answer = MMIO_ANSWER;
    struct kvm_regs registers = {
        .rip = write ? WRITE_ENTRY : READ_ENTRY, .rflags = 2, .rbx = gpa, .rax = 0x77770001,
    };

    need_vcpu();
    need(ioctl(vcpu, KVM_SET_REGS, &registers) == 0, "KVM_SET_REGS");
    for (int exits = 0; exits < 8; exits++) {
        if (ioctl(vcpu, KVM_RUN, 0)) {
            show_error(errno);
            return;
        }
        if (run->exit_reason != KVM_EXIT_MMIO)
            break;
        show_mmio(&answer);
    }
    need(ioctl(vcpu, KVM_GET_REGS, &registers) == 0, "KVM_GET_REGS");
    printf(" exit %u eax %llx", run->exit_reason, (unsigned long long)registers.rax);
    show_written_pages();
}

static uint64_t number(char words[][32], int count, int at)
{
    return at < count ? strtoull(words[at], NULL, 16) : 0;
}

static void wake(int signal)
{
    (void)signal;
}

/* Some instructions never exit outside memory: that is a result, too. */
void limit_run(int microseconds)
{
    const struct itimerval every = {
        .it_value.tv_usec = microseconds, .it_interval.tv_usec = microseconds,
    };
    struct sigaction action = {.sa_handler = wake};

    sigaction(SIGPROF, &action, NULL);
    setitimer(ITIMER_PROF, &every, NULL);
}

/* insn CODE GPA [BX AX CX DX SI down]: one instruction, and a halt after it. */
static void run_insn(char words[][32], int count)
{
    uint64_t gpa = number(words, count, 2);
    uint8_t *to = guest + 0x8000;
    uint32_t sum = 0;
    struct kvm_regs registers = {
        .rip = 0x8000, .rflags = count > 8 ? 0x402 : 2, .rdi = gpa,
        .rbx = number(words, count, 3), .rax = number(words, count, 4),
        .rcx = number(words, count, 5), .rdx = number(words, count, 6),
        .rsi = number(words, count, 7), .rbp = 0x77, .rsp = gpa + 0x20,
    };

    for (const char *digits = words[1]; *digits; digits += 2)
        sscanf(digits, "%2hhx", to++);
    *to = 0xf4;
    need_vcpu();
    need(ioctl(vcpu, KVM_SET_REGS, &registers) == 0, "KVM_SET_REGS");
    limit_run(100000);
    for (int exits = 0; exits < 16; exits++) {
        if (ioctl(vcpu, KVM_RUN, 0)) {
            limit_run(0);
            show_error(errno);
            return;
        }
        if (run->exit_reason == KVM_EXIT_IO) {
            uint8_t *at = (uint8_t *)run + run->io.data_offset;
            printf(" port %u*%u %02x", run->io.count, run->io.size, at[0]);
            memset(at, 0x3c, run->io.direction == KVM_EXIT_IO_IN ? run->io.count * run->io.size : 0);
            continue;
        }
        if (run->exit_reason != KVM_EXIT_MMIO)
            break;
        printf(" mmio %s %llx/%u", run->mmio.is_write ? "write" : "read",
               (unsigned long long)run->mmio.phys_addr, run->mmio.len);
        for (unsigned i = 0; i < run->mmio.len && run->mmio.is_write; i++)
            printf("%s%02x", i ? "" : " ", run->mmio.data[i]);
        if (!run->mmio.is_write)
            memset(run->mmio.data, 0x5a, sizeof(run->mmio.data));
    }
    limit_run(0);
    need(ioctl(vcpu, KVM_GET_REGS, &registers) == 0, "KVM_GET_REGS");
    for (uint64_t i = 0; i < POOL_PAGES * PAGE; i++)
        sum = (sum ^ pool[i]) * 16777619;
    printf(" exit %u ax %x bx %x cx %x sp %x bp %x si %x di %x flags %x sum %x", run->exit_reason,
           (uint32_t)registers.rax, (uint32_t)registers.rbx, (uint32_t)registers.rcx,
           (uint32_t)registers.rsp, (uint32_t)registers.rbp, (uint32_t)registers.rsi,
           (uint32_t)registers.rdi,
           (uint32_t)registers.rflags & 0x8d5, sum);
    show_written_pages();
}

#define UNWRITTEN 0xf1846b92c31e5da7ull /* a word of a bitmap that the kernel has not written */

static void show_log(uint32_t id)
{
    uint64_t bits[LOG_WORDS];
    struct kvm_dirty_log log = {.slot = id, .dirty_bitmap = bits};
    int error, words = LOG_WORDS;

    for (int word = 0; word < LOG_WORDS; word++)
        bits[word] = UNWRITTEN;
    error = ioctl(vm, KVM_GET_DIRTY_LOG, &log) ? errno : 0;
    show_error(error);
    while (words && bits[words - 1] == UNWRITTEN)
        words--;
    printf(" words %d:", words);
    for (int bit = 0; bit < words * 64; bit++)
        if (bits[bit / 64] >> (bit % 64) & 1)
            printf(" %x", bit);
}

static void clear_log(uint32_t id, uint64_t first, uint32_t count, int from_hole)
{
    uint64_t bits[LOG_WORDS];
    struct kvm_clear_dirty_log log = {
        .slot = id, .num_pages = count, .first_page = first,
        .dirty_bitmap = from_hole ? (void *)hole : bits,
    };

    memset(bits, 0xff, sizeof(bits));
    show_error(ioctl(vm, KVM_CLEAR_DIRTY_LOG, &log) ? errno : 0);
}

static void enable_cap(const char *name, uint64_t argument)
{
    int is_ring = !strcmp(name, "ring");
    struct kvm_enable_cap cap = {
        .cap = is_ring ? KVM_CAP_DIRTY_LOG_RING : KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
        .args = {argument},
    };
    int error = ioctl(vm, KVM_ENABLE_CAP, &cap) ? errno : 0;

    show_error(error);
    if (is_ring && !error && vcpu < 0)
        ring_bytes = argument;
}

static void harvest_ring(void)
{
    uint64_t count = ring_bytes / sizeof(*ring);

    need_vcpu();
    for (; ring; harvested++) {
        struct kvm_dirty_gfn *entry = &ring[harvested % count];
        if (entry->flags != KVM_DIRTY_GFN_F_DIRTY)
            break;
        printf(" %u:%llx", entry->slot, (unsigned long long)entry->offset);
        entry->flags = KVM_DIRTY_GFN_F_RESET;
    }
}

static void reset_rings(void)
{
    int count = ioctl(vm, KVM_RESET_DIRTY_RINGS, 0);

    if (count < 0)
        show_error(errno);
    else
        printf(" %d", count);
}

static void make_memfd(int owner, uint64_t size, uint64_t flags)
{
    uint64_t wanted[8] = {size, flags};
    int fd = ioctl(owner, _IOWR(KVMIO, 0xd4, uint64_t[8]), wanted);

    show_error(fd < 0 ? errno : 0);
    if (fd >= 0 && nr_files < MAX_FILES)
        files[nr_files++] = fd;
}

static int file_of(const char *text)
{
    if (!strcmp(text, "other"))
        return kvm;
    return atoi(text) < nr_files && strcmp(text, "none") ? files[atoi(text)] : -1;
}

static void bind_memfd(char words[][32], int count)
{
    bool is_plain = !strcmp(words[5], "plain");
    struct region2 call = {
        .region = {
            .slot = id_of(words[1]),
            .flags = (is_plain ? 0 : 1u << 2) | (count > 7 ? flags_of(words[7]) : 0),
            .guest_phys_addr = gpa_of(words[2]), .memory_size = pages(words[3]),
            .userspace_addr = hva_of(words[4]),
        },
        .guest_memfd = is_plain ? 0 : (uint32_t)file_of(words[5]),
        .guest_memfd_offset = pages(words[6]),
    };

    show_error(ioctl(vm, _IOW(KVMIO, 0x49, struct region2), &call) ? errno : 0);
}

static void show_memfd(int fd, int kind)
{
    void *mapped = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, kind, fd, 0);

    show_error(mapped == MAP_FAILED ? errno : 0);
    if (mapped != MAP_FAILED)
        munmap(mapped, PAGE);
}

static void cover_pool(int fd, uint64_t size)
{
    void *at = mmap(pool, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);

    show_error(at == MAP_FAILED ? errno : 0);
    memcpy(shadow, pool, size);
    covered = at == MAP_FAILED ? 0 : size;
}

static void uncover_pool(void)
{
    int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;

    if (covered)
        need(mmap(pool, covered, PROT_READ | PROT_WRITE, kind, -1, 0) == pool, "the pool");
    covered = 0;
}

static void punch_memfd(int fd, uint64_t offset, uint64_t size, const char *how)
{
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

    if (!strcmp(how, "grow"))
        mode &= ~FALLOC_FL_KEEP_SIZE;
    else if (!strcmp(how, "fill"))
        mode &= ~FALLOC_FL_PUNCH_HOLE;
    show_error(fallocate(fd, mode, (off_t)offset, (off_t)size) ? errno : 0);
}

static long unreclaimable_kib(void)
{
    char line[128];
    long kib = 0;
    FILE *refresh = fopen("/proc/sys/vm/stat_refresh", "r"), *info = fopen("/proc/meminfo", "r");

    need(info != NULL, "/proc/meminfo");
    if (refresh) {
        (void)!fgets(line, sizeof(line), refresh);
        fclose(refresh);
    }
    while (fgets(line, sizeof(line), info))
        sscanf(line, "SUnreclaim: %ld", &kib);
    fclose(info);
    return kib;
}

static int mappings(void)
{
    int count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");

    need(maps != NULL, "/proc/self/maps");
    for (int byte = fgetc(maps); byte != EOF; byte = fgetc(maps))
        count += byte == '\n';
    fclose(maps);
    return count;
}

static int open_files(void)
{
    int count = 0;

    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* Others allocate and free, too. */
static void show_growth(long before_kib, long at_least_kib)
{
    bool grown = unreclaimable_kib() - before_kib > at_least_kib;

    printf(" memory %s", grown ? "used up" : "as before");
}

static void make_vms(int count)
{
    long before_kib = unreclaimable_kib();
    int before = open_files();

    for (int i = 0; i < count; i++)
        close(ioctl(kvm, KVM_CREATE_VM, 0));
    printf(" files %d", open_files() - before);
    show_growth(before_kib, 3000); /* A VM that stays takes some 40 KiB. */
}

static void shuttle(int count)
{
    long before_kib = unreclaimable_kib();
    int mapped = mappings();
    int errors = set_region(1, 0x100000, PAGE, (uint64_t)pool, 0) != 0;

    for (int i = 1; i <= count; i++)
        errors += set_region(1, i % 2 ? 0x200000 : 0x100000, PAGE, (uint64_t)pool, 0) != 0;
    printf(" errors %d mappings %d", errors, mappings() - mapped);
    show_growth(before_kib, 3000);
}

static void drop_vcpu(void)
{
    if (vcpu < 0)
        return;
    if (ring)
        munmap(ring, ring_bytes);
    munmap(run, (size_t)run_size);
    close(vcpu);
    vcpu = -1;
    run = NULL;
    ring = NULL;
}

static void make_vm(void)
{
    vm = ioctl(kvm, KVM_CREATE_VM, 0);
    need(vm >= 0, "KVM_CREATE_VM");
    need(set_region(GUEST_ID, GUEST_GPA, GUEST_SIZE, (uint64_t)guest, 0) == 0, "guest's slot");
}

/* Up to two VMs: the state of the one that is not in use. */
static struct {
    int vm, vcpu;
    struct kvm_run *run;
} rest = {-1, -1, NULL};
static int current;

static void switch_vm(int number)
{
    if (number == current)
        return;
    int old_vm = vm, old_vcpu = vcpu;
    struct kvm_run *old_run = run;
    vm = rest.vm;
    vcpu = rest.vcpu;
    run = rest.run;
    rest.vm = old_vm;
    rest.vcpu = old_vcpu;
    rest.run = old_run;
    current = number;
    if (vm < 0)
        make_vm();
}

static void close_rest(void)
{
    if (rest.vm < 0)
        return;
    if (rest.run)
        munmap(rest.run, (size_t)run_size);
    if (rest.vcpu >= 0)
        close(rest.vcpu);
    close(rest.vm);
    rest.vm = rest.vcpu = -1;
    rest.run = NULL;
}

static void play_other(char words[][32], int count)
{
    if (count == 2 && !strcmp(words[0], "vms")) {
        make_vms(atoi(words[1]));
    } else if (count == 2 && !strcmp(words[0], "switch")) {
        switch_vm(atoi(words[1]));
    } else if (count == 1 && !strcmp(words[0], "newvm")) {
        drop_vcpu();
        close(vm);
        show_written_pages();
        make_vm();
    } else if (count == 2 && !strcmp(words[0], "shuttle")) {
        shuttle(atoi(words[1]));
    } else if (count == 3 && !strcmp(words[0], "memfd")) {
        make_memfd(vm, pages(words[1]), strtoull(words[2], NULL, 16));
    } else if (count == 2 && !strcmp(words[0], "foreign")) {
        other_vm = ioctl(kvm, KVM_CREATE_VM, 0);
        make_memfd(other_vm, pages(words[1]), 0);
    } else if (count >= 7 && !strcmp(words[0], "bind")) {
        bind_memfd(words, count);
    } else if (count == 3 && !strcmp(words[0], "cover")) {
        cover_pool(file_of(words[1]), pages(words[2]));
    } else if (count >= 4 && !strcmp(words[0], "punch")) {
        punch_memfd(file_of(words[1]), pages(words[2]), pages(words[3]),
                    count > 4 ? words[4] : "");
    } else if (count == 3 && !strcmp(words[0], "show")) {
        show_memfd(file_of(words[1]), words[2][0] == 's' ? MAP_SHARED : MAP_PRIVATE);
    } else {
        need(count == 2 && !strcmp(words[0], "unmake"), words[0]);
        show_error(close(file_of(words[1])) ? errno : 0);
    }
}

static void set_many(int count, uint64_t size)
{
    for (int id = 0; id < count; id++)
        show_error(set_region((uint32_t)id, (0x1000 + 2 * (uint64_t)id) * PAGE, size,
                              (uint64_t)pool, 0));
}

static void play_operation(char *text);

static void *play_in_thread(void *text)
{
    play_operation(text);
    return NULL;
}

static void play_elsewhere(char *text)
{
    pthread_t thread;

    need(pthread_create(&thread, NULL, play_in_thread, text) == 0, "pthread_create");
    pthread_join(thread, NULL);
}

/* The operation's own output is ignored. */
static void play_again(int times, const char *text)
{
    FILE *seen = stdout;
    long before_kib = unreclaimable_kib();

    stdout = fopen("/dev/null", "w");
    need(stdout != NULL, "/dev/null");
    for (int i = 0; i < times; i++) {
        char copy[256];
        snprintf(copy, sizeof(copy), "%s", text);
        play_operation(copy);
    }
    fclose(stdout);
    stdout = seen;
    show_growth(before_kib, 10000);
}

static void pass(void)
{
    set_region(1, 0x100000, 8 * PAGE, (uint64_t)pool, KVM_MEM_LOG_DIRTY_PAGES);
    set_region(1, 0, 0, 0, 0);
}

static void refuse_file(void)
{
    char words[][32] = {"bind", "1", "100", "2", "0", "0", "1"};

    make_memfd(vm, PAGE, 0);
    bind_memfd(words, 7);
    close(files[--nr_files]);
}

/* cpuid: KVM's emulator accepts some instructions only if CPUID has them. */
static void describe_processor(void)
{
    need_vcpu();
    set_cpuid(vcpu);
}

static void play_operation(char *text)
{
    char words[9][32];
    int count = sscanf(text, "%31s %31s %31s %31s %31s %31s %31s %31s %31s", words[0], words[1],
                       words[2], words[3], words[4], words[5], words[6], words[7], words[8]);

    if (count > 1 && !strcmp(words[0], "thread"))
        play_elsewhere(strstr(text, "thread") + strlen("thread"));
    else if (count > 2 && !strcmp(words[0], "again"))
        play_again(atoi(words[1]), strstr(text, words[1]) + strlen(words[1]));
    else if (count == 1 && !strcmp(words[0], "passing"))
        pass();
    else if (count == 1 && !strcmp(words[0], "refusedfile"))
        refuse_file();
    else if (count >= 5 && !strcmp(words[0], "set"))
        show_error(set_from_words(words, count));
    else if (count >= 5 && !strcmp(words[0], "child"))
        show_error(set_in_child(words, count));
    else if (count == 2 && !strcmp(words[0], "delete"))
        show_error(set_region(id_of(words[1]), 0, 0, 0, 0));
    else if (count == 1 && !strcmp(words[0], "pointer"))
        show_error(ioctl(vm, KVM_SET_USER_MEMORY_REGION, hole) ? errno : 0);
    else if (count == 2 && !strcmp(words[0], "fill"))
        set_many(atoi(words[1]), PAGE);
    else if (count == 2 && !strcmp(words[0], "empty"))
        set_many(atoi(words[1]), 0);
    else if (count == 2 && (!strcmp(words[0], "read") || !strcmp(words[0], "write")))
        access_gpa(gpa_of(words[1]), words[0][0] == 'w');
    else if (count == 1 && !strcmp(words[0], "second"))
        vcpu_id = 1;
    else if (count == 1 && !strcmp(words[0], "cpuid"))
        describe_processor();
    else if (count >= 3 && !strcmp(words[0], "insn"))
        run_insn(words, count);
    else if (count == 3 && !strcmp(words[0], "drop"))
        show_error(madvise(pool + pages(words[1]), pages(words[2]), MADV_DONTNEED) ? errno : 0);
    else if (count == 2 && !strcmp(words[0], "log"))
        show_log(id_of(words[1]));
    else if (count >= 4 && !strcmp(words[0], "clear"))
        clear_log(id_of(words[1]), strtoull(words[2], NULL, 16),
                  (uint32_t)strtoul(words[3], NULL, 16), count > 4);
    else if (count == 3 && !strcmp(words[0], "cap"))
        enable_cap(words[1], strtoull(words[2], NULL, 16));
    else if (count == 1 && !strcmp(words[0], "harvest"))
        harvest_ring();
    else if (count == 1 && !strcmp(words[0], "reset"))
        reset_rings();
    else if (!play_place(words, count) && !play_host(words, count) && !play_start(words, count)
             && !play_clock(words, count))
        play_other(words, count);
}

static void play(char *script)
{
    char *rest = NULL;

    for (uint64_t page = 0; page < POOL_PAGES; page++) {
        memset(pool + page * PAGE, 0, PAGE);
        *(uint32_t *)(pool + page * PAGE) = 0xc0de0000u + (uint32_t)page;
    }
    memcpy(shadow, pool, POOL_PAGES * PAGE);
    ring_bytes = harvested = 0;
    vcpu_id = 0;
    make_vm();
    for (char *text = strtok_r(script, ";", &rest); text; text = strtok_r(NULL, ";", &rest)) {
        play_operation(text);
        printf(" |");
    }
    putchar('\n');
    fflush(stdout);
    while (nr_files)
        close(files[--nr_files]);
    if (other_vm >= 0)
        close(other_vm);
    other_vm = -1;
    drop_vcpu();
    close(vm);
    close_rest();
    current = 0;
    uncover_pool();
    heal_pool();
}

int main(void)
{
    char line[1024];

    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    need(kvm >= 0, "/dev/kvm");
    run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    pool = map(POOL_PAGES * PAGE, PROT_READ | PROT_WRITE);
    shadow = map(POOL_PAGES * PAGE, PROT_READ | PROT_WRITE);
    guest = map(GUEST_SIZE, PROT_READ | PROT_WRITE);
    hole = map(POOL_PAGES * PAGE, PROT_NONE);
    memcpy(guest, code, sizeof(code));
    alarm(60);
    while (fgets(line, sizeof(line), stdin)) {
        char *tab = strchr(line, '\t');
        need(tab != NULL, "a tab in each line");
        *tab = 0;
        line[strcspn(line, "\n")] = 0;
        tab[1 + strcspn(tab + 1, "\n")] = 0;
        setenv("WRONG_KERNEL", strcmp(line, "-") ? line : "", 1);
        play(tab + 1);
    }
    return 0;
}
