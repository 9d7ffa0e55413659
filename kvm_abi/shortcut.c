/*
 * The shortcut that kvm_abi/shortcut.py puts before Vm.set_user_memory_region. Included by
 * frequent.c.
 */

static PyObject *whole_method; /* In Python; for what the shortcut leaves to it. */
static PyObject *address_class, *mapping_class;

/* glibc has it from 2.32 on. It stays false in a process that once had another thread. */
extern char __libc_single_threaded __attribute__((weak));

static int is_single_threaded(void)
{
    return &__libc_single_threaded && __libc_single_threaded;
}

/* Whether a value is a number of 64 bits; otherwise no exception is left. */
static int is_u64(PyObject *value, uint64_t *number)
{
    if (!value)
        return 0;
    *number = PyLong_AsUnsignedLongLong(value);
    if (*number != UINT64_MAX || !PyErr_Occurred())
        return 1;
    PyErr_Clear();
    return 0;
}

static int is_u32(PyObject *value, uint32_t *number)
{
    uint64_t wide;

    if (!is_u64(value, &wide) || wide > UINT32_MAX)
        return 0;
    *number = wide;
    return 1;
}

/* Whether a value is a number, or an address inside a mapping that is open. */
static int is_hva(PyObject *value, uint64_t *hva, PyObject **mapping)
{
    uint64_t address, size_bytes, offset;

    if ((PyObject *)Py_TYPE(value) != address_class)
        return is_u64(value, hva);
    *mapping = field(value, ADDRESS_MAPPING);
    if (!*mapping || (PyObject *)Py_TYPE(*mapping) != mapping_class ||
        !field(*mapping, PAGES_VIEW) || field(*mapping, PAGES_VIEW) == Py_None ||
        !is_u64(field(*mapping, PAGES_ADDRESS), &address) ||
        !is_u64(field(*mapping, PAGES_SIZE_BYTES), &size_bytes) ||
        !is_u64(field(value, ADDRESS_OFFSET), &offset) || offset > size_bytes)
        return 0;
    *hva = address + offset;
    return 1;
}

/* Returns what the method in Python does. */
static PyObject *call_whole(PyObject *vm, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    Py_ssize_t each, named = names ? PyTuple_Size(names) : 0;
    PyObject *by_place = PyTuple_New(count + 1), *by_name = PyDict_New(), *answer = NULL;
    int failed = !by_place || !by_name;

    for (each = 0; !failed && each <= count; each++)
        failed = PyTuple_SetItem(by_place, each, Py_NewRef(each ? args[each - 1] : vm));
    for (each = 0; !failed && each < named; each++)
        failed = PyDict_SetItem(by_name, PyTuple_GetItem(names, each), args[count + each]);
    if (!failed)
        answer = PyObject_Call(whole_method, by_place, by_name);
    Py_XDECREF(by_place);
    Py_XDECREF(by_name);
    return answer;
}

/* Issues the ioctl as whoever has the GIL. Only if there is another thread, one may want it: to
 * give it away and to take it back touches as much memory as the rest of the shortcut. */
static int issue_with_gil(int fd, struct kvm_userspace_memory_region *region)
{
    PyThreadState *thread;
    int result;

    if (is_single_threaded())
        return abi_set_user_memory_region(fd, region);
    thread = PyEval_SaveThread();
    result = abi_set_user_memory_region(fd, region);
    PyEval_RestoreThread(thread);
    return result;
}

/* Other threads ran while the kernel worked: they may have put another table into the VM. */
static int pin(PyObject *vm, PyObject *slot, PyObject *mapping)
{
    PyObject *pinned = field(vm, VM_PINNED);
    int failed;

    if (!pinned) {
        PyErr_SetString(PyExc_AttributeError, "_pinned");
        return -1;
    }
    Py_INCREF(pinned);
    failed = PyDict_SetItem(pinned, slot, mapping);
    Py_DECREF(pinned);
    return failed;
}

static PyObject *shortcut(PyObject *vm, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *mapping = NULL;
    struct kvm_userspace_memory_region region;
    uint32_t fd;
    int result;

    if (count != 5 || names || !field(vm, VM_PINNED) || !is_u32(field(vm, VM_FD), &fd) ||
        !is_u32(args[0], &region.slot) || !is_u32(args[1], &region.flags) ||
        !is_u64(args[2], &region.guest_phys_addr) || !is_u64(args[3], &region.memory_size) ||
        !is_hva(args[4], &region.userspace_addr, &mapping))
        return call_whole(vm, args, count, names);
    Py_XINCREF(mapping);
    result = issue_with_gil((int)fd, &region);
    if (result)
        Py_XDECREF(PyObject_CallMethod(vm, "_refuse", "iOOOOK", result, args[0], args[1], args[2],
                                       args[3], (unsigned long long)region.userspace_addr));
    else if (mapping || !region.memory_size)
        result = pin(vm, args[0], region.memory_size ? mapping : Py_None);
    Py_XDECREF(mapping);
    return result ? NULL : Py_NewRef(Py_None);
}

/* The descriptor is like that of any method of a type in C, so that Python calls it directly. What
 * it refers to stays for good, as modules do. */
static PyObject *put_before(PyObject *module, PyObject *args)
{
    static PyMethodDef method = {
        NULL, (PyCFunction)(void *)shortcut, METH_FASTCALL | METH_KEYWORDS, NULL,
    };
    PyObject *whole, *vm_class, *address, *mapping, *descriptor;
    const char *name, *doc;
    int failed;

    (void)module;
    if (!PyArg_ParseTuple(args, "Oss(O!O!O!)", &whole, &name, &doc, &PyType_Type, &vm_class,
                          &PyType_Type, &address, &PyType_Type, &mapping))
        return NULL;
    if (method.ml_name)
        Py_RETURN_NONE;
    Py_INCREF(args);
    method.ml_name = name;
    method.ml_doc = doc;
    whole_method = whole;
    address_class = address;
    mapping_class = mapping;
    descriptor = PyDescr_NewMethod((PyTypeObject *)vm_class, &method);
    failed = !descriptor || PyObject_SetAttrString(vm_class, method.ml_name, descriptor);
    Py_XDECREF(descriptor);
    return failed ? NULL : Py_NewRef(Py_None);
}
