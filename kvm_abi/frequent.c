/*
 * The module kvm_abi._frequent: the most frequent calls, without cffi between. After a guest has
 * run, or a slot has changed, few instructions cost much: cffi's add a twentieth to what the kernel
 * takes.
 */
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <structmember.h>

#include <stddef.h>
#include <stdint.h>

#include "kvm.h"
#include "ioctls.c"

#define ABI_EXIT_CODES (1ll << 60)
#define ABI_PORT_CODE (ABI_EXIT_CODES << 1)
#define ABI_PORT_DATA_AT 4096 /* KVM_PIO_PAGE_OFFSET */

static int64_t abi_port_code(const struct kvm_run *run)
{
    const struct kvm_exit_io *io = &run->io;
    uint64_t size = (uint64_t)io->size * io->count;
    uint32_t data = 0;

    if (!size || size > sizeof(data) || io->direction > 1 || io->data_offset != ABI_PORT_DATA_AT)
        return 0;
    memcpy(&data, (const char *)run + ABI_PORT_DATA_AT, size);
    return ABI_PORT_CODE | (int64_t)data | (int64_t)io->port << 32 | (int64_t)io->size << 48 |
           (int64_t)io->count << 51 | (int64_t)io->direction << 54;
}

static int64_t abi_read_code(const struct kvm_run *run)
{
    const struct kvm_exit_mmio *mmio = &run->mmio;

    if (mmio->is_write || !mmio->len || mmio->len > 8 || mmio->phys_addr >> 52)
        return 0;
    return ABI_EXIT_CODES | (int64_t)mmio->phys_addr | (int64_t)mmio->len << 52;
}

static int64_t abi_run(int fd, const struct kvm_run *run)
{
    int result = abi_ioctl_value(fd, ABI_KVM_RUN, 0);

    if (result)
        return result;
    switch (run->exit_reason) {
    case ABI_KVM_EXIT_IO:
        return abi_port_code(run);
    case ABI_KVM_EXIT_MMIO:
        return abi_read_code(run);
    default:
        return 0;
    }
}

static int abi_set_user_memory_region(int fd, struct kvm_userspace_memory_region *region)
{
    return abi_issue_struct(fd, ABI_KVM_SET_USER_MEMORY_REGION, region);
}

/* Stops at the first that is not done, and returns its result. */
static int abi_set_user_memory_regions(int fd, const struct kvm_userspace_memory_region *regions,
                                       uint32_t count, uint32_t *done)
{
    int result = 0;

    for (*done = 0; *done < count && !result; *done += !result) {
        struct kvm_userspace_memory_region region = regions[*done];

        result = abi_issue_struct(fd, ABI_KVM_SET_USER_MEMORY_REGION, &region);
    }
    return result;
}

/* A number that does not fit leaves an exception, which the caller looks for when all are read. */
static uint32_t u32(PyObject *number)
{
    unsigned long value = PyLong_AsUnsignedLong(number);

    if (value > UINT32_MAX && !PyErr_Occurred())
        PyErr_SetString(PyExc_OverflowError, "it needs more than 32 bits");
    return value;
}

static uint64_t u64(PyObject *number)
{
    return PyLong_AsUnsignedLongLong(number);
}

static int takes(Py_ssize_t count, Py_ssize_t wanted)
{
    if (count == wanted)
        return 1;
    PyErr_Format(PyExc_TypeError, "it takes %zd arguments, not %zd", wanted, count);
    return 0;
}

static PyObject *set_user_memory_region(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    struct kvm_userspace_memory_region region;
    PyThreadState *thread;
    int fd, result;

    (void)module;
    if (!takes(count, 6))
        return NULL;
    fd = (int)PyLong_AsLong(args[0]);
    region.slot = u32(args[1]);
    region.flags = u32(args[2]);
    region.guest_phys_addr = u64(args[3]);
    region.memory_size = u64(args[4]);
    region.userspace_addr = u64(args[5]);
    if (PyErr_Occurred())
        return NULL;
    thread = PyEval_SaveThread();
    result = abi_set_user_memory_region(fd, &region);
    PyEval_RestoreThread(thread);
    return PyLong_FromLong(result);
}

static PyObject *set_user_memory_regions(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    PyThreadState *thread;
    Py_ssize_t size;
    uint32_t done;
    char *regions;
    int fd, result;

    (void)module;
    if (!takes(count, 2))
        return NULL;
    fd = (int)PyLong_AsLong(args[0]);
    if (PyErr_Occurred() || PyBytes_AsStringAndSize(args[1], &regions, &size))
        return NULL;
    thread = PyEval_SaveThread();
    result = abi_set_user_memory_regions(
        fd, (const void *)regions, size / sizeof(struct kvm_userspace_memory_region), &done);
    PyEval_RestoreThread(thread);
    return Py_BuildValue("ki", (unsigned long)done, result);
}

/* Guests exit often in few ways, so the numbers that stand for exits are kept as objects, and a
 * dictionary finds them by identity. */
static PyObject *number_of(int64_t result)
{
    static PyObject *kept[13];
    static int64_t numbers[13];
    unsigned int place = (uint64_t)result % 13;

    if (!kept[place] || numbers[place] != result) {
        PyObject *made = PyLong_FromLongLong(result), *before = kept[place];

        if (!made)
            return NULL;
        kept[place] = made;
        numbers[place] = result;
        Py_XDECREF(before);
    }
    return Py_NewRef(kept[place]);
}

static PyObject *run(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    PyThreadState *thread;
    int64_t result;
    uint64_t address;
    int fd;

    (void)module;
    if (!takes(count, 2))
        return NULL;
    fd = (int)PyLong_AsLong(args[0]);
    address = u64(args[1]);
    if (PyErr_Occurred())
        return NULL;
    thread = PyEval_SaveThread();
    result = abi_run(fd, (const void *)(uintptr_t)address);
    PyEval_RestoreThread(thread);
    return number_of(result);
}

#include "fields.c"
#include "shortcut.c"

static PyMethodDef methods[] = {
    {"abi_set_user_memory_region", (PyCFunction)(void *)set_user_memory_region, METH_FASTCALL,
     "KVM_SET_USER_MEMORY_REGION: fd and the fields. Returns 0, -errno, or ABI_WRITTEN_TO."},
    {"abi_set_user_memory_regions", (PyCFunction)(void *)set_user_memory_regions, METH_FASTCALL,
     "The same for structures in bytes. Returns how many were done, and the result of the last."},
    {"abi_run", (PyCFunction)(void *)run, METH_FASTCALL,
     "KVM_RUN: fd, and the address of the vCPU's mapping of two pages or more. Returns 0, -errno,\n"
     "or from 2^60 on a number that says all of the exit, and the same of the same exit: of a\n"
     "port access of up to 4 bytes, or of a read outside memory."},
    {"put_before", put_before, METH_VARARGS,
     "Put the shortcut before a method: see kvm_abi.shortcut."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_frequent", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__frequent(void)
{
    PyObject *made = PyModule_Create(&module);

    if (made && !add_fields_type(made, "kvm_abi._frequent.VmFields", vm_fields) &&
        !add_fields_type(made, "kvm_abi._frequent.PagesFields", pages_fields) &&
        !add_fields_type(made, "kvm_abi._frequent.AddressFields", address_fields))
        return made;
    Py_XDECREF(made);
    return NULL;
}
