/* py_tokenizer.c - the types Tokenizer (a vocabulary) and IntegerTokenizer; rwkvtune/data/tokenizers.py wraps them.
 * Both are immutable, so any number of threads may encode and decode at once. */
#include "py/py_tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/parallel.h"
#include "data/tokenizer.h"

typedef struct TokenizerObject {
    RkPyEncoder encoder;
    RkVocab vocab;
    RkTrie trie;
} TokenizerObject;

typedef struct IntegerObject {
    RkPyEncoder encoder;
    RkIntegers integers;
    PyObject *noun;
} IntegerObject;

typedef struct Text {
    const uint8_t *p;
    size_t n;
} Text;
typedef struct Encoded {
    void *p;
    size_t n;
    int rc;
} Encoded; /* p: from malloc */

static PyObject *raise_for(PyObject *op, int rc) { return rk_py_raise(rk_py_state_of(Py_TYPE(op)), rc); }

/* ---- encoding, for both types ---- */

/* Borrows the UTF-8 bytes of a str or the bytes of a bytes object. */
static int text_of(PyObject *obj, Text *text) {
    Py_ssize_t n = 0;
    if (PyBytes_Check(obj)) {
        *text = (Text){(const uint8_t *)PyBytes_AS_STRING(obj), (size_t)PyBytes_GET_SIZE(obj)};
        return 0;
    }
    if (!PyUnicode_Check(obj)) {
        PyErr_Format(PyExc_TypeError, "text must be str or bytes, not %.80s", Py_TYPE(obj)->tp_name);
        return -1;
    }
    const char *p = PyUnicode_AsUTF8AndSize(obj, &n);
    *text = (Text){(const uint8_t *)p, (size_t)n};
    return p ? 0 : -1;
}

/* Sets out->p to the ids, or to NULL and out->rc to the error. Needs no GIL. */
static void encode_text(const RkPyEncoder *e, Text text, Encoded *out) {
    *out = (Encoded){.p = malloc(text.n * (size_t)e->width + 1)};
    out->rc = out->p ? e->encode(e->tokenizer, text.p, text.n, e->width, out->p, &out->n)
                     : rk_fail(RK_ENOMEM, "no memory to encode %zu bytes", text.n);
    if (out->rc) {
        free(out->p);
        out->p = NULL;
        return;
    }
    /* There was room for a token per byte. */
    void *fit = realloc(out->p, out->n * (size_t)e->width + 1);
    if (fit) out->p = fit;
}

static int encode_object(PyObject *op, PyObject *obj, Encoded *out) {
    Text text;
    if (text_of(obj, &text) < 0) return -1;
    Py_INCREF(obj);
    Py_BEGIN_ALLOW_THREADS
    encode_text((RkPyEncoder *)op, text, out);
    Py_END_ALLOW_THREADS
    Py_DECREF(obj);
    if (out->rc) raise_for(op, out->rc);
    return out->rc ? -1 : 0;
}

static void free_capsule(PyObject *capsule) { free(PyCapsule_GetPointer(capsule, NULL)); }

/* An array that owns the ids; takes them over even when it fails. */
static PyObject *array_of(Encoded ids, int width) {
    npy_intp n = (npy_intp)ids.n;
    PyObject *owner = PyCapsule_New(ids.p, NULL, free_capsule);
    if (!owner) {
        free(ids.p);
        return NULL;
    }
    PyObject *array = PyArray_SimpleNewFromData(1, &n, width == 2 ? NPY_UINT16 : NPY_INT32, ids.p);
    if (!array) {
        Py_DECREF(owner);
        return NULL;
    }
    if (PyArray_SetBaseObject((PyArrayObject *)array, owner) < 0) Py_CLEAR(array);
    return array;
}

static PyObject *encode_array(PyObject *op, PyObject *obj) {
    Encoded ids;
    return encode_object(op, obj, &ids) < 0 ? NULL : array_of(ids, ((RkPyEncoder *)op)->width);
}

static PyObject *encode_list(PyObject *op, PyObject *obj) {
    Encoded ids;
    if (encode_object(op, obj, &ids) < 0) return NULL;
    const RkIds view = {ids.p, ids.n, ((RkPyEncoder *)op)->width};
    PyObject *list = PyList_New((Py_ssize_t)ids.n);
    for (size_t i = 0; list && i < ids.n; i++) {
        PyObject *id = PyLong_FromLongLong(rk_ids_at(view, i));
        if (id)
            PyList_SET_ITEM(list, (Py_ssize_t)i, id);
        else
            Py_CLEAR(list);
    }
    free(ids.p);
    return list;
}

