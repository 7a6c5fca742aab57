/* py_ops.c - any op of any backend, called by name on NumPy arrays: what the op tests are made of. */
#include "py/py_model.h"

#include <string.h>

#include "ops/ops.h"
#ifdef RK_HAVE_CUDA
#include "cuda/device.h"
#endif

static const char *const kind_names[] = {"tensor", "tensors", "int", "float", "ids"};

static const RkOpInfo *find_op(const char *name) {
    for (int i = 0; i < rk_op_count; i++)
        if (!strcmp(rk_op_info[i].name, name)) return &rk_op_info[i];
    PyErr_Format(PyExc_ValueError, "no op is called '%s'", name);
    return NULL;
}

static PyObject *op_names(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    PyObject *list = PyList_New(rk_op_count);
    for (int i = 0; list && i < rk_op_count; i++) {
        PyObject *name = PyUnicode_FromString(rk_op_info[i].name);
        if (!name) Py_CLEAR(list);
        else PyList_SET_ITEM(list, i, name);
    }
    return list;
}

static PyObject *op_fields(PyObject *module, PyObject *arg) {
    (void)module;
    const char *name = PyUnicode_AsUTF8(arg);
    const RkOpInfo *op = name ? find_op(name) : NULL;
    PyObject *list = op ? PyList_New(op->n_fields) : NULL;
    for (int i = 0; list && i < op->n_fields; i++) {
        PyObject *row = Py_BuildValue("(ss)", op->fields[i].name, kind_names[op->fields[i].kind]);
        if (!row) Py_CLEAR(list);
        else PyList_SET_ITEM(list, i, row);
    }
    return list;
}

/* Element types by NumPy's: uint16 holds the bits of bfloat16, which NumPy lacks. */
static int dtype_of(PyArrayObject *a) {
    const int rows[][2] = {{NPY_FLOAT32, RK_F32}, {NPY_FLOAT64, RK_F64}, {NPY_FLOAT16, RK_F16}, {NPY_UINT16, RK_BF16}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (PyArray_TYPE(a) == rows[i][0]) return rows[i][1];
    return -1;
}

/* A tensor over an array's memory, or over that of a pair (format, array) of weights; the array stays alive because the caller's dict holds it. */
static int as_tensor(PyObject *value, const char *field, RkTensor *out) {
    if (PyTuple_Check(value)) return rk_py_weight(value, field, out);
    PyArrayObject *a = (PyArrayObject *)value;
    int ok = PyArray_Check(value) && PyArray_IS_C_CONTIGUOUS(a) && PyArray_NDIM(a) >= 1 && PyArray_NDIM(a) <= 4 &&
             dtype_of(a) >= 0 && PyArray_SIZE(a) > 0 && PyArray_ISWRITEABLE(a);
    if (!ok) {
        PyErr_Format(PyExc_ValueError, "%s must be a writable, non-empty, C-contiguous array of 1 to 4 dimensions, of float32, float64, float16 or uint16 (bfloat16)", field);
        return -1;
    }
    *out = (RkTensor){PyArray_DATA(a), dtype_of(a), {0}};
    for (int i = 0; i < PyArray_NDIM(a); i++) out->d[i] = (int32_t)PyArray_DIM(a, i);
    return 0;
}

static int set_ids(PyObject *value, const char *field, const int32_t **out) {
    PyArrayObject *a = (PyArrayObject *)value;
    if (!PyArray_Check(value) || !PyArray_IS_C_CONTIGUOUS(a) || PyArray_TYPE(a) != NPY_INT32) {
        PyErr_Format(PyExc_ValueError, "%s must be a C-contiguous int32 array", field);
        return -1;
    }
    *out = PyArray_DATA(a);
    return 0;
}

static int set_field(const RkField *f, PyObject *value, void *args) {
    void *at = (char *)args + f->offset;
    if (f->kind == RK_FIELD_T) return as_tensor(value, f->name, at);
    if (f->kind == RK_FIELD_IDS) return set_ids(value, f->name, at);
    if (f->kind == RK_FIELD_I) *(int *)at = (int)PyLong_AsLong(value);
    if (f->kind == RK_FIELD_F) *(double *)at = PyFloat_AsDouble(value);
    if (f->kind != RK_FIELD_T6) return PyErr_Occurred() ? -1 : 0;
    Py_ssize_t n = PySequence_Size(value);
    if (n < 0 || n > RK_MAX_MIX) return PyErr_Format(PyExc_ValueError, "%s must hold up to 6 arrays", f->name), -1;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = PySequence_GetItem(value, i);
        int rc = item ? as_tensor(item, f->name, (RkTensor *)at + i) : -1;
        Py_XDECREF(item);
        if (rc < 0) return -1;
    }
    return 0;
}

static int set_fields(const RkOpInfo *op, PyObject *dict, void *args) {
    PyObject *key, *value;
    Py_ssize_t pos = 0;
    while (PyDict_Next(dict, &pos, &key, &value)) {
        const char *name = PyUnicode_AsUTF8(key);
        const RkField *f = NULL;
        for (int i = 0; name && i < op->n_fields; i++)
            if (!strcmp(op->fields[i].name, name)) f = &op->fields[i];
        if (!f) return PyErr_Format(PyExc_ValueError, "op %s has no field %R", op->name, key), -1;
        if (set_field(f, value, args) < 0) return -1;
    }
    return 0;
}

/* ---- arguments in a device's memory ---- */

