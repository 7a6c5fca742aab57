/* py_jsonl.c - the type JsonlReader; rwkvtune/data/converters.py uses it. The bytes come from a Python file, so that its
 * errors, signals and pipes are Python's own. */
#include "py/py_tokenizer.h"

#include <string.h>

#include "base/err.h"
#include "data/jsonl.h"

typedef struct ReaderObject {
    PyObject_HEAD
    RkJsonl reader;
    PyObject *readinto, *name;
    int skip_bad, busy; /* busy: a thread is inside without the GIL */
} ReaderObject;

/* ---- blocks ---- */

/* What the file puts into n bytes at p, 0 at its end; -1 with an exception. */
static Py_ssize_t read_some(const ReaderObject *self, uint8_t *p, size_t n) {
    PyObject *view = PyMemoryView_FromMemory((char *)p, (Py_ssize_t)n, PyBUF_WRITE);
    PyObject *count = view ? PyObject_CallOneArg(self->readinto, view) : NULL;
    Py_ssize_t got = count ? PyNumber_AsSsize_t(count, PyExc_OverflowError) : -1;
    if (count && !PyErr_Occurred() && (got < 0 || (size_t)got > n)) {
        PyErr_Format(PyExc_ValueError, "readinto returned %zd for room of %zu bytes", got, n);
        got = -1;
    }
    Py_XDECREF(count);
    /* Nobody may write here later. */
    PyObject *released = got < 0 || PyErr_Occurred() ? NULL : PyObject_CallMethod(view, "release", NULL);
    Py_XDECREF(released);
    Py_XDECREF(view);
    return released ? got : -1;
}

static int fill_block(ReaderObject *self) {
    RkJsonl *r = &self->reader;
    do {
        uint8_t *p;
        size_t n;
        const int rc = rk_jsonl_space(r, &p, &n);
        if (rc) rk_py_raise(rk_py_state_of(Py_TYPE(self)), rc);
        const Py_ssize_t got = rc ? -1 : r->at_end ? 0 : read_some(self, p, n);
        if (got < 0) return -1;
        rk_jsonl_filled(r, (size_t)got);
    } while (!rk_jsonl_ready(r));
    return 0;
}

/* "name:line: reason" of the first bad line. */
static PyObject *first_bad_of(const ReaderObject *self) {
    const RkJsonl *r = &self->reader;
    PyObject *reason = PyUnicode_DecodeUTF8(r->reason, (Py_ssize_t)strlen(r->reason), "backslashreplace");
    PyObject *text = reason ? PyUnicode_FromFormat("%U:%llu: %U", self->name, (unsigned long long)r->bad_line, reason)
                            : NULL;
    Py_XDECREF(reason);
    return text;
}

static void raise_bad_line(const ReaderObject *self, RkPyState *st) {
    PyObject *text = first_bad_of(self);
    if (text) PyErr_SetObject(st->format_error, text);
    Py_XDECREF(text);
}

/* Reads the next block; 0, or -1 with an exception. No pieces: the file has ended. */
static int next_block(ReaderObject *self, const RkJsonlTask *task) {
    RkPyState *st = rk_py_state_of(Py_TYPE(self));
    if (self->busy) {
        PyErr_SetString(PyExc_ValueError, "the reader is in use by another thread");
        return -1;
    }
    self->busy = 1;
    int rc = fill_block(self);
    if (!rc) {
        Py_BEGIN_ALLOW_THREADS
        rc = rk_jsonl_read(&self->reader, task);
        Py_END_ALLOW_THREADS
        if (rc == RK_EFORMAT)
            raise_bad_line(self, st);
        else if (rc)
            rk_py_raise(st, rc);
    }
    self->busy = 0;
    return rc ? -1 : 0;
}

/* ---- what a block gives ---- */

static PyObject *sizes_of(const RkJsonl *r) {
    npy_intp n_documents = 0;
    for (int i = 0; i < r->n_pieces; i++) n_documents += (npy_intp)r->piece[i].n_documents;
    PyObject *sizes = PyArray_SimpleNew(1, &n_documents, NPY_INT64);
    if (!sizes) return NULL;
    int64_t *size = PyArray_DATA((PyArrayObject *)sizes);
    for (int i = 0; i < r->n_pieces; i++)
        for (size_t k = 0; k < r->piece[i].n_documents; k++) *size++ = (int64_t)r->piece[i].document[k].n_ids;
    return sizes;
}