typedef struct Batch {
    const RkPyEncoder *encoder;
    const Text *text;
    Encoded *out;
} Batch;

static void encode_task(void *ctx, size_t i) {
    const Batch *b = ctx;
    encode_text(b->encoder, b->text[i], &b->out[i]);
}

/* Encodes all; 0, or the error of the first text that has one, with its index in the message. */
static int encode_all(const Batch *b, size_t n) {
    rk_parallel(n, encode_task, (void *)b);
    for (size_t i = 0; i < n; i++) {
        if (!b->out[i].rc) continue;
        /* The message stayed with the thread that met the error: once more, on this one. */
        char reason[400];
        encode_text(b->encoder, b->text[i], &b->out[i]);
        snprintf(reason, sizeof reason, "%s", rk_error());
        return b->out[i].rc ? rk_fail(b->out[i].rc, "text %zu: %s", i, reason) : RK_OK;
    }
    return RK_OK;
}

static PyObject *encode_batch(PyObject *op, PyObject *texts) {
    if (PyUnicode_Check(texts) || PyBytes_Check(texts)) {
        PyErr_SetString(PyExc_TypeError, "texts must be a sequence of str or bytes, not one of them");
        return NULL;
    }
    PyObject *held = PySequence_Tuple(texts), *list = NULL; /* a tuple, so that nobody can drop a text meanwhile */
    if (!held) return NULL;
    const size_t n = (size_t)PyTuple_GET_SIZE(held);
    Text *text = calloc(n + 1, sizeof *text);
    Encoded *out = calloc(n + 1, sizeof *out);
    int rc = text && out ? 0 : -1;
    if (rc) PyErr_NoMemory();
    for (size_t i = 0; !rc && i < n; i++) rc = text_of(PyTuple_GET_ITEM(held, (Py_ssize_t)i), &text[i]);
    if (!rc) {
        const Batch batch = {(RkPyEncoder *)op, text, out};
        Py_BEGIN_ALLOW_THREADS
        rc = encode_all(&batch, n);
        Py_END_ALLOW_THREADS
        if (rc) raise_for(op, rc);
    }
    if (!rc) list = PyList_New((Py_ssize_t)n);
    for (size_t i = 0; list && i < n; i++) {
        PyObject *array = array_of(out[i], ((RkPyEncoder *)op)->width);
        out[i].p = NULL;
        if (array)
            PyList_SET_ITEM(list, (Py_ssize_t)i, array);
        else
            Py_CLEAR(list);
    }
    for (size_t i = 0; out && i < n; i++) free(out[i].p);
    free(text);
    free(out);
    Py_DECREF(held);
    return list;
}

static PyObject *get_vocab_size(PyObject *op, void *unused) {
    (void)unused;
    return PyLong_FromLong(((RkPyEncoder *)op)->vocab_size);
}

static void set_encoder(RkPyEncoder *e, RkEncodeFn encode, const void *tokenizer, int32_t vocab_size) {
    e->encode = encode;
    e->tokenizer = tokenizer;
    e->vocab_size = vocab_size;
    e->width = vocab_size <= 65536 ? 2 : 4;
}

/* ---- ids from Python ---- */

/* Any array-like of integers as a C-contiguous array of a width RkIds knows; a new reference, NULL with an exception. */
static PyArrayObject *ids_of(PyObject *obj, RkIds *ids) {
    PyArrayObject *a = (PyArrayObject *)PyArray_FROM_O(obj);
    if (!a) return NULL;
    if (PyArray_SIZE(a) && !PyArray_ISINTEGER(a)) {
        PyErr_Format(PyExc_TypeError, "token ids must be integers, not %R", (PyObject *)PyArray_DESCR(a));
        Py_DECREF(a);
        return NULL;
    }
    int width = (int)PyArray_ITEMSIZE(a), fits = PyArray_ISUNSIGNED(a) ? width == 2 : width == 4 || width == 8;
    PyArrayObject *plain =
        (PyArrayObject *)PyArray_FROM_OTF((PyObject *)a, fits ? PyArray_TYPE(a) : NPY_INT64,
                                          NPY_ARRAY_CARRAY_RO | NPY_ARRAY_NOTSWAPPED | NPY_ARRAY_FORCECAST);
    Py_DECREF(a);
    if (plain) *ids = (RkIds){PyArray_DATA(plain), (size_t)PyArray_SIZE(plain), (int)PyArray_ITEMSIZE(plain)};
    return plain;
}

