/* py_generate.c - what a loop of generation calls: Model.step, Logits, Sampler, draw; and sample, one draw by itself. */
#include "py/py_model.h"

#include "model/logits.h"

/* ---- Logits ---- */

typedef struct RkPyLogits {
    PyObject_HEAD
    RkLogits logits;
    RkPyModel *owner;
} RkPyLogits;

static RkPyLogits *logits_create(PyTypeObject *type, RkPyModel *owner, Py_ssize_t n) {
    RkPyLogits *self = (RkPyLogits *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->owner = (RkPyModel *)Py_NewRef((PyObject *)owner);
    int rc;
    RK_LOCKED(owner, rc = rk_logits_create(&self->logits, &owner->model, n > INT32_MAX ? 0 : (int)n));
    if (!rc) return self;
    Py_DECREF(self);
    rk_py_raise(rk_py_state_of(type), rc);
    return NULL;
}

PyObject *rk_py_model_new_logits(PyObject *op, PyObject *arg) {
    Py_ssize_t n = PyLong_AsSsize_t(arg);
    if (n == -1 && PyErr_Occurred()) return NULL;
    return (PyObject *)logits_create(rk_py_state_of(Py_TYPE(op))->logits, (RkPyModel *)op, n);
}

static void logits_dealloc(PyObject *op) {
    RkPyLogits *self = (RkPyLogits *)op;
    PyTypeObject *type = Py_TYPE(op);
    if (self->logits.memory) rk_logits_free(&self->logits);
    Py_XDECREF(self->owner);
    type->tp_free(op);
    Py_DECREF(type);
}

static int copy_row(RkPyLogits *to, Py_ssize_t row, RkPyLogits *from, Py_ssize_t from_row) {
    if (row < 0 || row >= to->logits.rows.d[0] || from_row < 0 || from_row >= from->logits.rows.d[0])
        return PyErr_Format(PyExc_ValueError, "there is no row %zd in logits of %d, or no row %zd in logits of %d", row, to->logits.rows.d[0],
                            from_row, from->logits.rows.d[0]), -1;
    int rc = rk_logits_copy_row(&to->logits, (int)row, &from->logits, (int)from_row);
    return rc ? rk_py_raise(rk_py_state_of(Py_TYPE(to)), rc), -1 : 0;
}

static PyObject *logits_take(PyObject *op, PyObject *arg) {
    RkPyLogits *self = (RkPyLogits *)op;
    PyObject *rows = PySequence_Fast(arg, "rows must be a sequence of integers");
    RkPyLogits *part = rows ? logits_create(Py_TYPE(op), self->owner, PySequence_Fast_GET_SIZE(rows)) : NULL;
    for (Py_ssize_t i = 0; part && i < PySequence_Fast_GET_SIZE(rows); i++) {
        Py_ssize_t row = PyLong_AsSsize_t(PySequence_Fast_GET_ITEM(rows, i));
        if ((row == -1 && PyErr_Occurred()) || copy_row(part, i, self, row) < 0) Py_CLEAR(part);
    }
    Py_XDECREF(rows);
    return (PyObject *)part;
}

static PyObject *logits_move(PyObject *op, PyObject *args) {
    Py_ssize_t to, from;
    if (!PyArg_ParseTuple(args, "nn:move", &to, &from) || copy_row((RkPyLogits *)op, to, (RkPyLogits *)op, from) < 0) return NULL;
    Py_RETURN_NONE;
}

static PyObject *logits_numbers(PyObject *op, PyObject *unused) {
    (void)unused;
    RkPyLogits *self = (RkPyLogits *)op;
    PyObject *view = rk_py_view(self->logits.store.memory, self->logits.rows, op, 1);
    if (!view || !rk_on_host(self->logits.store.memory)) return view;
    PyObject *copy = PyArray_NewCopy((PyArrayObject *)view, NPY_CORDER);
    Py_DECREF(view);
    return copy;
}

static PyObject *logits_write(PyObject *op, PyObject *value) {
    RkPyLogits *self = (RkPyLogits *)op;
    int rc = rk_py_write(self->logits.store.memory, self->logits.rows, value, "logits");
    if (rc && !PyErr_Occurred()) rk_py_raise(rk_py_state_of(Py_TYPE(op)), rc);
    if (rc) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef logits_methods[] = {
    {"take", logits_take, METH_O, "take(rows): copies of these rows, in this order, any of them repeated."},
    {"move", logits_move, METH_VARARGS, "move(to, row): copies a row over row `to`."},
    {"numbers", logits_numbers, METH_NOARGS, "A copy as an array (n, V)."},
    {"write", logits_write, METH_O, "write(array): replaces all numbers."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot logits_slots[] = {
    {Py_tp_dealloc, logits_dealloc}, {Py_tp_methods, logits_methods},
    {Py_tp_doc, "Rows of logits in the memory of a model, from which `draw` draws where they lie; made by Model.new_logits."}, {0, NULL},
};
static PyType_Spec logits_spec = {"rwkvtune._rwkvcore.Logits", sizeof(RkPyLogits), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, logits_slots};

/* ---- reading tokens ---- */

/* Where a step's logits go: nowhere, an array, or Logits of the model; 0, or -1 with an exception. */
static int step_logits(RkPyModel *self, PyObject *arg, RkForward *f, PyArrayObject **array) {
    RkPyLogits *there = (RkPyLogits *)arg;
    *array = NULL;
    if (arg == Py_None) return 0;
    f->logits = RK_LOGITS_LAST;
    if (PyObject_TypeCheck(arg, rk_py_state_of(Py_TYPE(self))->logits)) {
        if (there->owner != self || there->logits.rows.d[0] < f->B)
            return PyErr_Format(PyExc_ValueError, "logits must be of this model and have at least %d rows", f->B), -1;
        f->kept = rk_slice_rows(there->logits.rows, 0, (size_t)f->B);
        return 0;
    }
    *array = (PyArrayObject *)arg;
    if (!PyArray_Check(arg) || !PyArray_ISCARRAY(*array) || PyArray_TYPE(*array) != NPY_FLOAT32 || PyArray_NDIM(*array) != 2 ||
        PyArray_DIM(*array, 0) < f->B || PyArray_DIM(*array, 1) != self->model.cfg.V)
        return PyErr_Format(PyExc_ValueError, "logits must be a writable float32 array of at least %d rows of %d", f->B, self->model.cfg.V), -1;
    return 0;
}

static int step_arguments(PyObject *args, RkPyModel *self, RkForward *f, RkPyStateObject **state, PyArrayObject **logits) {
    PyObject *ids_arg, *state_arg, *logits_arg;
    if (!PyArg_ParseTuple(args, "OOO:step", &ids_arg, &state_arg, &logits_arg)) return -1;
    PyArrayObject *ids = rk_py_ids(ids_arg, "ids");
    if (!ids) return -1;
    *f = (RkForward){.B = (int)PyArray_DIM(ids, 0), .T = (int)PyArray_DIM(ids, 1), .ids = PyArray_DATA(ids), .logits = RK_LOGITS_NONE};
    if (!PyObject_TypeCheck(state_arg, rk_py_state_of(Py_TYPE(self))->state) || ((RkPyStateObject *)state_arg)->owner != self)
        return PyErr_SetString(PyExc_ValueError, "state must be a State of this model"), -1;
    *state = (RkPyStateObject *)state_arg;
    return step_logits(self, logits_arg, f, logits);
}

static int read_ids(RkModel *m, RkForward *f, RkState *state) {
    RK_TRY(rk_state_narrow(state, f->B));
    f->before = f->after = state;
    return rk_model_forward(m, f);
}

PyObject *rk_py_model_step(PyObject *op, PyObject *args) {
    RkPyModel *self = (RkPyModel *)op;
    RkForward f;
    RkPyStateObject *state;
    PyArrayObject *logits;
    if (step_arguments(args, self, &f, &state, &logits) < 0) return NULL;
    size_t n = (size_t)f.B * (size_t)self->model.cfg.V;
    double *wide = logits && self->model.be->dtype == RK_F64 ? PyMem_Malloc(n * sizeof *wide) : NULL; /* ref64, for tests, only */
    if (logits && self->model.be->dtype == RK_F64 && !wide) return PyErr_NoMemory();
    float *out = logits ? PyArray_DATA(logits) : NULL;
    f.out = wide ? (void *)wide : out;
    int rc;
    RK_LOCKED(self, rc = read_ids(&self->model, &f, &state->state));
    for (size_t i = 0; wide && !rc && i < n; i++) out[i] = (float)wide[i];
    PyMem_Free(wide);
    if (rc) return rk_py_raise(rk_py_state_of(Py_TYPE(op)), rc);
    Py_RETURN_NONE;
}

/* ---- Sampler ---- */

typedef struct RkPySampler { PyObject_HEAD RkSampler sampler; } RkPySampler;

/* The data of a one-dimensional array, and its length; NULL and 0 for None. -1 with an exception. */
static int vector(PyObject *value, int type, const char *name, const void **data, size_t *n) {
    PyArrayObject *a = (PyArrayObject *)value;
    *data = NULL;
    *n = 0;
    if (value == Py_None) return 0;
    if (!PyArray_Check(value) || PyArray_TYPE(a) != type || PyArray_NDIM(a) != 1 || !PyArray_IS_C_CONTIGUOUS(a))
        return PyErr_Format(PyExc_ValueError, "%s must be None or a contiguous array of one dimension, %s", name,
                            type == NPY_INT32 ? "int32" : "float32"), -1;
    *data = PyArray_DATA(a);
    *n = (size_t)PyArray_DIM(a, 0);
    return 0;
}

static PyObject *sampler_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"vocab_size", "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty",
                            "presence_penalty", "frequency_penalty", "penalty_decay", "seed", "bias_tokens", "bias", "prompt", NULL};
    RkSampling how = {.temperature = 1, .top_p = 1, .typical_p = 1, .repetition_penalty = 1, .penalty_decay = 1};
    RkSamplerStart start;
    PyObject *bias_tokens = Py_None, *bias = Py_None, *prompt = Py_None;
    unsigned long long seed = 0;
    size_t n_bias;
    int V;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|$ddiddddddKOOO:Sampler", names, &V, &how.temperature, &how.top_p, &how.top_k,
                                     &how.min_p, &how.typical_p, &how.repetition_penalty, &how.presence_penalty,
                                     &how.frequency_penalty, &how.penalty_decay, &seed, &bias_tokens, &bias, &prompt))
        return NULL;
    how.seed = seed;
    if (vector(bias_tokens, NPY_INT32, "bias_tokens", (const void **)&start.bias_token, &start.n_bias) < 0 ||
        vector(bias, NPY_FLOAT32, "bias", (const void **)&start.bias, &n_bias) < 0 ||
        vector(prompt, NPY_INT32, "prompt", (const void **)&start.prompt, &start.n_prompt) < 0)
        return NULL;
    if (n_bias != start.n_bias) return PyErr_SetString(PyExc_ValueError, "bias_tokens and bias must be equally long"), NULL;
    RkPySampler *self = (RkPySampler *)type->tp_alloc(type, 0);
    int rc = self ? rk_sampler_create(&self->sampler, &how, V, &start) : 0;
    if (!rc) return (PyObject *)self;
    Py_DECREF(self);
    return rk_py_raise(rk_py_state_of(type), rc);
}