static PyObject *reader_write_ids(PyObject *op, PyObject *args) {
    ReaderObject *self = (ReaderObject *)op;
    RkPyState *st = rk_py_state_of(Py_TYPE(op));
    PyObject *core;
    int fd;
    unsigned long long at;
    if (!PyArg_ParseTuple(args, "OiK", &core, &fd, &at)) return NULL;
    if (Py_TYPE(core) != st->tokenizer && Py_TYPE(core) != st->integer_tokenizer)
        return PyErr_Format(PyExc_TypeError, "core must be a tokenizer of this module, not %.80s", Py_TYPE(core)->tp_name);
    const RkPyEncoder *e = (RkPyEncoder *)core;
    const RkJsonlTask task = {e->encode, e->tokenizer, e->width, self->skip_bad};
    if (next_block(self, &task) < 0) return NULL;
    const RkJsonl *r = &self->reader;
    if (!r->n_pieces) Py_RETURN_NONE;
    int rc;
    self->busy = 1;
    Py_BEGIN_ALLOW_THREADS
    rc = rk_jsonl_write_ids(r, e->width, fd, at);
    Py_END_ALLOW_THREADS
    self->busy = 0;
    return rc ? rk_py_raise(st, rc) : sizes_of(r);
}

static PyObject *reader_texts(PyObject *op, PyObject *unused) {
    (void)unused;
    ReaderObject *self = (ReaderObject *)op;
    const RkJsonlTask task = {.skip_bad = self->skip_bad};
    if (next_block(self, &task) < 0) return NULL;
    const RkJsonl *r = &self->reader;
    if (!r->n_pieces) Py_RETURN_NONE;
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < r->n_pieces; i++) {
        const RkJsonlPiece *p = &r->piece[i];
        for (size_t k = 0; list && k < p->n_documents; k++) {
            const RkJsonlDocument *d = &p->document[k];
            PyObject *text = PyUnicode_DecodeUTF8((const char *)d->text.p, (Py_ssize_t)d->text.n,
                                                  d->text.has_surrogates ? "surrogatepass" : NULL);
            PyObject *pair = text ? Py_BuildValue("(KN)", (unsigned long long)d->line, text) : NULL;
            if (!pair || PyList_Append(list, pair) < 0) Py_CLEAR(list);
            Py_XDECREF(pair);
        }
    }
    return list;
}

/* ---- the type ---- */

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"readinto", "name", "block_bytes", "skip_bad", NULL};
    PyObject *readinto, *name;
    Py_ssize_t block_bytes;
    int skip_bad = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OUn|p", names, &readinto, &name, &block_bytes, &skip_bad)) return NULL;
    if (block_bytes < 1) return PyErr_Format(PyExc_ValueError, "block_bytes is %zd; it must be at least 1", block_bytes);
    ReaderObject *self = (ReaderObject *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->readinto = Py_NewRef(readinto);
    self->name = Py_NewRef(name);
    self->skip_bad = skip_bad;
    const int rc = rk_jsonl_open(&self->reader, (size_t)block_bytes);
    if (rc) {
        rk_py_raise(rk_py_state_of(type), rc);
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void reader_dealloc(PyObject *op) {
    ReaderObject *self = (ReaderObject *)op;
    PyTypeObject *type = Py_TYPE(op);
    rk_jsonl_free(&self->reader);
    Py_XDECREF(self->readinto);
    Py_XDECREF(self->name);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *get_n_bytes(PyObject *op, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(((ReaderObject *)op)->reader.n_bytes);
}

static PyObject *get_n_bad(PyObject *op, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(((ReaderObject *)op)->reader.n_bad);
}

static PyObject *get_first_bad(PyObject *op, void *unused) {
    (void)unused;
    if (!((ReaderObject *)op)->reader.n_bad) Py_RETURN_NONE;
    return first_bad_of((ReaderObject *)op);
}

static PyMethodDef methods[] = {
    {"write_ids", reader_write_ids, METH_VARARGS,
     "write_ids(core, fd, at) -> tokens in each document of the next block, int64, after writing their ids, each document "
     "with a 0 at its end, to the file from byte `at` on; None at the end of the file. FormatError names the first bad "
     "line."},
    {"texts", reader_texts, METH_NOARGS, "texts() -> the next block's [(line number, text)]; None at the end of the file."},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef getset[] = {
    {"n_bytes", get_n_bytes, NULL, "Bytes of the blocks so far.", NULL},
    {"n_bad", get_n_bad, NULL, "Bad lines so far.", NULL},
    {"first_bad", get_first_bad, NULL, "\"name:line: reason\" of the first bad line, or None.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot type_slots[] = {
    {Py_tp_new, reader_new},
    {Py_tp_dealloc, reader_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {Py_tp_doc, "JsonlReader(readinto, name, block_bytes, skip_bad=False): JSON lines from a file's readinto, in blocks."},
    {0, NULL},
};
static PyType_Spec reader_spec = {"rwkvtune._rwkvcore.JsonlReader", sizeof(ReaderObject), 0, Py_TPFLAGS_DEFAULT,
                                  type_slots};

int rk_py_add_jsonl(PyObject *module) {
    RkPyState *st = rk_py_state(module);
    st->jsonl_reader = (PyTypeObject *)PyType_FromModuleAndSpec(module, &reader_spec, NULL);
    return !st->jsonl_reader || PyModule_AddType(module, st->jsonl_reader) < 0 ? -1 : 0;
}
