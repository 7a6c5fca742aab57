/* base/: arena, half floats, random numbers, matrix products, files, errors, processor features. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/cpu.h"
#include "base/err.h"
#include "base/file.h"
#include "base/half.h"
#include "base/parallel.h"
#include "base/quant.h"
#include "base/rng.h"
#include "test.h"

/* ---- arena ---- */

static void take_three(RkArena *a, RkTensor t[3]) {
    t[0] = rk_arena_take(a, RK_F32, (int32_t[4]){3, 5, 0, 0});
    t[1] = rk_arena_take(a, RK_BF16, (int32_t[4]){7, 0, 0, 0});
    t[2] = rk_arena_take(a, RK_F64, (int32_t[4]){2, 3, 4, 5});
}

static void test_arena(void) {
    RkArena measured = {NULL, 0, 0};
    RkTensor t[3];
    take_three(&measured, t);
    CHECK(!t[0].p && !t[1].p && !t[2].p);
    CHECK(measured.used == 64 + 64 + 960);

    RkArena placed = {rk_pages_alloc(measured.used), 0, measured.used};
    if (!CHECK(placed.base != NULL)) return;
    take_three(&placed, t);
    CHECK(placed.used == measured.used);
    for (int i = 0; i < 3; i++) {
        CHECK((uintptr_t)t[i].p % 64 == 0);
        CHECK((char *)t[i].p >= placed.base);
        CHECK((char *)t[i].p + rk_numel(t[i]) * rk_dtype_size(t[i].dtype) <= placed.base + placed.capacity);
        if (i) CHECK((char *)t[i].p >= (char *)t[i - 1].p + rk_numel(t[i - 1]) * rk_dtype_size(t[i - 1].dtype));
    }
    CHECK(rk_rank(t[2]) == 4 && rk_cols(t[2]) == 5 && rk_rows(t[2]) == 24);
    int all_zero = 1;
    for (size_t i = 0; i < placed.capacity; i++) all_zero &= placed.base[i] == 0;
    CHECK(all_zero);
    CHECK(rk_arena_take(&placed, RK_F32, (int32_t[4]){1, 0, 0, 0}).p == NULL); /* full */
    rk_pages_free(placed.base, placed.capacity);
}

/* ---- half floats ---- */

/* The value an f16 pattern stands for, by the definition of the format. */
static double f16_value(uint16_t h) {
    int exponent = h >> 10 & 31, fraction = h & 1023;
    double size = exponent == 31 ? (fraction ? NAN : INFINITY)
                  : exponent     ? ldexp(1024 + fraction, exponent - 25)
                                 : ldexp(fraction, -24);
    return h & 0x8000 ? -size : size;
}

static void test_half_round_trips(void) {
    int wrong_value = 0, wrong_f16 = 0, wrong_bf16 = 0;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = rk_f16_to_f32((uint16_t)h), b = rk_bf16_to_f32((uint16_t)h);
        double want = f16_value((uint16_t)h);
        if (isnan(want)) {
            wrong_value += !isnan(f);
            wrong_f16 += !isnan(rk_f16_to_f32(rk_f32_to_f16(f)));
        } else {
            wrong_value += f != want || !signbit(f) != !signbit(want);
            wrong_f16 += rk_f32_to_f16(f) != h;
        }
        if (isnan(b)) wrong_bf16 += !isnan(rk_bf16_to_f32(rk_f32_to_bf16(b)));
        else wrong_bf16 += rk_f32_to_bf16(b) != h;
    }
    CHECK(wrong_value == 0);
    CHECK(wrong_f16 == 0);
    CHECK(wrong_bf16 == 0);
}

