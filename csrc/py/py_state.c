#include "py/py_model.h"

#include <string.h>

RkPyStateObject *rk_py_state_new(RkPyModel *owner, int batch_size, int past) {
    RkPyState *st = rk_py_state_of(Py_TYPE(owner));
    if (batch_size < 1) {
        PyErr_Format(PyExc_ValueError, "batch_size must be at least 1, not %d", batch_size);
        return NULL;
    }
    if (past < 0) {
        PyErr_Format(PyExc_ValueError, "a state cannot hold %d tokens", past);
        return NULL;
    }
    RkPyStateObject *self = (RkPyStateObject *)st->state->tp_alloc(st->state, 0);
    if (!self) return NULL;
    self->owner = (RkPyModel *)Py_NewRef((PyObject *)owner);
    int rc = rk_state_create(&self->state, &owner->model.cfg, owner->model.store, batch_size, past);
    if (rc) {
        Py_DECREF(self);
        rk_py_raise(st, rc);
        return NULL;
    }
    return self;
}

static void state_dealloc(PyObject *op) {
    RkPyStateObject *self = (RkPyStateObject *)op;
    PyTypeObject *type = Py_TYPE(op);
    rk_state_free(&self->state);
    Py_XDECREF(self->owner);
    type->tp_free(op);
    Py_DECREF(type);
}

PyObject *rk_py_state_view(RkPyStateObject *state, const RkStateRow *row, int writable) {
    PyObject *whole = rk_py_view(state->state.store.memory, row->t, (PyObject *)state, writable);
    if (!whole || !row->grows) return whole;
    npy_intp dims[4], strides[4];
    int rank = PyArray_NDIM((PyArrayObject *)whole), flags = writable ? NPY_ARRAY_WRITEABLE : 0;
    for (int i = 0; i < rank; i++) {
        dims[i] = i == 1 ? state->state.past : PyArray_DIM((PyArrayObject *)whole, i);
        strides[i] = PyArray_STRIDE((PyArrayObject *)whole, i);
    }
    PyObject *part = PyArray_New(&PyArray_Type, rank, dims, PyArray_TYPE((PyArrayObject *)whole), strides,
                                 PyArray_DATA((PyArrayObject *)whole), 0, flags, NULL);
    if (!part) return Py_DECREF(whole), NULL;
    if (PyArray_SetBaseObject((PyArrayObject *)part, whole) < 0) Py_CLEAR(part); /* takes the reference to whole */
    return part;
}

