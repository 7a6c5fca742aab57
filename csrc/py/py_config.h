/* py_config.h - see py_config.c */
#ifndef RK_PY_PY_CONFIG_H
#define RK_PY_PY_CONFIG_H

#include "py/py.h"

#include "model/config.h"

/* 0, or -1 with an exception. The keys are those of rwkvtune/_rwkvcore.pyi. */
int rk_py_config(PyObject *dict, RkPyState *st, RkConfig *cfg);

#endif