static void sampler_dealloc(PyObject *op) {
    PyTypeObject *type = Py_TYPE(op);
    rk_sampler_free(&((RkPySampler *)op)->sampler);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *get_uniform(PyObject *op, void *unused) {
    (void)unused;
    return PyFloat_FromDouble(rk_sampler_uniform(&((RkPySampler *)op)->sampler));
}

static PyGetSetDef sampler_getset[] = {
    {"uniform", get_uniform, NULL, "The number in [0,1) that decides the next draw.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot sampler_slots[] = {
    {Py_tp_new, sampler_new}, {Py_tp_dealloc, sampler_dealloc}, {Py_tp_getset, sampler_getset},
    {Py_tp_doc, "What drawing the tokens of one sequence depends on."}, {0, NULL},
};
static PyType_Spec sampler_spec = {"rwkvtune._rwkvcore.Sampler", sizeof(RkPySampler), 0, Py_TPFLAGS_DEFAULT, sampler_slots};

/* ---- drawing ---- */

/* The samplers of a tuple, which must be of vocab_size V; NULL with an exception. PyMem_Free it. */
static RkSampler **samplers_of(PyObject *samplers, PyTypeObject *type, npy_intp V) {
    size_t n = (size_t)PyTuple_GET_SIZE(samplers);
    RkSampler **all = PyMem_Malloc((n ? n : 1) * sizeof *all);
    if (!all) return PyErr_NoMemory(), NULL;
    for (size_t i = 0; i < n; i++) {
        PyObject *item = PyTuple_GET_ITEM(samplers, (Py_ssize_t)i);
        all[i] = PyObject_TypeCheck(item, type) ? &((RkPySampler *)item)->sampler : NULL;
        if (all[i] && all[i]->V == V) continue;
        PyMem_Free(all);
        return PyErr_Format(PyExc_ValueError, "samplers[%zu] is no Sampler of %zd tokens", i, (Py_ssize_t)V), NULL;
    }
    return all;
}

/* The rows that are drawn from: of an array or of Logits; 0, or -1 with an exception. */
static int draw_rows(RkPyState *st, PyObject *arg, PyArrayObject *tokens, Py_ssize_t n, npy_intp *V) {
    int there = PyObject_TypeCheck(arg, st->logits);
    PyArrayObject *array = (PyArrayObject *)arg;
    int good = there ? ((RkPyLogits *)arg)->logits.rows.d[0] >= n
                     : PyArray_Check(arg) && PyArray_ISCARRAY(array) && PyArray_TYPE(array) == NPY_FLOAT32 && PyArray_NDIM(array) == 2 &&
                           PyArray_DIM(array, 0) >= n;
    if (!good || !PyArray_ISCARRAY(tokens) || PyArray_TYPE(tokens) != NPY_INT32 || PyArray_SIZE(tokens) < n)
        return PyErr_Format(PyExc_ValueError, "logits must be float32 (n, V) and tokens int32 (n), both contiguous, with n at least %zd", n), -1;
    *V = there ? rk_cols(((RkPyLogits *)arg)->logits.rows) : PyArray_DIM(array, 1);
    return 0;
}

static PyObject *draw(PyObject *module, PyObject *args) {
    RkPyState *st = rk_py_state(module);
    PyObject *list, *logits;
    PyArrayObject *tokens;
    npy_intp V;
    if (!PyArg_ParseTuple(args, "O!OO!:draw", &PyList_Type, &list, &logits, &PyArray_Type, &tokens)) return NULL;
    Py_ssize_t n = PyList_GET_SIZE(list);
    if (draw_rows(st, logits, tokens, n, &V) < 0) return NULL;
    PyObject *samplers = PyList_AsTuple(list); /* holds them while other threads may change the list */
    RkSampler **all = samplers ? samplers_of(samplers, st->sampler, V) : NULL;
    if (!all) return Py_XDECREF(samplers), NULL;
    int rc;
    RkPyLogits *there = (RkPyLogits *)logits;
    if (PyObject_TypeCheck(logits, st->logits)) {
        RK_LOCKED(there->owner, rc = rk_logits_draw(&there->logits, all, (size_t)n, PyArray_DATA(tokens)));
    } else {
        Py_BEGIN_ALLOW_THREADS
        rc = rk_sampler_draw_all(all, (size_t)n, PyArray_DATA((PyArrayObject *)logits), PyArray_DATA(tokens));
        Py_END_ALLOW_THREADS
    }
    PyMem_Free(all);
    Py_DECREF(samplers);
    if (rc) return rk_py_raise(st, rc);
    Py_RETURN_NONE;
}

static PyObject *sample(PyObject *module, PyObject *args) {
    PyObject *logits_arg;
    RkSampling how = {.typical_p = 1, .repetition_penalty = 1};
    double uniform;
    if (!PyArg_ParseTuple(args, "Oddid|dd:sample", &logits_arg, &how.temperature, &how.top_p, &how.top_k, &uniform, &how.min_p, &how.typical_p))
        return NULL;
    PyArrayObject *logits = (PyArrayObject *)PyArray_FROMANY(logits_arg, NPY_FLOAT32, 1, 1, NPY_ARRAY_CARRAY_RO);
    if (!logits) return NULL;
    int V = (int)PyArray_DIM(logits, 0), token = 0;
    int rc = V ? rk_sampling_check(&how) : rk_fail(RK_EINVAL, "logits must not be empty");
    if (!rc) rc = rk_sample(&how, PyArray_DATA(logits), V, uniform, &token);
    Py_DECREF(logits);
    return rc ? rk_py_raise(rk_py_state(module), rc) : PyLong_FromLong(token);
}

static PyMethodDef functions[] = {
    {"draw", draw, METH_VARARGS, "draw(samplers, logits, tokens): the next token of each sequence, in parallel."},
    {"sample", sample, METH_VARARGS, "sample(logits, temperature, top_p, top_k, uniform[, min_p, typical_p]): one draw from a row of logits."},
    {NULL, NULL, 0, NULL},
};

int rk_py_add_generate(PyObject *module) {
    RkPyState *st = rk_py_state(module);
    st->sampler = (PyTypeObject *)PyType_FromModuleAndSpec(module, &sampler_spec, NULL);
    if (!st->sampler || PyModule_AddType(module, st->sampler) < 0) return -1;
    st->logits = (PyTypeObject *)PyType_FromModuleAndSpec(module, &logits_spec, NULL);
    if (!st->logits || PyModule_AddType(module, st->logits) < 0) return -1;
    return PyModule_AddFunctions(module, functions);
}
