/* Clocks that KVM writes to guest memory. */
#include "witness.h"

#include <asm/kvm_para.h>
#include <errno.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* A second vCPU, which is closed with the VM. */
static int second_vcpu(void)
{
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, 1);

    need(vcpu >= 0, "a vCPU");
    return vcpu;
}

static void set_msr(int vcpu, const char *clock, uint64_t gpa)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } msrs = {.head = {.nmsrs = 1}, .entry = {.data = gpa}};

    msrs.entry.index = clock[0] == 'w' ? MSR_KVM_WALL_CLOCK_NEW
        : clock[1] == 'y' ? MSR_KVM_SYSTEM_TIME_NEW : MSR_KVM_STEAL_TIME;
    printf(" %d", ioctl(vcpu, KVM_SET_MSRS, &msrs));
}

int play_clock(char words[][32], int count)
{
    if (count >= 3 && !strcmp(words[0], "clock")) {
        uint64_t enable = words[1][0] != 'w';
        int vcpu = count > 3 ? second_vcpu() : need_vcpu();
        set_msr(vcpu, words[1], pages(words[2]) | enable);
        if (count > 3)
            close(vcpu);
    } else if (count == 2 && !strcmp(words[0], "unclock")) {
        set_msr(need_vcpu(), words[1], 0);
    } else if (count == 1 && !strcmp(words[0], "pause")) {
        show_error(ioctl(need_vcpu(), KVM_KVMCLOCK_CTRL, 0) ? errno : 0);
    } else if (count == 3 && !strcmp(words[0], "bit")) {
        printf(" %d", pool[pages(words[1])] >> atoi(words[2]) & 1);
    } else {
        return 0;
    }
    return 1;
}
