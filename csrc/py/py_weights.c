/* py_weights.c - weights in formats of their own: a pair (format, array) is one tensor, and may become one of another format.
 *
 * The array: float32, bf16 as its bits in uint16, float16; quantised the bytes of each row, uint8 (rows, bytes). */
#include "py/py_model.h"

#include "base/quant.h"
#include "ops/linear/by_column.h"

static int element_type(int dtype) {
    return dtype == RK_F32 ? NPY_FLOAT32 : dtype == RK_BF16 ? NPY_UINT16 : dtype == RK_F16 ? NPY_FLOAT16 : NPY_UINT8;
}

/* Elements of a quantised row of so many bytes; 0 when there is no such row. */
static npy_intp elements_of(int dtype, npy_intp bytes) {
    npy_intp block = (npy_intp)rk_row_bytes(dtype, RK_QUANT_BLOCK);
    return bytes % block ? 0 : bytes / block * RK_QUANT_BLOCK;
}

int rk_py_weight(PyObject *pair, const char *name, RkTensor *out) {
    const char *format;
    PyArrayObject *a;
    if (!PyTuple_Check(pair) || !PyArg_ParseTuple(pair, "sO!", &format, &PyArray_Type, &a)) {
        PyErr_Format(PyExc_ValueError, "%s must be a pair of a format and an array", name);
        return -1;
    }
    int dtype = rk_format_find(format), quantised = dtype >= 0 && rk_quantised(dtype);
    if (dtype < 0) return PyErr_SetString(PyExc_ValueError, rk_error()), -1;
    int rank = PyArray_NDIM(a), ok = PyArray_TYPE(a) == element_type(dtype) && PyArray_IS_C_CONTIGUOUS(a) && rank >= 1 && rank <= 4;
    ok = ok && PyArray_SIZE(a) > 0 && (uintptr_t)PyArray_DATA(a) % (quantised ? 2 : (size_t)PyArray_ITEMSIZE(a)) == 0;
    *out = (RkTensor){PyArray_DATA(a), dtype, {0}};
    for (int i = 0; ok && i < rank; i++) {
        npy_intp size = quantised && i == 1 ? elements_of(dtype, PyArray_DIM(a, i)) : PyArray_DIM(a, i);
        ok = size > 0 && size <= INT32_MAX;
        out->d[i] = (int32_t)size;
    }
    if (ok && (!quantised || rank == 2)) return 0;
    PyErr_Format(PyExc_ValueError, "%s is no C-contiguous, aligned array of %s weights", name, format);
    return -1;
}

int rk_py_weight_mapped(PyObject *pair) {
    PyObject *base = PyTuple_GET_ITEM(pair, 1);
    while (base && PyArray_Check(base)) base = PyArray_BASE((PyArrayObject *)base);
    return base && !strcmp(Py_TYPE(base)->tp_name, "mmap.mmap");
}

static PyObject *array_for(RkTensor t, int dtype) {
    npy_intp dims[4];
    int rank = rk_rank(t);
    for (int i = 0; i < rank; i++) dims[i] = t.d[i];
    if (rk_quantised(dtype)) {
        if (rank != 2 || t.d[1] % RK_QUANT_BLOCK)
            return PyErr_Format(PyExc_ValueError, "%s takes matrices whose rows are multiples of %d", rk_format_name(dtype), RK_QUANT_BLOCK);
        dims[1] = (npy_intp)rk_row_bytes(dtype, (size_t)t.d[1]);
    }
    return PyArray_SimpleNew(rank, dims, element_type(dtype));
}

/* The array to convert into: a new one, or `given`, a writable one of the shape. NULL with an exception. */
static PyObject *target(RkTensor from, const char *format, int dtype, PyObject *given, RkTensor *to) {
    PyObject *out = given == Py_None ? array_for(from, dtype) : Py_NewRef(given);
    PyObject *pair = out ? Py_BuildValue("(sO)", format, out) : NULL;
    int ok = pair && rk_py_weight(pair, "out", to) == 0;
    Py_XDECREF(pair);
    if (ok && (memcmp(from.d, to->d, sizeof from.d) || !PyArray_ISWRITEABLE((PyArrayObject *)out))) {
        PyErr_SetString(PyExc_ValueError, "out must be writable and of the weight's shape");
        ok = 0;
    }
    if (!ok) Py_CLEAR(out);
    return out;
}

static PyObject *convert_weight(PyObject *module, PyObject *args) {
    PyObject *pair, *given = Py_None;
    const char *format;
    RkTensor from, to;
    if (!PyArg_ParseTuple(args, "Os|O:convert_weight", &pair, &format, &given) || rk_py_weight(pair, "weight", &from) < 0) return NULL;
    int dtype = rk_format_find(format), rc;
    if (dtype < 0) return rk_py_raise(rk_py_state(module), RK_EINVAL);
    PyObject *out = target(from, format, dtype, given, &to);
    if (!out) return NULL;
    Py_BEGIN_ALLOW_THREADS
    rc = rk_convert(from, to);
    Py_END_ALLOW_THREADS
    if (!rc) return out;
    Py_DECREF(out);
    return rk_py_raise(rk_py_state(module), rc);
}

RkTensor *rk_py_weights(PyObject *dict, const RkConfig *cfg, RkPyState *st) {
    RkManifest man = {0};
    int rc = rk_config_check(cfg);
    if (!rc) rc = rk_manifest_build(&man, cfg, (RkStore){RK_F32, RK_F32, &rk_host_memory});
    if (rc) return rk_py_raise(st, rc), NULL;
    RkTensor *weights = PyMem_Calloc((size_t)man.n, sizeof *weights);
    if (!weights) PyErr_NoMemory();
    for (int i = 0; weights && i < man.n; i++) {
        PyObject *pair = PyDict_GetItemString(dict, man.param[i].name);
        if (!pair) PyErr_Format(PyExc_ValueError, "weights lack %s", man.param[i].name);
        if (!pair || rk_py_weight(pair, man.param[i].name, &weights[i]) < 0) {
            PyMem_Free(weights);
            weights = NULL;
        }
    }
    rk_manifest_free(&man);
    return weights;
}

static PyObject *columns_read(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    RkColumnsRead columns = rk_cpu_columns_read();
    return Py_BuildValue("(KK)", (unsigned long long)columns.read, (unsigned long long)columns.all);
}

static PyMethodDef functions[] = {
    {"columns_read", columns_read, METH_NOARGS, "columns_read(): (columns that decoding has read of matrices behind relu(k)^2, columns there were)."},
    {"convert_weight", convert_weight, METH_VARARGS, "convert_weight((format, array), format): the array of another format."},
    {NULL, NULL, 0, NULL},
};

int rk_py_add_weights(PyObject *module) { return PyModule_AddFunctions(module, functions); }
