/* py_generate.c - Model.generate and sample: one token after another, Ctrl-C honoured between them. */
#include "py/py_model.h"

#include "base/rng.h"
#include "model/sample.h"

typedef struct {
    RkPyModel *model;
    RkSampling how;
    RkState *state;          /* advanced in place */
    float *logits, *p, *count; /* V each */
    void *row;               /* V of the backend's type */
} Generation;

/* Reads ids and leaves the logits after the last of them in g->logits. */
static int read_tokens(Generation *g, const int32_t *ids, int T) {
    RkModel *m = &g->model->model;
    RkForward f = {.B = 1, .T = T, .ids = ids, .before = g->state, .after = g->state, .logits = RK_LOGITS_LAST, .out = g->row};
    RK_TRY(rk_model_forward(m, &f));
    for (int i = 0; i < m->cfg.V; i++)
        g->logits[i] = m->be->dtype == RK_F64 ? (float)((double *)g->row)[i] : ((float *)g->row)[i];
    return RK_OK;
}

static int next_token(Generation *g, int n, int *token) {
    int V = g->model->model.cfg.V;
    rk_sample_penalise(&g->how, g->logits, g->count, V);
    RK_TRY(rk_sample(&g->how, g->logits, V, rk_rng_uniform(rk_rng(g->how.seed, "generate"), (uint64_t)n), g->p, token));
    for (int i = 0; i < V; i++) g->count[i] *= (float)g->how.penalty_decay;
    g->count[*token] += 1;
    return RK_OK;
}

static int is_stop(PyObject *stop_tokens, int token) {
    PyObject *value = PyLong_FromLong(token);
    int found = value ? PySequence_Contains(stop_tokens, value) : -1;
    Py_XDECREF(value);
    return found;
}

/* Appends the token and tells the caller's function; 1 to stop, 0 to go on, -1 with an exception. */
static int deliver(PyObject *list, PyObject *on_token, int token) {
    PyObject *value = PyLong_FromLong(token);
    int rc = value ? PyList_Append(list, value) : -1;
    Py_XDECREF(value);
    if (rc < 0 || on_token == Py_None) return rc;
    PyObject *answer = PyObject_CallFunction(on_token, "i", token);
    rc = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    return rc;
}

/* The loop. Each token is read into the state as soon as it is delivered, so the state never lags behind the text. */
static int run(Generation *g, PyArrayObject *ids, int max_new, PyObject *stop_tokens, PyObject *on_token, PyObject *list) {
    RkPyState *st = rk_py_state_of(Py_TYPE(g->model));
    int rc, token = 0;
    RK_LOCKED(g->model, rc = read_tokens(g, PyArray_DATA(ids), (int)PyArray_DIM(ids, 0)));
    for (int n = 0; !rc && n < max_new; n++) {
        if (PyErr_CheckSignals() < 0) return -1;
        RK_LOCKED(g->model, rc = next_token(g, n, &token));
        if (rc) break;
        int stop = is_stop(stop_tokens, token);
        if (stop < 0) return -1;
        if (stop) return 0;
        stop = deliver(list, on_token, token);
        if (stop < 0) return -1;
        int32_t id = token;
        RK_LOCKED(g->model, rc = read_tokens(g, &id, 1));
        if (stop) break;
    }
    if (rc) rk_py_raise(st, rc);
    return rc ? -1 : 0;
}

static int allocate(Generation *g) {
    size_t V = (size_t)g->model->model.cfg.V;
    g->logits = PyMem_Calloc(3 * V, sizeof(float));
    g->row = PyMem_Malloc(V * sizeof(double));
    if (!g->logits || !g->row) return PyErr_NoMemory(), -1;
    g->p = g->logits + V;
    g->count = g->p + V;
    return 0;
}