/* ---- Tokenizer ---- */

static PyObject *tokenizer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"path", NULL};
    PyObject *path = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&", names, PyUnicode_FSConverter, &path)) return NULL;
    TokenizerObject *self = (TokenizerObject *)type->tp_alloc(type, 0);
    int rc = 0;
    if (self) {
        Py_BEGIN_ALLOW_THREADS
        rc = rk_vocab_load(&self->vocab, PyBytes_AS_STRING(path));
        if (!rc) rc = rk_trie_build(&self->trie, &self->vocab);
        Py_END_ALLOW_THREADS
        set_encoder(&self->encoder, rk_trie_encode, &self->trie, self->vocab.n_ids);
    }
    Py_DECREF(path);
    if (rc) {
        raise_for((PyObject *)self, rc);
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void tokenizer_dealloc(PyObject *op) {
    TokenizerObject *self = (TokenizerObject *)op;
    PyTypeObject *type = Py_TYPE(op);
    rk_trie_free(&self->trie);
    rk_vocab_free(&self->vocab);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *tokenizer_decode_bytes(PyObject *op, PyObject *obj) {
    const RkVocab *v = &((TokenizerObject *)op)->vocab;
    RkIds ids;
    PyArrayObject *held = ids_of(obj, &ids);
    if (!held) return NULL;
    size_t bytes = rk_vocab_decoded_bytes(v, ids);
    PyObject *out = bytes <= PY_SSIZE_T_MAX ? PyBytes_FromStringAndSize(NULL, (Py_ssize_t)bytes) : PyErr_NoMemory();
    if (out) {
        uint8_t *p = (uint8_t *)PyBytes_AS_STRING(out);
        Py_BEGIN_ALLOW_THREADS
        rk_vocab_decode(v, ids, p, bytes);
        Py_END_ALLOW_THREADS
    }
    Py_DECREF(held);
    return out;
}

static PyObject *tokenizer_decode(PyObject *op, PyObject *args) {
    PyObject *obj, *bytes;
    const char *errors = "replace";
    if (!PyArg_ParseTuple(args, "O|s", &obj, &errors) || !(bytes = tokenizer_decode_bytes(op, obj))) return NULL;
    PyObject *text = PyUnicode_DecodeUTF8(PyBytes_AS_STRING(bytes), PyBytes_GET_SIZE(bytes), errors);
    Py_DECREF(bytes);
    return text;
}

static PyObject *line_bytes(const RkVocab *v, const RkVocabLine *l) {
    return PyBytes_FromStringAndSize((const char *)v->text + l->start, l->length);
}

static PyObject *tokenizer_token(PyObject *op, PyObject *arg) {
    const RkVocab *v = &((TokenizerObject *)op)->vocab;
    Py_ssize_t id = PyNumber_AsSsize_t(arg, NULL);
    if (id == -1 && PyErr_Occurred()) return NULL;
    if (id < 0 || id >= v->n_ids || v->of_id[id] < 0) Py_RETURN_NONE;
    return line_bytes(v, &v->line[v->of_id[id]]);
}

static PyObject *tokenizer_lines(PyObject *op, PyObject *unused) {
    (void)unused;
    const RkVocab *v = &((TokenizerObject *)op)->vocab;
    PyObject *list = PyList_New((Py_ssize_t)v->n_lines);
    for (size_t i = 0; list && i < v->n_lines; i++) {
        PyObject *pair = Py_BuildValue("(iN)", (int)v->line[i].id, line_bytes(v, &v->line[i]));
        if (pair)
            PyList_SET_ITEM(list, (Py_ssize_t)i, pair);
        else
            Py_CLEAR(list);
    }
    return list;
}

#define ENCODE_METHODS                                                                                          \
    {"encode", encode_list, METH_O, "encode(text: str | bytes) -> list[int]"},                                  \
    {"encode_array", encode_array, METH_O, "encode_array(text) -> uint16 array, int32 when vocab_size > 65536"}, \
    {"encode_batch", encode_batch, METH_O, "encode_batch(texts) -> list of such arrays; uses all threads"}

static PyMethodDef tokenizer_methods[] = {
    ENCODE_METHODS,
    {"decode", tokenizer_decode, METH_VARARGS, "decode(ids, errors='replace') -> str; ids without a token are skipped"},
    {"decode_bytes", tokenizer_decode_bytes, METH_O, "decode_bytes(ids) -> bytes; ids without a token are skipped"},
    {"token", tokenizer_token, METH_O, "token(id) -> its bytes, or None"},
    {"lines", tokenizer_lines, METH_NOARGS, "lines() -> [(id, bytes)] in the order of the file"},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef tokenizer_getset[] = {
    {"vocab_size", get_vocab_size, NULL, "Largest id + 1.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot tokenizer_slots[] = {
    {Py_tp_new, tokenizer_new},
    {Py_tp_dealloc, tokenizer_dealloc},
    {Py_tp_methods, tokenizer_methods},
    {Py_tp_getset, tokenizer_getset},
    {Py_tp_doc, "Tokenizer(path): greedy longest match over the vocabulary file at path."},
    {0, NULL},
};
static PyType_Spec tokenizer_spec = {"rwkvtune._rwkvcore.Tokenizer", sizeof(TokenizerObject), 0, Py_TPFLAGS_DEFAULT,
                                     tokenizer_slots};

/* ---- IntegerTokenizer ---- */

static PyObject *integer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"max_value", "noun", NULL};
    long max_value;
    PyObject *noun = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "l|U", names, &max_value, &noun)) return NULL;
    if (max_value < 0 || max_value > INT32_MAX - 2)
        return PyErr_Format(PyExc_ValueError, "max_value must be from 0 to %d, not %ld", INT32_MAX - 2, max_value);
    PyObject *held = noun ? Py_NewRef(noun) : PyUnicode_FromString("Value");
    const char *text = held ? PyUnicode_AsUTF8(held) : NULL;
    IntegerObject *self = text ? (IntegerObject *)type->tp_alloc(type, 0) : NULL;
    if (!self) {
        Py_XDECREF(held);
        return NULL;
    }
    self->noun = held;
    self->integers = (RkIntegers){(int32_t)max_value, text};
    set_encoder(&self->encoder, rk_integers_encode, &self->integers, (int32_t)max_value + 2);
    return (PyObject *)self;
}

