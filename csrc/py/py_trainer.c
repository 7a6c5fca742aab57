/* py_trainer.c - rwkvtune._rwkvcore.Trainer: the optimizer step on a Model. */
#include "py/py_model.h"

#include <math.h>

#include "base/parallel.h"
#include "train/step.h"

typedef struct {
    PyObject_HEAD
    RkTrainer trainer;
    RkPyModel *model;
    double weight_decay;
} PyTrainer;

/* One byte per parameter: 1 where it is not in `trainable`. NULL with an exception when a name is unknown. */
static unsigned char *frozen_from(const RkManifest *man, PyObject *trainable) {
    unsigned char *frozen = PyMem_Malloc((size_t)man->n);
    PyObject *fast = frozen ? PySequence_Fast(trainable, "trainable must be a sequence of parameter names") : NULL;
    if (!fast) return PyMem_Free(frozen), NULL;
    memset(frozen, 1, (size_t)man->n);
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(fast); i++) {
        const char *name = PyUnicode_AsUTF8(PySequence_Fast_GET_ITEM(fast, i));
        int at = name ? rk_py_find_parameter(man, name) : -1;
        if (at < 0) {
            if (name) PyErr_Format(PyExc_ValueError, "trainable: the model has no parameter '%s'", name);
            PyMem_Free(frozen);
            Py_DECREF(fast);
            return NULL;
        }
        frozen[at] = 0;
    }
    Py_DECREF(fast);
    return frozen;
}

static PyObject *trainer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"model", "beta1", "beta2", "eps", "weight_decay", "grad_clip", "trainable", NULL};
    PyObject *model, *trainable = Py_None;
    double beta1 = 0.9, beta2 = 0.99, eps = 1e-18, weight_decay = 0, grad_clip = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$dddddO:Trainer", names, &model, &beta1, &beta2, &eps, &weight_decay,
                                     &grad_clip, &trainable))
        return NULL;
    RkPyState *st = rk_py_state_of(type);
    if (!PyObject_TypeCheck(model, st->model)) return PyErr_SetString(PyExc_ValueError, "model must be a Model"), NULL;
    if (!(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1))
        return PyErr_Format(PyExc_ValueError, "beta1 and beta2 must be in [0, 1)"), NULL;
    if (!((float)eps > 0)) return PyErr_SetString(PyExc_ValueError, "eps must be greater than 0 in float32 too (1e-38 is)"), NULL;
    unsigned char *frozen = trainable == Py_None ? NULL : frozen_from(&((RkPyModel *)model)->model.man, trainable);
    if (trainable != Py_None && !frozen) return NULL;
    PyTrainer *self = (PyTrainer *)type->tp_alloc(type, 0);
    if (!self) return PyMem_Free(frozen), NULL;
    self->model = (RkPyModel *)Py_NewRef(model);
    self->weight_decay = weight_decay;
    int rc;
    RK_LOCKED(self->model, rc = rk_trainer_create(&self->trainer, &self->model->model, frozen));
    PyMem_Free(frozen);
    if (rc) {
        Py_DECREF(self);
        return rk_py_raise(st, rc);
    }
    self->trainer.beta1 = beta1;
    self->trainer.beta2 = beta2;
    self->trainer.eps = eps;
    self->trainer.grad_clip = grad_clip;
    return (PyObject *)self;
}

static void trainer_dealloc(PyObject *op) {
    PyTrainer *self = (PyTrainer *)op;
    PyTypeObject *type = Py_TYPE(op);
    if (self->model) rk_trainer_free(&self->trainer);
    Py_XDECREF(self->model);
    type->tp_free(op);
    Py_DECREF(type);
}

static RkTensor pick(void *ctx, int i) { return ((RkTensor *)ctx)[i]; }

static PyObject *trainer_moments(PyObject *op, PyObject *unused) {
    (void)unused;
    PyTrainer *self = (PyTrainer *)op;
    RK_LOCKED(self->model, rk_trainer_share_moments(&self->trainer));
    PyObject *m = rk_py_named(self->model, pick, self->trainer.m, op);
    PyObject *v = m ? rk_py_named(self->model, pick, self->trainer.v, op) : NULL;
    if (v) return Py_BuildValue("(NN)", m, v);
    Py_XDECREF(m);
    return NULL;
}

