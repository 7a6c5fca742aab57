#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char message[512];

int rk_fail(int code, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof message, fmt, ap);
    va_end(ap);
    return code;
}

const char *rk_error(void) { return message; }
