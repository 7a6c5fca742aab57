/* py_dataset.c - the types BinIdx and BinIdxWriter and the sampler's functions; rwkvtune/data/binidx.py wraps them. */
#include "py/py.h"

#include <string.h>

#include "base/err.h"
#include "data/binidx.h"
#include "data/sampler.h"

typedef struct BinIdxObject {
    PyObject_HEAD
    RkBinIdx data;
} BinIdxObject;

typedef struct WriterObject {
    PyObject_HEAD
    RkBinWriter *writer; /* NULL once finished or closed */
    int code, busy;      /* busy: a thread is inside without the GIL */
} WriterObject;

static PyObject *raise_for(PyObject *op, int rc) { return rk_py_raise(rk_py_state_of(Py_TYPE(op)), rc); }

static int typenum_of(int code) {
    static const int typenum[9] = {0, NPY_UINT8, NPY_INT8, NPY_INT16, NPY_INT32, NPY_INT64, 0, 0, NPY_UINT16};
    return typenum[code];
}

/* Converter for "O&": refuses negative numbers and those of 2^64 or more. */
static int to_u64(PyObject *obj, void *out) {
    PyObject *index = PyNumber_Index(obj);
    unsigned long long x = index ? PyLong_AsUnsignedLongLong(index) : 0;
    Py_XDECREF(index);
    if (PyErr_Occurred()) return 0;
    *(uint64_t *)out = x;
    return 1;
}

/* ---- BinIdx ---- */

