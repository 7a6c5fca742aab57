/* module.c - rwkvtune._rwkvcore: multi-phase initialisation, all state in the module, errors mapped to exceptions. */
#define RK_PY_IMPORT_ARRAY
#include "py/py.h"

#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/err.h"
#include "base/parallel.h"
#include "kernels/kernels.h"
#ifdef RK_HAVE_CUDA
#include "cuda/device.h"
#endif

RkPyState *rk_py_state(PyObject *module) { return PyModule_GetState(module); }

RkPyState *rk_py_state_of(PyTypeObject *type) {
    return PyType_GetModuleState(type); /* none of our types can be subclassed, so `type` is the type itself */
}

static PyObject *exception_of(RkPyState *st, int code) {
    switch (code) {
    case RK_ENOMEM: return PyExc_MemoryError;
    case RK_EIO: return PyExc_OSError;
    case RK_EFORMAT: return st->format_error;
    case RK_EUNSUP: return PyExc_NotImplementedError;
    case RK_EDEVICE: return st->device_error;
    default: return PyExc_ValueError;
    }
}

/* A message may quote bytes of a damaged file, so it need not be valid UTF-8. */
PyObject *rk_py_raise(RkPyState *st, int code) {
    const char *message = rk_error();
    PyObject *text = PyUnicode_DecodeUTF8(message, (Py_ssize_t)strlen(message), "backslashreplace");
    if (text) PyErr_SetObject(exception_of(st, code), text);
    Py_XDECREF(text);
    return NULL;
}

