/* test_mixers.c - every mixer of the registry, with no code per mixer, on the float64 reference backend:
 *   what the tables measure is what they place; every output is written (memory starts as NaN); parameter gradients
 *   are added to; the backward agrees with central differences of the forward, for the input, every parameter and the
 *   initial state; two calls with the state between them equal one call. */
#include "tests/c/test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "mixers/mixer.h"

enum { B = 2, T = 5, CUT = 2, PAST = 3 };
static const RkDims dims = {.B = B, .T = T, .C = 8, .H = 2, .N = 4, .F = 12, .V = 11, .Dw = 3, .Da = 2, .Dv = 3, .Dg = 4, .Dm = 2, .divisor = 8,
                            .G = 1, .P = PAST, .rope = 1};

/* Everything one call needs, in one arena. */
typedef struct {
    RkDims dims;
    RkTensor par[RK_MAX_ROWS], grad[RK_MAX_ROWS], act[RK_MAX_ROWS], tmp[RK_MAX_ROWS];
    RkTensor state[RK_MAX_ROWS], after[RK_MAX_ROWS], dstate[RK_MAX_ROWS], dafter[RK_MAX_ROWS];
    RkTensor x, y, dx, dy;
    RkCarry carry;
} Bench;

static double *at(RkTensor t) { return t.p; }

static uint64_t seed = 1;
static double draw(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(seed >> 11) * 0x1p-53 - 0.5;
}

static void fill(RkTensor t, int random, double value) {
    for (size_t i = 0; t.p && i < rk_numel(t); i++) at(t)[i] = random ? draw() : value;
}

static void place_rows(RkArena *a, const RkRowSpec *rows, int n, const RkDims *d, RkTensor *out) {
    for (int i = 0; i < n; i++) out[i] = rk_arena_take(a, RK_F64, rk_shape_resolve(rows[i].shape, RK_F64, d).d);
}

static void place(RkArena *a, const RkMixer *m, Bench *w) {
    const RkDims *d = &w->dims;
    int32_t x[4] = {d->B, d->T, d->C}, v[4] = {d->B, d->T, d->H, d->N};
    for (int i = 0; i < m->n_par; i++) {
        if (m->par[i].flags & P_INIT_STATE) continue;
        w->par[i] = rk_arena_take(a, RK_F64, rk_shape_resolve(m->par[i].shape, RK_F64, d).d);
        w->grad[i] = rk_arena_take(a, RK_F64, w->par[i].d);
    }
    place_rows(a, m->act, m->n_act, d, w->act);
    place_rows(a, m->tmp, m->n_tmp, d, w->tmp);
    RkDims grown = *d; /* a state that grows: by the tokens of the call */
    grown.P += d->T;
    RkTensor *states[] = {w->state, w->dstate, w->after, w->dafter};
    for (int i = 0; i < 4; i++) place_rows(a, m->state, m->n_state, i < 2 ? d : &grown, states[i]);
    RkTensor *streams[] = {&w->x, &w->y, &w->dx, &w->dy};
    for (int i = 0; i < 4; i++) *streams[i] = rk_arena_take(a, RK_F64, x);
    w->carry.v_first = rk_arena_take(a, RK_F64, v);
    w->carry.dv_first = rk_arena_take(a, RK_F64, v);
}

static void *create(const RkMixer *m, Bench *w) {
    RkArena a = {0};
    place(&a, m, w);
    size_t measured = a.used;
    a = (RkArena){calloc(1, measured), 0, measured};
    if (!a.base) abort();
    place(&a, m, w);
    CHECK(a.used == measured);
    return a.base;
}

static RkCall call_of(Bench *w, int layer) {
    w->carry.value_layer = 0;
    return (RkCall){.be = &rk_backend_ref_f64, .dims = w->dims, .layer = layer, .training = 1, .par = w->par, .grad = w->grad,
                    .act = w->act, .tmp = w->tmp, .state = w->state, .state_out = w->after, .dstate = w->dstate,
                    .dstate_out = w->dafter, .x = w->x, .y = w->y, .dx = w->dx, .dy = w->dy, .carry = &w->carry};
}

