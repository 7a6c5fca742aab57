/* Calls for every element: `at` in the parameter, `to` in the state of sequence b. */
#define EACH_INITIAL_STATE(state, statement)                                                      \
    do {                                                                                          \
        size_t B = (size_t)(state).d[0], H = (size_t)(state).d[1], N = (size_t)(state).d[2];      \
        for (size_t b = 0; b < B; b++)                                                            \
            for (size_t h = 0; h < H; h++)                                                        \
                for (size_t i = 0; i < N; i++)                                                    \
                    for (size_t j = 0; j < N; j++) {                                              \
                        size_t at = (h * N + i) * N + j, to = ((b * H + h) * N + j) * N + i;      \
                        statement;                                                                \
                    }                                                                             \
    } while (0)

static int initial_state_fwd(const RkInitialState *o) {
    EACH_INITIAL_STATE(o->s, P(o->s)[to] = P(o->p)[at]);
    return RK_OK;
}

static int initial_state_bwd(const RkInitialState *o) {
    EACH_INITIAL_STATE(o->ds, P(o->dp)[at] += P(o->ds)[to]);
    return RK_OK;
}
