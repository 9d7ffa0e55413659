/*
 * Types whose attributes lie where C finds them without a search by name: the bases of Vm,
 * HostPages and HostAddress. Included by frequent.c.
 */

#define MOST_FIELDS 3

struct fields {
    PyObject_HEAD
    PyObject *field[MOST_FIELDS]; /* NULL before it is set. */
};

#define FIELD(name, number) {name, T_OBJECT_EX, offsetof(struct fields, field[number]), 0, NULL}
#define NO_MORE_FIELDS {NULL, 0, 0, 0, NULL}

enum { VM_FD, VM_PINNED };
static PyMemberDef vm_fields[] = {
    FIELD("_fd", VM_FD), FIELD("_pinned", VM_PINNED), NO_MORE_FIELDS,
};

enum { PAGES_ADDRESS, PAGES_SIZE_BYTES, PAGES_VIEW };
static PyMemberDef pages_fields[] = {
    FIELD("address", PAGES_ADDRESS), FIELD("size_bytes", PAGES_SIZE_BYTES),
    FIELD("_view", PAGES_VIEW), NO_MORE_FIELDS,
};

enum { ADDRESS_MAPPING, ADDRESS_OFFSET };
static PyMemberDef address_fields[] = {
    FIELD("mapping", ADDRESS_MAPPING), FIELD("offset", ADDRESS_OFFSET), NO_MORE_FIELDS,
};

static PyObject *field(PyObject *object, int number)
{
    return ((struct fields *)object)->field[number];
}

static int fields_traverse(PyObject *object, visitproc visit, void *arg)
{
    int each;

    Py_VISIT(Py_TYPE(object));
    for (each = 0; each < MOST_FIELDS; each++)
        Py_VISIT(field(object, each));
    return 0;
}

static int fields_clear(PyObject *object)
{
    int each;

    for (each = 0; each < MOST_FIELDS; each++)
        Py_CLEAR(((struct fields *)object)->field[each]);
    return 0;
}

static void fields_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);

    PyObject_GC_UnTrack(object);
    fields_clear(object);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

/* Adds a type with such fields to a module. Returns 0, or -1 with an exception. */
static int add_fields_type(PyObject *module, const char *name, PyMemberDef *members)
{
    PyType_Slot slots[] = {
        {Py_tp_members, members},
        {Py_tp_traverse, fields_traverse},
        {Py_tp_clear, fields_clear},
        {Py_tp_dealloc, fields_dealloc},
        {0, NULL},
    };
    PyType_Spec spec = {
        name, sizeof(struct fields), 0,
        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, slots,
    };
    PyObject *type = PyType_FromSpec(&spec);
    int result = type ? PyModule_AddType(module, (PyTypeObject *)type) : -1;

    Py_XDECREF(type);
    return result;
}
