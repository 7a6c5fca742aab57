/* py_model.c - rwkvtune._rwkvcore.Model */
#include "py/py_model.h"

#include "base/parallel.h"
#include "base/quant.h"
#include "py/py_config.h"
#include "train/step.h"

/* ---- helpers shared with other files ---- */

static int numpy_type(int dtype) { return dtype == RK_F64 ? NPY_FLOAT64 : NPY_FLOAT32; }

PyObject *rk_py_view(RkMemory *memory, RkTensor t, PyObject *owner, int writable) {
    npy_intp dims[4];
    int rank = rk_rank(t);
    for (int i = 0; i < rank; i++) dims[i] = t.d[i];
    if (!rk_on_host(memory)) {
        PyObject *copy = PyArray_SimpleNew(rank, dims, NPY_FLOAT32);
        int rc = copy ? rk_tensor_read(memory, t, PyArray_DATA((PyArrayObject *)copy)) : 0;
        if (!rc) return copy;
        Py_DECREF(copy);
        return rk_py_raise(rk_py_state_of(Py_TYPE(owner)), rc);
    }
    PyObject *a = PyArray_SimpleNewFromData(rank, dims, numpy_type(t.dtype), t.p);
    if (!a) return NULL;
    if (!writable) PyArray_CLEARFLAGS((PyArrayObject *)a, NPY_ARRAY_WRITEABLE);
    Py_INCREF(owner);
    if (PyArray_SetBaseObject((PyArrayObject *)a, owner) < 0) Py_CLEAR(a);
    return a;
}

int rk_py_write(RkMemory *memory, RkTensor t, PyObject *value, const char *name) {
    PyArrayObject *a = (PyArrayObject *)PyArray_FROMANY(value, numpy_type(t.dtype), 0, 0, NPY_ARRAY_CARRAY_RO | NPY_ARRAY_FORCECAST);
    if (!a) return -1;
    int rc = -1;
    if ((size_t)PyArray_SIZE(a) != rk_numel(t))
        PyErr_Format(PyExc_ValueError, "%s has %zd numbers, not %zu", name, (Py_ssize_t)PyArray_SIZE(a), rk_numel(t));
    else rc = rk_tensor_write(memory, t, PyArray_DATA(a));
    Py_DECREF(a);
    return rc;
}

PyObject *rk_py_named(RkPyModel *m, RkPyPick pick, void *ctx, PyObject *owner) {
    PyObject *dict = PyDict_New();
    for (int i = 0; dict && i < m->model.man.n; i++) {
        RkTensor t = pick(ctx, i);
        if (!t.p) continue; /* the moments of a parameter that is frozen */
        PyObject *view = rk_py_view(m->model.store.memory, t, owner, 1);
        if (!view || PyDict_SetItemString(dict, m->model.man.param[i].name, view) < 0) Py_CLEAR(dict);
        Py_XDECREF(view);
    }
    return dict;
}

PyArrayObject *rk_py_ids(PyObject *value, const char *name) {
    PyArrayObject *a = (PyArrayObject *)value;
    if (PyArray_Check(value) && PyArray_IS_C_CONTIGUOUS(a) && PyArray_TYPE(a) == NPY_INT32 && PyArray_NDIM(a) == 2) return a;
    PyErr_Format(PyExc_ValueError, "%s must be a C-contiguous int32 array of shape (batch, time)", name);
    return NULL;
}

PyObject *rk_py_sizes(size_t parameters, size_t gradients, size_t moments, size_t activations, size_t state, size_t scratch) {
    return Py_BuildValue("{s:n,s:n,s:n,s:n,s:n,s:n,s:n}", "parameters", parameters, "gradients", gradients, "moments",
                         moments, "activations", activations, "state", state, "scratch", scratch, "total",
                         parameters + gradients + moments + activations + state + scratch);
}

/* The state argument of a call: None or a State of this model and batch. 0, or -1 with an exception. */
static int state_arg(RkPyModel *self, PyObject *value, int B, const char *name, const RkState **out) {
    *out = NULL;
    if (!value || value == Py_None) return 0;
    RkPyState *st = rk_py_state_of(Py_TYPE(self));
    if (!PyObject_TypeCheck(value, st->state)) return PyErr_Format(PyExc_ValueError, "%s must be a State or None", name), -1;
    RkPyStateObject *s = (RkPyStateObject *)value;
    if (s->state.B != B) return PyErr_Format(PyExc_ValueError, "%s is for %d sequences, the ids have %d", name, s->state.B, B), -1;
    if (s->owner != self) return PyErr_Format(PyExc_ValueError, "%s belongs to another model; make it with state_from", name), -1;
    *out = &s->state;
    return 0;
}