static PyObject *binidx_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"prefix", NULL};
    PyObject *prefix = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&", names, PyUnicode_FSConverter, &prefix)) return NULL;
    BinIdxObject *self = (BinIdxObject *)type->tp_alloc(type, 0);
    int rc = 0;
    if (self) {
        Py_BEGIN_ALLOW_THREADS
        rc = rk_binidx_open(&self->data, PyBytes_AS_STRING(prefix));
        Py_END_ALLOW_THREADS
    }
    Py_DECREF(prefix);
    if (rc) {
        raise_for((PyObject *)self, rc);
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void binidx_dealloc(PyObject *op) {
    PyTypeObject *type = Py_TYPE(op);
    rk_binidx_close(&((BinIdxObject *)op)->data);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *binidx_item(PyObject *op, PyObject *arg) {
    const RkBinIdx *d = &((BinIdxObject *)op)->data;
    uint64_t i;
    if (!to_u64(arg, &i)) return NULL;
    if (i >= d->n_items)
        return PyErr_Format(PyExc_IndexError, "sequence %llu of %llu", (unsigned long long)i,
                            (unsigned long long)d->n_items);
    return Py_BuildValue("(Ki)", (unsigned long long)rk_binidx_start(d, i), (int)rk_binidx_size(d, i));
}

static PyObject *binidx_view(PyObject *op, PyObject *args) {
    const RkBinIdx *d = &((BinIdxObject *)op)->data;
    uint64_t start, n;
    if (!PyArg_ParseTuple(args, "O&O&", to_u64, &start, to_u64, &n)) return NULL;
    if (start > d->n_tokens || n > d->n_tokens - start)
        return PyErr_Format(PyExc_ValueError, "%llu tokens from %llu on are not all in %s.bin, which has %llu",
                            (unsigned long long)n, (unsigned long long)start, d->name, (unsigned long long)d->n_tokens);
    npy_intp dim = (npy_intp)n;
    PyArray_Descr *dtype = PyArray_DescrFromType(typenum_of(d->code));
    if (!n) return PyArray_NewFromDescr(&PyArray_Type, dtype, 1, &dim, NULL, NULL, 0, NULL);
    char *p = (char *)d->bin.p + start * (uint64_t)d->width;
    PyObject *array =
        PyArray_NewFromDescr(&PyArray_Type, dtype, 1, &dim, NULL, p, NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED, NULL);
    if (array && PyArray_SetBaseObject((PyArrayObject *)array, Py_NewRef(op)) < 0) Py_CLEAR(array);
    return array;
}

static PyObject *binidx_sizes(PyObject *op, PyObject *unused) {
    (void)unused;
    const RkBinIdx *d = &((BinIdxObject *)op)->data;
    npy_intp n = (npy_intp)d->n_items;
    PyObject *array = PyArray_SimpleNew(1, &n, NPY_INT32);
    if (array) memcpy(PyArray_DATA((PyArrayObject *)array), d->sizes, 4 * (size_t)n);
    return array;
}

static PyObject *binidx_documents(PyObject *op, PyObject *unused) {
    (void)unused;
    const RkBinIdx *d = &((BinIdxObject *)op)->data;
    npy_intp n = (npy_intp)d->n_docs;
    PyObject *array = PyArray_SimpleNew(1, &n, NPY_INT64);
    if (array) memcpy(PyArray_DATA((PyArrayObject *)array), d->docs, 8 * (size_t)n);
    return array;
}

static PyObject *binidx_batch(PyObject *op, PyObject *args) {
    const RkBinIdx *d = &((BinIdxObject *)op)->data;
    RkSampler s;
    RkBatch b = {0};
    uint64_t rows, ctx_len, prime, world, rank;
    int rc, vocab_size;
    if (!PyArg_ParseTuple(args, "(O&O&O&O&)O&O&O&i", to_u64, &ctx_len, to_u64, &prime, to_u64, &world, to_u64, &rank,
                          to_u64, &b.epoch, to_u64, &b.idx0, to_u64, &rows, &vocab_size))
        return NULL;
    if ((rc = rk_sampler_init(&s, d->n_tokens, ctx_len, prime, world, rank))) return raise_for(op, rc);
    npy_intp shape[2] = {(npy_intp)rows, (npy_intp)ctx_len};
    PyObject *ids = PyArray_SimpleNew(2, shape, NPY_INT32), *targets = PyArray_SimpleNew(2, shape, NPY_INT32);
    if (ids && targets) {
        b.B = (size_t)rows;
        b.vocab_size = vocab_size;
        b.ids = PyArray_DATA((PyArrayObject *)ids);
        b.targets = PyArray_DATA((PyArrayObject *)targets);
        Py_BEGIN_ALLOW_THREADS
        rc = rk_sampler_fill(&s, d, &b);
        Py_END_ALLOW_THREADS
        if (rc)
            raise_for(op, rc);
        else
            return Py_BuildValue("(NN)", ids, targets);
    }
    Py_XDECREF(ids);
    Py_XDECREF(targets);
    return NULL;
}

static PyObject *binidx_get(PyObject *op, void *which) {
    const RkBinIdx *d = &((BinIdxObject *)op)->data;
    const uint64_t value[] = {d->n_items, d->n_docs, d->n_tokens};
    return PyLong_FromUnsignedLongLong(value[(uintptr_t)which]);
}

static PyObject *binidx_dtype(PyObject *op, void *unused) {
    (void)unused;
    return (PyObject *)PyArray_DescrFromType(typenum_of(((BinIdxObject *)op)->data.code));
}

static PyMethodDef binidx_methods[] = {
    {"item", binidx_item, METH_O, "item(i) -> (first token's place in the stream, number of tokens)"},
    {"view", binidx_view, METH_VARARGS, "view(start, n) -> read-only array of tokens of the stream, without a copy"},
    {"sizes", binidx_sizes, METH_NOARGS, "sizes() -> int32 array, tokens in each sequence"},
    {"documents", binidx_documents, METH_NOARGS, "documents() -> int64 array, the document entries of the index"},
    {"batch", binidx_batch, METH_VARARGS,
     "batch((ctx_len, magic_prime, world_size, rank), epoch, idx0, B, vocab_size) -> ids, targets: int32 (B, ctx_len)"},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef binidx_getset[] = {
    {"num_items", binidx_get, NULL, "Sequences.", (void *)0},
    {"num_document_entries", binidx_get, NULL, "Entries of the document array.", (void *)1},
    {"total_tokens", binidx_get, NULL, "Tokens of the whole stream.", (void *)2},
    {"dtype", binidx_dtype, NULL, "NumPy dtype of the tokens.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot binidx_slots[] = {
    {Py_tp_new, binidx_new},
    {Py_tp_dealloc, binidx_dealloc},
    {Py_tp_methods, binidx_methods},
    {Py_tp_getset, binidx_getset},
    {Py_tp_doc, "BinIdx(prefix): the tokens of prefix.bin and prefix.idx, mapped and checked."},
    {0, NULL},
};
static PyType_Spec binidx_spec = {"rwkvtune._rwkvcore.BinIdx", sizeof(BinIdxObject), 0, Py_TPFLAGS_DEFAULT,
                                  binidx_slots};

/* ---- BinIdxWriter ---- */

static PyObject *writer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"prefix", "code", NULL};
    PyObject *prefix = NULL;
    int code;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&i", names, PyUnicode_FSConverter, &prefix, &code)) return NULL;
    WriterObject *self = (WriterObject *)type->tp_alloc(type, 0);
    int rc = 0;
    if (self) {
        self->code = code;
        rc = rk_binidx_writer_open(&self->writer, PyBytes_AS_STRING(prefix), code);
    }
    Py_DECREF(prefix);
    if (rc) {
        raise_for((PyObject *)self, rc);
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void writer_dealloc(PyObject *op) {
    PyTypeObject *type = Py_TYPE(op);
    rk_binidx_writer_close(((WriterObject *)op)->writer);
    type->tp_free(op);
    Py_DECREF(type);
}

static int writer_usable(const WriterObject *self) {
    if (self->writer && !self->busy) return 1;
    PyErr_SetString(PyExc_ValueError, self->busy ? "the writer is in use by another thread" : "the writer is closed");
    return 0;
}

/* Checks that obj is a contiguous 1-D array of the given type. */
static PyArrayObject *plain_array(PyObject *obj, int typenum, const char *name) {
    if (PyArray_Check(obj)) {
        PyArrayObject *a = (PyArrayObject *)obj;
        if (PyArray_NDIM(a) == 1 && PyArray_EquivTypenums(PyArray_TYPE(a), typenum) && PyArray_ISCARRAY_RO(a)) return a;
    }
    PyErr_Format(PyExc_TypeError, "%s must be a contiguous 1-D array of the writer's dtype (places: int64)", name);
    return NULL;
}

static PyObject *writer_add(PyObject *op, PyObject *obj) {
    WriterObject *self = (WriterObject *)op;
    PyArrayObject *a = plain_array(obj, typenum_of(self->code), "tokens");
    if (!a || !writer_usable(self)) return NULL;
    int rc;
    self->busy = 1;
    Py_INCREF(a);
    Py_BEGIN_ALLOW_THREADS
    rc = rk_binidx_writer_add(self->writer, PyArray_DATA(a), (size_t)PyArray_SIZE(a));
    Py_END_ALLOW_THREADS
    Py_DECREF(a);
    self->busy = 0;
    if (rc) return raise_for(op, rc);
    Py_RETURN_NONE;
}

static PyObject *writer_end_document(PyObject *op, PyObject *unused) {
    (void)unused;
    WriterObject *self = (WriterObject *)op;
    if (!writer_usable(self)) return NULL;
    int rc = rk_binidx_writer_end_document(self->writer);
    if (rc) return raise_for(op, rc);
    Py_RETURN_NONE;
}

/* Documents of one sequence from tokens in memory. */
static int add_documents(RkBinWriter *w, PyArrayObject *tokens, const RkBinStock *s, const int64_t *order, size_t n) {
    const size_t width = (size_t)PyArray_ITEMSIZE(tokens), n_tokens = (size_t)PyArray_SIZE(tokens);
    for (size_t i = 0; i < n; i++) {
        const int64_t k = order[i];
        RK_CHECK(k >= 0 && (size_t)k < s->n, "order[%zu] is %lld, and there are %zu documents", i, (long long)k, s->n);
        const int64_t from = s->start[k], to = s->start[k + 1];
        RK_CHECK(from >= 0 && from <= to && (uint64_t)to <= n_tokens, "document %lld lies at tokens %lld to %lld of %zu",
                 (long long)k, (long long)from, (long long)to, n_tokens);
        RK_TRY(rk_binidx_writer_add(w, (const char *)PyArray_DATA(tokens) + (size_t)from * width, (size_t)(to - from)));
        RK_TRY(rk_binidx_writer_end_document(w));
    }
    return RK_OK;
}

/* The rest of both methods below; tokens: NULL where they lie in the file fd. */
static PyObject *write_stock(WriterObject *self, PyArrayObject *tokens, int fd, PyObject *start_obj, PyObject *order_obj) {
    PyArrayObject *start = plain_array(start_obj, NPY_INT64, "starts");
    PyArrayObject *order = start ? plain_array(order_obj, NPY_INT64, "order") : NULL;
    if (!order || !writer_usable(self)) return NULL;
    const RkBinStock stock = {fd, PyArray_DATA(start), PyArray_SIZE(start) ? (size_t)PyArray_SIZE(start) - 1 : 0};
    const size_t n = (size_t)PyArray_SIZE(order);
    int rc;
    self->busy = 1; /* the caller holds the arrays */
    Py_BEGIN_ALLOW_THREADS
    rc = tokens ? add_documents(self->writer, tokens, &stock, PyArray_DATA(order), n)
                : rk_binidx_writer_copy(self->writer, &stock, PyArray_DATA(order), n);
    Py_END_ALLOW_THREADS
    self->busy = 0;
    if (rc) return raise_for((PyObject *)self, rc);
    Py_RETURN_NONE;
}

static PyObject *writer_add_documents(PyObject *op, PyObject *args) {
    WriterObject *self = (WriterObject *)op;
    PyObject *tokens_obj, *start, *order;
    if (!PyArg_ParseTuple(args, "OOO", &tokens_obj, &start, &order)) return NULL;
    PyArrayObject *tokens = plain_array(tokens_obj, typenum_of(self->code), "tokens");
    return tokens ? write_stock(self, tokens, -1, start, order) : NULL;
}

static PyObject *writer_copy_documents(PyObject *op, PyObject *args) {
    PyObject *start, *order;
    int fd;
    if (!PyArg_ParseTuple(args, "iOO", &fd, &start, &order)) return NULL;
    return write_stock((WriterObject *)op, NULL, fd, start, order);
}

static PyObject *writer_seal(PyObject *op, PyObject *unused) {
    (void)unused;
    WriterObject *self = (WriterObject *)op;
    if (!writer_usable(self)) return NULL;
    RkBinWriter *w = self->writer;
    const char *bin, *idx;
    int rc;
    self->writer = NULL;
    Py_BEGIN_ALLOW_THREADS
    rc = rk_binidx_writer_seal(w, &bin, &idx);
    Py_END_ALLOW_THREADS
    PyObject *names = rc ? raise_for(op, rc)
                         : Py_BuildValue("(NN)", PyUnicode_DecodeFSDefault(bin), PyUnicode_DecodeFSDefault(idx));
    if (names) rk_binidx_writer_release(w);
    rk_binidx_writer_close(w);
    return names;
}

static PyObject *writer_finish(PyObject *op, PyObject *unused) {
    (void)unused;
    WriterObject *self = (WriterObject *)op;
    if (!writer_usable(self)) return NULL;
    RkBinWriter *w = self->writer;
    int rc;
    self->writer = NULL;
    Py_BEGIN_ALLOW_THREADS
    rc = rk_binidx_writer_finish(w);
    rk_binidx_writer_close(w);
    Py_END_ALLOW_THREADS
    if (rc) return raise_for(op, rc);
    Py_RETURN_NONE;
}

static PyObject *writer_close(PyObject *op, PyObject *unused) {
    (void)unused;
    WriterObject *self = (WriterObject *)op;
    if (self->writer && !writer_usable(self)) return NULL;
    rk_binidx_writer_close(self->writer);
    self->writer = NULL;
    Py_RETURN_NONE;
}

static PyMethodDef writer_methods[] = {
    {"add", writer_add, METH_O, "add(tokens): appends a sequence"},
    {"end_document", writer_end_document, METH_NOARGS, "end_document()"},
    {"add_documents", writer_add_documents, METH_VARARGS,
     "add_documents(tokens, starts, order): for each k of order, tokens[starts[k]:starts[k + 1]] as a document of one "
     "sequence"},
    {"copy_documents", writer_copy_documents, METH_VARARGS,
     "copy_documents(fd, starts, order): the same, for tokens in a file"},
    {"seal", writer_seal, METH_NOARGS,
     "seal() -> the paths of both files, complete and on the disk under temporary names, which are the caller's now; the "
     "writer is closed then, in any case"},
    {"finish", writer_finish, METH_NOARGS,
     "finish(): gives both files their names; the writer is closed then, in any case"},
    {"close", writer_close, METH_NOARGS, "close(): removes what is not finished"},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot writer_slots[] = {
    {Py_tp_new, writer_new},
    {Py_tp_dealloc, writer_dealloc},
    {Py_tp_methods, writer_methods},
    {Py_tp_doc, "BinIdxWriter(prefix, code): writes prefix.bin and prefix.idx with tokens of a dtype code."},
    {0, NULL},
};
static PyType_Spec writer_spec = {"rwkvtune._rwkvcore.BinIdxWriter", sizeof(WriterObject), 0, Py_TPFLAGS_DEFAULT,
                                  writer_slots};

/* ---- the sampler ---- */

static PyObject *is_prime(PyObject *module, PyObject *arg) {
    (void)module;
    uint64_t n;
    return to_u64(arg, &n) ? PyBool_FromLong(rk_is_prime(n)) : NULL;
}

static PyObject *magic_prime(PyObject *module, PyObject *args) {
    (void)module;
    uint64_t n_tokens, ctx_len;
    if (!PyArg_ParseTuple(args, "O&O&", to_u64, &n_tokens, to_u64, &ctx_len)) return NULL;
    return PyLong_FromUnsignedLongLong(rk_magic_prime(n_tokens, ctx_len));
}

static int parse_sampler(PyObject *module, PyObject *tuple, RkSampler *s) {
    uint64_t n_tokens, ctx_len, prime, world, rank;
    if (!PyArg_ParseTuple(tuple, "O&O&O&O&O&", to_u64, &n_tokens, to_u64, &ctx_len, to_u64, &prime, to_u64, &world,
                          to_u64, &rank))
        return -1;
    int rc = rk_sampler_init(s, n_tokens, ctx_len, prime, world, rank);
    if (rc) rk_py_raise(rk_py_state(module), rc);
    return rc;
}

static PyObject *sampler_check(PyObject *module, PyObject *args) {
    RkSampler s;
    return parse_sampler(module, args, &s)
               ? NULL
               : Py_BuildValue("(KK)", (unsigned long long)s.prime, (unsigned long long)s.factor);
}

static PyObject *sampler_offset(PyObject *module, PyObject *args) {
    PyObject *tuple;
    uint64_t epoch, idx;
    RkSampler s;
    if (!PyArg_ParseTuple(args, "O!O&O&", &PyTuple_Type, &tuple, to_u64, &epoch, to_u64, &idx) ||
        parse_sampler(module, tuple, &s))
        return NULL;
    return PyLong_FromUnsignedLongLong(rk_sampler_offset(&s, epoch, idx));
}

static PyMethodDef functions[] = {
    {"is_prime", is_prime, METH_O, "is_prime(n) -> bool, for n below 2**64"},
    {"magic_prime", magic_prime, METH_VARARGS,
     "magic_prime(total_tokens, ctx_len) -> the prime, 0 if there are too few tokens"},
    {"sampler_check", sampler_check, METH_VARARGS,
     "sampler_check(total_tokens, ctx_len, magic_prime or 0, world_size, rank) -> (magic_prime, factor)"},
    {"sampler_offset", sampler_offset, METH_VARARGS,
     "sampler_offset((total_tokens, ctx_len, magic_prime, world_size, rank), epoch, idx) -> first token of the sample"},
    {NULL, NULL, 0, NULL},
};

int rk_py_add_dataset(PyObject *module) {
    RkPyState *st = rk_py_state(module);
    st->binidx = (PyTypeObject *)PyType_FromModuleAndSpec(module, &binidx_spec, NULL);
    if (!st->binidx || PyModule_AddType(module, st->binidx) < 0) return -1;
    st->binidx_writer = (PyTypeObject *)PyType_FromModuleAndSpec(module, &writer_spec, NULL);
    if (!st->binidx_writer || PyModule_AddType(module, st->binidx_writer) < 0) return -1;
    return PyModule_AddFunctions(module, functions);
}
