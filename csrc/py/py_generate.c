/* py_generate.c - what a loop of generation calls: Model.step, Sampler, draw; and sample, one draw by itself. */
#include "py/py_model.h"

#include "model/sample.h"

/* ---- reading tokens ---- */

static int step_arguments(PyObject *args, RkPyModel *self, RkForward *f, RkPyStateObject **state, PyArrayObject **logits) {
    PyObject *ids_arg, *state_arg, *logits_arg;
    if (!PyArg_ParseTuple(args, "OOO:step", &ids_arg, &state_arg, &logits_arg)) return -1;
    PyArrayObject *ids = rk_py_ids(ids_arg, "ids");
    if (!ids) return -1;
    *f = (RkForward){.B = (int)PyArray_DIM(ids, 0), .T = (int)PyArray_DIM(ids, 1), .ids = PyArray_DATA(ids)};
    if (!PyObject_TypeCheck(state_arg, rk_py_state_of(Py_TYPE(self))->state) || ((RkPyStateObject *)state_arg)->owner != self)
        return PyErr_SetString(PyExc_ValueError, "state must be a State of this model"), -1;
    *state = (RkPyStateObject *)state_arg;
    *logits = NULL;
    if (logits_arg == Py_None) return 0;
    *logits = (PyArrayObject *)logits_arg;
    if (!PyArray_Check(logits_arg) || !PyArray_ISCARRAY(*logits) || PyArray_TYPE(*logits) != NPY_FLOAT32 || PyArray_NDIM(*logits) != 2 ||
        PyArray_DIM(*logits, 0) < f->B || PyArray_DIM(*logits, 1) != self->model.cfg.V)
        return PyErr_Format(PyExc_ValueError, "logits must be a writable float32 array of at least %d rows of %d", f->B, self->model.cfg.V), -1;
    return 0;
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
    f.logits = logits ? RK_LOGITS_LAST : RK_LOGITS_NONE;
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

static PyType_Slot sampler_slots[] = {
    {Py_tp_new, sampler_new}, {Py_tp_dealloc, sampler_dealloc},
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

static PyObject *draw(PyObject *module, PyObject *args) {
    RkPyState *st = rk_py_state(module);
    PyObject *list;
    PyArrayObject *logits, *tokens;
    if (!PyArg_ParseTuple(args, "O!O!O!:draw", &PyList_Type, &list, &PyArray_Type, &logits, &PyArray_Type, &tokens)) return NULL;
    Py_ssize_t n = PyList_GET_SIZE(list);
    if (!PyArray_ISCARRAY(logits) || PyArray_TYPE(logits) != NPY_FLOAT32 || PyArray_NDIM(logits) != 2 || PyArray_DIM(logits, 0) < n ||
        !PyArray_ISCARRAY(tokens) || PyArray_TYPE(tokens) != NPY_INT32 || PyArray_SIZE(tokens) < n)
        return PyErr_Format(PyExc_ValueError, "logits must be float32 (n, V) and tokens int32 (n), both contiguous, with n at least %zd", n), NULL;
    PyObject *samplers = PyList_AsTuple(list); /* holds them while other threads may change the list */
    RkSampler **all = samplers ? samplers_of(samplers, st->sampler, PyArray_DIM(logits, 1)) : NULL;
    if (!all) return Py_XDECREF(samplers), NULL;
    int rc;
    Py_BEGIN_ALLOW_THREADS
    rc = rk_sampler_draw_all(all, (size_t)n, PyArray_DATA(logits), PyArray_DATA(tokens));
    Py_END_ALLOW_THREADS
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
    return PyModule_AddFunctions(module, functions);
}