/* The tensors of a kind; NULL with an exception. */
static RkTensor *kind_of(PyTrainer *self, const char *kind) {
    const struct { const char *name; RkTensor *all; } kinds[] = {
        {"first", self->trainer.m}, {"second", self->trainer.v}, {"master", self->trainer.master}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (!strcmp(kinds[i].name, kind)) return kinds[i].all;
    PyErr_Format(PyExc_ValueError, "kind must be 'first', 'second' or 'master', not '%s'", kind);
    return NULL;
}

static PyObject *trainer_masters(PyObject *op, PyObject *unused) {
    (void)unused;
    PyTrainer *self = (PyTrainer *)op;
    int rc;
    RK_LOCKED(self->model, rc = rk_trainer_load_masters(&self->trainer));
    if (rc) return rk_py_raise(rk_py_state_of(Py_TYPE(op)), rc);
    return rk_py_named(self->model, pick, self->trainer.master, op);
}

static PyObject *trainer_write(PyObject *op, PyObject *args) {
    PyTrainer *self = (PyTrainer *)op;
    const char *kind, *name;
    PyObject *value;
    if (!PyArg_ParseTuple(args, "ssO:write", &kind, &name, &value)) return NULL;
    RkTensor *all = kind_of(self, kind);
    int at = all ? rk_py_find_parameter(&self->model->model.man, name) : -1;
    if (all && (at < 0 || !all[at].p)) PyErr_Format(PyExc_ValueError, "the trainer has no %s of '%s'", kind, name);
    if (PyErr_Occurred()) return NULL;
    int rc;
    RK_LOCKED(self->model, rk_trainer_share_moments(&self->trainer));
    RK_LOCKED(self->model, rc = rk_trainer_load_masters(&self->trainer)); /* or a later load would undo this */
    if (!rc) rc = rk_py_write(self->model->model.store.memory, all[at], value, name);
    if (rc && !PyErr_Occurred()) rk_py_raise(rk_py_state_of(Py_TYPE(op)), rc);
    if (rc) return NULL;
    Py_RETURN_NONE;
}

static PyObject *sizes(PyTrainer *self) {
    RkModel *m = self->trainer.model;
    size_t state = self->trainer.before.bytes + self->trainer.after.bytes + self->trainer.dbefore.bytes;
    return rk_py_sizes(m->value_bytes, m->grad_bytes, self->trainer.moment_bytes, m->work.bytes, state,
                       rk_thread_scratch_total() + m->store.memory->own + self->trainer.bytes - self->trainer.moment_bytes);
}

static PyObject *trainer_plan_and_allocate(PyObject *op, PyObject *args) {
    PyTrainer *self = (PyTrainer *)op;
    RkWorkSize size = {0, 0, 1, 0};
    if (!PyArg_ParseTuple(args, "iii:plan_and_allocate", &size.B, &size.T, &size.grad_cp)) return NULL;
    if (size.B < 1 || size.T < 1) return PyErr_SetString(PyExc_ValueError, "batch_size and ctx_len must be at least 1"), NULL;
    int rc;
    RK_LOCKED(self->model, rc = rk_trainer_prepare(&self->trainer, size));
    return rc ? rk_py_raise(rk_py_state_of(Py_TYPE(op)), rc) : sizes(self);
}

static PyObject *trainer_allocated(PyObject *op, PyObject *unused) {
    (void)unused;
    return sizes((PyTrainer *)op);
}

static PyObject *result_of(const RkStep *s) {
    return Py_BuildValue("{s:d,s:d,s:z,s:N}", "loss", s->loss, "grad_norm", s->grad_norm, "bad", s->bad, "again", PyBool_FromLong(s->again));
}

static PyObject *trainer_step(PyObject *op, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ids", "targets", "micro_bsz", "lr", "weight_decay", "l2wrap", "grad_cp", "trainable", "chunk", NULL};
    PyTrainer *self = (PyTrainer *)op;
    PyObject *ids_arg, *targets_arg, *trainable = Py_None;
    RkStep s = {.weight_decay = self->weight_decay, .l2wrap = 1};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$iddppOi:step", names, &ids_arg, &targets_arg, &s.micro_bsz, &s.lr,
                                     &s.weight_decay, &s.l2wrap, &s.grad_cp, &trainable, &s.chunk))
        return NULL;
    PyArrayObject *ids = rk_py_ids(ids_arg, "ids"), *targets = ids ? rk_py_ids(targets_arg, "targets") : NULL;
    if (!targets) return NULL;
    s.B = (int)PyArray_DIM(ids, 0);
    s.T = (int)PyArray_DIM(ids, 1);
    if (s.B != PyArray_DIM(targets, 0) || s.T != PyArray_DIM(targets, 1) || s.B < 1 || s.T < 1)
        return PyErr_SetString(PyExc_ValueError, "ids and targets must have the same shape, with at least one token"), NULL;
    s.ids = PyArray_DATA(ids);
    s.targets = PyArray_DATA(targets);
    if (!s.micro_bsz) s.micro_bsz = s.B;
    unsigned char *frozen = trainable == Py_None ? NULL : frozen_from(&self->model->model.man, trainable);
    if (trainable != Py_None && !frozen) return NULL;
    s.frozen = frozen;
    int rc;
    RK_LOCKED(self->model, rc = rk_train_step(&self->trainer, &s));
    PyMem_Free(frozen);
    if (rc) return rk_py_raise(rk_py_state_of(Py_TYPE(op)), rc);
    return result_of(&s);
}

