/* cpu.h - what this processor and this operating system let us use. */
#ifndef RK_BASE_CPU_H
#define RK_BASE_CPU_H

typedef struct RkCpu { int avx2, avx512, avx512vnni, amx, neon; /* amx: tiles of bf16, besides avx512vnni */ } RkCpu;

RkCpu rk_cpu_features(void); /* instruction present and its registers saved by the system, which is asked to where it wants to be */
int rk_cpu_count(void);      /* processors this process may run on */

#endif
