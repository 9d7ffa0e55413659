/*
 * The system calls that the binding makes, as cffi sees them.
 *
 * Each answers what the system call answers, or the negated errno: one value
 * crosses the boundary, and no errno can be overwritten on its way.
 * Addresses are integers: 0 is an address here like any other.
 */

/* The argument of the ioctl is a structure; where the kernel has written to one that it only reads,
 * which none may do, the answer is ABI_WRITTEN_TO ... */
#define ABI_WRITTEN_TO 0x40000000
int abi_ioctl_struct(int fd, unsigned long request, void *arg);
/* ... or a plain value. */
int abi_ioctl_value(int fd, unsigned long request, unsigned long arg);

/* KVM_RUN. */
int abi_run(int fd);

/* KVM_SET_USER_MEMORY_REGION with the structure made here: it is issued more often than any other. */
int abi_set_user_memory_region(int fd, uint32_t slot, uint32_t flags, uint64_t guest_phys_addr,
                               uint64_t memory_size, uint64_t userspace_addr);

/* Harvests a dirty ring of count entries, a power of two, from entry next on: marks each dirty entry
 * for KVM_RESET_DIRTY_RINGS and puts its slot and page into two words. Answers how many there were. */
uint32_t abi_harvest(struct kvm_dirty_gfn *entries, uint32_t count, uint32_t next, uint64_t *found);

/* Lets a vCPU run past MMIO exits, room of them at most, until an exit of another kind or an error;
 * the guest's reads are answered with the given byte. Answers what the last KVM_RUN answered, or
 * ABI_AT_END where the guest has accessed the port that ends it.
 * Each exit that was passed is four words: RIP where the vCPU shares its registers
 * (KVM_CAP_SYNC_REGS), the gpa, the length with 2^32 added for a write, and the data. */
#define ABI_AT_END 0x20000000
int abi_run_past_mmio(int fd, struct kvm_run *run, uint8_t answer, uint16_t end_port,
                      uint64_t *passed, uint32_t room, uint32_t *count);

int64_t abi_mmap(uint64_t address, uint64_t size_bytes, int protection, int flags,
                 int fd, int64_t offset_bytes);
int abi_munmap(uint64_t address, uint64_t size_bytes);
int abi_mprotect(uint64_t address, uint64_t size_bytes, int protection);
int abi_madvise(uint64_t address, uint64_t size_bytes, int advice);
int abi_move_pages(uint64_t address, uint64_t pages, uint64_t to);

/* fallocate(2) with FALLOC_FL_PUNCH_HOLE, and with FALLOC_FL_KEEP_SIZE if that is asked for. From
 * 2^63 on, numbers are negative there. */
int abi_fallocate(int fd, int punch, int keep_size, uint64_t offset, uint64_t size_bytes);

/* Has the kernel kill this process when the thread that forked it ends (PR_SET_PDEATHSIG), and does
 * so at once where the parent is another process by now. */
int abi_die_with_parent(int parent);

/* Sets what the kernel's log calls this process (PR_SET_NAME): 15 bytes of the name. */
int abi_name_process(const char *name);

/* Finds where memory at any address of the process, 0 included, differs from a buffer. Answers
 * the number of stretches, max_found at most; each is an offset and a length in bytes, and ends
 * where a block ends. size_bytes is a multiple of block_bytes. */
uint64_t abi_differences(uint64_t address, const void *from, uint64_t size_bytes,
                         uint64_t block_bytes, uint64_t *found, uint64_t max_found);

/* Compares stretches of memory with copies of what they were, from a place on, and brings the copies
 * up to date. A stretch is three words: its address, that of its copy, and its size, a multiple of
 * block_bytes. Each of what it finds, max_found at most, is three words as well: the number of the
 * stretch, the offset and the length; data gets the bytes, max_data of them at most, which is no less
 * than a block. The place is the number of a stretch and the offset of a block: where to go on from,
 * and past the last stretch at the end. */
uint64_t abi_news(const uint64_t *watched, uint64_t count, uint64_t *place, uint64_t block_bytes,
                  uint64_t *found, uint64_t max_found, void *data, uint64_t max_data);

/* Finds the first shared mapping of a process that ends above an address; fd is its /proc/PID/maps.
 * place gets start and end. Linux 6.11; -ENOENT after the last one. */
int abi_next_shared_mapping(int fd, uint64_t address, uint64_t *place, char *name,
                            uint32_t name_size);

/* userfaultfd. A thread of C's own answers: it fetches pages, which are dropped first, from a copy
 * when somebody meets them; or it guards them, holds up who writes to one, and lets him go on. When
 * it stops, the other pages are fetched, and of those that were guarded bad says, by page, which had
 * changed without anybody having been held up. All are private anonymous memory. */
int abi_pager_start(uint64_t start, uint64_t pages, int guards, void **started);
int abi_pager_stop(void *started, unsigned char *bad);

/* 0 where a process may do that, with what the kernel itself touches, too; else an errno. */
int abi_can_page(void);