static PyObject *trainer_apply(PyObject *op, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"loss", "lr", "weight_decay", "trainable", NULL};
    PyTrainer *self = (PyTrainer *)op;
    PyObject *trainable = Py_None;
    RkStep s = {.weight_decay = self->weight_decay};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "d|$ddO:apply", names, &s.loss, &s.lr, &s.weight_decay, &trainable)) return NULL;
    unsigned char *frozen = trainable == Py_None ? NULL : frozen_from(&self->model->model.man, trainable);
    if (trainable != Py_None && !frozen) return NULL;
    s.frozen = frozen;
    int rc;
    RK_LOCKED(self->model, rc = rk_train_apply(&self->trainer, &s));
    PyMem_Free(frozen);
    if (rc) return rk_py_raise(rk_py_state_of(Py_TYPE(op)), rc);
    return result_of(&s);
}

static PyObject *trainer_rules(PyObject *op, PyObject *unused) {
    (void)unused;
    PyTrainer *self = (PyTrainer *)op;
    const RkManifest *man = &self->model->model.man;
    PyObject *dict = PyDict_New();
    for (int i = 0; dict && i < man->n; i++) {
        const RkUpdateRule *rule = &self->trainer.rule[i];
        PyObject *pair = rule->decay < 0 ? Py_BuildValue("(dO)", rule->lr_scale, Py_None)
                                         : Py_BuildValue("(dd)", rule->lr_scale, rule->decay);
        if (!pair || PyDict_SetItemString(dict, man->param[i].name, pair) < 0) Py_CLEAR(dict);
        Py_XDECREF(pair);
    }
    return dict;
}

static PyObject *trainer_set_rule(PyObject *op, PyObject *args) {
    PyTrainer *self = (PyTrainer *)op;
    const char *name;
    RkUpdateRule rule;
    PyObject *decay;
    if (!PyArg_ParseTuple(args, "sdO:set_rule", &name, &rule.lr_scale, &decay)) return NULL;
    rule.decay = decay == Py_None ? -1 : PyFloat_AsDouble(decay);
    if (PyErr_Occurred()) return NULL;
    if (!(rule.lr_scale >= 0 && isfinite((float)rule.lr_scale)))
        return PyErr_SetString(PyExc_ValueError, "lr_scale must be finite and not negative"), NULL;
    if (decay != Py_None && !(rule.decay >= 0 && isfinite((float)rule.decay)))
        return PyErr_SetString(PyExc_ValueError, "weight_decay must be finite and not negative, or None"), NULL;
    int at = rk_py_find_parameter(&self->model->model.man, name);
    if (at < 0) return PyErr_Format(PyExc_ValueError, "the model has no parameter '%s'", name), NULL;
    RK_LOCKED(self->model, self->trainer.rule[at] = rule);
    Py_RETURN_NONE;
}