/* ---- life ---- */

/* The core of a new object; 0, or -1 with an exception. */
static int create(RkPyModel *self, const RkConfig *cfg, const RkBackend *be, PyObject *weights, int device) {
    RkPyState *st = rk_py_state_of(Py_TYPE(self));
    if (weights == Py_None) {
        int rc = rk_model_create(&self->model, cfg, be, device);
        return rc ? rk_py_raise(st, rc), -1 : 0;
    }
    if (!PyDict_Check(weights)) return PyErr_SetString(PyExc_ValueError, "weights must be a dict"), -1;
    self->held = PyDict_Copy(weights);
    RkTensor *given = self->held ? rk_py_weights(self->held, cfg, st) : NULL;
    if (!given) return -1;
    int rc = rk_model_create_held(&self->model, cfg, be, device, given);
    PyMem_Free(given);
    for (int i = 0; !rc && i < self->model.man.n; i++) {
        RkParam *p = &self->model.man.param[i];
        p->mapped = rk_on_host(self->model.store.memory) && rk_py_weight_mapped(PyDict_GetItemString(self->held, p->name));
    }
    return rc ? rk_py_raise(st, rc), -1 : 0;
}

static PyObject *model_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"config", "backend", "weights", "device", NULL};
    PyObject *dict, *weights = Py_None;
    const char *backend = "cpu";
    int device = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|sOi:Model", names, &dict, &backend, &weights, &device)) return NULL;
    RkPyState *st = rk_py_state_of(type);
    const RkBackend *be = rk_backend_find(backend);
    if (!be) return rk_py_raise(st, strncmp(backend, "cuda", 4) ? RK_EINVAL : RK_EDEVICE);
    RkConfig *cfg = PyMem_Malloc(sizeof *cfg);
    if (!cfg) return PyErr_NoMemory();
    RkPyModel *self = rk_py_config(dict, st, cfg) < 0 ? NULL : (RkPyModel *)type->tp_alloc(type, 0);
    if (self) {
        pthread_mutex_init(&self->lock, NULL);
        if (create(self, cfg, be, weights, device) < 0) Py_CLEAR(self);
    }
    PyMem_Free(cfg);
    return (PyObject *)self;
}

static void model_dealloc(PyObject *op) {
    RkPyModel *self = (RkPyModel *)op;
    PyTypeObject *type = Py_TYPE(op);
    rk_model_free(&self->model);
    Py_XDECREF(self->held);
    pthread_mutex_destroy(&self->lock);
    type->tp_free(op);
    Py_DECREF(type);
}

/* 0 where the weights are the model's own, which may be written; else -1 with an exception. */
static int own_weights(RkPyModel *self) {
    if (!self->held) return 0;
    PyErr_SetString(PyExc_ValueError, "the weights of this model are held for inference and cannot be written");
    return -1;
}

static PyObject *model_init(PyObject *op, PyObject *arg) {
    RkPyModel *self = (RkPyModel *)op;
    if (own_weights(self) < 0) return NULL;
    unsigned long long seed = PyLong_AsUnsignedLongLongMask(arg);
    if (PyErr_Occurred()) return NULL;
    int rc;
    RK_LOCKED(self, rc = rk_manifest_init(&self->model.man, &self->model.cfg, self->model.store.memory, seed));
    self->model.writes++;
    if (rc) return rk_py_raise(rk_py_state_of(Py_TYPE(op)), rc);
    Py_RETURN_NONE;
}

/* ---- parameters ---- */

int rk_py_find_parameter(const RkManifest *man, const char *name) {
    int at = 0;
    while (at < man->n && strcmp(man->param[at].name, name)) at++;
    return at < man->n ? at : -1;
}

static PyObject *shape_of(RkTensor t) {
    int rank = rk_rank(t);
    PyObject *shape = PyTuple_New(rank);
    for (int i = 0; shape && i < rank; i++) PyTuple_SET_ITEM(shape, i, PyLong_FromLong(t.d[i]));
    return shape;
}