enum { MAX_COPIES = 64, MAX_TIMES = 100 };
typedef struct { char *host; void *there; size_t bytes; } Copy;
typedef struct { RkMemory *memory; Copy copy[MAX_COPIES]; int n; } Copies;

/* Where the copy of this memory is, which is made the first time: fields may share an array. */
static int move(Copies *c, void *host, size_t bytes, void **there) {
    for (int i = 0; i < c->n; i++)
        if (c->copy[i].host == host) return *there = c->copy[i].there, RK_OK;
    RK_CHECK(c->n < MAX_COPIES, "more than %d arrays", MAX_COPIES);
    *there = c->memory->alloc(c->memory, bytes);
    if (!*there) return rk_fail(RK_ENOMEM, "no memory on the device for %zu bytes", bytes);
    c->copy[c->n++] = (Copy){host, *there, bytes};
    return c->memory->write(c->memory, *there, host, bytes);
}

static int move_tensors(Copies *c, RkTensor *t, int n) {
    for (int i = 0; i < n; i++)
        if (t[i].p) RK_TRY(move(c, t[i].p, rk_bytes(t[i]), &t[i].p));
    return RK_OK;
}

/* Token ids have as many elements as the dict's array. */
static int move_fields(Copies *c, const RkOpInfo *op, PyObject *dict, void *args) {
    for (int i = 0; i < op->n_fields; i++) {
        const RkField *f = &op->fields[i];
        void *at = (char *)args + f->offset;
        if (f->kind == RK_FIELD_T || f->kind == RK_FIELD_T6) RK_TRY(move_tensors(c, at, f->kind == RK_FIELD_T6 ? RK_MAX_MIX : 1));
        PyObject *ids = f->kind == RK_FIELD_IDS ? PyDict_GetItemString(dict, f->name) : NULL;
        if (ids) RK_TRY(move(c, PyArray_DATA((PyArrayObject *)ids), (size_t)PyArray_NBYTES((PyArrayObject *)ids), at));
    }
    return RK_OK;
}

/* n > 0: that many times, their milliseconds in ms; 0: once, and the arrays get what it wrote. */
typedef struct { int n; float *ms; } Times;

static int run_moved(RkOpFn fn, const void *args, Times times) {
#ifdef RK_HAVE_CUDA
    if (times.n) return rk_cuda_time(fn, args, times.n, times.ms);
#endif
    (void)times;
    return fn(args);
}

static int run_on_device(const RkBackend *be, const RkOpInfo *op, RkOpFn fn, PyObject *dict, void *args, Times times) {
    Copies c = {0};
    RkStore store;
    RK_TRY(rk_store_open(be, 0, &store));
    c.memory = store.memory;
    int rc = c.memory->bind(c.memory);
    if (!rc) rc = move_fields(&c, op, dict, args);
    if (!rc) rc = run_moved(fn, args, times);
    for (int i = 0; i < c.n; i++) {
        if (!rc && !times.n) rc = c.memory->read(c.memory, c.copy[i].host, c.copy[i].there, c.copy[i].bytes);
        c.memory->release(c.memory, c.copy[i].there, c.copy[i].bytes);
    }
    rk_store_close(&store);
    return rc;
}

static PyObject *run_op(PyObject *module, PyObject *call_args) {
    const char *backend, *name, *direction;
    PyObject *dict;
    float ms[MAX_TIMES];
    Times times = {0, ms};
    if (!PyArg_ParseTuple(call_args, "sssO!|i:run_op", &backend, &name, &direction, &PyDict_Type, &dict, &times.n)) return NULL;
    if (times.n < 0 || times.n > MAX_TIMES) return PyErr_Format(PyExc_ValueError, "times must be 0 to %d, not %d", MAX_TIMES, times.n);
    const RkBackend *be = rk_backend_find(backend);
    if (!be) return rk_py_raise(rk_py_state(module), RK_EINVAL);
    const RkOpInfo *op = find_op(name);
    if (!op) return NULL;
    void *args = PyMem_Calloc(1, op->size);
    if (!args) return PyErr_NoMemory();
    RkOpFn fn = rk_op_fn(be, strcmp(direction, "bwd") ? op->fwd_offset : op->bwd_offset);
    int rc = set_fields(op, dict, args);
    if (rc == 0 && !fn) rc = rk_fail(RK_EUNSUP, "backend %s has no %s of op %s", backend, direction, name);
    else if (rc == 0) rc = be->open ? run_on_device(be, op, fn, dict, args, times) : fn(args);
    PyMem_Free(args);
    if (PyErr_Occurred()) return NULL;
    if (rc) return rk_py_raise(rk_py_state(module), rc);
    if (!times.n || !be->open) Py_RETURN_NONE;
    PyObject *list = PyList_New(times.n);
    for (int i = 0; list && i < times.n; i++) PyList_SET_ITEM(list, i, PyFloat_FromDouble((double)ms[i]));
    return list;
}

static PyMethodDef functions[] = {
    {"op_names", op_names, METH_NOARGS, "The names of all ops."},
    {"op_fields", op_fields, METH_O, "The fields of an op's arguments: [(name, kind)]."},
    {"run_op", run_op, METH_VARARGS, "run_op(backend, op, direction, args, times=0): runs one op in place on NumPy arrays; with times, on a device: the milliseconds of as many runs."},
    {NULL, NULL, 0, NULL},
};

int rk_py_add_ops(PyObject *module) { return PyModule_AddFunctions(module, functions); }