static PyObject *state_rows(PyObject *op, PyObject *unused) {
    (void)unused;
    RkPyStateObject *self = (RkPyStateObject *)op;
    PyObject *list = PyList_New(0);
    RkStateRow row;
    for (int i = 0; list && rk_state_row(&self->state, i, &row); i++) {
        PyObject *view = rk_py_state_view(self, &row, 0);
        PyObject *item = view ? Py_BuildValue("(isN)", row.layer, row.name, view) : NULL;
        if (!item || PyList_Append(list, item) < 0) Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

static PyObject *state_copy(PyObject *op, PyObject *unused) {
    (void)unused;
    RkPyStateObject *self = (RkPyStateObject *)op, *copy = rk_py_state_new(self->owner, self->state.B, self->state.past);
    if (!copy) return NULL;
    int rc = rk_state_copy(&copy->state, &self->state);
    if (!rc) return (PyObject *)copy;
    Py_DECREF(copy);
    return rk_py_raise(rk_py_state_of(Py_TYPE(self->owner)), rc);
}

static int is_row(const RkPyStateObject *self, long row) {
    if (row >= 0 && row < self->state.B) return 1;
    return PyErr_Occurred() ? 0 : (PyErr_Format(PyExc_ValueError, "there is no sequence %ld in a state of %d", row, self->state.B), 0);
}

static PyObject *state_take(PyObject *op, PyObject *arg) {
    RkPyStateObject *self = (RkPyStateObject *)op;
    PyObject *rows = PySequence_Fast(arg, "rows must be a sequence of integers");
    if (!rows) return NULL;
    Py_ssize_t n = PySequence_Fast_GET_SIZE(rows);
    RkPyStateObject *part = n > INT32_MAX ? NULL : rk_py_state_new(self->owner, (int)n, self->state.past);
    int rc = 0;
    for (Py_ssize_t i = 0; part && i < n; i++) {
        long row = PyLong_AsLong(PySequence_Fast_GET_ITEM(rows, i));
        int good = is_row(self, row);
        if (good) rc = rk_state_copy_sequence(&part->state, (int)i, &self->state, (int)row);
        if (!good || rc) Py_CLEAR(part);
    }
    Py_DECREF(rows);
    return rc ? rk_py_raise(rk_py_state_of(Py_TYPE(op)), rc) : (PyObject *)part;
}

static PyObject *state_put(PyObject *op, PyObject *args) {
    RkPyStateObject *self = (RkPyStateObject *)op, *from;
    int to, row;
    if (!PyArg_ParseTuple(args, "iO!i:put", &to, Py_TYPE(op), &from, &row)) return NULL;
    if (!is_row(self, to) || !is_row(from, row)) return NULL;
    if (self->owner != from->owner || self->state.past != from->state.past)
        return PyErr_SetString(PyExc_ValueError, "the states must be of one model and hold equally many tokens"), NULL;
    int rc = rk_state_copy_sequence(&self->state, to, &from->state, row);
    if (rc) return rk_py_raise(rk_py_state_of(Py_TYPE(op)), rc);
    Py_RETURN_NONE;
}

static PyObject *state_narrow(PyObject *op, PyObject *arg) {
    int B = (int)PyLong_AsLong(arg), rc = PyErr_Occurred() ? -1 : rk_state_narrow(&((RkPyStateObject *)op)->state, B);
    if (PyErr_Occurred()) return NULL;
    if (rc) return rk_py_raise(rk_py_state_of(Py_TYPE(op)), rc);
    Py_RETURN_NONE;
}

static PyObject *get_batch_size(PyObject *op, void *unused) {
    (void)unused;
    return PyLong_FromLong(((RkPyStateObject *)op)->state.B);
}

static PyObject *get_past(PyObject *op, void *unused) {
    (void)unused;
    return PyLong_FromLong(((RkPyStateObject *)op)->state.past);
}

static PyObject *get_nbytes(PyObject *op, void *unused) {
    (void)unused;
    return PyLong_FromSize_t(((RkPyStateObject *)op)->state.bytes);
}

static PyMethodDef methods[] = {
    {"rows", state_rows, METH_NOARGS, "[(layer, name, array)]: read-only zero-copy views; wkv is (B,H,key,value), key_cache and value_cache (B,past,G,N)."},
    {"copy", state_copy, METH_NOARGS, "An independent copy."},
    {"take", state_take, METH_O, "take(rows): the state of these sequences, in this order, any of them repeated."},
    {"put", state_put, METH_VARARGS, "put(to, state, row): copies a sequence of a state over sequence `to` of this one."},
    {"narrow", state_narrow, METH_O, "narrow(n): the first n sequences only; a larger n brings the others back."},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef getset[] = {
    {"batch_size", get_batch_size, NULL, "Sequences in the batch.", NULL},
    {"past", get_past, NULL, "Tokens whose keys and values it holds; 0 in a model without attention.", NULL},
    {"nbytes", get_nbytes, NULL, "Bytes of memory.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot slots[] = {
    {Py_tp_dealloc, state_dealloc}, {Py_tp_methods, methods}, {Py_tp_getset, getset},
    {Py_tp_doc, "The recurrent state of a batch; made by Model.new_state."}, {0, NULL},
};
static PyType_Spec spec = {"rwkvtune._rwkvcore.State", sizeof(RkPyStateObject), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};

int rk_py_add_state(PyObject *module) {
    RkPyState *st = rk_py_state(module);
    st->state = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
    return st->state ? PyModule_AddType(module, st->state) : -1;
}