/* The formats a parameter may be held in. */
static PyObject *formats_of(const RkParam *p) {
    static const int all[] = {RK_F32, RK_BF16, RK_F16, RK_Q8, RK_Q4};
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < sizeof all / sizeof *all; i++) {
        PyObject *name = rk_param_takes(p, all[i]) ? PyUnicode_FromString(rk_format_name(all[i])) : NULL;
        if (name && PyList_Append(list, name) < 0) Py_CLEAR(list);
        Py_XDECREF(name);
    }
    return list;
}

static PyObject *manifest_rows(const RkManifest *man) {
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < man->n; i++) {
        const RkParam *p = &man->param[i];
        PyObject *row = Py_BuildValue("{s:s,s:N,s:N,s:d,s:N,s:N}", "name", p->name, "shape", shape_of(p->value), "decay",
                                      PyBool_FromLong(p->flags & P_DECAY), "lr_scale", p->flags & P_LR2X ? 2.0 : 1.0,
                                      "optional", PyBool_FromLong(p->optional), "formats", formats_of(p));
        if (!row || PyList_Append(list, row) < 0) Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

static PyObject *model_manifest(PyObject *op, PyObject *unused) {
    (void)unused;
    return manifest_rows(&((RkPyModel *)op)->model.man);
}

/* Of a class method: what a model of this configuration would consist of. */
static PyObject *model_describe(PyObject *type, PyObject *dict) {
    RkPyState *st = rk_py_state_of((PyTypeObject *)type);
    RkConfig *cfg = PyMem_Malloc(sizeof *cfg);
    if (!cfg) return PyErr_NoMemory();
    RkManifest man = {0};
    PyObject *rows = NULL;
    if (rk_py_config(dict, st, cfg) == 0) {
        int rc = rk_config_check(cfg);
        if (!rc) rc = rk_manifest_build(&man, cfg, (RkStore){RK_F32, RK_F32, &rk_host_memory});
        rows = rc ? rk_py_raise(st, rc) : manifest_rows(&man);
    }
    rk_manifest_free(&man);
    PyMem_Free(cfg);
    return rows;
}

static RkTensor pick_value(void *ctx, int i) { return ((RkManifest *)ctx)->param[i].value; }
static RkTensor pick_grad(void *ctx, int i) { return ((RkManifest *)ctx)->param[i].grad; }

static PyObject *model_parameters(PyObject *op, PyObject *unused) {
    (void)unused;
    if (own_weights((RkPyModel *)op) < 0) return NULL;
    return rk_py_named((RkPyModel *)op, pick_value, &((RkPyModel *)op)->model.man, op);
}

static PyObject *model_write_parameter(PyObject *op, PyObject *args) {
    RkPyModel *self = (RkPyModel *)op;
    const char *name;
    PyObject *value;
    if (!PyArg_ParseTuple(args, "sO:write_parameter", &name, &value)) return NULL;
    int at = rk_py_find_parameter(&self->model.man, name);
    if (at < 0) return PyErr_Format(PyExc_ValueError, "the model has no parameter '%s'", name), NULL;
    int rc = rk_py_write(self->model.store.memory, self->model.man.param[at].value, value, name);
    self->model.writes++;
    if (rc && !PyErr_Occurred()) rk_py_raise(rk_py_state_of(Py_TYPE(op)), rc);
    if (rc) return NULL;
    Py_RETURN_NONE;
}

static PyObject *model_gradients(PyObject *op, PyObject *unused) {
    (void)unused;
    RkPyModel *self = (RkPyModel *)op;
    int rc;
    RK_LOCKED(self, rc = rk_model_need_grads(&self->model));
    if (rc) return rk_py_raise(rk_py_state_of(Py_TYPE(op)), rc);
    RK_LOCKED(self, rk_model_share_grads(&self->model));
    return rk_py_named(self, pick_grad, &self->model.man, op);
}

static PyObject *model_zero_gradients(PyObject *op, PyObject *unused) {
    (void)unused;
    RkPyModel *self = (RkPyModel *)op;
    int rc;
    RK_LOCKED(self, rc = rk_model_zero_grads(&self->model));
    if (rc) return rk_py_raise(rk_py_state_of(Py_TYPE(op)), rc);
    Py_RETURN_NONE;
}

/* ---- states ---- */

static PyObject *model_new_state(PyObject *op, PyObject *arg) {
    long n = PyLong_AsLong(arg);
    if (n == -1 && PyErr_Occurred()) return NULL;
    RkPyModel *self = (RkPyModel *)op;
    RkPyStateObject *state = rk_py_state_new(self, (int)n, 0);
    int rc = 0;
    if (state) RK_LOCKED(self, rc = rk_state_from_params(&state->state, &self->model.man, self->model.be));
    if (!rc) return (PyObject *)state;
    Py_DECREF(state);
    return rk_py_raise(rk_py_state_of(Py_TYPE(op)), rc);
}

/* Copies one (layer, name, array) into the state's row of that name. */
static int fill_row(RkPyStateObject *state, PyObject *item) {
    int layer, found = 0;
    const char *name;
    PyObject *array;
    RkStateRow row;
    if (!PyArg_ParseTuple(item, "isO", &layer, &name, &array)) return -1;
    for (int i = 0; !found && rk_state_row(&state->state, i, &row); i++)
        found = row.layer == layer && !strcmp(row.name, name);
    if (!found) return PyErr_Format(PyExc_ValueError, "layer %d has no state called '%s'", layer, name), -1;
    PyObject *view = rk_py_state_view(state, &row, 1);
    int rc = view ? PyArray_CopyInto((PyArrayObject *)view, (PyArrayObject *)array) : -1;
    RkMemory *memory = state->state.store.memory;
    if (!rc && !rk_on_host(memory)) { /* the view is of a copy of the row */
        PyArrayObject *whole = (PyArrayObject *)(row.grows ? PyArray_BASE((PyArrayObject *)view) : view);
        rc = rk_tensor_write(memory, row.t, PyArray_DATA(whole));
        if (rc) rk_py_raise(rk_py_state_of(Py_TYPE(state)), rc);
    }
    Py_XDECREF(view);
    return rc;
}

static PyObject *model_state_from(PyObject *op, PyObject *args) {
    int batch_size, past = 0;
    PyObject *rows;
    if (!PyArg_ParseTuple(args, "iO|i:state_from", &batch_size, &rows, &past)) return NULL;
    RkPyStateObject *state = rk_py_state_new((RkPyModel *)op, batch_size, past);
    PyObject *fast = state ? PySequence_Fast(rows, "rows must be a sequence of (layer, name, array)") : NULL;
    for (Py_ssize_t i = 0; fast && i < PySequence_Fast_GET_SIZE(fast); i++)
        if (fill_row(state, PySequence_Fast_GET_ITEM(fast, i)) < 0) Py_CLEAR(fast);
    if (!fast) Py_CLEAR(state);
    Py_XDECREF(fast);
    return (PyObject *)state;
}

/* ---- running ---- */

static PyObject *model_forward(PyObject *op, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ids", "state", "logits", NULL};
    RkPyModel *self = (RkPyModel *)op;
    PyObject *ids_arg, *state = Py_None, *out = NULL;
    const char *want = "all";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|Os:forward", names, &ids_arg, &state, &want)) return NULL;
    PyArrayObject *ids = rk_py_ids(ids_arg, "ids");
    if (!ids) return NULL;
    RkForward f = {.B = (int)PyArray_DIM(ids, 0), .T = (int)PyArray_DIM(ids, 1), .ids = PyArray_DATA(ids)};
    f.logits = !strcmp(want, "all") ? RK_LOGITS_ALL : !strcmp(want, "last") ? RK_LOGITS_LAST : RK_LOGITS_NONE;
    if (f.logits == RK_LOGITS_NONE && strcmp(want, "none"))
        return PyErr_Format(PyExc_ValueError, "logits must be 'all', 'last' or 'none', not '%s'", want);
    if (state_arg(self, state, f.B, "state", &f.before) < 0) return NULL;
    RkPyStateObject *after = rk_py_state_new(self, f.B > 0 ? f.B : 1, 0);
    if (!after) return NULL;
    npy_intp all[3] = {f.B, f.T, self->model.cfg.V}, last[2] = {f.B, self->model.cfg.V};
    int type = numpy_type(self->model.store.sum_dtype);
    if (f.logits == RK_LOGITS_ALL) out = PyArray_SimpleNew(3, all, type);
    else if (f.logits == RK_LOGITS_LAST) out = PyArray_SimpleNew(2, last, type);
    else out = Py_NewRef(Py_None);
    int rc = 0;
    f.after = &after->state;
    f.out = out && out != Py_None ? PyArray_DATA((PyArrayObject *)out) : NULL;
    if (out) RK_LOCKED(self, rc = rk_model_forward(&self->model, &f));
    if (out && !rc) return Py_BuildValue("(NN)", out, after);
    Py_XDECREF(out);
    Py_DECREF(after);
    return rc ? rk_py_raise(rk_py_state_of(Py_TYPE(op)), rc) : NULL;
}

/* ids and targets of one shape into f; 0, or -1 with an exception. */
static int ids_and_targets(PyObject *ids_arg, PyObject *targets_arg, RkForward *f) {
    PyArrayObject *ids = rk_py_ids(ids_arg, "ids"), *targets = ids ? rk_py_ids(targets_arg, "targets") : NULL;
    if (!targets) return -1;
    if (PyArray_DIM(ids, 0) != PyArray_DIM(targets, 0) || PyArray_DIM(ids, 1) != PyArray_DIM(targets, 1))
        return PyErr_SetString(PyExc_ValueError, "ids and targets must have the same shape"), -1;
    f->B = (int)PyArray_DIM(ids, 0);
    f->T = (int)PyArray_DIM(ids, 1);
    f->ids = PyArray_DATA(ids);
    f->targets = PyArray_DATA(targets);
    if (f->B < 1 || f->T < 1) return PyErr_SetString(PyExc_ValueError, "ids must hold at least one token"), -1;
    return 0;
}

static PyObject *model_loss(PyObject *op, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ids", "targets", "state", NULL};
    RkPyModel *self = (RkPyModel *)op;
    PyObject *ids, *targets, *state = Py_None;
    RkForward f = {.logits = RK_LOGITS_NONE};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O:loss", names, &ids, &targets, &state)) return NULL;
    if (ids_and_targets(ids, targets, &f) < 0 || state_arg(self, state, f.B, "state", &f.before) < 0) return NULL;
    RkPyStateObject *after = rk_py_state_new(self, f.B, 0);
    if (!after) return NULL;
    int rc;
    f.after = &after->state;
    RK_LOCKED(self, rc = rk_model_forward(&self->model, &f));
    if (!rc) return Py_BuildValue("(dLN)", f.loss, (long long)f.count, after);
    Py_DECREF(after);
    return rk_py_raise(rk_py_state_of(Py_TYPE(op)), rc);
}

/* Copies of a table's saved rows, as "blocks.<layer>.<part>.<row>". */
static int add_activations(PyObject *dict, int layer, const char *part, const RkMixer *mixer, const RkTensor *act, PyObject *op) {
    RkMemory *memory = ((RkPyModel *)op)->model.store.memory;
    for (int i = 0; i < mixer->n_act; i++) {
        char name[96];
        snprintf(name, sizeof name, "blocks.%d.%s.%s", layer, part, mixer->act[i].name);
        PyObject *view = rk_py_view(memory, act[i], op, 0);
        PyObject *copy = view ? PyArray_NewCopy((PyArrayObject *)view, NPY_CORDER) : NULL;
        int rc = copy ? PyDict_SetItemString(dict, name, copy) : -1;
        Py_XDECREF(view);
        Py_XDECREF(copy);
        if (rc < 0) return -1;
    }
    return 0;
}

static int add_all_activations(RkPyModel *self, PyObject *dict) {
    for (int l = 0; l < self->model.cfg.L; l++) {
        const RkBlockConfig *b = &self->model.cfg.block[l];
        const RkBlockWork *w = &self->model.work.block[l];
        if (add_activations(dict, l, "att", b->time_mix, w->act[0], (PyObject *)self) < 0 ||
            add_activations(dict, l, "ffn", b->channel_mix, w->act[1], (PyObject *)self) < 0)
            return -1;
    }
    return 0;
}

/* One forward and backward pass; activations: NULL, or a dict to copy them into before another call can replace them.
   The lock is never waited for with the GIL held, so it may be kept while the GIL is taken back. */
static int run_backward(RkPyModel *self, RkBackward *b, RkPyStateObject *initial, PyObject *activations) {
    int rc;
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&self->lock);
    b->initial = !b->f.before;
    rc = 0;
    if (b->initial) {
        rc = rk_state_from_params(&initial->state, &self->model.man, self->model.be);
        b->f.before = &initial->state;
    }
    if (!rc) rc = rk_model_forward_backward(&self->model, b);
    Py_END_ALLOW_THREADS
    if (!rc && activations && add_all_activations(self, activations) < 0) rc = -1;
    pthread_mutex_unlock(&self->lock);
    if (rc && !PyErr_Occurred()) rk_py_raise(rk_py_state_of(Py_TYPE(self)), rc);
    return rc;
}