PyObject *rk_py_model_generate(PyObject *op, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ids", "state", "max_new_tokens", "temperature", "top_p", "top_k", "presence_penalty",
                            "frequency_penalty", "penalty_decay", "seed", "stop_tokens", "on_token", NULL};
    Generation g = {.model = (RkPyModel *)op};
    PyObject *ids_arg, *state, *stop_tokens, *on_token;
    int max_new;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOi|$ddidddKOO:generate", names, &ids_arg, &state, &max_new,
                                     &g.how.temperature, &g.how.top_p, &g.how.top_k, &g.how.presence_penalty,
                                     &g.how.frequency_penalty, &g.how.penalty_decay, &g.how.seed, &stop_tokens, &on_token))
        return NULL;
    RkPyState *st = rk_py_state_of(Py_TYPE(op));
    PyArrayObject *ids = (PyArrayObject *)ids_arg;
    if (!PyArray_Check(ids_arg) || !PyArray_IS_C_CONTIGUOUS(ids) || PyArray_TYPE(ids) != NPY_INT32 ||
        PyArray_NDIM(ids) != 1 || PyArray_DIM(ids, 0) < 1)
        return PyErr_SetString(PyExc_ValueError, "ids must be a C-contiguous int32 array of shape (time,), time >= 1"), NULL;
    if (state != Py_None && !PyObject_TypeCheck(state, st->state))
        return PyErr_SetString(PyExc_ValueError, "state must be a State or None"), NULL;
    int rc = rk_sampling_check(&g.how);
    if (rc) return rk_py_raise(st, rc);
    RkPyStateObject *own = rk_py_state_new(g.model, 1, 0);
    PyObject *list = own ? PyList_New(0) : NULL;
    if (!list) return Py_XDECREF(own), NULL;
    if (state == Py_None) RK_LOCKED(g.model, rk_state_from_params(&own->state, &g.model->model.man));
    else if (((RkPyStateObject *)state)->owner == g.model && ((RkPyStateObject *)state)->state.B == 1) {
        if ((rc = rk_state_copy(&own->state, &((RkPyStateObject *)state)->state))) rk_py_raise(st, rc);
    } else PyErr_SetString(PyExc_ValueError, "state must be of this model, for one sequence");
    g.state = &own->state;
    rc = PyErr_Occurred() ? -1 : allocate(&g);
    if (rc == 0) rc = run(&g, ids, max_new, stop_tokens, on_token, list);
    PyMem_Free(g.logits);
    PyMem_Free(g.row);
    if (rc == 0) return Py_BuildValue("(NN)", list, own);
    Py_DECREF(list);
    Py_DECREF(own);
    return NULL;
}

static PyObject *sample(PyObject *module, PyObject *args) {
    PyObject *logits_arg;
    RkSampling how = {.penalty_decay = 1};
    double uniform;
    if (!PyArg_ParseTuple(args, "Oddid:sample", &logits_arg, &how.temperature, &how.top_p, &how.top_k, &uniform)) return NULL;
    PyArrayObject *logits = (PyArrayObject *)PyArray_FROMANY(logits_arg, NPY_FLOAT32, 1, 1, NPY_ARRAY_CARRAY_RO);
    if (!logits) return NULL;
    int V = (int)PyArray_DIM(logits, 0), token = 0;
    float *p = V ? PyMem_Malloc((size_t)V * sizeof *p) : NULL;
    int rc = p ? rk_sampling_check(&how) : rk_fail(RK_EINVAL, "logits must not be empty");
    if (!rc) rc = rk_sample(&how, PyArray_DATA(logits), V, uniform, p, &token);
    PyMem_Free(p);
    Py_DECREF(logits);
    return rc ? rk_py_raise(rk_py_state(module), rc) : PyLong_FromLong(token);
}

static PyMethodDef functions[] = {
    {"sample", sample, METH_VARARGS, "sample(logits, temperature, top_p, top_k, uniform): one draw from a row of logits."},
    {NULL, NULL, 0, NULL},
};

int rk_py_add_generate(PyObject *module) { return PyModule_AddFunctions(module, functions); }
