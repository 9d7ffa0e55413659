/* Shared by the parts of the witness. */
#ifndef WITNESS_H
#define WITNESS_H

#include <stdint.h>

#define PAGE 4096ull
#define GUEST_GPA 0xffff0000u
#define POOL_PAGES 128

/* The VM that a script plays on; guest is the host's view of the slot at GUEST_GPA. */
extern int kvm, vm;
extern struct kvm_run *run;
extern uint8_t *guest, *pool, *shadow;

void need(int good, const char *what);
void show_error(int error);
uint64_t pages(const char *text);
int need_vcpu(void); /* its file */

/* places.c: returns 0 if the words are not for it. */
void set_cpuid(int vcpu);
void limit_run(int microseconds);
int play_place(char words[][32], int count);

/* starts.c: likewise. */
int play_start(char words[][32], int count);

/* clocks.c: likewise. */
int play_clock(char words[][32], int count);

/* host.c: likewise; the initial pool, and whether a page of it can be read. */
int play_host(char words[][32], int count);
void heal_pool(void);
int may_look_at(uint64_t page);

#endif