static PyObject *backward(PyObject *op, PyObject *args, PyObject *kwargs, PyObject *activations) {
    static char *names[] = {"ids", "targets", "scale", "l2", "state", "dstate", "grad_cp", NULL};
    RkPyModel *self = (RkPyModel *)op;
    PyObject *ids, *targets, *state = Py_None, *dstate = Py_None;
    RkBackward b = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOdd|OOi:forward_backward", names, &ids, &targets, &b.scale, &b.l2,
                                     &state, &dstate, &b.grad_cp))
        return NULL;
    if (ids_and_targets(ids, targets, &b.f) < 0 || state_arg(self, state, b.f.B, "state", &b.f.before) < 0 ||
        state_arg(self, dstate, b.f.B, "dstate", &b.dafter) < 0)
        return NULL;
    RkPyStateObject *initial = rk_py_state_new(self, b.f.B, 0), *after = initial ? rk_py_state_new(self, b.f.B, 0) : NULL;
    RkPyStateObject *dbefore = after ? rk_py_state_new(self, b.f.B, 0) : NULL;
    int rc = -1;
    if (dbefore) {
        b.f.after = &after->state;
        b.dbefore = &dbefore->state;
        rc = run_backward(self, &b, initial, activations);
    }
    Py_XDECREF(initial);
    if (!rc) return Py_BuildValue("(dLNN)", b.f.loss, (long long)b.f.count, after, dbefore);
    Py_XDECREF(after);
    Py_XDECREF(dbefore);
    return NULL;
}

