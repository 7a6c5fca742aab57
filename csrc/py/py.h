/* py.h - shared by the files of py/: the only folder that sees Python and NumPy. */
#ifndef RK_PY_PY_H
#define RK_PY_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_1_19_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL rk_numpy_api
#ifndef RK_PY_IMPORT_ARRAY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

/* Everything the module owns; no globals, so every interpreter has its own. */
typedef struct RkPyState {
    PyObject *format_error, *device_error; /* rwkvtune.errors */
    PyTypeObject *model, *state, *logits, *sampler, *trainer, *tokenizer, *integer_tokenizer, *binidx, *binidx_writer, *jsonl_reader;
} RkPyState;

RkPyState *rk_py_state(PyObject *module);
RkPyState *rk_py_state_of(PyTypeObject *type); /* for methods of the module's own types */

/* Sets the Python exception for an error code, with the thread's message; returns NULL. Call with the GIL held. */
PyObject *rk_py_raise(RkPyState *st, int code);

/* Each adds its types and functions to the module; 0, or -1 with an exception set. */
int rk_py_add_model(PyObject *module);
int rk_py_add_trainer(PyObject *module);
int rk_py_add_tokenizer(PyObject *module);
int rk_py_add_dataset(PyObject *module);
int rk_py_add_jsonl(PyObject *module);
int rk_py_add_ops(PyObject *module);
int rk_py_add_weights(PyObject *module);

#endif
