/* py_ops.c - any op of any backend, called by name on NumPy arrays: what the op tests are made of. */
#include "py/py_model.h"

#include <string.h>

#include "ops/ops.h"

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

/* A tensor over an array's memory, or over that of a pair (format, array) of weights; the array stays alive because the caller's dict holds it. */
static int as_tensor(PyObject *value, const char *field, RkTensor *out) {
    if (PyTuple_Check(value)) return rk_py_weight(value, field, out);
    PyArrayObject *a = (PyArrayObject *)value;
    int ok = PyArray_Check(value) && PyArray_IS_C_CONTIGUOUS(a) && PyArray_NDIM(a) >= 1 && PyArray_NDIM(a) <= 4 &&
             (PyArray_TYPE(a) == NPY_FLOAT32 || PyArray_TYPE(a) == NPY_FLOAT64) && PyArray_SIZE(a) > 0 && PyArray_ISWRITEABLE(a);
    if (!ok) {
        PyErr_Format(PyExc_ValueError, "%s must be a writable, non-empty, C-contiguous float32 or float64 array of 1 to 4 dimensions", field);
        return -1;
    }
    *out = (RkTensor){PyArray_DATA(a), PyArray_TYPE(a) == NPY_FLOAT64 ? RK_F64 : RK_F32, {0}};
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

static PyObject *run_op(PyObject *module, PyObject *call_args) {
    const char *backend, *name, *direction;
    PyObject *dict;
    if (!PyArg_ParseTuple(call_args, "sssO!:run_op", &backend, &name, &direction, &PyDict_Type, &dict)) return NULL;
    const RkBackend *be = rk_backend_find(backend);
    if (!be) return rk_py_raise(rk_py_state(module), RK_EINVAL);
    const RkOpInfo *op = find_op(name);
    if (!op) return NULL;
    void *args = PyMem_Calloc(1, op->size);
    if (!args) return PyErr_NoMemory();
    RkOpFn fn = rk_op_fn(be, strcmp(direction, "bwd") ? op->fwd_offset : op->bwd_offset);
    int rc = set_fields(op, dict, args);
    if (rc == 0 && !fn) rc = rk_fail(RK_EUNSUP, "backend %s has no %s of op %s", backend, direction, name);
    else if (rc == 0) rc = fn(args);
    PyMem_Free(args);
    if (PyErr_Occurred()) return NULL;
    if (rc) return rk_py_raise(rk_py_state(module), rc);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"op_names", op_names, METH_NOARGS, "The names of all ops."},
    {"op_fields", op_fields, METH_O, "The fields of an op's arguments: [(name, kind)]."},
    {"run_op", run_op, METH_VARARGS, "run_op(backend, op, direction, args): runs one op in place on NumPy arrays."},
    {NULL, NULL, 0, NULL},
};

int rk_py_add_ops(PyObject *module) { return PyModule_AddFunctions(module, functions); }
