#include "base/cpu.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#ifdef __linux__
#include <sched.h>
#include <sys/syscall.h>
#endif

#ifdef __x86_64__
#include <cpuid.h>

/* The system sets these bits of XCR0 when it saves the registers on a task switch: 1-2 the XMM and YMM registers,
 * 5-7 the mask registers and both halves of ZMM., 17-18 the configuration
 * and data of tiles. Without them the instructions fault although cpuid lists them. */
enum { XCR0_YMM = 0x06, XCR0_ZMM = 0xe6, XCR0_TILES = 0x60000 };

static unsigned read_xcr0(void) {
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/* The 8 KiB of tiles are saved only for a process that has asked for them; it may ask again, and threads it has already are included. */
static int tiles_granted(void) {
#ifdef __linux__
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return !syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA);
#else
    return 0;
#endif
}

RkCpu rk_cpu_features(void) {
    enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 }; /* of register d; older compilers have no names for them */
    RkCpu cpu = {0};
    unsigned a, b, c, d;
    const unsigned need1 = bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C;
    const unsigned need7 = bit_AVX512F | bit_AVX512VL | bit_AVX512BW | bit_AVX512DQ;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & need1) != need1) return cpu;
    unsigned xcr0 = read_xcr0();
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return cpu;
    cpu.avx2 = (b & bit_AVX2) && (xcr0 & XCR0_YMM) == XCR0_YMM;
    cpu.avx512 = cpu.avx2 && (b & need7) == need7 && (xcr0 & XCR0_ZMM) == XCR0_ZMM;
    cpu.avx512vnni = cpu.avx512 && (c & bit_AVX512VNNI);
    cpu.amx = cpu.avx512vnni && (d & AMX_BF16) && (d & AMX_TILE) && (xcr0 & XCR0_TILES) == XCR0_TILES && tiles_granted();
    return cpu;
}

#else

RkCpu rk_cpu_features(void) {
    RkCpu cpu = {0};
#ifdef __aarch64__
    cpu.neon = 1; /* part of the base instruction set */
#endif
    return cpu;
}

#endif

static int processors_allowed(void) {
#ifdef __linux__
    cpu_set_t set;
    if (!sched_getaffinity(0, sizeof set, &set) && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

#ifdef __linux__

/* One cpu.max file, "quota period" in microseconds or "max period": processors rounded up, or `limit` if it says no
 * less. */
static int apply_quota(const char *path, int limit) {
    FILE *f = fopen(path, "r");
    if (!f) return limit;
    long long quota, period;
    int n = fscanf(f, "%lld %lld", &quota, &period);
    fclose(f);
    if (n != 2 || quota <= 0 || period <= 0) return limit;
    long long processors = (quota + period - 1) / period;
    return processors < limit ? (int)processors : limit;
}

/* The tightest quota of this process's control group (version 2) and of the groups above it. */
static int apply_group_quotas(int limit) {
    char line[2048], path[2200];
    line[0] = 0;
    FILE *f = fopen("/proc/self/cgroup", "r");
    if (!f) return limit;
    while (fgets(line, sizeof line, f) && strncmp(line, "0::", 3)) line[0] = 0;
    fclose(f);
    line[strcspn(line, "\n")] = 0;
    for (char *group = line[0] ? line + 3 : line, *slash = group;; *slash = 0) {
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", group);
        limit = apply_quota(path, limit);
        slash = strrchr(group, '/');
        if (!slash) return limit;
    }
}

#endif

int rk_cpu_count(void) {
    int n = processors_allowed();
#ifdef __linux__
    n = apply_group_quotas(n);
#endif
    return n;
}