static PyObject *get_step_count(PyObject *op, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(((PyTrainer *)op)->trainer.steps);
}

static int set_step_count(PyObject *op, PyObject *value, void *unused) {
    (void)unused;
    long long n = value ? PyLong_AsLongLong(value) : -1;
    if (PyErr_Occurred()) return -1;
    if (n < 0) return PyErr_SetString(PyExc_ValueError, "step_count must not be negative"), -1;
    ((PyTrainer *)op)->trainer.steps = n;
    return 0;
}

static PyObject *get_loss_scale(PyObject *op, void *unused) {
    (void)unused;
    return PyFloat_FromDouble(((PyTrainer *)op)->trainer.loss_scale);
}

static int set_loss_scale(PyObject *op, PyObject *value, void *unused) {
    (void)unused;
    double scale = value ? PyFloat_AsDouble(value) : -1;
    if (PyErr_Occurred()) return -1;
    if (!(scale >= 1 && isfinite(scale))) return PyErr_SetString(PyExc_ValueError, "loss_scale must be at least 1"), -1;
    ((PyTrainer *)op)->trainer.loss_scale = scale;
    return 0;
}

static PyObject *get_good_steps(PyObject *op, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(((PyTrainer *)op)->trainer.good_steps);
}

static int set_good_steps(PyObject *op, PyObject *value, void *unused) {
    (void)unused;
    long long n = value ? PyLong_AsLongLong(value) : -1;
    if (PyErr_Occurred()) return -1;
    if (n < 0) return PyErr_SetString(PyExc_ValueError, "good_steps must not be negative"), -1;
    ((PyTrainer *)op)->trainer.good_steps = n;
    return 0;
}

static PyMethodDef methods[] = {
    {"moments", trainer_moments, METH_NOARGS, "(first, second) moments by parameter name, writable views; on a device copies."},
    {"masters", trainer_masters, METH_NOARGS, "float32 weights by parameter name where the model's are narrower; else empty."},
    {"write", trainer_write, METH_VARARGS, "write(kind, name, array): replaces 'first', 'second' or 'master'."},
    {"step", (PyCFunction)(void (*)(void))trainer_step, METH_VARARGS | METH_KEYWORDS, "One optimizer step."},
    {"apply", (PyCFunction)(void (*)(void))trainer_apply, METH_VARARGS | METH_KEYWORDS,
     "The second half of a step, with the gradients that are in the model, times loss_scale."},
    {"rules", trainer_rules, METH_NOARGS, "Parameter name -> (lr_scale, weight_decay or None)."},
    {"set_rule", trainer_set_rule, METH_VARARGS, "set_rule(name, lr_scale, weight_decay or None)."},
    {"plan_and_allocate", trainer_plan_and_allocate, METH_VARARGS, "Allocates all that steps of this size need; the sizes."},
    {"allocated", trainer_allocated, METH_NOARGS, "Bytes allocated now."},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef getset[] = {
    {"step_count", get_step_count, set_step_count, "Applied steps: Adam's t.", NULL},
    {"loss_scale", get_loss_scale, set_loss_scale, "What float16 losses are multiplied by; 1 elsewhere.", NULL},
    {"good_steps", get_good_steps, set_good_steps, "Steps since loss_scale last changed.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot slots[] = {
    {Py_tp_new, trainer_new}, {Py_tp_dealloc, trainer_dealloc}, {Py_tp_methods, methods}, {Py_tp_getset, getset},
    {Py_tp_doc, "Trainer(model, beta1=, beta2=, eps=, weight_decay=, grad_clip=, trainable=): moments and steps."}, {0, NULL},
};
static PyType_Spec spec = {"rwkvtune._rwkvcore.Trainer", sizeof(PyTrainer), 0, Py_TPFLAGS_DEFAULT, slots};

int rk_py_add_trainer(PyObject *module) {
    RkPyState *st = rk_py_state(module);
    st->trainer = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
    return st->trainer ? PyModule_AddType(module, st->trainer) : -1;
}