/* Halfway between two neighbours rounds to the even one, a hair to either side rounds to the nearer. */
static void test_half_rounding(void) {
    int wrong = 0;
    for (uint32_t h = 0; h < 0x7bff; h++) {
        float middle = (float)((f16_value((uint16_t)h) + f16_value((uint16_t)(h + 1))) / 2);
        wrong += rk_f32_to_f16(middle) != (h & 1 ? h + 1 : h);
        wrong += rk_f32_to_f16(nextafterf(middle, 0)) != h;
        wrong += rk_f32_to_f16(nextafterf(middle, INFINITY)) != h + 1;
    }
    for (uint32_t h = 0; h < 0x7f7f; h++) {
        uint32_t middle = h << 16 | 0x8000;
        wrong += rk_f32_to_bf16(rk_float_of(middle)) != (h & 1 ? h + 1 : h);
        wrong += rk_f32_to_bf16(rk_float_of(middle - 1)) != h;
        wrong += rk_f32_to_bf16(rk_float_of(middle + 1)) != h + 1;
    }
    CHECK(wrong == 0);
    CHECK(rk_f32_to_f16(65520.0f) == 0x7c00); /* halfway past the largest number is infinity */
    CHECK(rk_f32_to_f16(nextafterf(65520.0f, 0)) == 0x7bff);
    CHECK(rk_f32_to_bf16(rk_float_of(0x7f7fffff)) == 0x7f80);
    CHECK(rk_f32_to_f16(-1e30f) == 0xfc00);
}

/* ---- formats of weights ---- */

/* Matrices of every format in memory of exactly their size, one row of which has a number that does not fit. */
static void test_formats(void) {
    enum { ROWS = 3, COLS = 2 * RK_QUANT_BLOCK };
    static const double worst[] = {[RK_F32] = 0, [RK_BF16] = 1.0 / 256, [RK_F16] = 1.0 / 2048, [RK_Q8] = 1.0 / 254 + 1e-3, [RK_Q4] = 1.0 / 7};
    const int formats[] = {RK_F32, RK_BF16, RK_F16, RK_Q8, RK_Q4};
    float *w = malloc(sizeof(float) * ROWS * COLS), *back = malloc(sizeof(float) * ROWS * COLS);
    RkTensor from = {w, RK_F32, {ROWS, COLS}}, again = {back, RK_F32, {ROWS, COLS}};
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        RkTensor to = {NULL, formats[f], {ROWS, COLS}};
        to.p = malloc(rk_bytes(to));
        for (int i = 0; i < ROWS * COLS; i++) w[i] = (float)sin(1.7 * i);
        CHECK(rk_format_find(rk_format_name(formats[f])) == formats[f]);
        CHECK(rk_convert(from, to) == RK_OK && rk_convert(to, again) == RK_OK);
        for (int i = 0; i < ROWS * COLS; i++) CHECK_NEAR(back[i], w[i], worst[formats[f]]);
        w[COLS + 5] = 1e30f;
        CHECK(rk_convert(from, to) == (formats[f] == RK_F32 || formats[f] == RK_BF16 ? RK_OK : RK_EINVAL));
        free(to.p);
    }
    CHECK(rk_format_find("int7") == -1 && rk_format_find("fp64") == -1);
    free(w);
    free(back);
}

/* ---- random numbers ---- */

/* The known answers that the authors of Philox publish with it (philox4x32, 10 rounds); the uniform holds the upper
 * 53 bits of the first two words. */
static void test_philox_known_answers(void) {
    struct { uint64_t counter_low, counter_high, key; uint32_t word0, word1; } known[] = {
        {0, 0, 0, 0x6627e8d5, 0xe169c58d},
        {~(uint64_t)0, ~(uint64_t)0, ~(uint64_t)0, 0x408f276d, 0x41c83b0e},
        {0x85a308d3243f6a88, 0x0370734413198a2e, 0x299f31d0a4093822, 0xd16cfe09, 0x94fdcceb},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        RkRng r = {known[i].key, known[i].counter_high};
        uint64_t bits = (uint64_t)known[i].word1 << 32 | known[i].word0;
        CHECK(rk_rng_uniform(r, known[i].counter_low) == (double)(bits >> 11) * 0x1p-53);
    }
}

