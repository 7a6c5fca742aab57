/* dispatch.c - which tier of kernels runs: a ladder from the best to plain C. */
#include "kernels/kernels.h"

#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/err.h"

RkKernels rk_k;

extern const RkKernels rk_kernels_scalar;
#if defined __x86_64__
extern const RkKernels rk_kernels_avx2, rk_kernels_avx512, rk_kernels_avx512vnni, rk_kernels_amx;
#elif defined __aarch64__
extern const RkKernels rk_kernels_neon;
#endif

enum { MAX_TIERS = 5 };
typedef struct Tier { const RkKernels *kernels; int usable; } Tier;

/* Best first; returns how many. */
static int tiers_list(Tier out[MAX_TIERS]) {
    int n = 0;
    RkCpu cpu = rk_cpu_features();
    (void)cpu;
#if defined RK_HAVE_AMX
    out[n++] = (Tier){&rk_kernels_amx, cpu.amx};
#endif
#if defined __x86_64__
    out[n++] = (Tier){&rk_kernels_avx512vnni, cpu.avx512vnni};
    out[n++] = (Tier){&rk_kernels_avx512, cpu.avx512};
    out[n++] = (Tier){&rk_kernels_avx2, cpu.avx2};
#elif defined __aarch64__
    out[n++] = (Tier){&rk_kernels_neon, cpu.neon};
#endif
    out[n++] = (Tier){&rk_kernels_scalar, 1};
    return n;
}

int rk_kernels_select(const char *isa) {
    Tier tiers[MAX_TIERS];
    int n = tiers_list(tiers);
    for (int i = 0; i < n; i++) {
        if (strcmp(tiers[i].kernels->isa, isa)) continue;
        RK_CHECK(tiers[i].usable, "instruction set '%s' is not available on this processor", isa);
        rk_k = *tiers[i].kernels;
        return RK_OK;
    }
    return rk_fail(RK_EINVAL, "instruction set '%s' is not in this build; it has scalar, avx2, avx512, avx512vnni, amx (x86-64) or scalar, neon (AArch64)",
                   isa);
}

int rk_kernels_init(void) {
    Tier tiers[MAX_TIERS];
    int best = 0;
    tiers_list(tiers);
    while (!tiers[best].usable) best++;
    rk_k = *tiers[best].kernels;
    const char *wanted = getenv("RWKVTUNE_ISA");
    return wanted && *wanted ? rk_kernels_select(wanted) : RK_OK;
}
