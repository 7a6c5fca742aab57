/* py_tokenizer.h - what the types Tokenizer and IntegerTokenizer begin with. */
#ifndef RK_PY_PY_TOKENIZER_H
#define RK_PY_PY_TOKENIZER_H

#include "py/py.h"

#include "data/tokenizer.h"

typedef struct RkPyEncoder {
    PyObject_HEAD
    RkEncodeFn encode;
    const void *tokenizer;
    int width; /* bytes per id of arrays: 2 while every id fits uint16 */
    int32_t vocab_size;
} RkPyEncoder;

#endif