static void test_rng_moments(void) {
    enum { N = 200000 };
    RkRng r = rk_rng(42, "emb.weight");
    double sum = 0, square = 0, cube = 0, fourth = 0, uniform = 0, low = 1, high = 0;
    for (uint64_t i = 0; i < N; i++) {
        double z = rk_rng_normal(r, i), u = rk_rng_uniform(r, i);
        sum += z, square += z * z, cube += z * z * z, fourth += z * z * z * z, uniform += u;
        low = u < low ? u : low;
        high = u > high ? u : high;
    }
    /* five standard errors: the k-th moment of a normal has variance 1, 2, 15, 96 */
    double root = sqrt(N);
    CHECK_NEAR(sum / N, 0, 5 * 1 / root);
    CHECK_NEAR(square / N, 1, 5 * sqrt(2) / root);
    CHECK_NEAR(cube / N, 0, 5 * sqrt(15) / root);
    CHECK_NEAR(fourth / N, 3, 5 * sqrt(96) / root);
    CHECK_NEAR(uniform / N, 0.5, 5 * sqrt(1.0 / 12) / root);
    CHECK(low >= 0 && low < 1e-3 && high < 1 && high > 1 - 1e-3);
}

static void test_rng_streams(void) {
    RkRng a = rk_rng(1, "a"), b = rk_rng(1, "b"), c = rk_rng(2, "a");
    CHECK(rk_rng_uniform(a, 7) == rk_rng_uniform(rk_rng(1, "a"), 7));
    CHECK(rk_rng_uniform(a, 7) != rk_rng_uniform(b, 7));
    CHECK(rk_rng_uniform(a, 7) != rk_rng_uniform(c, 7));
    CHECK(rk_rng_uniform(a, 7) != rk_rng_uniform(a, 8));
    CHECK(rk_rng_uniform(a, 7) != rk_rng_uniform(a, 7 + ((uint64_t)1 << 32)));
}

/* ---- files and errors ---- */

static void test_files(void) {
    char path[] = "/tmp/rwkvtune-test-XXXXXX";
    int fd = mkstemp(path);
    if (!CHECK(fd >= 0)) return;
    RkFile f = {"x", 1};
    CHECK(rk_file_map(path, &f) == RK_OK && f.p == NULL && f.bytes == 0);
    CHECK(write(fd, "receptance", 10) == 10);
    CHECK(rk_file_map(path, &f) == RK_OK);
    CHECK(f.bytes == 10 && !memcmp(f.p, "receptance", 10));
    rk_file_unmap(&f);
    CHECK(f.p == NULL && f.bytes == 0);
    rk_file_unmap(&f); /* harmless */
    close(fd);
    unlink(path);

    CHECK(rk_file_map(path, &f) == RK_EIO && f.p == NULL);
    CHECK(strstr(rk_error(), path) && strstr(rk_error(), "No such file"));
    CHECK(rk_file_map("/tmp", &f) == RK_EIO);
    CHECK(strstr(rk_error(), "/tmp") && strstr(rk_error(), "not a regular file"));
}

static int checks_positive(int n) {
    RK_CHECK(n > 0, "n must be positive, got %d", n);
    return RK_OK;
}

static int tries(int n) {
    RK_TRY(checks_positive(n));
    return 7;
}

static void test_errors(void) {
    CHECK(tries(1) == 7);
    CHECK(tries(-3) == RK_EINVAL && !strcmp(rk_error(), "n must be positive, got -3"));
    char longer[2000];
    memset(longer, 'a', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    CHECK(rk_fail(RK_EFORMAT, "%s", longer) == RK_EFORMAT && strlen(rk_error()) > 400);
}

static void test_cpu(void) {
    RkCpu cpu = rk_cpu_features();
    CHECK(!cpu.avx512 || cpu.avx2);
    CHECK(!(cpu.neon && cpu.avx2));
#ifdef __x86_64__
    __builtin_cpu_init(); /* the compiler's own probe, written independently */
    CHECK(cpu.avx2 == (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")));
    CHECK(cpu.avx512vnni == (cpu.avx512 && __builtin_cpu_supports("avx512vnni")));
    CHECK(!cpu.amx || cpu.avx512vnni);
    CHECK(cpu.amx == rk_cpu_features().amx); /* asking the system again changes nothing */
    CHECK(cpu.avx512 == (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")));
#endif
    CHECK(rk_cpu_count() >= 1);
}

int main(void) {
    test_arena();
    test_half_round_trips();
    test_half_rounding();
    test_formats();
    test_philox_known_answers();
    test_rng_moments();
    test_rng_streams();
    test_files();
    test_errors();
    test_cpu();
    return test_summary();
}
