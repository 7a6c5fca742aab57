/* py_config.c - a configuration dict into RkConfig; every missing or mistyped entry is named. */
#include "py/py_config.h"

#include <string.h>

/* Borrowed entry, or NULL with an exception. */
static PyObject *entry(PyObject *dict, const char *key) {
    if (!PyDict_Check(dict)) return PyErr_SetString(PyExc_ValueError, "the configuration must be a dict"), NULL;
    PyObject *value = PyDict_GetItemString(dict, key);
    if (!value) PyErr_Format(PyExc_ValueError, "the configuration lacks '%s'", key);
    return value;
}

static int get_int(PyObject *dict, const char *key, int *out) {
    PyObject *value = entry(dict, key);
    if (!value) return -1;
    long n = PyLong_AsLong(value);
    if (n == -1 && PyErr_Occurred()) return PyErr_Format(PyExc_ValueError, "'%s' must be an integer, not %R", key, value), -1;
    if (n < 0 || n > 0x7fffffff) return PyErr_Format(PyExc_ValueError, "'%s' is out of range: %ld", key, n), -1;
    *out = (int)n;
    return 0;
}

static int get_mixer(PyObject *dict, const char *key, const char *suffix, RkPyState *st, const RkMixer **out) {
    PyObject *value = entry(dict, key);
    const char *kind = value ? PyUnicode_AsUTF8(value) : NULL;
    if (!kind) return -1;
    char name[64];
    snprintf(name, sizeof name, "%s%s", kind, suffix);
    *out = rk_mixer_find(name);
    if (!*out) rk_py_raise(st, RK_EUNSUP);
    return *out ? 0 : -1;
}

static int get_block(PyObject *dict, RkPyState *st, RkBlockConfig *b) {
    if (get_mixer(dict, "time_mix", "_tmix", st, &b->time_mix) < 0) return -1;
    if (get_mixer(dict, "channel_mix", "_cmix", st, &b->channel_mix) < 0) return -1;
    const struct { const char *key; int *out; } sizes[] = {{"head_size", &b->N}, {"dim_ffn", &b->F}, {"d_decay", &b->Dw},
                                                           {"d_aaa", &b->Da}, {"d_mv", &b->Dv}, {"d_gate", &b->Dg}, {"d_mix", &b->Dm}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (get_int(dict, sizes[i].key, sizes[i].out) < 0) return -1;
    if (get_int(dict, "n_kv_head", &b->G) < 0) return -1;
    return 0;
}

int rk_py_config(PyObject *dict, RkPyState *st, RkConfig *cfg) {
    memset(cfg, 0, sizeof *cfg);
    PyObject *layers = entry(dict, "layers");
    if (!layers || get_int(dict, "vocab_size", &cfg->V) < 0 || get_int(dict, "n_embd", &cfg->C) < 0 ||
        get_int(dict, "ln0", &cfg->ln0) < 0 || get_int(dict, "time_state", &cfg->time_state) < 0 ||
        get_int(dict, "head_size_divisor", &cfg->head_size_divisor) < 0)
        return -1;
    if (get_int(dict, "rope", &cfg->rope) < 0) return -1;
    Py_ssize_t n = PySequence_Size(layers);
    if (n < 0) return -1;
    if (n > RK_MAX_LAYERS) return PyErr_Format(PyExc_ValueError, "n_layer must be 1 to %d, not %zd", RK_MAX_LAYERS, n), -1;
    cfg->L = (int)n;
    for (int l = 0; l < cfg->L; l++) {
        PyObject *block = PySequence_GetItem(layers, l);
        int rc = block ? get_block(block, st, &cfg->block[l]) : -1;
        Py_XDECREF(block);
        if (rc < 0) return -1;
    }
    return 0;
}
