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
 *   slots                    KVM_CAP_NR_MEMSLOTS of the VM
 *   clear ID FIRST COUNT [hole]  KVM_CLEAR_DIRTY_LOG, every bit of the bitmap set
 *   cap manual|ring ARGUMENT [FLAGS]  KVM_ENABLE_CAP; a vCPU is made by the first access or harvest
 *   harvest, reset           what is in the dirty ring; KVM_RESET_DIRTY_RINGS
 *   memfd PAGES FLAGS        KVM_CREATE_GUEST_MEMFD; the files are 0, 1, ...
 *   foreign PAGES            the same in another VM
 *   bind ID GPA SIZE HVA FILE OFFSET [ro]   KVM_SET_USER_MEMORY_REGION2 with a guest_memfd
 *   punch FILE PAGE PAGES [grow|fill]       fallocate(2) with PUNCH_HOLE and KEEP_SIZE; grow: not
 *                                           with KEEP_SIZE, fill: not with PUNCH_HOLE
 *   cover FILE PAGES         map a file over the pages at the start of the pool
 *   show FILE shared|private, unmake FILE   mmap(2) and close(2) of one
 *   vms N                    N VMs are made and closed: which files and how much memory stay?
 *   coalesce GPA N [ports], uncoalesce GPA N [ports], kept   KVM_(UN)REGISTER_COALESCED_MMIO, and
 *                            its ring
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
 * of the pool, "null", "hole", "end" (of user space) or "kernel". FILE may be "none" or "other" (no
 * guest_memfd), or "plain": the second form without one.
 */
#include "witness.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define GUEST_SIZE 65536u
#define GUEST_ID 32762

int kvm, vm;
uint8_t *guest, *pool, *shadow, *hole;

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

uint32_t id_of(const char *text)
{
    uint32_t count = (uint32_t)ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS);
    const char *slash = strchr(text, '/');

    if (!strcmp(text, "last"))
        return count - 1;
    if (!strcmp(text, "beyond"))
        return count;
    return slash ? (uint32_t)(atoi(text) << 16 | atoi(slash + 1)) : (uint32_t)atoi(text);
}

int set_region(uint32_t id, uint64_t gpa, uint64_t size, uint64_t hva, uint32_t flags)
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

uint64_t gpa_of(const char *text)
{
    if (!strcmp(text, "top"))
        return -PAGE;
    if (!strcmp(text, "last"))
        return last_page();
    return strcmp(text, "beyond") ? pages(text) : 1ull << 52;
}

uint64_t hva_of(const char *text)
{
    if (!strcmp(text, "null"))
        return 0;
    if (!strcmp(text, "kernel"))
        return 0xffff800000000000ull;
    if (!strcmp(text, "end"))
        return 0x7ffffffff000ull - PAGE;
    return !strcmp(text, "hole") ? (uint64_t)hole : (uint64_t)pool + pages(text);
}

uint32_t flags_of(const char *text)
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

static void renew_vm(void)
{
    drop_vcpu();
    close(vm);
    show_written_pages();
    make_vm();
}

static void close_rest(void)
{
    if (rest.vm < 0)
        return;
    if (rest.run)
        unmap_run(rest.run);
    if (rest.vcpu >= 0)
        close(rest.vcpu);
    close(rest.vm);
    rest.vm = rest.vcpu = -1;
    rest.run = NULL;
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
    else if (count == 3 && !strcmp(words[0], "drop"))
        show_error(madvise(pool + pages(words[1]), pages(words[2]), MADV_DONTNEED) ? errno : 0);
    else if (count == 2 && !strcmp(words[0], "switch"))
        switch_vm(atoi(words[1]));
    else if (count == 1 && !strcmp(words[0], "newvm"))
        renew_vm();
    else if (count == 1 && !strcmp(words[0], "slots"))
        printf(" %d", ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS));
    else
        need(play_guest(words, count) || play_dirty(words, count) || play_memfd(words, count)
             || play_growth(words, count) || play_place(words, count) || play_host(words, count)
             || play_start(words, count) || play_clock(words, count), words[0]);
}

static void play(char *script)
{
    char *rest = NULL;

    for (uint64_t page = 0; page < POOL_PAGES; page++) {
        memset(pool + page * PAGE, 0, PAGE);
        *(uint32_t *)(pool + page * PAGE) = 0xc0de0000u + (uint32_t)page;
    }
    memcpy(shadow, pool, POOL_PAGES * PAGE);
    ring_bytes = 0;
    vcpu_id = 0;
    make_vm();
    for (char *text = strtok_r(script, ";", &rest); text; text = strtok_r(NULL, ";", &rest)) {
        play_operation(text);
        printf(" |");
    }
    putchar('\n');
    fflush(stdout);
    close_memfds();
    drop_vcpu();
    close(vm);
    close_rest();
    current = 0;
    heal_pool();
}

int main(void)
{
    char line[1024];

    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    need(kvm >= 0, "/dev/kvm");
    pool = map(POOL_PAGES * PAGE, PROT_READ | PROT_WRITE);
    shadow = map(POOL_PAGES * PAGE, PROT_READ | PROT_WRITE);
    guest = map(GUEST_SIZE, PROT_READ | PROT_WRITE);
    hole = map(POOL_PAGES * PAGE, PROT_NONE);
    prepare_guest();
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
