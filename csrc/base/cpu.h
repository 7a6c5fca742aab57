/* cpu.h - what this processor and this operating system let us use. */
#ifndef RK_BASE_CPU_H
#define RK_BASE_CPU_H

typedef struct RkCpu { int avx2, avx512, avx512vnni, neon; } RkCpu;

RkCpu rk_cpu_features(void); /* instruction present and its registers saved by the system */
int rk_cpu_count(void);      /* processors this process may run on */

#endif