static PyObject *model_forward_backward(PyObject *op, PyObject *args, PyObject *kwargs) {
    return backward(op, args, kwargs, NULL);
}

static PyObject *model_activations(PyObject *op, PyObject *ids) {
    PyObject *dict = PyDict_New(), *call = dict ? Py_BuildValue("(OOdd)", ids, ids, 1.0, 0.0) : NULL;
    PyObject *done = call ? backward(op, call, NULL, dict) : NULL;
    if (!done) Py_CLEAR(dict);
    Py_XDECREF(call);
    Py_XDECREF(done);
    return dict;
}

/* ---- memory ---- */

static PyObject *model_plan(PyObject *op, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"batch_size", "ctx_len", "training", "grad_cp", NULL};
    RkModel *m = &((RkPyModel *)op)->model;
    int B, T, training = 1, grad_cp = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "ii|pi:plan", names, &B, &T, &training, &grad_cp)) return NULL;
    if (B < 1 || T < 1) return PyErr_Format(PyExc_ValueError, "batch_size and ctx_len must be at least 1, not %d and %d", B, T);
    if ((int64_t)B * T > INT32_MAX / 2) return PyErr_Format(PyExc_ValueError, "a batch of %d x %d tokens is too large for one call", B, T);
    size_t state = training ? rk_state_bytes(&m->cfg, m->store, B, 0) * (1 + (m->cfg.time_state != 0))
                            : rk_state_bytes(&m->cfg, m->store, B, T);
    if (!training && T > rk_model_piece(m, B)) T = rk_model_piece(m, B);
    size_t work = rk_work_measure(&m->cfg, &m->man, m->store, (RkWorkSize){B, T, training, grad_cp});
    if (!work) return PyErr_NoMemory();
    size_t gradients = 0, moments = 0, scratch = 0, copies = 0;
    if (training) {
        gradients = rk_manifest_bytes(&m->man, 1);
        rk_trainer_measure(m, &moments, &scratch);
    } else {
        copies = rk_model_columns_beside(m);
    }
    return rk_py_sizes(m->value_bytes + copies, gradients, moments, work, state, scratch + rk_model_scratch_bytes(m));
}

