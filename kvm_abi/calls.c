/* Included by the module that kvm_abi/_build.py generates, after ioctls.c. */

static int abi_ioctl_struct(int fd, unsigned long request, void *arg)
{
    return abi_issue_struct(fd, request, arg);
}

static uint32_t abi_harvest(struct kvm_dirty_gfn *entries, uint32_t count, uint32_t next,
                            uint64_t *found)
{
    uint32_t harvested;

    for (harvested = 0; harvested < count; harvested++, next++, found += 2) {
        volatile struct kvm_dirty_gfn *entry = &entries[next % count];

        /* The kernel writes an entry before its flags. x86 keeps the order of loads and stores, and
         * the compiler that of volatile accesses. */
        if (entry->flags != ABI_KVM_DIRTY_GFN_DIRTY)
            break;
        found[0] = entry->slot;
        found[1] = entry->offset;
        /* The kernel ignores the flag of a dirty entry here: every other one keeps it. */
        entry->flags = ABI_KVM_DIRTY_GFN_RESET | (next & ABI_KVM_DIRTY_GFN_DIRTY);
    }
    return harvested;
}

static int abi_run_past_mmio(int fd, struct kvm_run *run, uint8_t answer, uint16_t end_port,
                             uint64_t *passed, uint32_t room, uint32_t *count)
{
    const struct kvm_regs *shared = (const void *)run->s.padding;
    const struct kvm_exit_mmio *mmio = &run->mmio;
    int result = 0;

    for (*count = 0; *count < room; ++*count, passed += 4) {
        result = abi_ioctl_value(fd, ABI_KVM_RUN, 0);
        if (result || run->exit_reason != ABI_KVM_EXIT_MMIO || mmio->is_write > 1)
            break;
        if (!mmio->is_write)
            memset(run->mmio.data, answer, sizeof(mmio->data));
        passed[0] = shared->rip;
        passed[1] = mmio->phys_addr;
        passed[2] = mmio->len | (uint64_t)mmio->is_write << 32;
        memcpy(&passed[3], mmio->data, sizeof(mmio->data));
    }
    if (!result && run->exit_reason == ABI_KVM_EXIT_IO && run->io.port == end_port)
        result = ABI_AT_END;
    return result;
}

/* The compiler may assume that there is no object at address 0, but here there can be.
 * It knows nothing about an address that comes out of asm. */
static void *abi_pointer(uint64_t address)
{
    __asm__("" : "+r"(address));
    return (void *)address;
}

static int64_t abi_mmap(uint64_t address, uint64_t size_bytes, int protection, int flags,
                        int fd, int64_t offset_bytes)
{
    void *mapped = mmap(abi_pointer(address), size_bytes, protection, flags, fd, offset_bytes);

    return mapped == MAP_FAILED ? -errno : (int64_t)mapped;
}

static int abi_munmap(uint64_t address, uint64_t size_bytes)
{
    return abi_result(munmap(abi_pointer(address), size_bytes));
}

static int abi_mprotect(uint64_t address, uint64_t size_bytes, int protection)
{
    return abi_result(mprotect(abi_pointer(address), size_bytes, protection));
}

static int abi_madvise(uint64_t address, uint64_t size_bytes, int advice)
{
    return abi_result(madvise(abi_pointer(address), size_bytes, advice));
}

/*
 * Moves pages elsewhere, one by one, since adjacent pages may be separate mappings. At every moment
 * something is mapped at both the old and the new addresses.
 */
static int abi_move_pages(uint64_t address, uint64_t pages, uint64_t to)
{
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED | 4 /* MREMAP_DONTUNMAP */;

	for (uint64_t at = 0; at < pages * 4096; at += 4096)
		if (mremap((void *)(address + at), 4096, 4096, flags, (void *)(to + at))
		    == MAP_FAILED)
			return -1;
	return 0;
}

