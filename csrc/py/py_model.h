/* py_model.h - the Python objects of the model, shared by the files that work on them. */
#ifndef RK_PY_PY_MODEL_H
#define RK_PY_PY_MODEL_H

#include "py/py.h"

#include <pthread.h>

#include "model/model.h"

typedef struct RkPyModel {
    PyObject_HEAD
    RkModel model;
    PyObject *held;       /* the weights it was made of for inference, which on the host it reads where they lie; else NULL */
    pthread_mutex_t lock; /* taken after the GIL is released: one call at a time */
} RkPyModel;

typedef struct RkPyStateObject {
    PyObject_HEAD
    RkState state;
    RkPyModel *owner; /* its configuration is the state's */
} RkPyStateObject;

/* Runs a core call without the GIL, one at a time per model. */
#define RK_LOCKED(py_model, statement)             \
    do {                                           \
        Py_BEGIN_ALLOW_THREADS                     \
        pthread_mutex_lock(&(py_model)->lock);     \
        statement;                                 \
        pthread_mutex_unlock(&(py_model)->lock);   \
        Py_END_ALLOW_THREADS                       \
    } while (0)

/* A new state of zeros that holds `past` tokens where states grow; NULL with an exception. */
RkPyStateObject *rk_py_state_new(RkPyModel *owner, int batch_size, int past);

/* A zero-copy view of a row; of one that grows, of the tokens it holds. */
PyObject *rk_py_state_view(RkPyStateObject *state, const RkStateRow *row, int writable);

/* A (B,T) int32 array; NULL with an exception that names it. Borrowed. */
PyArrayObject *rk_py_ids(PyObject *value, const char *name);

/* A tensor as an array: a zero-copy view that keeps `owner` alive where the host can look at it, else a copy in float32. */
PyObject *rk_py_view(RkMemory *memory, RkTensor t, PyObject *owner, int writable);

/* Writes an array's numbers to a tensor of its size, of any type; 0, or -1 with an exception that names it. */
int rk_py_write(RkMemory *memory, RkTensor t, PyObject *value, const char *name);

/* A dict of named views: which tensor of each parameter is chosen by `pick`. */
typedef RkTensor (*RkPyPick)(void *ctx, int i);
PyObject *rk_py_named(RkPyModel *m, RkPyPick pick, void *ctx, PyObject *owner);

/* Its place in the list, -1 where there is none of this name. */
int rk_py_find_parameter(const RkManifest *man, const char *name);

/* {"parameters": ..., "total": ...} */
PyObject *rk_py_sizes(size_t parameters, size_t gradients, size_t moments, size_t activations, size_t state, size_t scratch);

/* A tensor over the memory of a pair (format, array); 0, or -1 with an exception that names it. */
int rk_py_weight(PyObject *pair, const char *name, RkTensor *out);

/* Whether the array of a pair lies in a file that Python has mapped. */
int rk_py_weight_mapped(PyObject *pair);

/* Those of a dict in the manifest's order, from PyMem; NULL with an exception. */
RkTensor *rk_py_weights(PyObject *dict, const RkConfig *cfg, RkPyState *st);

int rk_py_add_state(PyObject *module);
int rk_py_add_generate(PyObject *module);
PyObject *rk_py_model_step(PyObject *model, PyObject *args);
PyObject *rk_py_model_new_logits(PyObject *model, PyObject *n);

#endif