static PyObject *model_allocated(PyObject *op, PyObject *unused) {
    (void)unused;
    RkPyModel *self = (RkPyModel *)op;
    size_t gradients, activations;
    RK_LOCKED(self, (gradients = self->model.grad_bytes, activations = self->model.work.bytes));
    return rk_py_sizes(self->model.value_bytes, gradients, 0, activations, 0, rk_thread_scratch_total() + self->model.store.memory->own);
}

static PyObject *model_held_on_device(PyObject *op, PyObject *unused) {
    (void)unused;
    RkPyModel *self = (RkPyModel *)op;
    size_t held;
    RK_LOCKED(self, held = self->model.store.memory->held);
    return PyLong_FromSize_t(held);
}

/* ---- attributes ---- */

static PyObject *get_num_parameters(PyObject *op, void *unused) {
    (void)unused;
    return PyLong_FromSize_t(rk_manifest_numel(&((RkPyModel *)op)->model.man));
}
static PyObject *get_backend(PyObject *op, void *unused) {
    (void)unused;
    return PyUnicode_FromString(((RkPyModel *)op)->model.be->name);
}
static PyObject *get_real(PyObject *op, void *unused) {
    (void)unused;
    return PyUnicode_FromString(((RkPyModel *)op)->model.store.sum_dtype == RK_F64 ? "float64" : "float32");
}