/* A scalar of everything the forward gives: outputs and final states, weighted. */
static double value(const RkMixer *m, Bench *w, int layer) {
    for (int i = 0; i < m->n_act; i++) fill(w->act[i], 0, NAN);
    for (int i = 0; i < m->n_tmp; i++) fill(w->tmp[i], 0, NAN);
    for (int i = 0; i < m->n_state; i++) fill(w->after[i], 0, NAN);
    fill(w->y, 0, NAN);
    RkCall c = call_of(w, layer);
    CHECK(m->fwd(&c) == RK_OK);
    double sum = 0;
    for (size_t i = 0; i < rk_numel(w->y); i++) sum += at(w->y)[i] * at(w->dy)[i];
    for (int s = 0; s < m->n_state; s++)
        for (size_t i = 0; i < rk_numel(w->after[s]); i++) sum += at(w->after[s])[i] * at(w->dafter[s])[i];
    if (layer == 0) /* what later layers take from v_first */
        for (size_t i = 0; i < rk_numel(w->carry.v_first); i++) sum += at(w->carry.v_first)[i] * at(w->carry.dv_first)[i];
    return sum;
}

static void compare(const RkMixer *m, Bench *w, int layer, const char *what, RkTensor v, RkTensor g) {
    for (size_t i = 0; v.p && i < rk_numel(v); i++) {
        double keep = at(v)[i], h = 1e-5;
        at(v)[i] = keep + h;
        double up = value(m, w, layer);
        at(v)[i] = keep - h;
        double down = value(m, w, layer);
        at(v)[i] = keep;
        double numeric = (up - down) / (2 * h);
        if (!(fabs(numeric - at(g)[i]) <= 2e-8 * (1 + fabs(numeric))))
            printf("%s layer %d d%s[%zu]: backward %.12g, difference %.12g\n", m->name, layer, what, i, at(g)[i], numeric);
        CHECK(fabs(numeric - at(g)[i]) <= 2e-8 * (1 + fabs(numeric)));
    }
}

static void test_gradients(const RkMixer *m, int layer) {
    Bench w = {.dims = dims};
    void *memory = create(m, &w);
    for (int i = 0; i < m->n_par; i++) fill(w.par[i], 1, 0), fill(w.grad[i], 0, 1);
    for (int i = 0; i < m->n_state; i++) fill(w.state[i], 1, 0), fill(w.dafter[i], 1, 0);
    fill(w.x, 1, 0);
    fill(w.dy, 1, 0);
    fill(w.carry.v_first, 1, 0); /* layer 0 overwrites it */
    fill(w.carry.dv_first, layer == 0, 0);
    for (int pass = 0; pass < 2; pass++) { /* gradients that are added to: 1 + 2 g */
        RkTensor dv_first = w.carry.dv_first;
        double kept[256];
        memcpy(kept, dv_first.p, rk_numel(dv_first) * sizeof *kept);
        value(m, &w, layer);
        for (int i = 0; i < m->n_tmp; i++) fill(w.tmp[i], 0, NAN);
        for (int i = 0; i < m->n_state; i++) fill(w.dstate[i], 0, NAN);
        fill(w.dx, 0, NAN);
        RkCall c = call_of(&w, layer);
        CHECK(m->bwd(&c) == RK_OK);
        if (layer == 0) memcpy(dv_first.p, kept, rk_numel(dv_first) * sizeof *kept);
    }
    for (int i = 0; i < m->n_par; i++)
        for (size_t j = 0; w.grad[i].p && j < rk_numel(w.grad[i]); j++) at(w.grad[i])[j] = (at(w.grad[i])[j] - 1) / 2;
    for (size_t j = 0; layer && j < rk_numel(w.carry.dv_first); j++) at(w.carry.dv_first)[j] /= 2;
    compare(m, &w, layer, "x", w.x, w.dx);
    for (int i = 0; i < m->n_par; i++) compare(m, &w, layer, m->par[i].name, w.par[i], w.grad[i]);
    for (int i = 0; i < m->n_state; i++) compare(m, &w, layer, m->state[i].name, w.state[i], w.dstate[i]);
    if (layer) compare(m, &w, layer, "v_first", w.carry.v_first, w.carry.dv_first);
    free(memory);
}