static void integer_dealloc(PyObject *op) {
    PyTypeObject *type = Py_TYPE(op);
    Py_CLEAR(((IntegerObject *)op)->noun);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *integer_decode(PyObject *op, PyObject *obj) {
    RkIds ids;
    PyArrayObject *held = ids_of(obj, &ids);
    if (!held) return NULL;
    PyObject *text = NULL;
    size_t bytes = 0;
    char *out = malloc(ids.n * RK_INTEGER_CHARS + 1);
    int rc = RK_OK;
    if (out) {
        Py_BEGIN_ALLOW_THREADS
        rc = rk_integers_decode(&((IntegerObject *)op)->integers, ids, out, &bytes);
        Py_END_ALLOW_THREADS
        text = rc ? raise_for(op, rc) : PyUnicode_DecodeASCII(out, (Py_ssize_t)bytes, NULL);
    } else {
        PyErr_NoMemory();
    }
    free(out);
    Py_DECREF(held);
    return text;
}

static PyMethodDef integer_methods[] = {
    ENCODE_METHODS,
    {"decode", integer_decode, METH_O, "decode(ids) -> the values between spaces; zeros are skipped"},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef integer_getset[] = {
    {"vocab_size", get_vocab_size, NULL, "max_value + 2.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot integer_slots[] = {
    {Py_tp_new, integer_new},
    {Py_tp_dealloc, integer_dealloc},
    {Py_tp_methods, integer_methods},
    {Py_tp_getset, integer_getset},
    {Py_tp_doc, "IntegerTokenizer(max_value, noun='Value'): the value v is token v + 1."},
    {0, NULL},
};
static PyType_Spec integer_spec = {"rwkvtune._rwkvcore.IntegerTokenizer", sizeof(IntegerObject), 0, Py_TPFLAGS_DEFAULT,
                                   integer_slots};

int rk_py_add_tokenizer(PyObject *module) {
    RkPyState *st = rk_py_state(module);
    st->tokenizer = (PyTypeObject *)PyType_FromModuleAndSpec(module, &tokenizer_spec, NULL);
    if (!st->tokenizer || PyModule_AddType(module, st->tokenizer) < 0) return -1;
    st->integer_tokenizer = (PyTypeObject *)PyType_FromModuleAndSpec(module, &integer_spec, NULL);
    return !st->integer_tokenizer || PyModule_AddType(module, st->integer_tokenizer) < 0 ? -1 : 0;
}
