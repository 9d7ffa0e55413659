/*
 * The system calls that the binding makes, as cffi sees them.
 *
 * Each returns the result of the system call, or the negated errno: only one
 * value crosses the boundary, and no errno can be overwritten on its way.
 * Addresses are integers; 0 is an address like any other.
 */

/* ioctl with a pointer to a structure, which stands at the end of memory for the call: a kernel
 * that reads or writes beyond it answers EFAULT. If it has written to a structure that it must only
 * read, the result is ABI_WRITTEN_TO. */
#define ABI_WRITTEN_TO 0x40000000
int abi_ioctl_struct(int fd, unsigned long request, void *arg);
/* ioctl with a plain value. */
int abi_ioctl_value(int fd, unsigned long request, unsigned long arg);

/* Harvests a dirty ring of count entries, a power of two, from entry next on: marks each dirty
 * entry for KVM_RESET_DIRTY_RINGS and stores its slot and page in two words. Returns how many there
 * were. */
uint32_t abi_harvest(struct kvm_dirty_gfn *entries, uint32_t count, uint32_t next, uint64_t *found);

/* Lets a vCPU run past at most room MMIO exits, until another exit or an error; MMIO reads are
 * answered with the given byte. Returns the result of the last KVM_RUN, or ABI_AT_END if the guest
 * has accessed end_port.
 * Each passed exit is four words: RIP, valid if the vCPU shares its registers
 * (KVM_CAP_SYNC_REGS), the gpa, the length plus 2^32 for a write, and the data. */
#define ABI_AT_END 0x20000000
int abi_run_past_mmio(int fd, struct kvm_run *run, uint8_t answer, uint16_t end_port,
                      uint64_t *passed, uint32_t room, uint32_t *count);

int64_t abi_mmap(uint64_t address, uint64_t size_bytes, int protection, int flags,
                 int fd, int64_t offset_bytes);
int abi_munmap(uint64_t address, uint64_t size_bytes);
int abi_mprotect(uint64_t address, uint64_t size_bytes, int protection);
int abi_madvise(uint64_t address, uint64_t size_bytes, int advice);
int abi_move_pages(uint64_t address, uint64_t pages, uint64_t to);

/* fallocate(2). The kernel takes numbers from 2^63 on as negative. */
int abi_fallocate(int fd, int mode, uint64_t offset, uint64_t size_bytes);

/* UDMABUF_CREATE of a memfd's first bytes, after F_SEAL_SHRINK, which it asks for. Returns the
 * descriptor of the buffer. */
int abi_memory_buffer(int device, int memfd, uint64_t size_bytes);

/* Makes the kernel kill this process when the thread that forked it ends (PR_SET_PDEATHSIG); kills
 * it at once if the parent is already gone. */
int abi_die_with_parent(int parent);

/* Sets this process's name in the kernel's log (PR_SET_NAME): 15 bytes of the name. */
int abi_name_process(const char *name);

/* Finds where memory at any address of the process, 0 included, differs from a buffer. Returns
 * the number of stretches, at most max_found; each is an offset and a length in bytes, and does
 * not cross the end of a block. size_bytes is a multiple of block_bytes. */
uint64_t abi_differences(uint64_t address, const void *from, uint64_t size_bytes,
                         uint64_t block_bytes, uint64_t *found, uint64_t max_found);

/* Compares stretches of memory with copies of their old content, and updates the copies. A stretch
 * is three words: its address, that of its copy, and its size, a multiple of block_bytes. Each
 * difference, at most max_found of them, is three words as well: the number of the stretch, the
 * offset and the length; data gets the bytes, at most max_data, which must be at least a block.
 * place says where to start and where the next call must continue: the number of a stretch and the
 * offset of a block; at the end it is past the last stretch. */
uint64_t abi_news(const uint64_t *watched, uint64_t count, uint64_t *place, uint64_t block_bytes,
                  uint64_t *found, uint64_t max_found, void *data, uint64_t max_data);

/* Finds the first shared mapping of a process that ends above an address; fd is its /proc/PID/maps.
 * place gets start and end. Needs Linux 6.11; -ENOENT after the last one. */
int abi_next_shared_mapping(int fd, uint64_t address, uint64_t *place, char *name,
                            uint32_t name_size);

/* userfaultfd on private anonymous memory, served by a thread in C. Without guards, the pages are
 * dropped, and each is fetched from a copy at its first access. With guards, the first write to a
 * page faults, and then continues. When it stops, the remaining pages are fetched; with guards, bad
 * says for each page whether it changed without a fault. */
int abi_pager_start(uint64_t start, uint64_t pages, int guards, void **started);
int abi_pager_stop(void *started, unsigned char *bad);

/* Returns 0 if the process may use it, also for faults in the kernel; else a negated errno. */
int abi_can_page(void);

/* Has each ioctl(2) of this process and its children that is one of these requests wait until
 * another process has looked at it (seccomp's user notifications). Returns the descriptor to listen
 * on, or a negated errno. It cannot be undone. */
int abi_notify_of(const uint32_t *requests, uint32_t count);

/* Takes the next ioctl that waits: the number of the notice, the thread, the request and its
 * argument. -ENOENT: it waits no more. */
int abi_next_notice(int listener, uint64_t *notice);

/* Lets that ioctl go on. */
int abi_let_go_on(int listener, uint64_t id);