static int abi_fallocate(int fd, int mode, uint64_t offset, uint64_t size_bytes)
{
    return abi_result(fallocate(fd, mode, (off_t)offset, (off_t)size_bytes));
}

/* struct udmabuf_create of <linux/udmabuf.h>, and UDMABUF_CREATE. */
struct abi_udmabuf_create {
    uint32_t memfd, flags;
    uint64_t offset, size;
};
#define ABI_UDMABUF_CREATE _IOW('u', 0x42, struct abi_udmabuf_create)
#define ABI_UDMABUF_CLOEXEC 1

static int abi_memory_buffer(int device, int memfd, uint64_t size_bytes)
{
    struct abi_udmabuf_create create = {
        .memfd = memfd, .flags = ABI_UDMABUF_CLOEXEC, .size = size_bytes
    };
    int result = abi_result(fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK));

    return result ? result : abi_result(ioctl(device, ABI_UDMABUF_CREATE, &create));
}

static int abi_die_with_parent(int parent)
{
    int result = abi_result(prctl(PR_SET_PDEATHSIG, SIGKILL));

    /* The parent may have died before the prctl. */
    if (!result && getppid() != parent)
        raise(SIGKILL);
    return result;
}

static int abi_name_process(const char *name)
{
    return abi_result(prctl(PR_SET_NAME, name));
}

static uint64_t abi_differences(uint64_t address, const void *from, uint64_t size_bytes,
                                uint64_t block_bytes, uint64_t *found, uint64_t max_found)
{
    const unsigned char *now = abi_pointer(address), *then = from;
    uint64_t block, at, start, end, count = 0;

    for (block = 0; block < size_bytes; block += block_bytes) {
        if (!memcmp(now + block, then + block, block_bytes))
            continue;
        end = block + block_bytes;
        for (at = block; at < end; at++) {
            if (now[at] == then[at])
                continue;
            if (count == max_found)
                return count;
            for (start = at; at < end && now[at] != then[at]; at++)
                ;
            found[2 * count] = start;
            found[2 * count + 1] = at - start;
            count++;
        }
    }
    return count;
}

static uint64_t abi_news(const uint64_t *watched, uint64_t count, uint64_t *place,
                         uint64_t block_bytes, uint64_t *found, uint64_t max_found, void *data,
                         uint64_t max_data)
{
    uint64_t at, start, end, used = 0, news = 0;
    unsigned char *to = data;

    for (; place[0] < count; place[0]++, place[1] = 0) {
        const uint64_t *stretch = &watched[3 * place[0]];
        const unsigned char *now = abi_pointer(stretch[0]);
        unsigned char *then = abi_pointer(stretch[1]);

        for (; place[1] < stretch[2]; place[1] += block_bytes) {
            if (!memcmp(now + place[1], then + place[1], block_bytes))
                continue;
            end = place[1] + block_bytes;
            for (at = place[1]; at < end; at++) {
                if (now[at] == then[at])
                    continue;
                if (news == max_found || max_data - used < end - at)
                    return news;
                for (start = at; at < end && now[at] != then[at]; at++)
                    to[used++] = then[at] = now[at];
                found[3 * news] = place[0];
                found[3 * news + 1] = start;
                found[3 * news + 2] = at - start;
                news++;
            }
        }
    }
    return news;
}

static int abi_next_shared_mapping(int fd, uint64_t address, uint64_t *place, char *name,
                                   uint32_t name_size)
{
    struct abi_procmap_query query = {
        .size = sizeof(query),
        .flags = ABI_PROCMAP_SHARED | ABI_PROCMAP_COVERING_OR_NEXT,
        .address = address,
        .name_size = name_size,
        .name = (uintptr_t)name,
    };
    int result = abi_ioctl_struct(fd, ABI_PROCMAP_QUERY, &query);

    place[0] = query.start;
    place[1] = query.end;
    if (!query.name_size)
        *name = 0;
    return result;
}
