/* Shared by the parts of the witness. */
#ifndef WITNESS_H
#define WITNESS_H

#include <stdint.h>

#define PAGE 4096ull
#define GUEST_GPA 0xffff0000u
#define POOL_PAGES 128

/* The VM that a script plays on; guest is the host's view of the slot at GUEST_GPA. */
extern int kvm, vm;
extern uint8_t *guest, *pool, *shadow, *hole;

void need(int good, const char *what);
void show_error(int error);
uint64_t pages(const char *text);
uint32_t id_of(const char *text);
uint64_t gpa_of(const char *text);
uint64_t hva_of(const char *text);
uint32_t flags_of(const char *text);
int set_region(uint32_t id, uint64_t gpa, uint64_t size, uint64_t hva, uint32_t flags);

/* vcpu.c: the vCPU is made on first use; ring_bytes is the size that its dirty ring gets. */
extern int vcpu, vcpu_id;
extern struct kvm_run *run;
extern struct kvm_dirty_gfn *ring;
extern uint64_t ring_bytes;
void prepare_guest(void);
int need_vcpu(void); /* its file */
void drop_vcpu(void);
void unmap_run(struct kvm_run *which);
void limit_run(int microseconds);
void show_written_pages(void);

/* Each of the functions play_... returns 0 if the words are not for it. */
int play_guest(char words[][32], int count);

/* dirty.c */
int play_dirty(char words[][32], int count);

/* memfds.c */
int play_memfd(char words[][32], int count);
void close_memfds(void);

/* growth.c: how much the kernel uses for itself, and whether that has grown. */
int play_growth(char words[][32], int count);
long unreclaimable_kib(void);
void show_growth(long before_kib, long at_least_kib);

/* places.c */
void set_cpuid(int vcpu);
int play_place(char words[][32], int count);

/* starts.c */
int play_start(char words[][32], int count);

/* clocks.c */
int play_clock(char words[][32], int count);

/* host.c; the initial pool, and whether a page of it can be read. */
int play_host(char words[][32], int count);
void heal_pool(void);
int may_look_at(uint64_t page);

#endif
