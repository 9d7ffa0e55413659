/*
 * Included by the module that kvm_abi/_build.py generates: seccomp's user notifications, by which
 * another process looks at the argument of an ioctl before the kernel does.
 */

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>

#ifndef SECCOMP_USER_NOTIF_FLAG_CONTINUE /* Linux 5.5 */
#define SECCOMP_USER_NOTIF_FLAG_CONTINUE (1ul << 0)
#endif
#define ABI_WAIT_KILLABLE (1ul << 5) /* SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, Linux 5.19 */
#define ABI_MAX_REQUESTS 32

static int abi_listen(const struct sock_fprog *program)
{
    const unsigned long listening = SECCOMP_FILTER_FLAG_NEW_LISTENER;
    const int mode = SECCOMP_SET_MODE_FILTER;
    long result = syscall(SYS_seccomp, mode, listening | ABI_WAIT_KILLABLE, program);

    if (result < 0 && errno == EINVAL)
        result = syscall(SYS_seccomp, mode, listening, program);
    return result < 0 ? -errno : (int)result;
}

int abi_notify_of(const uint32_t *requests, uint32_t count)
{
    struct sock_filter filter[ABI_MAX_REQUESTS + 8];
    struct sock_fprog program = {.filter = filter};
    unsigned short at = 0;
    int result;

    if (count > ABI_MAX_REQUESTS)
        return -E2BIG;
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define JUMP_IF(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no)
    filter[at++] = (struct sock_filter)LOAD(arch);
    filter[at++] = (struct sock_filter)JUMP_IF(AUDIT_ARCH_X86_64, 0, count + 3);
    filter[at++] = (struct sock_filter)LOAD(nr);
    filter[at++] = (struct sock_filter)JUMP_IF(SYS_ioctl, 0, count + 1);
    filter[at++] = (struct sock_filter)LOAD(args[1]);
    for (uint32_t i = 0; i < count; i++)
        filter[at++] = (struct sock_filter)JUMP_IF(requests[i], count - i, 0);
    filter[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    filter[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
#undef LOAD
#undef JUMP_IF
    program.len = at;
    result = abi_listen(&program);
    if (result == -EACCES && !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) /* Without CAP_SYS_ADMIN. */
        result = abi_listen(&program);
    return result;
}

int abi_next_notice(int listener, uint64_t *notice)
{
    struct seccomp_notif received = {0};

    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &received))
        return -errno;
    notice[0] = received.id;
    notice[1] = received.pid;
    notice[2] = received.data.args[1];
    notice[3] = received.data.args[2];
    return 0;
}

int abi_let_go_on(int listener, uint64_t id)
{
    struct seccomp_notif_resp answer = {.id = id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};

    return ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer) ? -errno : 0;
}