static PyObject *set_num_threads(PyObject *module, PyObject *arg) {
    (void)module;
    long n = PyLong_AsLong(arg);
    if (n == -1 && PyErr_Occurred()) return NULL;
    if (n < 1 || n > RK_MAX_THREADS)
        return PyErr_Format(PyExc_ValueError, "num_threads must be 1 to %d, not %ld", RK_MAX_THREADS, n);
    Py_BEGIN_ALLOW_THREADS
    rk_set_num_threads((int)n);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *get_num_threads(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyLong_FromLong(rk_num_threads());
}

static PyObject *select_isa(PyObject *module, PyObject *arg) {
    const char *name = PyUnicode_AsUTF8(arg);
    if (!name) return NULL;
    int rc = rk_kernels_select(name);
    if (rc) return rk_py_raise(rk_py_state(module), rc);
    return PyUnicode_FromString(rk_k.isa);
}

static PyObject *isa_available(void) {
    RkCpu cpu = rk_cpu_features();
    PyObject *list = Py_BuildValue("[s]", "scalar");
    const struct { int have; const char *name; } rows[] = {{cpu.avx2, "avx2"}, {cpu.avx512, "avx512"}, {cpu.avx512vnni, "avx512vnni"},
                                                      {cpu.amx, "amx"}, {cpu.neon, "neon"}};
    for (size_t i = 0; list && i < sizeof rows / sizeof *rows; i++) {
        PyObject *name = rows[i].have ? PyUnicode_FromString(rows[i].name) : NULL;
        if (name && PyList_Append(list, name) < 0) Py_CLEAR(list);
        Py_XDECREF(name);
    }
    return list;
}

static PyObject *info(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    int devices = 0, built = 0;
    const char *reason = "this build has no CUDA: nvcc was not found, or RWKVTUNE_CUDA=0 was set";
#ifdef RK_HAVE_CUDA
    built = 1;
    rk_cuda_device_count(&devices, &reason);
#endif
#ifdef __linux__
    int huge_pages = 1;
#else
    int huge_pages = 0;
#endif
    return Py_BuildValue("{s:s,s:N,s:i,s:i,s:N,s:s,s:N,s:i,s:s}", "isa", rk_k.isa, "isa_available", isa_available(),
                         "threads", rk_num_threads(), "cpus", rk_cpu_count(), "huge_pages",
                         PyBool_FromLong(huge_pages), "compiler", __VERSION__, "cuda_built", PyBool_FromLong(built),
                         "cuda_devices", devices, "cuda_reason", reason);
}

static PyObject *device_memory(PyObject *module, PyObject *arg) {
    int device = (int)PyLong_AsLong(arg), rc;
    if (PyErr_Occurred()) return NULL;
    size_t left = 0, total = 0;
#ifdef RK_HAVE_CUDA
    rc = rk_cuda_device_memory(device, &left, &total);
#else
    rc = rk_fail(RK_EDEVICE, "there is no device %d: this build has no CUDA", device);
#endif
    return rc ? rk_py_raise(rk_py_state(module), rc) : Py_BuildValue("nn", (Py_ssize_t)left, (Py_ssize_t)total);
}

static PyMethodDef functions[] = {
    {"info", info, METH_NOARGS, "What this build found and chose, as a dict."},
    {"device_memory", device_memory, METH_O, "(bytes that can still be had, all bytes) of a CUDA device, by its number."},
    {"set_num_threads", set_num_threads, METH_O, "Threads to use; results do not depend on it."},
    {"get_num_threads", get_num_threads, METH_NOARGS, "Threads in use."},
    {"select_isa", select_isa, METH_O, "Switches the cpu backend's instruction set; returns the one in use."},
    {NULL, NULL, 0, NULL},
};

static PyObject *import_name(const char *module, const char *name) {
    PyObject *m = PyImport_ImportModule(module), *value = m ? PyObject_GetAttrString(m, name) : NULL;
    Py_XDECREF(m);
    return value;
}

static int import_numpy(void) {
    import_array1(-1);
    return 0;
}

/* The pool takes RWKVTUNE_NUM_THREADS by itself; a value it would ignore is refused here, where it can be said. */
static int check_threads_setting(void) {
    const char *text = getenv("RWKVTUNE_NUM_THREADS");
    char *end = NULL;
    long n = text && *text ? strtol(text, &end, 10) : 1;
    if (n >= 1 && n <= RK_MAX_THREADS && !(end && *end)) return 0;
    PyErr_Format(PyExc_ValueError, "RWKVTUNE_NUM_THREADS is '%s'; it must be a number from 1 to %d", text, RK_MAX_THREADS);
    return -1;
}

static int module_exec(PyObject *module) {
    RkPyState *st = rk_py_state(module);
    if (check_threads_setting() < 0) return -1;
    if (import_numpy() < 0) return -1;
    st->format_error = import_name("rwkvtune.errors", "FormatError");
    st->device_error = import_name("rwkvtune.errors", "DeviceError");
    if (!st->format_error || !st->device_error) return -1;
    int rc = rk_kernels_init(); /* fails where RWKVTUNE_ISA asks for what there is not */
    if (rc) return rk_py_raise(st, rc), -1;
    if (rk_py_add_ops(module) < 0 || rk_py_add_weights(module) < 0) return -1;
    if (rk_py_add_model(module) < 0 || rk_py_add_trainer(module) < 0) return -1;
    if (rk_py_add_tokenizer(module) < 0 || rk_py_add_dataset(module) < 0) return -1;
    return rk_py_add_jsonl(module);
}

#define EACH_OBJECT(X)                                                                                  \
    X(format_error) X(device_error) X(model) X(state) X(logits) X(sampler) X(trainer) X(tokenizer) X(integer_tokenizer) \
    X(binidx) X(binidx_writer) X(jsonl_reader)

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    RkPyState *st = rk_py_state(module);
#define X(field) Py_VISIT(st->field);
    EACH_OBJECT(X)
#undef X
    return 0;
}

static int module_clear(PyObject *module) {
    RkPyState *st = rk_py_state(module);
#define X(field) Py_CLEAR(st->field);
    EACH_OBJECT(X)
#undef X
    return 0;
}

static void module_free(void *module) { module_clear(module); }

static PyModuleDef_Slot slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};
static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT, .m_name = "rwkvtune._rwkvcore", .m_doc = "The compiled core; see _rwkvcore.pyi.",
    .m_size = sizeof(RkPyState), .m_methods = functions, .m_slots = slots, .m_traverse = module_traverse,
    .m_clear = module_clear, .m_free = module_free};

PyMODINIT_FUNC PyInit__rwkvcore(void) { return PyModuleDef_Init(&module_def); }
