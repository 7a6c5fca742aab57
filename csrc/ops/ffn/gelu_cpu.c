#include "ops/backend_cpu.h"

RK_CPU_FUNCTION_OP(gelu, RkGelu)