/* A backward that starts gradients leaves the same numbers whatever lay where products write, and zeros elsewhere. */
static void test_fresh_gradients(const RkMixer *m) {
    Bench w = {.dims = dims};
    void *memory = create(m, &w), *sums[RK_MAX_ROWS];
    for (int i = 0; i < m->n_par; i++) fill(w.par[i], 1, 0);
    for (int i = 0; i < m->n_state; i++) fill(w.state[i], 1, 0), fill(w.dafter[i], 1, 0);
    fill(w.x, 1, 0);
    fill(w.dy, 1, 0);
    fill(w.carry.v_first, 1, 0);
    for (int fresh = 0; fresh < 2; fresh++) {
        for (int i = 0; i < m->n_par; i++) fill(w.grad[i], 0, fresh && (m->par[i].flags & P_MATRIX) ? NAN : 0);
        fill(w.carry.dv_first, 0, 0);
        value(m, &w, 1);
        RkCall c = call_of(&w, 1);
        c.fresh = fresh;
        CHECK(m->bwd(&c) == RK_OK);
        for (int i = 0; i < m->n_par; i++) {
            size_t bytes = w.grad[i].p ? rk_numel(w.grad[i]) * sizeof(double) : 0;
            if (!bytes) continue;
            if (!fresh) {
                sums[i] = malloc(bytes);
                if (!sums[i]) abort();
                memcpy(sums[i], w.grad[i].p, bytes);
            } else {
                CHECK(!memcmp(sums[i], w.grad[i].p, bytes));
                free(sums[i]);
            }
        }
    }
    free(memory);
}

/* Tokens [first, first + n) of every sequence of a (B,T,...) tensor, copied between a whole and a part. */
static void copy_tokens(RkTensor part, RkTensor whole, int first, int n, int into_whole) {
    size_t row = rk_numel(whole) / (size_t)(whole.d[0] * whole.d[1]);
    for (int b = 0; b < whole.d[0]; b++) {
        double *p = at(part) + (size_t)(b * n) * row, *w = at(whole) + (size_t)(b * whole.d[1] + first) * row;
        memcpy(into_whole ? w : p, into_whole ? p : w, (size_t)n * row * sizeof(double));
    }
}

static void test_split(const RkMixer *m) {
    Bench whole = {.dims = dims}, part[2] = {{.dims = dims}, {.dims = dims}};
    part[0].dims.T = CUT;
    part[1].dims.T = T - CUT;
    part[1].dims.P += CUT;
    void *memory[3] = {create(m, &whole), create(m, &part[0]), create(m, &part[1])};
    for (int i = 0; i < m->n_par; i++) fill(whole.par[i], 1, 0);
    for (int i = 0; i < m->n_state; i++) fill(whole.state[i], 1, 0);
    fill(whole.x, 1, 0);
    fill(whole.carry.v_first, 1, 0);
    value(m, &whole, 1);
    for (int s = 0; s < 2; s++) {
        int first = s ? CUT : 0, n = part[s].dims.T;
        for (int i = 0; i < m->n_par; i++)
            if (whole.par[i].p) memcpy(part[s].par[i].p, whole.par[i].p, rk_numel(whole.par[i]) * sizeof(double));
        for (int i = 0; i < m->n_state; i++)
            memcpy(part[s].state[i].p, s ? part[0].after[i].p : whole.state[i].p, rk_numel(part[s].state[i]) * sizeof(double));
        copy_tokens(part[s].x, whole.x, first, n, 0);
        copy_tokens(part[s].carry.v_first, whole.carry.v_first, first, n, 0);
        value(m, &part[s], 1);
        copy_tokens(part[s].y, whole.dx, first, n, 1); /* dx: room of the right shape */
    }
    CHECK(!memcmp(whole.dx.p, whole.y.p, rk_numel(whole.y) * sizeof(double)));
    for (int i = 0; i < m->n_state; i++)
        CHECK(!memcmp(part[1].after[i].p, whole.after[i].p, rk_numel(whole.after[i]) * sizeof(double)));
    for (int i = 0; i < 3; i++) free(memory[i]);
}

int main(void) {
    for (const RkMixer *const *m = rk_mixers; *m; m++) {
        CHECK((*m)->n_par <= RK_MAX_ROWS && (*m)->n_act <= RK_MAX_ROWS && (*m)->n_tmp <= RK_MAX_ROWS);
        test_gradients(*m, 0);
        test_gradients(*m, 1);
        test_fresh_gradients(*m);
        test_split(*m);
    }
    return test_summary();
}
