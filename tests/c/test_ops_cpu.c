/* test_ops_cpu.c - every op of the cpu backend, on every instruction set this machine has, against the reference backend.
 *
 * A case names the fields of an op's argument struct with their shapes and roles. It runs forward and, where there is one,
 * backward on ref64 (the truth), ref in float32 (the measure) and cpu, on the same float32 inputs, with every destination
 * filled with NaN before, guard words around every buffer and buffers off their natural alignment. Then:
 *   - cpu is at most TWICE as far from the truth as the textbook loops in float32, plus a few roundings of the result;
 *   - inputs are untouched, guards are whole, 1, 2 and 3 threads give the same bits;
 *   - a destination that may share memory with an input gives the same bits when it does. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/quant.h"
#include "base/parallel.h"
#include "kernels/kernels.h"
#include "ops/ops.h"

enum { MAX_SLOTS = 40, GUARD = 64 };
#define EPS32 5.9604644775390625e-8 /* 2^-24, half a unit in the last place of 1 */
#define TWICE 2.0

static int passed, failed;
static void check(int ok, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void check(int ok, const char *fmt, ...) {
    if (ok) { passed++; return; }
    failed++;
    va_list args;
    va_start(args, fmt);
    printf("FAILED: ");
    vprintf(fmt, args);
    printf("\n");
    va_end(args);
}

static uint64_t random_state = 88172645463325252u;
static double uniform(double lo, double hi) {
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return lo + (hi - lo) * (double)(random_state >> 11) * 0x1p-53;
}

/* ---- cases ---- */

typedef enum { IN, WRITTEN, ADDED, SCRATCH } Role;
typedef struct Slot { const char *name; int z; Role role; int32_t d[4]; int f64; size_t n; float *start; } Slot;
typedef struct Alias { const char *out, *in; int forward_only; } Alias;
typedef struct Case {
    const char *op;
    char label[80];
    Slot slots[MAX_SLOTS];
    int n_slots, ints, reals, n_aliases;
    struct { const char *name; double value; } numbers[8];
    int n_numbers;
    int32_t *ids;
    Alias aliases[2];
} Case;

static Case new_case(const char *op, const char *label) {
    Case c = {.op = op};
    snprintf(c.label, sizeof c.label, "%s %s", op, label);
    return c;
}

/* Adds a tensor; inputs and accumulated destinations start with uniform numbers of [lo, hi). */
static Slot *slot(Case *c, const char *name, Role role, double lo, double hi, int d0, int d1, int d2, int d3) {
    Slot *s = &c->slots[c->n_slots++];
    *s = (Slot){.name = name, .role = role, .d = {d0, d1, d2, d3}, .n = 1};
    for (int i = 0; i < 4; i++)
        if (s->d[i]) s->n *= (size_t)s->d[i];
    s->start = malloc(s->n * sizeof *s->start);
    for (size_t i = 0; i < s->n; i++) s->start[i] = (float)uniform(lo, hi);
    return s;
}
static void in(Case *c, const char *name, int a, int b, int d, int e) { slot(c, name, IN, -1, 1, a, b, d, e); }
static void out(Case *c, const char *name, int a, int b, int d, int e) { slot(c, name, WRITTEN, 0, 1, a, b, d, e); }
static void sum(Case *c, const char *name, int a, int b, int d, int e) { slot(c, name, ADDED, -1, 1, a, b, d, e); }
static void number(Case *c, const char *name, double value) { c->numbers[c->n_numbers].name = name, c->numbers[c->n_numbers++].value = value; }
static void alias(Case *c, const char *o, const char *i, int forward_only) { c->aliases[c->n_aliases++] = (Alias){o, i, forward_only}; }

static void free_case(Case *c) {
    for (int i = 0; i < c->n_slots; i++) free(c->slots[i].start);
    free(c->ids);
}

/* ---- running one ---- */

typedef struct Buffer { char *base; void *p; size_t bytes; } Buffer;

/* `shift` bytes past a 64-byte boundary, between guards. */
static Buffer buffer_new(size_t bytes, size_t shift) {
    size_t total = (bytes + shift + 2 * GUARD + 63) / 64 * 64;
    Buffer b = {aligned_alloc(64, total), NULL, bytes};
    memset(b.base, 0x5a, total);
    b.p = b.base + GUARD + shift;
    return b;
}
static int buffer_whole(const Buffer *b) {
    const unsigned char *before = (const unsigned char *)b->p - GUARD, *after = (const unsigned char *)b->p + b->bytes;
    for (int i = 0; i < GUARD; i++)
        if (before[i] != 0x5a || (after + i < (const unsigned char *)b->base + b->bytes + 2 * GUARD && after[i] != 0x5a)) return 0;
    return 1;
}

typedef struct Result { Buffer slots[MAX_SLOTS]; } Result;

static const RkOpInfo *op_of(const char *name) {
    for (int i = 0; i < rk_op_count; i++)
        if (!strcmp(rk_op_info[i].name, name)) return &rk_op_info[i];
    abort();
}
static const RkField *field_of(const RkOpInfo *op, const char *name) {
    for (int i = 0; i < op->n_fields; i++)
        if (!strcmp(op->fields[i].name, name)) return &op->fields[i];
    printf("no field %s.%s\n", op->name, name);
    abort();
}

static int slot_is64(const Slot *s, const RkBackend *be) { return s->f64 || be->dtype == RK_F64; }
static double value_at(const Result *r, const Case *c, const RkBackend *be, int s, size_t i) {
    return slot_is64(&c->slots[s], be) ? ((double *)r->slots[s].p)[i] : (double)((float *)r->slots[s].p)[i];
}

static void slot_fill(const Slot *s, Buffer *b, int is64) {
    int given = s->role == IN || s->role == ADDED;
    for (size_t i = 0; i < s->n; i++)
        if (is64) ((double *)b->p)[i] = given ? (double)s->start[i] : NAN;
        else ((float *)b->p)[i] = given ? s->start[i] : NAN;
}

/* Runs the case; with an alias its destination is the memory of its input. */
static Result run_case(const Case *c, const RkBackend *be, size_t shift, const Alias *with) {
    Result r = {{{0}}};
    const RkOpInfo *op = op_of(c->op);
    union { char bytes[4096]; double align; } args;
    memset(&args, 0, sizeof args);
    for (int i = 0; i < c->n_slots; i++) {
        const Slot *s = &c->slots[i];
        int is64 = slot_is64(s, be);
        r.slots[i] = buffer_new(s->n * (is64 ? 8 : 4), is64 ? shift * 2 : shift);
        slot_fill(s, &r.slots[i], is64);
    }
    for (int i = 0; i < c->n_slots; i++) {
        const Slot *s = &c->slots[i];
        const RkField *f = field_of(op, s->name);
        int at = i;
        for (int k = 0; with && k < c->n_slots; k++)
            if (!strcmp(s->name, with->out) && !strcmp(c->slots[k].name, with->in)) at = k;
        RkTensor t = {r.slots[at].p, slot_is64(s, be) ? RK_F64 : RK_F32, {s->d[0], s->d[1], s->d[2], s->d[3]}};
        memcpy(args.bytes + f->offset + (size_t)s->z * sizeof t, &t, sizeof t);
    }
    for (int i = 0; i < c->n_numbers; i++) {
        const RkField *f = field_of(op, c->numbers[i].name);
        int whole = (int)c->numbers[i].value;
        if (f->kind == RK_FIELD_I) memcpy(args.bytes + f->offset, &whole, sizeof whole);
        else memcpy(args.bytes + f->offset, &c->numbers[i].value, sizeof(double));
    }
    for (int i = 0; c->ids && i < op->n_fields; i++)
        if (op->fields[i].kind == RK_FIELD_IDS) memcpy(args.bytes + op->fields[i].offset, &c->ids, sizeof c->ids);
    RkOpFn fwd = rk_op_fn(be, op->fwd_offset), bwd = rk_op_fn(be, op->bwd_offset);
    check(fwd(args.bytes) == RK_OK, "%s: forward: %s", c->label, rk_error());
    if (bwd && !(with && with->forward_only)) check(bwd(args.bytes) == RK_OK, "%s: backward: %s", c->label, rk_error());
    return r;
}
static void free_result(const Case *c, Result *r) {
    for (int i = 0; i < c->n_slots; i++) free(r->slots[i].base);
}

/* ---- comparing ---- */

static void compare_values(const Case *c, const Result *cpu, const Result *ref32, const Result *ref64) {
    for (int s = 0; s < c->n_slots; s++) {
        if (c->slots[s].role == SCRATCH || c->slots[s].role == IN) continue;
        double worst = 0, measure = 0, largest = 0;
        for (size_t i = 0; i < c->slots[s].n; i++) {
            double truth = value_at(ref64, c, &rk_backend_ref_f64, s, i);
            double error = fabs(value_at(cpu, c, &rk_backend_cpu, s, i) - truth);
            if (!(error <= worst)) worst = error; /* NaN counts as the worst */
            measure = fmax(measure, fabs(value_at(ref32, c, &rk_backend_ref_f32, s, i) - truth));
            largest = fmax(largest, fabs(truth));
        }
        double bound = TWICE * measure + 8 * EPS32 * largest;
        check(worst <= bound, "%s [%s]: %s is %.3g off, bound %.3g (float32 reference %.3g, largest value %.3g)", c->label, rk_k.isa,
              c->slots[s].name, worst, bound, measure, largest);
    }
}

static void compare_untouched(const Case *c, const Result *r) {
    for (int s = 0; s < c->n_slots; s++) {
        check(buffer_whole(&r->slots[s]), "%s [%s]: wrote outside %s", c->label, rk_k.isa, c->slots[s].name);
        if (c->slots[s].role == IN)
            check(!memcmp(r->slots[s].p, c->slots[s].start, r->slots[s].bytes), "%s [%s]: changed its input %s", c->label, rk_k.isa,
                  c->slots[s].name);
    }
}

static void compare_bits(const Case *c, const Result *a, const Result *b, const char *only, const char *what) {
    for (int s = 0; s < c->n_slots; s++)
        if (c->slots[s].role != SCRATCH && (!only || !strcmp(only, c->slots[s].name)))
            check(!memcmp(a->slots[s].p, b->slots[s].p, a->slots[s].bytes), "%s [%s]: bits of %s change with %s", c->label, rk_k.isa,
                  c->slots[s].name, what);
}

static void compare_alias(const Case *c, const Alias *with, const Result *separate) {
    Result r = run_case(c, &rk_backend_cpu, 0, with);
    int o = 0, i = 0;
    for (int s = 0; s < c->n_slots; s++) {
        if (!strcmp(c->slots[s].name, with->out)) o = s;
        if (!strcmp(c->slots[s].name, with->in)) i = s;
    }
    check(!memcmp(r.slots[i].p, separate->slots[o].p, r.slots[i].bytes), "%s [%s]: %s in the memory of %s differs", c->label, rk_k.isa,
          with->out, with->in);
    free_result(c, &r);
}

static const char *const ISAS[] = {"scalar", "avx2", "avx512", "avx512vnni", "amx", "neon"};

static void test_case(Case *c) {
    rk_set_num_threads(1);
    Result ref64 = run_case(c, &rk_backend_ref_f64, 0, NULL), ref32 = run_case(c, &rk_backend_ref_f32, 0, NULL);
    for (size_t k = 0; k < sizeof ISAS / sizeof *ISAS; k++) {
        if (rk_kernels_select(ISAS[k])) continue;
        rk_set_num_threads(1);
        Result one = run_case(c, &rk_backend_cpu, 0, NULL);
        compare_values(c, &one, &ref32, &ref64);
        compare_untouched(c, &one);
        for (int threads = 2; threads <= 3; threads++) {
            rk_set_num_threads(threads);
            Result many = run_case(c, &rk_backend_cpu, 0, NULL);
            compare_bits(c, &one, &many, NULL, "the number of threads");
            free_result(c, &many);
        }
        Result shifted = run_case(c, &rk_backend_cpu, 4, NULL);
        if (strcmp(c->op, "linear") && strcmp(c->op, "lowrank")) compare_bits(c, &one, &shifted, NULL, "alignment");
        else compare_values(c, &shifted, &ref32, &ref64); /* BLAS may take another path */
        compare_untouched(c, &shifted);
        for (int a = 0; a < c->n_aliases; a++) compare_alias(c, &c->aliases[a], &one);
        free_result(c, &shifted);
        free_result(c, &one);
    }
    free_result(c, &ref32);
    free_result(c, &ref64);
    free_case(c);
}

/* ---- the ops ---- */

typedef struct Size { int B, T, H, N; } Size;
static char *size_label(Size s) {
    static char text[64];
    snprintf(text, sizeof text, "B%d T%d H%d N%d", s.B, s.T, s.H, s.N);
    return text;
}

static void test_embed(Size s) {
    int R = s.B * s.T, C = s.H * s.N, V = 7;
    Case c = new_case("embed", size_label(s));
    c.ids = malloc((size_t)R * sizeof *c.ids);
    for (int r = 0; r < R; r++) c.ids[r] = (int32_t)uniform(0, V);
    in(&c, "w", V, C, 0, 0), out(&c, "y", R, C, 0, 0), in(&c, "dy", R, C, 0, 0), sum(&c, "dw", V, C, 0, 0);
    test_case(&c);
}

static void test_add(Size s) {
    Case c = new_case("add", size_label(s));
    in(&c, "a", s.B * s.T, s.H * s.N, 0, 0), in(&c, "b", s.B * s.T, s.H * s.N, 0, 0), out(&c, "y", s.B * s.T, s.H * s.N, 0, 0);
    alias(&c, "y", "a", 0), alias(&c, "y", "b", 0);
    test_case(&c);
}

static void test_relu2(Size s) {
    Case c = new_case("relu2", size_label(s));
    const char *const names[] = {"x", "dy"}, *const outs[] = {"y", "dx"};
    for (int i = 0; i < 2; i++) in(&c, names[i], s.B * s.T, s.H * s.N, 0, 0), out(&c, outs[i], s.B * s.T, s.H * s.N, 0, 0);
    alias(&c, "dx", "dy", 0), alias(&c, "y", "x", 1);
    test_case(&c);
}

/* Columns enough for some x to be positive: Phi's left tail is good to 2^-24, not to the same share of the tail. */
static void test_gelu(Size s) {
    Case c = new_case("gelu", size_label(s));
    const char *const names[] = {"x", "dy"}, *const outs[] = {"y", "dx"};
    int columns = s.H * s.N + 16;
    for (int i = 0; i < 2; i++) slot(&c, names[i], IN, -6, 6, s.B * s.T, columns, 0, 0), out(&c, outs[i], s.B * s.T, columns, 0, 0);
    alias(&c, "dx", "dy", 0), alias(&c, "y", "x", 1);
    test_case(&c);
}

static void test_rope(Size s, int past) {
    Case c = new_case("rope", size_label(s));
    const char *const names[] = {"x", "dy"}, *const outs[] = {"y", "dx"};
    for (int i = 0; i < 2; i++) in(&c, names[i], s.B, s.T, s.H, s.N), out(&c, outs[i], s.B, s.T, s.H, s.N);
    number(&c, "past", past), alias(&c, "dx", "dy", 0), alias(&c, "y", "x", 1);
    test_case(&c);
}

/* H heads of queries on G heads of keys, `past` tokens of them from before. A query that sees one key only has a gradient that is
 * nothing but rounding, which the textbook's loops happen to cancel exactly. */
static void test_attention(Size s, int G, int past) {
    Case c = new_case("attention", "");
    snprintf(c.label, sizeof c.label, "attention B%d T%d H%d G%d N%d past%d", s.B, s.T, s.H, G, s.N, past);
    slot(&c, "q", IN, -3, 3, s.B, s.T, s.H, s.N), in(&c, "k", s.B, s.T, G, s.N), in(&c, "v", s.B, s.T, G, s.N);
    out(&c, "y", s.B, s.T, s.H, s.N), out(&c, "lse", s.B, s.H, s.T, 0), in(&c, "dy", s.B, s.T, s.H, s.N);
    out(&c, "dq", s.B, s.T, s.H, s.N), out(&c, "dk", s.B, s.T, G, s.N), out(&c, "dv", s.B, s.T, G, s.N);
    if (past) {
        in(&c, "k_past", s.B, past, G, s.N), in(&c, "v_past", s.B, past, G, s.N);
        in(&c, "dk_all", s.B, past + s.T, G, s.N), in(&c, "dv_all", s.B, past + s.T, G, s.N);
        out(&c, "k_all", s.B, past + s.T, G, s.N), out(&c, "v_all", s.B, past + s.T, G, s.N);
        out(&c, "dk_past", s.B, past, G, s.N), out(&c, "dv_past", s.B, past, G, s.N);
    }
    number(&c, "past", past);
    test_case(&c);
}

static void test_layernorm(Size s) {
    int R = s.B * s.T, C = s.H * s.N;
    for (int with = 0; C > 1 && with < 2; with++) { /* the gradient through one column is nothing but rounding */
        Case c = new_case("layernorm", size_label(s));
        slot(&c, "x", IN, 2, 5, R, C, 0, 0); /* off centre */
        in(&c, "w", C, 0, 0, 0), in(&c, "b", C, 0, 0, 0), out(&c, "y", R, C, 0, 0), out(&c, "stats", R, 2, 0, 0);
        in(&c, "dy", R, C, 0, 0), out(&c, "dx", R, C, 0, 0), sum(&c, "dw", C, 0, 0, 0), sum(&c, "db", C, 0, 0, 0);
        number(&c, "eps", 1e-5);
        if (with) in(&c, "dres", R, C, 0, 0), alias(&c, "dx", "dres", 0);
        test_case(&c);
    }
}

static void test_linear(int R, int K, int M, int with_dx, int with_dw) {
    char label[64];
    snprintf(label, sizeof label, "R%d K%d M%d", R, K, M);
    Case c = new_case("linear", label);
    in(&c, "x", R, K, 0, 0), in(&c, "w", M, K, 0, 0), out(&c, "y", R, M, 0, 0), in(&c, "dy", R, M, 0, 0);
    if (with_dx) out(&c, "dx", R, K, 0, 0), alias(&c, "dx", "x", 0);
    if (with_dw) sum(&c, "dw", M, K, 0, 0);
    test_case(&c);
}

static void test_lowrank(int R, int C, int D, int O, int act, int bias) {
    char label[64];
    snprintf(label, sizeof label, "R%d C%d D%d O%d act%d bias%d", R, C, D, O, act, bias);
    Case c = new_case("lowrank", label);
    in(&c, "x", R, C, 0, 0), in(&c, "m1", C, D, 0, 0), in(&c, "m2", D, O, 0, 0), out(&c, "h", R, D, 0, 0), out(&c, "y", R, O, 0, 0);
    in(&c, "dy", R, O, 0, 0), slot(&c, "dh", SCRATCH, 0, 1, R, D, 0, 0), out(&c, "dx", R, C, 0, 0);
    sum(&c, "dm1", C, D, 0, 0), sum(&c, "dm2", D, O, 0, 0);
    if (bias) in(&c, "bias", O, 0, 0, 0), sum(&c, "dbias", O, 0, 0, 0);
    number(&c, "act", act), alias(&c, "dx", "x", 0);
    test_case(&c);
}

static void test_shift_lerp(Size s, int n, int carried, int keep) {
    int C = s.H * s.N;
    Case c = new_case("shift_lerp", size_label(s));
    in(&c, "x", s.B, s.T, C, 0), out(&c, "dx", s.B, s.T, C, 0), number(&c, "n", n), number(&c, "keep", keep);
    for (int z = 0; z < n; z++) {
        slot(&c, "mu", IN, 0, 1, C, 0, 0, 0)->z = z, slot(&c, "y", WRITTEN, 0, 1, s.B, s.T, C, 0)->z = z;
        slot(&c, "dy", IN, -1, 1, s.B, s.T, C, 0)->z = z, slot(&c, "dmu", ADDED, -1, 1, C, 0, 0, 0)->z = z;
    }
    if (carried) {
        in(&c, "prev", s.B, C, 0, 0), in(&c, "dlast", s.B, C, 0, 0), out(&c, "dprev", s.B, C, 0, 0), out(&c, "last", s.B, C, 0, 0);
        alias(&c, "last", "prev", 1);
    }
    test_case(&c);
}

static void test_ddlerp(Size s, int n, int D, int carried) {
    int C = s.H * s.N;
    double unit = 1.7 / sqrt(C);
    Case c = new_case("ddlerp", size_label(s));
    in(&c, "x", s.B, s.T, C, 0), out(&c, "dx", s.B, s.T, C, 0), slot(&c, "mu_x", IN, 0, 1, C, 0, 0, 0), sum(&c, "dmu_x", C, 0, 0, 0);
    slot(&c, "m1", IN, -unit, unit, C, n * D, 0, 0), in(&c, "m2", n, D, C, 0), sum(&c, "dm1", C, n * D, 0, 0), sum(&c, "dm2", n, D, C, 0);
    out(&c, "h", s.B, s.T, n * D, 0), slot(&c, "dh", SCRATCH, 0, 1, s.B, s.T, n * D, 0);
    slot(&c, "mixed", SCRATCH, 0, 1, s.B, s.T, C, 0), slot(&c, "e", SCRATCH, 0, 1, s.B, s.T, C, 0);
    for (int z = 0; z < n; z++) {
        slot(&c, "mu", IN, 0, 1, C, 0, 0, 0)->z = z, slot(&c, "y", WRITTEN, 0, 1, s.B, s.T, C, 0)->z = z;
        slot(&c, "dy", IN, -1, 1, s.B, s.T, C, 0)->z = z, slot(&c, "dmu", ADDED, -1, 1, C, 0, 0, 0)->z = z;
    }
    if (carried) {
        in(&c, "prev", s.B, C, 0, 0), in(&c, "dlast", s.B, C, 0, 0), out(&c, "dprev", s.B, C, 0, 0), out(&c, "last", s.B, C, 0, 0);
        alias(&c, "last", "prev", 1);
    }
    test_case(&c);
}

static void test_sigmoid_gate(Size s) {
    Case c = new_case("sigmoid_gate", size_label(s));
    int R = s.B * s.T, C = s.H * s.N;
    slot(&c, "q", IN, -9, 9, R, C, 0, 0), in(&c, "v", R, C, 0, 0), out(&c, "y", R, C, 0, 0);
    in(&c, "dy", R, C, 0, 0), out(&c, "dq", R, C, 0, 0), out(&c, "dv", R, C, 0, 0);
    alias(&c, "dv", "dy", 0), alias(&c, "y", "v", 1);
    test_case(&c);
}

static void test_norm_gate(Size s) {
    Case c = new_case("norm_gate", size_label(s));
    int C = s.H * s.N, R = s.B * s.T;
    in(&c, "y", s.B, s.T, s.H, s.N), out(&c, "dy", s.B, s.T, s.H, s.N), slot(&c, "g", IN, -9, 9, R, C, 0, 0), out(&c, "dg", R, C, 0, 0);
    in(&c, "w", C, 0, 0, 0), in(&c, "b", C, 0, 0, 0), in(&c, "do_", R, C, 0, 0), out(&c, "o", R, C, 0, 0);
    sum(&c, "dw", C, 0, 0, 0), sum(&c, "db", C, 0, 0, 0), number(&c, "eps", 64e-5), alias(&c, "dg", "do_", 0);
    test_case(&c);
}

static void test_value_residual(Size s) {
    Case c = new_case("value_residual", size_label(s));
    int R = s.B * s.T, C = s.H * s.N;
    in(&c, "v0", R, C, 0, 0), in(&c, "v_first", R, C, 0, 0), slot(&c, "nu", IN, -9, 9, R, C, 0, 0), out(&c, "v", R, C, 0, 0);
    in(&c, "dv", R, C, 0, 0), out(&c, "dv0", R, C, 0, 0), out(&c, "dnu", R, C, 0, 0), sum(&c, "dv_first", R, C, 0, 0);
    alias(&c, "dv0", "dv", 0);
    test_case(&c);
}

/* k0 of size `scale`: 1, or so small that the floor of the norm decides. */
static void test_key_prep(Size s, double scale) {
    Case c = new_case("key_prep", size_label(s));
    int C = s.H * s.N;
    const char *const outs[] = {"k", "alpha", "beta", "dk0", "da"}, *const ins[] = {"dk", "dalpha", "dbeta"};
    slot(&c, "k0", IN, -scale, scale, s.B, s.T, s.H, s.N), slot(&c, "a", IN, -9, 9, s.B, s.T, s.H, s.N);
    slot(&c, "k_k", IN, 0.5, 1, C, 0, 0, 0), in(&c, "k_a", C, 0, 0, 0);
    for (int i = 0; i < 5; i++) out(&c, outs[i], s.B, s.T, s.H, s.N);
    for (int i = 0; i < 3; i++) in(&c, ins[i], s.B, s.T, s.H, s.N);
    sum(&c, "dk_k", C, 0, 0, 0), sum(&c, "dk_a", C, 0, 0, 0), alias(&c, "dk0", "dk", 0);
    test_case(&c);
}

static void test_out_gate(Size s) {
    Case c = new_case("out_gate", size_label(s));
    int C = s.H * s.N, R = s.B * s.T;
    const char *const outs[] = {"dy", "dr", "dk", "dv"}, *const ins[] = {"y", "r", "k", "v"};
    for (int i = 0; i < 4; i++) in(&c, ins[i], s.B, s.T, s.H, s.N), out(&c, outs[i], s.B, s.T, s.H, s.N);
    in(&c, "r_k", s.H, s.N, 0, 0), in(&c, "w", C, 0, 0, 0), in(&c, "b", C, 0, 0, 0), in(&c, "g", R, C, 0, 0), in(&c, "do_", R, C, 0, 0);
    out(&c, "o", R, C, 0, 0), out(&c, "dg", R, C, 0, 0);
    sum(&c, "dr_k", s.H, s.N, 0, 0), sum(&c, "dw", C, 0, 0, 0), sum(&c, "db", C, 0, 0, 0);
    number(&c, "eps", 64e-5), alias(&c, "dg", "do_", 0);
    test_case(&c);
}

/* wkv5 has one row of decays. An error of the rate e^w counts e^w times in the decay: here both stay small; the NumPy cases, with
 * tolerances of their own for every number, go on to rates that leave nothing. */
static void test_wkv6(Size s, int constant, int carried) {
    Case c = new_case(constant ? "wkv5" : "wkv6", size_label(s));
    int chunks = (s.T + RK_WKV_CHUNK - 1) / RK_WKV_CHUNK;
    const char *const ins[] = {"r", "k", "v", "dy"}, *const outs[] = {"y", "dr", "dk", "dv"};
    for (int i = 0; i < 4; i++) in(&c, ins[i], s.B, s.T, s.H, s.N), out(&c, outs[i], s.B, s.T, s.H, s.N);
    if (constant) slot(&c, "w", IN, -8, 0.7, s.H, s.N, 0, 0), sum(&c, "dw", s.H, s.N, 0, 0);
    else slot(&c, "w", IN, -8, 0.7, s.B, s.T, s.H, s.N), out(&c, "dw", s.B, s.T, s.H, s.N);
    in(&c, "u", s.H, s.N, 0, 0), sum(&c, "du", s.H, s.N, 0, 0), slot(&c, "sums", SCRATCH, 0, 1, s.B * s.H, 2, s.N, 0);
    out(&c, "ckpt", s.B * s.H, chunks, s.N, s.N);
    if (carried) {
        in(&c, "s0", s.B, s.H, s.N, s.N), in(&c, "dsT", s.B, s.H, s.N, s.N);
        out(&c, "sT", s.B, s.H, s.N, s.N), out(&c, "ds0", s.B, s.H, s.N, s.N);
        alias(&c, "sT", "s0", 1);
    }
    test_case(&c);
}

static void test_wkv7(Size s, int carried) {
    Case c = new_case("wkv7", size_label(s));
    int chunks = (s.T + RK_WKV_CHUNK - 1) / RK_WKV_CHUNK;
    double unit = 1.7 / sqrt(s.N); /* rows of a and b of about unit length, as normalised keys are */
    const char *const ins[] = {"r", "k", "v", "dy"}, *const outs[] = {"y", "z", "ds", "da", "db"}, *const sums[] = {"dr", "dk", "dv"};
    for (int i = 0; i < 4; i++) in(&c, ins[i], s.B, s.T, s.H, s.N);
    for (int i = 0; i < 5; i++) out(&c, outs[i], s.B, s.T, s.H, s.N);
    for (int i = 0; i < 3; i++) sum(&c, sums[i], s.B, s.T, s.H, s.N);
    slot(&c, "s", IN, -8, 8, s.B, s.T, s.H, s.N);
    slot(&c, "a", IN, -unit, unit, s.B, s.T, s.H, s.N), slot(&c, "b", IN, -unit / 2, unit / 2, s.B, s.T, s.H, s.N);
    out(&c, "ckpt", s.B * s.H, chunks, s.N, s.N);
    if (carried) {
        in(&c, "s0", s.B, s.H, s.N, s.N), in(&c, "dsT", s.B, s.H, s.N, s.N);
        out(&c, "sT", s.B, s.H, s.N, s.N), out(&c, "ds0", s.B, s.H, s.N, s.N);
        alias(&c, "sT", "s0", 1);
    }
    test_case(&c);
}

static void test_xent(int R, int V, int grad, double spread) {
    char label[64];
    snprintf(label, sizeof label, "R%d V%d grad%d", R, V, grad);
    Case c = new_case("xent", label);
    c.ids = malloc((size_t)R * sizeof *c.ids);
    for (int r = 0; r < R; r++) c.ids[r] = r % 3 == 1 ? RK_IGNORE : (int32_t)uniform(0, V);
    Slot *z = slot(&c, "logits", grad ? ADDED : IN, -spread, spread - 0.5, R, V, 0, 0);
    if (V > 3) z->start[V / 2] = z->start[V - 1] = (float)spread; /* a tie */
    slot(&c, "loss", WRITTEN, 0, 1, R, 0, 0, 0)->f64 = 1;
    number(&c, "grad", grad), number(&c, "scale", 1.0 / R), number(&c, "l2", 1e-2 / R);
    test_case(&c);
}

static void test_adamw(int n) {
    char label[64];
    snprintf(label, sizeof label, "n%d", n);
    Case c = new_case("adamw", label);
    sum(&c, "p", n, 0, 0, 0), in(&c, "g", n, 0, 0, 0), sum(&c, "m", n, 0, 0, 0), slot(&c, "v", ADDED, 0, 1, n, 0, 0, 0);
    number(&c, "gscale", 0.5), number(&c, "lr", 1e-2), number(&c, "beta1", 0.9), number(&c, "beta2", 0.99);
    number(&c, "eps", 1e-8), number(&c, "wd", 0.1), number(&c, "bias1", 1 - 0.9 * 0.9), number(&c, "bias2", 1 - 0.99 * 0.99);
    test_case(&c);
}

static void test_sumsq(int n) {
    char label[64];
    snprintf(label, sizeof label, "n%d", n);
    Case c = new_case("sumsq", label);
    slot(&c, "x", IN, -1e20, 1e20, n, 0, 0, 0); /* whose squares overflow in float32 */
    slot(&c, "partial", SCRATCH, 0, 1, (n + RK_SUMSQ_BLOCK - 1) / RK_SUMSQ_BLOCK, 0, 0, 0)->f64 = 1;
    slot(&c, "out", WRITTEN, 0, 1, 1, 0, 0, 0)->f64 = 1;
    test_case(&c);
}

/* ---- what the cases do not show ---- */

/* The distance in units in the last place of the true value, subnormal ones included. */
static double ulps(double got, double truth) {
    if (isnan(truth) || isinf(truth)) return (isnan(truth) && isnan(got)) || got == truth ? 0 : INFINITY;
    double unit = ldexp(1, fabs(truth) < 0x1p-126 ? -149 : ilogb(truth) - 23);
    return fabs(got - truth) / unit;
}

/* Bounds: exp rounds its remainder, polynomial and product (2 in plain C without fused operations); sigmoid adds a sum and a
 * quotient, and its exponential counts in full; tanh the same with one more sum. */
static void test_functions(void) {
    enum { N = 1 << 16 };
    static float x[N], y[N];
    static const float special[] = {0, -0.0f, 1e-30f, -1e-30f, 3e-5f, 88.7f, 88.8f, 100, -87.4f, -95, -103.9f, -104.1f, -1000, 3e38f,
                                    -3e38f, INFINITY, -INFINITY, NAN, 20, -20, 0.34657f, -0.34657f};
    for (int i = 0; i < N; i++) x[i] = (float)(i % 2 ? uniform(-104, 89) : uniform(-4, 4) * pow(2, uniform(-20, 0)));
    memcpy(x, special, sizeof special);
    struct { const char *name; void (*f)(float *, size_t); double bound; } const functions[] = {
        {"exp", rk_k.exp, 2}, {"sigmoid", rk_k.sigmoid, 4}, {"tanh", rk_k.tanh, 4}};
    for (int f = 0; f < 3; f++) {
        double worst = 0;
        int where = 0;
        memcpy(y, x, sizeof x);
        functions[f].f(y, N);
        for (int i = 0; i < N; i++) {
            double v = (double)x[i], truth = f == 0 ? exp(v) : f == 1 ? 1 / (1 + exp(-v)) : tanh(v);
            if (f == 0 && truth > 3.4028235677973366e38) truth = INFINITY;
            if (f == 1 && v < -88) continue; /* checked below */
            double off = ulps((double)y[i], truth);
            if (!(off <= worst)) worst = off, where = i;
        }
        check(worst <= functions[f].bound, "%s [%s]: %.2f ulp off at %.9g: %.9g", functions[f].name, rk_k.isa, worst, (double)x[where],
              (double)y[where]);
        for (size_t n = 1; n <= 40; n++) {
            float part[40];
            memcpy(part, x + 3, n * sizeof *part);
            functions[f].f(part, n);
            check(!memcmp(part, y + 3, n * sizeof *part), "%s [%s]: bits depend on the length %zu", functions[f].name, rk_k.isa, n);
        }
    }
    float low[2] = {-89, -INFINITY};
    rk_k.sigmoid(low, 2);
    check(low[0] >= 0 && low[0] < 1e-38f && low[1] == 0, "sigmoid [%s] does not vanish: %g %g", rk_k.isa, (double)low[0], (double)low[1]);
}

/* A NaN among the inputs reaches the outputs. */
static void test_nan(void) {
    float x[20], y[20], partner[20];
    for (int at = 0; at < 20; at += 19) {
        for (int i = 0; i < 20; i++) x[i] = -1, partner[i] = 1;
        x[at] = NAN;
        rk_k.relu2_fwd(x, y, 20);
        check(isnan(y[at]) && y[(at + 1) % 20] == 0, "relu2 [%s] hides NaN", rk_k.isa);
        rk_k.relu2_bwd(x, partner, y, 20);
        check(isnan(y[at]), "relu2 backward [%s] hides NaN", rk_k.isa);
        check(isnan(rk_k.sumsq(x, 20)), "sumsq [%s] hides NaN", rk_k.isa);
        RkXentRow row = {2, 0, 1, 0};
        check(isnan(rk_k.xent_row(x, 20, &row)), "xent [%s] hides NaN", rk_k.isa);
    }
}

/* ---- products with weights of every format ---- */

static const int FORMATS[] = {RK_F32, RK_BF16, RK_F16, RK_Q8, RK_Q4};
enum { N_FORMATS = 5 };

/* Random weights of n rows of K in their format, one element off a 64-byte boundary, and what they stand for. */
static char *random_weights(int dtype, size_t n, size_t K, char *memory, float *meaning) {
    char *w = memory + 64 - (uintptr_t)memory % 64 + (dtype == RK_F32 ? sizeof(float) : sizeof(uint16_t));
    size_t bytes = rk_row_bytes(dtype, K);
    for (size_t m = 0; m < n; m++) {
        char *row = w + m * bytes;
        for (size_t i = 0; i < bytes; i++) row[i] = (char)(dtype == RK_Q8 ? uniform(-127, 128) : uniform(0, 256));
        uint16_t *half = (uint16_t *)(void *)row;
        if (dtype == RK_F32) for (size_t i = 0; i < K; i++) { float f = (float)uniform(-1, 1); memcpy(row + 4 * i, &f, 4); }
        else if (dtype == RK_BF16) for (size_t i = 0; i < K; i++) half[i] = rk_f32_to_bf16((float)uniform(-1, 1));
        else if (dtype == RK_F16) for (size_t i = 0; i < K; i++) half[i] = rk_f32_to_f16((float)uniform(-1, 1));
        else for (size_t b = 0; b < K / RK_QUANT_BLOCK; b++) {
            uint16_t scale = rk_f32_to_f16((float)uniform(-0.01, 0.01));
            memcpy(row + bytes - K / RK_QUANT_BLOCK * 2 + 2 * b, &scale, 2);
        }
        rk_row_to_f32(dtype, row, meaning + m * K, K);
    }
    return w;
}

/* What quantising x may cost an output: half a step of every block, a step being its largest |x| / 127 and three roundings of numbers
 * up to 127 steps; and the float32 sum, of at most K / 4 terms of a lane and 24 more, of weights made larger by 128 steps. */
static double quantisation_bound(const float *x, const float *w, const void *row, int dtype, size_t K) {
    double bound = 0;
    for (size_t b = 0; b < K / RK_QUANT_BLOCK; b++, x += RK_QUANT_BLOCK, w += RK_QUANT_BLOCK) {
        double most = 0, size_w = 0, size_x = 0;
        for (int i = 0; i < RK_QUANT_BLOCK; i++) most = fmax(most, fabs((double)x[i])), size_w += fabs((double)w[i]), size_x += fabs((double)x[i]);
        const uint16_t *scales = dtype == RK_Q8 ? rk_q8_scales(row, K) : rk_q4_scales(row, K);
        double step = fabs((double)rk_f16_to_f32(scales[b]));
        bound += most / 127 * (0.5 + 127 * 3 * 2 * EPS32) * size_w;
        bound += 2 * EPS32 * (double)(K / 4 + 24) * step * 255 * (size_x + RK_QUANT_BLOCK * most / 127);
    }
    return bound;
}

static void test_quantised(void) {
    enum { M = 11, R = 5, K_MAX = 2080 };
    static char memory[M * K_MAX * 4 + 130], xq[R * (K_MAX + 128) * 3];
    static float x[R * K_MAX], meaning[M * K_MAX], y[R * M];
    static const size_t sizes[] = {32, 64, 96, 160, 256, 2080};
    for (int f = 3; f < N_FORMATS; f++)
        for (size_t s = 0; s < 6; s++) {
            size_t K = sizes[s];
            char *w = random_weights(FORMATS[f], M, K, memory, meaning);
            for (size_t i = 0; i < R * K; i++) x[i] = (float)(uniform(-1, 1) * (i / 32 % 3 ? 1 : 1e-3));
            memset(x, 0, 32 * sizeof *x);
            RkRowsTimesTransposed a = {.x = x, .w = w, .dtype = FORMATS[f], .y = y, .R = R, .K = K, .M = M, .xq = xq};
            memset(xq, 0xff, sizeof xq); /* NaN wherever it is read but not written */
            rk_k.quantise_rows(x, R, K, FORMATS[f], xq);
            rk_k.rows_times_transposed(&a, 0, M);
            for (size_t r = 0; r < R; r++)
                for (size_t m = 0; m < M; m++) {
                    double exact = 0, bound = quantisation_bound(x + r * K, meaning + m * K, w + m * rk_row_bytes(FORMATS[f], K), FORMATS[f], K);
                    for (size_t k = 0; k < K; k++) exact += (double)x[r * K + k] * (double)meaning[m * K + k];
                    double error = fabs((double)y[r * M + m] - exact);
                    check(error <= bound, "%s [%s] K%zu: (%zu,%zu) is %g off, bound %g", f == 3 ? "q8" : "q4", rk_k.isa, K, r, m, error, bound);
                }
            for (int bad = 0; bad < 2; bad++) {
                x[K + 7] = bad ? INFINITY : NAN;
                rk_k.quantise_rows(x, R, K, FORMATS[f], xq);
                rk_k.rows_times_transposed(&a, 0, M);
                for (size_t i = 0; i < R * M; i++) check((isnan(y[i]) != 0) == (i / M == 1), "quantised [%s]: NaN or infinity in row 1, row %zu is %g", rk_k.isa, i / M, (double)y[i]);
            }
        }
}

/* A row of a few-row product does not depend on the rows beside it, nor on where the outputs are cut. */
static void test_rows_alone(void) {
    enum { K = 96, M = 45, R = 9 };
    static float x[R * K], meaning[M * K], together[R * M], alone[M], bias[M];
    static char memory[M * K * 4 + 130], xq[R * 320];
    for (int i = 0; i < R * K; i++) x[i] = (float)uniform(-1, 1);
    for (int i = 0; i < M; i++) bias[i] = (float)uniform(-1, 1);
    for (int f = 0; f < N_FORMATS; f++) {
        int dtype = FORMATS[f];
        const size_t k = rk_quantised(dtype) ? K : 37; /* odd sizes where there are no blocks */
        char *w = random_weights(dtype, M, k, memory, meaning);
        for (size_t rows = 1; rows <= R; rows++) {
            const float *last = x + (rows - 1) * k;
            if (rk_quantised(dtype)) rk_k.quantise_rows(x, rows, k, dtype, xq);
            rk_k.rows_times_transposed(&(RkRowsTimesTransposed){.x = x, .w = w, .dtype = dtype, .y = together, .R = rows, .K = k, .M = M, .xq = xq}, 0, M);
            if (rk_quantised(dtype)) rk_k.quantise_rows(last, 1, k, dtype, xq);
            RkRowsTimesTransposed one = {.x = last, .w = w, .dtype = dtype, .y = alone, .R = 1, .K = k, .M = M, .xq = xq};
            rk_k.rows_times_transposed(&one, 0, 17), rk_k.rows_times_transposed(&one, 17, M);
            check(!memcmp(together + (rows - 1) * M, alone, sizeof alone), "linear [%s] format %d: %zu rows differ from one", rk_k.isa, dtype, rows);
            if (rk_quantised(dtype)) continue;
            rk_k.rows_times_matrix(&(RkRowsTimesMatrix){.x = x, .m = w, .dtype = dtype, .bias = bias, .y = together, .R = rows, .K = k, .M = M, .ldx = k}, 0, M);
            rk_k.rows_times_matrix(&(RkRowsTimesMatrix){.x = last, .m = w, .dtype = dtype, .bias = bias, .y = alone, .R = 1, .K = k, .M = M, .ldx = k}, 0, M);
            check(!memcmp(together + (rows - 1) * M, alone, sizeof alone), "lowrank [%s] format %d: %zu rows differ from one", rk_k.isa, dtype, rows);
        }
    }
}

/* Products together give the bits of one by one, for few rows and for many. */
static void test_products(void) {
    enum { K = 96, M = 50, D = 20, R = RK_FEW_ROWS + 3 };
    static float x[R * K], meaning[(M + K + D) * K], h[2][R * D], y[2][4][R * M], bias[M];
    static char memory[6][(M + K) * K * 4 + 130];
    for (int i = 0; i < R * K; i++) x[i] = (float)uniform(-1, 1);
    for (int i = 0; i < M; i++) bias[i] = (float)uniform(-1, 1);
    for (int f = 0; f < N_FORMATS; f++)
        for (int rows = 1; rows <= R; rows += rows == 1 ? 2 : R - 3) {
            int thin = rk_quantised(FORMATS[f]) ? RK_BF16 : FORMATS[f];
            RkTensor in = {x, RK_F32, {rows, K}};
            RkTensor w[3], m1 = {random_weights(thin, K, D, memory[3], meaning), thin, {K, D}}, m2 = {random_weights(thin, D, M, memory[4], meaning), thin, {D, M}};
            for (int i = 0; i < 3; i++) w[i] = (RkTensor){random_weights(FORMATS[f], M, K, memory[i], meaning), FORMATS[f], {M, K}};
            RkLinear linear[2][3];
            RkLowrank lowrank[2];
            for (int z = 0; z < 2; z++) {
                for (int i = 0; i < 3; i++) linear[z][i] = (RkLinear){.x = in, .w = w[i], .y = {y[z][i], RK_F32, {rows, M}}};
                lowrank[z] = (RkLowrank){.x = in, .m1 = m1, .m2 = m2, .bias = {bias, RK_F32, {M}}, .act = RK_ACT_TANH,
                                         .h = {h[z], RK_F32, {rows, D}}, .y = {y[z][3], RK_F32, {rows, M}}};
            }
            memset(y, 0xff, sizeof y), memset(h, 0xff, sizeof h);
            int rc = 0;
            for (int i = 0; i < 3; i++) rc |= rk_backend_cpu.linear_fwd(&linear[0][i]);
            rc |= rk_backend_cpu.lowrank_fwd(&lowrank[0]);
            rc |= rk_products_fwd(&rk_backend_cpu, &(RkProducts){.linear = {&linear[1][0], &linear[1][1], NULL, &linear[1][2]}, .lowrank = {NULL, &lowrank[1]}});
            check(!rc && !memcmp(y[0], y[1], sizeof y[0]) && !memcmp(h[0], h[1], sizeof h[0]), "products [%s] format %d, %d rows: together they differ", rk_k.isa, FORMATS[f], rows);
            check(!isnan(y[1][3][rows * M - 1]) && !isnan(y[1][2][rows * M - 1]), "products [%s]: not written", rk_k.isa);
        }
}

/* A cache with more room than tokens, used in place: what is past its tokens is neither read nor written. */
static void test_attention_room(void) {
    enum { T = 3, PAST = 5, ROOM = 11, H = 2, G = 1, N = 17 };
    static float q[2 * T * H * N], k[2 * T * G * N], v[2 * T * G * N], cache[2][2 * ROOM * G * N], exact[2][2 * (PAST + T) * G * N], y[2][2 * T * H * N];
    for (int i = 0; i < 2 * T * H * N; i++) q[i] = (float)uniform(-1, 1);
    for (int i = 0; i < 2 * T * G * N; i++) k[i] = (float)uniform(-1, 1), v[i] = (float)uniform(-1, 1);
    for (int z = 0; z < 2; z++)
        for (int b = 0; b < 2; b++)
            for (int t = 0; t < ROOM; t++)
                for (int i = 0; i < G * N; i++) {
                    float x = t < PAST ? (float)uniform(-1, 1) : NAN;
                    cache[z][(b * ROOM + t) * G * N + i] = x;
                    if (t < PAST + T) exact[z][(b * (PAST + T) + t) * G * N + i] = x;
                }
    for (int with = 0; with < 2; with++) {
        int room = with ? ROOM : PAST + T;
        RkTensor key = {with ? cache[0] : exact[0], RK_F32, {2, room, G, N}}, value = {with ? cache[1] : exact[1], RK_F32, {2, room, G, N}};
        RkAttention o = {.past = PAST, .q = {q, RK_F32, {2, T, H, N}}, .k = {k, RK_F32, {2, T, G, N}}, .v = {v, RK_F32, {2, T, G, N}},
                         .y = {y[with], RK_F32, {2, T, H, N}}, .k_past = key, .v_past = value, .k_all = key, .v_all = value};
        check(rk_backend_cpu.attention_fwd(&o) == RK_OK, "attention: %s", rk_error());
    }
    check(!memcmp(y[0], y[1], sizeof y[0]), "attention [%s]: room in the cache changes the result", rk_k.isa);
    int kept = 1, untouched = 1;
    for (int z = 0; z < 2; z++)
        for (int b = 0; b < 2; b++) {
            kept &= !memcmp(cache[z] + b * ROOM * G * N, exact[z] + b * (PAST + T) * G * N, (PAST + T) * G * N * sizeof(float));
            kept &= !memcmp(cache[z] + (b * ROOM + PAST) * G * N, (z ? v : k) + b * T * G * N, T * G * N * sizeof(float));
            for (int i = (PAST + T) * G * N; i < ROOM * G * N; i++) untouched &= isnan(cache[z][b * ROOM * G * N + i]) != 0;
        }
    check(kept, "attention [%s]: the cache does not hold the past and the call's keys and values", rk_k.isa);
    check(untouched, "attention [%s]: wrote beyond the tokens of the cache", rk_k.isa);
}

/* Token by token with the state in place gives the bits of one run, across a chunk's end. */
static void test_wkv6_steps(int N) {
    enum { T = 19, H = 2 };
    size_t row = (size_t)(H * N), n = T * row, NN = (size_t)(H * N * N);
    float *x[5], *whole = malloc(n * 4), *steps = malloc(n * 4), *state = calloc(NN, 4);
    for (int i = 0; i < 5; i++) {
        x[i] = malloc(n * 4);
        for (size_t k = 0; k < n; k++) x[i][k] = (float)uniform(-1, 1);
    }
    RkTensor u = {x[4], RK_F32, {H, N}}, S = {state, RK_F32, {1, H, N, N}};
#define ROWS(p, t, tokens) {(p) + (size_t)(t) * row, RK_F32, {1, tokens, H, N}}
    RkWkv6 o = {.r = ROWS(x[0], 0, T), .k = ROWS(x[1], 0, T), .v = ROWS(x[2], 0, T), .w = ROWS(x[3], 0, T), .u = u, .y = ROWS(whole, 0, T)};
    rk_backend_cpu.wkv6_fwd(&o);
    for (int t = 0; t < T; t++) {
        RkWkv6 step = {.r = ROWS(x[0], t, 1), .k = ROWS(x[1], t, 1), .v = ROWS(x[2], t, 1), .w = ROWS(x[3], t, 1), .u = u,
                       .y = ROWS(steps, t, 1), .s0 = S, .sT = S};
        rk_backend_cpu.wkv6_fwd(&step);
    }
    check(!memcmp(whole, steps, n * 4), "wkv6 [%s] N%d: steps differ from one run", rk_k.isa, N);
    for (int i = 0; i < 5; i++) free(x[i]);
    free(whole), free(steps), free(state);
}

/* The same for wkv7. */
static void test_wkv7_steps(int N) {
    enum { T = 19, H = 2 };
    size_t row = (size_t)(H * N), n = T * row, NN = (size_t)(H * N * N);
    float *x[6], *whole = malloc(n * 4), *steps = malloc(n * 4), *state = calloc(NN, 4);
    int32_t many[4] = {1, T, H, N}, one[4] = {1, 1, H, N};
    for (int i = 0; i < 6; i++) {
        x[i] = malloc(n * 4);
        for (size_t k = 0; k < n; k++) x[i][k] = (float)(uniform(-1, 1) / (i > 3 ? sqrt(N) : 1));
    }
#define AT(p, t, shape) {(p) + (size_t)(t) * row, RK_F32, {(shape)[0], (shape)[1], (shape)[2], (shape)[3]}}
    RkWkv7 o = {.r = AT(x[0], 0, many), .s = AT(x[1], 0, many), .k = AT(x[2], 0, many), .v = AT(x[3], 0, many), .a = AT(x[4], 0, many),
                .b = AT(x[5], 0, many), .y = AT(whole, 0, many)};
    rk_backend_cpu.wkv7_fwd(&o);
    for (int t = 0; t < T; t++) {
        RkTensor S = {state, RK_F32, {1, H, N, N}};
        RkWkv7 step = {.r = AT(x[0], t, one), .s = AT(x[1], t, one), .k = AT(x[2], t, one), .v = AT(x[3], t, one), .a = AT(x[4], t, one),
                       .b = AT(x[5], t, one), .y = AT(steps, t, one), .s0 = S, .sT = S};
        rk_backend_cpu.wkv7_fwd(&step);
    }
    check(!memcmp(whole, steps, n * 4), "wkv7 [%s] N%d: steps differ from one run", rk_k.isa, N);
    for (int i = 0; i < 6; i++) free(x[i]);
    free(whole), free(steps), free(state);
}

static void test_sizes(Size s) {
    test_embed(s), test_add(s), test_relu2(s), test_layernorm(s), test_value_residual(s), test_out_gate(s);
    test_key_prep(s, 1), test_key_prep(s, 1e-14);
    test_shift_lerp(s, 6, 1, 0), test_shift_lerp(s, 1 + s.N % 5, 0, 0), test_shift_lerp(s, 1 + s.N % 6, 1, 1);
    test_ddlerp(s, 5, 4, 1), test_ddlerp(s, 1 + s.N % 6, 1 + s.T % 7, 0), test_sigmoid_gate(s), test_norm_gate(s);
    test_wkv6(s, 0, 0), test_wkv6(s, 0, 1), test_wkv6(s, 1, 0), test_wkv6(s, 1, 1);
    test_wkv7(s, 0), test_wkv7(s, 1);
}

static void test_transformer(void) {
    static const Size sizes[] = {{1, 1, 1, 1}, {2, 2, 2, 3}, {1, 16, 3, 8}, {2, 17, 1, 16}, {1, 37, 2, 17}, {1, 2, 3, 31}, {2, 5, 2, 32},
                                 {1, 17, 4, 33}, {2, 70, 6, 64}, {1, 9, 1, 128}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        Size s = sizes[i];
        test_gelu(s), test_attention(s, s.H, 33), test_attention(s, 1, 5);
        if (s.N % 2 == 0) test_rope(s, 0), test_rope(s, 77);
    }
    test_attention((Size){1, 200, 4, 32}, 2, 65), test_attention((Size){2, 130, 2, 48}, 2, 0);
    test_attention((Size){2, 1, 2, 64}, 2, 300), test_attention((Size){1, 128, 1, 16}, 1, 64);
}

int main(void) {
    check(rk_kernels_init() == RK_OK, "kernels: %s", rk_error());
    check(rk_kernels_select("mmx") == RK_EINVAL, "an unknown instruction set is accepted");
    static const int widths[] = {1, 3, 8, 15, 16, 17, 31, 32, 33, 64, 128}, lengths[] = {1, 2, 16, 17, 37};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++)
            if (k == i % 5 || widths[i] == 17 || widths[i] == 64)
                test_sizes((Size){1 + (int)(i % 2), lengths[k], 1 + (int)(k % 3), widths[i]});
    test_sizes((Size){2, 70, 6, 64}); /* several tasks of every kind */
    test_key_prep((Size){1, 3, 2, 17}, 0), test_key_prep((Size){1, 3, 2, 64}, 1e-30);
    for (int R = 1; R <= 6; R++)
        for (int k = 0; k < 6; k++) test_linear(R, (int[]){1, 15, 16, 33, 200, 700}[k], (int[]){3, 1, 17, 64, 50, 130}[k], k % 3 > 0, k % 3 != 1);
    test_linear(3, 1500, 7, 1, 1), test_linear(4, 1041, 6, 1, 1); /* more of x than L1 keeps */
    for (int R = 1; R <= 6; R++)
        for (int act = 0; act < 3; act++) test_lowrank(R * R, 31 + 300 * (R == 4 || R == 2), 1 + 8 * R, 300 - 17 * R, act, R % 2);
    for (int grad = 0; grad < 2; grad++)
        test_xent(4, 1, grad, 1), test_xent(3, 17, grad, 3), test_xent(7, 1024, grad, 20), test_xent(5, 5003, grad, 90);
    for (int n = 1; n <= 33; n += 8) test_adamw(n), test_sumsq(n);
    test_adamw(40000), test_sumsq(200000);
    test_transformer();
    for (size_t k = 0; k < sizeof ISAS / sizeof *ISAS; k++) {
        if (rk_kernels_select(ISAS[k])) continue;
        test_functions(), test_nan(), test_attention_room(), test_rows_alone(), test_quantised(), test_products(), test_wkv7_steps(64), test_wkv7_steps(17);
        test_wkv6_steps(64), test_wkv6_steps(17);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
