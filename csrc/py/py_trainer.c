/* py_trainer.c - rwkvtune._rwkvcore.Trainer: the optimizer step on a Model. */
#include "py/py_model.h"

#include "base/parallel.h"
#include "train/step.h"

typedef struct {
    PyObject_HEAD
    RkTrainer trainer;
    RkPyModel *model;
    double weight_decay;
} PyTrainer;

static PyObject *trainer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"model", "beta1", "beta2", "eps", "weight_decay", "grad_clip", NULL};
    PyObject *model;
    double beta1 = 0.9, beta2 = 0.99, eps = 1e-18, weight_decay = 0, grad_clip = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$ddddd:Trainer", names, &model, &beta1, &beta2, &eps, &weight_decay,
                                     &grad_clip))
        return NULL;
    RkPyState *st = rk_py_state_of(type);
    if (!PyObject_TypeCheck(model, st->model)) return PyErr_SetString(PyExc_ValueError, "model must be a Model"), NULL;
    if (!(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1))
        return PyErr_Format(PyExc_ValueError, "beta1 and beta2 must be in [0, 1)"), NULL;
    if (!((float)eps > 0)) return PyErr_SetString(PyExc_ValueError, "eps must be greater than 0 in float32 too (1e-38 is)"), NULL;
    PyTrainer *self = (PyTrainer *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->model = (RkPyModel *)Py_NewRef(model);
    self->weight_decay = weight_decay;
    int rc;
    RK_LOCKED(self->model, rc = rk_trainer_create(&self->trainer, &self->model->model));
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
    PyObject *m = rk_py_named(self->model, pick, self->trainer.m, op);
    PyObject *v = m ? rk_py_named(self->model, pick, self->trainer.v, op) : NULL;
    if (v) return Py_BuildValue("(NN)", m, v);
    Py_XDECREF(m);
    return NULL;
}

static PyObject *sizes(PyTrainer *self) {
    RkModel *m = self->trainer.model;
    size_t state = self->trainer.before.bytes + self->trainer.dbefore.bytes;
    return rk_py_sizes(m->value_bytes, m->grad_bytes, self->trainer.moment_bytes, m->work.bytes, state,
                       rk_thread_scratch_total());
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

/* One byte per parameter: 1 where it is not in `trainable`. NULL with an exception when a name is unknown. */
static unsigned char *frozen_from(const RkManifest *man, PyObject *trainable) {
    unsigned char *frozen = PyMem_Malloc((size_t)man->n);
    PyObject *fast = frozen ? PySequence_Fast(trainable, "trainable must be a sequence of parameter names") : NULL;
    if (!fast) return PyMem_Free(frozen), NULL;
    memset(frozen, 1, (size_t)man->n);
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(fast); i++) {
        const char *name = PyUnicode_AsUTF8(PySequence_Fast_GET_ITEM(fast, i));
        int at = 0;
        while (name && at < man->n && strcmp(man->param[at].name, name)) at++;
        if (!name || at == man->n) {
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

static PyObject *trainer_step(PyObject *op, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ids", "targets", "micro_bsz", "lr", "weight_decay", "l2wrap", "grad_cp", "trainable", NULL};
    PyTrainer *self = (PyTrainer *)op;
    PyObject *ids_arg, *targets_arg, *trainable = Py_None;
    RkStep s = {.weight_decay = self->weight_decay, .l2wrap = 1};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$iddppO:step", names, &ids_arg, &targets_arg, &s.micro_bsz, &s.lr,
                                     &s.weight_decay, &s.l2wrap, &s.grad_cp, &trainable))
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
    return Py_BuildValue("{s:d,s:d,s:z}", "loss", s.loss, "grad_norm", s.grad_norm, "bad", s.bad);
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

static PyMethodDef methods[] = {
    {"moments", trainer_moments, METH_NOARGS, "(first, second) moments by parameter name, writable views."},
    {"step", (PyCFunction)(void (*)(void))trainer_step, METH_VARARGS | METH_KEYWORDS, "One optimizer step."},
    {"plan_and_allocate", trainer_plan_and_allocate, METH_VARARGS, "Allocates all that steps of this size need; the sizes."},
    {"allocated", trainer_allocated, METH_NOARGS, "Bytes allocated now."},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef getset[] = {
    {"step_count", get_step_count, set_step_count, "Applied steps: Adam's t.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot slots[] = {
    {Py_tp_new, trainer_new}, {Py_tp_dealloc, trainer_dealloc}, {Py_tp_methods, methods}, {Py_tp_getset, getset},
    {Py_tp_doc, "Trainer(model, beta1=, beta2=, eps=, weight_decay=, grad_clip=): moments and steps."}, {0, NULL},
};
static PyType_Spec spec = {"rwkvtune._rwkvcore.Trainer", sizeof(PyTrainer), 0, Py_TPFLAGS_DEFAULT, slots};

int rk_py_add_trainer(PyObject *module) {
    RkPyState *st = rk_py_state(module);
    st->trainer = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
    return st->trainer ? PyModule_AddType(module, st->trainer) : -1;
}