#define KEYWORDS(fn) (PyCFunction)(void (*)(void))fn, METH_VARARGS | METH_KEYWORDS

static PyMethodDef methods[] = {
    {"init", model_init, METH_O, "The reference initialisation from a seed."},
    {"describe", model_describe, METH_O | METH_CLASS, "describe(config): the manifest of such a model, which is not made."},
    {"manifest", model_manifest, METH_NOARGS, "One dict per parameter, in checkpoint order."},
    {"parameters", model_parameters, METH_NOARGS, "name -> writable zero-copy view; on a device a copy."},
    {"write_parameter", model_write_parameter, METH_VARARGS, "write_parameter(name, array): replaces its numbers."},
    {"gradients", model_gradients, METH_NOARGS, "name -> zero-copy view of the gradient."},
    {"zero_gradients", model_zero_gradients, METH_NOARGS, "Sets all gradients to zero."},
    {"new_state", model_new_state, METH_O, "The state before the first token."},
    {"new_logits", rk_py_model_new_logits, METH_O, "Room for n rows of logits in the model's memory."},
    {"state_from", model_state_from, METH_VARARGS, "A state that holds `past` tokens from (layer, name, array) rows; missing rows are zeros."},
    {"forward", KEYWORDS(model_forward), "(logits, state) of ids."},
    {"loss", KEYWORDS(model_loss), "(sum, count, state) of the cross-entropy."},
    {"forward_backward", KEYWORDS(model_forward_backward), "Adds gradients; (sum, count, state, dstate)."},
    {"activations", model_activations, METH_O, "Copies of what a training forward saves; adds to the gradients."},
    {"plan", KEYWORDS(model_plan), "Bytes that a call of this size allocates."},
    {"allocated", model_allocated, METH_NOARGS, "Bytes allocated now."},
    {"held_on_device", model_held_on_device, METH_NOARGS, "Bytes taken from the device now; 0 on the CPU."},
    {"step", rk_py_model_step, METH_VARARGS, "step(ids, state, logits): reads ids into a state, in place."},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef getset[] = {
    {"num_parameters", get_num_parameters, NULL, "Numbers in all parameters.", NULL},
    {"backend", get_backend, NULL, "\"cpu\", \"ref\" or \"ref64\".", NULL},
    {"real", get_real, NULL, "Element type of the numbers that come out: logits, states, gradients.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot slots[] = {
    {Py_tp_new, model_new}, {Py_tp_dealloc, model_dealloc}, {Py_tp_methods, methods}, {Py_tp_getset, getset},
    {Py_tp_doc, "Model(config, backend='cpu'): parameters and the memory of the call that runs."}, {0, NULL},
};
static PyType_Spec spec = {"rwkvtune._rwkvcore.Model", sizeof(RkPyModel), 0, Py_TPFLAGS_DEFAULT, slots};


int rk_py_add_model(PyObject *module) {
    RkPyState *st = rk_py_state(module);
    st->model = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
    if (!st->model || PyModule_AddType(module, st->model) < 0) return -1;
    return rk_py_add_state(module) < 0 ? -1 : rk_py_add_generate(module);
}
