/* What the parts of the witness share. */
#ifndef WITNESS_H
#define WITNESS_H

#include <stdint.h>

#define PAGE 4096ull
#define GUEST_GPA 0xffff0000u

/* The VM that a script plays on; guest is the host's view of the slot at GUEST_GPA. */
extern int kvm, vm;
extern uint8_t *guest;

void need(int good, const char *what);
void show_error(int error);
uint64_t pages(const char *text);
void need_vcpu(void);

/* places.c: answers 0 where the words are none of its own. */
int play_place(char words[][32], int count);

#endif
